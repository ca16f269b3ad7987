"""The losses against the papers' equations, written as loops over utterances."""

import math

import pytest
import torch

from ser.errors import WrongUse
from ser.train.fit import LOSSES, cross_entropy
from ser.train.models.ragged import Batch


def made(n: int = 7, classes: int = 4) -> tuple[dict[str, torch.Tensor], Batch]:
    generator = torch.Generator().manual_seed(0)
    outputs = {head: torch.randn(n, classes, generator=generator).double() for head in ("logits", "audio", "text")}
    labels = torch.randint(classes, (n,), generator=generator)
    return outputs, Batch({}, labels, torch.arange(n), torch.tensor([3, n - 3]))


def probability(logits: torch.Tensor, k: int) -> float:
    return math.exp(logits[k]) / sum(math.exp(x) for x in logits.tolist())


def slow(logits: torch.Tensor, batch: Batch) -> float:
    """Perspective eq. 3: the sum over the dialogues' utterances of −log P(ŷ = y)."""
    total, i = 0.0, 0
    for dialogue in batch.dialogues.tolist():
        for _ in range(dialogue):
            total += -math.log(probability(logits[i], int(batch.labels[i])))
            i += 1
    return total


def test_single_is_equation_3() -> None:
    outputs, batch = made()
    assert LOSSES["single"](outputs, batch, "sum").item() == pytest.approx(slow(outputs["logits"], batch), abs=1e-12)
    assert LOSSES["single"](outputs, batch, "mean").item() == pytest.approx(
        slow(outputs["logits"], batch) / 7, abs=1e-12
    )


def test_perspective_is_equation_6() -> None:
    outputs, batch = made()
    wanted = sum(slow(outputs[head], batch) for head in ("audio", "text", "logits"))
    assert LOSSES["perspective"](outputs, batch, "sum").item() == pytest.approx(wanted, abs=1e-12)


def test_perspective_needs_the_heads() -> None:
    outputs, batch = made()
    with pytest.raises(WrongUse, match="--loss perspective needs audio and text heads"):
        LOSSES["perspective"]({"logits": outputs["logits"]}, batch, "sum")


def test_soft_labels_weigh_the_classes() -> None:
    outputs, batch = made(3)
    batch.targets = torch.tensor([[2 / 3, 1 / 3, 0, 0], [0, 0, 1, 0], [0.25] * 4]).double()
    wanted = -sum(
        batch.targets[i, k].item() * math.log(probability(outputs["logits"][i], k)) for i in range(3) for k in range(4)
    )
    assert cross_entropy(outputs["logits"], batch, "sum").item() == pytest.approx(wanted, abs=1e-12)
