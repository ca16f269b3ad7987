"""What lies beside the runs of a search, so that a report shows the chosen ones' scores alone."""

from pathlib import Path

import msgspec

from ser.disk.read import read_small
from ser.disk.records import short_hash
from ser.disk.write import make_folder, write_whole
from ser.errors import CorruptStore, StoreError

from ..records import RunConfig
from ..run_folder import run_name

# What tells the runs of one cell apart.
OF_THE_RUN = ("fold", "seed", "cut")
AGAIN = "remove it and run the sweep again"


class SearchRecord(msgspec.Struct, frozen=True):
    """`search-<hash>.json` in the folder of the runs."""

    file: str
    """The recipe."""
    searched: list[str] = msgspec.field(name="over")
    """The settings that are tried at several values, by name."""
    candidates: list[str]
    """The `cell_name` of each candidate's runs."""

    @property
    def name(self) -> str:
        """The name of its file, which vouches for the candidates."""
        return f"search-{short_hash({'candidates': self.candidates})}.json"

    def write(self, out: Path) -> None:
        """Write it into the folder of the runs. Raises `StoreError` for a link in its place."""
        make_folder(out)
        path = out / self.name
        if path.is_symlink():
            raise StoreError(f"{path}: is a link, and no record is written through one; remove it")
        write_whole(path, msgspec.json.encode(self))


def cell_name(config: RunConfig) -> str:
    """The same for all runs of a cell, and for no others."""
    return run_name(config, OF_THE_RUN)


def find_search_records(*folders: Path | str) -> list[SearchRecord]:
    """The searches in folders of runs, each once.

    Raises `CorruptStore` for a file that is not such a record.
    """
    records: dict[str, SearchRecord] = {}
    for folder in folders:
        for path in sorted(Path(folder).glob("search-*.json")):
            records[path.name] = _read(path)
    return list(records.values())


def _read(path: Path) -> SearchRecord:
    try:
        record = msgspec.json.decode(read_small(path, AGAIN), type=SearchRecord)
        # Else runs of other candidates would be reported as cells.
        if record.name != path.name:
            raise msgspec.ValidationError("its candidates are not those of its name")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
        raise CorruptStore(f"{path}: is not the record of a search ({fault}); {AGAIN}") from None
    return record
