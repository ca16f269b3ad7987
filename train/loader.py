"""Reads features once, however many runs, cells and processes want them."""

import fcntl
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ser.cache.errors import MissingRows
from ser.cache.manifest import Manifest

from .choice import Choice
from .inputs import Inputs

if TYPE_CHECKING:
    from .data import Dataset


@dataclass
class Loader:
    """What one run has loaded, the next runs share.

    With a folder `shared`, so do other processes: the first that wants a feature leaves it there packed, and all map
    the same pages of it.
    """

    shared: Path | None = None
    held: dict[str, Inputs] = field(default_factory=dict)
    datasets: dict[tuple, "Dataset"] = field(default_factory=dict)

    def inputs(self, choice: Choice, manifest: Manifest, rows: np.ndarray, vectors: bool) -> Inputs:
        """The feature of the manifest's rows, pooled to vectors if asked. Raises what `Feature.load` raises."""
        view = choice.extra or (choice.pool if vectors else "rows")
        about = f"{choice.feature.path.resolve()} {manifest.digest} {view} ".encode()
        key = hashlib.sha256(about + rows.tobytes()).hexdigest()
        if key not in self.held:
            if self.shared is None:
                self.held[key] = _read(choice, manifest, rows, vectors)
            else:
                self.held[key] = _read_shared(self.shared / key, choice, manifest, rows, vectors)
        return self.held[key]


def _read(choice: Choice, manifest: Manifest, rows: np.ndarray, vectors: bool) -> Inputs:
    packed = choice.feature.load(manifest, rows.tolist())
    if len(empty := np.flatnonzero(np.diff(packed.offsets) == 0)):
        raise MissingRows(
            f"{choice.feature.spec.name}: utterance {packed.ids[empty[0]]} has no rows at all; "
            "extract it again with `ser features --retry`"
        )
    values = packed.values
    if choice.extra is not None:
        if choice.extra not in packed.extras:
            raise MissingRows(
                f"{choice.feature.spec.name} holds rows without '{choice.extra}'; run `ser cache remove "
                f"{choice.feature.spec.feature}@{choice.feature.fingerprint}` and extract it again"
            )
        values = packed.extras[choice.extra][:, None]
    inputs = Inputs(torch.from_numpy(values), packed.offsets)
    return inputs.pooled(choice.pool) if vectors and choice.feature.spec.level != "utterance" else inputs


def _read_shared(path: Path, choice: Choice, manifest: Manifest, rows: np.ndarray, vectors: bool) -> Inputs:
    """The same through `<path>.values.npy` and `<path>.offsets.npy`, written by whoever comes first."""
    values, offsets = path.with_suffix(".values.npy"), path.with_suffix(".offsets.npy")
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not offsets.exists():  # written last
            inputs = _read(choice, manifest, rows, vectors)
            np.save(values, inputs.values.numpy())
            np.save(path.with_suffix(".part.npy"), inputs.offsets)
            path.with_suffix(".part.npy").rename(offsets)
    finally:
        os.close(lock)
    # Copy on write: torch wants a writable array, nobody writes, so all processes read the same pages.
    mapped = np.load(values, mmap_mode="c", allow_pickle=False)
    return Inputs(torch.from_numpy(mapped), np.load(offsets, allow_pickle=False))
