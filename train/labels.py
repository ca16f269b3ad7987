"""Label policies: which raw consensus labels make which class, applied at training time and never in the store."""

import logging
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ser.cache.manifest import Manifest
from ser.errors import CorpusError, WrongUse, unknown

log = logging.getLogger("ser.train")

# Every name under which corpora write a category, to IEMOCAP's short code.
CODES = {
    "ang": ("ang", "anger", "angry"),
    "dis": ("dis", "disgust", "disgusted"),
    "exc": ("exc", "excited", "excitement"),
    "fea": ("fea", "fear", "fearful", "anxiety", "anxious"),
    "fru": ("fru", "frustration", "frustrated"),
    "hap": ("hap", "happiness", "happy", "joy"),
    "neu": ("neu", "neutral", "neutral state"),
    "oth": ("oth", "other"),
    "sad": ("sad", "sadness"),
    "sur": ("sur", "surprise", "surprised"),
    "bor": ("bor", "boredom", "bored"),
}
_CODE_OF = {name: code for code, names in CODES.items() for name in names}


def code(raw: str) -> str:
    """The short code of a raw category, or the category itself in lower case where it has none."""
    name = raw.strip().casefold()
    return _CODE_OF.get(name, name)


@dataclass(frozen=True)
class Policy:
    """`classes` in the order of the class numbers; `maps` from a raw label's `code` to its class."""

    name: str
    classes: tuple[str, ...]
    maps: Mapping[str, str]

    @property
    def described(self) -> dict[str, Any]:
        """What a run's config records of it."""
        return {"policy": self.name, "classes": list(self.classes), "maps": dict(self.maps)}

    def index(self, raw: str | None) -> int | None:
        """The class number of a raw label; None where the policy leaves the label out."""
        kept = self.maps.get(code(raw)) if raw is not None else None
        return None if kept is None else self.classes.index(kept)


def _built_in(name: str, *classes: str, **merged: str) -> Policy:
    return Policy(name, classes, {**{c: c for c in classes}, **merged})


POLICIES = {
    "4class": _built_in("4class", "ang", "hap", "neu", "sad", exc="hap"),  # MSMSER §3.1, Perspective §3.1
    "5class": _built_in("5class", "ang", "fru", "hap", "neu", "sad", exc="hap"),  # USC §3.2
    "6class": _built_in("6class", "ang", "exc", "fru", "hap", "neu", "sad"),
}

# IEMOCAP's own counts, per session 1–5 (papers/IEMOCAP.md); 4class also per class.
IEMOCAP_UTTERANCES = 10_039
IEMOCAP_TOTALS = {"4class": 5531, "5class": 7380, "6class": 7380}
IEMOCAP_4CLASS = {
    "1": (229, 278, 384, 194),
    "2": (137, 327, 362, 197),
    "3": (240, 286, 320, 305),
    "4": (327, 303, 258, 143),
    "5": (170, 442, 384, 245),
}
_IEMOCAP_ID = re.compile(r"Ses0[1-5][FM]_(impro|script)\d\d\w*_[FM]\d{3}")


def get_policy(name: str) -> Policy:
    """The policy of that name, or the one that a TOML file spells out.

    The file maps classes to raw labels, such as `negative = ["ang", "sad", "fru"]`; its order is the class order.
    Raises `WrongUse` for an unknown name or a file that is not such a map.
    """
    if name in POLICIES:
        return POLICIES[name]
    if name.endswith(".toml"):
        return _read_policy(Path(name))
    raise unknown("label policy", name, [*POLICIES, "FILE.toml"])


def _read_policy(path: Path) -> Policy:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WrongUse(f'{path}: no such label policy file; write lines such as `happy = ["hap", "exc"]`') from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WrongUse(f'{path}: not a TOML file ({error}); write lines such as `happy = ["hap", "exc"]`') from None
    maps: dict[str, str] = {}
    for name, raws in table.items():
        if not isinstance(raws, list) or not raws or not all(isinstance(raw, str) for raw in raws):
            raise WrongUse(f'{path}: \'{name}\' must be a list of raw labels, such as {name} = ["hap", "exc"]')
        for raw in raws:
            if maps.setdefault(code(raw), name) != name:
                raise WrongUse(f"{path}: '{raw}' stands in two classes, {maps[code(raw)]} and {name}; keep one")
    if len(table) < 2:
        raise WrongUse(f"{path}: a label policy needs two classes or more, here is {len(table)}")
    return Policy(path.name, tuple(table), maps)


