"""CUDA graphs: work of the same tensors, captured once and replayed from then on."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor


class Graphs:
    """Functions of tensors that keep their places, by their keys: on a GPU, CUDA graphs.

    The first call of a key runs as it is, the second is captured, and replayed from then on: no
    operation is started by itself any more. Where that fails (an old driver, too little memory) the
    `logs` get a line, and all run as they are. Results are copies.
    """

    def __init__(self, enabled: bool, logs: Sequence[Callable[[str], None]] = ()) -> None:
        self.enabled = enabled
        self.logs = logs
        # By key, the graph and the tensor that it fills; None of what has run but once.
        self._known: dict[Hashable, tuple[Any, Tensor] | None] = {}
        # One pool for all: none needs what another has left there.
        self._pool: Any = None

    def __call__(self, key: Hashable, function: Callable[[], Tensor]) -> Tensor:
        """What `function` returns: of one key always the same function of the same tensors."""
        if self.enabled and key in self._known and self._known[key] is None:
            self._try_to_capture(key, function)

        known = self._known.setdefault(key)
        if known is None:
            return function().clone()

        graph, result = known
        graph.replay()
        return result.clone()

    def _try_to_capture(self, key: Hashable, function: Callable[[], Tensor]) -> None:
        """Capture the function; where that fails, say so once, and try no other."""
        try:
            self._known[key] = self.captured(function)
        except RuntimeError as fault:
            self.enabled = False
            # The end of a broken capture fails too: what came before it is the reason.
            reason, _, _ = str(fault.__context__ or fault).partition("\n")
            for log in self.logs:
                log(
                    "updates cannot be captured as CUDA graphs here, and each takes longer "
                    f"({reason})"
                )

    def captured(self, function: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        """The calls as a CUDA graph, and the tensor that it fills on replay.

        Nothing is computed yet.
        """
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # A capture that breaks leaves its own stream as the current one; and other threads may use
        # the GPU meanwhile.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            result = function()
        return graph, result
