"""Batches of streamed inputs: a thread reads the next ones while the model computes.

As many at once as the budget of memory allows, so that a block that several of them need is read
once.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ser.cache.blocks import stop_reading
from ser.errors import WrongUse

from .budget import HELD_AND_WINDOWS, SOME_HELD
from .inputs import Inputs
from .streamed import Streamed

# The utterances of one batch, dialogue by dialogue: arrays of rows in turn order.
Dialogues = Sequence[np.ndarray]

# A batch's dialogues, and by modality inputs that hold them.
BatchInputs = tuple[Dialogues, Mapping[str, Inputs]]


def read_ahead(
    inputs: Mapping[str, Inputs],
    batches: Iterable[Dialogues],
    size: int,
    utterances: int,
    dialogues: np.ndarray | None,
) -> Iterator[BatchInputs]:
    """Each batch with inputs that hold its utterances, the next ones read by a thread meanwhile.

    `inputs` are those of so many `utterances`, at least one of them streamed. `dialogues`
    [utterances] numbers their dialogues, where a batch counts `size` dialogues; None where it
    counts utterances. Raises `WrongUse` if the largest batch that could be cut so cannot be read
    within the budget of memory.
    """
    streamed: dict[str, Streamed] = {}
    for modality, stored in inputs.items():
        if isinstance(stored, Streamed):
            streamed[modality] = stored

    costs = _costs(streamed, utterances)
    room = _check_room(streamed, costs, size, dialogues)

    has_ended = threading.Event()

    def read(group: Sequence[Dialogues]) -> dict[str, Inputs]:
        stop_reading.set(has_ended)
        dialogues_of_group: list[np.ndarray] = []
        for batch in group:
            dialogues_of_group += batch
        rows = np.concatenate(dialogues_of_group)

        windows: dict[str, Inputs] = dict(inputs)
        for modality, stored in streamed.items():
            windows[modality] = stored.window(rows)
        return windows

    groups = _grouped(batches, costs, room)
    with ThreadPoolExecutor(1, "ser reads ahead") as pool:
        try:
            group = next(groups, None)
            reading = pool.submit(read, group) if group else None
            while group and reading:
                # The next is asked for before this one is waited for and used.
                next_group = next(groups, None)
                next_reading = pool.submit(read, next_group) if next_group else None

                windows = reading.result()
                for batch in group:
                    yield batch, windows
                # The loop over the batches may hold it until the next is there.
                windows.clear()

                group = next_group
                reading = next_reading
        finally:
            has_ended.set()


def _costs(streamed: Mapping[str, Streamed], utterances: int) -> np.ndarray:
    """Bytes that each utterance takes while it is read, int64 [utterances]."""
    numbers = np.arange(utterances)
    return np.sum([stored.cost[numbers % len(stored.cost)] for stored in streamed.values()], axis=0)


def _check_room(
    streamed: Mapping[str, Streamed], costs: np.ndarray, size: int, dialogues: np.ndarray | None
) -> int:
    """The bytes that may be read at once. Raises `WrongUse` if the largest batch takes more."""
    # Room, workers and the whole budget are the same of each.
    first = next(iter(streamed.values()))
    units = costs if dialogues is None else np.bincount(dialogues, costs)
    largest = float(np.sort(units)[-size:].sum())
    if largest > first.room:
        # With it `share_budget` gives a window at least so much room.
        budget = min(2 * largest / (HELD_AND_WINDOWS - SOME_HELD), first.whole)
        enough = int(first.workers * budget / 1e6) + 1
        raise WrongUse(
            f"--memory is too small for the largest batch, which takes {largest / 1e6:.1f} MB "
            f"while it is read; --memory {enough}MB is enough, or choose a smaller batch_size"
        )
    return first.room


def _grouped(
    batches: Iterable[Dialogues], costs: np.ndarray, room: int
) -> Iterator[list[Dialogues]]:
    """The batches that are read at once: one, then two, four, … while there is room.

    So the first does not wait long. `costs` are what each utterance takes.
    """
    group: list[Dialogues] = []
    total = 0
    limit = 1
    for batch in batches:
        cost = int(costs[np.unique(np.concatenate(batch))].sum())
        if group and (len(group) == limit or total + cost > room):
            yield group
            group = []
            total = 0
            limit = 2 * limit
        group.append(batch)
        total += cost
    if group:
        yield group
