"""What stands in two parts of a fold: the same for utterances, audio, dialogues and speakers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..evidence import PAIRS, Evidence, Predictions
from ..finding import Finding, Severity
from ..words import counted, examples


@dataclass(frozen=True)
class Kind:
    """One kind of thing that two parts may share."""

    check: str
    """The name of the check."""
    noun: str
    """Such as "speaker"."""
    consequence: str
    """What it does to the result, and what to do; "{part}" is the second of the parts, and "{seen}"
    what the first did with it."""
    severity: Severity = "fault"

    def consequence_for(self, first: str, second: str) -> str:
        """The consequence where these two parts share something."""
        seen = "chose the epoch" if first == "dev" else "was trained on"
        return self.consequence.format(part=second, seen=seen)


def shared_between_parts(
    evidence: Evidence, kind: Kind, things: Mapping[str, str]
) -> list[Finding]:
    """A finding for each pair of parts that share something, over all folds.

    `things` are what an utterance must share with no other part, by key, where it is known.
    """
    findings = []
    for first, second in PAIRS:
        shared: dict[str, list[str]] = {}
        folds = []
        for split, keys in zip(evidence.splits, evidence.split_keys, strict=True):
            in_fold = _shared(split.of(second), keys[first], keys[second], things)
            if in_fold:
                folds.append(split.fold)
            for thing, ids in in_fold.items():
                shared.setdefault(thing, []).extend(ids)
        if shared:
            findings.append(_finding(evidence, kind, (first, second), shared, folds))
    return findings


def _shared(
    ids: Sequence[str], first: Sequence[str], second: Sequence[str], things: Mapping[str, str]
) -> dict[str, list[str]]:
    """The utterances of the second part by what they share with the first.

    `ids` are those of the second part, `first` and `second` the keys of both.
    """
    in_both = set(map(things.get, first)) & set(map(things.get, second))
    in_both.discard(None)
    if not in_both:
        return {}

    shared: dict[str, list[str]] = {}
    for id_, key in zip(ids, second, strict=True):
        thing = things.get(key)
        if thing in in_both and thing is not None:
            shared.setdefault(thing, []).append(id_)
    return shared


def _finding(
    evidence: Evidence,
    kind: Kind,
    parts: tuple[str, str],
    shared: dict[str, list[str]],
    folds: Sequence[str],
) -> Finding:
    ids: dict[str, None] = {}
    for of_thing in shared.values():
        ids.update(dict.fromkeys(of_thing))

    verb = "stands" if len(shared) == 1 else "stand"
    return Finding(
        check=kind.check,
        severity=kind.severity,
        sentence=(
            f"{counted(len(shared), kind.noun)} {verb} in {parts[0]} and {parts[1]}"
            f"{in_folds(folds, len(evidence.splits))} ({examples(shared)}), with "
            f"{counted(len(ids), 'utterance')} of {parts[1]}: {kind.consequence_for(*parts)}"
        ),
        ids=tuple(ids),
        count=len(shared),
    )


def tested_in_several_folds(
    evidence: Evidence, predictions: Predictions, kind: Kind, things: Sequence[str | None]
) -> list[Finding]:
    """What stands in the test parts of several folds, so in train where it is not tested.

    `things` are those of each prediction. Only where each utterance is tested in one fold: then the
    other folds are what trains.
    """
    in_folds = predictions.folds or []
    keys = evidence.keys_of(predictions.ids)
    fold_of = dict(zip(keys, in_folds, strict=True))
    if list(map(fold_of.__getitem__, keys)) != in_folds:
        return []

    folds: dict[str, set[str]] = {}
    for thing, fold in dict.fromkeys(zip(things, in_folds, strict=True)):
        if thing is not None:
            folds.setdefault(thing, set()).add(fold)

    several = {thing: None for thing, of_thing in folds.items() if len(of_thing) > 1}
    if not several:
        return []
    shared: dict[str, None] = {}
    for id_, thing in zip(predictions.ids, things, strict=True):
        if thing in several:
            shared[id_] = None
    return [
        Finding(
            check=kind.check,
            severity=kind.severity,
            sentence=(
                f"{len(several):,} of {counted(len(folds), kind.noun)} are tested in several folds "
                f"({examples(several)}), so each is in train when it is in test: "
                f"{kind.consequence_for('train', 'test')}"
            ),
            ids=tuple(shared),
            count=len(several),
        )
    ]


def in_folds(folds: Sequence[str], of_all: int) -> str:
    """Such as " of fold 3", or " of 4 of 5 folds"; nothing for a split that is no fold."""
    if of_all == 1:
        return f" of {folds[0]}" if folds[0] else ""
    if len(folds) == 1:
        return f" of {folds[0] or 'one fold'}"
    return f" of {len(folds)} of {of_all} folds"
