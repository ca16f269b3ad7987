"""Inputs that do not fit into memory: read from the store, block by block checked, when a batch
needs them.

A thread reads the next batches while the model computes, as many at once as the budget of memory
allows, so that a block that several of them need is read once. Rows and their order are those of
training in memory.
"""

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ser.cache.blocks import stop_reading
from ser.errors import WrongUse

from ..models.ragged import Sequences
from .dataset import FITS, Cut, Dataset, Inputs, Read, Standardizer

M_MMAP_THRESHOLD = -3  # of malloc.h
FILLED = 0.9  # of the budget may be held where everything fits
HELD = 0.4  # else
READ = 0.8  # with the two windows, one that is read while one is trained on; blocks are the rest


@dataclass(frozen=True, kw_only=True)
class Streamed(Inputs):
    """Inputs whose rows are read from the store, all at once or when they are taken.

    `values` is empty, and says their dtype and dimension.
    """

    streamed: ClassVar[bool] = True

    read: Callable[
        [np.ndarray], Inputs
    ]  # gives these utterances, which are sorted, each named once
    cost: np.ndarray  # bytes that each takes while it is read, int64 [n]
    order: np.ndarray  # the utterances in an order that is quick to read
    whole: int = 0  # the budget that would hold everything
    workers: int = 1  # each with such a budget

    @property
    def bytes(self) -> int:
        """Of all values, if they were in memory."""
        return int(self.offsets[-1]) * self.dim * self.values.itemsize

    def window(self, utterances: np.ndarray) -> Inputs:
        """These utterances, read now; the others have no rows in it."""
        numbers, offsets = np.unique(utterances % len(self.cost)), np.zeros_like(self.offsets)
        own = self.read(numbers)
        offsets[numbers + 1] = np.diff(own.offsets)
        return Inputs(own.values, offsets.cumsum(), self.pinned)

    def take(self, utterances: np.ndarray, hidden: Tensor | None = None) -> Sequences:
        """The rows of the given utterances, read now."""
        return self.window(utterances).take(utterances, hidden)

    def held(self, device: torch.device | str = "cpu") -> Inputs:
        """All of it in memory, or on a GPU, read bit by bit."""
        values = torch.empty(
            int(self.offsets[-1]), self.dim, dtype=self.values.dtype, device=device
        )
        for utterances in self.pieces(self.order):
            rows, _ = self.rows(numbers := np.sort(utterances))
            values[rows.to(device)] = self.read(numbers).values.to(device)
        return Inputs(values, self.offsets)

    def on(self, device: torch.device) -> Inputs:
        """On a GPU where it fits there; else each batch travels, from pinned memory."""
        if device.type != "cuda":
            return self
        fits = self.bytes <= FITS * torch.cuda.mem_get_info(device)[0]
        return self.held(device) if fits else replace(self, pinned=True)

    def scaled(self, standardize: Standardizer, corpora: np.ndarray) -> Inputs:
        """The same standardised as it is read."""
        numbers = np.resize(corpora, len(self.cost))
        return replace(
            self,
            values=self.values.float(),
            read=lambda utterances: self.read(utterances).scaled(standardize, numbers[utterances]),
            cost=self.cost + np.diff(self.offsets) * self.dim * 4,
        )

    def pieces(self, utterances: np.ndarray) -> list[np.ndarray]:
        """The utterances in pieces that take half the room each: what is read is copied."""
        ends, cuts = np.cumsum(self.cost[utterances]), [0]
        while cuts[-1] < len(utterances):
            most = self.room // 2 + (ends[cuts[-1] - 1] if cuts[-1] else 0)
            cuts.append(max(cuts[-1] + 1, int(np.searchsorted(ends, most, "right"))))
        return [utterances[start:stop] for start, stop in pairwise(cuts)]

    def ahead(self, data: Dataset, cuts: Iterable[Cut], unit: str, size: int) -> Iterator[Read]:
        """Each cut with inputs that hold its utterances, the next ones read by a thread meanwhile."""
        ended, numbers = threading.Event(), np.arange(len(data.utterances))
        streamed = {name: one for name, one in data.inputs.items() if isinstance(one, Streamed)}
        each = np.sum([one.cost[numbers % len(one.cost)] for one in streamed.values()], axis=0)
        units = np.bincount(data.utterances.dialogues, each) if unit == "dialogue" else each
        if (largest := float(np.sort(units)[-size:].sum())) > self.room:
            enough = int(self.workers * min(2 * largest / (READ - HELD), self.whole) / 1e6) + 1
            raise WrongUse(
                f"--memory is too small for the largest batch, which takes {largest / 1e6:.1f} MB while it is read; "
                f"--memory {enough}MB is enough, or choose a smaller batch_size"
            )

        def read(cuts: Sequence[Cut]) -> dict[str, Inputs]:
            stop_reading.set(ended)
            rows = np.concatenate([group for cut in cuts for group in cut])
            return {**data.inputs, **{name: one.window(rows) for name, one in streamed.items()}}

        with ThreadPoolExecutor(1, "ser reads ahead") as pool:
            readings = ((now, pool.submit(read, now)) for now in self._grouped(cuts, each))
            try:  # in pairs, so that the next is asked for before the one is waited for and used
                for (now, reading), _ in pairwise(
                    chain(readings, [([], Future[dict[str, Inputs]]())])
                ):
                    inputs = reading.result()
                    for cut in now:
                        yield cut, inputs
                    inputs.clear()  # the loop over the batches may hold it until the next is there
            finally:
                ended.set()

    def _grouped(self, cuts: Iterable[Cut], each: np.ndarray) -> Iterator[list[Cut]]:
        """The cuts that are read at once, by what each utterance takes: one, then two, four, …
        while there is room.

        So the first does not wait long.
        """
        group, total, most = list[Cut](), 0, 1
        for cut in cuts:
            cost = int(each[np.unique(np.concatenate(cut))].sum())
            if group and (len(group) == most or total + cost > self.room):
                yield group
                group, total, most = [], 0, 2 * most
            group.append(cut)
            total += cost
        if group:
            yield group


def within(
    budget: int, streams: Sequence[Streamed], workers: int, vectors: bool
) -> Iterator[tuple[bool, Streamed]]:
    """Whether each is held in memory, the smallest first, as long as they fit into the budget; and
    its room.

    Each of so many `workers` has this budget, and one copy of what is held serves them all, but for
    the standardised one of `vectors`.
    """
    with contextlib.suppress(
        OSError, AttributeError, TypeError
    ):  # so that glibc returns freed memory
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2 << 20)
    sizes = [
        one.bytes // workers + (4 * int(one.offsets[-1]) * one.dim if vectors else 0)
        for one in streams
    ]
    share = FILLED if sum(sizes) <= FILLED * budget else HELD
    order = np.argsort(sizes, kind="stable")
    chosen = order[np.cumsum(np.sort(sizes)) <= share * budget]
    total = sum(sizes[number] for number in chosen)
    room, whole = (
        int(max(READ * budget - total, (1 - FILLED) * budget) / 2),
        int(sum(sizes) / FILLED),
    )
    for number, one in enumerate(streams):
        yield number in chosen, replace(one, room=room, whole=whole, workers=workers)
