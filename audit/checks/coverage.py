"""Utterances that a result is silent about: against the corpus, and against its known counts."""

from collections import Counter
from collections.abc import Iterable
from typing import cast

from ser.corpus.labels import IEMOCAP, LABEL_POLICIES, code

from ..evidence import Evidence, Predictions
from ..finding import Finding, NotChecked, Severity
from ..reading.class_names import class_of_label
from ..reading.known_ids import is_iemocap
from ..words import counted, examples

CHECK = "coverage"

# Protocols of ser whose folds together test the whole corpus.
TEST_ALL = ("session-out", "speaker-out", "corpus-out")

SESSIONS = ("Ses01", "Ses02", "Ses03", "Ses04", "Ses05")


def check_coverage(evidence: Evidence) -> list[Finding]:
    """What the corpus has of the tested classes, and no part and no prediction has."""
    if not evidence.predictions and not evidence.splits:
        raise NotChecked("whether utterances are left out: give predictions or a split")

    findings = []
    if evidence.splits:
        for predictions in evidence.predictions:
            if predictions.declared is None:
                findings += _against_the_split(evidence, predictions)

    if evidence.corpus is not None and _knows_labels(evidence):
        return findings + _against_the_corpus(evidence, evidence.corpus)

    checked = bool(findings)
    for predictions in evidence.predictions:
        keys = set(evidence.keys_of(predictions.ids))
        if is_iemocap(keys):
            checked = True
            findings += _against_iemocap(evidence, predictions)
    if not checked:
        raise NotChecked(
            "whether utterances are left out: give the corpus folder, ser's store, or a table with "
            "id and label of the whole corpus"
        )
    return findings


def _against_the_split(evidence: Evidence, predictions: Predictions) -> list[Finding]:
    """Utterances that are tested and not predicted, and those that are predicted and not tested."""
    id_of = dict(zip(evidence.keys_of(predictions.ids), predictions.ids, strict=True))
    tested: set[str] = set()
    missing: dict[str, None] = {}
    for split in evidence.splits:
        for part, ids in split.parts.items():
            if not part.startswith("test"):
                continue
            keys = evidence.keys_of(ids)
            tested.update(keys)
            # A fold or part of which nothing is predicted is another result's.
            if id_of.keys().isdisjoint(keys):
                continue
            for id_, key in zip(ids, keys, strict=True):
                if key not in id_of:
                    missing[id_] = None

    untested = [id_ for key, id_ in id_of.items() if key not in tested]
    findings = []
    if len(untested) == len(id_of):
        findings.append(_of_other_utterances(evidence, predictions))
    elif untested:
        findings.append(
            Finding(
                CHECK,
                "fault",
                f"{predictions.source}: {counted(len(untested), 'utterance')} "
                f"({examples(untested)}) predicted, and in no test part of the split: the score "
                "is of other utterances than the split tests",
                tuple(untested),
                len(untested),
            )
        )
    return findings + _without_prediction(evidence, predictions, missing)


def _without_prediction(
    evidence: Evidence, predictions: Predictions, missing: Iterable[str]
) -> list[Finding]:
    """A fault of those whose label is of a tested class, a note of those whose label nobody says.

    Those of other labels are left out by every label policy.
    """
    classes = set(predictions.truth)
    of_classes = []
    unknown = []
    for id_ in missing:
        label = evidence.labels.get(evidence.key(id_))
        if label is None:
            unknown.append(id_)
        elif class_of_label(label, classes) is not None:
            of_classes.append(id_)

    findings = []
    for ids, severity, remedy in (
        (of_classes, "fault", "predict them, or say which are left out and why"),
        (unknown, "note", "give their labels, which may be of other classes"),
    ):
        if ids:
            findings.append(
                Finding(
                    CHECK,
                    cast(Severity, severity),
                    f"{predictions.source}: {counted(len(ids), 'utterance')} of the test part "
                    f"without a prediction ({examples(ids)}): the score is not of all that is "
                    f"tested; {remedy}",
                    tuple(ids),
                    len(ids),
                )
            )
    return findings


