"""Settings: listed with their sources, parsed with types, refused with the nearest name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from ser.errors import WrongUse
from ser.tests.command_line import ser
from ser.tests.small_models import DIFFERENT, one_of_each_kind
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

CACHE = DataCache()
# Sizes of a small model.
SMALL = {
    "d_model": 8,
    "heads": 2,
    "frames": 8,
    "channels": 2,
    "hidden": 4,
    "queries": 3,
    "dense": 4,
    "gru_hidden": 4,
    "lstm_hidden": 4,
    "encoder_depth": 1,
    "cross_depth": 1,
    "last_depth": 1,
}


def small(name: str) -> dict[str, object]:
    """The sizes of a small model of that fusion, as far as it has them."""
    fusion = FUSIONS[name]
    used = fusion.settings.__dataclass_fields__.keys() - fusion.unused
    return {setting: value for setting, value in SMALL.items() if setting in used}


def texts(settings: Mapping[str, object]) -> list[str]:
    """Settings in the form of `--set`."""
    return [f"{name}={value}" for name, value in settings.items()]


@pytest.mark.parametrize("name", FUSIONS)
def test_every_setting_has_a_default_a_source_and_help(name: str) -> None:
    fusion = FUSIONS[name]
    listed = list_settings(fusion)
    names = {setting.name for setting in listed}

    assert names >= set(fusion.fixed)
    assert not names & set(fusion.unused)
    for modality in ("audio", "text"):
        assert (f"standardise_{modality}" in names) == (modality in fusion.inputs)
    for of_any in ("dev", "class_weights", "refit"):
        assert of_any in names
    for of_the_loop in ("epochs", "batch_size", "lr", "weight_decay", "dropout"):
        assert (of_the_loop in names) == (not fusion.solved)
    for setting in listed:
        assert setting.source and setting.help and setting.kind, setting.name


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [
        pytest.param(
            "mit",
            {
                "lr": 2e-5,
                "batch_size": 8,
                "epochs": 100,
                "d_model": 768,
                "heads": 8,
                "queries": 30,
                "feed_forward": 4,
                "encoder_depth": 1,
                "decoder_depth": 1,
                "dropout": 0.1,
            },
            id="mit",
        ),
        # In the configs, and so the names, of runs that have no use for it.
        pytest.param("concat", {"rmm_start": 0.8}, id="concat"),
        pytest.param(
            "lgf-add",
            {
                "lr": 1e-3,
                "lr_decay": 1e-5,
                "batch_size": 20,
                "epochs": 150,
                "weight_decay": 1e-5,
                "dropout": 0.2,
                "d_model": 100,
                "gru_hidden": 50,
                "heads": 4,
            },
            id="lgf-add",
        ),
        pytest.param(
            "cnn",
            {"lr": 1.5e-4, "epochs": 15, "weight_decay": 1e-3, "dropout": 0.6},
            id="cnn",
        ),
    ],
)
def test_the_papers_values_are_the_defaults(fusion: str, expected: dict[str, object]) -> None:
    settings, _ = parse_settings(FUSIONS[fusion], ())
    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("fusion", "text", "says"),
    [
        pytest.param("mit", "querys=3", "did you mean queries", id="misspelt"),
        pytest.param("mit", "queries=3.5", "whole number", id="a fraction"),
        pytest.param("mit", "lr=fast", "must be a number", id="a word for a number"),
        pytest.param("mit", "standardise_text=yes", "true or false", id="yes for true"),
        pytest.param("mit", "select_score=accuracy", "must be ua", id="not one of the choices"),
        pytest.param("mit", "queries", "must be key=value", id="no value"),
        pytest.param("mit", "epochs=0", "at least 1", id="no epochs"),
        pytest.param(
            "mit", "positions=none", "fusion mit has it fixed at sinusoidal", id="what is fixed"
        ),
        pytest.param("concat", "queries=8", "fusion concat has no use for it", id="of its parent"),
        # No hint at what would be refused.
        pytest.param("concat", "querys=8", "'querys'; known", id="misspelt and without use"),
        pytest.param(
            "audio:utterance", "standardise_text=true", "no use for it", id="the other modality"
        ),
        pytest.param("ef-add", "released=true", "no use for it", id="of the paper's other fusion"),
        pytest.param("cnn", "finetune_text=1", "no use for it", id="an encoder that is not there"),
        pytest.param(
            "bert",
            "finetune_layers=all",
            "is called finetune_text now; use --set finetune_text=all",
            id="the earlier name",
        ),
        pytest.param("mit", "lr=nan", "a number above 0", id="not a number"),
        pytest.param("mit", "dropout=5", "at least 0 and below 1", id="above a share"),
        pytest.param("mit", "rmm_start=2", "at most 1", id="above one"),
        pytest.param(
            "ks-transformer",
            "feed_forward=1e30",
            "above 0 and at most 1,000",
            id="far too large",
        ),
        pytest.param(
            "cme",
            "d_model=1",
            "at least 2 and at most 1,000,000 and a multiple of 2",
            id="odd where even",
        ),
    ],
)
def test_wrong_values(fusion: str, text: str, says: str) -> None:
    with pytest.raises(WrongUse, match=says):
        parse_settings(FUSIONS[fusion], (text,))


def test_values_have_types() -> None:
    given = ("lr=1e-4", "d_model=40", "standardise_text=true", "dev=0.2", "soft_labels=True")
    settings, training = parse_settings(FUSIONS["lgf-add"], given, epochs=3)

    assert settings.lr == 1e-4
    assert settings.d_model == 40
    assert settings.standardise_text is True
    assert settings.epochs == 3
    assert training.dev == "0.2"
    assert training.soft_labels is True


@dataclass(frozen=True)
class Postponed(CommonSettings):
    # A text, as every annotation is after `from __future__ import annotations`.
    width: "Count" = field(default=3)


def test_postponed_annotations_have_types() -> None:
    fusion = replace(FUSIONS["mit"], settings=Postponed)
    settings, _ = parse_settings(fusion, ("width=4",))
    assert settings.width == 4
    with pytest.raises(WrongUse, match="width=0: must be a whole number at least 1"):
        parse_settings(fusion, ("width=0",))


@pytest.mark.parametrize("name", FUSIONS)
def test_every_number_has_a_range_and_what_is_in_it_builds_a_model(name: str) -> None:
    fusion = FUSIONS[name]
    of_fusion = fusion.settings.__dataclass_fields__
    numbers = []
    for setting in list_settings(fusion):
        if setting.kind in ("int", "float") and setting.name in of_fusion:
            numbers.append(setting.name)

    values = ("-1", "nan", "inf", "-inf", "0", "1e-3", "1", "5", "1e40", "9" * 5000)
    for number, value in product(numbers, values):
        try:
            settings, _ = parse_settings(fusion, texts({**small(name), number: value}))
            model = fusion.build(settings, dict.fromkeys(fusion.inputs, 8), 4)
        except WrongUse:
            allowed = number in ("epochs", "batch_size", "lr", "weight_decay")
            assert value != "5" or not allowed, f"{number}={value}"
        else:
            assert value in ("0", "1e-3", "1", "5"), f"{number}={value}"
            assert getattr(settings, number) == float(value)
            assert all(weights.numel() for weights in model.parameters()), f"{number}={value}"


Fit = Callable[..., Fitted]


@pytest.fixture
def fit_small(store: Path) -> Callable[[str], Fit]:
    """Of a fusion, a function that trains it at a small size on a few utterances."""

    def of_fusion(name: str) -> Fit:
        fusion = FUSIONS[name]

        def fitted(*settings: str, hop: str = "", select: str = "last") -> Fitted:
            features = {"audio": f"hubert{hop}", "text": "bert"}
            joined = "+".join(features[modality] for modality in fusion.inputs)
            data, _ = load_dataset(Experiment(joined, name, store, limit=20), CACHE)
            cut = Cut(dev="next" if select == "val" else "none")
            [fold, *_] = make_folds("session-out", data.utterances, cut)

            short = texts({**small(name), "epochs": 1, "batch_size": 4, "lr": 0.01})
            of_model, training = parse_settings(fusion, [*short, *settings])
            return fit(data, fold, TrainConfig(fusion, of_model, training, select=select))

        return fitted

    return of_fusion


def weights(fitted: Fitted) -> torch.Tensor:
    """All weights in one vector."""
    return torch.cat([weight.flatten() for weight in fitted.model.state_dict().values()])


@pytest.mark.parametrize("name", one_of_each_kind(DIFFERENT))
def test_every_setting_of_training_changes_what_a_fusion_learns_or_is_refused(
    name: str, fit_small: Callable[[str], Fit]
) -> None:
    fusion = FUSIONS[name]
    fitted = fit_small(name)
    changes = [
        "class_weights=inverse soft_labels=true",
        "focal_gamma=2",
        "soft_labels=true",
        "clip_norm=1e-3",
    ]
    if fusion.unit == "dialogue":
        with pytest.raises(WrongUse, match=f"fusion {name} has no use for it"):
            fitted("sampler=balanced")
    else:
        changes.append("sampler=balanced")

    learnt = {change: weights(fitted(*change.split())) for change in changes}
    if "audio" in fusion.inputs:
        learnt["hop"] = weights(fitted(hop=":hop=0.06"))
    plain = weights(fitted())
    for change, changed in learnt.items():
        assert changed.isfinite().all(), change
        assert not torch.equal(changed, plain), change


@pytest.mark.parametrize("name", DIFFERENT)
def test_patience_ends_a_stage_and_refit_starts_anew(
    name: str, fit_small: Callable[[str], Fit]
) -> None:
    stages = FUSIONS[name].stages
    # So small a rate that no epoch is better than the first; of equals the later one is kept.
    of_stages = {f"{stage.epochs}=3" for stage in stages} | {
        f"{stage.lr}=1e-30" for stage in stages
    }
    still = fit_small(name)(*of_stages, "patience=1", "refit=true", select="val")
    epochs_of_a_stage = 2 + 2  # two, and as many again on train + dev
    assert len(still.history) == epochs_of_a_stage * len(stages)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param("lr=1", id="a text"),
        pytest.param(("lr=1", 2), id="a number in it"),
    ],
)
def test_settings_from_python_are_a_tuple(settings: Any) -> None:
    with pytest.raises(WrongUse, match="must be a tuple of texts, such as "):
        prepare(Experiment("is13", "audio", set=settings))


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        pytest.param(["--lr", "1e-3"], "--set lr=1e-3", id="a blank"),
        pytest.param(["--lr=1e-3"], "--set lr=1e-3", id="an equals sign"),
        pytest.param(["--batch-size", "16"], "--set batch_size=16", id="two words"),
        pytest.param(["--focal-gamma", "2"], "--set focal_gamma=2", id="of any training"),
        pytest.param(["--dropout"], "--set dropout=VALUE", id="no value"),
    ],
)
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_setting_that_is_given_as_an_option_is_named(
    command: str, words: list[str], advice: str
) -> None:
    answer = ser(command, *words)
    assert answer.exit_code == 2
    assert advice in answer.stderr


def test_what_is_no_setting_is_an_unknown_option_as_ever() -> None:
    answer = ser("train", "--learning", "1")
    assert answer.exit_code == 2
    # In the words of click, which differ by its version.
    assert "No such option" in answer.stderr
    assert "--learning" in answer.stderr
    assert "--set learning" not in answer.stderr


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"lr": 1e-3, "released": True}, id="a mapping"),
        pytest.param(["lr=0.001", "released=true"], id="a list"),
        pytest.param(("lr=0.001", "released=true"), id="a tuple"),
    ],
)
def test_settings_in_python_are_those_of_the_command_line(settings: Any) -> None:
    experiment = Experiment("is13+bert", "lgf-add", set=settings)
    assert experiment.set == ("lr=0.001", "released=true")
    assert replace(experiment, seeds=2).set == experiment.set


def test_weights_in_python_may_be_a_mapping() -> None:
    experiment = Experiment("bert", "bert", model={"bert": "/models/bert"})
    assert experiment.model == ("bert=/models/bert",)
