"""Protocols: how the utterances are cut into train, dev and test."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np

from ser.errors import LeakageError, WrongUse, unknown

from .dev_part import DEV_SHARE, OWN_DEV, Cut, cut_share
from .fold_files import PARTS, read_folds
from .folds import Fold
from .leakage import check_leakage
from .utterances import Utterances

# Why utterances of no majority label stand in no dev or test part.
UNDECIDED = "no majority among the raters"


def session_out(utterances: Utterances, cut: Cut) -> Iterator[Fold]:
    """Leave one session out: each session is the test part once (MSMSER §3.1)."""
    sessions = _named(utterances.sessions, "session")
    if {"train", "test"} <= set(sessions):
        raise DoesNotFit("the sessions of this corpus are the parts of its own split")
    yield from _each_out("session", sessions, utterances, cut)


def corpus_out(utterances: Utterances, cut: Cut) -> Iterator[Fold]:
    """Leave one corpus out: each corpus is the test part once, and the others train."""
    if not utterances.corpora:
        raise WrongUse(
            "--protocol corpus-out needs several corpora, such as --corpus iemocap+emodb"
        )
    yield from _each_out("corpus", utterances.corpora, utterances, cut)


def cross(utterances: Utterances, cut: Cut, corpora: str) -> Iterator[Fold]:
    """One fold, `cross:A+B:C`: the corpora before the second colon train, those behind it test.

    `corpora` is "A+B:C".
    """
    train_names, _, test_names = corpora.partition(":")
    train = set(train_names.split("+"))
    test = set(test_names.split("+"))
    if train & test or not train | test <= set(utterances.corpora):
        raise WrongUse(
            f"--protocol cross:{corpora}: must be cross:A:B or cross:A+B:C, no corpus on both "
            "sides, and all of them in --corpus, if that is given"
        )

    parts = {}
    for name in set(utterances.corpora) - train - test:
        parts[name] = f"in a corpus that cross:{corpora} does not name"
    for name in test:
        parts[name] = "test"
    yield _fold(corpora.replace(":", " to "), utterances, cut, utterances.corpora, parts)


def speaker_out(utterances: Utterances, cut: Cut) -> Iterator[Fold]:
    """Leave one speaker out: each speaker is the test part once.

    Who speaks with the test speaker shares dialogues with them, so stands in no part of that fold;
    the dev part is the next such group of speakers: a pair in IEMOCAP, one speaker where nobody
    shares a dialogue.
    """
    speakers = _named(utterances.speakers, "speaker")
    groups = _speakers_who_talk_together(speakers, utterances.dialogues.tolist())

    for group, next_group in zip(groups, [*groups[1:], groups[0]], strict=True):
        for name in group:
            parts = dict.fromkeys(next_group, "next")
            for other in group:
                parts[other] = f"shares dialogues with speaker {name}"
            parts[name] = "test"
            yield _fold(f"speaker {name}", utterances, cut, speakers, parts)


def _speakers_who_talk_together(
    speakers: Sequence[str], dialogues: Sequence[int]
) -> list[list[str]]:
    """Groups of speakers, so that no two groups share a dialogue."""
    group_of: dict[str, tuple[str, ...]] = {}
    for name in _natural(speakers):
        group_of[name] = (name,)

    first_speaker: dict[int, str] = {}  # of each dialogue
    for name, dialogue in zip(speakers, dialogues, strict=True):
        group = group_of[name]
        other_group = group_of[first_speaker.setdefault(dialogue, name)]
        if group is not other_group:
            joined = group + other_group
            for member in joined:
                group_of[member] = joined

    return [_natural(group) for group in dict.fromkeys(group_of.values())]


def train1234_test5(utterances: Utterances, cut: Cut) -> Iterator[Fold]:
    """Sessions 1–4 train, session 5 tests (Perspective §3.1): the last fold of `session_out`."""
    names = _natural(_named(utterances.sessions, "session"))
    if names != ["1", "2", "3", "4", "5"]:
        raise DoesNotFit(
            "--protocol train1234-test5 needs the sessions 1 to 5, and the corpus has "
            f"{', '.join(names)}"
        )
    folds = list(session_out(utterances, cut))
    yield folds[-1]


def script_out(utterances: Utterances, cut: Cut) -> Iterator[Fold]:
    """Each session's utterances of each script are the test part once.

    The other sessions train, without that script. IEMOCAP's three scripts recur in all sessions
    word for word, so that a text model can learn lines by heart under `session_out` (Pepino et al.,
    ICASSP 2020). Improvised dialogues train and are never tested. Where no utterance names a
    script, its place is taken by the transcripts that recur in several sessions, in three groups.
    With dev "next" the dev part is another session's utterances of another script, and train has
    neither.
    """
    sessions = _named(utterances.sessions, "session")
    scripts = _scripts(utterances, sessions)
    script_names = sorted({script for script in scripts if script})
    if not script_names:
        raise DoesNotFit(
            "--protocol script-out: this corpus has no script in IEMOCAP's ids, and no transcript "
            "that several sessions share"
        )

    units = list(zip(sessions, scripts, strict=True))
    known = set(units)
    tests = [pair for pair in product(_natural(sessions), script_names) if pair in known]

    for place, test in enumerate(tests):
        parts: dict[tuple[str, str | None], str] = {test: "test"}
        if cut.dev == "next":
            in_turn = tests[place:] + tests[:place]
            others = [pair for pair in in_turn if pair[0] != test[0] and pair[1] != test[1]]
            if others:
                parts[others[0]] = "next"

        # What shares the session, or the script, of test or dev stands in no part.
        for (session, script), part in zip(list(parts), ("test", "dev"), strict=False):
            for unit in known:
                shares_one = (unit[0] == session) != (unit[1] == script)
                if shares_one and unit not in parts:
                    parts[unit] = f"of the session or script of the {part} part"
        yield _fold(f"session {test[0]} {test[1]}", utterances, cut, units, parts)


def _scripts(utterances: Utterances, sessions: Sequence[str]) -> list[str | None]:
    """The script of each utterance, "script 01"; None for one that is improvised.

    Where no id names what is acted, "texts 1" to "texts 3" for what is said in several sessions.
    """
    scenes = utterances.scenes
    if any(scenes):
        return [scene if scene and scene.startswith("script") else None for scene in scenes]

    spoken = set(zip(utterances.texts, sessions, strict=True))
    sessions_of = Counter(text for text, _ in spoken if text)
    recurring = sorted(text for text, count in sessions_of.items() if count > 1)
    group_of = dict(zip(recurring, cycle("123"), strict=False))

    scripts: list[str | None] = []
    for text in utterances.texts:
        scripts.append(f"texts {group_of[text]}" if text in group_of else None)
    return scripts


def random_70_20_10(utterances: Utterances, cut: Cut) -> Iterator[Fold]:
    """70 % train, 20 % dev, 10 % test at random (USC §3.3).

    Every class of ten or more in equal shares. Speakers and dialogues stand in all parts, so the
    scores are speaker-dependent: they say little about new speakers.
    """
    from sklearn.model_selection import train_test_split

    sizes = np.bincount(utterances.labels)
    if sizes.max() < 10:
        raise DoesNotFit(
            "--protocol random-70-20-10 needs 10 utterances of a class, and the largest has fewer"
        )
    # Classes that are too small for equal shares are drawn with the largest.
    strata = np.where(sizes[utterances.labels] < 10, sizes.argmax(), utterances.labels)

    rows = np.arange(len(utterances))
    rest, test = train_test_split(rows, test_size=0.1, stratify=strata, random_state=cut.seed)
    parts = dict.fromkeys(test, "test")

    share = 2 / 9 if cut.dev in ("auto", "next") else cut.share
    if share is not None:
        _, dev = train_test_split(
            rest, test_size=share, stratify=strata[rest], random_state=cut.seed
        )
        parts |= dict.fromkeys(dev, "dev")
    yield _fold("random", utterances, cut, rows, parts, f"{share or 0:.2g} at random")


def official(utterances: Utterances, cut: Cut) -> Iterator[Fold]:
    """The split that the corpus comes with: its sessions called train, dev and test, test2 ….

    A fold for each test. Speakers may stand in several of its parts. Where it has no dev part,
    `cut` says what is.
    """
    sessions = _named(utterances.sessions, "session")
    names = _natural(sessions)
    tests = [name for name in names if name.startswith("test")]
    if "train" not in names or not tests:
        raise DoesNotFit(
            "--protocol official needs sessions called train and test, as MELD has, and this "
            f"corpus has {', '.join(names[:9])}"
        )

    for test in tests:
        parts = dict.fromkeys(set(names) - {"train"}, "in another part of the split")
        parts["dev"] = "dev"
        parts[test] = "test"
        yield _fold(test, utterances, cut, sessions, parts, "the corpus's own")


def from_file(utterances: Utterances, cut: Cut, file: str) -> Iterator[Fold]:
    """The folds that a file spells out.

    Where it names no dev part, `cut` says what is: "next" is the next fold's test.
    """
    path = Path(file)
    listed = read_folds(path)
    ids = utterances.ids

    for fold, next_fold in zip(listed, [*listed[1:], listed[0]], strict=True):
        rows = {}
        for part in PARTS:
            rows[part] = np.flatnonzero([id_ in fold.ids[part] for id_ in ids])
        if not len(rows["test"]):
            raise WrongUse(
                f"{path}: fold {fold.name} tests no labelled utterance of this corpus; "
                "are these its ids?"
            )
        check_leakage(Fold(fold.name, rows["train"], rows["dev"], rows["test"]), utterances, ())

        part_of = dict.fromkeys(ids, f"in no part of {path.name}")
        for part in PARTS:
            part_of |= dict.fromkeys(fold.ids[part], part)
        part_of |= dict.fromkeys(fold.ids["train"] & next_fold.ids["test"], "next")
        yield _fold(fold.name, utterances, cut, ids, part_of, f"named by {path.name}")


@dataclass(frozen=True)
class Protocol:
    """A way to cut folds."""

    cut: Callable[..., Iterator[Fold]]
    """Of the utterances, a `Cut`, and what stands behind the protocol's colon, if it has one."""
    summary: str
    """How it cuts, in one line of a report."""
    separate: Sequence[str] = ("dialogue", "speaker")
    """What must not stand in two parts of a fold, beside an utterance."""


