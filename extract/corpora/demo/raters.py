"""What the raters of the demo corpus say to a line: categories, and three ratings from 1 to 5."""

from dataclasses import dataclass
from itertools import chain
from statistics import multimode

import numpy as np

from .dialogues import UNDECIDED, Line
from .draws import Random

# A rating outside the scale, as seven values of the release are.
OUTSIDE = 5.5


@dataclass(frozen=True)
class Category:
    """A category of the raters."""

    word: str
    means: tuple[float, float, float]
    """Its mean valence, activation and dominance, from 1 to 5."""


CATEGORIES = {
    "neu": Category("Neutral", (3.0, 2.5, 2.8)),
    "ang": Category("Anger", (1.7, 3.9, 4.0)),
    "hap": Category("Happiness", (4.1, 3.0, 3.0)),
    "exc": Category("Excited", (4.2, 4.0, 3.5)),
    "sad": Category("Sadness", (1.9, 2.0, 2.2)),
    "fru": Category("Frustration", (2.2, 3.1, 3.2)),
    "sur": Category("Surprise", (3.2, 3.7, 2.9)),
    "fea": Category("Fear", (1.8, 3.6, 1.9)),
    "dis": Category("Disgust", (1.9, 3.0, 3.2)),
    "oth": Category("Other", (2.8, 2.8, 2.8)),
}

# Of a line on which the raters do not agree.
NO_CATEGORY = Category("Other", (2.7, 2.9, 3.0))


@dataclass(frozen=True)
class Ratings:
    """The raters' answers to a line."""

    word: str
    """What the rater says whose file has one category a line."""
    means: tuple[float, float, float]
    """Valence, activation and dominance, of all raters."""
    votes: list[list[str]]
    """The categories of three raters and of the actor, in words."""
    single: list[tuple[int, int, int | str]]
    """Valence, activation and dominance of two raters and of the actor; one may be left out."""


def draw_ratings(line: Line, rng: Random) -> Ratings:
    """The raters' answers to a line, whose consensus is its label."""
    category = CATEGORIES.get(line.label, NO_CATEGORY)
    values = np.array(category.means) + rng.normal(0, 0.3, 3)
    if (line.label == "exc" and rng.random() < 0.05) or line.id.endswith("impro03_F003"):
        values[0] = OUTSIDE
    halves = np.clip(np.round(values * 2) / 2, 1, 5)
    means = np.where(values == OUTSIDE, OUTSIDE, halves)

    votes = []
    for labels in _draw_votes(line.label, rng):
        votes.append([CATEGORIES[label].word for label in labels])
    # The actor's.
    votes.append([CATEGORIES[line.voice].word, "Anger"])

    valence, activation, dominance = np.clip(np.round(values), 1, 5).astype(int)
    single: list[tuple[int, int, int | str]] = []
    for _ in range(3):
        # Some raters leave it out.
        rated_dominance = dominance if rng.random() < 0.9 else ""
        single.append((valence, activation, rated_dominance))
    return Ratings(category.word, (means[0], means[1], means[2]), votes, single)


def _draw_votes(label: str, rng: Random) -> list[list[str]]:
    """Three raters' categories, drawn until their consensus is the label."""
    while True:
        votes = [_draw_vote(label, rng) for _ in range(3)]
        if _consensus(votes) == label:
            return votes


def _draw_vote(label: str, rng: Random) -> list[str]:
    count = int(rng.choice([1, 2], p=[0.8, 0.2]))
    drawn = rng.choice(list(CATEGORIES), count, replace=False)
    if label != UNDECIDED and rng.random() < 0.75:
        return [label]
    return [str(category) for category in drawn]


def _consensus(votes: list[list[str]]) -> str:
    """The release's rule: the category with most votes, at least two and more than any other has.

    Every category that a rater names is one vote. Of three votes or more, a category that alone has
    most of them has two or more.
    """
    leading = multimode(chain.from_iterable(votes))
    return leading[0] if len(leading) == 1 else UNDECIDED
