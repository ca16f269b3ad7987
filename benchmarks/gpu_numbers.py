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
from ser.benchmarks.gpu import UNKNOWN, Request, Row, at_most, fact, no_faults, raised_at
from ser.train.config import TrainConfig
from ser.train.data.dataset import Dataset
from ser.train.data.folds import Fold
from ser.train.fit import Fitted, fit, make_optimiser, training_loss
from ser.train.fit_many import can_train_together, fit_many
from ser.train.models import FUSIONS as ALL_FUSIONS
from ser.train.models import Stage
from ser.train.models.batch import Batch, Sequences, on_device
from ser.train.settings import has_setting

# Those that are trained by updates; what a solver fits is computed on the CPU.
FUSIONS = {name: fusion for name, fusion in ALL_FUSIONS.items() if not fusion.solved}

# Settings; each fusion takes those that it has.
TINY = [
    "d_model=16",
    "heads=2",
    "queries=3",
    "gru_hidden=8",
    "lstm_hidden=8",
    "dense=8",
    "hidden=8",
    "frames=48",
    "channels=2",
    "encoder_depth=2",
    "lr=1e-4",
]
# What bf16 leaves without a layer that widens it.
SHALLOW = "encoder_depth=0"

# Rows of utterances of all lengths.
FRAMES = np.array([5, 1, 60, 9, 33, 2, 14, 7])
TOKENS = np.array([3, 2, 1, 6, 9, 4, 2, 5])

WORDS = ["yeah", "why", "oh", "no", "know"]
TEXTS = [
    "Yeah.",
    "[LAUGHTER] I don't know what you're talking about!",
    " ".join(["why"] * 60) + "?",
    "oh, no.",
]


@dataclass(frozen=True)
class Training:
    """A fusion at tiny sizes, without dropout, and what it trains on."""

    data: Dataset
    fold: Fold
    config: TrainConfig

    def batches(self) -> list[Batch]:
        """A first batch with nothing, something, and all of each modality hidden.

        With nothing hidden alone, where the fusion does not hide.
        """
        groups = self.data.groups(self.fold.train, self.config.fusion.unit)
        groups = groups[: self.config.settings.batch_size]

        masks: list[dict[str, Tensor]] = [{}]
        if self.config.fusion.hide is not None:
            some = torch.arange(len(groups)) % 2 == 0
            every = torch.ones(len(groups), dtype=torch.bool)
            masks += [{"audio": some, "text": ~some}, {"audio": every}, {"text": every}]

        return [self.data.batch(groups, {}, hide=partial(_hide, hidden)) for hidden in masks]

    def on(self, device: str, precision: str = "float32") -> TrainConfig:
        """How it trains there."""
        return replace(self.config, device=device, precision=precision)

    def model(self) -> nn.Module:
        """With the weights of seed 0, on the CPU."""
        torch.manual_seed(0)
        return self.config.fusion.build(self.config.settings, self.data.dims, 4)

    def fit(self, config: TrainConfig) -> Fitted:
        """The trained model."""
        return fit(self.data, self.fold, config)

    def fit_two(self, config: TrainConfig) -> list[Fitted]:
        """Two runs at once."""
        return fit_many(self.data, self.fold, [config, replace(config, seed=1)])

    def probabilities(self, fitted: Fitted, config: TrainConfig) -> np.ndarray:
        """What a trained model predicts of what it was trained on."""
        assert not fitted.fault, fitted.fault
        return fitted.predict(self.data, self.fold.train, config)["logits"]