PROTOCOLS = {
    "session-out": Protocol(
        session_out,
        "Leave one session out: each session is the test part once (MSMSER §3.1)",
    ),
    "speaker-out": Protocol(
        speaker_out,
        "Leave one speaker out: each speaker is the test part once",
    ),
    "script-out": Protocol(
        script_out,
        "Each session's utterances of each script are the test part once; the other sessions "
        "train, without that script",
    ),
    "train1234-test5": Protocol(
        train1234_test5,
        "Sessions 1–4 train, session 5 tests (Perspective §3.1): the last fold of `session_out`",
    ),
    "random-70-20-10": Protocol(
        random_70_20_10,
        "70 % train, 20 % dev, 10 % test at random, every class of ten or more in equal shares "
        "(USC §3.3)",
        separate=(),
    ),
    "corpus-out": Protocol(
        corpus_out,
        "Leave one corpus out: each corpus is the test part once, and the others train",
    ),
    "official": Protocol(
        official,
        "The split that the corpus comes with: its sessions called train, dev and test, test2 …, "
        "a fold for each test",
        separate=("dialogue",),
    ),
}
# What to use where a protocol does not fit, the strictest first.
FALLBACKS = ("official", "session-out", "speaker-out", "random-70-20-10")
# Those that take what stands behind a colon.
CROSS = Protocol(
    cross,
    "One fold: the corpora before the second colon train and those behind it are the test part, "
    "`cross:A+B:C`",
)
FOLDS = Protocol(from_file, "folds from a file", separate=())


