"""Settings: listed with their sources, parsed with types, refused with the nearest name."""

from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import pytest
import torch

from ser.errors import WrongUse
from ser.tests.plain_layers import DIFFERENT
from ser.train.config import TrainConfig
from ser.train.data.dev_part import Cut
from ser.train.data.loading import load_dataset
from ser.train.data.memory import DataCache
from ser.train.data.protocols import make_folds
from ser.train.experiment import prepare
from ser.train.fit import Fitted, fit
from ser.train.listed_settings import list_settings
from ser.train.models import FUSIONS, CommonSettings
from ser.train.models.fusion import Count
from ser.train.options import Experiment
from ser.train.settings import parse_settings

SIZES = {
    "d_model": 8,
    "heads": 2,
    "frames": 8,
    "channels": 2,
    "hidden": 4,
    "queries": 3,
    "dense": 4,
}
SIZES |= {"gru_hidden": 4, "lstm_hidden": 4, "encoder_depth": 1, "cross_depth": 1, "last_depth": 1}
CACHE = DataCache()


def small(name: str) -> dict[str, object]:
    """Sizes of a small model of that fusion."""
    kept = FUSIONS[name].settings.__dataclass_fields__.keys() - FUSIONS[name].unused
    return {key: n for key, n in SIZES.items() if key in kept}


@pytest.mark.parametrize("name", FUSIONS)
def test_every_setting_has_a_default_a_source_and_help(name: str) -> None:
    fusion, listed = FUSIONS[name], list_settings(FUSIONS[name])
    names = {line.name for line in listed}
    assert names >= set(fusion.fixed) and not names & set(fusion.unused)
    assert all(
        (f"standardise_{modality}" in names) == (modality in fusion.inputs)
        for modality in ("audio", "text")
    )
    assert {"epochs", "batch_size", "lr", "weight_decay", "dropout", "dev", "soft_labels"} <= {
        s.name for s in listed
    }
    for line in listed:
        assert line.source and line.help and line.kind, line.name


def test_the_papers_values_are_the_defaults() -> None:
    mit, _ = parse_settings(FUSIONS["mit"], ())
    assert (mit.lr, mit.batch_size, mit.epochs, mit.d_model, mit.heads, mit.queries) == (
        2e-5,
        8,
        100,
        768,
        8,
        30,
    )
    assert (mit.feed_forward, mit.encoder_depth, mit.decoder_depth, mit.dropout) == (4, 1, 1, 0.1)
    concat, _ = parse_settings(FUSIONS["concat"], ())
    assert concat.rmm_start == 0.8, (
        "in the configs, and so the names, of runs that have no use for it"
    )
    lgf, _ = parse_settings(FUSIONS["lgf-add"], ())
    assert (lgf.lr, lgf.lr_decay, lgf.batch_size, lgf.epochs) == (1e-3, 1e-5, 20, 150)
    assert (lgf.weight_decay, lgf.dropout, lgf.d_model, lgf.gru_hidden, lgf.heads) == (
        1e-5,
        0.2,
        100,
        50,
        4,
    )
    cnn, _ = parse_settings(FUSIONS["cnn"], ())
    assert (cnn.lr, cnn.epochs, cnn.weight_decay, cnn.dropout) == (1.5e-4, 15, 1e-3, 0.6)


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("querys=3", "did you mean queries"),
        ("queries=3.5", "whole number"),
        ("lr=fast", "must be a number"),
        ("standardise_text=yes", "true or false"),
        ("select_score=accuracy", "must be ua"),
        ("queries", "must be key=value"),
        ("epochs=0", "at least 1"),
        ("positions=none", "fusion mit has it fixed at sinusoidal"),
        ("concat queries=8", "fusion concat has no use for it"),
        ("concat querys=8", "'querys'; known"),  # no hint at what would be refused
        ("audio:utterance standardise_text=true", "no use for it"),
        ("ef-add released=true", "no use for it"),
        ("cnn finetune_layers=1", "no use for it"),
        ("lr=nan", "a number above 0"),
        ("dropout=5", "at least 0 and below 1"),
        ("rmm_start=2", "at most 1"),
        ("ks-transformer feed_forward=1e30", "above 0 and at most 1,000"),
        ("cme d_model=1", "at least 2 and at most 1,000,000 and a multiple of 2"),
    ],
)
def test_wrong_values(assignment: str, says: str) -> None:
    fusion, _, setting = assignment.rpartition(" ")
    with pytest.raises(WrongUse, match=says):
        parse_settings(FUSIONS[fusion or "mit"], (setting,))


