"""What experiments have loaded is kept in memory for the next ones."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ser.disk.locks import locked
from ser.engines.machine import memory_budget
from ser.errors import StoreError

from .dataset import Dataset
from .inputs import Inputs


@dataclass
class DataCache:
    """The features that one experiment has loaded, for the next ones.

    With a folder `shared` it serves so many `workers`, processes that share one budget of memory:
    the first that needs a feature leaves it there packed, and all map the same pages of it.
    """

    shared: Path | None = None
    workers: int = 1
    inputs: dict[str, Inputs] = field(default_factory=dict)
    datasets: dict[bytes, Dataset] = field(default_factory=dict)
    free_half: int | None = field(default_factory=lambda: memory_budget(None))
    """Half of the memory that was free at first, in bytes."""

    def fits(self, size: int, budget: int) -> bool:
        """Whether so many bytes fit into the budget.

        What earlier experiments loaded is dropped if it is in the way.
        """
        loaded = sum(inputs.values.nbytes for inputs in self.inputs.values()) // self.workers
        if loaded and loaded + size > budget:
            self.inputs.clear()
            for data in self.datasets.values():
                data.forget_inputs()
        return size <= budget

    def load(self, source: str, rows: np.ndarray, load: Callable[[], Inputs]) -> Inputs:
        """The inputs that `load` gives for these rows of the manifest.

        `source` names manifest and features, alike in all processes. Raises `StoreError` if the
        shared folder cannot be written.
        """
        content = source.encode(errors="surrogateescape") + rows.tobytes()
        key = hashlib.sha256(content).hexdigest()
        if key not in self.inputs:
            if self.shared is None:
                self.inputs[key] = load()
            else:
                self.inputs[key] = self._load_shared(self.shared, key, load)
        return self.inputs[key]

    def _load_shared(self, folder: Path, key: str, load: Callable[[], Inputs]) -> Inputs:
        """The inputs in the file of that key, which whoever comes first writes."""
        file = folder / f"{key}.safetensors"
        with locked(file.with_suffix(".lock")):
            if not file.exists():
                inputs = load()
                # A name of its own: there may be no locks here.
                unfinished = file.with_suffix(f".{os.getpid()}.part")
                tensors = {"values": inputs.values, "offsets": torch.from_numpy(inputs.offsets)}
                try:
                    save_file(tensors, unfinished)
                except SafetensorError as fault:
                    raise StoreError(
                        f"{folder}: cannot be written ({fault}); free some space and run the same "
                        "command again"
                    ) from None
                unfinished.replace(file)

        tensors = load_file(file)
        return Inputs(tensors["values"], tensors["offsets"].numpy())
