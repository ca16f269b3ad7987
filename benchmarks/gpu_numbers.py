"""Are the numbers right on a GPU? The stages of `gpu.py` that compare with the CPU, at tiny sizes.

Everything is compared on made-up data, the CPU being the reference: its own numbers are held by the
tests.
"""

import copy
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ser.benchmarks.costs import made_up
from ser.benchmarks.gpu import UNKNOWN, Asked, Row, most, none_of, place, told
from ser.train.config import TrainConfig
from ser.train.data.dataset import Dataset
from ser.train.data.folds import Fold
from ser.train.fit import Fitted, fit, make_optimiser, training_loss
from ser.train.fit_many import can_train_together, fit_many
from ser.train.models import FUSIONS, Stage
from ser.train.models.batch import Batch, Sequences, on_device
from ser.train.settings import has_setting

TINY = [
    *(
        "d_model=16",
        "heads=2",
        "queries=3",
        "gru_hidden=8",
        "lstm_hidden=8",
        "dense=8",
        "hidden=8",
        "frames=48",
    )
]
TINY += ["channels=2", "encoder_depth=2", "lr=1e-4"]
FRAMES, TOKENS = np.array([5, 1, 60, 9, 33, 2, 14, 7]), np.array([3, 2, 1, 6, 9, 4, 2, 5])
SHALLOW = "encoder_depth=0"  # what bf16 leaves without a layer that widens it
TEXTS = [
    "Yeah.",
    "[LAUGHTER] I don't know what you're talking about!",
    " ".join(["why"] * 60) + "?",
    "oh, no.",
]


