"""The loop: what is learnt, what is not seen, what is kept, and the same bytes again."""

from collections.abc import Callable
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ser.cache.store import open_store
from ser.errors import WrongUse
from ser.tests.tiny_store import FEATURES, add_feature, make_manifest, make_rows, make_store
from ser.train.data import Dataset, Inputs, load_dataset
from ser.train.fit import (
    Diverged,
    Epoch,
    Fitted,
    State,
    fit,
    fit_standardizers,
    make_optimiser,
    predict,
    set_rate,
    snapshot,
)
from ser.train.models import Fusion, Stage, setting
from ser.train.scores import scores
from ser.train.settings import TrainConfig, parse_settings
from ser.train.splits import Cut, Fold, make_folds

SMALL = {
    "mit": ("hubert+mpnet", ("d_model=16", "heads=2", "queries=3", "lr=0.003", "epochs=3")),
    "lgf-add": ("is13+bert", ("d_model=16", "gru_hidden=8", "heads=2", "epochs=3", "batch_size=2", "lr=0.01")),
    "audio": ("is13", ("d_model=16", "gru_hidden=8", "heads=2", "epochs=3", "batch_size=2", "lr=0.01")),
    "cnn": ("logmel", ("frames=48", "channels=2", "epochs=2")),
    "bc-lstm": ("is13+bert", ("lstm_hidden=8", "dense=8", "epochs=2", "batch_size=2")),
}

SMALL |= dict.fromkeys(("ef-add", "mf-concat", "lf-at"), SMALL["lgf-add"])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("tiny")).path


def prepared(store: Path, fusion: str, *more: str, **plan: Any) -> tuple[Dataset, Fold, TrainConfig]:
    features, small = SMALL[fusion]
    data, found = load_dataset(store, features, fusion)
    settings, training = parse_settings(found, (*small, *more))
    dev = "next" if plan.get("select", "val") == "val" else "none"
    fold = make_folds("session-out", data.utterances, Cut(dev=dev))[0]
    return data, fold, TrainConfig(found, settings, training, **plan)


def weights(fitted: Fitted) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in snapshot(fitted.model).items()}


@pytest.mark.parametrize("fusion", ["mit", "lgf-add", "ef-add", "audio", "cnn", "bc-lstm"])
def test_the_same_seed_gives_the_same_bytes(store: Path, fusion: str) -> None:
    first, again = (fit(*prepared(store, fusion)) for _ in range(2))
    assert weights(first) == weights(again)
    assert weights(first) != weights(fit(*prepared(store, fusion, seed=1)))


def test_what_happened_before_does_not_matter(store: Path) -> None:
    first = weights(fit(*prepared(store, "lgf-add")))
    torch.manual_seed(99)
    torch.rand(7)
    assert first == weights(fit(*prepared(store, "lgf-add")))


