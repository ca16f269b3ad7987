"""What config.json says of a run to come: all that can change its numbers, and its provenance."""

import hashlib
import json
import platform
import sys
from dataclasses import asdict
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import torch
from msgspec import structs

from ser.errors import DISTRIBUTION

from .config import TrainConfig
from .data.dataset import Dataset
from .data.dev_part import DEV_SHARE
from .data.folds import Fold
from .models import FUSIONS, Fusion
from .options import Experiment
from .records import Provenance, RunConfig
from .settings import settings_to_record

# Raised when the same config gives other numbers than before.
TRAIN_VERSION = 1
# What it rises by where a score selects: since then the loss decides between equal epochs.
TIES_BY_LOSS = 2
# Fusions with recurrent layers, which run in float32 under bf16 too since version 2.
RECURRENT_IN_FLOAT32 = ("bc-lstm", "catf-lstm", "cma", "cme", "gban")


def make_run_config(
    experiment: Experiment, data: Dataset, fold: Fold, config: TrainConfig
) -> RunConfig:
    """The complete config of a run. Its hash names the run's folder."""
    version = TRAIN_VERSION
    if config.precision == "bf16" and config.fusion.name in RECURRENT_IN_FLOAT32:
        version += 1
    if config.select != "last":
        version += TIES_BY_LOSS

    run_config = RunConfig(
        version=version,
        corpus=data.record.corpus,
        manifest=data.record.manifest,
        labels=data.record.labels,
        features=data.record.features,
        views=data.record.views,
        limit=data.record.limit,
        only=data.record.only,
        fusion=config.fusion.name,
        code=_hash_plugin(config.fusion),
        settings=settings_to_record(config.settings),
        training=_training_record(config, fold),
        loss=config.loss,
        protocol=_protocol_without_folder(experiment.protocol),
        fold=fold.name,
        cut=_hash_cut(data, fold),
        select=config.select,
        seed=config.seed,
        precision=config.precision,
        dims=data.dims,
        provenance=Provenance(
            synthetic=data.origin.synthetic,
            random_weights=data.origin.random_weights,
            specs=data.origin.specs,
            left_out=data.origin.left_out,
            store=data.origin.store,
            corpora=data.origin.corpora,
            transcripts=data.origin.transcripts,
            encoders=data.origin.encoders,
            asked=_options_record(experiment),
            device=config.device,
            package=FUSIONS.package(config.fusion.name) or None,
            versions={
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "ser": installed_version(DISTRIBUTION),
            },
        ),
    )
    if data.record.target == run_config.target:
        return run_config
    # Set here alone: msgspec leaves a field out of the file only where its value is the default
    # itself, and not an equal text, as one from a JSON file is.
    return structs.replace(run_config, target=data.record.target)


def _training_record(config: TrainConfig, fold: Fold) -> dict[str, Any]:
    record = settings_to_record(config.training)
    if record["dev"] == "auto" and fold.dev_by.startswith(DEV_SHARE):
        # What auto meant in the first runs was the next session: those are not of this cell.
        record["dev"] = DEV_SHARE
    return record


def _hash_plugin(fusion: Fusion) -> str | None:
    """The sha256 of the module of a plugin's fusion: edited, it is another model. None for ours."""
    if not FUSIONS.package(fusion.name):
        return None

    module = sys.modules[fusion.settings.__module__]
    code = Path(str(module.__file__)).read_bytes()
    return hashlib.sha256(code).hexdigest() if code else None


def _protocol_without_folder(protocol: str) -> str:
    """The same run, wherever its file of folds lies: "folds:mine.csv" of "folds:/data/mine.csv"."""
    name, colon, file = protocol.partition(":")
    return f"{name}:{Path(file).name}" if colon else name


def _hash_cut(data: Dataset, fold: Fold) -> str:
    """The sha256 of the utterances' ids in train, dev and test."""
    ids = {}
    for part, rows in fold.parts.items():
        ids[part] = [data.utterances.ids[row] for row in rows]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def _options_record(experiment: Experiment) -> dict[str, Any]:
    options = {}
    for name, value in asdict(experiment).items():
        options[name] = str(value) if isinstance(value, Path) else value
    return options
