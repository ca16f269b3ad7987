"""Label policies: which raw consensus labels make which class, applied at training time and never
in the store.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ser.corpus.labels import IEMOCAP, LABEL_POLICIES, code
from ser.corpus.manifest import Manifest
from ser.disk.read import read_toml
from ser.errors import CorpusError, LeakageError, WrongUse, unknown

DIMENSIONS = (
    "valence",
    "arousal",
    "dominance",
)  # what raters say of an utterance beside its category


@dataclass(frozen=True)
class Policy:
    """`classes` in the order of the class numbers; `maps` from a raw label's `code` to its class."""

    name: str
    classes: tuple[str, ...]
    maps: Mapping[str, str]

    def index(self, raw: str | None) -> int:
        """The class number of a raw label; -1 where the policy leaves the label out."""
        kept = self.maps.get(code(raw)) if raw is not None else None
        return -1 if kept is None else self.classes.index(kept)


NO_MAJORITY = ("xxx", "x", "")  # what corpora write where the raters agree on no category
UNLABELLED = Policy("none", (), {})  # keeps every utterance, whatever its label
IEMOCAP_ID = re.compile(r"Ses0[1-5][FM]_(impro|script)(\d\d)\w*_[FM]\d{3}")


def get_policy(name: str, labels: Iterable[str | None] = ()) -> Policy:
    """The policy of that name, or the one that a TOML file spells out.

    The file maps classes to raw labels, such as `negative = ["ang", "sad", "fru"]`; its order is
    the class order. "all" has a class for each of the corpus's own raw `labels` (all but
    `NO_MAJORITY`), by their codes, sorted. Raises `WrongUse` for an unknown name or a file that is
    not such a map.
    """
    path = Path(name)
    if name == "all":
        classes = sorted({code(raw) for raw in labels if raw is not None} - {*NO_MAJORITY})
        return Policy(name, tuple(classes), dict(zip(classes, classes, strict=True)))
    if name not in LABEL_POLICIES and not name.endswith(".toml"):
        raise unknown("label policy", name, [*LABEL_POLICIES, "all", "FILE.toml"])
    table = LABEL_POLICIES.get(name) or read_toml(path, 'happy = ["hap", "exc"]')
    maps: dict[str, str] = {}
    for class_, raws in table.items():
        if not isinstance(raws, list) or not raws or not all(isinstance(raw, str) for raw in raws):
            raise WrongUse(
                f'{path}: \'{class_}\' must be a list of raw labels, such as {class_} = ["hap", "exc"]'
            )
        for raw in raws:
            if maps.setdefault(code(raw), class_) != class_:
                raise WrongUse(
                    f"{path}: '{raw}' stands in two classes, {maps[code(raw)]} and {class_}; keep one"
                )
    return Policy(path.name, tuple(table), maps)


