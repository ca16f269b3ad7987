"""What a GPU is given, tried without one: see `pretend_device`. Its numbers are the CPU's, and
nobody waits for it.
"""

import copy
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser.tests.command_line import ser
from ser.tests.pretend_device import DEVICE, Gpu
from ser.tests.small_models import CASES, DIFFERENT, build, make_batch, without
from ser.train import fit_many, flops
from ser.train.config import TrainConfig
from ser.train.cuda_graphs import Graphs
from ser.train.data.folds import Fold
from ser.train.data.loading import load_dataset
from ser.train.experiment import prepare
from ser.train.fit import Fitted, fit, make_optimiser, training_loss
from ser.train.models.batch import Batch, on_device
from ser.train.options import Experiment
from ser.train.settings import parse_settings

MOST = 450  # operations of an update of MIT that a GPU's host can start in 5 ms
# Beside nothing.
HIDDEN = {"some": [True, False, False, True], "all": [True] * 4}
CLOSE = {"float32": 1e-5, "bf16": 0.2}  # of the largest number
# Outputs by head, and gradients by weight.
Step = tuple[dict[str, Tensor], dict[str, Tensor | None]]
pytestmark = pytest.mark.filterwarnings(
    "ignore:Warning only once for all operators"
)  # kernels that the device replaces


