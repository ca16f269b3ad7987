"""Extractors: the interface of what computes features, and what pretrained encoders have in common."""

import gc
import math
import threading
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np

from ser.cache.spec import Spec
from ser.engines import exact_arithmetic, is_out_of_memory
from ser.errors import UtteranceError, WrongUse
from ser.weights.checkpoint import Checkpoint
from ser.weights.load import load_encoder

from .audio import Clip, decode

GPU_SECONDS = 300.0  # padded audio per batch; sorted lengths waste ~1 % of it
TOKENS_PER_SECOND = (
    50.0  # a token costs an encoder what a frame does: 300 s of audio are as much as 15,000 tokens
)
CHARACTERS_PER_TOKEN = 4.0
ENCODERS = tomllib.loads(
    Path(__file__).with_name("encoders.toml").read_text(encoding="utf-8")
)  # by architecture
Precision = Literal["float32", "bfloat16"]  # of an encoder: autocast
Item = TypeVar("Item")


@dataclass(frozen=True)
class ResolvedFeature:
    """One feature to compute: its spec, the extractor's config, and the checkpoint that it reads."""

    spec: Spec
    config: Any
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class Rows:
    """One feature of one utterance: `values` `[rows, dim]` and, where the extractor has any,
    `extras` `[rows]`.
    """

    values: np.ndarray
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    finite: bool = False  # whether the values were checked to be, in the store's dtype


class Layer(NamedTuple):
    """One layer of one input: `values` `[rows, dim]` in the store's dtype; `peaks`, each row's
    maximum before that.
    """

    values: np.ndarray
    peaks: np.ndarray


Outcome = dict[str, Rows] | UtteranceError  # fingerprint → rows


class Extractor:
    """Computes features that share their work. `run` is called from several threads at once.

    A subclass names its frozen dataclass of settings (`Config`, hashed into the fingerprint; a
    field with `init=False` is fixed), and defines `dim` and `extract`; `checkpoint` is the
    `Checkpoint` that the feature reads, None for one without weights. An encoder that computes a
    batch at once overrides `run` instead. The rows of an utterance must not depend on the other
    utterances of its batch.
    """

    name: ClassVar[str]  # of this code, in the spec
    version: ClassVar[
        int
    ]  # to raise when its numbers change: old rows are never mixed with new ones
    Config: ClassVar[type]
    packages: ClassVar[tuple[str, ...]] = ()  # their versions are recorded beside the feature
    batched: ClassVar[bool] = (
        False  # whether one call on many utterances is cheaper than many calls
    )
    exact: ClassVar[bool] = False  # whether its rows are stored in float32 whatever --dtype says
    fixed: ClassVar[frozenset[str]] = frozenset()  # fields of its config that the user cannot set
    own: ClassVar[frozenset[str]] = (
        frozenset()
    )  # settings that may differ between features computed together

    @classmethod
    def resolve(cls, settings: dict[str, Any], checkpoint: Any) -> Any:
        """The complete `Config`. Raises `WrongUse` for impossible settings."""
        return cls.Config(**settings)

    @classmethod
    def dim(cls, config: Any, checkpoint: Any) -> int:
        """Values per row."""
        raise NotImplementedError

    @classmethod
    def hop(cls, config: Any, checkpoint: Any) -> float | None:
        """Seconds between frames; None if rows are not frames."""
        return None

    def __init__(
        self,
        features: Sequence[ResolvedFeature],
        device: str = "cpu",
        batch_seconds: float | None = None,
    ) -> None:
        self.specs = tuple(feature.spec for feature in features)
        self.configs = tuple(feature.config for feature in features)
        self.config = self.configs[0]
        self.device, self.batch_seconds = device, batch_seconds
        self.label = "+".join(dict.fromkeys(spec.feature for spec in self.specs))  # for messages
        self.checkpoint: Any = features[0].checkpoint
        self.open()

    def open(self) -> None:
        """Load what `run` needs, such as a model."""

    def run(self, batch: Sequence[Any]) -> list[Outcome]:
        """The features of each `Clip` (audio) or transcript (text), in order, or the
        `UtteranceError` of it.
        """
        outcomes: list[Outcome] = []
        for item in batch:
            try:
                outcomes.append(self.outcome(self.extract(item)))
            except UtteranceError as fault:
                outcomes.append(fault)
        return outcomes

    def extract(self, item: Any) -> Sequence[np.ndarray]:
        """The values `[rows, dim]` of one utterance for each of `specs`. Raises `UtteranceError`
        with the reason.
        """
        raise NotImplementedError

    def outcome(
        self, arrays: Sequence[Any], extras: Any = None, warnings: tuple[str, ...] = ()
    ) -> Outcome:
        """The arrays or layers, one per spec, in the store's dtype, or an `UtteranceError` if it
        cannot hold them.
        """
        rows: dict[str, Rows] = {}
        for spec, array in zip(self.specs, arrays, strict=True):
            values, magnitudes = array if isinstance(array, Layer) else (array, np.abs(array))
            peak = magnitudes.max(initial=0.0)  # NaN if any value is
            if not peak <= np.finfo(spec.dtype).max:
                if spec.dtype == "float16" and peak < math.inf:
                    return UtteranceError(
                        "a value is beyond what float16 holds (65504): use --dtype float32"
                    )
                return UtteranceError("the extractor gave NaN or infinite values")
            rows[spec.fingerprint] = Rows(
                np.ascontiguousarray(values, spec.dtype), extras or {}, warnings, True
            )
        return rows


