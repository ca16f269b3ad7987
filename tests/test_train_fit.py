"""The loop: what is learnt, what is not seen, what is kept, and the same bytes again."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from scipy import special, stats
from sklearn.metrics import balanced_accuracy_score
from sklearn.utils.class_weight import compute_class_weight

from ser.errors import WrongUse
from ser.tests.tiny_store import make_store
from ser.train.checkpoint import restore_state, snapshot, write_state
from ser.train.config import TrainConfig
from ser.train.data.dataset import Dataset
from ser.train.data.dev_part import Cut
from ser.train.data.folds import Fold
from ser.train.data.inputs import Inputs
from ser.train.data.loading import load_dataset
from ser.train.data.protocols import make_folds
from ser.train.fit import (
    Adam,
    Fitted,
    fit,
    fit_standardizers,
    learning_rate,
    shuffled,
    training_loss,
)
from ser.train.fit_many import fit_many
from ser.train.models import Stage
from ser.train.options import Experiment
from ser.train.records import Epoch
from ser.train.run_folder import Run
from ser.train.settings import TrainingSettings, parse_settings
from ser.train.targets import TARGETS

SMALL = {
    "mit": ("hubert+mpnet", ("d_model=16", "heads=2", "queries=3", "lr=0.003", "epochs=3")),
    "lgf-add": (
        "is13+bert",
        ("d_model=16", "gru_hidden=8", "heads=2", "epochs=3", "batch_size=2", "lr=0.01"),
    ),
    "audio": (
        "is13",
        ("d_model=16", "gru_hidden=8", "heads=2", "epochs=3", "batch_size=2", "lr=0.01"),
    ),
    "cnn": ("logmel", ("frames=48", "channels=2", "epochs=2")),
    "bc-lstm": ("is13+bert", ("lstm_hidden=8", "dense=8", "epochs=2", "batch_size=2")),
}
SMALL |= dict.fromkeys(("ef-add", "mf-concat", "lf-at"), SMALL["lgf-add"])


def prepared(
    store: Path, fusion: str, *more: str, **plan: Any
) -> tuple[Dataset, Fold, TrainConfig]:
    features, small = SMALL[fusion]
    data, found = load_dataset(Experiment(features, fusion, store))
    settings, training = parse_settings(found, (*small, *more))
    dev = "next" if plan.get("select", "val") == "val" else "none"
    fold = make_folds("session-out", data.utterances, Cut(dev=dev))[0]
    return data, fold, TrainConfig(found, settings, training, **plan)


def weights(fitted: Fitted) -> dict[str, bytes]:
    return {
        name: value.numpy().tobytes() for name, value in snapshot(fitted.model.state_dict()).items()
    }


@pytest.mark.parametrize("fusion", ["mit", "lgf-add", "audio", "cnn", "bc-lstm"])
def test_the_same_seed_gives_the_same_bytes(
    store: Path, fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch's own Adam too, which imports its compiler."""
    first = weights(fit(*prepared(store, fusion)))
    torch.manual_seed(99)  # what happened before does not matter
    with monkeypatch.context() as patched:
        patched.setattr("ser.train.fit.Adam", torch.optim.Adam)
        assert weights(fit(*prepared(store, fusion))) == first
    assert weights(fit(*prepared(store, fusion, seed=1))) != first


