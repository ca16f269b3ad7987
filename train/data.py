"""The labelled utterances of a corpus with their features, and the batches cut from them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .batch import Batch, Sequences
from .inputs import Inputs, Scaling
from .utterances import Utterances


@dataclass
class Dataset:
    """The labelled utterances of a corpus with the inputs of one fusion."""

    utterances: Utterances
    dims: dict[str, int]  # of each modality
    read: Callable[..., Mapping[str, Inputs]]
    described: Mapping[str, Any]  # corpus, manifest and features with their digests, for a run's config
    notes: Mapping[str, Any] = field(default_factory=dict)  # synthetic, random weights, what is left out
    targets: Tensor | None = None  # soft labels [n, K]
    views: tuple[Callable[[], Mapping[str, Inputs]], ...] = ()  # augmented copies of a modality, for training alone
    device: str = "cpu"  # where batches are put together, see `on`
    _elsewhere: dict[str, "Dataset"] = field(init=False, default_factory=dict, repr=False)  # the same on other devices

    @cached_property
    def view_inputs(self) -> list[Mapping[str, Inputs]]:
        """The values of each view, by the modality that it changes."""
        with torch.inference_mode(False):
            return [read() for read in self.views]

    @cached_property
    def inputs(self) -> Mapping[str, Inputs]:
        """The values of each modality, read when they are first asked for."""
        with torch.inference_mode(False):  # whoever asks first, training must be able to use them
            return self.read()

    def on(self, device: str) -> "Dataset":
        """The same utterances with their inputs moved to a GPU once, for all runs that train on them."""
        if device == self.device:
            return self
        if device not in self._elsewhere:
            inputs = {modality: stored.on(torch.device(device)) for modality, stored in self.inputs.items()}
            self._elsewhere[device] = replace(self, read=lambda: inputs, device=device)
        return self._elsewhere[device]

    def scaled(self, scaling: Mapping[str, Scaling]) -> "Dataset":
        """The same utterances with their inputs scaled once and for all, in float32."""
        ready = {m: scaling[m].of_all(x) if m in scaling else x for m, x in self.inputs.items()}
        return replace(self, read=lambda: ready)

    def reading(self, extras: Mapping[str, str]) -> "Dataset":
        """The same utterances with an extra of a modality's feature, such as "token", in the place of its values."""
        features = {
            m: {**about, "extra": extras[m]} if m in extras else about
            for m, about in self.described["features"].items()
        }
        described = {**self.described, "features": features}
        return replace(self, read=partial(self.read, extras), described=described)

    def batch(self, groups: Sequence[np.ndarray], scaling: Mapping[str, Scaling], soft: bool = False) -> Batch:
        """The batch of the given dialogues (arrays of rows in turn order), its inputs scaled and in float32.

        The stored dtype is what travels to a GPU.
        """
        rows = np.concatenate(groups)
        inputs = {}
        for modality, stored in self.inputs.items():
            taken = stored.take(rows).to(self.device)
            scale = scaling.get(modality, Tensor.float)
            inputs[modality] = Sequences(scale(taken.values), taken.lengths)
        return Batch(
            inputs=inputs,
            labels=torch.from_numpy(self.utterances.labels[rows]),
            utterances=torch.from_numpy(rows),
            dialogues=torch.tensor([len(group) for group in groups]),
            targets=self.targets[torch.from_numpy(rows)] if soft and self.targets is not None else None,
        ).to(self.device)

    def groups(self, rows: np.ndarray, unit: str) -> list[np.ndarray]:
        """The rows as the units that a batch counts: whole dialogues in turn order, or single utterances."""
        return self.utterances.by_dialogue(rows) if unit == "dialogue" else list(rows[:, None])

    def batches(
        self,
        rows: np.ndarray,
        unit: str,
        size: int,
        scaling: Mapping[str, Scaling],
        generator: torch.Generator | None = None,
        soft: bool = False,
    ) -> Iterator[Batch]:
        """All rows once in batches of `size` units, shuffled by `generator` if there is one."""
        groups = self.groups(rows, unit)
        order = torch.randperm(len(groups), generator=generator).tolist() if generator else range(len(groups))
        for start in range(0, len(groups), size):
            yield self.batch([groups[i] for i in order[start : start + size]], scaling, soft)
