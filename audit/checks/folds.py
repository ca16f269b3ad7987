"""Folds that overlap, leave out, or test twice."""

from collections import Counter
from collections.abc import Mapping

from ..evidence import Evidence, Predictions
from ..finding import Finding, NotChecked
from ..words import counted, examples

CHECK = "folds"


def check_folds(evidence: Evidence) -> list[Finding]:
    """Utterances that are listed twice in a part, tested in several folds, or in none."""
    if not evidence.splits and not evidence.predictions:
        raise NotChecked("whether folds overlap: give predictions or a split")

    findings = _listed_twice(evidence)
    findings += _tested_twice(evidence)
    findings += _never_tested(evidence)
    for predictions in evidence.predictions:
        findings += _predicted_twice(evidence, predictions)
    return findings


def _fault(ids: Mapping[str, object], what: str) -> list[Finding]:
    """A fault of these utterances, of which `what` is true; nothing if there are none."""
    if not ids:
        return []
    verb = "is" if len(ids) == 1 else "are"
    sentence = f"{counted(len(ids), 'utterance')} ({examples(ids)}) {verb} {what}"
    return [Finding(CHECK, "fault", sentence, tuple(ids), len(ids))]


def _listed_twice(evidence: Evidence) -> list[Finding]:
    """Utterances that a part of a fold lists more than once."""
    twice: dict[str, None] = {}
    for split in evidence.splits:
        for members in split.parts.values():
            keys = evidence.keys_of(members)
            if len(set(keys)) == len(keys):
                continue
            listed = set()
            for id_, key in zip(members, keys, strict=True):
                if key in listed:
                    twice[id_] = None
                listed.add(key)
    return _fault(twice, "listed twice in one part: they count twice; list each once")


def _tested_twice(evidence: Evidence) -> list[Finding]:
    """Utterances in the test parts of two folds."""
    fold_of: dict[str, str] = {}
    twice: dict[str, None] = {}
    for split, keys in zip(evidence.splits, evidence.split_keys, strict=True):
        place = f"{split.source}/{split.fold}"
        for id_, key in zip(split.of("test"), keys["test"], strict=True):
            if fold_of.setdefault(key, place) != place:
                twice[id_] = None
    return _fault(
        twice,
        "tested in two folds or more: the folds overlap, and their mean is of no single split; "
        "test each once",
    )


def _never_tested(evidence: Evidence) -> list[Finding]:
    """Utterances of a cross-validation that stand in a part, and in no test part."""
    if len(evidence.splits) < 2:
        return []
    tested: set[str] = set()
    trained: set[str] = set()
    for keys in evidence.split_keys:
        tested.update(keys["test"])
        trained.update(keys["train"], keys["dev"])

    untested = trained - tested
    never: dict[str, None] = {}
    for split, keys in zip(evidence.splits, evidence.split_keys, strict=True):
        if untested.isdisjoint(keys["train"]) and untested.isdisjoint(keys["dev"]):
            continue
        for part in ("train", "dev"):
            for id_, key in zip(split.of(part), keys[part], strict=True):
                if key in untested:
                    untested.discard(key)
                    never[id_] = None
    return _fault(
        never,
        f"in no test part, though {len(evidence.splits)} folds have them in train or dev: the "
        "score is not of all; test each once, or say what is left out",
    )


def _predicted_twice(evidence: Evidence, predictions: Predictions) -> list[Finding]:
    """Utterances that one system, one seed and one epoch predict more than once."""
    n = len(predictions)
    seeds = predictions.seeds or [""] * n
    epochs = predictions.epochs or [""] * n
    places = list(zip(evidence.keys_of(predictions.ids), seeds, epochs, strict=True))
    if len(set(places)) == n:
        return []

    seen: set[tuple[str, str, str]] = set()
    twice: dict[str, None] = {}
    for id_, place in zip(predictions.ids, places, strict=True):
        if place in seen:
            twice[id_] = None
        seen.add(place)

    times = Counter(places)
    is_named = predictions.seeds is not None or predictions.folds is not None
    keys = evidence.keys_of(predictions.ids)
    has_one_truth = len(set(zip(keys, predictions.truth, strict=True))) == len(times)
    if not is_named and has_one_truth and len(set(times.values())) == 1:
        sentence = (
            f"{predictions.source}: each of {counted(len(times), 'utterance')} is predicted "
            f"{times.most_common(1)[0][1]} times, and no column says by which training; the scores "
            "are over all of them: name the seeds in a column"
        )
        return [Finding(CHECK, "note", sentence, (), len(times))]

    where = "rows or folds" if predictions.folds is None else "folds"
    return _fault(
        twice,
        f"predicted in two {where} of {predictions.source}: they count twice; keep one prediction "
        "each, or name the seeds in a column",
    )
