"""Ingredients of training, each against an independent truth, and refused where it does not fit."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from ser.errors import WrongUse
from ser.tests.small_models import build, make_batch
from ser.train.checkpoint import read_average
from ser.train.experiment import Experiment, prepare, run_experiment
from ser.train.fit import fit, mixed_loss
from ser.train.ingredients import (
    NOT_KNOWN,
    AuxiliaryTask,
    auxiliary_task,
    draw_mix,
    rate_factor,
)
from ser.train.models import FUSIONS, Stage
from ser.train.models.batch import Mix
from ser.train.rater_dropout import RaterDropout
from ser.train.settings import TrainingSettings
from ser.train.weight_average import WeightAverage

SMALL = ("hidden=8", "lr=0.01")


@pytest.mark.parametrize("warmup", [0.0, 0.25])
@pytest.mark.parametrize(
    ("name", "of_transformers"),
    [
        pytest.param("cosine", get_cosine_schedule_with_warmup, id="cosine"),
        pytest.param("linear", get_linear_schedule_with_warmup, id="linear"),
    ],
)
def test_the_schedule_is_that_of_transformers(
    warmup: float, name: Any, of_transformers: Any
) -> None:
    training = TrainingSettings(schedule=name, warmup=warmup)
    optimiser = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = of_transformers(optimiser, int(warmup * 40), 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for update in range(40):
            assert 0.5 * rate_factor(training, update, 40) == pytest.approx(
                schedule.get_last_lr()[0], abs=1e-15
            )
            schedule.step()
    assert rate_factor(TrainingSettings(), 7, 40) == 1.0


def test_averaged_weights_are_torchs() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = WeightAverage(0.9)
    torchs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(5):
        model(torch.randn(4, 3)).square().sum().backward()
        optimiser.step()
        average.update(model)
        torchs.update_parameters(model)

    trained = {name: weight.clone() for name, weight in model.state_dict().items()}
    with average.applied(model):
        for name, weight in torchs.module.named_parameters():
            torch.testing.assert_close(model.get_parameter(name), weight)
    torch.testing.assert_close(dict(model.state_dict()), trained, rtol=0, atol=0)


@pytest.mark.usefixtures("double")
def test_layer_dropout_sums_the_layers_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("xares on layers")
    batch = make_batch("xares on layers")
    front = model.layer_sums
    with torch.no_grad():
        front.weights["audio 0"].copy_(torch.tensor([0.3, -1.0, 2.0]))
    front.dropout = 0.5
    monkeypatch.setattr(torch, "rand", lambda n: torch.tensor([0.9, 0.1, 0.6])[:n])

    layers = batch.inputs["audio"].values.unflatten(1, (3, 9))
    kept = torch.tensor([0.3, 2.0]).softmax(0)
    summed = kept[0] * layers[:, 0] + kept[1] * layers[:, 2]
    torch.testing.assert_close(front(batch).inputs["audio"].values, summed)

    monkeypatch.setattr(torch, "rand", lambda n: torch.zeros(n))
    shares = front.weights["audio 0"].softmax(0)
    every_layer = torch.einsum("l,rld->rd", shares, layers)
    torch.testing.assert_close(front(batch).inputs["audio"].values, every_layer)
    model.eval()
    torch.testing.assert_close(front(batch).inputs["audio"].values, every_layer)


@pytest.mark.usefixtures("double")
def test_mixup_is_the_loss_of_mixed_vectors_and_truths(store: Path) -> None:
    """By the soft labels of Zhang et al. 2018: the truth is mixed as the vectors are."""
    [config, *_] = [job.config for job in prepare(Experiment("is13", "xares", store, folds=1))]
    model = build("xares")
    batch = make_batch("xares")
    batch.mix = Mix(0.3, torch.tensor([2, 0, 3, 1]))

    loss = mixed_loss(model(batch), batch, config, Stage("train"))

    x = batch.inputs["audio"].values
    mixed = 0.3 * x + 0.7 * x[[2, 0, 3, 1]]
    truth = F.one_hot(batch.truth, 4).double()
    soft = 0.3 * truth + 0.7 * truth[[2, 0, 3, 1]]
    logits = model.logits(model.norm(mixed))
    torch.testing.assert_close(loss, F.cross_entropy(logits, soft))


def test_mixes_are_drawn_by_the_beta_distribution() -> None:
    torch.manual_seed(0)
    mixes = [draw_mix(TrainingSettings(mixup=0.4), 6, "cpu") for _ in range(2000)]
    shares = np.array([mix.share for mix in mixes if mix is not None])
    # Of Beta(a, a) the mean is 1 / 2, the variance 1 / (4 (2 a + 1)).
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * 1.8), abs=0.02)
    assert mixes[0] is not None
    assert sorted(mixes[0].partners.tolist()) == list(range(6))
    assert draw_mix(TrainingSettings(), 6, "cpu") is None


@pytest.mark.usefixtures("double")
def test_an_auxiliary_head_learns_what_is_known() -> None:
    model = build("asp")
    batch = make_batch("asp")
    model.vector.add_head("gender", 2)
    model.vector.double()
    task = AuxiliaryTask("gender", torch.tensor([0, 1, NOT_KNOWN, 1]), 2, weight=1.0)

    returned = model(batch)
    assert returned["aux gender"].shape == (4, 2)
    known = [0, 1, 3]
    expected = F.cross_entropy(returned["aux gender"][known], torch.tensor([0, 1, 1]))
    torch.testing.assert_close(task.loss(returned["aux gender"], batch), expected)
    assert list(model.eval()(batch)) == ["logits"]


def test_rater_dropout_leaves_votes_out_of_soft_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two raters of the first utterance, three of the second; the third has none."""
    ballots = [np.eye(3)[[0, 1]], np.eye(3)[[2, 2, 0]], np.empty((0, 3))]
    votes = np.float32([[0.5, 0.5, 0], [1 / 3, 0, 2 / 3], [0, 1, 0]])
    dropout = RaterDropout(ballots, np.tile(votes, (2, 1)), 0.3)
    drawn = torch.tensor([0.9, 0.1, 0.9, 0.1, 0.9, 0.2, 0.1, 0.1, 0.1, 0.1])
    monkeypatch.setattr(torch, "rand", lambda n: drawn[:n])

    labels = dropout.draw()

    first_copy = [[1, 0, 0], [0.5, 0, 0.5], [0, 1, 0]]
    # Of the second copy nothing is left, so all stays.
    np.testing.assert_allclose(labels, np.concatenate([first_copy, votes]), rtol=1e-6)

    monkeypatch.undo()
    torch.manual_seed(0)
    means = np.mean([dropout.draw() for _ in range(4000)], 0)
    # (0.7² ½ + 2 · 0.7 · 0.3 ½ + 0.3² ½) of each vote: symmetric, so as without dropout.
    np.testing.assert_allclose(means[0], votes[0], atol=0.03)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(("aux=gender", "aux_weight=0.5"), id="gender"),
        pytest.param(("aux=speaker",), id="speaker"),
        pytest.param(("mixup=0.2",), id="mixup"),
        pytest.param(("soft_labels=true", "rater_dropout=0.3"), id="raters"),
        pytest.param(("schedule=cosine", "warmup=0.1", "ema=0.9"), id="schedule and average"),
    ],
)
def test_a_run_with_an_ingredient_is_a_run_and_another_one(
    store: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    """Its weights are those of the fusion alone, so that it predicts as any other."""
    plain = Experiment("hubert", "asp", store, set=SMALL, folds=1, epochs=2, out=tmp_path)
    [without] = run_experiment(plain)
    [run] = run_experiment(replace(plain, set=(*SMALL, *settings)))
    assert run.name != without.name
    names = run.tensors("model.safetensors")[0].keys()
    assert names == without.tensors("model.safetensors")[0].keys()
    own = run.predictions().column("probabilities").to_pylist()
    assert own != without.predictions().column("probabilities").to_pylist()

    # A setting at its default is in no config: runs from before keep their names.
    assert "aux" not in without.config.training


def test_a_run_with_averaged_weights_goes_on_as_if_it_had_not_stopped(store: Path) -> None:
    experiment = Experiment(
        "hubert", "asp", store, set=(*SMALL, "ema=0.9", "mixup=0.4"), folds=1, epochs=3
    )
    [job] = prepare(experiment)
    states = []
    whole = fit(job.data, job.fold, job.config, lambda epoch, state: states.append(state()))

    tensors = load(states[0])
    assert read_average(tensors)
    size = int.from_bytes(states[0][:8], "little")
    header: Any = json.loads(states[0][8 : 8 + size])
    resumed = fit(job.data, job.fold, job.config, resume=(tensors, header["__metadata__"]))

    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        pytest.param({"set": ("mixup=0.2",)}, "has no pooled vector", id="mixup"),
        pytest.param({"set": ("aux=gender",)}, "has no pooled vector", id="aux"),
        pytest.param(
            {"fusion": "xares", "set": ("aux=gender",)},
            "xares learns nothing before",
            id="unshared",
        ),
        pytest.param({"set": ("rater_dropout=0.1",)}, "none are learnt", id="raters"),
        pytest.param({"set": ("layer_dropout=0.1",)}, "there is none; name layers", id="layers"),
        pytest.param({"fusion": "linear", "set": ("ema=0.9",)}, "has no training loop", id="ema"),
        pytest.param({"fusion": "xares", "set": ("aux_weight=2",)}, "set both", id="weight"),
        pytest.param(
            {"fusion": "xares", "target": "vad", "set": ("mixup=1",)}, "use vad_loss=mse", id="ccc"
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    store: Path, experiment: dict[str, Any], message: str
) -> None:
    options = {"features": "is13", "fusion": "audio", "store": store, **experiment}
    with pytest.raises(WrongUse, match=message):
        prepare(Experiment(**options))


def test_an_auxiliary_head_needs_two_classes(store: Path) -> None:
    data = SimpleNamespace(utterances=SimpleNamespace(genders=["F"] * 3, speakers=["a"] * 3))
    fold = SimpleNamespace(name="one", train=np.arange(3))
    aux = TrainingSettings(aux="gender")
    with pytest.raises(WrongUse, match="aux=gender: fold 'one' has 1 of them in its training part"):
        auxiliary_task(data, fold, aux, FUSIONS["asp"])  # type: ignore[arg-type]

    none = TrainingSettings()
    with pytest.raises(WrongUse, match=r"dann is trained to tell nothing of the speaker: .* 1 of"):
        auxiliary_task(data, fold, none, FUSIONS["dann"])  # type: ignore[arg-type]
