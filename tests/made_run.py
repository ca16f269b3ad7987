"""A finished run whose numbers are made up, for tests that only need one to be there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ser.train.records import (
    Epoch,
    FeatureRecord,
    LabelRecord,
    Provenance,
    RunConfig,
    RunResult,
    Scores,
)
from ser.train.run_folder import CONFIG, RESULT, Run, run_name
from ser.train.scores.classes import scores

CLASSES = ("ang", "hap", "neu", "sad")


def made_config(**changes: Any) -> RunConfig:
    """A config, but for the changes that of log-mel with fusion audio on one session."""
    provenance = Provenance(
        synthetic=True,
        random_weights=[],
        specs={"audio": {}},
        left_out={"label xxx is not in 4class": 3},
        store="/nowhere",
        asked={"features": "logmel", "fusion": "audio"},
        device="cpu",
        versions={"python": "3", "torch": "2"},
    )
    values: dict[str, Any] = {
        "version": 1,
        "corpus": "demo",
        "manifest": "0" * 64,
        "labels": LabelRecord(policy="4class", classes=list(CLASSES), maps={"exc": "hap"}),
        "features": {"audio": FeatureRecord(feature="logmel", fingerprint="0" * 16, pool="mean")},
        "views": [],
        "limit": None,
        "fusion": "audio:frame",
        "settings": {"epochs": 1, "lr": 1e-3},
        "training": {"dev": "auto", "select_score": "ua", "shuffle_labels": False},
        "loss": "single",
        "protocol": "session-out",
        "fold": "session 1",
        "cut": "0" * 64,
        "select": "val",
        "seed": 0,
        "precision": "float32",
        "dims": {"audio": 80},
        "provenance": provenance,
    }
    return RunConfig(**values | changes)


def made_result(config: RunConfig, **changes: Any) -> RunResult:
    """The result of such a config, of eight utterances, but for the changes."""
    truth = [0, 1, 2, 3, 0, 1, 2, 3]
    predicted = [0, 1, 2, 3, 1, 1, 2, 0]
    scored = scores(truth, predicted, CLASSES)
    epoch = Epoch(
        stage="train",
        epoch=1,
        epochs=1,
        loss=1.25,
        wa=0.5,
        ua=0.5,
        seconds=0.1,
        kept=True,
        macro_f1=0.5,
        ccc=None,
    )
    values: dict[str, Any] = {
        **scored,
        "corpus": config.corpus,
        "fusion": config.fusion,
        "loss": config.loss,
        "protocol": config.protocol,
        "select": config.select,
        "fold": config.fold,
        "seed": config.seed,
        "labels": config.labels.policy,
        "classes": list(CLASSES),
        "tests": {"both": Scores(**scored)},
        "raters": None,
        "calibration": None,
        "speakers": {"a": False, "b": False},
        "speaker_independent": True,
        "repeated_texts": None,
        "synthetic": True,
        "random_weights": [],
        "parts": {"train": 16, "dev": 4, "test": 8},
        "dev": "0.1",
        "refit": False,
        "left_out": {"label xxx is not in 4class": 3},
        "epoch": 1,
        "seconds": 0.1,
        "history": [epoch],
        "files": {},
    }
    return RunResult(**values | changes)


def write_run(folder: Path, speakers: Sequence[str] = ("a", "b"), **changes: Any) -> Run:
    """Such a run in a folder of runs, of these two speakers' turns, without a model.

    `changes` are those of its config.
    """
    config = made_config(**changes)
    run = Run(folder / run_name(config))
    run.path.mkdir(parents=True)

    truth = [0, 1, 2, 3, 0, 1, 2, 3]
    predicted = [0, 1, 2, 3, 1, 1, 2, 0]
    first_letters = "" if "a" in speakers else speakers[0]
    columns = {
        "id": [f"{first_letters}u{number}" for number in range(8)],
        "speaker": [*speakers] * 4,
        "dialogue": [number // 2 for number in range(8)],
        "truth": [CLASSES[label] for label in truth],
        "predicted": [CLASSES[label] for label in predicted],
        "probabilities": list(np.eye(4)[predicted]),
    }
    files = {**run.write_json(CONFIG, config), **run.write_predictions(columns)}
    run.write_json(RESULT, made_result(config, files=files))
    return Run(run.path)
