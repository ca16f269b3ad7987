"""Which format a path has: a quick check, before anything slow."""

from pathlib import Path, PurePosixPath

from ser.corpus.table_file import TABLE_ENDINGS
from ser.disk.paths import expand_user
from ser.errors import WrongUse, unknown

from ..audio import SOUND
from .files import walk_files
from .formats import DETECTORS, FORMATS, WITH_TIERS, looks_described


def find_format(path: str | Path, format: str | None = None) -> str:
    """The format of the corpus at `path`, or the given one.

    Raises `WrongUse` if nothing is there, if it does not look like a corpus, or for an unknown
    format.
    """
    path = expand_user(path)
    if not path.exists():
        raise WrongUse(f"{path} does not exist; give the folder of a corpus, or a table file")

    if format is not None:
        name, _, tier = format.partition(":")
        if name in WITH_TIERS and tier:
            return format
        if format not in FORMATS and not format.endswith(".toml"):
            named = [f"{name}:TIER" if name in WITH_TIERS else name for name in FORMATS]
            raise unknown("corpus format", format, [*named, "FILE.toml"])
        return format

    if not path.is_dir():
        return "table"
    detected = _detect(path)
    if detected is None:
        raise WrongUse(_not_a_corpus(path))
    return detected


def _detect(folder: Path) -> str | None:
    """The format that a folder looks like, if any."""
    for format, inside in DETECTORS.items():
        if any(folder.glob(inside)):
            return format

    # The registry's data, not its values: no package has to be imported for this.
    for format, reader in FORMATS.data.items():
        if isinstance(reader, Path) and looks_described(folder, reader):
            return format
    return None


def _not_a_corpus(folder: Path) -> str:
    """What to do about a folder that looks like no format."""
    sessions = sorted(folder.glob(f"*/{DETECTORS['iemocap']}"))
    if sessions:
        release = sessions[0].parents[1]
        return f"{folder} is not a corpus, but the folder inside it is: give {release}"

    tables = sorted(
        entry.name for entry in folder.iterdir() if entry.suffix.lower() in TABLE_ENDINGS
    )
    if tables:
        hint = f"it holds {tables[0]}: give that file"
    else:
        hint = "give a CSV, TSV, Parquet or JSONL file"
    endings = {PurePosixPath(path).suffix.lower() for path in walk_files(folder)}
    if ".textgrid" in endings:
        hint += "; --format textgrid:TIER reads its TextGrids"
    if ".eaf" in endings:
        hint += "; --format elan:TIER reads its documents of ELAN"
    if endings & SOUND:
        hint += "; --format folder reads its recordings as a corpus without labels"
    return (
        f"{folder} is not a corpus that ser knows: neither laid out nor named as any of "
        f"{', '.join(FORMATS)}; describe it in a TOML file for --format (docs/add-a-corpus.md), "
        f"or to read it as a table, {hint}"
    )
