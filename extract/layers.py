"""Watch the layers of a transformer while it runs, and leave out those that nobody asked for."""

import threading
from typing import Any

from torch import Tensor, nn


class Layers:
    """The outputs of a model's layers during one forward pass, per thread.

    `taken[k]` is the output of the k-th layer, `taken[0]` the input of the first; `[batch, time, dim]`.
    """

    def __init__(self) -> None:
        self._state = threading.local()

    def watch(self, owner: nn.Module, attribute: str, wanted: set[int]) -> None:
        """Watch the `wanted` layers of the ModuleList `owner.attribute`.

        Layers above the deepest wanted one cost time and change nothing: they are dropped. One always stays.
        """
        layers: Any = getattr(owner, attribute)[: max(*wanted, 1)]
        setattr(owner, attribute, layers)
        if 0 in wanted:
            layers[0].register_forward_pre_hook(lambda _module, args: self._take(0, args[0]))
        for number in wanted - {0}:
            layers[number - 1].register_forward_hook(
                lambda _module, _args, output, number=number: self._take(
                    number, output[0] if isinstance(output, tuple) else output
                )
            )

    def _take(self, number: int, hidden: Tensor) -> None:
        self.taken[number] = hidden

    @property
    def taken(self) -> dict[int, Tensor]:
        """What this thread's forward pass has given so far; clear it before and after."""
        if not hasattr(self._state, "taken"):
            self._state.taken = {}
        return self._state.taken
