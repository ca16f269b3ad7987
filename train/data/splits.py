"""Protocols: how the utterances are cut into train, dev and test."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
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

    `left_out` holds the rows that stand in no part, by the reason why; `dev_by` says how dev was cut.
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

    def decided(self, utterances: Utterances) -> "Fold":
        """The fold with utterances whose raters agree on no label in training alone: no truth tells who is right."""
        if not utterances.undecided.any():
            return self
        judged = {"dev": self.dev, "test": self.test}
        undecided = {f"{UNDECIDED} ({part})": rows[utterances.undecided[rows]] for part, rows in judged.items()}
        parts = {part: rows[~utterances.undecided[rows]] for part, rows in judged.items()}
        return replace(self, **parts, left_out={**self.left_out, **_some(undecided)})

    @property
    def refitted(self) -> "Fold":
        """The fold with its dev part in training."""
        return replace(self, train=np.union1d(self.train, self.dev), dev=self.dev[:0])


@dataclass(frozen=True)
class Cut:
    """How the dev part is cut.

    `dev` is "next" (the session or speakers cyclically after the test ones), "none", or a share of the training part
    such as "0.1", of a whole number of parts: "0.4" is a half. "auto", the default, is the protocol's own dev part, or
    else `SHARE`. `seed` is that of random cuts.
    """

    dev: str = "auto"
    seed: int = 0

    @property
    def share(self) -> float | None:
        """The share of the training part, if dev is one. Raises `WrongUse` if `dev` is none of the three."""
        if self.dev in ("next", "none"):
            return None
        try:
            share = float(SHARE if self.dev == "auto" else self.dev)
        except ValueError:
            raise WrongUse(f"dev={self.dev}: must be auto, next, none, or a share such as {SHARE}") from None
        if not 0 < share <= 0.5:
            raise WrongUse(f"dev={self.dev}: a share must be above 0 and at most 0.5")
        return share


def known_before(fold: Fold, utterances: Utterances) -> dict[str, Any]:
    """What of the test part is known from training, as a run's result.json holds it.

    `speakers`: whether each one is heard in train or dev, None where one is unknown; `speaker_independent`: if none is;
    `repeated_texts`: how many utterances' transcripts stand in train word for word, None where none has a transcript.
    """
    heard = {utterances.speakers[row] for row in np.concatenate([fold.train, fold.dev])}
    tested = {utterances.speakers[row] for row in fold.test}
    speakers = None if None in heard | tested else {str(name): name in heard for name in sorted(tested, key=str)}
    said = utterances.texts or [None] * len(utterances)
    texts, taught = [said[row] for row in fold.test], {said[row] for row in fold.train} - {None}
    return {
        "speakers": speakers,
        "speaker_independent": speakers is not None and not any(speakers.values()),
        "repeated_texts": sum(text in taught for text in texts) if any(texts) else None,
    }


def check_leakage(fold: Fold, utterances: Utterances, separate: Sequence[str], shared_dev: bool = False) -> None:
    """Raise `LeakageError` if an utterance, or anything of `separate`, stands in two parts of the fold.

    `shared_dev` allows train and dev to have speakers in common: a dev share is cut from the training speakers.
    """
    names = {"dialogue": utterances.dialogues.tolist(), "speaker": utterances.speakers}
    columns: dict[str, Sequence] = {"utterance": utterances.ids, **{kind: names[kind] for kind in separate}}
    for kind, column in columns.items():
        held = {part: {column[row] for row in rows} - {None} for part, rows in fold.parts.items()}
        for first, second in (("train", "test"), ("dev", "test"), ("train", "dev")):
            if kind == "speaker" and shared_dev and second == "dev":
                continue
            if both := held[first] & held[second]:
                example = next(i for i, value in zip(utterances.ids, column, strict=True) if value in both)
                raise LeakageError(
                    f"fold '{fold.name}': {len(both)} {kind}(s) stand in both {first} and {second}, such as that of "
                    f"utterance {example}; a score of this fold would be worthless"
                )


def session_out(utterances: Utterances, cut: Cut) -> list[Fold]:
    """Each session is the test part once (MSMSER §3.1)."""
    sessions = _named(utterances.sessions, "session")
    if {"train", "test"} <= {*sessions}:
        raise WrongUse("the sessions of this corpus are the parts of its own split; use --protocol official")
    return _each_out("session", sessions, utterances, cut)


def corpus_out(utterances: Utterances, cut: Cut) -> list[Fold]:
    """Each corpus is the test part once, and the others train."""
    if not utterances.corpora:
        raise WrongUse("--protocol corpus-out needs several corpora, such as --corpus iemocap+emodb")
    return _each_out("corpus", np.array(utterances.corpora, dtype=object), utterances, cut)


def cross(utterances: Utterances, cut: Cut, asked: str) -> list[Fold]:
    """One fold: the corpora before the second colon train and those behind it are the test part, `cross:A+B:C`."""
    train, _, test = ({*names.split("+")} for names in asked.partition(":"))
    if train & test or not train | test <= {*utterances.corpora}:
        so = "must be cross:A:B or cross:A+B:C, no corpus on both sides, and all of them in --corpus, if that is given"
        raise WrongUse(f"--protocol cross:{asked}: {so}")
    corpora = np.array(utterances.corpora, dtype=object)
    others = _where(corpora, {*corpora} - train - test)
    left_out = {f"in a corpus that cross:{asked} does not name": others}
    return [_fold(asked.replace(":", " to "), utterances, _where(corpora, test), others[:0], cut, left_out)]


def speaker_out(utterances: Utterances, cut: Cut) -> list[Fold]:
    """Each speaker is the test part once.

    Who speaks with the test speaker shares dialogues with them, so stands in no part of that fold; the dev part is
    the next such group of speakers: a pair in IEMOCAP, one speaker where nobody shares a dialogue.
    """
    speakers = _named(utterances.speakers, "speaker")
    groups = _talking_together(speakers, utterances.dialogues)
    folds = []
    for group, following in zip(groups, [*groups[1:], groups[0]], strict=True):
        for name in group:
            left_out = {f"shares dialogues with speaker {name}": _where(speakers, {*group} - {name})}
            test, dev = _where(speakers, {name}), _where(speakers, {*following})
            folds.append(_fold(f"speaker {name}", utterances, test, dev, cut, left_out))
    return folds


def train1234_test5(utterances: Utterances, cut: Cut) -> list[Fold]:
    """Sessions 1–4 train, session 5 tests (Perspective §3.1): the last fold of `session_out`."""
    sessions = _named(utterances.sessions, "session")
    if _natural(sessions) != ["1", "2", "3", "4", "5"]:
        raise WrongUse(
            "--protocol train1234-test5 needs the sessions 1 to 5, and the corpus has "
            f"{', '.join(_natural(sessions))}; use --protocol session-out"
        )
    return session_out(utterances, cut)[-1:]


def script_out(utterances: Utterances, cut: Cut) -> list[Fold]:
    """Each session's utterances of each script are the test part once; the other sessions train, without that script.

    IEMOCAP's three scripts recur in all sessions word for word, so that a text model can learn lines by heart under
    `session_out` (Pepino et al., ICASSP 2020). Improvised dialogues train and are never tested. Where no utterance
    names a script, its place is taken by the transcripts that recur in several sessions, in three groups.
    With dev "next" the dev part is another session's utterances of another script, and train has neither.
    """
    sessions = _named(utterances.sessions, "session")
    scripts = _scripts(utterances, sessions)

    def held(session: str, script: str) -> tuple[np.ndarray, np.ndarray]:
        """The rows of both, and those of one of the two."""
        acted, said = sessions == session, scripts == script
        return np.flatnonzero(acted & said), np.flatnonzero(acted ^ said)

    pairs = [(s, k) for s in _natural(sessions) for k in sorted({*scripts} - {None}) if len(held(s, k)[0])]
    folds = []
    for at, (session, script) in enumerate(pairs):
        test, beside = held(session, script)
        left_out, dev = {"of the session or script of the test part": beside}, test[:0]
        others = [pair for pair in pairs[at:] + pairs[:at] if pair[0] != session and pair[1] != script]
        if cut.dev == "next" and others:
            dev, near = held(*others[0])
            left_out["of the session or script of the dev part"] = np.setdiff1d(near, beside)
        folds.append(_fold(f"session {session} {script}", utterances, test, dev, cut, left_out))
    return folds


def random_70_20_10(utterances: Utterances, cut: Cut) -> list[Fold]:
    """70 % train, 20 % dev, 10 % test at random, every class of ten or more in equal shares (USC §3.3).

    Speakers and dialogues stand in all parts, so the scores are speaker-dependent: they say little about new speakers.
    """
    from sklearn.model_selection import train_test_split

    sizes = np.bincount(utterances.labels)
    if sizes.max() < 10:
        raise WrongUse("--protocol random-70-20-10 needs 10 utterances of a class, and the largest has fewer")
    strata = np.where(sizes[utterances.labels] < 10, sizes.argmax(), utterances.labels)
    rows = np.arange(len(utterances))
    rest, test = train_test_split(rows, test_size=0.1, stratify=strata, random_state=cut.seed)
    if cut.dev == "none":
        return [Fold("random", np.sort(rest), rows[:0], np.sort(test))]
    share = 2 / 9 if cut.dev in ("auto", "next") else cut.share
    train, dev = train_test_split(rest, test_size=share, stratify=strata[rest], random_state=cut.seed)
    return [Fold("random", np.sort(train), np.sort(dev), np.sort(test), dev_by=f"{share:.2g} at random")]


def official(utterances: Utterances, cut: Cut) -> list[Fold]:
    """The split that the corpus comes with: its sessions called train, dev and test, test2 …, a fold for each test.

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
    dev, folds = _where(sessions, {"dev"}), []
    for name in tests:
        left_out = {"in another part of the split": _where(sessions, {*names} - {"train", "dev", name})}
        fold = _fold(name, utterances, _where(sessions, {name}), dev, Cut("next") if len(dev) else cut, left_out)
        folds.append(replace(fold, dev_by="the corpus's own") if len(dev) else fold)
    return folds


