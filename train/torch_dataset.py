"""The labelled utterances of a corpus as a `torch.utils.data.Dataset`, for a training loop of one's
own.

    data = TorchDataset("features", "hubert+mpnet")
    for fold in data.folds("session-out"):
        loader = DataLoader(Subset(data, fold.train), batch_size=8, shuffle=True, collate_fn=data.collate)

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

from .data.dataset import with_rows
from .data.dev_part import Cut
from .data.features import FeatureSelection
from .data.folds import Fold
from .data.labelling import apply_policy
from .data.labels import get_policy
from .data.protocols import make_folds

__all__ = ["TorchDataset"]


class TorchDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """One item per labelled utterance: `id`, `label` (its class number), and each feature under its
    name.

    A feature is float32 `[n, dim]`, or `[dim]` at utterance level. `classes` are the labels, by
    class number, and `left_out` names the quarantined utterances with the reason. Raises
    `MissingRows` if others lack a feature.
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
        selected = {name: FeatureSelection(opened.feature(name, manifest.corpus)) for name in names}
        policy, wanted = (
            get_policy(labels, manifest.column("label")),
            [one.feature for one in selected.values()],
        )
        labelled = apply_policy(policy, manifest)
        self.utterances, quarantined = with_rows(wanted, manifest, labelled, allow_missing=True)
        self.classes = self.utterances.classes
        self.left_out = {id_: why for held in quarantined.values() for id_, why in held.items()}
        rows = self.utterances.rows
        self.features = {
            name: one.source(manifest, rows).read(np.arange(len(rows)))
            for name, one in selected.items()
        }
        self._vectors = {
            name for name, one in selected.items() if one.feature.spec.level == "utterance"
        }

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
        """A batch: features padded with zeros to `[n, longest, dim]`; `<name> lengths`, int64
        `[n]`, are their own.
        """
        batch: dict[str, Any] = {"id": [item["id"] for item in items]}
        batch["label"] = torch.tensor([item["label"] for item in items])
        for name in [name for name in items[0] if name not in batch]:
            values: list[Tensor] = [item[name] for item in items]
            batch[name] = (
                torch.stack(values)
                if values[0].ndim == 1
                else pad_sequence(values, batch_first=True)
            )
            if values[0].ndim > 1:
                batch[f"{name} lengths"] = torch.tensor([len(value) for value in values])
        return batch