def _of_other_utterances(evidence: Evidence, predictions: Predictions) -> Finding:
    split = evidence.splits[0]
    of_split = next(iter(split.of("test") or split.of("train")), "none")
    return Finding(
        CHECK,
        "fault",
        f"{predictions.source}: none of its utterances (such as {predictions.ids[0]}) is in a test "
        f"part of the split (such as {of_split}): it is another split's, or spells ids otherwise",
        (),
        len(set(predictions.ids)),
    )


def _knows_labels(evidence: Evidence) -> bool:
    return any(key in evidence.labels for key in evidence.corpus or ())


def _against_the_corpus(evidence: Evidence, corpus: list[str]) -> list[Finding]:
    """Utterances whose label has a class, and that no file has at all."""
    for predictions in evidence.predictions:
        declared = predictions.declared
        if declared and (declared.limited or declared.protocol not in TEST_ALL):
            return []

    known = evidence.all_keys()
    labels_used = set(map(evidence.labels.get, known)) - {None}

    missing = []
    for key in corpus:
        if key not in known and evidence.labels.get(key) in labels_used:
            missing.append(key)
    if not missing:
        return []

    if not evidence.splits and _tests_whole_sessions(evidence):
        return []
    return [
        Finding(
            CHECK,
            "fault",
            f"{len(missing):,} utterances of the corpus have a label that is tested, and are in no "
            f"file ({examples(missing)}): the result is not of the whole corpus; say which are "
            "left out and why",
            tuple(missing),
            len(missing),
        )
    ]


def _tests_whole_sessions(evidence: Evidence) -> bool:
    """Whether all that is missing is of speakers who are not tested at all: one fold of several."""
    known = evidence.all_keys()
    tested_speakers = set(map(evidence.speakers.get, known))
    if None in tested_speakers:
        return False
    for key in evidence.corpus or ():
        if key not in known and evidence.speakers.get(key) in tested_speakers:
            return False
    return True


def _against_iemocap(evidence: Evidence, predictions: Predictions) -> list[Finding]:
    """The tested utterances of each class against the counts of the release."""
    declared = predictions.declared
    if declared is not None and (declared.limited or declared.synthetic):
        return []
    keys: dict[str, str] = {}
    for id_, name in zip(predictions.ids, predictions.truth, strict=True):
        keys[evidence.key(id_)] = code(name)
    counts = Counter(keys.values())
    sessions = sorted({key[:5] for key in keys})

    if not any("_script" in key for key in keys):
        return [
            Finding(
                CHECK,
                "note",
                f"{predictions.source}: only improvised dialogues are tested; the scripted ones, "
                "half of the release, are not",
                (),
                1,
            )
        ]
    if sessions == list(SESSIONS):
        published = _published_counts(set(counts))
        where = ""
    else:
        published = _published_in_sessions(set(counts), sessions)
        where = f" of {', '.join(sessions)}"
    if published is None:
        return []

    findings = []
    for name, expected in published.items():
        if counts[name] == expected:
            continue
        difference = counts[name] - expected
        findings.append(
            Finding(
                CHECK,
                "fault",
                f"{predictions.source}: {counts[name]:,} utterances of {name}{where} are tested, "
                f"and the release has {expected:,} ({difference:+,}): say which are left out, or "
                "whose labels they are",
                (),
                abs(difference),
            )
        )
    return findings


def _published_counts(codes: set[str]) -> dict[str, int] | None:
    """The counts of the whole release for these classes; None if they are not its labels."""
    labels = IEMOCAP["labels"]
    if not codes <= set(labels):
        return None
    counts = {name: labels[name] for name in codes}
    # Where excited is no class of its own, the field counts it as happy.
    if "hap" in codes and "exc" not in codes:
        counts["hap"] += labels["exc"]
    return counts


def _published_in_sessions(codes: set[str], sessions: list[str]) -> dict[str, int] | None:
    """The counts of some sessions; they are known for the four classes of the field."""
    if codes != set(LABEL_POLICIES["4class"]):
        return None
    counts: Counter[str] = Counter()
    for session in sessions:
        counts.update(IEMOCAP["4class per session"][session.removeprefix("Ses0")])
    return dict(counts)
