"""The scales on which raters say valence, arousal and dominance, and the one inside a run: −1 to 1.

So an untrained head, whose outputs are about 0, predicts the middle; what a run reports is on the
corpus's scale. Nothing is clipped: raters' means and predictions may lie beyond its ends.

    n  utterances     D  dimensions: valence, arousal and dominance
"""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ser.errors import WrongUse

from .data.dataset import Dataset
from .data.utterances import DIMENSIONS, IEMOCAP_ID
from .settings import TrainingSettings

# The scale that a corpus's raters used, where the ids tell the corpus: lowest and highest.
SCALES = {
    # Busso et al. 2008, and the demo.
    IEMOCAP_ID.pattern: "1..5",
    # Busso et al. 2017.
    r"MSP-IMPROV-S\d\d\w-.*": "1..5",
    # Lotfian & Busso 2019.
    r"MSP-PODCAST_\d{4}_\d{4}.*": "1..7",
}

# The share of the ratings that may lie outside of their scale, as a few of IEMOCAP's do; with more
# it is another scale.
MAX_SHARE_OUTSIDE = 0.01


def scale_of(training: TrainingSettings) -> tuple[float, float]:
    """The lowest and the highest rating, such as 1 and 5.

    Raises `WrongUse` where `vad_scale` is not a range.
    """
    low, _, high = training.vad_scale.partition("..")
    with contextlib.suppress(ValueError):
        if 0 < float(high) - float(low) < float("inf"):
            return float(low), float(high)
    raise WrongUse(
        f"--set vad_scale={training.vad_scale[:200]}: must be auto, or a range such as 1..5"
    )


def normalise_ratings(ratings: np.ndarray, training: TrainingSettings) -> np.ndarray:
    """Ratings of the corpus's scale, whose ends become −1 and 1."""
    low, high = scale_of(training)
    return 2 * (ratings - low) / (high - low) - 1


def predicted_ratings(predicted: np.ndarray, training: TrainingSettings) -> np.ndarray:
    """The ratings of a target's predictions on the corpus's scale, float64 `[n, D]`."""
    low, high = scale_of(training)
    normalised = predicted[:, -len(DIMENSIONS) :].astype(np.float64)
    return low + (high - low) * (normalised + 1) / 2


def use_one_scale(
    target: str, training: TrainingSettings, data: Dataset
) -> tuple[TrainingSettings, Dataset]:
    """The settings and the data with all ratings on one scale, which `vad_scale` names.

    With `auto` that is the corpus's own; ratings of corpora with different scales become −1 to 1,
    each by its own. Raises `WrongUse` where a scale is not known, or does not fit the ratings.
    """
    utterances = data.utterances
    corpora = np.array(utterances.corpora or len(utterances) * [data.record.corpus])
    known_scales: dict[str, str | None] = {}
    for name in np.unique(corpora):
        known_scales[name] = _scale_by_ids(np.array(utterances.own_ids)[corpora == name])

    is_auto = training.vad_scale == "auto"
    scales_differ = len(set(known_scales.values()) - {None}) > 1
    if scales_differ and (not is_auto or None in known_scales.values()):
        raise _scales_cannot_be_joined(target, known_scales)

    normalised = utterances.dimensions.copy()
    for name, known_scale in known_scales.items():
        if is_auto:
            if known_scale is None:
                raise _scale_is_not_known(target, name)
            training = replace(training, vad_scale=known_scale)

        of_corpus = corpora == name
        ratings = utterances.dimensions[of_corpus]
        _check_scale(name, ratings, training)
        normalised[of_corpus] = normalise_ratings(ratings, training)

    if not scales_differ:
        return training, data
    on_one_scale = replace(utterances, dimensions=normalised)
    return replace(training, vad_scale="-1..1"), replace(data, utterances=on_one_scale)


def _scale_by_ids(ids: np.ndarray) -> str | None:
    """The scale of the corpus that all these ids show; None where they show none."""
    for form, scale in SCALES.items():
        if all(re.fullmatch(form, id_) for id_ in ids):
            return scale
    return None


def _check_scale(corpus: str, ratings: np.ndarray, training: TrainingSettings) -> None:
    """Raise `WrongUse` if too many of a corpus's ratings lie outside of the scale."""
    low, high = scale_of(training)
    outside = (ratings < low) | (ratings > high)
    if np.mean(outside) > MAX_SHARE_OUTSIDE:
        raise WrongUse(
            f"--set vad_scale={training.vad_scale}: corpus {corpus} has ratings from "
            f"{ratings.min():g} to {ratings.max():g}; give the scale that its raters used"
        )


def _scale_is_not_known(target: str, corpus: str) -> WrongUse:
    return WrongUse(
        f"--target {target}: the scale on which corpus {corpus} rates {', '.join(DIMENSIONS)} is "
        "not known; give it, such as --set vad_scale=1..5"
    )


def _scales_cannot_be_joined(target: str, known_scales: Mapping[str, str | None]) -> WrongUse:
    scales = ", ".join(f"{name} {scale or 'not known'}" for name, scale in known_scales.items())
    return WrongUse(
        f"--target {target}: the raters of these corpora used different scales ({scales}), and "
        "each is normalised by its own; leave --set vad_scale out, and corpora whose scale is not "
        "known"
    )
