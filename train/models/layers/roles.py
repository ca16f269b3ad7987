"""Who speaks in a dialogue, by role: models that know people meet others in the test part."""

import torch
from torch import Tensor

from ..batch import Batch
from .device import send
from .layout import RaggedLayout


def speaker_roles(batch: Batch, layout: RaggedLayout, roles: int) -> Tensor:
    """The role of each turn's speaker, int64 `[n]`, on the batch's device.

    Role 0 is whoever speaks first in the dialogue, 1 whoever is second to speak, and so on; the
    last of the `roles` is shared by all others. Where nobody is named, a dialogue is one person's.
    `layout` is that of the dialogues.
    """
    if batch.speakers is None:
        return torch.zeros_like(layout.owner)

    speakers = layout.pad(send(batch.speakers, layout.device), -1)  # [m, t]
    is_same = speakers[:, :, None] == speakers[:, None]  # [m, t, t]
    first_turn = is_same.int().argmax(2)  # [m, t]

    turns = torch.arange(layout.longest, device=speakers.device)
    speaks_anew = first_turn == turns
    spoken_before = speaks_anew.cumsum(1) - 1
    return layout.unpad(spoken_before.gather(1, first_turn)).clamp(max=roles - 1)