def find_protocol(name: str) -> Protocol | None:
    """The protocol of that name, of `cross:A:B` or of `folds:FILE`; None if there is none."""
    if name.startswith("cross:"):
        return CROSS
    if name.startswith("folds:"):
        return FOLDS
    return PROTOCOLS.get(name)


def corpora_of_protocol(protocol: str, corpus: str | None) -> str | None:
    """The corpora to train and test on, joined with +: by default those that `cross:A:B` names."""
    kind, _, names = str(protocol).partition(":")
    if corpus is None and kind == "cross":
        return names.replace(":", "+")
    return corpus


def make_folds(name: str, utterances: Utterances, cut: Cut = OWN_DEV) -> list[Fold]:
    """The folds of the protocol of that name, each checked by `check_leakage`.

    Raises `WrongUse` for a protocol that does not fit the corpus, naming one that does, and
    `LeakageError` if a fold leaks.
    """
    # A wrong share is refused before anything is cut.
    _ = cut.share
    try:
        return _make_folds(name, utterances, cut)
    except DoesNotFit as fault:
        raise WrongUse(f"{fault}; {_remedy(name, utterances, cut)}") from None


def find_fitting(utterances: Utterances, cut: Cut = OWN_DEV) -> str | None:
    """The strictest protocol that fits these utterances, None if there is none.

    Its folds all have a training and a test part, and a dev part unless `cut` says that there is
    none.
    """
    for name in FALLBACKS:
        if _fits(name, utterances, cut):
            return name
    return None


class DoesNotFit(WrongUse):
    """A protocol cannot cut this corpus: only the fault, without a remedy."""


def _make_folds(name: str, utterances: Utterances, cut: Cut) -> list[Fold]:
    protocol = find_protocol(name)
    if protocol is None:
        raise unknown("protocol", name, [*PROTOCOLS, "cross:A:B", "folds:FILE"])

    if ":" in name:
        folds = list(protocol.cut(utterances, cut, name.partition(":")[2]))
    else:
        folds = list(protocol.cut(utterances, cut))

    for fold in folds:
        if not len(fold.train):
            raise DoesNotFit(
                f"--protocol {name}: nothing is left to train on in fold '{fold.name}'"
            )
        check_leakage(fold, utterances, protocol.separate, cut.share is not None)
    return folds