def from_file(utterances: Utterances, cut: Cut, path: Path) -> list[Fold]:
    """The folds that a file spells out; where it names no dev part, `cut` says it: "next" is the next fold's test."""
    listed = read_folds(path)
    row_of = {utterance: row for row, utterance in enumerate(utterances.ids)}

    def rows(ids: Sequence[str]) -> np.ndarray:
        return np.array(sorted({row_of[i] for i in ids if i in row_of}), dtype=np.int64)

    folds = []
    for position, (name, parts) in enumerate(listed):
        train, dev, test = (rows(parts[part]) for part in PARTS)
        if not len(test):
            raise WrongUse(f"{path}: fold {name} tests no labelled utterance of this corpus; are these its ids?")
        check_leakage(Fold(name, train, dev, test), utterances, ())
        left_out = {f"in no part of {path.name}": _without(utterances, [train, dev, test])}
        if len(dev):
            folds.append(Fold(name, train, dev, test, _some(left_out), f"named by {path.name}"))
        else:
            following = rows(listed[(position + 1) % len(listed)][1]["test"])
            folds.append(_fold(name, utterances, test, np.intersect1d(following, train), cut, left_out))
    return folds


PROTOCOLS = {
    "session-out": session_out,
    "speaker-out": speaker_out,
    "script-out": script_out,
    "train1234-test5": train1234_test5,
    "random-70-20-10": random_70_20_10,
    "corpus-out": corpus_out,
    "official": official,
}


