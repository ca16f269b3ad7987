"""Columns of labelled utterances: what protocols cut, batches take and targets learn."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

# What raters say of an utterance beside its category.
DIMENSIONS = ("valence", "arousal", "dominance")

IEMOCAP_ID = re.compile(r"Ses0[1-5][FM]_(impro|script)(\d\d)\w*_[FM]\d{3}")


@dataclass(frozen=True)
class Utterances:
    """Columns of n labelled utterances."""

    ids: Sequence[str]
    labels: np.ndarray
    """Class numbers, int64 [n]."""
    classes: tuple[str, ...]
    """Their names, by class number."""
    sessions: Sequence[str | None]
    speakers: Sequence[str | None]
    dialogues: np.ndarray
    """Numbers of the dialogues [n]; an utterance whose corpus names none is one by itself."""
    turns: np.ndarray
    """What orders the utterances of a dialogue [n]."""
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """The rows of the manifest that they come from [n], if any."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many utterances of each raw label the label policy leaves out."""
    texts: Sequence[str | None] = ()
    """The words of the transcripts, without case and punctuation, so that what is said in the same
    words is equal; None where there is none."""
    sounds: Sequence[str | None] = ()
    """Equal for equal audio, whatever its id; None where there is none."""
    dimensions: np.ndarray = field(default_factory=lambda: np.empty((0, len(DIMENSIONS))))
    """Valence, arousal and dominance on the corpus's scale [n, 3]; NaN where there is no rating."""
    votes: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """The raters' shares [n, K], see `soft_labels`."""
    undecided: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))
    """Whose label is no majority's, bool [n]."""
    corpora: Sequence[str] = ()
    """Each utterance's corpus, if there are several."""
    genders: Sequence[str | None] = ()
    """"F" or "M" of each, or None."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def speaker_numbers(self) -> np.ndarray:
        """The speakers as numbers, int64 [n]; those who are not named count as one."""
        return numbered(self.speakers)

    @cached_property
    def corpus_numbers(self) -> np.ndarray:
        """The corpora as numbers from 1, in alphabetical order, int64 [n].

        0 where there is one corpus alone.
        """
        if not self.corpora:
            return np.zeros(len(self), np.int64)
        _, numbers = np.unique(self.corpora, return_inverse=True)
        return numbers + 1

    @property
    def own_ids(self) -> Sequence[str]:
        """The ids as their corpora have them: of several, without the corpus in front."""
        if not self.corpora:
            return self.ids
        return [id_.partition("/")[2] for id_ in self.ids]

    @property
    def scenes(self) -> list[str | None]:
        """What was acted, by IEMOCAP's ids: "script 01" of Ses05M_script01_1b_F000.

        None for any other id.
        """
        scenes: list[str | None] = []
        for id_ in self.own_ids:
            match = IEMOCAP_ID.fullmatch(id_)
            scenes.append(f"{match[1]} {match[2]}" if match else None)
        return scenes

    def take(self, places: np.ndarray) -> "Utterances":
        """The utterances at these `places` [m], in that order; one may come several times."""

        def rows_of(column: np.ndarray) -> np.ndarray:
            return column[places] if len(column) else column

        def items_of(column: Sequence[Any]) -> Sequence[Any]:
            return [column[row] for row in places] if column else column

        return replace(
            self,
            ids=items_of(self.ids),
            labels=rows_of(self.labels),
            sessions=items_of(self.sessions),
            speakers=items_of(self.speakers),
            dialogues=numbered(rows_of(self.dialogues).tolist()),
            turns=rows_of(self.turns),
            rows=rows_of(self.rows),
            texts=items_of(self.texts),
            sounds=items_of(self.sounds),
            dimensions=rows_of(self.dimensions),
            votes=rows_of(self.votes),
            undecided=rows_of(self.undecided),
            corpora=items_of(self.corpora),
            genders=items_of(self.genders),
        )


def numbered(keys: Sequence[Any]) -> np.ndarray:
    """Each key's number, counted by first appearance; int64 [n]."""
    numbers: dict[Any, int] = {}
    for key in keys:
        numbers.setdefault(key, len(numbers))
    return np.array([numbers[key] for key in keys], dtype=np.int64)