@pytest.mark.parametrize(
    "fusion",
    [
        "mit",
        "lgf-add refit=true",
        "mit sampler=balanced refit=true",
        "bc-lstm refit=true patience=1",
    ],
)
def test_going_on_from_a_state_gives_the_same_bytes(
    store: Path, tmp_path: Path, fusion: str
) -> None:
    whole: list[tuple[Epoch, bytes]] = []
    fusion, *more = fusion.split()
    with pytest.MonkeyPatch.context() as patched:  # whose state ours goes on from
        patched.setattr("ser.train.fit.Adam", torch.optim.Adam)
        expected = fit(
            *prepared(store, fusion, *more),
            on_epoch=lambda epoch, state: whole.append((epoch, state())),
        )
    for at in {
        1,
        2,
        len(whole) - 1,
        len(whole),
    }:  # the last two within the last training: with refit, the second
        Run(tmp_path).write_tensors("state", whole[at - 1][1])
        rest: list[Epoch] = []
        resumed = fit(
            *prepared(store, fusion, *more),
            on_epoch=lambda epoch, _, rest=rest: rest.append(epoch),
            resume=Run(tmp_path).tensors("state"),
        )
        assert weights(resumed) == weights(expected) and resumed.epoch == expected.epoch
        left = [epoch for epoch, _ in whole[at:]]
        assert [(e.stage, e.epoch, e.loss, e.ua) for e in rest] == [
            (e.stage, e.epoch, e.loss, e.ua) for e in left
        ]


def test_a_state_is_that_of_its_own_gpu(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, fold, config = prepared(store, "lgf-add", "epochs=2")
    found: list[tuple[int, str]] = []
    monkeypatch.setattr(
        torch.cuda, "get_rng_state", lambda device: torch.tensor([device.index], dtype=torch.uint8)
    )
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: found.append((state.item(), str(device)))
    )

    def keep_and_restore(epoch: Epoch, state: Callable[[], bytes]) -> None:
        *arguments, _ = state.args
        written = load(write_state(*arguments, "cuda:1"))
        restore_state(written, *arguments[2:], "cuda:1")

    fit(data, fold, config, keep_and_restore)
    assert found == [(1, "cuda:1")] * 2


def test_a_fit_and_a_prediction_turn_tf32_off(store: Path) -> None:
    """Else what cuDNN's GRU predicts on a GPU is not what the scan has trained."""
    data, fold, config = prepared(
        store, "lgf-add", "epochs=1", select="last"
    )  # so that a fit does not predict
    model = fit(data, fold, config).model
    ways = (lambda: fit(data, fold, config), lambda: fit_many(data, fold, [config]))
    for compute in (*ways, lambda: Fitted(model, {}).predict(data, fold.test, config)):
        torch.backends.cudnn.allow_tf32 = True
        compute()
        assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("fusion", ["lgf-add", "bc-lstm refit=true"])
def test_patience_ends_a_stage_where_no_better_score_has_come(store: Path, fusion: str) -> None:
    fusion, *more = fusion.split()
    long = fit(*prepared(store, fusion, "epochs=9", "lr=0.02")).history
    found = fit(*prepared(store, fusion, "epochs=9", "lr=0.02", "patience=2", *more))
    stages = {
        line.stage: [one for one in found.history if one.stage == line.stage]
        for line in found.history
    }
    for name, lines in stages.items():
        ua = [line.ua for line in lines]
        if name.endswith(" again"):
            first_training = stages[name.removesuffix(" again")]
            kept = [line.epoch for line in first_training if line.kept]
            assert len(lines) == kept[-1] and ua[0] is None
            continue
        waited = [
            n - int(np.argmax(ua[: n + 1])) for n in range(len(ua))
        ]  # epochs since the best of those so far
        assert max(waited[:-1], default=0) < 2 and (waited[-1] == 2 or len(ua) == 9)
    first = next(iter(stages.values()))
    assert [line.ua for line in first] == [line.ua for line in long[: len(first)]]
    assert len(found.history) < 9 * len(stages)


def test_refit_trains_on_train_and_dev_for_the_epochs_that_dev_chose(store: Path) -> None:
    data, fold, plan = prepared(store, "lgf-add", "refit=true")
    once, again = fit(*prepared(store, "lgf-add")), fit(data, fold, plan)
    *_, last = prepared(store, "lgf-add", f"epochs={once.epoch}", select="last")
    expected = fit(
        data, replace(fold, train=np.union1d(fold.train, fold.dev), dev=fold.dev[:0]), last
    )
    assert weights(again) == weights(expected) != weights(once)
    assert torch.equal(again.scaling["audio"].mean, expected.scaling["audio"].mean), (
        "of train + dev"
    )
    assert len(again.history) == 3 + once.epoch and again.epoch == once.epoch


