"""True classes that are not what the corpus says: other labels, or rows that have moved."""

from collections import Counter

from ser.corpus.labels import LABEL_POLICIES, code

from ..evidence import Evidence, Predictions
from ..finding import Finding, NotChecked
from ..reading.class_names import class_by_policy
from ..words import examples

CHECK = "truth"

# By how many rows a column may have moved, in either direction.
SHIFTS = 3

# A shift explains the differences if so many rows agree then.
AGREES = 0.99


def check_truth(evidence: Evidence) -> list[Finding]:
    """True classes against the labels of the corpus, or those that the ids name."""
    if not evidence.predictions:
        raise NotChecked("whether the true classes are the corpus's: give predictions")

    findings = []
    compared = 0
    for predictions in evidence.predictions:
        labels = list(map(evidence.labels.get, evidence.keys_of(predictions.ids)))
        rows = [row for row, label in enumerate(labels) if label is not None]
        if not rows:
            continue
        compared += 1
        findings += _compare(
            predictions,
            [predictions.ids[row] for row in rows],
            [predictions.truth[row] for row in rows],
            [labels[row] or "" for row in rows],
        )
    if not compared:
        raise NotChecked(
            "whether the true classes are the corpus's: give the corpus folder, ser's store, or a "
            "table with id and label"
        )
    return findings


def _compare(
    predictions: Predictions, ids: list[str], truth: list[str], labels: list[str]
) -> list[Finding]:
    classes = {*predictions.classes, *truth}
    class_of = classes_of_labels(truth, labels, classes)
    wrong = []
    for row, (name, label) in enumerate(zip(truth, labels, strict=True)):
        if class_of[label] != name:
            wrong.append(row)

    findings = _exchanged(predictions, class_of)
    if not wrong:
        return findings

    shift = _shift(truth, labels, classes)
    if shift is not None:
        direction = "down" if shift > 0 else "up"
        reason = (
            f"the column has moved {abs(shift)} row{'s' if abs(shift) > 1 else ''} {direction} "
            "against the ids: every score of it is of other utterances; join by id"
        )
    elif len(wrong) > len(truth) / 4:
        reason = (
            "the rows of the true classes are in another order than the ids: every score of it is "
            "of other utterances; join by id"
        )
    else:
        first = wrong[0]
        reason = (
            f"{ids[first]} is {labels[first]} in the corpus and {truth[first]} here; correct them, "
            "or say whose labels they are"
        )
    wrong_ids = tuple(ids[row] for row in wrong)
    findings.append(
        Finding(
            CHECK,
            "fault",
            f"{predictions.source}: {len(wrong):,} of {len(truth):,} true classes are not what the "
            f"corpus says ({examples(wrong_ids)}): {reason}",
            wrong_ids,
            len(wrong),
        )
    )
    return findings


def classes_of_labels(truth: list[str], labels: list[str], classes: set[str]) -> dict[str, str]:
    """The class of each label of the corpus.

    By its name where both have one, through a label policy of ser (exc is hap in 4class); else the
    class that most of its utterances have.
    """
    pairs = Counter(zip(labels, truth, strict=True))
    most_often: dict[str, tuple[int, str]] = {}
    for (label, name), count in pairs.items():
        if count > most_often.get(label, (0, ""))[0]:
            most_often[label] = (count, name)

    by_code = {code(name): name for name in classes}
    class_of = {}
    for label, (_, name) in most_often.items():
        class_of[label] = by_code.get(code(label), name)
        if code(label) not in by_code:
            class_of[label] = class_by_policy(code(label), by_code) or name
    return class_of


def _exchanged(predictions: Predictions, class_of: dict[str, str]) -> list[Finding]:
    """Numbers or names of classes that stand for two labels which no policy joins.

    Classes that are numbers have no names to compare: two labels that share one are said.
    """
    labels_of: dict[str, list[str]] = {}
    for label, name in class_of.items():
        labels_of.setdefault(name, []).append(label)

    findings = []
    for name, labels in labels_of.items():
        codes = {code(label) for label in labels}
        if len(codes) > 1 and name.isdecimal() and not _joined_by_a_policy(codes):
            findings.append(
                Finding(
                    CHECK,
                    "note",
                    f"{predictions.source}: class {name} is {' and '.join(sorted(labels))} in the "
                    "corpus: are they meant to be one?",
                    (),
                    len(labels),
                )
            )
    return findings


def _joined_by_a_policy(codes: set[str]) -> bool:
    for policy in LABEL_POLICIES.values():
        if any(codes <= set(members) for members in policy.values()):
            return True
    return False


def _shift(truth: list[str], labels: list[str], classes: set[str]) -> int | None:
    """By how many rows the truth has moved, if that explains all but a few differences."""
    n = len(truth)
    for shift in [*range(1, SHIFTS + 1), *range(-1, -SHIFTS - 1, -1)]:
        if n <= 4 * abs(shift):
            continue
        moved = truth[shift:] if shift > 0 else truth[:shift]
        here = labels[:-shift] if shift > 0 else labels[-shift:]
        class_of = classes_of_labels(moved, here, classes)
        agreeing = sum(class_of[label] == name for name, label in zip(moved, here, strict=True))
        # One class alone agrees with any shift.
        if agreeing >= AGREES * len(moved) and len(set(moved)) > 1:
            return shift
    return None
