"""The labelled utterances of a corpus as a `torch.utils.data.Dataset`, for your own training loop.

    data = TorchDataset("features", "hubert+mpnet")
    for fold in data.folds("session-out"):
        train = Subset(data, fold.train)
        loader = DataLoader(train, batch_size=8, shuffle=True, collate_fn=data.collate)

It holds everything in memory: loader workers would only copy it about. `ser train` does not use it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ser.cache.store import open_store

from .data.available import with_rows
from .data.dev_part import Cut
from .data.folds import Fold
from .data.inputs import Inputs
from .data.labelling import apply_policy
from .data.labels import get_policy
from .data.protocols import make_folds
from .data.select import FeatureSelection
from .data.sources import feature_source

__all__ = ["TorchDataset"]


class TorchDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """One item per labelled utterance: its `id`, its `label`, and each feature under its name.

    A `label` is a class number, and a feature float32 `[n, dim]`, or `[dim]` at utterance level.
    `classes` are the labels, by class number, and `left_out` names the quarantined utterances with
    the reason. Raises `MissingRows` if others lack a feature.
    """

    def __init__(
        self,
        store: str | Path,
        features: str | Sequence[str],
        labels: str = "4class",
        corpus: str | None = None,
    ) -> None:
        opened = open_store(store)
        manifest = opened.joined_manifest(corpus)
        names = features.split("+") if isinstance(features, str) else list(features)
        stored = {name: opened.feature(name, manifest.corpus) for name in names}

        policy = get_policy(labels, manifest.column("label"))
        labelled = apply_policy(policy, manifest)
        self.utterances, quarantined = with_rows(
            list(stored.values()), manifest, labelled, allow_missing=True
        )
        self.classes = self.utterances.classes
        self.left_out: dict[str, str] = {}
        for reasons in quarantined.values():
            self.left_out |= reasons

        rows = self.utterances.rows
        self.features: dict[str, Inputs] = {}
        self._vectors = set()
        for name, feature in stored.items():
            source = feature_source(FeatureSelection(feature), manifest, rows)
            self.features[name] = source.read(np.arange(len(rows)))
            if feature.spec.level == "utterance":
                self._vectors.add(name)

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {
            "id": self.utterances.ids[index],
            "label": int(self.utterances.labels[index]),
        }
        for name, inputs in self.features.items():
            values = inputs.take(np.array([index])).values.float()
            item[name] = values[0] if name in self._vectors else values
        return item

    def folds(self, protocol: str = "session-out", dev: str = "auto") -> list[Fold]:
        """Train, dev and test rows as `ser train --protocol` cuts them."""
        return make_folds(protocol, self.utterances, Cut(dev))

    @staticmethod
    def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch: features padded with zeros to `[n, longest, dim]`, vectors stacked `[n, dim]`.

        `<name> lengths`, int64 `[n]`, are the lengths of what is padded.
        """
        batch: dict[str, Any] = {
            "id": [item["id"] for item in items],
            "label": torch.tensor([item["label"] for item in items]),
        }
        features = [name for name in items[0] if name not in batch]
        for name in features:
            values: list[Tensor] = [item[name] for item in items]
            if values[0].ndim == 1:
                batch[name] = torch.stack(values)
            else:
                batch[name] = pad_sequence(values, batch_first=True)
                batch[f"{name} lengths"] = torch.tensor([len(value) for value in values])
        return batch