@dataclass(frozen=True)
class Labelled:
    """The utterances that a policy keeps: `rows` [n] of the manifest, their `labels` [n], and what is left out."""

    policy: Policy
    rows: np.ndarray
    labels: np.ndarray
    left_out: Mapping[str, int]  # raw label → utterances


def apply_policy(policy: Policy, manifest: Manifest) -> Labelled:
    """Class numbers of the manifest's utterances, in its order.

    Raises `WrongUse` if fewer than two classes are left, `CorpusError` if a whole IEMOCAP release does not give its
    known counts.
    """
    raw = manifest.column("label")
    index = [policy.index(label) for label in raw]
    rows = np.array([row for row, kept in enumerate(index) if kept is not None], dtype=np.int64)
    labels = np.array([kept for kept in index if kept is not None], dtype=np.int64)
    if len(set(labels.tolist())) < 2:
        held = ", ".join(f"{name} ({n})" for name, n in Counter(label or "none" for label in raw).most_common())
        raise WrongUse(
            f"label policy {policy.name} keeps fewer than two classes of corpus {manifest.corpus}, whose labels are "
            f"{held}; map them in a TOML file and pass it as --labels FILE.toml"
        )
    check_iemocap(policy, manifest, rows, labels)
    dropped = Counter(label or "none" for label, kept in zip(raw, index, strict=True) if kept is None)
    return Labelled(policy, rows, labels, dict(dropped))


def is_iemocap(manifest: Manifest) -> bool:
    """Whether the manifest is the whole IEMOCAP release: all its utterances, under the release's ids."""
    return (
        not manifest.synthetic
        and len(manifest) == IEMOCAP_UTTERANCES
        and all(_IEMOCAP_ID.fullmatch(utterance) for utterance in manifest.ids)
    )


def check_iemocap(policy: Policy, manifest: Manifest, rows: np.ndarray, labels: np.ndarray) -> None:
    """Assert IEMOCAP's counts. Raises `CorpusError` naming each difference."""
    if policy.name not in IEMOCAP_TOTALS or not is_iemocap(manifest):
        return
    found = {"all": (len(rows), IEMOCAP_TOTALS[policy.name])}
    if policy.name == "4class":
        sessions = np.array(manifest.column("session"), dtype=object)[rows]
        for session, counts in IEMOCAP_4CLASS.items():
            for number, (name, expected) in enumerate(zip(policy.classes, counts, strict=True)):
                count = int(np.sum((sessions == session) & (labels == number)))
                found[f"session {session} {name}"] = (count, expected)
    wrong = [f"{what} {is_} instead of {should}" for what, (is_, should) in found.items() if is_ != should]
    if wrong:
        raise CorpusError(
            f"corpus {manifest.corpus} has the utterances of the IEMOCAP release but not its {policy.name} counts: "
            f"{', '.join(wrong)}; run `ser corpus show` on it to see which files differ"
        )


def soft_labels(policy: Policy, votes: Sequence[Sequence[Sequence[str]] | None], labels: np.ndarray) -> np.ndarray:
    """Percentages of the annotators per class, float32 [n, K] with rows that sum to 1 (USC §3.2).

    Each annotator has one vote, shared evenly among the categories that they gave; what the policy leaves out is
    dropped and the rest scaled to 1. Without a vote left, the consensus label counts alone.
    """
    targets = np.zeros((len(labels), len(policy.classes)), dtype=np.float64)
    for row, raters in enumerate(votes):
        for rater in raters or []:
            for raw in rater:
                if (kept := policy.index(raw)) is not None:
                    targets[row, kept] += 1 / len(rater)
        if targets[row].sum() == 0:
            targets[row, labels[row]] = 1
    return (targets / targets.sum(axis=1, keepdims=True)).astype(np.float32)


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
