"""One name for each class, whichever the columns of a file and the files beside it write."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ser.corpus.labels import LABEL_POLICIES, code

from ..evidence import Predictions
from .sheet import Sheet
from .values import as_names

# More names than any corpus has emotions: such a table is no list of classes.
MOST_CLASSES = 64

# Where Hugging Face's config.json and s3prl's splits hold the numbers of their classes.
KEYS = ("id2label", "label2id", "labels")


def class_names_in_json(value: Any) -> dict[str, str]:
    """The names of classes by what stands for them in other files; empty if a file has none.

    `{"0": "angry"}`, `{"angry": 0}`, `{"W": "anger"}`, or one of them under `id2label` or
    `label2id`, as Hugging Face's config.json has it.
    """
    if not isinstance(value, dict):
        return {}
    for key in KEYS:
        if isinstance(value.get(key), dict):
            value = value[key]
            break

    if not value or len(value) > MOST_CLASSES:
        return {}
    if all(_is_number(number) for number in value.values()):
        names = {str(number): name for name, number in value.items()}
        return names if len(names) == len(value) else {}
    if all(isinstance(name, str) for name in value.values()):
        return {str(key): name for key, name in value.items()}
    return {}


def class_names_in_table(sheet: Sheet) -> dict[str, str]:
    """The names of classes by number, where a file has a column of each and no more."""
    headings = [heading for heading in sheet.columns if heading]
    if len(headings) != 2 or len(sheet) > MOST_CLASSES or sheet.matrices:
        return {}
    columns = [as_names(sheet.columns[heading]) for heading in headings]
    for numbers, names in (columns, columns[::-1]):
        if None in numbers or None in names:
            return {}
        pairs = {str(number): str(name) for number, name in zip(numbers, names, strict=True)}
        is_one_to_one = len(pairs) == len(set(pairs.values())) == len(sheet)
        is_named = not any(map(str.isdecimal, pairs.values()))
        if is_one_to_one and is_named and all(map(str.isdecimal, pairs)):
            return pairs
    return {}


def with_class_names(predictions: Predictions, names: Mapping[str, str]) -> Predictions | None:
    """The predictions with these names of their classes; None if the file names others."""
    used = {*predictions.truth, *predictions.predicted}
    if not names or not used <= names.keys():
        return None

    return renamed_predictions(predictions, names)


def as_truth_is_named(truth: Iterable[str], others: Sequence[str]) -> dict[str, str]:
    """The class of the truth that each other name is in another spelling.

    "angry" is `anger`, and "ANG" is `ang`; only where the truth has one such class.
    """
    named = dict.fromkeys(truth)
    by_code: dict[str, list[str]] = {}
    for name in named:
        by_code.setdefault(code(name), []).append(name)

    renamed = {}
    for name in dict.fromkeys(others):
        alike = by_code.get(code(name), [])
        if name not in named and len(alike) == 1:
            renamed[name] = alike[0]
    return renamed


def class_by_policy(label: str, by_code: Mapping[str, str]) -> str | None:
    """The class, of those `by_code`, that a policy makes of a label which is no class itself."""
    for policy in LABEL_POLICIES.values():
        for name, members in policy.items():
            if label in members and name in by_code:
                return by_code[name]
    return None


def class_of_label(label: str, classes: Iterable[str]) -> str | None:
    """The one of these classes that a corpus's label is: by its name, else by a policy of ser."""
    by_code = {code(name): name for name in classes}
    return by_code.get(code(label)) or class_by_policy(code(label), by_code)


def renamed_predictions(predictions: Predictions, names: Mapping[str, str]) -> Predictions:
    """The predictions with some classes called otherwise; as they are if two become one."""
    classes = [names.get(name, name) for name in predictions.classes]
    if predictions.probabilities is not None and len(set(classes)) < len(classes):
        return predictions
    return replace(
        predictions,
        truth=[names.get(name, name) for name in predictions.truth],
        predicted=[names.get(name, name) for name in predictions.predicted],
        classes=list(dict.fromkeys(classes)),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
