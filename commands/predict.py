"""`ser predict`: a trained run on new speech."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ser.predict import Answer

_file = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=_file)
@click.argument("audio", nargs=-1, type=_file)
@click.option("--text", metavar="TEXT", help="Transcript of the one audio file.")
@click.option(
    "--table",
    type=_file,
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
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 …")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
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

    answer = classify(run, **options)
    if as_json:
        shown = {"run": str(run), "predictions": [asdict(one) for one in answer.predictions]}
        click.echo(json.dumps({**shown, "unusable": answer.unusable, "notes": answer.notes}, ensure_ascii=False))
    else:
        _print(answer)
    ctx.exit(3 if answer.unusable else 0)


def _print(answer: "Answer") -> None:
    from tabulate import tabulate

    rows = [
        [one.id, one.label, *one.probabilities.values(), f"without {', '.join(one.without)}" if one.without else ""]
        for one in answer.predictions
    ]
    classes = list(answer.predictions[0].probabilities)
    click.echo(tabulate(rows, ["", "emotion", *classes, ""], floatfmt=".3f"))
    for id_, reason in answer.unusable.items():
        click.echo(f"cannot be used: {id_}: {reason}", err=True)
    for note in answer.notes:
        click.echo(f"note: {note}", err=True)