class Encoder(Extractor):
    """Several layers of one pretrained encoder from one forward pass.

    Layer k is the output of the k-th transformer layer, 0 the input of the first. A batch is padded
    and masked so that each utterance gets what it gets alone, and halved when memory runs out.
    """

    batched = True
    checkpoint: Checkpoint
    padding: float = 0
    mask_always = False  # a model may take another kernel with a mask of ones than with none
    own = frozenset({"layer"})

    @classmethod
    def resolve(cls, settings: dict[str, Any], checkpoint: Checkpoint) -> Any:
        """The complete config on this checkpoint. Raises `WrongUse` for what the encoder cannot
        give.
        """
        model, architecture = checkpoint.model, checkpoint.architecture
        known = [name for name, encoder in ENCODERS.items() if encoder["extractor"] == cls.name]
        if architecture not in known:
            raise WrongUse(
                f"{model} is a {architecture} model, not a {cls.name} encoder of {', '.join(known)}"
            )
        last = checkpoint.setting("num_hidden_layers")
        config = cls.Config(**{"layer": last, **settings})
        if not 0 <= config.layer <= last:
            raise WrongUse(f"layer={config.layer}: {model} has layers 0 to {last}")
        return config

    @classmethod
    def dim(cls, config: Any, checkpoint: Checkpoint) -> int:
        """The model's hidden size."""
        return checkpoint.setting("hidden_size")

    def open(self) -> None:
        """Load the model, and let it keep the layers that `hidden` returns."""
        exact_arithmetic(self.device)
        self.model = load_encoder(self.checkpoint).to(self.device)
        self.too_large = math.inf  # values of a padded batch that ran out of memory
        self.state = (
            threading.local()
        )  # of one forward pass: `lengths` of the inputs, `layers` `[batch, time, dim]`
        self.tap({config.layer for config in self.configs})

    def tap(self, wanted: set[int]) -> None:
        """Keep the outputs of these layers of each forward pass, by number, in `state.layers`."""

        def keep(number: int, _module: Any, args: Any, output: Any = None) -> None:
            hidden = args if output is None else output
            self.state.layers[number] = hidden[0] if isinstance(hidden, tuple) else hidden

        # Layers above the deepest wanted one cost time and change nothing: they are dropped. One
        # always stays.
        encoder = getattr(self.model, "encoder", self.model)
        layers = encoder.layers = encoder.layers[: max(*wanted, 1)]
        for number in wanted:
            register = (
                layers[number - 1].register_forward_hook
                if number
                else layers[0].register_forward_pre_hook
            )
            register(partial(keep, number))

    def hidden(self, config: Any, output: Any) -> Any:
        """The layer `[batch, time, dim]` that `config` names, of the forward pass that gave
        `output`.
        """
        return self.state.layers[config.layer]

    def rows(self, length: int) -> int:
        """How many rows an input of this length has."""
        return length

    def forward(self, inputs: Sequence[np.ndarray]) -> list[list[Layer]]:
        """Hidden states of each input `[n, …]` (samples, token ids, log-mel), for each spec.

        If memory runs out, the batch is halved, down to one input; from then on, so is every batch
        of that size.
        """
        size = len(inputs) * max(map(len, inputs))
        if len(inputs) == 1 or size < self.too_large:
            try:
                return self._forward(inputs)
            except (MemoryError, RuntimeError) as fault:
                if len(inputs) == 1 or not is_out_of_memory(fault):
                    raise
            # Not above: there the fault's traceback still holds the tensors that did not fit.
            self.too_large, self.state.layers = min(size, self.too_large), {}
            gc.collect()
            import torch

            torch.cuda.empty_cache()  # does nothing without CUDA
        half = len(inputs) // 2
        return self.forward(inputs[:half]) + self.forward(inputs[half:])

    def _forward(self, inputs: Sequence[np.ndarray]) -> list[list[Layer]]:
        import torch

        device, lengths = torch.device(self.device), [len(values) for values in inputs]
        shape = (len(inputs), max(lengths), *inputs[0].shape[1:])
        dtype, pinned = torch.from_numpy(inputs[0]).dtype, device.type == "cuda"
        padded = torch.full(shape, self.padding, dtype=dtype, pin_memory=pinned)
        for row, values in enumerate(inputs):
            padded[row, : len(values)] = torch.from_numpy(values)
        self.state.lengths, self.state.layers = lengths, {}
        bfloat16 = self.config.precision == "bfloat16"
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            mask = None
            if self.mask_always or min(lengths) < max(lengths):
                valid = (
                    torch.arange(shape[1], device=device)
                    < torch.tensor(lengths, device=device)[:, None]
                )
                mask = valid.long()
            output = self.model(padded.to(device, non_blocking=pinned), attention_mask=mask)
            layers = []
            for config, spec in zip(self.configs, self.specs, strict=True):
                # Cast and checked on the GPU: half the bytes leave it, and the values are read
                # once.
                hidden = self.hidden(config, output)
                lowest, highest = hidden.float().aminmax(dim=-1)
                values, peaks = (
                    hidden.to(getattr(torch, spec.dtype)),
                    torch.maximum(-lowest, highest),
                )
                layers.append((values.cpu().numpy(), peaks.cpu().numpy()))
        self.state.layers = {}
        rows = [slice(self.rows(length)) for length in lengths]
        return [
            [Layer(x[row, kept], y[row, kept]) for x, y in layers] for row, kept in enumerate(rows)
        ]