def step(model: nn.Module, batch: Batch, bf16: bool) -> Step:
    """The outputs and the gradients of one update."""
    model.zero_grad()
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
        outputs = {head: x.float() for head, x in model(batch).items()}
    sum(F.cross_entropy(x, batch.truth, reduction="sum") for x in outputs.values()).backward()
    return outputs, {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize(
    "case", [*DIFFERENT, "audio:frame on layers", "lgf-at on layers", "superb on layers"]
)
def test_a_step_gives_the_numbers_of_the_cpu(case: str) -> None:
    torch.manual_seed(0)
    model = build(case)
    there = copy.deepcopy(model)
    # Longer than what a CPU pads.
    whole = make_batch(case, [5, 26, 1, 9])

    batches = {"nothing": whole}
    # What MIT's variants hide, MIT does.
    if CASES[case].hide and "no-" not in case:
        for modality in CASES[case].inputs:
            for how, mask in HIDDEN.items():
                batches[f"{how} {modality}"] = without(whole, {modality: torch.tensor(mask)})
    expected = {hidden: step(model, batch, bf16=False) for hidden, batch in batches.items()}
    idle = idle_weights(expected["nothing"])

    # In bf16, where some is hidden there are no other dtypes.
    tried = [("float32", hidden) for hidden in batches]
    tried += [("bf16", hidden) for hidden in batches if not hidden.startswith("some")]

    found = {}
    with Gpu() as gpu:
        there.to(DEVICE)
        uploads = gpu.uploads["waiting"]
        for precision, hidden in tried:
            batch = on_device(batches[hidden], DEVICE)
            found[precision, hidden] = gpu.read(step(there, batch, bf16=precision == "bf16"))
        assert gpu.uploads["waiting"] == uploads, "set_sync_debug_mode would tell of a wait"

    for (precision, hidden), step_there in found.items():
        what = f"{hidden} hidden: Adam leaves alone what has no gradient"
        assert idle_weights(expected[hidden]) == idle_weights(step_there) == idle, what

        outputs, grads = expected[hidden]
        outputs_there, grads_there = step_there
        pairs = [(x, outputs_there[head]) for head, x in outputs.items()]
        pairs += [(x, grads_there[name]) for name, x in grads.items() if x is not None]
        largest = 0.0
        if precision == "bf16":
            largest = max(float(x.detach().abs().max()) for x, _ in pairs)
        for here, elsewhere in pairs:
            assert elsewhere.dtype == torch.float32
            size = max(largest, float(here.detach().abs().max())) + 1e-3
            torch.testing.assert_close(elsewhere, here, rtol=0.0, atol=CLOSE[precision] * size)


def idle_weights(found: Step) -> set[str]:
    """The weights that no gradient reaches."""
    _, grads = found
    return {name for name, grad in grads.items() if grad is None}


def mit(store: Path, *assignments: str, **how: Any) -> tuple[Any, TrainConfig, nn.Module]:
    """The tiny store's data for MIT, on the pretend device, at the settings of the paper but for
    `assignments`.
    """
    data, fusion = load_dataset(Experiment("hubert+mpnet", "mit", store))
    settings, training = parse_settings(fusion, assignments)
    plan = TrainConfig(fusion, settings, training, select="last", **how)
    torch.manual_seed(0)
    return data, plan, fusion.build(settings, data.dims, len(data.utterances.classes))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_an_update_of_mit_is_few_operations(store: Path, precision: str) -> None:
    """Forwards, backwards and Adam, of a batch of 8 at the paper's sizes but for the width."""
    data, plan, model = mit(store, "d_model=64", device="cuda:0", precision=precision)
    with Gpu() as gpu:
        model.to(DEVICE)
        assert data.on("cuda:0").inputs["audio"].values.dtype == torch.float16, (
            "what travels is as it is stored"
        )
        optimiser = make_optimiser(
            dict(model.named_parameters()), plan.fusion.stages[0], plan.settings
        )
        hide = partial(
            plan.fusion.hide, plan.settings, epoch=0, generator=torch.Generator().manual_seed(0)
        )
        size = plan.settings.batch_size
        for batch in data.on("cuda:0").batches(np.arange(16), "utterance", size, {}, hide=hide):
            with plan.autocast():
                outputs = {head: x.float() for head, x in model(batch).items()}
            loss = training_loss(outputs, batch.truth, plan, plan.fusion.stages[0])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            counted, sent = (
                gpu.operations.copy(),
                gpu.uploads.copy(),
            )  # of the second: the first makes Adam's moments
            gpu.operations.clear()
            gpu.uploads.clear()
    assert counted.total() <= MOST, counted.most_common()
    assert sent == {"at once": 1}, "the rows to take with their labels, and where they lie"


def test_predictions_come_in_few_batches_and_one_copy(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, plan, model = mit(store, "d_model=16", "heads=2", "queries=3", "batch_size=1")
    rows = np.random.default_rng(0).permutation(len(data.utterances))
    alone = Fitted(model, {}).predict(data, rows, plan)["logits"]
    with Gpu(downloads=1) as gpu:
        there = replace(plan, device="cuda:0")
        together = Fitted(model.to(DEVICE), {}).predict(data.on("cuda:0"), rows, there)["logits"]
    assert gpu.downloads == 1 and gpu.uploads["at once"] == -(-len(rows) // 64)
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_a_fit_gives_the_numbers_of_the_cpu(store: Path) -> None:
    data, plan, _ = mit(
        store,
        "d_model=16",
        "heads=2",
        "queries=3",
        "epochs=2",
        "dropout=0",
        "standardise_audio=true",
    )
    fold = Fold("1", np.arange(20), np.arange(20, 24), np.arange(0))
    here = fit(data, fold, replace(plan, select="val"))
    with Gpu(downloads=torch.inf):
        there = fit(data, fold, replace(plan, select="val", device="cuda:0"))
    for one, other in zip(here.history, there.history, strict=True):
        assert other.loss == pytest.approx(one.loss, abs=1e-5) and other.wa == one.wa


@pytest.mark.parametrize(
    ("fusion", "memory"),
    [("lgf-at", None), ("ef-add", None), ("ef-add", "0.025MB"), ("audio:utterance", None)],
)
def test_many_runs_give_the_numbers_of_the_cpu(
    store: Path, fusion: str, memory: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from vectors that are streamed to where they fit, the GPU."""
    monkeypatch.setattr(
        fit_many, "Generator", lambda device="cpu": torch.Generator()
    )  # CUDA's own does not exist here
    asked = Experiment("is13+bert" if "-" in fusion else "is13", fusion, store)
    (data, found), (sent, _) = load_dataset(asked), load_dataset(replace(asked, memory=memory))
    assert any(one.streamed for one in sent.inputs.values()) == (memory is not None)
    small = ("d_model=16", "gru_hidden=8", "heads=2", "batch_size=2", "epochs=2", "dropout=0")
    settings, training = parse_settings(found, small)
    config = TrainConfig(found, settings, training, select="last")
    losses = ("single", "perspective") if "-" in fusion else ("single",)
    configs = [replace(config, loss=loss, seed=seed) for loss in losses for seed in (0, 1)]
    fold = Fold("1", np.arange(24), np.arange(0), np.arange(0))
    here = fit_many.fit_many(data, fold, configs)
    gpu, called = Gpu(downloads=torch.inf, waits=torch.inf if memory else 0), set[Any]()

    def as_if_captured(_: Any, key: Any, function: Any) -> Tensor:
        called.add(key)
        before = gpu.uploads.total(), gpu.downloads
        result: Tensor = function().clone()
        assert (gpu.uploads.total(), gpu.downloads) == before, f"{key}: a capture would break"
        return result

    monkeypatch.setattr(Graphs, "__call__", as_if_captured)
    with gpu:
        there = fit_many.fit_many(sent, fold, [replace(one, device="cuda:0") for one in configs])
    assert gpu.uploads["waiting"] < 210 and len(called) > 1
    for one, other in zip(here, there, strict=True):
        pairs = zip(one.history, other.history, strict=True)
        assert all(b.loss == pytest.approx(a.loss, rel=1e-5) for a, b in pairs)


def test_what_is_computed_in_bf16_by_default(store: Path) -> None:
    def precision(features: str, fusion: str, asked: str = "auto", device: str = "auto") -> str:
        asked_for = Experiment(features, fusion, store, precision=asked, device=device)
        return prepare(asked_for)[0].record.precision

    assert precision("hubert+mpnet", "mit") == "float32"
    with Gpu():
        assert precision("hubert+mpnet", "mit") == "bf16"
        assert (
            precision("hubert+mpnet", "mit", "float32")
            == precision("hubert+mpnet", "mit", device="cpu")
            == "float32"
        )
        assert precision("is13+bert", "lgf-add") == "float32"
        emulated = patch.object(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
        )
        with emulated:  # a V100 or T4 has no such arithmetic, and is slower with it
            assert precision("hubert+mpnet", "mit") == "float32"


def test_a_dry_run_says_what_the_arithmetic_alone_takes(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what this GPU reaches in float32, and in bf16, in which it would train; of the paper's
    sizes but the depth.
    """
    monkeypatch.setattr(flops, "SIZE", 64)
    asked = [
        "train",
        "--features",
        "hubert+mpnet",
        "--fusion",
        "mit",
        "--epochs",
        "1",
        "--folds",
        "1",
        "--dry-run",
    ]
    small = ["--set", "d_model=16", "--set", "heads=2", "--device", "cuda:0", "--store", str(store)]
    with Gpu(downloads=torch.inf, waits=torch.inf):
        found = ser(*asked, *small)
    assert not found.exit_code, found.output
    each = r"[\d.e-]+ s at its [\d.e-]+ TFLOP/s in "
    assert re.search(
        rf"[\d.e+]+ FLOP in matrix products, which alone take this GPU {each}float32 or {each}bf16",
        found.stdout,
    )
    assert "in bf16 on cuda:0" in found.stdout
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[[cell]]\nname = "x"\nfeatures = "hubert+mpnet"\nfusion = "mit"\n')
    with Gpu(downloads=torch.inf, waits=torch.inf):
        found = ser("sweep", recipe, "--epochs", 1, "--folds", 1, "--dry-run", *small)
    assert "1 run to train with" in found.stdout and ", in bf16 on the GPU" in found.stdout, (
        found.output
    )


def test_the_device_refuses_what_a_gpu_refuses_and_what_it_would_wait_for() -> None:
    here = torch.arange(3)
    with Gpu() as gpu:
        x = here.to(DEVICE)
        assert (
            x.is_cuda
            and (x + torch.tensor(1)).device == DEVICE
            and gpu.read(x * 2).tolist() == [0, 2, 4]
        )
        for wrong in (
            lambda: x + here,
            lambda: x[here],
            lambda: x.item(),
            lambda: x.cpu(),
            lambda: x.tolist(),
            lambda: x.nonzero(),
            lambda: x[x > 1],
            lambda: x.repeat_interleave(x),
            lambda: bool(x.any()),
        ):
            with pytest.raises(RuntimeError):
                wrong()