@pytest.mark.parametrize(
    ("fusion", "select"), [("lgf-add", "val"), ("mit", "val"), ("cnn", "last")]
)
def test_poison_in_the_test_part_changes_nothing_in_training(
    store: Path, fusion: str, select: str
) -> None:
    data, fold, plan = prepared(store, fusion, select=select)
    clean = fit(data, fold, plan)
    poisoned, _, _ = prepared(store, fusion)
    poisoned.utterances.labels[fold.test] = 3 - poisoned.utterances.labels[fold.test]
    for modality, stored in data.inputs.items():
        values = stored.values.clone()
        for row in fold.test:
            values[stored.offsets[row] : stored.offsets[row + 1]] = 1e4
        poisoned.inputs[modality] = Inputs(values, stored.offsets)
    bad = fit(poisoned, fold, plan)
    assert weights(bad) == weights(clean)
    assert [line.loss for line in bad.history] == [line.loss for line in clean.history]
    says = [
        one.predict(of, fold.test, plan)["logits"] for one, of in ((bad, poisoned), (clean, data))
    ]
    assert not np.array_equal(*says), "the poison does reach the test"
    poisoned.utterances.labels[fold.train[0]] = 3 - poisoned.utterances.labels[fold.train[0]]
    assert weights(fit(poisoned, fold, plan)) != weights(clean), "and the training part trains"


