"""How the dev part is cut out of what a protocol leaves for training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ser.errors import WrongUse

from .utterances import Utterances

# Of the training part is dev, unless a run names another share.
DEV_SHARE = "0.1"


@dataclass(frozen=True)
class Cut:
    """How the dev part is cut."""

    dev: str = "auto"
    """"next" (the session or speakers cyclically after the test ones), "none", or a share of the
    training part such as "0.1", rounded to one of k parts: "0.4" is a half. "auto" is the
    protocol's own dev part, or else `DEV_SHARE`."""
    seed: int = 0
    """Of random cuts."""

    @property
    def share(self) -> float | None:
        """The share of the training part, if dev is one.

        Raises `WrongUse` if `dev` is none of the three.
        """
        if self.dev in ("next", "none"):
            return None

        try:
            share = float(DEV_SHARE if self.dev == "auto" else self.dev)
        except ValueError:
            raise WrongUse(
                f"dev={self.dev}: must be auto, next, none, or a share such as {DEV_SHARE}"
            ) from None
        if not 0 < share <= 0.5:
            raise WrongUse(f"dev={self.dev}: a share must be above 0 and at most 0.5")
        return share


# The protocol's own dev part, or else a share.
OWN_DEV = Cut()


def cut_share(
    utterances: Utterances, train: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, str]:
    """The dev rows, cut from `train` as about that share of it, and in words how they were cut.

    Each corpus is cut by itself: not all name dialogues or speakers.
    """
    dev_of_corpora = []
    kinds = []
    corpora = utterances.corpus_numbers[train]
    for corpus in np.unique(corpora):
        rows = train[corpora == corpus]
        units, kind = _units(utterances, rows)
        dev_of_corpora.append(rows[_first_of_k(units, utterances.labels[rows], share, seed)])
        kinds.append(kind)

    dev = np.sort(np.concatenate(dev_of_corpora)) if dev_of_corpora else train[:0]
    kinds = list(dict.fromkeys(kinds))
    return dev, f"{1 / round(1 / share):.2g} in {' or '.join(kinds)}"


def _units(utterances: Utterances, rows: np.ndarray) -> tuple[Sequence[Any], str]:
    """The unit of each row of one corpus, which is cut as a whole, and what it is.

    Whole dialogues; whole speakers where no dialogue joins two utterances of that corpus; single
    utterances where neither is known.
    """
    dialogues = utterances.dialogues[rows].tolist()
    same_corpus = utterances.corpus_numbers == utterances.corpus_numbers[rows[0]]
    all_dialogues = utterances.dialogues[same_corpus].tolist()
    if len(set(all_dialogues)) < len(all_dialogues):
        return dialogues, "whole dialogues"

    speakers = [utterances.speakers[row] for row in rows]
    if len(set(speakers)) == 1 and speakers[0] is not None:
        return dialogues, "single utterances (of one speaker)"
    if None in speakers:
        return dialogues, "single utterances (no dialogues or speakers known)"
    return speakers, "whole speakers"


def _first_of_k(units: Sequence[Any], labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Whether each utterance is in the first of k = 1 / share parts, bool [n].

    The parts hold whole units, one at least, and of each class about as much. They are those of
    scikit-learn's StratifiedGroupKFold, which takes most of a second to import.
    """
    names, group = np.unique(units, return_inverse=True)
    counts = np.zeros((len(names), labels.max() + 1))  # [group, class]
    np.add.at(counts, (group, labels), 1)
    counts = counts[:, counts.any(0)]

    # In random order, but the most uneven first.
    order = np.random.RandomState(seed).permutation(len(names))
    order = order[np.argsort(-counts[order].std(1), kind="stable")]

    k = min(round(1 / share), len(names))
    part_of_group = _spread_evenly(counts, order, k)
    return part_of_group[group] == min(part_of_group, default=0)


def _spread_evenly(counts: np.ndarray, order: np.ndarray, k: int) -> np.ndarray:
    """The part, of k, of each group [g] with its `counts` [g, class], given out in that `order`.

    Each group goes where the shares of every class are then spread most evenly over the parts, and
    of equals to the smallest part.
    """
    parts = np.zeros((k, counts.shape[1]))
    sizes = [0.0] * k
    total = counts.sum(0)
    part_of_group = np.zeros(len(counts), dtype=np.int64)
    diagonal = range(k)

    for group in order.tolist():
        tries = np.repeat(parts[None], k, 0)  # [part that gets the group, part, class]
        tries[diagonal, diagonal] += counts[group]
        tries /= total

        # The steps of `np.std` and `np.mean`, whose own overhead is most of the time of a million
        # utterances.
        tries -= np.add.reduce(tries, 1, keepdims=True) / k
        tries *= tries
        deviations = np.sqrt(np.add.reduce(tries, 1) / k)
        unevenness = (np.add.reduce(deviations, 1) / len(total)).tolist()

        best = 0
        for part in range(1, k):
            is_near = abs(unevenness[part] - unevenness[best]) <= 1e-8 + 1e-5 * unevenness[best]
            if unevenness[part] < unevenness[best] or (is_near and sizes[part] < sizes[best]):
                best = part
        part_of_group[group] = best
        parts[best] += counts[group]
        sizes[best] += counts[group].sum()
    return part_of_group
