"""The labelled utterances of a corpus: what protocols cut. A row is a position in this table."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ser.cache.manifest import Manifest

from .labels import Labelled


@dataclass(frozen=True)
class Utterances:
    """Columns of n utterances; sessions and speakers may be None.

    `dialogues` [n] numbers the dialogues; an utterance whose corpus names no dialogue is one by itself.
    `turns` [n] orders the utterances of a dialogue.
    """

    ids: Sequence[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    sessions: Sequence[str | None]
    speakers: Sequence[str | None]
    dialogues: np.ndarray
    turns: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, manifest: Manifest, labelled: Labelled) -> "Utterances":
        """The manifest's utterances that the label policy keeps."""

        def column(name: str) -> list:
            values = manifest.column(name)
            return [values[row] for row in labelled.rows]

        # A dialogue's name counts within its session: tables may number dialogues from 1 in each.
        ids, sessions, names = column("id"), column("session"), column("dialogue")
        keys = [(s, d) if d is not None else (i,) for s, d, i in zip(sessions, names, ids, strict=True)]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        turns = [row if turn is None else turn for row, turn in enumerate(column("turn"))]
        return cls(
            ids=ids,
            labels=labelled.labels,
            classes=labelled.policy.classes,
            sessions=sessions,
            speakers=column("speaker"),
            dialogues=np.array([numbers[key] for key in keys], dtype=np.int64),
            turns=np.array(turns, dtype=np.int64),
        )

    @cached_property
    def _turn_order(self) -> np.ndarray:
        return np.lexsort((self.turns, self.dialogues))

    def by_dialogue(self, rows: np.ndarray) -> list[np.ndarray]:
        """The given rows as one array per dialogue, each in turn order."""
        chosen = np.zeros(len(self), dtype=bool)
        chosen[rows] = True
        order = self._turn_order[chosen[self._turn_order]]
        starts = np.flatnonzero(np.diff(self.dialogues[order])) + 1
        return [group for group in np.split(order, starts) if len(group)]
