"""Low-rank adapters of an encoder's projections, by the peft library.

Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022: a projection W x becomes
W x + (alpha / rank) B A dropout(x). W stays the checkpoint's, and A and B learn. B starts at zero,
so that before the first update the encoder is the checkpoint's.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import nn

from ser.errors import DISTRIBUTION, SerError

from .top import EncoderTop

# WavLM's gate of relative positions, 8 values a head.
NO_PROJECTIONS = ("gru_rel_pos_linear",)

# Part of the name of every weight that peft adds.
ADDED = ".lora_"


@dataclass(frozen=True)
class Adapters:
    """What adapters an encoder gets."""

    rank: int
    alpha: float
    dropout: float


def check_peft() -> None:
    """Raise `SerError` unless peft is installed."""
    if find_spec("peft") is None:
        raise SerError(
            f"lora_rank needs peft: run `pip install '{DISTRIBUTION}[lora]'`, or leave lora_rank "
            "out, which trains the layers themselves"
        )


def add_adapters(top: EncoderTop, adapters: Adapters) -> None:
    """Give the attention and feed-forward projections of the top's layers adapters.

    They alone train from now on.
    """
    # Its import takes seconds.
    from peft import LoraConfig, inject_adapter_in_model

    top.call_projections()
    settings: dict[str, Any] = {
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "lora_dropout": adapters.dropout,
        "target_modules": projections(top),
    }
    inject_adapter_in_model(LoraConfig(**settings), top)

    top.of_checkpoint = frozenset(name for name in top.state_dict() if ADDED not in name)
    for name, weight in top.named_parameters():
        weight.requires_grad_(ADDED in name)


def projections(top: EncoderTop) -> list[str]:
    """The names of the linear projections of the top's layers."""
    names = []
    for name, module in top.layers_of_stack.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith(NO_PROJECTIONS):
            names.append(f"{top.stack}.{name}")
    return names


def merge_adapters(top: nn.Module) -> None:
    """Add the adapters to the weights that they adapt: W + (alpha / rank) B A, and no adapter."""
    for name, module in list(top.named_modules()):
        if not hasattr(module, "lora_A"):
            continue
        adapted: Any = module
        adapted.merge()
        holder, _, last = name.rpartition(".")
        setattr(top.get_submodule(holder), last, adapted.get_base_layer())
