"""Many runs at once: each gives what it gives alone, with dropout, in every fusion that can be
stacked.
"""

import copy
import weakref
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from msgspec import structs
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from ser.errors import Diverged, SerError, WrongUse
from ser.tests.small_models import ALIKE
from ser.train import fit_many as fit_many_module
from ser.train import stacked_runs as stacked_runs_module
from ser.train import train_jobs as train_jobs_module
from ser.train.cuda_graphs import Graphs
from ser.train.estimate import estimate
from ser.train.experiment import Experiment, Job, fit_groups, prepare, run_experiment, train_jobs
from ser.train.fit import fit, learning_rate, make_optimiser
from ser.train.fit_many import MAX_RUNS, can_train_together, fit_many
from ser.train.models import FUSIONS
from ser.train.models.batch import Batch, Sequences
from ser.train.models.perspective import PerspectiveSettings
from ser.train.records import Epoch, to_json
from ser.train.run_folder import Run, run_name
from ser.train.stacked_runs import StackedRuns
from ser.train.stacked_updates import NO_LABEL
from ser.train.sweep.run import run_sweep, train_group
from ser.train.sweep.tasks import plan_sweep

STACKABLE = sorted(name for name, fusion in FUSIONS.items() if fusion.stacks)
SMALL = PerspectiveSettings(d_model=6, gru_hidden=4, heads=2, dropout=0.3)
# Turns of the dialogues; 30 is long enough for attention one dialogue at a time.
SIZES = [
    3,
    1,
    7,
    5,
    2,
    30,
]
RUNS = 2


def test_which_fusions_can_be_stacked():
    expected = {"audio:utterance", "text:utterance"}
    for position in ("ef", "mf", "lf", "lgf"):
        expected |= {f"{position}-add", f"{position}-concat", f"{position}-at"}

    assert set(STACKABLE) == expected


def made(name):
    """Models, the generators of their dropout, the data, its labels and its dialogues."""
    all_dims = {"audio": 9, "text": 7}
    dims = {modality: all_dims[modality] for modality in FUSIONS[name].inputs}
    models = []
    generators = []

    for seed in range(RUNS):
        torch.manual_seed(seed)
        models.append(FUSIONS[name].build(SMALL, dims, 4))
        generators.append(torch.Generator().set_state(torch.get_rng_state()))

    n = sum(SIZES)
    groups = np.split(np.random.default_rng(0).permutation(n), np.cumsum(SIZES)[:-1])
    values = {modality: torch.randn(n, dim) for modality, dim in dims.items()}

    return models, generators, values, torch.randint(4, (n,)), groups


def batch_of(values, labels, groups):
    rows = torch.from_numpy(np.concatenate(groups))
    inputs = {m: Sequences(x[rows], torch.ones_like(rows)) for m, x in values.items()}
    return Batch(inputs, torch.tensor([len(group) for group in groups]), truth=labels[rows])


def loss_of(outputs, labels, heads=("logits", "audio", "text")):
    return sum(F.cross_entropy(outputs[h], labels, reduction="sum") for h in heads if h in outputs)


def stack_of(models, values, generators):
    states = [generator.clone_state() for generator in generators]
    return StackedRuns(copy.deepcopy(models[0]), models, values, states)


def trained(stack, groups, chosen, labels):
    """Outputs, truth `[R, r]` and which rows are real.

    The masks are as torch's own dropout draws them, in the order of its calls.
    """
    turns = stacked_runs_module.turn_table(groups)
    batch = stacked_runs_module.batch_of(turns, torch.tensor(chosen))
    generators = stack.generators

    if stack.kept is None:
        stack.generators = [torch.Generator() for _ in generators]
        stack.draw(turns, *batch)
        stack.generators = generators

    _, rows, real = stack(turns, *batch)

    for run, generator in enumerate(generators):
        real_rows = rows[run][real[run]]
        for mask in stack.kept[run].split(2 * SMALL.gru_hidden, 1):
            drawn = torch.empty(len(real_rows), mask.shape[1])
            drawn.bernoulli_(1 - stack.dropout, generator=generator)
            mask[real_rows] = drawn > 0

    outputs, *_ = stack(turns, *batch, training=True)

    return outputs, torch.where(real, labels[rows], NO_LABEL), real


