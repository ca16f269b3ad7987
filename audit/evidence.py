"""What the files of an audit say together, whichever toolkit wrote them.

n  predictions     K  classes
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import msgspec
import numpy as np

# The parts that a fold can have, as checks call them.
PARTS = ("train", "dev", "test")

# Pairs of parts between which nothing may be shared, the worst first.
PAIRS = (("train", "test"), ("dev", "test"), ("train", "dev"))


class Utterance(msgspec.Struct, frozen=True, gc=False):
    """What is known of one utterance, from its row, its id, or the corpus."""

    speaker: str | None = None
    dialogue: str | None = None
    text: str | None = None
    label: str | None = None
    """The category, as the corpus writes it."""
    sound: str | None = None
    """Equal for equal audio bytes."""


@dataclass(frozen=True)
class Predictions:
    """What one system predicted, over all folds and seeds that are here."""

    source: str
    """The file or files, as they were named."""

    ids: list[str]
    """Of each prediction `[n]`, as the file writes them."""

    truth: list[str]
    """The true classes `[n]`."""

    predicted: list[str]
    """The predicted classes `[n]`."""

    classes: list[str]
    """The K classes, in the order of `probabilities`; sorted where there are none."""

    probabilities: np.ndarray | None = None
    """`[n, K]`, or None."""

    folds: list[str] | None = None
    """The fold that each was tested in `[n]`."""

    seeds: list[str] | None = None
    """The seed of each `[n]`."""

    epochs: list[str] | None = None
    """The epoch of each `[n]`, where predictions of several were kept."""

    declared: "Declaration | None" = None
    """What a run of ser says of itself."""

    def __len__(self) -> int:
        return len(self.ids)


def rows_of(predictions: Predictions, rows: list[int]) -> Predictions:
    """Some rows of predictions, in this order."""

    def chosen(values: list[str] | None) -> list[str] | None:
        return None if values is None else [values[row] for row in rows]

    probabilities = predictions.probabilities
    return Predictions(
        source=predictions.source,
        ids=[predictions.ids[row] for row in rows],
        truth=[predictions.truth[row] for row in rows],
        predicted=[predictions.predicted[row] for row in rows],
        classes=predictions.classes,
        probabilities=None if probabilities is None else probabilities[rows],
        folds=chosen(predictions.folds),
        seeds=chosen(predictions.seeds),
        epochs=chosen(predictions.epochs),
        declared=predictions.declared,
    )


@dataclass(frozen=True)
class Declaration:
    """What runs of ser say of themselves."""

    protocol: str
    """Such as "speaker-out"."""

    select: str
    """Such as "val" or "best-test"."""

    heard_speakers: tuple[str, ...]
    """Test speakers that are heard in train or dev."""

    repeated_texts: int
    """Test utterances whose transcript stands in train word for word."""

    repeated_audio: int
    """Test utterances whose audio stands in train or dev under another id."""

    limited: bool
    """Whether the runs took a part of the corpus on purpose."""

    corpora: tuple[str, ...]
    """The names of the corpora in ser's store."""

    synthetic: bool
    """Whether the speech is generated, under ids that look like a corpus's."""


@dataclass(frozen=True)
class Split:
    """One fold: which utterances stand in which part."""

    source: str
    fold: str
    parts: Mapping[str, list[str]]
    """Ids by part, in the file's order, repeats included. The parts are "train", "dev" and "test";
    a corpus with several test parts also has "test1", "test2", …"""

    def of(self, part: str) -> list[str]:
        """The ids of train, dev or test; of all test parts together."""
        ids: list[str] = []
        for name, members in self.parts.items():
            if name == part or (part == "test" and name.startswith("test")):
                ids += members
        return ids


@dataclass(frozen=True)
class History:
    """The scores of a training by epoch."""

    source: str
    epochs: list[str]
    columns: Mapping[str, list[float]]
    """By heading, a number of each row; NaN where there is none."""
    kept: str | None = None
    """The epoch that is marked as kept."""
    utterances: bool = False
    """Whether each row is of one utterance, so that an epoch has many."""


@dataclass(frozen=True)
class Claim:
    """Scores that somebody claims: by metric, in [0, 1], and half of the last digit given."""

    scores: Mapping[str, tuple[float, float]]
    text: str
    """As it was given."""


@dataclass(frozen=True)
class Script:
    """A Python file that was given, and where it does not parse."""

    source: str
    fault: str


@dataclass(frozen=True)
class Evidence:
    """All that an audit knows."""

    predictions: list[Predictions] = field(default_factory=list)
    """One for each system; those of a system's folds and seeds are one."""

    splits: list[Split] = field(default_factory=list)
    histories: list[History] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    scripts: list[Script] = field(default_factory=list)

    utterances: Mapping[str, Utterance] = field(default_factory=dict)
    """What is known of utterances, by `key`."""

    corpus: list[str] | None = None
    """The keys of the whole corpus, if it was given."""

    keys: Mapping[str, str] = field(default_factory=dict)
    """Under which name an id of a file is compared with those of others."""

    notes: list[str] = field(default_factory=list)
    """What was read of each file, and how its columns were taken."""

    def key(self, id_: str) -> str:
        """The name under which an utterance is compared with those of other files."""
        return self.keys.get(id_, id_)

    def keys_of(self, ids: Sequence[str]) -> list[str]:
        """The key of each."""
        return list(map(self.keys.get, ids, ids))

    def about(self, id_: str) -> Utterance:
        """What is known of the utterance with that id."""
        return self.utterances.get(self.key(id_), _NOTHING)

    @cached_property
    def split_keys(self) -> list[dict[str, list[str]]]:
        """Of each split, by train, dev and test, the keys of its ids in their order."""
        keys = []
        for split in self.splits:
            keys.append({part: self.keys_of(split.of(part)) for part in PARTS})
        return keys

    @cached_property
    def speakers(self) -> dict[str, str]:
        """By key, who speaks, of all of whom it is known."""
        return self._known("speaker")

    @cached_property
    def dialogues(self) -> dict[str, str]:
        """By key, the dialogue of each utterance of which it is known."""
        return self._known("dialogue")

    @cached_property
    def texts(self) -> dict[str, str]:
        """By key, the transcript of each utterance that has one."""
        return self._known("text")

    @cached_property
    def labels(self) -> dict[str, str]:
        """By key, the corpus's label of each utterance that has one."""
        return self._known("label")

    @cached_property
    def sounds(self) -> dict[str, str]:
        """By key, what is equal for equal audio bytes, where they were hashed."""
        return self._known("sound")

    def _known(self, what: str) -> dict[str, str]:
        known = {}
        for key, utterance in self.utterances.items():
            value = getattr(utterance, what)
            if value:
                known[key] = value
        return known

    def all_keys(self) -> set[str]:
        """The key of every utterance that a file of predictions or a split has."""
        keys: set[str] = set()
        for predictions in self.predictions:
            keys.update(self.keys_of(predictions.ids))
        for split in self.splits:
            for members in split.parts.values():
                keys.update(self.keys_of(members))
        return keys


_NOTHING = Utterance()