@pytest.mark.parametrize("fusion", ["mit", "lgf-add", "bc-lstm"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_going_on_from_a_state_gives_the_same_bytes(store: Path, fusion: str, at: int) -> None:
    whole: list[Epoch] = []
    states: list[State] = []
    keep: Callable[[Callable[[], State]], None] = lambda take: states.append(take())  # noqa: E731
    expected = fit(*prepared(store, fusion), on_epoch=whole.append, on_state=keep)
    rest: list[Epoch] = []
    resumed = fit(*prepared(store, fusion), on_epoch=rest.append, resume=states[at - 1])
    assert weights(resumed) == weights(expected)
    assert [(e.stage, e.epoch, e.loss, e.ua) for e in rest] == [(e.stage, e.epoch, e.loss, e.ua) for e in whole[at:]]
    assert resumed.epoch == expected.epoch


@pytest.mark.parametrize("select", ["val", "last"])
def test_poison_in_the_test_part_changes_nothing_in_training(store: Path, select: str) -> None:
    for fusion in ("lgf-add", "mit", "cnn"):
        data, fold, plan = prepared(store, fusion, select=select)
        clean = fit(data, fold, plan)
        poisoned, _, _ = prepared(store, fusion)
        poisoned.utterances.labels[fold.test] = 3 - poisoned.utterances.labels[fold.test]
        for modality, stored in data.inputs.items():
            values = stored.values.clone()
            for row in fold.test:
                values[stored.offsets[row] : stored.offsets[row + 1]] = 1e4
            poisoned.inputs[modality] = Inputs(values, stored.offsets)  # type: ignore[index]
        bad = fit(poisoned, fold, plan)
        assert weights(bad) == weights(clean), fusion
        assert [line["loss"] for line in bad.history] == [line["loss"] for line in clean.history]
        assert predict(bad.model, poisoned, fold.test, plan, bad.scaling)["logits"].tobytes() != (
            predict(clean.model, data, fold.test, plan, clean.scaling)["logits"].tobytes()
        ), "the poison does reach the test"


def test_poison_in_the_training_part_does_change_training(store: Path) -> None:
    data, fold, plan = prepared(store, "lgf-add")
    clean = weights(fit(data, fold, plan))
    data.utterances.labels[fold.train[0]] = 3 - data.utterances.labels[fold.train[0]]
    assert weights(fit(data, fold, plan)) != clean


def accuracy(store: Path, fusion: str, *more: str) -> float:
    data, fold, plan = prepared(store, fusion, *more, "epochs=30", select="last")
    fitted = fit(data, fold, plan)
    predicted = predict(fitted.model, data, fold.test, plan, fitted.scaling)["logits"].argmax(1)
    return scores(data.utterances.labels[fold.test].tolist(), predicted.tolist(), data.utterances.classes)["ua"]


def test_learns_and_falls_to_chance_with_shuffled_labels(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", turns=48).path
    assert accuracy(store, "lgf-add") > 0.8
    assert accuracy(store, "lgf-add", "shuffle_labels=true") < 0.45


def test_selection_keeps_the_epoch_that_it_names(store: Path) -> None:
    for select in ("val", "last", "best-test"):
        data, fold, plan = prepared(store, "lgf-add", "epochs=6", "lr=0.05", select=select)
        fitted = fit(data, fold, plan)
        uas = [line["ua"] for line in fitted.history]
        if select == "last":
            assert fitted.epoch == 6 and uas == [None] * 6
            continue
        assert fitted.epoch == int(np.argmax(uas)) + 1  # the first of equals
        watched = fold.dev if select == "val" else fold.test
        predicted = predict(fitted.model, data, watched, plan, fitted.scaling)["logits"].argmax(1)
        labels = data.utterances.labels[watched]
        assert scores(labels.tolist(), predicted.tolist(), data.utterances.classes)["ua"] == max(uas)


def test_val_without_dev_is_refused(store: Path) -> None:
    data, fold, plan = prepared(store, "lgf-add", select="last")
    with pytest.raises(WrongUse, match="needs a dev part"):
        fit(data, fold, replace(plan, select="val"))


def test_predictions_come_in_the_order_asked(store: Path) -> None:
    data, fold, plan = prepared(store, "lgf-add")
    fitted = fit(data, fold, plan)
    rows = np.random.default_rng(0).permutation(fold.test)
    found = predict(fitted.model, data, rows, plan, fitted.scaling)
    plain = predict(fitted.model, data, fold.test, plan, fitted.scaling)
    assert set(found) == {"logits", "audio", "text"}
    for row, probabilities in zip(rows, found["logits"], strict=True):
        assert np.allclose(probabilities, plain["logits"][np.flatnonzero(fold.test == row)[0]], atol=1e-6)
    assert np.allclose(found["logits"].sum(1), 1, atol=1e-6)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_weights(tmp_path: Path) -> None:
    manifest = make_manifest()
    store = open_store(tmp_path / "s", create=True)
    store.put_manifest(manifest)
    rows = make_rows(manifest, "is13")
    add_feature(store, manifest, "is13", rows)
    data, fusion = load_dataset(tmp_path / "s", "is13", "audio")
    settings, training = parse_settings(fusion, ("epochs=4", "batch_size=2", "d_model=16", "standardise_audio=false"))
    fold = make_folds("session-out", data.utterances, Cut(dev="none"))[0]
    plan = TrainConfig(fusion, settings, training, select="last")
    two_epochs = fit(data, fold, replace(plan, settings=replace(settings, epochs=2)))

    def poison(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            data.inputs["audio"].values[fold.train] = torch.nan

    with pytest.raises(Diverged, match=r"became nan in epoch 3, batch 1 \(stage train\)") as caught:
        fit(data, fold, plan, on_epoch=poison)
    assert {name: value.numpy().tobytes() for name, value in caught.value.kept.items()} == weights(two_epochs)


def test_the_rate_decays_as_the_paper_says() -> None:
    model = torch.nn.Linear(2, 2)
    settings, _ = parse_settings(FUSION_WITH_DECAY, ())
    optimiser = make_optimiser(dict(model.named_parameters()), Stage("train"), settings)
    rates = []
    for _ in range(4):
        set_rate(optimiser, settings)
        rates.append(optimiser.param_groups[0]["lr"])
        model(torch.ones(1, 2)).sum().backward()
        optimiser.step()
    assert rates == pytest.approx([0.1 / (1 + 0.5 * t) for t in range(4)])


def _decaying() -> Fusion:
    made = make_dataclass(
        "Made",
        [
            ("epochs", int, setting(1, "a", "b")),
            ("batch_size", int, setting(1, "a", "b")),
            ("lr", float, setting(0.1, "a", "b")),
            ("lr_decay", float, setting(0.5, "a", "b")),
            ("weight_decay", float, setting(0.0, "a", "b")),
        ],
        frozen=True,
    )
    return Fusion("made", "test", made, ("audio",), "vector", lambda settings, dims, classes: torch.nn.Identity())


FUSION_WITH_DECAY = _decaying()


def test_stages_train_only_what_they_name(store: Path) -> None:
    data, fold, plan = prepared(store, "bc-lstm", "epochs=1")
    initial: dict[str, torch.Tensor] = {}
    seen: list[tuple[str, set[str]]] = []
    stages = plan.fusion.stages
    assert len(stages) > 1

    def changed(take: Callable[[], State]) -> None:
        state = take()
        now = {n.removeprefix("model."): t for n, t in state.tensors.items() if n.startswith("model.")}
        before = initial or dict.fromkeys(now)
        moved = {n for n, t in now.items() if before[n] is None or not torch.equal(t, before[n])}
        seen.append((stages[state.stage].name, moved))
        initial.update(now)

    fit(data, fold, plan, on_state=changed)
    for stage, (name, moved) in zip(stages[1:], seen[1:], strict=True):
        assert stage.name == name and moved
        assert all(weight.startswith(stage.trains) for weight in moved)


def test_frozen_parts_have_no_gradients(store: Path) -> None:
    data, fold, plan = prepared(store, "bc-lstm", "epochs=1")
    fitted = fit(data, fold, plan)
    [last] = plan.fusion.stages[-1:]
    for name, weight in fitted.model.named_parameters():
        assert weight.requires_grad == name.startswith(last.trains), name


@pytest.mark.parametrize("fusion", ["ef-add", "mf-concat", "lf-at", "lgf-add", "bc-lstm"])
def test_heads_that_nobody_asks_for_change_nothing_in_those_that_are_asked_for(store: Path, fusion: str) -> None:
    data, fold, plan = prepared(store, fusion)
    model = plan.fusion.build(plan.settings, data.dims, len(data.utterances.classes))
    every = predict(model, data, fold.test, plan, fit_standardizers(data, fold, plan.settings))
    assert set(every) == {"logits", "audio", "text"}
    alone = predict(
        model, data, fold.test, plan, fit_standardizers(data, fold, plan.settings), heads=frozenset({"logits"})
    )
    assert np.allclose(alone["logits"], every["logits"], atol=1e-6)
    assert ("audio" in alone) == (fusion in ("lgf-add", "bc-lstm"))  # there the fused logits are made of them


@pytest.mark.parametrize("fusion", ["mit", "lgf-add"])
def test_bfloat16_stays_close_to_float32(store: Path, fusion: str) -> None:
    data, fold, plan = prepared(store, fusion, "dropout=0", "epochs=2")
    exact, rounded = (fit(data, fold, replace(plan, precision=precision)) for precision in ("float32", "bf16"))
    assert weights(exact) != weights(rounded)
    assert all(weight.dtype == torch.float32 for weight in rounded.model.parameters())
    for one, other in zip(exact.history, rounded.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.02)
    first, second = (
        predict(fitted.model, data, fold.test, replace(plan, precision=precision), fitted.scaling)["logits"]
        for fitted, precision in ((exact, "float32"), (rounded, "bf16"))
    )
    assert np.abs(first - second).max() < 0.05
    assert weights(rounded) == weights(fit(data, fold, replace(plan, precision="bf16")))


def test_dims_fit_the_made_up_features(store: Path) -> None:
    data, _, _ = prepared(store, "mit")
    assert data.dims == {"audio": FEATURES["hubert"][2], "text": FEATURES["mpnet"][2]}