# Each position, each method and each other model; of the fused head alone, one.
TO_STACK = [*STACKABLE, "lgf-add fused", "ef-add fused", "mf-concat fused", "lf-at fused"]
STACKED_SLOWLY = {*ALIKE, "ef-add fused", "mf-concat fused", "lf-at fused"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in STACKED_SLOWLY else ())
        for name in TO_STACK
    ],
)
@pytest.mark.usefixtures("double")
def test_four_steps_of_a_stack_are_those_of_each_model_alone(name):
    """Other dialogues in every batch of every run, dropout on, in float64.

    With the loss of the fused head alone too.
    """
    name, _, fused = name.partition(" ")
    heads = ("logits",) if fused else ("logits", "audio", "text")
    models, generators, values, labels, groups = made(name)
    stack = stack_of(models, values, generators)
    stage = FUSIONS[name].stages[0]
    together = make_optimiser(stack.weights, stage, SMALL)
    apart = [make_optimiser(dict(model.named_parameters()), stage, SMALL) for model in models]
    random = np.random.default_rng(1)

    for update in range(4):
        chosen = np.stack([random.permutation(len(SIZES))[:4] for _ in range(RUNS)])
        outputs, truth, real = trained(stack, groups, chosen, labels)
        losses = []
        for run in range(RUNS):
            of_run = {head: logits[run] for head, logits in outputs.items()}
            losses.append(loss_of(of_run, truth[run], heads))

        together.zero_grad()
        sum(losses).backward()
        gradients = {}
        for weight_name, weight in stack.weights.items():
            if weight.grad is not None:
                gradients[weight_name] = weight.grad.clone()

        together.param_groups[0]["lr"] = learning_rate(SMALL, update)
        together.step()

        for run, (model, optimiser) in enumerate(zip(models, apart, strict=True)):
            batch = batch_of(values, labels, [groups[i] for i in chosen[run]])
            torch.set_rng_state(generators[run].get_state())
            alone = model.train()(batch)
            generators[run].set_state(torch.get_rng_state())
            optimiser.zero_grad()
            loss_of(alone, batch.truth, heads).backward()

            for n, weight in model.named_parameters() if update == 0 else ():
                if weight.grad is not None:
                    torch.testing.assert_close(
                        gradients[n][run], weight.grad, rtol=1e-12, atol=1e-12
                    )

            assert alone.keys() == outputs.keys()

            for head, logits in alone.items():
                torch.testing.assert_close(outputs[head][run, real[run]], logits, rtol=0, atol=1e-9)

            optimiser.param_groups[0]["lr"] = learning_rate(SMALL, update)
            optimiser.step()

    for run, model in enumerate(models):
        for weight_name, weight in model.named_parameters():
            torch.testing.assert_close(stack.weights[weight_name][run], weight, rtol=0, atol=1e-9)


def test_a_run_that_is_no_number_leaves_the_others_alone():
    models, generators, values, labels, groups = made("lgf-add")

    def gradients(poison):
        stack = stack_of(models, values, generators)
        with torch.no_grad():
            stack.weights["features.audio.weight"][0] *= poison

        outputs, truth, _ = trained(stack, groups, [[0, 1, 2], [3, 4, 5]], labels)
        sum(
            loss_of({h: x[r] for h, x in outputs.items()}, truth[r]) for r in range(RUNS)
        ).backward()

        return {name: weight.grad for name, weight in stack.weights.items()}

    clean = gradients(1.0)
    poisoned = gradients(float("nan"))
    assert poisoned["features.audio.weight"][0].isnan().any()

    for name, grad in clean.items():
        assert torch.equal(grad[1:], poisoned[name][1:]), name


# The loop
# ---------------------------------------------------------------------------------

