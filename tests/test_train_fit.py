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
from sklearn.metrics import balanced_accuracy_score, log_loss
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
from ser.train.models import FUSIONS, Stage
from ser.train.options import Experiment
from ser.train.records import Epoch, Scores
from ser.train.run_folder import Run
from ser.train.selection import Selection, count_tied, describe_choice
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
# A third of the utterances, where they are sequences and their batches many.
LIMITS = {"mit": 40, "cnn": 40}


def prepared(
    store: Path, fusion: str, *more: str, **plan: Any
) -> tuple[Dataset, Fold, TrainConfig]:
    features, small = SMALL[fusion]
    data, fusion_class = load_dataset(Experiment(features, fusion, store, limit=LIMITS.get(fusion)))
    settings, training = parse_settings(fusion_class, (*small, *more))
    dev = "next" if plan.get("select", "val") == "val" else "none"
    fold = make_folds("session-out", data.utterances, Cut(dev=dev))[0]

    return data, fold, TrainConfig(fusion_class, settings, training, **plan)


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
    # What happened before does not matter.
    torch.manual_seed(99)

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

    # Whose state ours goes on from.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ser.train.fit.Adam", torch.optim.Adam)
        expected = fit(
            *prepared(store, fusion, *more),
            on_epoch=lambda epoch, state: whole.append((epoch, state())),
        )

    # The last two within the last training: with refit, the second.
    epochs_done = {1, 2, len(whole) - 1, len(whole)}
    for done in epochs_done:
        Run(tmp_path).write_tensors("state", whole[done - 1][1])
        rest: list[Epoch] = []
        resumed = fit(
            *prepared(store, fusion, *more),
            on_epoch=lambda epoch, _, rest=rest: rest.append(epoch),
            resume=Run(tmp_path).tensors("state"),
        )
        assert weights(resumed) == weights(expected)
        assert resumed.epoch == expected.epoch

        left = [epoch for epoch, _ in whole[done:]]

        for field in ("stage", "epoch", "loss", "ua"):
            values = [getattr(epoch, field) for epoch in rest]
            assert values == [getattr(epoch, field) for epoch in left], field


