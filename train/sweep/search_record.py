"""What lies beside the runs of a search, so that a report shows the chosen ones' scores alone."""

from pathlib import Path

import msgspec

from ser.disk.read import read_small
from ser.disk.records import short_hash
from ser.disk.write import make_folder, write_whole
from ser.errors import CorruptStore, StoreError

from ..records import RunConfig
from ..run_folder import run_name

OF_THE_RUN = ("fold", "seed", "cut")  # what tells the runs of one cell apart
AGAIN = "remove it and run the sweep again"


class SearchRecord(msgspec.Struct, frozen=True):
    """`search-<hash>.json` beside the runs of a search, so that a report shows the chosen ones'
    scores alone.
    """

    file: str  # the recipe
    over: list[str]
    candidates: list[str]  # their `cell_name`

    @property
    def name(self) -> str:
        """Of its file."""
        return f"search-{short_hash({'candidates': self.candidates})}.json"

    def write(self, out: Path) -> None:
        """Write it into the folder of the runs. Raises `StoreError` for a link in its place."""
        make_folder(out)
        if (path := out / self.name).is_symlink():
            raise StoreError(f"{path}: is a link, and no record is written through one; remove it")
        write_whole(path, msgspec.json.encode(self))


def cell_name(config: RunConfig) -> str:
    """The same for all runs of a cell, and for no others."""
    return run_name(config, OF_THE_RUN)


def find_search_records(*paths: Path | str) -> list[SearchRecord]:
    """The searches in folders of runs, each once. Raises `CorruptStore` for a file that is not such
    a record.
    """
    records: dict[str, SearchRecord] = {}
    for path in (
        path for folder in map(Path, paths) for path in sorted(folder.glob("search-*.json"))
    ):
        try:
            record = records[path.name] = msgspec.json.decode(
                read_small(path, AGAIN), type=SearchRecord
            )
            if (
                record.name != path.name
            ):  # which vouches for the candidates: the others are reported as cells
                raise msgspec.ValidationError("its candidates are not those of its name")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
            raise CorruptStore(
                f"{path}: is not the record of a search ({fault}); {AGAIN}"
            ) from None
    return list(records.values())