def corpora_of(protocol: str, corpus: str | None) -> str | None:
    """The corpora to train and test on, joined with +: by default those that `cross:A:B` names."""
    kind, _, names = str(protocol).partition(":")
    return names.replace(":", "+") if corpus is None and kind == "cross" else corpus


def make_folds(protocol: str, utterances: Utterances, cut: Cut | None = None) -> list[Fold]:
    """The folds of one of `PROTOCOLS`, of `cross:A:B` or of `folds:FILE`, each checked by `check_leakage`.

    Raises `WrongUse` for a protocol that does not fit the corpus, `LeakageError` if a fold leaks.
    """
    cut = cut or Cut()
    shared_dev = cut.share is not None  # and a wrong share is refused before anything is cut
    if protocol.startswith("folds:"):
        folds = from_file(utterances, cut, Path(protocol.removeprefix("folds:")))
    elif protocol.startswith("cross:"):
        folds = cross(utterances, cut, protocol.removeprefix("cross:"))
    elif protocol in PROTOCOLS:
        folds = PROTOCOLS[protocol](utterances, cut)
    else:
        raise unknown("protocol", protocol, [*PROTOCOLS, "cross:A:B", "folds:FILE"])
    free = protocol == "random-70-20-10" or protocol.startswith("folds:")
    apart = () if free else ("dialogue",) if protocol == "official" else ("dialogue", "speaker")
    for fold in folds:
        if not len(fold.train):
            raise WrongUse(
                f"--protocol {protocol}: nothing is left to train on in fold '{fold.name}'; "
                "use --select last, a dev share such as --set dev=0.2, or another protocol"
            )
        check_leakage(fold, utterances, apart, shared_dev)
    return folds


def _each_out(kind: str, column: np.ndarray, utterances: Utterances, cut: Cut) -> list[Fold]:
    names = _natural(column)
    return [
        _fold(f"{kind} {name}", utterances, _where(column, {name}), _where(column, {following}), cut, {})
        for name, following in zip(names, [*names[1:], names[0]], strict=True)
    ]