def _chosen(hidden: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    return hidden


@dataclass(frozen=True)
class Work:
    """A fusion at tiny sizes, without dropout, and what it trains on."""

    data: Dataset
    fold: Fold
    plan: TrainConfig

    def batches(self) -> list[Batch]:
        """A first batch with nothing, something, and all of each modality hidden, where the fusion
        hides.
        """
        groups = self.data.groups(self.fold.train, self.plan.fusion.unit)[
            : self.plan.settings.batch_size
        ]
        found: list[dict[str, Tensor]] = [{}]
        if self.plan.fusion.hide is not None:
            some, every = (
                torch.arange(len(groups)) % 2 == 0,
                torch.ones(len(groups), dtype=torch.bool),
            )
            found += [{"audio": some, "text": ~some}, {"audio": every}, {"text": every}]
        return [self.data.batch(groups, {}, hide=partial(_chosen, hidden)) for hidden in found]

    def on(self, device: str, precision: str = "float32") -> TrainConfig:
        """How it trains there."""
        return replace(self.plan, device=device, precision=precision)

    def model(self) -> nn.Module:
        """With the weights of seed 0, on the CPU."""
        torch.manual_seed(0)
        return self.plan.fusion.build(self.plan.settings, self.data.dims, 4)


def work(name: str, *more: str) -> Work:
    """Twelve updates of three epochs: four batches of utterances of all lengths, or of a dialogue
    each.
    """
    fusion = FUSIONS[name]
    dialogues = fusion.unit == "dialogue"
    dropouts = [f"{one.name}=0" for one in fields(fusion.settings) if "dropout" in one.name]
    asked = [*TINY, f"batch_size={1 if dialogues else 8}", "epochs=3", *dropouts, *more]
    n = 160 if dialogues else 32
    lengths = {"audio": np.resize(FRAMES, n), "text": np.resize(TOKENS, n)}
    rows = {
        m: (24, np.ones(n, int) if fusion.level == "vector" else lengths[m]) for m in fusion.inputs
    }
    data, fold, plan = made_up(name, rows, *(one for one in asked if has_setting(fusion, one)))
    both = fusion.stacks is not None and len(fusion.inputs) == 2
    return Work(data, fold, replace(plan, loss="perspective" if both else "single"))


def each(do: Callable[[str], float], names: list[str]) -> tuple[dict[str, float], dict[str, str]]:
    """What `do` finds for each name, and of those where it fails, why."""
    found, faults = {}, {}
    for name in names:
        try:
            found[name] = do(name)
        except Exception as fault:  # the others shall be known too
            faults[name] = shortly(fault)
    return found, faults


def shortly(fault: Exception) -> str:
    """Its kind, the beginning of its first line, and where it was raised."""
    return f"{type(fault).__name__}: {str(fault).partition(chr(10))[0][:100]}{place(traceback.format_exc())}"


def worst(what: str, found: dict[str, float], limit: float) -> Row:
    """The row of the largest difference; NaN is larger than any."""
    name = max(found, key=lambda one: np.inf if np.isnan(found[one]) else found[one], default="")
    return most(
        f"{what}, largest of {len(found)} ({name})",
        found.get(name, float("nan")),
        limit,
        each=found,
    )


def flags_in_training(device: str) -> dict[str, bool]:
    """Whether sums may lose digits while a model trains there."""
    found: dict[str, bool] = {}
    one = work("mit")

    def look(*_: Any) -> None:
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        try:
            found.update(matmul=matmul.allow_tf32, cudnn=cudnn.allow_tf32)
        except RuntimeError:  # set by torch's newer names, and then the older ones refuse to answer
            new = {"matmul": matmul, "conv": cudnn.conv, "rnn": cudnn.rnn}  # type: ignore[attr-defined]
            found.update({name: about.fp32_precision == "tf32" for name, about in new.items()})

    fit(one.data, one.fold, one.on(device), look)
    return found


def float64(asked: Asked) -> Iterator[Row]:
    """One update of every stage of every fusion against the CPU: loss, gradients, those that are
    None, new weights.
    """
    apart: list[str] = []

    def step(name: str) -> float:
        one, found = work(name), 0.0
        for number, batch in enumerate(one.batches()):
            wide = {m: Sequences(x.values.double(), x.lengths) for m, x in batch.inputs.items()}
            batch = replace(batch, inputs=wide)
            for stage in one.plan.fusion.stages:
                here, there = (
                    update(one.model(), batch, one.on(device), stage)
                    for device in ("cpu", asked.device)
                )
                none = [
                    {key for key, value in side["gradient"].items() if value is None}
                    for side in (here, there)
                ]
                apart.extend(f"{name}, hidden {number}: {key}" for key in sorted(none[0] ^ none[1]))
                found = max([found, *(distance(here[key], there[key]) for key in here)])
        return found

    torch.set_default_dtype(torch.float64)
    found, faults = each(step, list(FUSIONS))
    torch.set_default_dtype(torch.float32)
    yield none_of("updates that fail", faults)
    yield worst("an update against the CPU's", found, 1e-9)
    yield none_of("gradients that are None on one side alone", apart)


def update(
    model: nn.Module, batch: Batch, plan: TrainConfig, stage: Stage
) -> dict[str, dict[str, Any]]:
    """Loss, gradients and weights after one update, on the CPU."""
    model, batch = copy.deepcopy(model).to(plan.device), on_device(batch, plan.device)
    batch.heads = plan.heads(stage)
    optimiser = make_optimiser(dict(model.named_parameters()), stage, plan.settings)
    with plan.autocast():
        outputs = {
            head: logits.to(torch.get_default_dtype()) for head, logits in model(batch).items()
        }
    loss = training_loss(outputs, batch.truth, plan, stage)
    loss.backward()
    gradient = {
        key: None if one.grad is None else one.grad.cpu() for key, one in model.named_parameters()
    }
    optimiser.step()
    weights = {key: one.detach().cpu() for key, one in model.named_parameters()}
    return {"loss": {"loss": loss.detach().cpu()}, "gradient": gradient, "weights": weights}


def distance(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest difference of any number, as a share of the largest number."""
    pairs = [(a, b) for key, a in ours.items() if a is not None and (b := theirs[key]) is not None]
    largest = max((float(a.abs().max()) for a, _ in pairs), default=0.0) or 1.0
    return max((float((a - b).abs().max()) for a, b in pairs), default=0.0) / largest


def probabilities(one: Work, fitted: Fitted, plan: TrainConfig) -> np.ndarray:
    """What a trained model predicts of what it was trained on."""
    assert not fitted.fault, fitted.fault
    return fitted.predict(one.data, one.fold.train, plan)["logits"]


def float32(asked: Asked) -> Iterator[Row]:
    """Twelve updates in float32: against the CPU's, and many runs at once against each alone."""

    def alone(name: str) -> float:
        one = work(name)
        plans = [one.on("cpu"), one.on(asked.device)]
        here, there = (probabilities(one, fit(one.data, one.fold, plan), plan) for plan in plans)
        return float(np.abs(here - there).max())

    def stacked(name: str) -> float:
        one, plan = work(name), work(name).on(asked.device)
        runs = [
            fit_many(one.data, one.fold, [plan, replace(plan, seed=1)])[0],
            fit(one.data, one.fold, plan),
        ]
        here, there = (probabilities(one, run, plan) for run in runs)
        return float(np.abs(here - there).max())

    found, faults = each(alone, list(FUSIONS))
    yield worst("12 updates, any probability, against the CPU's", found, 1e-5)
    together, more = each(
        stacked, [name for name in FUSIONS if can_train_together(work(name).data, work(name).plan)]
    )
    yield worst("a run with another one at once against it alone", together, 1e-6)
    yield none_of(
        "trainings that fail", faults | {f"{name} at once": why for name, why in more.items()}
    )


class Halves(TorchDispatchMode):
    """Notes the operations that take or give float16."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Any operation."""
        found = func(*args, **(kwargs or {}))
        tensors = torch.utils._pytree.tree_leaves((args, found))
        if any(isinstance(one, Tensor) and one.dtype == torch.float16 for one in tensors):
            self.seen.add(str(func))
        return found


def bf16(asked: Asked) -> Iterator[Row]:
    """An update of every fusion in bfloat16, also without encoder layers: no float16, and near
    float32 on the CPU.
    """
    halves: list[str] = []

    def step(name: str) -> float:
        one, found = work(*name.split(" ")), 0.0
        for batch in one.batches():
            model, plan = one.model(), one.on(asked.device, "bf16")
            for stage in one.plan.fusion.stages:
                update(model, batch, plan, stage)
            there = copy.deepcopy(model).to(asked.device)
            # Not in inference mode: there einsum reaches the counting as one operation, behind
            # autocast.
            with torch.no_grad(), plan.autocast(), Halves() as seen:
                logits = there(on_device(batch, asked.device))["logits"].float().cpu()
            halves.extend(f"{name}: {operation}" for operation in sorted(seen.seen))
            with torch.inference_mode():
                found = max(
                    found,
                    float((logits.softmax(1) - model(batch)["logits"].softmax(1)).abs().max()),
                )
        return found

    found, faults = each(
        step, [*FUSIONS, *(f"{name} {SHALLOW}" for name in ("mit", "concat", "audio:frame"))]
    )
    yield none_of("updates that fail", faults)
    yield none_of("operations in float16", halves)
    yield worst("any probability against float32 on the CPU", found, 5e-2)


def waits(asked: Asked) -> Iterator[Row]:
    """An epoch in which nobody may wait for the GPU; and `fit` and `fit_many`, which may at an
    epoch's end alone.
    """
    if not asked.on_gpu:
        yield told("an epoch without a wait for the GPU", UNKNOWN)
        return

    def epoch(name: str) -> float:
        one, plan = work(name), work(name).on(asked.device)
        model, data = one.model().to(asked.device), one.data.on(asked.device)
        optimisers = [
            make_optimiser(dict(model.named_parameters()), s, plan.settings)
            for s in plan.fusion.stages
        ]
        for mode in ("default", "error"):  # what is loaded once may wait
            torch.cuda.set_sync_debug_mode(mode)
            try:
                for stage, optimiser in zip(plan.fusion.stages, optimisers, strict=True):
                    for batch in data.batches(
                        one.fold.train, plan.fusion.unit, plan.settings.batch_size, {}
                    ):
                        with plan.autocast():
                            outputs = {
                                head: logits.float() for head, logits in model(batch).items()
                            }
                        optimiser.zero_grad()
                        training_loss(outputs, batch.truth, plan, stage).backward()
                        optimiser.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return 0.0

    _, faults = each(epoch, list(FUSIONS))
    yield none_of("an epoch under set_sync_debug_mode('error')", faults)
    for name, train in (
        ("mit", lambda one, plan: fit(one.data, one.fold, plan)),
        ("lgf-add", trained_together),
    ):
        train(work(name), work(name).on(asked.device))  # warm
        few, many = (
            waited(train, work(name, setting), asked.device)
            for setting in ("batch_size=4", "batch_size=2")
        )
        more = {
            line: f"{count} waits, {few[line]} with half the updates"
            for line, count in (many - few).items()
        }
        yield none_of(f"waits of {name} that grow with its updates", more)


def trained_together(one: Work, plan: TrainConfig) -> None:
    """Two runs at once."""
    fit_many(one.data, one.fold, [plan, replace(plan, seed=1)])


def waited(train: Callable[[Work, TrainConfig], Any], one: Work, device: str) -> Counter[str]:
    """The lines that wait for the GPU while a model trains, and how often."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            train(one, one.on(device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Counter(
        f"{Path(w.filename).name}:{w.lineno}" for w in seen if "synchroniz" in str(w.message)
    )


def encoders(asked: Asked) -> Iterator[Row]:
    """Batches on the GPU against the CPU one by one, and again in so little memory that batches are
    halved.
    """
    from ser.extract.audio import Clip
    from ser.extract.check import relative_deviation
    from ser.extract.resolve import load_extractors, resolve
    from ser.weights.demo import SIZES, write_random_checkpoint

    large = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    speech: dict[str, dict[str, Any]] = {
        "hubert": {},
        "wav2vec2": {**SIZES["hubert"], **large},
        "wavlm": SIZES["hubert"],
    }
    words = ["yeah", "why", "oh", "no", "know"]
    random, longest = np.random.default_rng(0), 6 if asked.small else 34
    lasts = np.geomspace(0.585, longest, 6 if asked.small else 16)
    clips = [
        Clip(random.normal(0.01, 0.1, int(16000 * s)).astype(np.float32), 16000)
        for s in lasts[::-1]
    ]
    faults: dict[str, str] = {}
    for name in (*speech, "bert", "mpnet"):
        folder = write_random_checkpoint(asked.folder / name, name, words, **speech.get(name, {}))
        wanted = resolve([name], {name: str(folder)}, "float32")[0]
        here: Any
        there: Any
        [here], [there] = (load_extractors(wanted, device, 1e6) for device in ("cpu", asked.device))
        items: list[Any] = clips if name in speech else TEXTS * 64
        alone = {id(item): here.run([item])[0] for item in items}
        key = here.specs[0].fingerprint

        def apart(
            there: Any = there, items: Any = items, alone: Any = alone, key: str = key
        ) -> float:
            found = there.run(items)
            return max(
                relative_deviation(a[key].values, alone[id(b)][key].values)
                for a, b in zip(found, items, strict=True)
            )

        try:
            if asked.on_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                begun = torch.cuda.memory_reserved()
            yield most(f"{name}: batched against the CPU one by one", apart(), 1e-5)
            if not asked.on_gpu:
                continue
            peak, whole = (
                torch.cuda.max_memory_reserved(),
                torch.cuda.get_device_properties(asked.device).total_memory,
            )
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction((begun + 0.6 * (peak - begun)) / whole)
            sizes, forward = list[int](), there.forward
            there.forward = lambda inputs, forward=forward, sizes=sizes: (
                sizes.append(len(inputs)) or forward(inputs)
            )
            yield most(f"{name}: again in 0.6 of that memory", apart(), 1e-5, batches=sizes)
            yield {
                **told(f"{name}: batches were halved", min(sizes) < max(sizes)),
                "holds": min(sizes) < max(sizes),
            }
        except Exception as fault:  # the other encoders shall be known too
            faults[name] = shortly(fault)
        finally:
            if asked.on_gpu:
                torch.cuda.set_per_process_memory_fraction(1.0)
    if not asked.on_gpu:
        yield told("batches halved in less memory", UNKNOWN)
    yield none_of("encoders that fail", faults)
