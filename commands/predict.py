"""`ser predict` and `ser export`: a trained run on new speech, and as a folder for others."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ser.extract.config import ExtractionConfig

from .options import FILE, config_options, json_option
from .output import answer, say, table

if TYPE_CHECKING:
    from ser.predict import Prediction


@click.command()
@click.argument("run", type=FILE)
@click.argument("audio", nargs=-1, type=FILE)
@click.option("--text", metavar="TEXT", help="Transcript of the one audio file.")
@click.option(
    "--table",
    type=FILE,
    metavar="FILE",
    help="CSV, TSV, Parquet or JSONL with columns audio, text, dialogue, turn, speaker; "
    "paths are relative to it.",
)
@config_options(ExtractionConfig, "models", "device")
@click.option(
    "--abstain-below",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="P",
    help="Give no answer where the highest probability is below P; says what that meant on the "
    "run's test part.",
)
@json_option
@click.pass_context
def predict(ctx: click.Context, run: Path, as_json: bool, **options: Any) -> None:
    """Predict the emotion of new speech with the trained RUN, a folder that `ser train` wrote.

    It is what the run learnt: a class, or valence, arousal and dominance on the scale of its
    corpus, or both. Features are computed with the models and settings that the run records, or not
    at all: weights that --model names must have the run's digest. A model trained with random
    modality masking does without a transcript; a model of dialogues takes its turns from a table.
    Probabilities are those after the temperature that the run fitted on its dev part, if it has
    one.

    \b
    Examples:
      ser predict runs/3f2a91c07b5d4e68 hello.wav --text "well hello there"
      ser predict runs/3f2a91c07b5d4e68 --table turns.csv --json
    """
    from ser.predict import predict as classify

    found = classify(run, **options)
    if as_json:
        answer({"run": str(run), **asdict(found)})
    else:
        answer(predictions_table(found.predictions))
        for id_, reason in found.unusable.items():
            say(f"cannot be used: {id_}: {reason}", err=True)
        for note in found.notes:
            say(f"note: {note}", err=True)
    ctx.exit(3 if found.unusable else 0)


def predictions_table(predictions: "list[Prediction]") -> str:
    """One line for each utterance: its label, probabilities and ratings, and what it lacks."""
    first = predictions[0]
    headings = [""]
    if first.label:
        headings.append("emotion")
    headings += [*first.probabilities, *first.ratings]
    some_lack = any(prediction.without for prediction in predictions)
    if some_lack:
        headings.append("")

    rows: list[list[str | float | None]] = []
    for prediction in predictions:
        row: list[str | float | None] = [prediction.id]
        if prediction.label:
            row.append("abstained" if prediction.abstained else prediction.label)
        row += [*prediction.probabilities.values(), *prediction.ratings.values()]
        if some_lack:
            lacks = ", ".join(prediction.without)
            row.append(f"without {lacks}" if lacks else None)
        rows.append(row)
    return table(rows, headings, floatfmt=".3f")


@click.command()
@click.argument("run", type=FILE)
@click.argument("folder", type=FILE)
@config_options(ExtractionConfig, "models")
def export(run: Path, folder: Path, **options: Any) -> None:
    """Write the trained RUN to FOLDER, a new one, for people without ser.

    It holds model.onnx, the trained weights (model.safetensors), a record (config.json) and a model
    card (README.md). Of a run on one audio encoder, model.onnx takes the waveform at 16 kHz,
    encoder included; of any other one the features, and the card says how each is made. It gives
    the numbers of `ser predict`, which takes FOLDER as it takes a run. What cannot be written as
    ONNX comes without model.onnx, and that is said. Needs ser-fusion[onnx].

    Example: ser export runs/3f2a91c07b5d4e68 my-model
    """
    from ser.export import export as write

    say(write(run, folder, **options), err=True)
    answer(f"wrote {folder}: {folder / 'README.md'} says how to use it")