def _fits(name: str, utterances: Utterances, cut: Cut) -> bool:
    try:
        folds = _make_folds(name, utterances, cut)
    except (DoesNotFit, LeakageError):
        return False

    needs_dev = cut.dev != "none"
    return all(len(fold.test) and (len(fold.dev) or not needs_dev) for fold in folds)


def _remedy(name: str, utterances: Utterances, cut: Cut) -> str:
    """What to do where a protocol does not fit, which has been tried."""
    if cut.dev == "next" and _fits(name, utterances, Cut(seed=cut.seed)):
        return f"leave out dev=next, whose dev part is {DEV_SHARE} of the training part then"

    other = find_fitting(utterances, cut)
    if other is not None:
        return f"use --protocol {other}"
    if cut.dev == "next":
        other = find_fitting(utterances, Cut(seed=cut.seed))
        if other is not None:
            return f"leave out dev=next, and use --protocol {other}"
    return (
        f"no protocol fits these {len(utterances)} utterances: take more of the corpus "
        "(--limit), or cut it by yourself (--protocol folds:FILE)"
    )


def _each_out(kind: str, units: Sequence[str], utterances: Utterances, cut: Cut) -> Iterator[Fold]:
    """A fold for each unit, which is its test part; the next one is dev if `cut` says "next"."""
    names = _natural(units)
    for name, next_name in zip(names, [*names[1:], names[0]], strict=True):
        parts = {next_name: "next", name: "test"}
        yield _fold(f"{kind} {name}", utterances, cut, units, parts)


def _fold(
    name: str,
    utterances: Utterances,
    cut: Cut,
    units: Iterable[Any],
    parts: Mapping[Any, str],
    own_dev: str = "",
) -> Fold:
    """The fold in which the utterances of each of the `units` [n] stand in that unit's part.

    By default they train. What is "dev" is the dev part, and was cut by `own_dev`; if there is
    none, it is what is "next", or a share of what trains, as `cut` says. What is called otherwise
    is left out for that reason. Utterances whose raters agree on no label stand in training alone:
    no truth tells who is right.
    """
    names = list(dict.fromkeys(("train", "next", "dev", "test", *parts.values())))
    numbers = {unit: names.index(part) for unit, part in parts.items()}
    part_of = np.array([numbers.get(unit, 0) for unit in units])
    rows = {part: np.flatnonzero(part_of == number) for number, part in enumerate(names)}

    train = np.flatnonzero(part_of < names.index("dev"))  # "next" trains, unless it is dev
    dev = rows["dev"]
    dev_by = "none"
    if len(dev):
        dev_by = own_dev
    elif cut.dev == "next":
        dev = rows["next"]
        dev_by = "next"
    elif cut.share is not None:
        dev, dev_by = cut_share(utterances, train, cut.share, cut.seed)
    train = np.setdiff1d(train, dev, assume_unique=True)
    test = rows["test"]

    left_out = {}
    for reason in names[4:]:
        if len(rows[reason]):
            left_out[reason] = rows[reason]

    if utterances.undecided.any():
        for part, judged in (("dev", dev), ("test", test)):
            unjudged = judged[utterances.undecided[judged]]
            if len(unjudged):
                left_out[f"{UNDECIDED} ({part})"] = unjudged
        dev = dev[~utterances.undecided[dev]]
        test = test[~utterances.undecided[test]]
    return Fold(name, train, dev, test, left_out, dev_by)


def _named(values: Sequence[str | None], kind: str) -> list[str]:
    """The column, which names each utterance's session or speaker.

    Raises `WrongUse` if it names none for some, or the same for all.
    """
    nameless = sum(value is None for value in values)
    if nameless or len(set(values)) < 2:
        lack = f"{nameless} utterances name none" if nameless else f"there is only one, {values[0]}"
        raise DoesNotFit(f"this protocol cuts by {kind}, and {lack} in this corpus")
    return [value for value in values if value is not None]


def _natural(names: Iterable[str]) -> list[str]:
    """Distinct names in the order in which people count: 2 before 10.

    And 01 before 1, whatever the hash seed.
    """

    def key(name: str) -> tuple[list[tuple[int, str]], str]:
        words: list[tuple[int, str]] = []
        for word in re.split(r"(\d+)", name):
            # Python refuses to read more digits than 4,300.
            words.append((int(word[:4000]), "") if word.isdecimal() else (0, word))
        return words, name

    return sorted(set(names), key=key)