def _hide(hidden: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    return hidden


def make_training(name: str, *settings: str) -> Training:
    """Twelve updates of three epochs.

    Four batches of utterances of all lengths, or of a dialogue each.
    """
    fusion = FUSIONS[name]
    dialogues = fusion.unit == "dialogue"
    n = 160 if dialogues else 32

    asked = [*TINY, f"batch_size={1 if dialogues else 8}", "epochs=3"]
    asked += [f"{field.name}=0" for field in fields(fusion.settings) if "dropout" in field.name]
    asked += settings
    known = [setting for setting in asked if has_setting(fusion, setting)]

    lengths = {"audio": np.resize(FRAMES, n), "text": np.resize(TOKENS, n)}
    inputs = {}
    for m in fusion.inputs:
        rows = np.ones(n, int) if fusion.level == "vector" else lengths[m]
        inputs[m] = (24, rows)

    data, fold, config = made_up(name, inputs, *known)
    has_unimodal_heads = fusion.stacks is not None and len(fusion.inputs) == 2
    loss = "perspective" if has_unimodal_heads else "single"
    return Training(data, fold, replace(config, loss=loss))


def for_each(
    measure: Callable[[str], float], names: list[str]
) -> tuple[dict[str, float], dict[str, str]]:
    """What is measured for each name, and of those where that fails, why."""
    values = {}
    faults = {}
    for name in names:
        try:
            values[name] = measure(name)
        except Exception as fault:
            # The others shall be known too.
            faults[name] = shortly(fault)

    return values, faults


def shortly(fault: Exception) -> str:
    """Its kind, the beginning of its first line, and where it was raised."""
    first_line, _, _ = str(fault).partition("\n")
    place = raised_at(traceback.format_exc())
    return f"{type(fault).__name__}: {first_line[:100]}{place}"


def worst(what: str, values: dict[str, float], limit: float) -> Row:
    """The row of the largest difference; NaN is larger than any."""

    def size(name: str) -> float:
        value = values[name]
        return np.inf if np.isnan(value) else value

    name = max(values, key=size, default="")
    largest = values.get(name, float("nan"))
    return at_most(f"{what}, largest of {len(values)} ({name})", largest, limit, each=values)


def flags_in_training(device: str) -> dict[str, bool]:
    """Whether sums may lose digits while a model trains there."""
    flags: dict[str, bool] = {}
    training = make_training("mit")

    def look(*_: Any) -> None:
        matmul = torch.backends.cuda.matmul
        cudnn = torch.backends.cudnn
        try:
            flags["matmul"] = matmul.allow_tf32
            flags["cudnn"] = cudnn.allow_tf32
        except RuntimeError:
            # Set by torch's newer names, and then the older ones refuse to answer.
            parts = {"matmul": matmul, "conv": cudnn.conv, "rnn": cudnn.rnn}  # type: ignore[attr-defined]
            for name, part in parts.items():
                flags[name] = part.fp32_precision == "tf32"

    fit(training.data, training.fold, training.on(device), look)
    return flags


def float64(request: Request) -> Iterator[Row]:
    """One update of every stage of every fusion against the CPU.

    Loss, gradients, those that are None, and new weights.
    """
    none_on_one_side: list[str] = []

    def largest_difference(name: str) -> float:
        training = make_training(name)
        largest = 0.0

        for number, batch in enumerate(training.batches()):
            wide = {m: Sequences(x.values.double(), x.lengths) for m, x in batch.inputs.items()}
            batch = replace(batch, inputs=wide)

            for stage in training.config.fusion.stages:
                here = update(training.model(), batch, training.on("cpu"), stage)
                there = update(training.model(), batch, training.on(request.device), stage)

                apart = without_gradient(here) ^ without_gradient(there)
                for key in sorted(apart):
                    none_on_one_side.append(f"{name}, hidden {number}: {key}")
                for key in here:
                    largest = larger(largest, distance(here[key], there[key]))

        return largest

    torch.set_default_dtype(torch.float64)
    differences, faults = for_each(largest_difference, list(FUSIONS))
    torch.set_default_dtype(torch.float32)

    yield no_faults("updates that fail", faults)
    yield worst("an update against the CPU's", differences, 1e-9)
    yield no_faults("gradients that are None on one side alone", none_on_one_side)


def update(
    model: nn.Module, batch: Batch, config: TrainConfig, stage: Stage
) -> dict[str, dict[str, Any]]:
    """Loss, gradients and weights after one update, on the CPU."""
    model = copy.deepcopy(model).to(config.device)
    batch = on_device(batch, config.device)
    batch.heads = config.heads(stage)
    optimiser = make_optimiser(dict(model.named_parameters()), stage, config.settings)

    with config.autocast():
        outputs = {}
        for head, logits in model(batch).items():
            outputs[head] = logits.to(torch.get_default_dtype())
    loss = training_loss(outputs, batch.truth, config, stage)
    loss.backward()

    gradient = {}
    for key, parameter in model.named_parameters():
        gradient[key] = None if parameter.grad is None else parameter.grad.cpu()

    optimiser.step()
    weights = {key: parameter.detach().cpu() for key, parameter in model.named_parameters()}
    return {"loss": {"loss": loss.detach().cpu()}, "gradient": gradient, "weights": weights}


def without_gradient(done: dict[str, dict[str, Any]]) -> set[str]:
    """The parameters whose gradient an update left at None."""
    return {key for key, value in done["gradient"].items() if value is None}


def distance(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest difference of any number, as a share of the largest number."""
    largest = 0.0
    largest_difference = 0.0
    for key, a in ours.items():
        b = theirs[key]
        if a is None or b is None:
            continue
        largest = larger(largest, float(a.abs().max()))
        largest_difference = larger(largest_difference, float((a - b).abs().max()))

    return largest_difference / (largest or 1.0)


def larger(a: float, b: float) -> float:
    """The larger number; NaN is larger than any, where Python's max may lose it."""
    return float(np.maximum(a, b))


def float32(request: Request) -> Iterator[Row]:
    """Twelve updates in float32.

    Against the CPU's, and many runs at once against each alone.
    """

    def against_cpu(name: str) -> float:
        training = make_training(name)
        probabilities = []
        for device in ("cpu", request.device):
            config = training.on(device)
            probabilities.append(training.probabilities(training.fit(config), config))
        return float(np.abs(probabilities[0] - probabilities[1]).max())

    def together_against_alone(name: str) -> float:
        training = make_training(name)
        config = training.on(request.device)
        together = training.probabilities(training.fit_two(config)[0], config)
        alone = training.probabilities(training.fit(config), config)
        return float(np.abs(together - alone).max())

    differences, faults = for_each(against_cpu, list(FUSIONS))
    yield worst("12 updates, any probability, against the CPU's", differences, 1e-5)

    stacking = []
    for name in FUSIONS:
        training = make_training(name)
        if can_train_together(training.data, training.config):
            stacking.append(name)
    differences, faults_at_once = for_each(together_against_alone, stacking)
    yield worst("a run with another one at once against it alone", differences, 1e-6)

    for name, why in faults_at_once.items():
        faults[f"{name} at once"] = why
    yield no_faults("trainings that fail", faults)


class Halves(TorchDispatchMode):
    """Notes the operations that take or give float16."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Any operation."""
        result = func(*args, **(kwargs or {}))
        for leaf in torch.utils._pytree.tree_leaves((args, result)):
            if isinstance(leaf, Tensor) and leaf.dtype == torch.float16:
                self.seen.add(str(func))

        return result


def bf16(request: Request) -> Iterator[Row]:
    """An update of every fusion in bfloat16, also without encoder layers.

    No float16, and near float32 on the CPU.
    """
    in_float16: list[str] = []

    def largest_difference(name: str) -> float:
        fusion, *settings = name.split(" ")
        training = make_training(fusion, *settings)
        largest = 0.0

        for batch in training.batches():
            model = training.model()
            config = training.on(request.device, "bf16")
            for stage in training.config.fusion.stages:
                update(model, batch, config, stage)

            # Not in inference mode: there einsum reaches the counting as one operation, behind
            # autocast.
            on_gpu = copy.deepcopy(model).to(request.device)
            with torch.no_grad(), config.autocast(), Halves() as halves:
                logits = on_gpu(on_device(batch, request.device))["logits"].float().cpu()
            in_float16.extend(f"{name}: {operation}" for operation in sorted(halves.seen))

            with torch.inference_mode():
                expected = model(batch)["logits"].softmax(1)
                difference = float((logits.softmax(1) - expected).abs().max())
            largest = larger(largest, difference)

        return largest

    shallow = [f"{name} {SHALLOW}" for name in ("mit", "concat", "audio:frame")]
    differences, faults = for_each(largest_difference, [*FUSIONS, *shallow])
    yield no_faults("updates that fail", faults)
    yield no_faults("operations in float16", in_float16)
    yield worst("any probability against float32 on the CPU", differences, 5e-2)


def waits(request: Request) -> Iterator[Row]:
    """An epoch in which nobody may wait for the GPU.

    And `fit` and `fit_many`, which may at an epoch's end alone.
    """
    if not request.on_gpu:
        yield fact("an epoch without a wait for the GPU", UNKNOWN)
        return

    def train_epochs(name: str) -> float:
        training = make_training(name)
        # What is loaded once may wait: the first epoch is not looked at.
        epoch = Epoch(training, training.on(request.device))
        for mode in ("default", "error"):
            torch.cuda.set_sync_debug_mode(mode)
            try:
                epoch.run()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return 0.0

    _, faults = for_each(train_epochs, list(FUSIONS))
    yield no_faults("an epoch under set_sync_debug_mode('error')", faults)

    for name, train in (("mit", Training.fit), ("lgf-add", Training.fit_two)):
        warm = make_training(name)
        train(warm, warm.on(request.device))

        few = waited(train, make_training(name, "batch_size=4"), request.device)
        many = waited(train, make_training(name, "batch_size=2"), request.device)
        more = {}
        for line, count in (many - few).items():
            more[line] = f"{count} waits, {few[line]} with half the updates"
        yield no_faults(f"waits of {name} that grow with its updates", more)


class Epoch:
    """The loop of `fit` without what it does at an epoch's end."""

    def __init__(self, training: Training, config: TrainConfig) -> None:
        self.config = config
        self.rows = training.fold.train
        self.data = training.data.on(config.device)
        self.model = training.model().to(config.device)
        self.optimisers = []
        for stage in config.fusion.stages:
            parameters = dict(self.model.named_parameters())
            self.optimisers.append(make_optimiser(parameters, stage, config.settings))

    def run(self) -> None:
        """Each stage once over the training part."""
        config = self.config
        for stage, optimiser in zip(config.fusion.stages, self.optimisers, strict=True):
            for batch in self.data.batches(
                self.rows, config.fusion.unit, config.settings.batch_size, {}
            ):
                with config.autocast():
                    outputs = {head: logits.float() for head, logits in self.model(batch).items()}

                optimiser.zero_grad()
                training_loss(outputs, batch.truth, config, stage).backward()
                optimiser.step()


def waited(
    train: Callable[[Training, TrainConfig], Any], training: Training, device: str
) -> Counter[str]:
    """The lines that wait for the GPU while a model trains, and how often."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(training, training.on(device))
    finally:
        torch.cuda.set_sync_debug_mode("default")

    lines: Counter[str] = Counter()
    for warning in caught:
        if "synchroniz" in str(warning.message):
            lines[f"{Path(warning.filename).name}:{warning.lineno}"] += 1

    return lines


def encoders(request: Request) -> Iterator[Row]:
    """Batches on the GPU against the CPU one by one.

    And again in so little memory that batches are halved.
    """
    from ser.weights.demo import SIZES

    large = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    speech: dict[str, dict[str, Any]] = {
        "hubert": {},
        "wav2vec2": {**SIZES["hubert"], **large},
        "wavlm": SIZES["hubert"],
    }
    clips = make_clips(request.small)
    faults: dict[str, str] = {}

    for name in (*speech, "bert", "mpnet"):
        items: list[Any] = clips if name in speech else TEXTS * 64
        comparison = EncoderComparison(request, name, items, speech.get(name, {}))
        try:
            if request.on_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                reserved = torch.cuda.memory_reserved()

            what = f"{name}: batched against the CPU one by one"
            yield at_most(what, comparison.largest_deviation(), 1e-5)
            if not request.on_gpu:
                continue

            limit_memory(request.device, reserved)
            sizes = comparison.note_batch_sizes()
            what = f"{name}: again in 0.6 of that memory"
            yield at_most(what, comparison.largest_deviation(), 1e-5, batches=sizes)

            halved = min(sizes) < max(sizes)
            yield {**fact(f"{name}: batches were halved", halved), "holds": halved}
        except Exception as fault:
            # The other encoders shall be known too.
            faults[name] = shortly(fault)
        finally:
            if request.on_gpu:
                torch.cuda.set_per_process_memory_fraction(1.0)

    if not request.on_gpu:
        yield fact("batches halved in less memory", UNKNOWN)
    yield no_faults("encoders that fail", faults)


def make_clips(small: bool) -> list[Any]:
    """Noise of IEMOCAP's range of lengths, the longest first."""
    from ser.extract.audio import Clip

    random = np.random.default_rng(0)
    longest = 6 if small else 34
    count = 6 if small else 16

    clips = []
    for seconds in np.geomspace(0.585, longest, count)[::-1]:
        samples = random.normal(0.01, 0.1, int(16000 * seconds)).astype(np.float32)
        clips.append(Clip(samples, 16000))

    return clips


def limit_memory(device: str, reserved: int) -> None:
    """Leave this process 0.6 of what it took at most beside the bytes reserved before."""
    peak = torch.cuda.max_memory_reserved()
    whole = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((reserved + 0.6 * (peak - reserved)) / whole)


class EncoderComparison:
    """An encoder with random weights: the CPU one by one, and a device in batches."""

    def __init__(
        self, request: Request, name: str, items: list[Any], sizes: dict[str, Any]
    ) -> None:
        from ser.extract.resolve import load_extractors, resolve
        from ser.weights.demo import write_random_checkpoint

        folder = write_random_checkpoint(request.folder / name, name, WORDS, **sizes)
        resolved = resolve([name], {name: str(folder)}, "float32")[0]
        on_cpu: Any
        on_device: Any
        [on_cpu] = load_extractors(resolved, "cpu", 1e6)
        [on_device] = load_extractors(resolved, request.device, 1e6)

        self.items = items
        self.on_device = on_device
        self.fingerprint = on_cpu.specs[0].fingerprint
        # A text stands in `items` often.
        self.expected = {id(item): on_cpu.run([item])[0] for item in items}

    def largest_deviation(self) -> float:
        """The largest relative deviation of any item's rows."""
        from ser.extract.check import relative_deviation

        deviations = []
        for rows, item in zip(self.on_device.run(self.items), self.items, strict=True):
            expected = self.expected[id(item)][self.fingerprint].values
            deviations.append(relative_deviation(rows[self.fingerprint].values, expected))

        return max(deviations)

    def note_batch_sizes(self) -> list[int]:
        """The list to which each batch from now on adds its size."""
        sizes: list[int] = []
        forward = self.on_device.forward

        def noting(inputs: Any) -> Any:
            sizes.append(len(inputs))
            return forward(inputs)

        self.on_device.forward = noting
        return sizes
