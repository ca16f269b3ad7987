"""`ser predict`: a trained run on new speech."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import FILE, device_option, json_option
from .output import answer

if TYPE_CHECKING:
    from ser.predict import Answer


@click.command()
@click.argument("run", type=FILE)
@click.argument("audio", nargs=-1, type=FILE)
@click.option("--text", metavar="TEXT", help="Transcript of the one audio file.")
@click.option(
    "--table",
    type=FILE,
    metavar="FILE",
    help="CSV, TSV, Parquet or JSONL with columns audio, text, dialogue, turn; paths are relative to it.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME=ID_OR_PATH",
    help="Where an encoder's weights are now; their digest must be the run's. Repeatable.",
)
@device_option
@json_option
@click.pass_context
def predict(ctx: click.Context, run: Path, as_json: bool, **options: Any) -> None:
    """Tell the emotion of new speech with the trained RUN, a folder that `ser train` wrote.

    Features are computed with the models and settings that the run records, or not at all. A model trained with random
    modality masking does without a transcript; a model of dialogues takes its turns from a table.

    \b
    Examples:
      ser predict runs/3f2a91c07b5d4e68 hello.wav --text "well hello there"
      ser predict runs/3f2a91c07b5d4e68 --table turns.csv --json
    """
    from ser.predict import predict as classify

    found = classify(run, **options)
    predictions = [asdict(one) for one in found.predictions]
    facts = {"run": str(run), "predictions": predictions, "unusable": found.unusable, "notes": found.notes}
    answer(facts if as_json else _table(found))
    if not as_json:
        for id_, reason in found.unusable.items():
            click.echo(f"cannot be used: {id_}: {reason}", err=True)
        for note in found.notes:
            click.echo(f"note: {note}", err=True)
    ctx.exit(3 if found.unusable else 0)


def _table(found: "Answer") -> str:
    from tabulate import tabulate

    rows = [
        [one.id, one.label, *one.probabilities.values(), f"without {', '.join(one.without)}" if one.without else ""]
        for one in found.predictions
    ]
    return tabulate(rows, ["", "emotion", *found.predictions[0].probabilities, ""], floatfmt=".3f")
