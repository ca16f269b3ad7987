"""Reading Parquet with distrust: what a file claims is compared with what it holds.

A few bytes can claim any number of rows, or name one long text for each of them: read at once, they
take all memory.
"""

import pyarrow as pa
import pyarrow.parquet as pq

from .read import TOO_LARGE, machine_memory

# More than any table has, however well it is packed: the ids alone, which are all different, take
# more. A row may have many values, in lists that are all alike.
ROWS_PER_BYTE = 10
VALUES_PER_BYTE = 100


def read_parquet(content: bytes) -> pa.Table:
    """The table of a Parquet file.

    Raises `ValueError` if it claims more than the file can hold or the machine's memory, and
    `pa.ArrowException` if it is no Parquet file.
    """
    schema = open_parquet(content).schema_arrow

    # A text that many rows have stays one text until their size is known.
    texts = [field.name for field in schema if _is_text(field.type)]
    shared = pq.ParquetFile(pa.BufferReader(content), read_dictionary=texts)
    table = shared.read(use_threads=False)

    memory = machine_memory()
    size = sum(_size(column) for column in table.columns)
    if memory is not None and size > memory:
        raise ValueError(f"it claims {size / 1e9:.0f} GB of texts, {TOO_LARGE}")
    return table.cast(schema)


def open_parquet(content: bytes) -> pq.ParquetFile:
    """The file, which has no more rows, or values of lists, than so many bytes hold.

    Raises as `read_parquet` does.
    """
    file = pq.ParquetFile(pa.BufferReader(content))
    metadata = file.metadata
    if metadata.num_rows > ROWS_PER_BYTE * len(content):
        raise ValueError(
            f"it claims {metadata.num_rows} rows, which {len(content)} bytes do not hold"
        )

    counts = [0]
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            counts.append(metadata.row_group(group).column(column).num_values)

    if max(counts) > VALUES_PER_BYTE * len(content):
        raise ValueError(f"it claims {max(counts)} values, which {len(content)} bytes do not hold")
    return file


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)


def _size(column: pa.ChunkedArray) -> int:
    """Bytes of a column, each row with its own text."""
    import pyarrow.compute as pc

    size = 0
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type):
            lengths = pc.take(pc.binary_length(chunk.dictionary), chunk.indices)
            size += pc.sum(lengths.cast(pa.int64())).as_py() or 0
        else:
            size += chunk.nbytes
    return size