def _fold(
    name: str,
    utterances: Utterances,
    test: np.ndarray,
    following: np.ndarray,
    cut: Cut,
    left_out: Mapping[str, np.ndarray],
) -> Fold:
    """The rest of the rows as train and dev. `following` are the dev part if that is "next"."""
    others = [test, *left_out.values()]
    rest = _without(utterances, others)
    dev, dev_by = (following, "next") if cut.dev == "next" else (rest[:0], "none")
    if cut.share is not None:
        of = utterances.corpus_numbers[rest]  # each corpus by itself: not all name dialogues or speakers
        cuts = [_share(utterances, rest[of == number], cut.share, cut.seed) for number in np.unique(of)]
        dev = np.sort(np.concatenate([rest[:0], *(rows for rows, _ in cuts)]))
        dev_by = f"{1 / round(1 / cut.share):.2g} in {' or '.join(dict.fromkeys(units for _, units in cuts))}"
    return Fold(name, _without(utterances, [*others, dev]), dev, test, _some(left_out), dev_by)


def _some(left_out: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The reasons for which anything is left out."""
    return {why: rows for why, rows in left_out.items() if len(rows)}


def _without(utterances: Utterances, others: Sequence[np.ndarray]) -> np.ndarray:
    """The rows that stand in none of the others."""
    free = np.ones(len(utterances), dtype=bool)
    free[np.concatenate(others)] = False
    return np.flatnonzero(free)


def _share(utterances: Utterances, rows: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, str]:
    """About that share of the rows, of each class about as much, in whole dialogues (one at least), and what is whole.

    Whole speakers where no dialogue joins two utterances, and single utterances where neither is known. The rows are
    those of scikit-learn's StratifiedGroupKFold, which takes most of a second to import: its first fold of 1 / share.
    """
    names, units = utterances.dialogues[rows].tolist(), "whole dialogues"
    of = utterances.corpus_numbers
    if len({*(own := utterances.dialogues[of == of[rows[0]]].tolist())}) == len(own):
        units, speakers = "single utterances (no dialogues or speakers known)", [utterances.speakers[r] for r in rows]
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
        # The steps of `np.std` and `np.mean`, whose own overhead is most of the time of a million utterances.
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


def _scripts(utterances: Utterances, sessions: np.ndarray) -> np.ndarray:
    """The script of each utterance, such as "script 01" or "texts 1", None for those that follow none."""
    found = [scene if scene and scene.startswith("script") else None for scene in utterances.scenes]
    if not any(utterances.scenes):
        said = Counter(text for text, _ in set(zip(utterances.texts, sessions, strict=True)) if text)
        groups = dict(zip(sorted(text for text in said if said[text] > 1), cycle("123"), strict=False))
        found = [f"texts {groups[text]}" if text in groups else None for text in utterances.texts]
    if not any(found):
        lack = "no script in IEMOCAP's ids, and no transcript that several sessions share"
        raise WrongUse(f"--protocol script-out: this corpus has {lack}; use --protocol session-out")
    return np.array(found, dtype=object)


def _named(values: Sequence[str | None], kind: str) -> np.ndarray:
    """The column as an array. Raises `WrongUse` if the corpus does not name every utterance's session or speaker."""
    if (nameless := sum(value is None for value in values)) or len(set(values)) < 2:
        lack = f"{nameless} utterances name none" if nameless else f"there is only one, {values[0]}"
        other = "speaker-out" if kind == "session" else "random-70-20-10"
        raise WrongUse(f"this protocol cuts by {kind}, and {lack} in this corpus; use --protocol {other}")
    return np.array(values, dtype=object)


def _natural(names: np.ndarray) -> list[str]:
    """Distinct names in the order in which people count: 2 before 10."""
    return sorted(
        set(names),
        key=lambda name: [(int(t[:4000]), "") if t.isdecimal() else (0, t) for t in re.split(r"(\d+)", name)],
    )


def _where(column: np.ndarray, names: set[str]) -> np.ndarray:
    return np.flatnonzero([name in names for name in column])


def _talking_together(speakers: np.ndarray, dialogues: np.ndarray) -> list[tuple[str, ...]]:
    """The speakers in groups that share no dialogue with one another."""
    group_of = {name: {name} for name in _natural(speakers)}
    first: dict[int, str] = {}
    for name, dialogue in zip(speakers, dialogues.tolist(), strict=True):
        mine, theirs = group_of[name], group_of[first.setdefault(dialogue, name)]
        if mine is not theirs:
            merged = mine | theirs
            group_of |= dict.fromkeys(merged, merged)
    number = {name: i for i, name in enumerate(group_of)}
    groups = {id(group): group for group in group_of.values()}.values()
    return [tuple(sorted(group, key=number.__getitem__)) for group in groups]
