"""What `ser predict` is given: audio files and folders of them, a text, or a table of turns."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from ser.errors import WrongUse
from ser.extract.audio import SOUND
from ser.extract.corpora.files import walk_files
from ser.extract.corpora.segments import segments_in_folder
from ser.extract.corpora.table import read_manifest
from ser.extract.recording import Span

from .turns import Turn


@dataclass(frozen=True)
class GivenTurns:
    """The turns, and how their audio was given."""

    turns: list[Turn]
    files: dict[str, str]
    """By a turn's id, its audio path as it was given, or else its id."""
    warnings: list[str] = field(default_factory=list)
    """What is odd about the table, but may be meant so."""

    @property
    def spans(self) -> dict[str, Span]:
        """By a turn's id, the part of its file that it is, where it is not the whole."""
        spans = {}
        for turn in self.turns:
            if turn.is_segment:
                spans[turn.id] = Span(turn.start or 0.0, turn.end)
        return spans


def read_inputs(
    audio: Sequence[str | Path], text: str | None, table: str | Path | None, takes_audio: bool
) -> GivenTurns:
    """The turns that these inputs hold.

    Files below a folder come in the order of their paths, links followed. Raises `WrongUse` for
    inputs that contradict each other, or a folder without audio, `CorpusError` for a table.
    """
    check_inputs(audio, text, table)
    if table is not None:
        return _read_table(Path(table), takes_audio)
    if not audio:
        return GivenTurns([Turn("text", None, text)], {"text": "text"})

    turns = []
    for path in audio:
        for file in _audio_files(path):
            turns.append(Turn(file, Path(file), text))
    return GivenTurns(turns, {turn.id: turn.id for turn in turns})


def check_inputs(audio: Sequence[str | Path], text: str | None, table: str | Path | None) -> None:
    """Raise `WrongUse` for inputs that contradict each other."""
    has_files = bool(audio) or text is not None
    has_table = table is not None
    one_file = len(audio) == 1 and not Path(audio[0]).is_dir()
    if has_files == has_table or (text is not None and audio and not one_file):
        raise WrongUse(
            "give audio files (with --text one alone), or a table of turns with a column text, "
            "and not both"
        )
    if text is not None and text != text.encode(errors="replace").decode():
        raise WrongUse("--text: is not valid Unicode; write it in UTF-8")


def _audio_files(path: str | Path) -> list[str]:
    """A file as it is given, or the audio files below a folder, below its path as it is given."""
    folder = Path(path)
    if not folder.is_dir():
        return [str(path)]

    files = []
    for name in walk_files(folder):
        if Path(name).suffix.lower() in SOUND:
            files.append(str(folder / name))
    if not files:
        raise WrongUse(
            f"{path}: holds no audio file ({', '.join(sorted(SOUND))}); name another folder"
        )
    return files


def _read_table(table: Path, takes_audio: bool) -> GivenTurns:
    """The turns of a table, whose audio paths are relative to it."""
    listed = read_manifest(table, "new", "audio" if takes_audio else "id")
    columns = [column.name for column in fields(Turn)]

    rows = listed.manifest.table.select(columns).to_pylist()
    are_parts = takes_audio and segments_in_folder(rows, table.parent)

    turns: list[Turn] = []
    files: dict[str, str] = {}
    for row in rows:
        files[row["id"]] = row["audio"] or row["id"]
        if row["audio"]:
            row["audio"] = table.parent / row["audio"]
        if not are_parts:
            # Places in a dialogue.
            row["start"] = None
            row["end"] = None
        turns.append(Turn(**row))
    return GivenTurns(turns, files, listed.warnings)
