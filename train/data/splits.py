"""Protocols: how the utterances are cut into train, dev and test."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np

from ser.errors import LeakageError, WrongUse, unknown

from .fold_files import PARTS, read_folds
from .labels import Utterances

SHARE = "0.1"  # of the training part is dev, unless something else is asked for
UNDECIDED = "no majority among the raters"


@dataclass(frozen=True)
class Fold:
    """One cut: rows of `Utterances` for each part; dev is empty where nothing is selected on it.

    `left_out` holds the rows that stand in no part, by the reason why; `dev_by` says how dev was
    cut.
    """

    name: str
    train: np.ndarray
    dev: np.ndarray
    test: np.ndarray
    left_out: Mapping[str, np.ndarray] = field(default_factory=dict)
    dev_by: str = "none"

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """The three parts by name."""
        return {part: getattr(self, part) for part in PARTS}

    @property
    def refitted(self) -> "Fold":
        """The fold with its dev part in training."""
        return replace(self, train=np.union1d(self.train, self.dev), dev=self.dev[:0])


@dataclass(frozen=True)
class Cut:
    """How the dev part is cut.

    `dev` is "next" (the session or speakers cyclically after the test ones), "none", or a share of
    the training part such as "0.1", rounded to one of k parts: "0.4" is a half. "auto", the
    default, is the protocol's own dev part, or else `SHARE`. `seed` is that of random cuts.
    """

    dev: str = "auto"
    seed: int = 0

    @property
    def share(self) -> float | None:
        """The share of the training part, if dev is one. Raises `WrongUse` if `dev` is none of the
        three.
        """
        if self.dev in ("next", "none"):
            return None
        try:
            share = float(SHARE if self.dev == "auto" else self.dev)
        except ValueError:
            raise WrongUse(
                f"dev={self.dev}: must be auto, next, none, or a share such as {SHARE}"
            ) from None
        if not 0 < share <= 0.5:
            raise WrongUse(f"dev={self.dev}: a share must be above 0 and at most 0.5")
        return share


def known_before(fold: Fold, utterances: Utterances) -> dict[str, Any]:
    """What of the test part also occurs in training, speakers and transcripts, as a run's
    result.json holds it.

    `speakers`: whether each one is heard in train or dev, None where one is unknown;
    `speaker_independent`: if none is; `repeated_texts`: how many utterances' transcripts stand in
    train word for word, None where none has a transcript.
    """
    known = {utterances.speakers[row] for row in np.concatenate([fold.train, fold.dev])}
    tested = {utterances.speakers[row] for row in fold.test}
    speakers = (
        None
        if None in known | tested
        else {str(name): name in known for name in sorted(tested, key=str)}
    )
    texts = utterances.texts or [None] * len(utterances)
    test_texts, train_texts = (
        [texts[row] for row in fold.test],
        {texts[row] for row in fold.train} - {None},
    )
    return {
        "speakers": speakers,
        "speaker_independent": speakers is not None and not any(speakers.values()),
        "repeated_texts": sum(text in train_texts for text in test_texts)
        if any(test_texts)
        else None,
    }


def check_leakage(
    fold: Fold, utterances: Utterances, separate: Sequence[str], shared_dev: bool = False
) -> None:
    """Raise `LeakageError` if an utterance, or anything of `separate`, stands in two parts of the
    fold.

    `shared_dev` allows train and dev to have speakers in common: a dev share is cut from the
    training speakers.
    """
    names: dict[str, Sequence] = {
        "dialogue": utterances.dialogues.tolist(),
        "speaker": utterances.speakers,
    }
    for kind, column in [
        ("utterance", utterances.ids),
        *((kind, names[kind]) for kind in separate),
    ]:
        held = {part: {column[row] for row in rows} - {None} for part, rows in fold.parts.items()}
        for first, second in (("train", "test"), ("dev", "test"), ("train", "dev")):
            if kind == "speaker" and shared_dev and second == "dev":
                continue
            if both := held[first] & held[second]:
                example = next(
                    i for i, value in zip(utterances.ids, column, strict=True) if value in both
                )
                raise LeakageError(
                    f"fold '{fold.name}': {len(both)} {kind}(s) stand in both {first} and {second}, such as that of "
                    f"utterance {example}; a score of this fold would be worthless"
                )


def session_out(utterances: Utterances, cut: Cut) -> Iterator[Fold]:
    """Leave one session out: each session is the test part once (MSMSER §3.1)."""
    sessions = _named(utterances.sessions, "session")
    if {"train", "test"} <= {*sessions}:
        raise WrongUse(
            "the sessions of this corpus are the parts of its own split; use --protocol official"
        )
    yield from _each_out("session", sessions, utterances, cut)


def corpus_out(utterances: Utterances, cut: Cut) -> Iterator[Fold]:
    """Leave one corpus out: each corpus is the test part once, and the others train."""
    if not utterances.corpora:
        raise WrongUse(
            "--protocol corpus-out needs several corpora, such as --corpus iemocap+emodb"
        )
    yield from _each_out("corpus", utterances.corpora, utterances, cut)


def cross(utterances: Utterances, cut: Cut, asked: str) -> Iterator[Fold]:
    """One fold: the corpora before the second colon train and those behind it are the test part,
    `cross:A+B:C`.
    """
    train, _, test = ({*names.split("+")} for names in asked.partition(":"))
    if train & test or not train | test <= {*utterances.corpora}:
        form = "cross:A:B or cross:A+B:C, no corpus on both sides, and all of them in --corpus, if that is given"
        raise WrongUse(f"--protocol cross:{asked}: must be {form}")
    others = dict.fromkeys(
        {*utterances.corpora} - train, f"in a corpus that cross:{asked} does not name"
    )
    parts = others | dict.fromkeys(test, "test")
    yield _fold(asked.replace(":", " to "), utterances, cut, utterances.corpora, parts)


def speaker_out(utterances: Utterances, cut: Cut) -> Iterator[Fold]:
    """Leave one speaker out: each speaker is the test part once.

    Who speaks with the test speaker shares dialogues with them, so stands in no part of that fold;
    the dev part is the next such group of speakers: a pair in IEMOCAP, one speaker where nobody
    shares a dialogue.
    """
    speakers = _named(utterances.speakers, "speaker")
    group_of: dict[str, tuple[str, ...]] = {
        name: (name,) for name in _natural(speakers)
    }  # who talk together
    first: dict[int, str] = {}  # by dialogue, who speaks first
    for name, dialogue in zip(speakers, utterances.dialogues.tolist(), strict=True):
        own, other = group_of[name], group_of[first.setdefault(dialogue, name)]
        if own is not other:
            group_of |= dict.fromkeys(own + other, own + other)
    groups = [_natural(group) for group in dict.fromkeys(group_of.values())]
    for group, following in zip(groups, [*groups[1:], groups[0]], strict=True):
        for name in group:
            beside = dict.fromkeys(group, f"shares dialogues with speaker {name}")
            parts = dict.fromkeys(following, "next") | beside | {name: "test"}
            yield _fold(f"speaker {name}", utterances, cut, speakers, parts)


def train1234_test5(utterances: Utterances, cut: Cut) -> Iterator[Fold]:
    """Sessions 1–4 train, session 5 tests (Perspective §3.1): the last fold of `session_out`."""
    names = _natural(_named(utterances.sessions, "session"))
    if names != ["1", "2", "3", "4", "5"]:
        raise WrongUse(
            "--protocol train1234-test5 needs the sessions 1 to 5, and the corpus has "
            f"{', '.join(names)}; use --protocol session-out"
        )
    yield [*session_out(utterances, cut)][-1]


def script_out(utterances: Utterances, cut: Cut) -> Iterator[Fold]:
    """Each session's utterances of each script are the test part once; the other sessions train,
    without that script.

    IEMOCAP's three scripts recur in all sessions word for word, so that a text model can learn
    lines by heart under `session_out` (Pepino et al., ICASSP 2020). Improvised dialogues train and
    are never tested. Where no utterance names a script, its place is taken by the transcripts that
    recur in several sessions, in three groups. With dev "next" the dev part is another session's
    utterances of another script, and train has neither.
    """
    sessions = _named(utterances.sessions, "session")
    scripts = [
        scene if scene and scene.startswith("script") else None for scene in utterances.scenes
    ]
    if not any(utterances.scenes):
        sessions_of = Counter(
            text for text, _ in {*zip(utterances.texts, sessions, strict=True)} if text
        )
        recurring = sorted(text for text, count in sessions_of.items() if count > 1)
        groups = dict(zip(recurring, cycle("123"), strict=False))
        scripts = [f"texts {groups[text]}" if text in groups else None for text in utterances.texts]
    names, units = (
        sorted({script for script in scripts if script}),
        list(zip(sessions, scripts, strict=True)),
    )
    if not names:
        lack = "no script in IEMOCAP's ids, and no transcript that several sessions share"
        raise WrongUse(f"--protocol script-out: this corpus has {lack}; use --protocol session-out")
    known = {*units}
    pairs = [pair for pair in product(_natural(sessions), names) if pair in known]
    for at, test in enumerate(pairs):
        others = [
            pair for pair in pairs[at:] + pairs[:at] if pair[0] != test[0] and pair[1] != test[1]
        ]
        parts: dict[tuple[str, str | None], str] = {test: "test"}
        if cut.dev == "next" and others:
            parts[others[0]] = "next"
        for (session, script), part in zip(list(parts), ("test", "dev"), strict=False):
            near = {
                unit for unit in known if (unit[0] == session) != (unit[1] == script)
            } - parts.keys()
            parts |= dict.fromkeys(near, f"of the session or script of the {part} part")
        yield _fold(f"session {test[0]} {test[1]}", utterances, cut, units, parts)


def random_70_20_10(utterances: Utterances, cut: Cut) -> Iterator[Fold]:
    """70 % train, 20 % dev, 10 % test at random, every class of ten or more in equal shares (USC
    §3.3).

    Speakers and dialogues stand in all parts, so the scores are speaker-dependent: they say little
    about new speakers.
    """
    from sklearn.model_selection import train_test_split

    sizes = np.bincount(utterances.labels)
    if sizes.max() < 10:
        raise WrongUse(
            "--protocol random-70-20-10 needs 10 utterances of a class, and the largest has fewer"
        )
    strata = np.where(sizes[utterances.labels] < 10, sizes.argmax(), utterances.labels)
    rows = np.arange(len(utterances))
    rest, test = train_test_split(rows, test_size=0.1, stratify=strata, random_state=cut.seed)
    share, dev = 2 / 9 if cut.dev in ("auto", "next") else cut.share, rows[:0]
    if share is not None:
        _, dev = train_test_split(
            rest, test_size=share, stratify=strata[rest], random_state=cut.seed
        )
    parts = dict.fromkeys(test, "test") | dict.fromkeys(dev, "dev")
    yield _fold("random", utterances, cut, rows, parts, f"{share or 0:.2g} at random")


def official(utterances: Utterances, cut: Cut) -> Iterator[Fold]:
    """The split that the corpus comes with: its sessions called train, dev and test, test2 …, a
    fold for each test.

    Speakers may stand in several of its parts. Where it has no dev part, `cut` says what is.
    """
    sessions = _named(utterances.sessions, "session")
    names = _natural(sessions)
    tests = [name for name in names if name.startswith("test")]
    if "train" not in names or not tests:
        raise WrongUse(
            "--protocol official needs sessions called train and test, as MELD has, and this corpus has "
            f"{', '.join(names[:9])}; use --protocol session-out, or folds:FILE"
        )
    others = dict.fromkeys({*names} - {"train"}, "in another part of the split") | {"dev": "dev"}
    for name in tests:
        yield _fold(name, utterances, cut, sessions, others | {name: "test"}, "the corpus's own")


def from_file(utterances: Utterances, cut: Cut, file: str) -> Iterator[Fold]:
    """The folds that a file spells out; where it names no dev part, `cut` says it: "next" is the
    next fold's test.
    """
    listed, ids = read_folds(path := Path(file)), utterances.ids
    for (name, parts), (_, following) in zip(listed, [*listed[1:], listed[0]], strict=True):
        train, dev, test = (np.flatnonzero([one in parts[part] for one in ids]) for part in PARTS)
        if not len(test):
            raise WrongUse(
                f"{path}: fold {name} tests no labelled utterance of this corpus; are these its ids?"
            )
        check_leakage(Fold(name, train, dev, test), utterances, ())
        part_of = dict.fromkeys(ids, f"in no part of {path.name}")
        for part in PARTS:
            part_of |= dict.fromkeys(parts[part], part)
        part_of |= dict.fromkeys(parts["train"] & following["test"], "next")
        yield _fold(name, utterances, cut, ids, part_of, f"named by {path.name}")


_PLAIN = (
    session_out,
    speaker_out,
    script_out,
    train1234_test5,
    random_70_20_10,
    corpus_out,
    official,
)
PROTOCOLS: dict[str, Callable[..., Iterator[Fold]]] = {
    rule.__name__.replace("_", "-"): rule for rule in _PLAIN
}
APART: dict[str, Sequence[str]] = {
    "random-70-20-10": (),
    "folds": (),
    "official": ("dialogue",),
}  # else speakers too


def corpora_of(protocol: str, corpus: str | None) -> str | None:
    """The corpora to train and test on, joined with +: by default those that `cross:A:B` names."""
    kind, _, names = str(protocol).partition(":")
    return names.replace(":", "+") if corpus is None and kind == "cross" else corpus


def make_folds(protocol: str, utterances: Utterances, cut: Cut = Cut()) -> list[Fold]:
    """The folds of one of `PROTOCOLS`, of `cross:A:B` or of `folds:FILE`, each checked by
    `check_leakage`.

    Raises `WrongUse` for a protocol that does not fit the corpus, `LeakageError` if a fold leaks.
    """
    shared_dev = cut.share is not None  # and a wrong share is refused before anything is cut
    kind, colon, asked = protocol.partition(":")
    known = {**PROTOCOLS, "cross:": cross, "folds:": from_file}
    if kind + colon not in known:
        raise unknown("protocol", protocol, [*PROTOCOLS, "cross:A:B", "folds:FILE"])
    folds = [*known[kind + colon](utterances, cut, *[asked] * bool(colon))]
    apart = APART.get(kind, ("dialogue", "speaker"))
    for fold in folds:
        if not len(fold.train):
            raise WrongUse(
                f"--protocol {protocol}: nothing is left to train on in fold '{fold.name}'; "
                "use --select last, a dev share such as --set dev=0.2, or another protocol"
            )
        check_leakage(fold, utterances, apart, shared_dev)
    return folds


def _each_out(kind: str, units: Sequence[str], utterances: Utterances, cut: Cut) -> Iterator[Fold]:
    names = _natural(units)
    for name, following in zip(names, [*names[1:], names[0]], strict=True):
        yield _fold(f"{kind} {name}", utterances, cut, units, {following: "next", name: "test"})


def _fold(
    name: str,
    utterances: Utterances,
    cut: Cut,
    units: Iterable[Any],
    parts: Mapping[Any, str],
    own: str = "",
) -> Fold:
    """The fold in which the utterances of each of the `units` [n] stand in that unit's part; by
    default they train.

    What is "dev" is the dev part, and dev by `own`; if there is none, it is what is "next", or a
    share of what trains, as `cut` says. What is called otherwise is left out for that reason.
    Utterances whose raters agree on no label stand in training alone: no truth tells who is right.
    """
    names = list(dict.fromkeys(("train", "next", "dev", "test", *parts.values())))
    named = {unit: names.index(part) for unit, part in parts.items()}
    part_of = np.array([named.get(unit, 0) for unit in units])
    following, dev, test, *others = (
        np.flatnonzero(part_of == number) for number in range(1, len(names))
    )
    train, dev_by = np.flatnonzero(part_of < 2), "none"
    if len(dev):
        dev_by = own
    elif cut.dev == "next":
        dev, dev_by = following, "next"
    elif cut.share is not None:
        of = utterances.corpus_numbers[
            train
        ]  # each corpus by itself: not all name dialogues or speakers
        cuts = [
            _share(utterances, train[of == number], cut.share, cut.seed) for number in np.unique(of)
        ]
        dev = np.sort(np.concatenate([dev, *(rows for rows, _ in cuts)]))
        dev_by = f"{1 / round(1 / cut.share):.2g} in {' or '.join(dict.fromkeys(whole for _, whole in cuts))}"
    left_out = {why: rows for why, rows in zip(names[4:], others, strict=True) if len(rows)}
    train = np.setdiff1d(train, dev, assume_unique=True)
    if utterances.undecided.any():
        judged = {
            part: (rows, utterances.undecided[rows])
            for part, rows in (("dev", dev), ("test", test))
        }
        left_out |= {
            f"{UNDECIDED} ({part})": rows[out] for part, (rows, out) in judged.items() if out.any()
        }
        dev, test = (rows[~out] for rows, out in judged.values())
    return Fold(name, train, dev, test, left_out, dev_by)


def _share(
    utterances: Utterances, rows: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, str]:
    """About that share of the rows, of each class about as much, in whole dialogues (one at least),
    and what is whole.

    Whole speakers where no dialogue joins two utterances, and single utterances where neither is
    known. The rows are those of scikit-learn's StratifiedGroupKFold, which takes most of a second
    to import: its first fold of 1 / share.
    """
    names, units = utterances.dialogues[rows].tolist(), "whole dialogues"
    of = utterances.corpus_numbers
    if len({*(own := utterances.dialogues[of == of[rows[0]]].tolist())}) == len(own):
        units, speakers = (
            "single utterances (no dialogues or speakers known)",
            [utterances.speakers[r] for r in rows],
        )
        if len(set(speakers)) == 1 and speakers[0] is not None:
            units = "single utterances (of one speaker)"
        elif None not in speakers:
            names, units = speakers, "whole speakers"
    groups, group = np.unique(names, return_inverse=True)
    counts = np.zeros((len(groups), utterances.labels.max() + 1))
    np.add.at(counts, (group, utterances.labels[rows]), 1)
    counts = counts[:, counts.any(0)]
    order = np.random.RandomState(seed).permutation(len(groups))
    order = order[np.argsort(-counts[order].std(1), kind="stable")]  # the most uneven first
    folds = np.zeros((min(round(1 / share), len(groups)), counts.shape[1]))
    chosen, sizes, total = np.zeros(len(groups), dtype=np.int64), [0.0] * len(folds), counts.sum(0)
    diagonal = range(len(folds))
    for which in order.tolist():
        tries = np.repeat(folds[None], len(folds), 0)  # [fold that gets the group, fold, class]
        tries[diagonal, diagonal] += counts[which]
        tries /= total
        # The steps of `np.std` and `np.mean`, whose own overhead is most of the time of a million
        # utterances.
        tries -= np.add.reduce(tries, 1, keepdims=True) / len(folds)
        tries *= tries
        deviations = np.sqrt(np.add.reduce(tries, 1) / len(folds))
        spread, best = (np.add.reduce(deviations, 1) / len(total)).tolist(), 0
        for fold in range(1, len(folds)):
            near = abs(spread[fold] - spread[best]) <= 1e-8 + 1e-5 * spread[best]
            if spread[fold] < spread[best] or (near and sizes[fold] < sizes[best]):
                best = fold
        chosen[which] = best
        folds[best] += counts[which]
        sizes[best] += counts[which].sum()
    return rows[chosen[group] == min(chosen, default=0)], units


def _named(values: Sequence[str | None], kind: str) -> list[str]:
    """The column. Raises `WrongUse` if the corpus does not name every utterance's session or
    speaker.
    """
    if (nameless := sum(value is None for value in values)) or len(set(values)) < 2:
        lack = f"{nameless} utterances name none" if nameless else f"there is only one, {values[0]}"
        other = "speaker-out" if kind == "session" else "random-70-20-10"
        raise WrongUse(
            f"this protocol cuts by {kind}, and {lack} in this corpus; use --protocol {other}"
        )
    return [value for value in values if value is not None]


def _natural(names: Iterable[str]) -> list[str]:
    """Distinct names in the order in which people count: 2 before 10; 01 before 1, whatever the
    hash seed.
    """

    def key(name: str) -> tuple[list[tuple[int, str]], str]:
        return [
            (int(t[:4000]), "") if t.isdecimal() else (0, t) for t in re.split(r"(\d+)", name)
        ], name

    return sorted(set(names), key=key)