def test_a_state_is_that_of_its_own_gpu(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, fold, config = prepared(store, "lgf-add", "epochs=2")
    restored: list[tuple[int, str]] = []

    def get_rng_state(device: torch.device) -> torch.Tensor:
        return torch.tensor([device.index], dtype=torch.uint8)

    def set_rng_state(state: torch.Tensor, device: torch.device) -> None:
        restored.append((int(state.item()), str(device)))

    monkeypatch.setattr(torch.cuda, "get_rng_state", get_rng_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", set_rng_state)

    def keep_and_restore(epoch: Epoch, state: Callable[[], bytes]) -> None:
        *arguments, _ = state.args
        written = load(write_state(*arguments, "cuda:1"))
        restore_state(written, *arguments[2:], "cuda:1")

    fit(data, fold, config, keep_and_restore)

    assert restored == [(1, "cuda:1"), (1, "cuda:1")]


def test_a_fit_and_a_prediction_turn_tf32_off(store: Path) -> None:
    """Else what cuDNN's GRU predicts on a GPU is not what the scan has trained."""
    # With this selection a fit does not predict.
    data, fold, config = prepared(store, "lgf-add", "epochs=1", select="last")
    model = fit(data, fold, config).model
    computations: list[Callable[[], object]] = [
        lambda: fit(data, fold, config),
        lambda: fit_many(data, fold, [config]),
        lambda: Fitted(model, {}).predict(data, fold.test, config),
    ]

    for compute in computations:
        torch.backends.cudnn.allow_tf32 = True
        compute()
        assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("fusion", ["lgf-add", "bc-lstm refit=true"])
def test_patience_ends_a_stage_where_no_better_score_has_come(store: Path, fusion: str) -> None:
    fusion, *more = fusion.split()
    whole = fit(*prepared(store, fusion, "epochs=9", "lr=0.02")).history
    fitted = fit(*prepared(store, fusion, "epochs=9", "lr=0.02", "patience=2", *more))
    stages: dict[str, list[Epoch]] = {}

    for epoch in fitted.history:
        stages.setdefault(epoch.stage, []).append(epoch)

    for name, epochs in stages.items():
        ua = [epoch.ua for epoch in epochs]

        if name.endswith(" again"):
            first_training = stages[name.removesuffix(" again")]
            kept = [epoch.epoch for epoch in first_training if epoch.kept]
            assert len(epochs) == kept[-1]
            assert ua[0] is None
            continue

        # Epochs since the best of those so far, which the loss decides where the scores are equal.
        losses = [epoch.eval_loss for epoch in epochs]
        waited = []
        for n in range(len(ua)):
            order = np.lexsort([-np.arange(n + 1), losses[: n + 1], -np.array(ua[: n + 1])])
            waited.append(n - int(order[0]))
        assert max(waited[:-1], default=0) < 2
        assert waited[-1] == 2 or len(ua) == 9

    first, *_ = stages.values()
    without_patience = whole[: len(first)]
    assert [epoch.ua for epoch in first] == [epoch.ua for epoch in without_patience]
    assert len(fitted.history) < 9 * len(stages)


def test_refit_trains_on_train_and_dev_for_the_epochs_that_dev_chose(store: Path) -> None:
    data, fold, plan = prepared(store, "lgf-add", "refit=true")
    once = fit(*prepared(store, "lgf-add"))
    again = fit(data, fold, plan)
    *_, last = prepared(store, "lgf-add", f"epochs={once.epoch}", select="last")
    both_parts = np.union1d(fold.train, fold.dev)
    expected = fit(data, replace(fold, train=both_parts, dev=fold.dev[:0]), last)

    assert weights(again) == weights(expected) != weights(once)
    assert torch.equal(again.scaling["audio"].mean, expected.scaling["audio"].mean), (
        "of train + dev"
    )
    assert len(again.history) == 3 + once.epoch
    assert again.epoch == once.epoch


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

    of_poisoned = bad.predict(poisoned, fold.test, plan)["logits"]
    of_clean = clean.predict(data, fold.test, plan)["logits"]
    assert not np.array_equal(of_poisoned, of_clean), "the poison does reach the test"

    poisoned.utterances.labels[fold.train[0]] = 3 - poisoned.utterances.labels[fold.train[0]]
    assert weights(fit(poisoned, fold, plan)) != weights(clean), "and the training part trains"


def test_learns_and_falls_to_chance_with_shuffled_labels(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", turns=48).path

    def ua(*more: str) -> float:
        data, fold, plan = prepared(store, "lgf-add", *more, "epochs=18", select="last")
        logits = fit(data, fold, plan).predict(data, fold.test, plan)["logits"]
        return balanced_accuracy_score(data.utterances.labels[fold.test], logits.argmax(1))

    assert 0.8 < ua() <= 1
    assert 0 < ua("shuffle_labels=true") <= 0.45


def test_selection_keeps_the_epoch_that_it_names(store: Path) -> None:
    for select in ("val", "last", "best-test"):
        data, fold, plan = prepared(store, "lgf-add", "epochs=6", "lr=0.05", select=select)
        fitted = fit(data, fold, plan)
        uas = [line.ua for line in fitted.history]

        if select == "last":
            assert fitted.epoch == 6
            assert uas == [None] * 6
            continue

        # Of equals the one with the lowest loss.
        losses = [line.eval_loss for line in fitted.history]
        best = min((-ua, loss, -n) for n, (ua, loss) in enumerate(zip(uas, losses, strict=True)))
        assert fitted.epoch == 1 - best[2]

        watched = fold.dev if select == "val" else fold.test
        probabilities = fitted.predict(data, watched, plan)["logits"]
        truth = data.utterances.labels[watched]
        ua = balanced_accuracy_score(truth, probabilities.argmax(1))
        assert ua == pytest.approx(max(uas))
        loss = log_loss(truth, probabilities, labels=range(4))
        assert loss == pytest.approx(losses[fitted.epoch - 1], rel=1e-5)


CHOICES = {
    "the highest score": ([0.5, 0.9, 0.7], [3.0, 2.0, 1.0], 2, 1),
    "of equal scores the lowest loss": ([0.5, 1.0, 1.0, 1.0], [3.0, 0.4, 0.2, 0.3], 3, 3),
    "of equal losses too the later": ([1.0, 1.0, 1.0, 0.9], [0.1, 0.0, 0.0, 0.0], 3, 3),
    "a higher score in spite of its loss": ([0.9, 0.9, 1.0], [0.2, 0.1, 5.0], 3, 1),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_the_dev_loss_decides_between_epochs_of_one_score(choice: str) -> None:
    uas, losses, expected, tied = CHOICES[choice]
    fusion = FUSIONS["lgf-add"]
    selection = Selection(TrainConfig(fusion, fusion.settings(), TrainingSettings()))
    [stage] = fusion.stages

    for epoch, (ua, loss) in enumerate(zip(uas, losses, strict=True)):
        scores = Scores(n=9, wa=0.5, ua=ua, macro_f1=0.5)
        selection.add(stage, epoch, 1.0, scores, loss, seconds=0.1)

    assert Fitted(torch.nn.Identity(), {}, selection.history).epoch == expected
    assert count_tied(selection.history, "val", "ua") == tied
    sentence = str(describe_choice(selection.history, "val", "ua"))
    assert sentence.startswith(f"epoch {expected} is kept: ua {max(uas):.4f} on dev, ")
    assert (f"as {tied} epochs have" in sentence) == (tied > 1)
    assert count_tied(selection.history, "last", "ua") is None


def test_the_loss_that_decides_is_that_of_what_is_learnt() -> None:
    truth = np.array([0, 1])
    ratings = np.array([[1.0, 3.0, 5.0], [3.0, 3.0, 3.0]])
    utterances = SimpleNamespace(
        classes=("a", "b"),
        labels=truth,
        votes=np.array([[0.5, 0.5], [0.0, 1.0]], dtype=np.float32),
        dimensions=ratings,
    )
    probabilities = np.array([[0.8, 0.2], [0.4, 0.6]], dtype=np.float32)
    predicted_ratings = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    both = np.concatenate([probabilities, predicted_ratings], 1)
    config = SimpleNamespace(training=replace(TrainingSettings(), vad_scale="1..5"))
    rows = np.array([0, 1])

    def loss(target: str, predicted: np.ndarray) -> float:
        return TARGETS[target].evaluation_loss(utterances, rows, predicted, config)

    of_classes = -(np.log(0.8) + np.log(0.6)) / 2
    of_votes = -(0.5 * np.log(0.8) + 0.5 * np.log(0.2) + np.log(0.6)) / 2
    of_ratings = 1 / 6
    assert loss("class", probabilities) == pytest.approx(of_classes)
    assert loss("distribution", probabilities) == pytest.approx(of_votes)
    assert loss("vad", predicted_ratings) == pytest.approx(of_ratings)
    assert loss("class+vad", both) == pytest.approx(of_classes + of_ratings)


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
    assert weights(fitted) == weights(two_epochs)
    assert len(fitted.history) == 2

    at_once = fit(data, fold, plan)
    assert re.search(r"epoch 1, batch 1 .*; no update came before it", str(at_once.fault))


def test_the_rate_decays_as_the_paper_says(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate is lr / (1 + lr_decay t) at the updates t = 0, 1, …, also of a resumed run.

    Without lr_decay it stays.
    """
    rates: list[float] = []
    step = Adam.step

    def step_and_note(adam: Adam) -> None:
        rates.append(adam.param_groups[0]["lr"])
        step(adam)

    monkeypatch.setattr(Adam, "step", step_and_note)
    config = prepared(store, "lgf-add", "lr_decay=0.5", "dropout=0")
    states: list[bytes] = []
    fit(*config, on_epoch=lambda epoch, state: states.append(state()))
    wanted = [0.01 / (1 + 0.5 * t) for t in range(len(rates))]

    # Three epochs of five or six dialogues in twos.
    assert len(rates) == 9
    assert rates == pytest.approx(wanted)

    rates.clear()
    Run(tmp_path).write_tensors("state", states[0])
    fit(*config, resume=Run(tmp_path).tensors("state"))
    assert rates == pytest.approx(wanted[3:])
    assert learning_rate(prepared(store, "mit")[2].settings, 7) == 0.003

    released = prepared(store, "lgf-add", "released=true")[2].settings
    # That code's Adam is a plain one.
    assert learning_rate(released, 7) == 0.01


def test_stages_train_only_what_they_name(store: Path) -> None:
    data, fold, plan = prepared(store, "bc-lstm", "epochs=1")
    stages: list[str] = []
    states: list[dict[str, torch.Tensor]] = []

    def note(epoch: Epoch, state: Callable[[], bytes]) -> None:
        stages.append(epoch.stage)
        states.append(load(state()))

    fit(data, fold, plan, on_epoch=note)
    assert len(states) == len(plan.fusion.stages) > 1
    assert stages == [stage.name for stage in plan.fusion.stages]

    later_stages = plan.fusion.stages[1:]

    for stage, (before, after) in zip(later_stages, pairwise(states), strict=True):
        moved = []
        for name, weight in after.items():
            if name.startswith("model.") and not torch.equal(weight, before[name]):
                moved.append(name.removeprefix("model."))

        assert moved
        assert all(weight.startswith(stage.trains) for weight in moved)


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
    # There the fused logits are made of them.
    assert ("audio" in alone) == (fusion in ("lgf-add", "bc-lstm"))


@pytest.mark.parametrize("fusion", ["mit", "lgf-add"])
def test_bfloat16_stays_close_to_float32(store: Path, fusion: str) -> None:
    data, fold, plan = prepared(store, fusion, "dropout=0", "epochs=2")
    plain_plan = replace(plan, precision="float32")
    bf16_plan = replace(plan, precision="bf16")
    exact = fit(data, fold, plain_plan)
    rounded = fit(data, fold, bf16_plan)
    assert weights(exact) != weights(rounded) == weights(fit(data, fold, bf16_plan))
    assert all(weight.dtype == torch.float32 for weight in rounded.model.parameters())

    exact_losses = [epoch.loss for epoch in exact.history]
    rounded_losses = [epoch.loss for epoch in rounded.history]
    assert rounded_losses == pytest.approx(exact_losses, rel=0.02)

    exact_logits = exact.predict(data, fold.test, plain_plan)["logits"]
    rounded_logits = rounded.predict(data, fold.test, bf16_plan)["logits"]
    assert np.abs(exact_logits - rounded_logits).max() < 0.05


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
    """Perspective eq. 3 and USC §3.2.

    The sum over utterances i and classes k of −p_ik log P(ŷ_i = k).
    """
    return -(np.asarray(weights) * special.log_softmax(logits.numpy(), axis=1)).sum()


def test_the_losses_are_equations_3_and_6() -> None:
    """Of the fused head, of one other, and of all three.

    Sums over the utterances and means are below.
    """
    outputs, truth = made()
    of_head = {head: plain(logits, np.eye(4)[truth]) for head, logits in outputs.items()}
    cases = [
        ("single", "logits", of_head["logits"]),
        ("perspective", "logits", sum(of_head.values())),
        ("perspective", "text", of_head["text"]),
    ]

    for kind, output, expected in cases:
        config: Any = SimpleNamespace(
            target="class", loss=kind, reduction="sum", training=TrainingSettings()
        )
        loss = training_loss(outputs, truth, config, Stage("x", output))
        assert loss.item() == pytest.approx(expected, abs=1e-12)

    with pytest.raises(WrongUse, match="--loss perspective needs audio and text heads"):
        training_loss({"logits": outputs["logits"]}, truth, config, Stage("x"))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0], ids="gamma {}".format)
@pytest.mark.parametrize(
    "weights",
    [
        pytest.param([1.0] * 4, id="unweighted"),
        pytest.param([0.5, 2.0, 1.0, 3.0], id="weighted"),
    ],
)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_soft_labels_class_weights_and_the_focal_factor(
    gamma: float, weights: list[float], soft: bool
) -> None:
    """Each term −p log q has its class's weight and (1 − q)^γ (Lin et al. 2017).

    A certain one has a gradient too.
    """
    outputs, _ = made(3)
    # As sure as can be.
    outputs["logits"][0] = torch.tensor([200.0, 0, 0, 0])
    truth = torch.tensor([0, 2, 1])

    if soft:
        shares = torch.tensor([[2 / 3, 1 / 3, 0, 0], [0, 0, 1, 0], [0.25] * 4]).double()
    else:
        shares = torch.eye(4)[truth]

    if soft or weights != [1.0] * 4:
        truth = shares * torch.tensor(weights).double()

    factor = (1 - outputs["logits"].softmax(1)) ** gamma
    wanted = plain(outputs["logits"], shares * torch.tensor(weights) * factor)
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
    learnt = shuffled(data, fold, plan)
    labels = data.utterances.labels[fold.train]
    sizes: Any = np.bincount(labels)
    theirs = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    shares = np.eye(4)[learnt.utterances.labels]

    if more == "soft_labels=true":
        shares = data.utterances.votes
        sizes = shares[fold.train].sum(0)
        theirs = sizes.sum() / 4 / sizes

    truth = TARGETS["class"].truth(learnt, plan.training, fold.train)
    assert truth is not None
    assert truth.numpy() == pytest.approx(shares * theirs)

    cui = np.array([(1 - 0.9) / (1 - 0.9**n) for n in sizes])
    training = replace(plan.training, class_weights="effective", effective_beta=0.9)
    truth = TARGETS["class"].truth(learnt, training, fold.train)
    assert truth is not None
    assert truth.numpy() == pytest.approx(shares * cui * sizes.sum() / (cui * sizes).sum())


def test_a_balanced_sampler_draws_the_classes_alike(store: Path) -> None:
    data, fold, _ = prepared(store, "mit")
    rows = fold.train
    drawn = Counter[int]()

    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        for batch in data.batches(rows, "utterance", 8, {}, generator, sampler="balanced"):
            assert np.isin(batch.utterances, rows).all()

            drawn.update(batch.truth.tolist())

    assert drawn.total() == 100 * len(rows)
    assert stats.chisquare(list(drawn.values())).pvalue > 0.001
    assert len(drawn) == 4
