"""A fold, how its dev part is cut, and the guard that nothing leaks between its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ser.cache.errors import SerError, WrongUse

from .utterances import Utterances


class LeakError(SerError):
    """Something stands in two parts of a fold."""


@dataclass(frozen=True)
class Fold:
    """One cut: rows of `Utterances` for each part; dev is empty where nothing is selected on it.

    `left_out` holds the rows that stand in no part, by the reason why.
    """

    name: str
    train: np.ndarray
    dev: np.ndarray
    test: np.ndarray
    left_out: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """The three parts by name."""
        return {"train": self.train, "dev": self.dev, "test": self.test}


@dataclass(frozen=True)
class Cut:
    """How the dev part is cut.

    `dev` is "next" (the session or speakers cyclically after the test ones, by default), "none", or a share of the
    training part in whole dialogues, such as "0.1". `seed` is that of random cuts.
    """

    dev: str = "next"
    seed: int = 0

    @property
    def share(self) -> float | None:
        """The share of the training part, if dev is one. Raises `WrongUse` if `dev` is none of the three."""
        if self.dev in ("next", "none"):
            return None
        try:
            share = float(self.dev)
        except ValueError:
            raise WrongUse(f"dev={self.dev}: must be next, none, or a share such as 0.1") from None
        if not 0 < share <= 0.5:
            raise WrongUse(f"dev={self.dev}: a share must be above 0 and at most 0.5")
        return share


def is_speaker_independent(fold: Fold, utterances: Utterances) -> bool:
    """Whether no speaker of the fold's test part is heard in train or dev; False where a speaker is unknown."""
    heard = {utterances.speakers[row] for row in np.concatenate([fold.train, fold.dev])}
    tested = {utterances.speakers[row] for row in fold.test}
    return None not in heard | tested and not heard & tested


def guard(fold: Fold, utterances: Utterances, separate: Sequence[str], shared_dev: bool = False) -> None:
    """Raise `LeakError` if an utterance, or anything of `separate`, stands in two parts of the fold.

    `shared_dev` allows train and dev to have speakers in common: a dev share is cut from the training speakers.
    """
    columns: dict[str, Sequence] = {"utterance": utterances.ids}
    columns |= {"dialogue": utterances.dialogues.tolist()} if "dialogue" in separate else {}
    columns |= {"speaker": utterances.speakers} if "speaker" in separate else {}
    for kind, column in columns.items():
        held = {part: {column[row] for row in rows} - {None} for part, rows in fold.parts.items()}
        for first, second in (("train", "test"), ("dev", "test"), ("train", "dev")):
            if kind == "speaker" and shared_dev and second == "dev":
                continue
            if both := held[first] & held[second]:
                example = next(i for i, value in zip(utterances.ids, column, strict=True) if value in both)
                raise LeakError(
                    f"fold '{fold.name}': {len(both)} {kind}(s) stand in both {first} and {second}, such as that of "
                    f"utterance {example}; a score of this fold would be worthless"
                )
