"""Runs of ser as predictions, and what they say of themselves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ser.corpus.people import one_spelling
from ser.train.run_folder import Run, find_runs
from ser.train.sweep.search_record import cell_name

from ..evidence import Declaration, Predictions, Utterance


def is_run_folder(path: Path) -> bool:
    """Whether a folder is a run of ser, or holds some."""
    return (path / "config.json").is_file() or any(path.glob("*/config.json"))


def read_runs(path: Path) -> tuple[list[Predictions], dict[str, Utterance], list[str]]:
    """The finished runs of a folder, one set of predictions for each configuration.

    Also what is known of the utterances, by id, and a note for each configuration and for what was
    left out.
    """
    by_cell: dict[str, list[Run]] = {}
    unfinished = 0
    without_classes = 0
    for run in find_runs(path):
        if not run.finished:
            unfinished += 1
        elif not run.result.classes:
            without_classes += 1
        else:
            by_cell.setdefault(cell_name(run.config), []).append(run)

    notes = []
    if unfinished:
        notes.append(f"{path}: {unfinished} runs are not finished, and not looked at")
    if without_classes:
        notes.append(f"{path}: {without_classes} runs learn no classes, and are not looked at")

    known: dict[str, Utterance] = {}
    predictions = []
    for runs in by_cell.values():
        of_cell = _predictions(runs, known)
        predictions.append(of_cell)
        notes.append(
            f"{path}: {len(of_cell):,} predictions of {len(runs)} runs, {of_cell.source}, "
            f"--select {runs[0].config.select}"
        )
    return predictions, known, notes


def _predictions(runs: Sequence[Run], known: dict[str, Utterance]) -> Predictions:
    """All predictions of runs of one configuration; fills in what is `known` of utterances."""
    ids: list[str] = []
    truth: list[str] = []
    predicted: list[str] = []
    folds: list[str] = []
    seeds: list[str] = []
    probabilities = []
    for run in runs:
        table = run.predictions()
        columns = table.to_pydict()
        for id_, speaker in zip(columns["id"], columns["speaker"], strict=True):
            known[id_] = Utterance(speaker=None if speaker is None else one_spelling(speaker))
        ids += columns["id"]
        truth += columns["truth"]
        predicted += columns["predicted"]
        folds += [run.config.fold] * table.num_rows
        seeds += [str(run.config.seed)] * table.num_rows
        probabilities += columns["probabilities"]

    config = runs[0].config
    return Predictions(
        source=f"{config.fusion} on {config.corpus}, {config.labels.policy}, {config.protocol}",
        ids=ids,
        truth=truth,
        predicted=predicted,
        classes=list(runs[0].result.classes),
        probabilities=np.array(probabilities, float),
        folds=folds,
        seeds=seeds,
        declared=_declaration(runs),
    )


def _declaration(runs: Sequence[Run]) -> Declaration:
    heard: dict[str, None] = {}
    texts = 0
    audio = 0
    for run in runs:
        for speaker, is_heard in (run.result.speakers or {}).items():
            if is_heard:
                heard[speaker] = None
        texts += run.result.repeated_texts or 0
        audio += run.result.repeated_audio or 0

    config = runs[0].config
    return Declaration(
        protocol=config.protocol,
        select=config.select,
        heard_speakers=tuple(heard),
        repeated_texts=texts,
        repeated_audio=audio,
        limited=config.limit is not None or config.only is not None,
        corpora=tuple(config.corpus.split("+")),
        synthetic=config.provenance.synthetic,
    )