@dataclass(frozen=True)
class Utterances:
    """Columns of n labelled utterances; sessions and speakers may be None.

    `dialogues` [n] numbers the dialogues; an utterance whose corpus names no dialogue is one by
    itself. `turns` [n] orders the utterances of a dialogue. `rows` [n] are those of the manifest
    that they come from, if any, and `left_out` counts the raw labels that the label policy leaves
    out. `texts` [n] are the words of the transcripts, without case and punctuation, so that what is
    said in the same words is equal; None where there is none. `votes` [n, K] are the raters'
    shares, see `soft_labels`, and `undecided` [n] says whose label is no majority's. `dimensions`
    [n, 3] are valence, arousal and dominance on the corpus's scale, NaN where there is no rating.
    `corpora` [n] names each utterance's corpus, if there are several.
    """

    ids: Sequence[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    sessions: Sequence[str | None]
    speakers: Sequence[str | None]
    dialogues: np.ndarray
    turns: np.ndarray
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    left_out: Mapping[str, int] = field(default_factory=dict)
    texts: Sequence[str | None] = ()
    dimensions: np.ndarray = field(default_factory=lambda: np.empty((0, len(DIMENSIONS))))
    votes: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    undecided: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))
    corpora: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def speaker_numbers(self) -> np.ndarray:
        """The speakers as numbers, int64 [n]; those who are not named count as one."""
        return _numbered(self.speakers)

    @cached_property
    def corpus_numbers(self) -> np.ndarray:
        """The corpora as numbers from 1, in alphabetical order, int64 [n]; 0 where there is one
        alone.
        """
        return (
            np.unique(self.corpora, return_inverse=True)[1] + 1
            if self.corpora
            else np.zeros(len(self), np.int64)
        )

    @property
    def own_ids(self) -> Sequence[str]:
        """The ids as their corpora have them: of several corpora without the corpus in front."""
        return [id_.partition("/")[2] for id_ in self.ids] if self.corpora else self.ids

    @property
    def scenes(self) -> list[str | None]:
        """What was acted, by IEMOCAP's ids: "script 01" of Ses05M_script01_1b_F000; None for any
        other id.
        """
        matches = map(IEMOCAP_ID.fullmatch, self.own_ids)
        return [f"{match[1]} {match[2]}" if match else None for match in matches]

    def take(self, which: np.ndarray) -> "Utterances":
        """The utterances `which` [m], in that order; one may come several times."""
        columns: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        for name in columns.keys() - {"classes", "left_out"}:
            if isinstance(column := columns[name], np.ndarray):
                columns[name] = column[which] if len(column) else column
            elif column:
                columns[name] = [column[row] for row in which]
        return Utterances(**{**columns, "dialogues": _numbered(columns["dialogues"].tolist())})


