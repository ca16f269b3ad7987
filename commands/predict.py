"""`ser predict` and `ser export`: a trained run on new speech, and as a folder for others."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ser.extract.config import ExtractionConfig
from ser.train.options import Experiment

from .options import FILE, config_options, decimal_option, json_option
from .output import answer, plural, progress, say
from .output import table as table_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ser.predict import Prediction, SeveralAnswers
    from ser.predict.from_store import StoredPredictions

# The options that say that features come from a store.
OF_A_STORE = ("store", "corpus", "part", "memory", "submission")


@click.command()
@click.argument("paths", nargs=-1, type=FILE, required=True, metavar="RUN... [AUDIO|FOLDER]...")
@click.option("--text", metavar="TEXT", help="Transcript of the one audio file.")
@click.option(
    "--table",
    type=FILE,
    metavar="FILE",
    help="CSV, TSV, Parquet or JSONL with columns audio, start, end, text, dialogue, turn, "
    "speaker; paths are relative to it.",
)
@click.option(
    "--csv",
    type=FILE,
    metavar="FILE",
    help="Write a row for each utterance: file (of segments start, end), predicted, p_CLASS, and "
    "those of each run.",
)
@decimal_option
@click.option(
    "--store",
    type=FILE,
    metavar="PATH",
    help="Take the features from this store, and open no audio.",
)
@click.option("--corpus", metavar="N", help="The store's only corpus by default.")
@click.option(
    "--part",
    metavar="PART",
    help="Of a store: only utterances of this session, such as test3 of a split into parts.",
)
@click.option(
    "--submission",
    type=(str, FILE),
    metavar="FORMAT FILE",
    help="Of a store: write the mean as a challenge takes it: is25-cat, is25-dim, odyssey24-cat, "
    "odyssey24-dim or a TOML file.",
)
@config_options(Experiment, "memory")
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
def predict(
    ctx: click.Context,
    paths: tuple[Path, ...],
    text: str | None,
    table: Path | None,
    csv: Path | None,
    decimal: str,
    store: Path | None,
    corpus: str | None,
    part: str | None,
    submission: tuple[str, Path] | None,
    memory: str | None,
    models: tuple[str, ...],
    device: str,
    abstain_below: float,
    as_json: bool,
) -> None:
    """Predict the emotion of new speech with trained RUNs, folders that `ser train` wrote.

    The first argument is a run, and so is each next one that holds a config.json; the others are
    audio files, or folders of them, whose links are followed. Of several runs the means of their
    probabilities are printed, beside what each predicts; they must predict the same classes.

    It is what the run learnt: a class, or valence, arousal and dominance on the scale of its
    corpus, or both. Features are computed with the models and settings that the run records, or not
    at all: weights that --model names must have the run's digest. A model trained with random
    modality masking does without a transcript; a model of dialogues takes its turns from a table.
    Probabilities are those after the temperature that the run fitted on its dev part, if it has
    one.

    With --store or --corpus the utterances are those of a corpus in a store, labelled or not, and
    so are the features: every argument is a run. Their probabilities are those of the runs'
    predictions.parquet, before the temperature.

    \b
    Examples:
      ser predict runs/3f2a91c07b5d4e68 hello.wav --text "well hello there"
      ser predict runs/3f2a91c07b5d4e68 --table turns.csv --json
      ser predict runs/* recordings --csv predictions.csv
      ser predict runs/* --store features --corpus msp-podcast --part test3 --csv test3.csv
      ser predict ensembles/* --corpus msp-podcast --part test3 --submission is25-cat test3.csv
    """
    from ser.predict.inputs import check_inputs, read_inputs
    from ser.predict.several import Predictors
    from ser.predict.table import check_destination, write_table

    if decimal != "." and csv is None:
        raise click.UsageError("--decimal is for --csv; add --csv FILE, or leave it out")
    given_of_store = [f"--{name}" for name in OF_A_STORE if _is_given(ctx, name)]
    given_otherwise = [f"--{name}" for name in ("text", "table") if ctx.params[name]]
    if abstain_below:
        given_otherwise.append("--abstain-below")
    if given_of_store and given_otherwise:
        raise click.UsageError(
            f"{given_otherwise[0]} is for audio, and "
            f"{given_of_store[0]} takes features from a store; leave one of them out"
        )
    if given_of_store:
        predictions = _predict_stored(
            paths, store, corpus, part, device, memory, submission, csv, models
        )
        whole = _show_stored(predictions, csv, submission, decimal, as_json)
        ctx.exit(0 if whole else 3)

    runs, audio = _runs_and_audio(paths)
    check_inputs(audio, text, table)
    if csv is not None:
        check_destination(csv, [*audio, table] if table is not None else audio)

    predictors = Predictors(runs, models, device)
    given = read_inputs(audio, text, table, predictors.takes_audio)
    for warning in given.warnings:
        say(f"warning: {warning}", err=True)
    with progress(len(given.turns), "predict", "utt", disable=len(given.turns) == 1) as bar:

        def update(done: int, total: int) -> None:
            bar.update(done - bar.n)

        answers = predictors(given.turns, abstain_below, update)

    if csv is not None:
        write_table(csv, answers, given.files, decimal, given.spans)
    if as_json:
        answer(_as_json(answers, runs))
    elif csv is None:
        answer(predictions_table(answers))
    else:
        answer(f"wrote {csv}: {plural(len(answers.mean), 'utterance')}")

    if not as_json:
        _print_notes(answers)
    whole = not any(each.unusable for each in answers.by_run.values())
    ctx.exit(0 if whole else 3)


def _is_given(ctx: click.Context, name: str) -> bool:
    """Whether an option stands on the command line, and not in the user's defaults alone."""
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _predict_stored(
    runs: "Sequence[Path]",
    store: Path | None,
    corpus: str | None,
    part: str | None,
    device: str,
    memory: str | None,
    submission: tuple[str, Path] | None,
    csv: Path | None,
    models: "Sequence[str]",
) -> "StoredPredictions":
    """What the runs predict of the utterances of a store."""
    from ser.predict.from_store import predict_stored
    from ser.predict.submission import read_format
    from ser.predict.table import check_destination

    if csv is not None:
        check_destination(csv, [])
    if submission is not None:
        # Before anything is computed.
        read_format(submission[0])
        check_destination(submission[1], [])

    with progress(len(runs), "predict", "run", disable=len(runs) == 1) as bar:

        def update(done: int, total: int) -> None:
            bar.update(done - bar.n)

        return predict_stored(
            runs, store or Path("features"), corpus, part, device, memory, update, models
        )


def _show_stored(
    predictions: "StoredPredictions",
    csv: Path | None,
    submission: tuple[str, Path] | None,
    decimal: str,
    as_json: bool,
) -> bool:
    """Write or print predictions of a store. Whether every run can use all utterances."""
    from ser.predict.submission import write_submission
    from ser.predict.table import write_stored_table

    written = []
    if csv is not None:
        write_stored_table(csv, predictions, decimal)
        written.append(csv)
    if submission is not None:
        name, file = submission
        write_submission(file, name, predictions)
        written.append(file)

    if as_json:
        answer(_stored_as_json(predictions))
    elif not written:
        answer(stored_table(predictions))
    else:
        for path in written:
            answer(f"wrote {path}: {plural(len(predictions.ids), 'utterance')}")

    several = len(predictions.by_run) > 1
    whole = True
    for name, of_run in predictions.by_run.items():
        of_which = f"{name}: " if several else ""
        whole = whole and not of_run.unusable
        if not as_json:
            _print_unusable(of_which, of_run.unusable)
            for note in of_run.notes:
                say(f"note: {of_which}{note}", err=True)
    return whole


def _stored_as_json(predictions: "StoredPredictions") -> dict[str, Any]:
    """What `--json` prints: by run, and the means, a prediction of each utterance that has one."""
    from ser.train.data.utterances import DIMENSIONS

    by_name = {**predictions.by_run, "mean": predictions.mean()}
    of_all: dict[str, list[dict[str, Any]]] = {}
    for name, of_run in by_name.items():
        of_all[name] = []
        for row, id_ in enumerate(predictions.ids):
            if id_ in of_run.unusable:
                continue
            probabilities = of_run.probabilities[row].tolist()
            ratings = of_run.ratings[row].tolist()
            of_all[name].append(
                {
                    "id": id_,
                    "label": of_run.labels[row],
                    "probabilities": dict(zip(predictions.classes, probabilities, strict=True)),
                    "ratings": dict(zip(DIMENSIONS, ratings, strict=False)),
                }
            )
    mean = of_all.pop("mean")
    unusable = {name: of_run.unusable for name, of_run in predictions.by_run.items()}
    return {"runs": of_all, "predictions": mean, "unusable": unusable}


def stored_table(predictions: "StoredPredictions") -> str:
    """One line for each utterance of a store: the means over the runs, and the class of each."""
    from ser.predict.table import stored_cells
    from ser.train.data.utterances import DIMENSIONS

    mean = predictions.mean()
    headings = [""]
    if predictions.classes:
        headings.append("emotion")
    headings += [*predictions.classes, *DIMENSIONS[: mean.ratings.shape[1]]]
    of_runs = []
    if len(predictions.by_run) > 1 and predictions.classes:
        headings += predictions.by_run
        of_runs = list(predictions.by_run.values())

    rows = []
    for row, id_ in enumerate(predictions.ids):
        labels = [of_run.labels[row] for of_run in of_runs]
        rows.append([id_, *stored_cells(mean, row, id_), *labels])
    return table_of(rows, headings, floatfmt=".3f")


def _runs_and_audio(paths: "Sequence[Path]") -> tuple[list[Path], list[Path]]:
    """The leading arguments that are runs, and the others."""
    first, *others = paths
    runs = [first]
    while others and (others[0] / "config.json").is_file():
        runs.append(others.pop(0))
    return runs, others


def _as_json(answers: "SeveralAnswers", runs: "Sequence[Path]") -> dict[str, Any]:
    """What `--json` prints: of one run its answer, of several each one's and the means."""
    if len(runs) == 1:
        [single] = answers.by_run.values()
        return {"run": str(runs[0]), **asdict(single)}

    by_run = {name: asdict(each) for name, each in answers.by_run.items()}
    return {
        "runs": by_run,
        "predictions": [asdict(mean) for mean in answers.mean],
        "unusable": answers.unusable,
    }


def _print_notes(answers: "SeveralAnswers") -> None:
    """Say what could not be used, and what is to be known of each run."""
    several = len(answers.by_run) > 1
    for name, each in answers.by_run.items():
        of_run = f"{name}: " if several else ""
        _print_unusable(of_run, each.unusable)
        for note in each.notes:
            say(f"note: {of_run}{note}", err=True)


def _print_unusable(of_run: str, unusable: "Mapping[str, str]") -> None:
    """Say which utterances cannot be used, and why, those of one reason in one line."""
    from ser.extract.corpora.alike import grouped, kind_of_reason

    sentences = []
    for id_, reason in unusable.items():
        sentences.append((kind_of_reason(reason, id_), f"{id_}: {reason}"))
    for line in grouped(sentences):
        say(f"cannot be used: {of_run}{line}", err=True)


def predictions_table(answers: "SeveralAnswers") -> str:
    """One line for each utterance: its label, probabilities and ratings, and what it lacks.

    Of several runs the means, and the label of each run, or else its ratings.
    """
    first = answers.mean[0]
    headings = [""]
    if first.label:
        headings.append("emotion")
    headings += [*first.probabilities, *first.ratings]
    some_lack = any(prediction.without for prediction in answers.mean)
    if some_lack:
        headings.append("")

    of_runs: list[dict[str, Prediction]] = []
    if len(answers.by_run) > 1:
        for name, each in answers.by_run.items():
            headings.append(name)
            of_runs.append({prediction.id: prediction for prediction in each.predictions})

    rows: list[list[str | float | None]] = []
    for prediction in answers.mean:
        row: list[str | float | None] = [prediction.id]
        if prediction.label:
            row.append("abstained" if prediction.abstained else prediction.label)
        row += [*prediction.probabilities.values(), *prediction.ratings.values()]
        if some_lack:
            lacks = ", ".join(prediction.without)
            row.append(f"without {lacks}" if lacks else None)
        for predictions in of_runs:
            row.append(_in_short(predictions.get(prediction.id)))
        rows.append(row)
    return table_of(rows, headings, floatfmt=".3f")


def _in_short(prediction: "Prediction | None") -> str | None:
    """What one run of several predicts, in a cell."""
    if prediction is None:
        return None
    if prediction.abstained:
        return "abstained"
    if prediction.label:
        return f"{prediction.label} {prediction.probabilities[prediction.label]:.3f}"
    return " ".join(f"{value:.2f}" for value in prediction.ratings.values())


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