def batches(
    items: Iterable[Item], length: Callable[[Item], float], most: float | None, padded: bool = True
) -> list[list[Item]]:
    """The items in order, in groups of size `most` or less; None: one by one. A longer item is a
    group by itself.

    The size of a group is longest × count, or the sum of the lengths if they are not `padded`.
    """
    groups: list[list[Item]] = []
    longest = total = 0.0
    for item in items:
        size = length(item)
        longest, total = max(longest, size), total + size
        if (
            most is None
            or not groups
            or (longest * (len(groups[-1]) + 1) if padded else total) > most
        ):
            groups.append([])
            longest = total = size
        groups[-1].append(item)
    return groups


def text_seconds(text: str) -> float:
    """What a transcript costs an encoder, in seconds of audio."""
    return (2 + len(text) / CHARACTERS_PER_TOKEN) / TOKENS_PER_SECOND


def rows_of(
    extractors: Sequence[Extractor], source: Path | str, warnings: list[str]
) -> dict[str, Rows]:
    """The features of one audio file (a path) or transcript (a string), by fingerprint.

    Adds what is odd about it, such as a cut text, to `warnings`. Raises `UtteranceError` if it
    cannot be used.
    """
    item = decode(source) if isinstance(source, Path) else source
    features: dict[str, Rows] = {}
    outcomes = [extractor.run([item])[0] for extractor in extractors]
    warnings += dict.fromkeys(item.warnings) if isinstance(item, Clip) else ()
    for outcome in outcomes:
        if isinstance(outcome, UtteranceError):
            raise outcome
        features |= outcome
    warnings += dict.fromkeys(warning for rows in features.values() for warning in rows.warnings)
    return features
