"""`ser predict` and `ser export`: a trained run on new speech, and as a folder that needs no ser."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ser.extract.config import ExtractionConfig

from .options import FILE, config_options, json_option
from .output import answer, say, table


@click.command()
@click.argument("run", type=FILE)
@click.argument("audio", nargs=-1, type=FILE)
@click.option("--text", metavar="TEXT", help="Transcript of the one audio file.")
@click.option(
    "--table",
    type=FILE,
    metavar="FILE",
    help="CSV, TSV, Parquet or JSONL with columns audio, text, dialogue, turn, speaker; paths are relative to it.",
)
@config_options(ExtractionConfig, "models", "device")
@click.option(
    "--abstain-below",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="P",
    help="Give no answer where the highest probability is below P; says what that meant on the run's test part.",
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
        first, rows = found.predictions[0], []
        for one in found.predictions:
            emotion = ["abstained" if one.abstained else one.label] if one.label else []
            without = f"without {', '.join(one.without)}" if one.without else None
            rows.append(
                [one.id, *emotion, *one.probabilities.values(), *one.ratings.values(), without]
            )
        headings = ["", *(["emotion"] if first.label else []), *first.probabilities, *first.ratings]
        if any(one.without for one in found.predictions):
            headings.append("")
        answer(table([row[: len(headings)] for row in rows], headings, floatfmt=".3f"))
        for id_, reason in found.unusable.items():
            say(f"cannot be used: {id_}: {reason}", err=True)
        for note in found.notes:
            say(f"note: {note}", err=True)
    ctx.exit(3 if found.unusable else 0)


@click.command()
@click.argument("run", type=FILE)
@click.argument("folder", type=FILE)
@config_options(ExtractionConfig, "models")
def export(run: Path, folder: Path, **options: Any) -> None:
    """Write the trained RUN to FOLDER, a new one, so that it runs without ser.

    It holds the weights (model.safetensors), the model written plainly (model.py and
    plain_layers.py), the decoder (audio.py), a script that computes the features and calls it
    (run.py), a model card, and model.onnx where onnx and onnxruntime are installed and the fusion
    can be written so. Encoder weights stay where they are: run.py checks them.

    Example: ser export runs/3f2a91c07b5d4e68 my-model
    """
    from ser.export import export as write

    say(write(run, folder, **options), err=True)
    answer(f"wrote {folder}; python {folder / 'run.py'} --help")
