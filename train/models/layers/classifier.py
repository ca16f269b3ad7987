"""The linear layers that end in logits."""

from itertools import pairwise

from torch import nn


def classifier(
    dropout: float, *widths: int, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Linear layers from each width to the next, with activation and dropout between them.

    `[n, first width]` → logits `[n, last width]`.
    """
    modules: list[nn.Module] = []
    for width, next_width in pairwise(widths):
        if modules:
            modules.append(activation())
            modules.append(nn.Dropout(dropout))
        modules.append(nn.Linear(width, next_width))
    return nn.Sequential(*modules)