@dataclass(frozen=True)
class Postponed(CommonSettings):
    width: "Count" = field(
        default=3
    )  # as every annotation is after `from __future__ import annotations`


def test_values_have_types_and_so_have_postponed_annotations() -> None:
    asked = ("lr=1e-4", "d_model=40", "standardise_text=true", "dev=0.2", "soft_labels=True")
    own, training = parse_settings(FUSIONS["lgf-add"], asked, epochs=3)
    assert (own.lr, own.d_model, own.standardise_text, own.epochs) == (1e-4, 40, True, 3)
    assert (training.dev, training.soft_labels) == ("0.2", True)
    fusion = replace(FUSIONS["mit"], settings=Postponed)
    assert parse_settings(fusion, ("width=4",))[0].width == 4
    with pytest.raises(WrongUse, match="width=0: must be a whole number at least 1"):
        parse_settings(fusion, ("width=0",))


@pytest.mark.parametrize("name", FUSIONS)
def test_every_number_has_a_range_and_what_is_in_it_builds_a_model(name: str) -> None:
    own = FUSIONS[name].settings.__dataclass_fields__
    numbers = [
        one.name
        for one in list_settings(FUSIONS[name])
        if one.kind in ("int", "float") and one.name in own
    ]
    for key, value in product(
        numbers, ("-1", "nan", "inf", "-inf", "0", "1e-3", "1", "5", "1e40", "9" * 5000)
    ):
        try:
            chosen, _ = parse_settings(
                FUSIONS[name], [f"{k}={v}" for k, v in {**small(name), key: value}.items()]
            )
            model = FUSIONS[name].build(chosen, dict.fromkeys(FUSIONS[name].inputs, 8), 4)
        except WrongUse:
            assert value != "5" or key not in ("epochs", "batch_size", "lr", "weight_decay")
        else:
            assert value in ("0", "1e-3", "1", "5") and getattr(chosen, key) == float(value)
            assert all(weights.numel() for weights in model.parameters()), f"{key}={value}"


@pytest.mark.parametrize("name", DIFFERENT)
def test_every_setting_of_training_changes_what_a_fusion_learns_or_is_refused(
    store: Path, name: str
) -> None:
    fusion, stages = FUSIONS[name], len(FUSIONS[name].stages)

    def fitted(*more: str, hop: str = "", select: str = "last") -> Fitted:
        features = "+".join(
            {"audio": f"hubert{hop}", "text": "bert"}[modality] for modality in fusion.inputs
        )
        data, _ = load_dataset(Experiment(features, name, store, limit=30), CACHE)
        [fold, *_] = make_folds(
            "session-out", data.utterances, Cut(dev="next" if select == "val" else "none")
        )
        options = [
            f"{k}={v}" for k, v in {**small(name), "epochs": 1, "batch_size": 4, "lr": 0.01}.items()
        ]
        return fit(
            data,
            fold,
            TrainConfig(fusion, *parse_settings(fusion, [*options, *more]), select=select),
        )

    def weights(found: Fitted) -> torch.Tensor:
        return torch.cat([weight.flatten() for weight in found.model.state_dict().values()])

    still = fitted(
        "epochs=3", "patience=1", "lr=1e-30", "refit=true", select="val"
    )  # none is better than the first
    assert len(still.history) == (2 + 1) * stages, "two epochs, of which the first is refitted"
    asked = [
        "class_weights=inverse soft_labels=true",
        "focal_gamma=2",
        "soft_labels=true",
        "clip_norm=1e-3",
    ]
    if fusion.unit == "dialogue":
        with pytest.raises(WrongUse, match=f"fusion {name} has no use for it"):
            fitted("sampler=balanced")
    else:
        asked.append("sampler=balanced")
    found = {setting: weights(fitted(*setting.split())) for setting in asked}
    found |= {"hop": weights(fitted(hop=":hop=0.06"))} if "audio" in fusion.inputs else {}
    plain = weights(fitted())
    for setting, learnt in found.items():
        assert learnt.isfinite().all() and not torch.equal(learnt, plain), setting


def test_settings_from_python_are_a_tuple() -> None:
    for wrong in ("lr=1", ["lr=1"], ("lr=1", 2)):
        with pytest.raises(WrongUse, match="must be a tuple of texts, such as "):
            prepare(Experiment("is13", "audio", set=wrong))  # type: ignore[arg-type]
