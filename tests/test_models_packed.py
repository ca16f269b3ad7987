"""What all models share: plans of packed rows, attention, pooling, and the GRU with its backward pass by hand."""

# Attributes of torch's modules have no types.
# mypy: ignore-errors

import pytest
import torch
from torch import Tensor, nn

from ser.export import plain_layers
from ser.tests.plain_layers import double  # noqa: F401
from ser.train.models import ragged
from ser.train.models.layers import Attention, bigru
from ser.train.models.ragged import RaggedLayout, recurrent

pytestmark = pytest.mark.usefixtures("double")


def test_plan_of_a_small_batch():
    plan = RaggedLayout(torch.tensor([2, 0, 3]))
    assert plan.sizes == [2, 0, 3]
    assert plan.longest == 3
    assert plan.owner.tolist() == [0, 0, 2, 2, 2]
    assert plan.position.tolist() == [0, 1, 0, 1, 2]
    x = torch.arange(1.0, 6)[:, None]
    assert plan.pad(x, -1.0)[..., 0].tolist() == [[1, 2, -1], [-1, -1, -1], [3, 4, 5]]
    assert torch.equal(plan.unpad(plan.pad(x)), x)
    forwards, backwards, alive = plan.steps
    assert alive == [2, 2, 1]
    assert x[forwards, 0].tolist() == [3, 1, 4, 2, 5]  # the longest first; step by step
    assert x[backwards, 0].tolist() == [5, 2, 4, 1, 3]


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


def test_attention_has_the_parameters_of_torchs_own():
    ours, theirs = Attention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    x, memory = torch.randn(3, 8), torch.randn(5, 8)
    plan, keys = RaggedLayout(torch.tensor([3])), RaggedLayout(torch.tensor([5]))
    torch.testing.assert_close(ours(x, plan), theirs(x, x, x)[0])
    torch.testing.assert_close(ours(x, plan, memory, keys), theirs(x, memory, memory)[0])


def test_attention_drops_only_in_training():
    layer, x, plan = Attention(8, 2, dropout=0.5), torch.randn(6, 8), RaggedLayout(torch.tensor([6]))
    assert not torch.equal(layer(x, plan), layer(x, plan))
    layer.eval()
    assert torch.equal(layer(x, plan), layer(x, plan))


def grus(count: int) -> nn.ModuleDict:
    return nn.ModuleDict({str(i): nn.GRU(5, 3, bidirectional=True) for i in range(count)})


@pytest.mark.parametrize("lengths", [[4, 1, 7, 4], [3], [1, 1]])
@pytest.mark.parametrize("count", [1, 3])
def test_bigru_and_its_gradients_are_those_of_torchs_gru(lengths, count):
    layers, plan = grus(count), RaggedLayout(torch.tensor(lengths))
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


def test_bigru_against_finite_differences():
    layers, plan = grus(1), RaggedLayout(torch.tensor([3, 1, 2]))
    x = torch.randn(6, 5, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows, *_: bigru(layers, {"0": rows}, plan)["0"], (x, *layers.parameters()))


def test_recurrent_over_nothing():
    layer = nn.LSTM(5, 3, bidirectional=True)
    assert recurrent(layer, torch.empty(0, 5), RaggedLayout(torch.tensor([0, 0]))).shape == (0, 6)