OPTIONS = ("d_model=16", "gru_hidden=8", "heads=2", "batch_size=2")


def experiment(store: Path, out: Path, *more: str, **options) -> Experiment:
    asked = {
        "features": "is13+bert",
        "fusion": "lgf-add",
        "folds": 1,
        "seeds": 3,
        "epochs": 4,
        "device": "cpu",
    }
    return Experiment(**{**asked, "store": store, "out": out, "set": (*OPTIONS, *more), **options})


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "perspective", "select": "best-test"},
        pytest.param({"fusion": "ef-add", "select": "last"}, marks=pytest.mark.slow),
        {"fusion": "audio", "features": "is13"},
        {
            "more": (
                "shuffle_labels=true",
                "reduction=mean",
                "select_score=macro_f1",
                "focal_gamma=1",
            )
        },
        {"precision": "bf16"},
        {"epochs": 9, "more": ("patience=1", "lr=0.02")},
        {"fusion": "lgf-add", "losses": True},
        pytest.param({"fusion": "ef-concat", "losses": True}, marks=pytest.mark.slow),
        pytest.param({"fusion": "mf-at", "losses": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_seeds_and_losses_trained_at_once_give_what_each_gives_alone(store, tmp_path, options):
    options = {"losses": False, "epochs": 3, **options}
    both = options.pop("losses")
    jobs = prepare(experiment(store, tmp_path, "dropout=0", *options.pop("more", ()), **options))
    data = jobs[0].data
    fold = jobs[0].fold
    plans = [job.config for job in jobs]
    plans[1] = replace(plans[1], loss="perspective") if both else plans[1]

    assert can_train_together(data, plans[0])
    assert len(plans) == 3

    loose = 2e-2 if plans[0].precision == "bf16" else 1e-4
    heard = [[] for _ in plans]
    found = fit_many(data, fold, plans, [lines.append for lines in heard])

    for plan, together, lines in zip(plans, found, heard, strict=True):
        alone = fit(data, fold, plan)
        ours = history(together)
        theirs = history(alone)
        assert ours["loss"].tolist() == pytest.approx(theirs["loss"].tolist(), rel=loose)
        assert ours["loss"].tolist() == [line.loss for line in lines]

        torch.manual_seed(plan.seed)
        start = plan.fusion.build(plan.settings, data.dims, 4).state_dict()
        still = unchanged(together, start)
        idle = unchanged(alone, start)
        # With the early and middle fusions the branches' own layers behind it, with the single
        # loss.
        assert still == idle
        assert bool(idle) == (plan.loss == "single" and plan.fusion.name[:2] in ("ef", "mf"))

        if plan.precision == "bf16":
            # A rounding more or less decides which epoch is the best.
            continue

        pandas.testing.assert_frame_equal(
            ours[["wa", "ua", "kept"]], theirs[["wa", "ua", "kept"]], check_exact=True
        )
        logits = together.predict(data, fold.test, plan)["logits"]
        logits_alone = alone.predict(data, fold.test, plan)["logits"]
        np.testing.assert_allclose(logits, logits_alone, atol=2e-3)


def history(fitted):
    """A row for each epoch."""
    return pandas.DataFrame([structs.asdict(epoch) for epoch in fitted.history])


def unchanged(fitted, start):
    """The weights that are still as they were at the start."""
    weights = fitted.model.state_dict()
    return {name for name, weight in weights.items() if torch.equal(weight, start[name])}


def test_what_dropout_keeps_depends_on_the_seed_and_on_no_other_run(store, tmp_path):
    jobs = prepare(experiment(store, tmp_path, "dropout=0.4"))
    plans = [job.config for job in jobs]
    drawn = []
    original = StackedRuns.draw

    def draw(stack, *args):
        original(stack, *args)
        drawn.append(stack.kept.clone())

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StackedRuns, "draw", draw)
        together = fit_many(jobs[0].data, jobs[0].fold, plans)
        [alone] = fit_many(jobs[0].data, jobs[0].fold, plans[1:2])

    epochs = plans[0].settings.epochs
    assert [line.loss for line in alone.history] == pytest.approx(
        [x.loss for x in together[1].history], rel=1e-4
    )
    for of_three, of_one in zip(drawn[:epochs], drawn[epochs:], strict=True):
        assert torch.equal(of_three[1], of_one[0])

    different = torch.cat([drawn[0], drawn[1]]).flatten(1).float()
    assert len(torch.unique(different, dim=0)) == 2 * len(plans), "another seed, another epoch"
    assert different.mean(1).sub(0.6).abs().max() < 0.02


def test_inputs_that_do_not_fit_on_a_gpu_are_trained_one_after_the_other(store, tmp_path):
    """Streamed ones too: their values are not there to be taken from."""
    jobs = prepare(experiment(store, tmp_path, memory="0.025MB"))
    data = jobs[0].data
    fold = jobs[0].fold
    plans = [job.config for job in jobs]

    assert any(one.streamed for one in data.inputs.values())
    assert fit_many(data, fold, plans) == []

    wild = replace(plans[1], settings=replace(plans[1].settings, lr=1e38, weight_decay=1e30))
    told = {job.name: [] for job in jobs}
    changed = [jobs[0], replace(jobs[1], config=wild), jobs[2]]
    first, diverged, last = train_jobs(
        changed, tmp_path, on_epoch=lambda job, line: told[job.name].append(line.loss)
    )

    for job, run in ((jobs[0], first), (jobs[2], last)):
        alone = fit(data, fold, job.config).history[-1].loss
        assert run.result.history[-1].loss == alone == told[job.name][-1]

    assert isinstance(diverged, Diverged)
    assert Run(tmp_path / jobs[1].name).diverged

    [again] = train_jobs([jobs[1]], tmp_path)
    assert not again.diverged


def test_what_cannot_be_stacked_is_trained_alone(store, tmp_path):
    def jobs(*more, on="cuda:0", **options):
        asked = experiment(store, tmp_path, *more, **{"folds": "all", "seeds": 2} | options)
        return [replace(job, config=replace(job.config, device=on)) for job in prepare(asked)]

    def grouped(jobs):
        numbers = {id(job): number for number, job in enumerate(jobs)}
        return [[numbers[id(job)] for job in group] for group in fit_groups(jobs)]

    assert grouped(jobs(on="cpu")) == [[i] for i in range(10)]
    assert grouped(jobs()) == [[i, i + 5] for i in range(5)]
    assert grouped([*jobs(), *jobs(loss="perspective")]) == [
        [i, i + 5, i + 10, i + 15] for i in range(5)
    ]
    assert grouped([*jobs(), *jobs("lr=0.5")]) == [
        [i + j, i + j + 5] for j in (0, 10) for i in range(5)
    ]
    assert [len(group) for group in fit_groups(jobs(folds=1, seeds=2 * MAX_RUNS + 3))] == [
        MAX_RUNS,
        MAX_RUNS,
        3,
    ]

    for setting in (
        "released=true",
        "soft_labels=true",
        "clip_norm=1",
        "refit=true",
        "class_weights=inverse",
    ):
        assert grouped(jobs(setting)) == [[i] for i in range(10)], setting


def test_run_folders_are_those_of_single_runs(store, tmp_path):
    """Also where one was begun by itself: nothing goes on from its state."""
    jobs = prepare(experiment(store, tmp_path / "together", "dropout=0"))
    names = [run_name(job.record) for job in jobs]
    (tmp_path / "together" / names[0]).mkdir(parents=True)

    for file in ("state.safetensors", "log"):
        (tmp_path / "together" / names[0] / file).write_text("of a run alone")

    [before] = train_jobs(jobs[1:2], tmp_path / "together", True)
    stamp = (before.path / "result.json").stat().st_mtime_ns
    heard = []
    runs = train_jobs(
        jobs, tmp_path / "together", True, lambda job, epoch: heard.append((job.name, epoch.epoch))
    )

    assert [run.path.name for run in runs] == names
    assert (before.path / "result.json").stat().st_mtime_ns == stamp, (
        "a finished run is not trained again"
    )
    assert heard == [(names[i], epoch) for epoch in (1, 2, 3, 4) for i in (0, 2)]

    for alone, together in zip(
        run_experiment(experiment(store, tmp_path / "alone", "dropout=0")), runs, strict=True
    ):
        assert sorted(f.name for f in alone.path.iterdir()) == sorted(
            f.name for f in together.path.iterdir()
        )
        assert alone.path.name == together.path.name == run_name(together.config)
        assert to_json(alone.result).keys() == to_json(together.result).keys()
        assert (alone.result.ua, alone.result.epoch) == (
            together.result.ua,
            together.result.epoch,
        )
        assert alone.predictions()["predicted"] == together.predictions()["predicted"]
        # One line an epoch, and which one is kept.
        assert len((together.path / "log").read_text().splitlines()) == 4 + 1


def test_a_loss_that_is_no_number_is_told_with_epoch_and_batch(store, tmp_path):
    jobs = prepare(experiment(store, tmp_path, "lr=1e38", "weight_decay=1e30"))
    alone = fit(jobs[0].data, jobs[0].fold, jobs[0].config)
    faults = train_jobs(jobs, tmp_path, True)
    assert all(isinstance(fault, Diverged) for fault in faults)

    where = alone.fault.partition(" in ")[2]
    assert str(faults[0]).endswith(where), "the same epoch and batch"

    folder = tmp_path / run_name(jobs[0].record)
    assert str(faults[0]).startswith(str(folder))
    assert all(value.isfinite().all() for value in load_file(folder / "model.safetensors").values())
    assert not (folder / "result.json").exists()
    assert where in (folder / "log").read_text()


@pytest.mark.parametrize("at_once", [False, True])
def test_an_estimate_takes_a_few_steps_and_no_step_that_diverges(
    store, tmp_path, monkeypatch, at_once
):
    monkeypatch.setattr(Job, "stacked", at_once)
    one, four = (
        estimate(prepare(experiment(store, tmp_path / "no", epochs=n))) for n in (25, 1_000_000)
    )
    assert 0 < 400 * one.seconds < four.seconds, "however many epochs there are to come"
    assert (
        estimate(prepare(experiment(store, tmp_path, "lr=1e38", "weight_decay=1e30"))).seconds > 0
    )
    assert not (tmp_path / "no").exists()


def test_where_memory_ends_fewer_are_trained_at_once(store, tmp_path, monkeypatch):
    """What torch does on a GPU that is too small; here its words are ours, since a CPU has more to
    give.
    """
    tried = []
    held = []

    def small_gpu(data, fold, plans, on_epoch):
        tried.append(len(plans))
        assert not any(ref() for ref in held), "what did not fit is gone before the next try"

        if len(plans) > most:
            model = torch.nn.Module()
            # The two know each other.
            model.hook = model.forward = model.eval
            held.append(weakref.ref(model))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

        return fit_many(data, fold, plans, on_epoch)

    monkeypatch.setattr(train_jobs_module, "fit_many", small_gpu)
    jobs = prepare(experiment(store, tmp_path, seeds=5, epochs=1))
    most = 1
    runs = train_jobs(jobs, tmp_path, False)

    assert tried == [5, 2, 1, 1, 1, 1, 1]
    assert all(run.finished for run in runs)
    assert "started anew with half as many" in (runs[0].path / "log").read_text()

    most = 0

    with pytest.raises(SerError, match="memory of cpu ran out while training lgf-add"):
        train_jobs(prepare(experiment(store, tmp_path, "lr=0.5", epochs=1)), tmp_path, False)


def test_deterministic_runs_are_the_same_runs_unless_something_has_no_such_way(
    store, tmp_path, monkeypatch
):
    plain, exact = (
        prepare(experiment(store, tmp_path, deterministic=on))[0] for on in (False, True)
    )
    assert plain.name == exact.name
    assert exact.config.deterministic
    assert [job.record.provenance.asked["deterministic"] for job in (plain, exact)] == [
        False,
        True,
    ]

    refused = RuntimeError("nll_loss2d does not have a deterministic implementation, but you set …")
    monkeypatch.setattr(train_jobs_module, "fit", Mock(side_effect=refused))

    with pytest.raises(
        WrongUse,
        match="--deterministic: lgf-add has an operation without a deterministic form on cpu",
    ):
        train_jobs([exact], tmp_path, False)


def test_apples_gpu_trains_in_float32(store, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    [job, *_] = prepare(experiment(store, tmp_path, device="auto"))
    assert job.config.device == "mps"
    assert not job.stacked
    assert job.name == prepare(experiment(store, tmp_path))[0].name

    with pytest.raises(WrongUse, match="bf16 is for a CPU and for CUDA"):
        prepare(experiment(store, tmp_path, device="mps", precision="bf16"))


def test_a_sweep_trains_a_bundle_at_once(store, tmp_path, monkeypatch):
    monkeypatch.setattr(Job, "stacked", True)
    from ser.train.sweep.recipe import read_recipe

    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        '[[cell]]\nname = "x"\nfeatures = "is13+bert"\nfusion = "lgf-add"\nseeds = 2\n'
    )
    asked = {"store": store, "device": "cpu", "epochs": 3, "folds": 1, "set": OPTIONS}
    planned = plan_sweep(read_recipe(recipe, out=tmp_path / "runs", **asked))
    outcomes = train_group(planned.tasks)

    assert outcomes == [(task, None) for task in planned.tasks]
    assert not planned.open_tasks

    cell = (
        "{}out = '{}'\n[[cell]]\nname = 'y'\nfeatures = 'is13+bert'\n"
        "fusion = 'lgf-add'\nloss = 'perspective'\n"
    )
    recipe.write_text(
        cell.format(recipe.read_text(), tmp_path / "some") + f"out = '{tmp_path / 'others'}'\n"
    )
    planned = plan_sweep(read_recipe(recipe, **asked))
    assert [fault for _, fault in run_sweep(planned)] == [None] * 3
    assert not planned.open_tasks


# CUDA graphs, without a GPU
# ------------------------------------------------------------------------------------------


class Counting(TorchDispatchMode):
    """The operations that are started, in order."""

    def __init__(self):
        super().__init__()
        self.done = []

    @classmethod
    def _should_skip_dynamo(cls):
        """No: torch would import its compiler, seconds of CPU, to keep it out of this class."""
        return False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.done.append((function, args, kwargs or {}, result))
        return result


def recorded(graphs, function):
    """What a CUDA graph does: the same operations again, on the same tensors, whatever they hold by
    then.
    """
    with _disable_current_modes(), Counting() as counting:
        result = function()

    names = {function.name() for function, *_ in counting.done}
    assert not names & {
        "aten::_local_scalar_dense",
        "aten::nonzero",
        "aten::lift_fresh",
        "aten::bernoulli_.float",
    }

    first = [result]

    def replay():
        now = {}

        def mapped(x):
            return now.get(id(x), x)

        with _disable_current_modes(), torch.no_grad():
            for function, args, kwargs, then in counting.done if not first else ():
                again = function(*tree_map(mapped, args), **tree_map(mapped, kwargs))
                now.update(
                    (id(x), y) for x, y in zip(tree_leaves(then), tree_leaves(again), strict=True)
                )

            result.copy_(mapped(result))

        # While it was recorded it has run.
        first.clear()

    return SimpleNamespace(replay=replay), result


def as_on_a_gpu(monkeypatch, captured):
    monkeypatch.setattr(fit_many_module, "GRAPHS", ("cpu",))
    monkeypatch.setattr(Graphs, "captured", captured)


def updated(store, out, fusion, *more, runs=3, **options):
    """Runs with both losses, and what their logs are told."""
    asked = {"fusion": fusion, "seeds": runs, "select": "best-test", "epochs": 2, **options}
    jobs = prepare(experiment(store, out, *more, **asked))
    both = ("single", "perspective") if "-" in fusion else ("single",)
    plans = [replace(job.config, loss=both[i % len(both)]) for i, job in enumerate(jobs)]
    told = []

    return fit_many(jobs[0].data, jobs[0].fold, plans, [told.append] * len(plans)), told


@pytest.mark.parametrize("fusion", ["lgf-at", "ef-add", "audio:utterance"])
def test_a_replayed_update_is_the_update_of_whatever_batch_is_there(
    store, tmp_path, monkeypatch, fusion
):
    more = () if "-" in fusion else ("standardise_audio=false",)
    options = {} if "-" in fusion else {"features": "is13"}
    as_on_a_gpu(monkeypatch, recorded)
    graphs, told = updated(store, tmp_path, fusion, *more, **options)
    as_on_a_gpu(
        monkeypatch,
        Mock(side_effect=RuntimeError("CUDA driver version is insufficient\nfor anything")),
    )
    steps, why = updated(store, tmp_path, fusion, *more, **options)

    for one, other in zip(graphs, steps, strict=True):
        assert [line.loss for line in one.history] == [line.loss for line in other.history]
        assert [line.ua for line in one.history] == [line.ua for line in other.history]

        for name, weight in other.model.state_dict().items():
            assert torch.equal(one.model.state_dict()[name], weight), name

    assert {type(line) for line in told} == {Epoch}

    [line] = {line for line in why if isinstance(line, str)}
    assert "cannot be captured" in line
    assert line.endswith("(CUDA driver version is insufficient)")


def test_a_capture_that_breaks_leaves_the_stream_as_it_was_and_its_first_fault_in_the_logs(
    monkeypatch,
):
    """The end of torch's capture then fails too, before it sets the stream back."""
    streams = ["default"]
    modes = []
    told = []

    @contextmanager
    def entered(stream, breaks=False):
        before, streams[0] = streams[0], stream

        try:
            yield
        finally:
            if breaks:
                raise RuntimeError("operation failed due to a previous error during capture")

            streams[0] = before

    def broken(graph, pool, capture_error_mode):
        modes.append(capture_error_mode)
        return entered("capture", breaks=True)

    def function():
        if streams[0] == "capture":
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.ones(1)

    there = {"stream": entered, "current_stream": lambda: streams[0], "graph": broken}
    for name, found in {**there, "CUDAGraph": object, "graph_pool_handle": object}.items():
        monkeypatch.setattr(torch.cuda, name, found)

    graphs = Graphs(True, [told.append])
    assert [graphs("key", function).item() for _ in range(3)] == [1, 1, 1]
    assert streams == ["default"] and modes == ["thread_local"], (
        "tried once; other threads may use the GPU"
    )

    [line] = told
    assert line.endswith("(operation not permitted when stream is capturing)")


def test_at_most_forty_operations_an_update_are_not_captured(store, tmp_path, monkeypatch):
    """Runs with four updates in an epoch (Perspective's Table 2: six), evaluation and all; when all
    is captured.

    Views are not counted; what the CPU does by itself is.
    """
    as_on_a_gpu(monkeypatch, recorded)
    done = []

    for epochs in (2, 3):
        with Counting() as counting:
            updated(store, tmp_path, "lgf-add", runs=8, epochs=epochs)

        done.append(
            Counter(function.name() for function, *_ in counting.done if not function.is_view)
        )

    taken = {
        args[0].shape for function, args, *_ in counting.done if function.name() == "aten::bmm"
    }
    assert (8, 128, 64) in taken, (
        "24 and 16 values are padded, as 6373 are, to what products are fast with"
    )

    more = done[1] - done[0]
    # Of the learning rate.
    updates = more["aten::fill_.Scalar"]
    assert updates == 4 and more.total() <= 40 * updates, more.most_common()
