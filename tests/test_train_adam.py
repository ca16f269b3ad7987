"""Our Adam against torch's own: the same bytes, without torch's compiler."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from ser.train.fit import Adam


def trained(kind: type[torch.optim.Adam], fused: bool) -> tuple[list[Tensor], dict]:
    """Weights and Adam's state after 30 updates, half of them with an optimiser made anew from the state."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))
    x = torch.randn(11, 7)
    adam = kind(model.parameters(), lr=1e-2, weight_decay=1e-3, fused=fused)
    for update in range(30):
        if update == 15:
            state = adam.state_dict()
            adam = kind(model.parameters(), lr=1e-2, weight_decay=1e-3, fused=fused)
            adam.load_state_dict(state)
        adam.zero_grad()
        model(x).square().mean().backward()
        adam.step()
    return [weight.detach() for weight in model.parameters()], adam.state_dict()


@pytest.mark.parametrize("fused", [True, False])
def test_the_same_bytes_as_torch_s(fused: bool) -> None:
    (ours, state), (theirs, other) = trained(Adam, fused), trained(torch.optim.Adam, fused)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert state["param_groups"] == other["param_groups"]
    for number, moments in state["state"].items():
        assert all(torch.equal(value, other["state"][number][name]) for name, value in moments.items())


def test_a_step_leaves_no_graph_and_hooks_are_called() -> None:
    weight = nn.Parameter(torch.ones(3))
    adam, called = Adam([weight], fused=True), []
    adam.register_step_post_hook(lambda *_: called.append(torch.is_grad_enabled()))
    weight.sum().backward()
    adam.step()
    assert called == [True] and weight.grad_fn is None and weight.requires_grad


def test_the_compiler_is_not_imported() -> None:
    code = (
        "import sys, torch\nfrom ser.train.fit import Adam\n"
        "weight = torch.nn.Parameter(torch.ones(3))\nadam = Adam([weight], fused=True)\n"
        "weight.sum().backward(); adam.step(); adam.zero_grad(); adam.load_state_dict(adam.state_dict())\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd="/").returncode == 0
