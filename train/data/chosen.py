"""Which labelled utterances a run learns from, and why others stand in none."""

from typing import Any, Protocol

import numpy as np

from ser.corpus.manifest import Manifest
from ser.errors import WrongUse

from ..records import CorpusRecord
from .labelling import apply_policy
from .labels import Policy
from .utterances import DIMENSIONS, Utterances


class LearntTarget(Protocol):
    """What `choose_utterances` asks of a `targets.Target`."""

    @property
    def name(self) -> str:
        """As `--target` names it."""

    @property
    def undecided(self) -> bool:
        """Whether it learns from utterances whose raters agree on no label."""

    @property
    def voted(self) -> bool:
        """Whether it learns the raters' votes."""

    @property
    def rated(self) -> bool:
        """Whether it learns valence, arousal and dominance."""


def choose_utterances(
    policy: Policy,
    manifest: Manifest,
    target: LearntTarget,
    only: str | None = None,
    limit: int | None = None,
) -> tuple[Utterances, dict[str, Any]]:
    """The utterances that a run learns a target from, and how many others there are, by the reason.

    Those that the policy keeps and that have what the target learns, votes or all three ratings;
    that are `only` "scripted" or "improvised"; and `limit` of these, spread evenly over the corpus.
    Raises `WrongUse` if that leaves none, and what `apply_policy` raises.
    """
    utterances = apply_policy(policy, manifest, target.undecided)
    left_out: dict[str, Any] = {}
    for raw, n in utterances.left_out.items():
        left_out[f"label {raw} is not in {policy.name}"] = n

    if target.voted:
        _check_votes(utterances, manifest, target)

    if target.rated:
        rated = _rated_rows(utterances, manifest, target)
        if len(rated) < len(utterances):
            left_out[f"no rating of {', '.join(DIMENSIONS)}"] = len(utterances) - len(rated)
        utterances = utterances.take(rated)

    if only is not None:
        kept = _rows_of_style(utterances, manifest, only)
        left_out[f"--only {only}"] = len(utterances) - len(kept)
        utterances = utterances.take(kept)

    if limit is not None and limit < len(utterances):
        left_out[f"--limit {limit}"] = len(utterances) - limit
        evenly = np.linspace(0, len(utterances) - 1, limit).round().astype(int)
        utterances = utterances.take(evenly)
    return utterances, left_out


def _check_votes(utterances: Utterances, manifest: Manifest, target: LearntTarget) -> None:
    """Raise `WrongUse` if one of the corpora has no votes."""
    votes = manifest.column("votes")
    corpora = utterances.corpora or [manifest.corpus] * len(utterances)
    with_votes = {name for name, row in zip(corpora, utterances.rows, strict=True) if votes[row]}
    without_votes = set(corpora) - with_votes
    if without_votes:
        raise WrongUse(
            f"--target {target.name}: corpus {min(without_votes)} does not hold its raters' votes; "
            "train --target class on it"
        )


def _rated_rows(utterances: Utterances, manifest: Manifest, target: LearntTarget) -> np.ndarray:
    """The utterances with all three ratings. Raises `WrongUse` if there is none."""
    rated = np.flatnonzero(np.isfinite(utterances.dimensions).all(1))
    if not len(rated):
        raise WrongUse(
            f"--target {target.name}: no utterance of corpus {manifest.corpus} has ratings of "
            f"{', '.join(DIMENSIONS)}; train --target class on it"
        )
    return rated


def _rows_of_style(utterances: Utterances, manifest: Manifest, only: str) -> np.ndarray:
    """The utterances that are "scripted" or "improvised". Raises `WrongUse` if none is."""
    is_kept = []
    for scene in utterances.scenes:
        # "script 01" is scripted, "impro 01" improvised.
        is_kept.append(scene is not None and only.startswith(scene.split()[0]))

    kept = np.flatnonzero(is_kept)
    if not len(kept):
        raise WrongUse(
            f"--only {only}: no id of corpus {manifest.corpus} says that its utterance is {only}, "
            "as IEMOCAP's do (Ses01F_script01_1_F000, Ses01F_impro01_F000); leave --only out"
        )
    return kept


def classes_by_corpus(manifest: Manifest, utterances: Utterances) -> dict[str, CorpusRecord]:
    """Of several corpora, how many utterances each has of each class, and whether it is synthetic.

    Raises `WrongUse` if one has no utterance left.
    """
    by_corpus = {}
    for part in manifest.parts:
        of_corpus = [name == part.corpus for name in utterances.corpora]
        labels = utterances.labels[of_corpus]
        if not len(labels):
            raise WrongUse(
                f"--corpus {manifest.corpus}: no utterance of {part.corpus} is left by --target, "
                "--only or --limit; leave that corpus out"
            )
        sizes = np.bincount(labels, minlength=len(utterances.classes)).tolist()
        classes = dict(zip(utterances.classes, sizes, strict=False))
        by_corpus[part.corpus] = CorpusRecord(synthetic=part.synthetic, classes=classes)
    return by_corpus