def test_learns_and_falls_to_chance_with_shuffled_labels(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", turns=48).path
    for more, least, most in (((), 0.8, 1.0), (("shuffle_labels=true",), 0.0, 0.45)):
        data, fold, plan = prepared(store, "lgf-add", *more, "epochs=18", select="last")
        predicted = fit(data, fold, plan).predict(data, fold.test, plan)["logits"].argmax(1)
        assert least < balanced_accuracy_score(data.utterances.labels[fold.test], predicted) <= most


def test_selection_keeps_the_epoch_that_it_names(store: Path) -> None:
    for select in ("val", "last", "best-test"):
        data, fold, plan = prepared(store, "lgf-add", "epochs=6", "lr=0.05", select=select)
        fitted = fit(data, fold, plan)
        uas = [line.ua for line in fitted.history]
        if select == "last":
            assert fitted.epoch == 6 and uas == [None] * 6
            continue
        assert fitted.epoch == int(np.argmax(uas)) + 1  # the first of equals
        watched = fold.dev if select == "val" else fold.test
        predicted = fitted.predict(data, watched, plan)["logits"].argmax(1)
        assert balanced_accuracy_score(data.utterances.labels[watched], predicted) == pytest.approx(
            max(uas)
        )


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_weights(
    store: Path,
) -> None:
    options = ("epochs=4", "standardise_audio=false")
    data, fold, plan = prepared(store, "audio", *options, select="last")
    two_epochs = fit(data, fold, replace(plan, settings=replace(plan.settings, epochs=2)))

    def poison(epoch: Epoch, state: Callable[[], bytes]) -> None:
        if epoch.epoch == 2:
            data.inputs["audio"].values[fold.train] = torch.nan

    fitted = fit(data, fold, plan, on_epoch=poison)
    assert "became nan in epoch 3, batch 1 (stage train)" in str(fitted.fault)
    assert weights(fitted) == weights(two_epochs) and len(fitted.history) == 2
    assert re.search(
        r"epoch 1, batch 1 .*; no update came before it", str(fit(data, fold, plan).fault)
    )


def test_the_rate_decays_as_the_paper_says(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate is lr / (1 + lr_decay t) at the updates t = 0, 1, …, also of a resumed run, and else
    stays.
    """
    rates: list[float] = []
    step = Adam.step
    monkeypatch.setattr(
        Adam, "step", lambda adam: (rates.append(adam.param_groups[0]["lr"]), step(adam))
    )
    config = prepared(store, "lgf-add", "lr_decay=0.5", "dropout=0")
    states: list[bytes] = []
    fit(*config, on_epoch=lambda epoch, state: states.append(state()))
    wanted = [0.01 / (1 + 0.5 * t) for t in range(len(rates))]
    assert len(rates) == 9 and rates == pytest.approx(
        wanted
    )  # three epochs of five or six dialogues in twos
    rates.clear()
    Run(tmp_path).write_tensors("state", states[0])
    fit(*config, resume=Run(tmp_path).tensors("state"))
    assert rates == pytest.approx(wanted[3:])
    assert learning_rate(prepared(store, "mit")[2].settings, 7) == 0.003
    released = prepared(store, "lgf-add", "released=true")[2].settings
    assert learning_rate(released, 7) == 0.01  # that code's Adam is a plain one


def test_stages_train_only_what_they_name(store: Path) -> None:
    data, fold, plan = prepared(store, "bc-lstm", "epochs=1")
    after: list[tuple[str, dict[str, torch.Tensor]]] = []
    fit(data, fold, plan, on_epoch=lambda epoch, state: after.append((epoch.stage, load(state()))))
    assert len(after) == len(plan.fusion.stages) > 1
    for stage, ((_, old), (name, new)) in zip(plan.fusion.stages[1:], pairwise(after), strict=True):
        weights = [weight for weight in new if weight.startswith("model.")]
        moved = [
            weight.removeprefix("model.")
            for weight in weights
            if not torch.equal(new[weight], old[weight])
        ]
        assert (
            stage.name == name
            and moved
            and all(weight.startswith(stage.trains) for weight in moved)
        )


@pytest.mark.parametrize("fusion", ["ef-add", "mf-concat", "lf-at", "lgf-add", "bc-lstm"])
def test_heads_that_nobody_asks_for_change_nothing_in_those_that_are_asked_for(
    store: Path, fusion: str
) -> None:
    data, fold, plan = prepared(store, fusion)
    model = plan.fusion.build(plan.settings, data.dims, len(data.utterances.classes))
    standardizers = fit_standardizers(data, fold, plan.settings)
    every = Fitted(model, standardizers).predict(data, fold.test, plan)
    assert set(every) == {"logits", "audio", "text"}
    alone = Fitted(model, standardizers).predict(data, fold.test, plan, heads=frozenset({"logits"}))
    assert np.allclose(alone["logits"], every["logits"], atol=1e-6)
    assert ("audio" in alone) == (
        fusion in ("lgf-add", "bc-lstm")
    )  # there the fused logits are made of them


@pytest.mark.parametrize("fusion", ["mit", "lgf-add"])
def test_bfloat16_stays_close_to_float32(store: Path, fusion: str) -> None:
    data, fold, plan = prepared(store, fusion, "dropout=0", "epochs=2")
    plans = [replace(plan, precision=precision) for precision in ("float32", "bf16")]
    exact, rounded = (fit(data, fold, one) for one in plans)
    assert weights(exact) != weights(rounded) == weights(fit(data, fold, plans[1]))
    assert all(weight.dtype == torch.float32 for weight in rounded.model.parameters())
    losses, wanted = ([line.loss for line in fitted.history] for fitted in (rounded, exact))
    assert losses == pytest.approx(wanted, rel=0.02)
    first, second = (
        one.predict(data, fold.test, p)["logits"]
        for one, p in zip((exact, rounded), plans, strict=True)
    )
    assert np.abs(first - second).max() < 0.05


# The losses against the papers' equations, written as loops over utterances
# ---------------------------------------


def made(n: int = 7, classes: int = 4) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = {
        head: torch.randn(n, classes, generator=generator).double()
        for head in ("logits", "audio", "text")
    }
    return outputs, torch.randint(classes, (n,), generator=generator)


def plain(logits: torch.Tensor, weights: Any) -> float:
    """Perspective eq. 3 and USC §3.2: the sum over utterances i and classes k of −p_ik log P(ŷ_i =
    k).
    """
    return -(np.asarray(weights) * special.log_softmax(logits.numpy(), axis=1)).sum()


def test_the_losses_are_equations_3_and_6() -> None:
    """Of the fused head, of one other, and of all three; sums over the utterances and means are
    below.
    """
    outputs, truth = made()
    of = {head: plain(logits, np.eye(4)[truth]) for head, logits in outputs.items()}
    wanted = {("single", "logits"): of["logits"], ("perspective", "logits"): sum(of.values())}
    for (kind, output), expected in {**wanted, ("perspective", "text"): of["text"]}.items():
        config: Any = SimpleNamespace(
            target="class", loss=kind, reduction="sum", training=TrainingSettings()
        )
        loss = training_loss(outputs, truth, config, Stage("x", output))
        assert loss.item() == pytest.approx(expected, abs=1e-12)
    with pytest.raises(WrongUse, match="--loss perspective needs audio and text heads"):
        training_loss({"logits": outputs["logits"]}, truth, config, Stage("x"))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weights", [[1.0] * 4, [0.5, 2.0, 1.0, 3.0]])
@pytest.mark.parametrize("soft", [False, True])
def test_soft_labels_class_weights_and_the_focal_factor(
    gamma: float, weights: list[float], soft: bool
) -> None:
    """Each term −p log q has its class's weight and (1 − q)^γ (Lin et al. 2017), and a certain one
    has a gradient.
    """
    outputs, truth = made(3)[0], torch.tensor([0, 2, 1])
    outputs["logits"][0] = torch.tensor([200.0, 0, 0, 0])  # as sure as can be
    shares = (
        torch.tensor([[2 / 3, 1 / 3, 0, 0], [0, 0, 1, 0], [0.25] * 4]).double()
        if soft
        else torch.eye(4)[truth]
    )
    truth = shares * torch.tensor(weights).double() if soft or weights != [1.0] * 4 else truth
    wanted = plain(
        outputs["logits"],
        shares * torch.tensor(weights) * (1 - outputs["logits"].softmax(1)) ** gamma,
    )
    config: Any = SimpleNamespace(
        target="class", loss="single", training=TrainingSettings(focal_gamma=gamma)
    )
    logits = outputs["logits"].requires_grad_()
    for config.reduction, n in (("sum", 1), ("mean", 3)):
        loss = training_loss({"logits": logits}, truth, config, Stage("x"))
        assert loss.item() == pytest.approx(wanted / n, abs=1e-12)
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()


@pytest.mark.parametrize("more", ["", "shuffle_labels=true", "soft_labels=true"])
def test_class_weights_are_of_the_training_part_alone(store: Path, more: str) -> None:
    data, fold, plan = prepared(store, "lgf-add", "class_weights=inverse", *more.split())
    learnt, labels = shuffled(data, fold, plan), data.utterances.labels[fold.train]
    sizes: Any = np.bincount(labels)
    theirs = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    shares = np.eye(4)[learnt.utterances.labels]
    if more == "soft_labels=true":
        shares = data.utterances.votes
        sizes = shares[fold.train].sum(0)
        theirs = sizes.sum() / 4 / sizes
    truth = TARGETS["class"].truth(learnt, plan.training, fold.train)
    assert truth is not None and truth.numpy() == pytest.approx(shares * theirs)
    cui = np.array([(1 - 0.9) / (1 - 0.9**n) for n in sizes])
    training = replace(plan.training, class_weights="effective", effective_beta=0.9)
    truth = TARGETS["class"].truth(learnt, training, fold.train)
    assert truth is not None and truth.numpy() == pytest.approx(
        shares * cui * sizes.sum() / (cui * sizes).sum()
    )


def test_a_balanced_sampler_draws_the_classes_alike(store: Path) -> None:
    data, fold, _ = prepared(store, "mit")
    rows = fold.train
    drawn = Counter[int]()
    for seed in range(100):
        for batch in data.batches(
            rows, "utterance", 8, {}, torch.Generator().manual_seed(seed), sampler="balanced"
        ):
            assert np.isin(batch.utterances, rows).all()
            drawn.update(batch.truth.tolist())
    assert drawn.total() == 100 * len(rows)
    assert stats.chisquare(list(drawn.values())).pvalue > 0.001 and len(drawn) == 4
