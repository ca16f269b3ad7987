"""A folder of recordings without a table: a corpus without labels, whose ids are paths."""

from pathlib import Path, PurePosixPath

from ser.corpus.table_file import TABLE_ENDINGS
from ser.errors import WrongUse

from ..audio import CODED, SOUND
from .files import visible, walk_files
from .reading import Reading
from .rows import add_row


def read_folder(root: Path) -> Reading:
    """Every recording below a folder, in the order of their paths.

    What only ffmpeg reads counts where nobody has converted it yet. Raises `WrongUse` if `root` is
    no folder.
    """
    if not root.is_dir():
        raise WrongUse(f"{root} is not a folder; leave --format out, or give a folder")

    files = list(walk_files(root))
    reading = Reading(root.resolve().name, root, [])
    sounds = {_without_ending(path) for path in files if _ending(path) in SOUND}
    for path in files:
        is_converted = _ending(path) in CODED and _without_ending(path) in sounds
        if _ending(path) in SOUND | CODED and not is_converted:
            add_row(reading, [("audio", path)], path)

    for ending in sorted(TABLE_ENDINGS):
        for table in visible(root, ending):
            reading.warnings.append(
                f"{table.name} is not read: give that file in place of the folder if it lists the "
                "recordings"
            )
    return reading


def _ending(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _without_ending(path: str) -> str:
    return path.rpartition(".")[0]