def _numbered(keys: Sequence[Any]) -> np.ndarray:
    """Each key's number, counted by first appearance; int64 [n]."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def apply_policy(policy: Policy, manifest: Manifest, undecided: bool = False) -> Utterances:
    """The manifest's utterances that the policy keeps, in its order, with their class numbers (by
    `UNLABELLED` 0).

    `undecided` keeps those too whose raters agree on no label (`NO_MAJORITY`), if any voted for one
    of the classes; the number of one is that of the class with most votes, or of the first such,
    and no score counts it.

    Raises `WrongUse` if fewer than two classes are left, `CorpusError` if a whole IEMOCAP release
    does not give its known counts, and for one of several corpora alike; `LeakageError` if two of
    them have a recording in common.
    """
    for part in manifest.parts:
        apply_policy(policy, part, undecided)
    raw, votes = manifest.column("label"), manifest.column("votes")
    labelled = policy != UNLABELLED
    index = np.array([policy.index(label) if labelled else 0 for label in raw], dtype=np.int64)
    no_majority = [undecided and (label is None or code(label) in NO_MAJORITY) for label in raw]
    for row in np.flatnonzero(no_majority):
        [shares] = soft_labels(policy, [votes[row]], None)
        index[row] = shares.argmax() if shares.any() else -1
    rows, dropped = np.flatnonzero(index >= 0), np.flatnonzero(index < 0)
    labels = index[rows]
    if labelled and len(np.unique(labels)) < 2:
        counts = ", ".join(
            f"{name} ({n})" for name, n in Counter(label or "none" for label in raw).most_common()
        )
        raise WrongUse(
            f"label policy {policy.name} keeps fewer than two classes of corpus {manifest.corpus}, whose labels are "
            f"{counts}; take them as they are by --labels all, or map them in a file: --labels FILE.toml"
        )

    columns = manifest.table.take(rows).to_pydict()
    ids, sessions, recordings = columns["id"], columns["session"], columns["audio_sha256"]
    # A dialogue's name counts within its session: tables may number dialogues from 1 in each.
    keys = [
        (s, d) if d is not None else (i,)
        for s, d, i in zip(sessions, columns["dialogue"], ids, strict=True)
    ]
    turns = [row if turn is None else turn for row, turn in enumerate(columns["turn"])]
    names = [
        part.corpus for part in manifest.parts for _ in range(len(part))
    ]  # of all rows, where several are joined
    corpora = [names[row] for row in rows] if names else []
    homes = Counter(audio for audio, _ in {*zip(recordings, corpora, strict=False)} if audio)
    if shared := [id_ for id_, audio in zip(ids, recordings, strict=True) if homes[audio] > 1]:
        raise LeakageError(
            f"{len(shared)} utterances of {manifest.corpus} are the same recording in two of these corpora, such as "
            f"{shared[0]}: a test of one would know it from another; leave one of them out"
        )
    utterances = Utterances(
        ids=ids,
        labels=labels,
        classes=policy.classes,
        sessions=sessions,
        speakers=columns["speaker"],
        dialogues=_numbered(keys),
        turns=np.array(turns, dtype=np.int64),
        rows=rows,
        left_out=Counter(
            (raw[row] or "none") + (f" of {names[row]}" if names else "") for row in dropped
        ),
        texts=[
            digest if text is None else " ".join(re.findall(r"[^\W_]+", text.casefold())) or None
            for text, digest in zip(columns["text"], columns["text_sha256"], strict=True)
        ],
        dimensions=np.array([columns[name] for name in DIMENSIONS], dtype=np.float64).T,
        votes=soft_labels(policy, columns["votes"], labels),
        undecided=np.array(no_majority)[rows],
        corpora=corpora,
    )
    known = (
        policy.name in LABEL_POLICIES
        and len(manifest) == IEMOCAP["utterances"]
        and not manifest.synthetic
    )
    if known and all(map(IEMOCAP_ID.fullmatch, manifest.ids)):
        _check_iemocap(policy, manifest.corpus, utterances)
    return utterances


def choose(
    policy: Policy,
    manifest: Manifest,
    target: Any,
    only: str | None = None,
    limit: int | None = None,
) -> tuple[Utterances, dict[str, Any]]:
    """The utterances that a run learns a `targets.Target` from, and how many others there are, by
    the reason.

    Those that the policy keeps and that have what the target learns, votes or all three ratings;
    that are `only` "scripted" or "improvised"; and `limit` of these, spread evenly over the corpus.
    Raises `WrongUse` if that leaves none, and what `apply_policy` raises.
    """
    utterances, votes = apply_policy(policy, manifest, target.undecided), manifest.column("votes")
    left_out: dict[str, Any] = {
        f"label {raw} is not in {policy.name}": n for raw, n in utterances.left_out.items()
    }
    corpora = utterances.corpora or [manifest.corpus] * len(utterances)
    without_votes = {*corpora} - {
        name for name, row in zip(corpora, utterances.rows, strict=True) if votes[row]
    }
    if target.voted and without_votes:
        raise WrongUse(
            f"--target {target.name}: corpus {min(without_votes)} does not hold its raters' votes; "
            "train --target class on it"
        )
    if target.rated:
        kept = np.flatnonzero(np.isfinite(utterances.dimensions).all(1))
        ratings = ", ".join(DIMENSIONS)
        if not len(kept):
            raise WrongUse(
                f"--target {target.name}: no utterance of corpus {manifest.corpus} has ratings of {ratings}; "
                "train --target class on it"
            )
        if len(kept) < len(utterances):
            left_out[f"no rating of {ratings}"] = len(utterances) - len(kept)
        utterances = utterances.take(kept)
    if only is not None:
        kept = np.flatnonzero(
            [only.startswith((scene or "?").split()[0]) for scene in utterances.scenes]
        )
        if not len(kept):
            raise WrongUse(
                f"--only {only}: no id of corpus {manifest.corpus} says that its utterance is {only}, as IEMOCAP's do "
                "(Ses01F_script01_1_F000, Ses01F_impro01_F000); leave --only out"
            )
        left_out[f"--only {only}"] = len(utterances) - len(kept)
        utterances = utterances.take(kept)
    if limit is not None and limit < len(utterances):
        left_out[f"--limit {limit}"] = len(utterances) - limit
        utterances = utterances.take(np.linspace(0, len(utterances) - 1, limit).round().astype(int))
    return utterances, left_out


def classes_by_corpus(manifest: Manifest, utterances: Utterances) -> dict[str, dict[str, Any]]:
    """Of several corpora, how many utterances each has of each class, and whether it is synthetic."""
    by_corpus = {}
    for part in manifest.parts:
        labels = utterances.labels[[name == part.corpus for name in utterances.corpora]]
        if not len(labels):
            why = f"no utterance of {part.corpus} is left by --target, --only or --limit"
            raise WrongUse(f"--corpus {manifest.corpus}: {why}; leave that corpus out")
        sizes = np.bincount(labels, minlength=len(utterances.classes)).tolist()
        classes = dict(zip(utterances.classes, sizes, strict=False))
        by_corpus[part.corpus] = {"synthetic": part.synthetic, "classes": classes}
    return by_corpus


def _check_iemocap(policy: Policy, corpus: str, utterances: Utterances) -> None:
    """Raise `CorpusError` if these utterances, which have the ids of IEMOCAP's release, have other
    counts than its.
    """
    labels = [policy.classes[label] for label in utterances.labels]
    per_session = Counter(zip(utterances.sessions, labels, strict=True))
    counts = {"all": (len(utterances), IEMOCAP["policies"][policy.name])}
    for session, known in IEMOCAP["4class per session"].items() if policy.name == "4class" else ():
        counts |= {
            f"session {session} {name}": (per_session[session, name], n)
            for name, n in known.items()
        }
    wrong = [
        f"{where} {n} instead of {known}" for where, (n, known) in counts.items() if n != known
    ]
    if wrong:
        raise CorpusError(
            f"corpus {corpus} has the utterances of the IEMOCAP release but not its {policy.name} counts: "
            f"{', '.join(wrong)}; run `ser corpus show` on it to see which files differ"
        )


def ballots(policy: Policy, raters: Sequence[Sequence[str]] | None) -> np.ndarray:
    """Each rater's vote for an utterance, shared evenly among the categories that they gave,
    [raters, K].

    What the policy leaves out is dropped.
    """
    shares = np.zeros(
        (len(raters or []), len(policy.classes) + 1)
    )  # the last is of what is left out, -1
    for ballot, categories in zip(shares, raters or [], strict=True):
        for category in categories:
            ballot[policy.index(category)] += 1 / len(categories)
    return shares[:, :-1]


def soft_labels(
    policy: Policy, votes: Sequence[Sequence[Sequence[str]] | None], labels: np.ndarray | None
) -> np.ndarray:
    """Percentages of the annotators per class, float32 [n, K] with rows that sum to 1 (USC §3.2).

    Each annotator has one vote, see `ballots`, scaled to 1 over the classes of the policy. Without
    a vote left, the consensus label counts alone; without `labels` such a row is 0.
    """
    targets = np.array([ballots(policy, raters).sum(0) for raters in votes]).reshape(
        len(votes), len(policy.classes)
    )
    if labels is not None and policy.classes:
        silent = np.flatnonzero(~targets.any(1))
        targets[silent, labels[silent]] = 1
    return (targets / np.maximum(targets.sum(axis=1, keepdims=True), 1e-12)).astype(np.float32)


def rater_votes(
    policy: Policy, votes: Sequence[Sequence[Sequence[str]] | None]
) -> tuple[np.ndarray, int]:
    """What the raters would score: each vote against the majority of the others' for the same
    utterance.

    C [K, K] of that majority and the vote, and how many votes are left out: where one names no
    class of the policy, or two alike, or where the others have no single class with most of their
    votes.
    """
    matrix, left_out = np.zeros((len(policy.classes), len(policy.classes)), np.int64), 0
    for raters in votes:
        votes_cast = ballots(policy, raters)
        for own, others in zip(votes_cast, votes_cast.sum(0) - votes_cast, strict=True):
            majority, vote = (
                np.flatnonzero(shares > max(shares.max(), 2e-9) - 1e-9) for shares in (others, own)
            )
            if len(majority) == len(vote) == 1:
                matrix[majority[0], vote[0]] += 1
            else:
                left_out += 1
    return matrix, left_out
