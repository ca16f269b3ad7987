"""A label policy applied to a manifest: which utterances it keeps, and what is checked of them."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ser.corpus.labels import IEMOCAP, LABEL_POLICIES, code
from ser.corpus.manifest import Manifest
from ser.corpus.same_audio import sounds_of
from ser.errors import CorpusError, LeakageError, WrongUse

from .labels import NO_MAJORITY, UNLABELLED, Policy
from .utterances import DIMENSIONS, IEMOCAP_ID, Utterances, numbered
from .votes import soft_labels


def apply_policy(policy: Policy, manifest: Manifest, undecided: bool = False) -> Utterances:
    """The manifest's utterances that the policy keeps, in its order, with their class numbers.

    `UNLABELLED` keeps all, with class number 0. `undecided` keeps those too whose raters agree on
    no label (`NO_MAJORITY`), if any voted for one of the classes; the number of one is that of the
    class with most votes, or of the first such, and no score counts it.

    Raises `WrongUse` if fewer than two classes are left, `CorpusError` if a whole IEMOCAP release
    does not give its known counts, and for one of several corpora alike; `LeakageError` if two of
    them have a recording in common.
    """
    # Each of several corpora is checked by itself.
    for part in manifest.parts:
        apply_policy(policy, part, undecided)

    raw_labels = manifest.column("label")
    numbers, no_majority = _class_numbers(policy, manifest, undecided)
    rows = np.flatnonzero(numbers >= 0)
    labels = numbers[rows]
    if policy != UNLABELLED and len(np.unique(labels)) < 2:
        raise _fewer_than_two_classes(policy, manifest)

    corpus_of_row: list[str] = []
    for part in manifest.parts:
        corpus_of_row += [part.corpus] * len(part)
    corpora = [corpus_of_row[row] for row in rows] if corpus_of_row else []
    columns = manifest.table.take(rows).to_pydict()
    if corpora:
        recordings = manifest.recording_digests()
        of_rows = [recordings[row] for row in rows]
        _check_recordings(manifest.corpus, columns["id"], of_rows, corpora)

    left_out: Counter[str] = Counter()
    for row in np.flatnonzero(numbers < 0):
        corpus = f" of {corpus_of_row[row]}" if corpus_of_row else ""
        left_out[(raw_labels[row] or "none") + corpus] += 1

    turns = [row if turn is None else turn for row, turn in enumerate(columns["turn"])]
    ratings = [columns[name] for name in DIMENSIONS]
    sounds = sounds_of(manifest)
    utterances = Utterances(
        ids=columns["id"],
        labels=labels,
        classes=policy.classes,
        sessions=columns["session"],
        speakers=columns["speaker"],
        dialogues=_dialogue_numbers(columns["session"], columns["dialogue"], columns["id"]),
        turns=np.array(turns, dtype=np.int64),
        rows=rows,
        left_out=left_out,
        texts=_comparable_texts(columns["text"], columns["text_sha256"]),
        sounds=[sounds[row] for row in rows],
        dimensions=np.array(ratings, dtype=np.float64).T,
        votes=soft_labels(policy, columns["votes"], labels),
        undecided=no_majority[rows],
        corpora=corpora,
        genders=columns["gender"],
    )
    if _is_iemocap_release(manifest) and policy.name in LABEL_POLICIES:
        _check_iemocap(policy, manifest.corpus, utterances)
    return utterances


def _class_numbers(
    policy: Policy, manifest: Manifest, undecided: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Each row's class number, int64 [m], -1 where it is left out; whose label is no majority's.

    The second is bool [m], and only true of any row if the `undecided` are to be kept.
    """
    raw_labels = manifest.column("label")
    numbers = np.zeros(len(raw_labels), dtype=np.int64)
    if policy != UNLABELLED:
        numbers = np.array([policy.index(raw) for raw in raw_labels], dtype=np.int64)

    no_majority = np.zeros(len(raw_labels), dtype=bool)
    if undecided:
        no_majority[:] = [raw is None or code(raw) in NO_MAJORITY for raw in raw_labels]

    votes = manifest.column("votes")
    for row in np.flatnonzero(no_majority):
        shares = soft_labels(policy, [votes[row]], None)[0]
        numbers[row] = shares.argmax() if shares.any() else -1
    return numbers, no_majority


