"""What pretrained encoders have in common: layers of one forward pass, in exact batches."""

import gc
import math
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ser.disk.memory import is_out_of_memory
from ser.engines import exact_arithmetic
from ser.errors import WrongUse
from ser.weights.checkpoint import Checkpoint
from ser.weights.load import load_encoder

from .extractor import Extractor, Layer

# Of an encoder: float32, or autocast to bfloat16.
Precision = Literal["float32", "bfloat16"]


class Encoder(Extractor):
    """Several layers of one pretrained encoder from one forward pass.

    Layer k is the output of the k-th transformer layer, 0 the input of the first. A batch is padded
    and masked so that each utterance gets what it gets alone, and halved when memory runs out.
    """

    batched = True
    varying = frozenset({"layer"})
    # The `model_type` of each config.json that it reads.
    architectures: ClassVar[tuple[str, ...]] = ()
    # What a shorter input is filled with.
    padding: float = 0
    # A model may take another kernel with a mask of ones than with none.
    mask_always = False

    checkpoint: Checkpoint

    @classmethod
    def resolve(cls, settings: dict[str, Any], checkpoint: Checkpoint) -> Any:
        """The complete config on this checkpoint.

        Raises `WrongUse` for what the encoder cannot give.
        """
        model = checkpoint.model
        architecture = checkpoint.architecture
        if architecture not in cls.architectures:
            raise WrongUse(
                f"{model} is a {architecture} model, not a {cls.name} encoder of "
                f"{', '.join(cls.architectures)}"
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
        # Values of a padded batch that ran out of memory: no larger one is tried again.
        self.too_large = math.inf
        # Of one forward pass: `lengths` of the inputs, and `layers` `[batch, time, dim]` by number.
        self.state = threading.local()
        self.keep_layers({config.layer for config in self.configs})

    def keep_layers(self, wanted: set[int]) -> None:
        """Keep these layers of each forward pass in `state.layers`, by number."""

        def keep(number: int, _module: Any, args: Any, output: Any = None) -> None:
            hidden = args if output is None else output
            self.state.layers[number] = hidden[0] if isinstance(hidden, tuple) else hidden

        # Layers above the deepest wanted one cost time and change nothing: they are dropped. One
        # always stays.
        encoder = getattr(self.model, "encoder", self.model)
        encoder.layers = encoder.layers[: max(*wanted, 1)]

        for number in wanted:
            if number == 0:
                encoder.layers[0].register_forward_pre_hook(partial(keep, number))
            else:
                encoder.layers[number - 1].register_forward_hook(partial(keep, number))

    def hidden(self, config: Any, output: Any) -> Tensor:
        """The layer `[batch, time, dim]` that `config` names, of the pass that gave `output`."""
        layer: Tensor = self.state.layers[config.layer]
        return layer

    def row_count(self, length: int) -> int:
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
                return self.forward_whole(inputs)
            except (MemoryError, RuntimeError) as fault:
                if len(inputs) == 1 or not is_out_of_memory(fault):
                    raise

            # Not in the handler above: there the fault's traceback holds the tensors that did not
            # fit.
            self.too_large = min(size, self.too_large)
            self.state.layers = {}
            gc.collect()
            # Does nothing without CUDA.
            torch.cuda.empty_cache()

        half = len(inputs) // 2
        return self.forward(inputs[:half]) + self.forward(inputs[half:])

    def forward_whole(self, inputs: Sequence[np.ndarray]) -> list[list[Layer]]:
        """As `forward`, in one batch. Raises what torch raises when memory runs out."""
        device = torch.device(self.device)
        # Pinned memory is copied to a GPU while the CPU goes on.
        pinned = device.type == "cuda"
        lengths = [len(values) for values in inputs]
        padded = self.padded(inputs, pinned)

        self.state.lengths = lengths
        self.state.layers = {}
        bfloat16 = self.config.precision == "bfloat16"
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            mask = None
            if self.mask_always or min(lengths) < max(lengths):
                positions = torch.arange(padded.shape[1], device=device)
                ends = torch.tensor(lengths, device=device)[:, None]
                mask = (positions < ends).long()

            output = self.model(padded.to(device, non_blocking=pinned), attention_mask=mask)
            layers = [
                self.copied(self.hidden(config, output), spec.dtype)
                for config, spec in zip(self.configs, self.specs, strict=True)
            ]
        self.state.layers = {}

        outputs: list[list[Layer]] = []
        for row, length in enumerate(lengths):
            count = self.row_count(length)
            outputs.append(
                [Layer(values[row, :count], peaks[row, :count]) for values, peaks in layers]
            )
        return outputs

    def padded(self, inputs: Sequence[np.ndarray], pinned: bool) -> Tensor:
        """The inputs `[n, …]` in one tensor `[batch, longest, …]`, filled with `padding`."""
        longest = max(len(values) for values in inputs)
        shape = (len(inputs), longest, *inputs[0].shape[1:])
        dtype = torch.from_numpy(inputs[0]).dtype

        padded = torch.full(shape, self.padding, dtype=dtype, pin_memory=pinned)
        for row, values in enumerate(inputs):
            padded[row, : len(values)] = torch.from_numpy(values)
        return padded

    @staticmethod
    def copied(hidden: Tensor, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        """A layer `[batch, time, dim]` in memory: its values in `dtype`, and `[batch, time]` peaks.

        Cast and checked on the GPU: half the bytes leave it, and the values are read once.
        """
        lowest, highest = hidden.float().aminmax(dim=-1)
        peaks = torch.maximum(-lowest, highest)
        values = hidden.to(getattr(torch, dtype))
        return values.cpu().numpy(), peaks.cpu().numpy()
