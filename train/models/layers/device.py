"""What differs between devices: how tensors get there, and in which precision they compute."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def send(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`.

    CUDA copies it aside first, so nobody waits. Apple's GPU may read it later, so that must be
    waited for.
    """
    return x.to(device, non_blocking=device.type == "cuda")


def send_together(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Small tensors on `device`, by the same names; to CUDA in one copy, which nobody waits for.

    In that copy a tensor starts where the one before it ends: all but the last must be of a number
    of bytes that the next one's dtype divides.
    """
    if device.type != "cuda":
        return {name: x.to(device) for name, x in tensors.items()}

    as_bytes = [x.flatten().view(torch.uint8) for x in tensors.values()]
    copied = send(torch.cat(as_bytes).pin_memory(), device)
    pieces = copied.split([x.nbytes for x in tensors.values()])

    sent = {}
    for (name, x), piece in zip(tensors.items(), pieces, strict=True):
        sent[name] = piece.view(x.dtype).view(x.shape)
    return sent


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Compute in the precision of the inputs, on a type of device such as "cpu".

    torch may not have autocast for that type.
    """
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