def _fewer_than_two_classes(policy: Policy, manifest: Manifest) -> WrongUse:
    labels = manifest.column("label")
    if not any(labels):
        return WrongUse(
            f"corpus {manifest.corpus} has no labels, and nothing can be trained on it: extract it "
            "from a table with a column label, or with labels from the files' names by "
            "--format FILE.toml"
        )

    counts = Counter(label or "none" for label in labels)
    listed = ", ".join(f"{name} ({n})" for name, n in counts.most_common())
    return WrongUse(
        f"label policy {policy.name} keeps fewer than two classes of corpus {manifest.corpus}, "
        f"whose labels are {listed}; take them as they are by --labels all, or map them in a file: "
        "--labels FILE.toml"
    )


def _dialogue_numbers(
    sessions: Sequence[str | None], dialogues: Sequence[str | None], ids: Sequence[str]
) -> np.ndarray:
    """Numbers of the dialogues [n]; an utterance without one is a dialogue by itself.

    A dialogue's name counts within its session: tables may number dialogues from 1 in each.
    """
    keys: list[tuple[str | None, ...]] = []
    for session, dialogue, id_ in zip(sessions, dialogues, ids, strict=True):
        keys.append((id_,) if dialogue is None else (session, dialogue))
    return numbered(keys)


def _comparable_texts(
    texts: Sequence[str | None], digests: Sequence[str | None]
) -> list[str | None]:
    """The words of each transcript, without case and punctuation; None where there is none.

    The digest of the text where the manifest does not hold the text itself.
    """
    comparable: list[str | None] = []
    for text, digest in zip(texts, digests, strict=True):
        if text is None:
            comparable.append(digest)
        else:
            words = re.findall(r"[^\W_]+", text.casefold())
            comparable.append(" ".join(words) or None)
    return comparable


def _check_recordings(
    corpus: str, ids: Sequence[str], recordings: Sequence[str | None], corpora: Sequence[str]
) -> None:
    """Raise `LeakageError` if a recording, by its sha256, stands in two of the corpora."""
    pairs = set(zip(recordings, corpora, strict=True))
    homes = Counter(recording for recording, _ in pairs if recording)
    shared = [
        id_
        for id_, recording in zip(ids, recordings, strict=True)
        if recording and homes[recording] > 1
    ]
    if shared:
        raise LeakageError(
            f"{len(shared)} utterances of {corpus} are the same recording in two of these corpora, "
            f"such as {shared[0]}: a test of one would know it from another; leave one of them out"
        )


def _is_iemocap_release(manifest: Manifest) -> bool:
    """Whether it holds as many utterances as IEMOCAP's release, by IEMOCAP's ids."""
    if len(manifest) != IEMOCAP["utterances"] or manifest.synthetic:
        return False
    return all(IEMOCAP_ID.fullmatch(id_) for id_ in manifest.ids)


def _check_iemocap(policy: Policy, corpus: str, utterances: Utterances) -> None:
    """Raise `CorpusError` if these utterances of IEMOCAP's release have other counts than its."""
    differences = []

    def compare(group: str, n: int, known: int) -> None:
        if n != known:
            differences.append(f"{group} {n} instead of {known}")

    compare("all", len(utterances), IEMOCAP["policies"][policy.name])
    if policy.name == "4class":
        labels = [policy.classes[label] for label in utterances.labels]
        counts = Counter(zip(utterances.sessions, labels, strict=True))
        for session, known_counts in IEMOCAP["4class per session"].items():
            for name, known in known_counts.items():
                compare(f"session {session} {name}", counts[session, name], known)

    if differences:
        raise CorpusError(
            f"corpus {corpus} has the utterances of the IEMOCAP release but not its {policy.name} "
            f"counts: {', '.join(differences)}; run `ser corpus show CORPUS` to see which files "
            "differ"
        )
