"""Audio files, a text or a table of turns, to the predictions of a trained run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from ser.errors import WrongUse
from ser.extract.corpora.table import read_manifest

from .predictor import Predictor
from .turns import Answer, Turn


def predict(
    run: str | Path,
    audio: Sequence[str | Path] = (),
    text: str | None = None,
    table: str | Path | None = None,
    models: Mapping[str, str] | Iterable[str] = (),
    device: str = "auto",
    abstain_below: float = 0.0,
) -> Answer:
    """Classify audio files, one of them with its transcript `text`, or the turns of a table.

    `run` is a run folder, or what `ser export` made of one. The table is a CSV, TSV, Parquet or
    JSONL with the columns audio (relative to the table), text, dialogue, turn and speaker; id if
    the run takes no audio. The model abstains if the highest probability is below `abstain_below`.

    `models` says where encoder weights are now ({"hubert": folder}, or "hubert=FOLDER" entries); by
    default where the run's features found them. Raises `WrongUse` for input that the run cannot
    take, with the reason, and `CorpusError` for a table, naming its first wrong row.
    """
    has_files = bool(audio) or text is not None
    has_table = table is not None
    if has_files == has_table or (text is not None and len(audio) > 1):
        raise WrongUse(
            "give audio files (with --text one alone), or a table of turns with a column text, "
            "and not both"
        )
    if text is not None and text != text.encode(errors="replace").decode():
        raise WrongUse("--text: is not valid Unicode; write it in UTF-8")

    predictor = Predictor(run, models, device)
    if table is not None:
        turns = read_turns(Path(table), takes_audio="audio" in predictor.fusion.inputs)
    elif audio:
        turns = [Turn(str(path), Path(path), text) for path in audio]
    else:
        turns = [Turn("text", None, text)]
    return predictor(turns, abstain_below)


def read_turns(table: Path, takes_audio: bool) -> list[Turn]:
    """The turns of a table, whose audio paths are relative to it."""
    manifest = read_manifest(table, "new", "audio" if takes_audio else "id")
    columns = [field.name for field in fields(Turn)]

    turns: list[Turn] = []
    for row in manifest.table.select(columns).to_pylist():
        if row["audio"]:
            row["audio"] = table.parent / row["audio"]
        turns.append(Turn(**row))
    return turns
