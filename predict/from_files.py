"""Audio files, a text or a table of turns, to the predictions of a trained run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .inputs import check_inputs, read_inputs
from .predictor import Predictor
from .turns import Answer


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

    `run` is a run folder, or what `ser export` made of one. `audio` may name folders too, whose
    files are taken. The table is a CSV, TSV, Parquet or JSONL with the columns audio (relative to
    the table), text, dialogue, turn and speaker; id if the run takes no audio. The model abstains
    if the highest probability is below `abstain_below`.

    `models` says where encoder weights are now ({"hubert": folder}, or "hubert=FOLDER" entries); by
    default where the run's features found them. Raises `WrongUse` for input that the run cannot
    take, with the reason, and `CorpusError` for a table, naming its first wrong row.
    """
    check_inputs(audio, text, table)
    predictor = Predictor(run, models, device)
    given = read_inputs(audio, text, table, "audio" in predictor.fusion.inputs)
    answer = predictor(given.turns, abstain_below)
    return replace(answer, notes=given.warnings + answer.notes)
