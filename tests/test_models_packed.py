"""What all models share: packed rows, attention, pooling, and the GRU with its backward pass by hand."""

# Attributes of torch's modules have no types.
# mypy: ignore-errors

import pytest
import torch
from torch import Tensor, nn

from ser.export import plain_layers
from ser.tests.plain_layers import double  # noqa: F401
from ser.train.models import ragged
from ser.train.models.layers import bigru
from ser.train.models.ragged import RaggedLayout, recurrent

pytestmark = pytest.mark.usefixtures("double")


def outcomes(of, x, y, lengths, others):
    """What the layers of a module make of rows `[r, 2, 5]` and `[s, 2, 5]` in sequences, some of them empty."""
    torch.manual_seed(1)
    a, b = of.RaggedLayout(torch.tensor(lengths)), of.RaggedLayout(torch.tensor(others))
    rows, pool, lstm = x.flatten(1), of.SelfAttentionPooling(10), nn.LSTM(10, 3, bidirectional=True)
    joined, layout = of.interleave(rows, a, y.flatten(1), b)
    found = [of.attention(x, y, y.flip(0), a, b, keep=keep) for keep in (1.0, 0.5)]
    found += [of.mean_rows(rows, a), of.max_rows(rows, a), pool(rows, a), of.recurrent(lstm, rows, a), joined]
    return [*found, a.pad(x, -1.0), a.unpad(a.pad(x)), x[a.first(2)], x[a.position], x[a.owner]], layout.lengths


@pytest.mark.parametrize("longest", [7, 200], ids=["padded", "one by one"])
def test_layers_and_their_gradients_are_the_plain_ones(longest):
    lengths, others = [2, 3, 0, 1], [longest, 0, 4, 1]
    x, y = (torch.randn(sum(sizes), 2, 5, requires_grad=True) for sizes in (lengths, others))
    (ours, laid), (plain, wanted) = (outcomes(of, x, y, lengths, others) for of in (ragged, plain_layers))
    assert torch.equal(laid, wanted)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(sum((one**2).sum() for one in found), (x, y)) for found in (ours, plain)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("lengths", "count"), [([4, 1, 7, 4], 3), ([1, 1], 1)])
def test_bigru_and_its_gradients_are_those_of_torchs_gru(lengths, count):
    layers = nn.ModuleDict({str(i): nn.GRU(5, 3, bidirectional=True) for i in range(count)})
    plan = RaggedLayout(torch.tensor(lengths))
    x = {name: torch.randn(sum(lengths), 5, requires_grad=True) for name in layers}
    leaves = [*layers.parameters(), *x.values()]
    wanted = {name: torch.randn(sum(lengths), 6) for name in x}

    def gradients(y: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sum((wanted[name] * rows).sum() for name, rows in y.items()), leaves)

    def sequence_by_sequence(name: str) -> Tensor:
        return torch.cat([layers[name](part[:, None])[0][:, 0] for part in x[name].split(lengths)])

    ours, theirs = bigru(layers, x, plan), {name: sequence_by_sequence(name) for name in x}
    packed = {name: recurrent(layers[name], rows, plan) for name, rows in x.items()}
    for name in x:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-14)
        torch.testing.assert_close(packed[name], theirs[name], rtol=0, atol=1e-14)
    for a, b, c in zip(gradients(ours), gradients(theirs), gradients(packed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(c, b, rtol=1e-12, atol=1e-13)
