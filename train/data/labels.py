"""Label policies: which raw consensus labels make which class.

They are applied at training time and never in the store.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ser.corpus.labels import LABEL_POLICIES, code
from ser.disk.read import read_toml
from ser.errors import WrongUse, unknown

# What corpora write where the raters agree on no category.
NO_MAJORITY = ("xxx", "x", "")


@dataclass(frozen=True)
class Policy:
    """Classes, and the raw labels that each is made of."""

    name: str
    classes: tuple[str, ...]
    """In the order of the class numbers."""
    maps: Mapping[str, str]
    """From a raw label's `code` to its class."""

    def index(self, raw: str | None) -> int:
        """The class number of a raw label; -1 where the policy leaves the label out."""
        if raw is None:
            return -1
        class_name = self.maps.get(code(raw))
        if class_name is None:
            return -1
        return self.classes.index(class_name)


# Keeps every utterance, whatever its label.
UNLABELLED = Policy("none", (), {})


def get_policy(name: str, labels: Iterable[str | None] = ()) -> Policy:
    """The policy of that name, or the one that a TOML file spells out.

    The file maps classes to raw labels, such as `negative = ["ang", "sad", "fru"]`; its order is
    the class order. "all" has a class for each of the corpus's own raw `labels` (all but
    `NO_MAJORITY`), by their codes, sorted. Raises `WrongUse` for an unknown name or a file that is
    not such a map.
    """
    if name == "all":
        codes = {code(raw) for raw in labels if raw is not None}
        classes = sorted(codes.difference(NO_MAJORITY))
        return Policy(name, tuple(classes), dict(zip(classes, classes, strict=True)))

    if name not in LABEL_POLICIES and not name.endswith(".toml"):
        raise unknown("label policy", name, [*LABEL_POLICIES, "all", "FILE.toml"])

    path = Path(name)
    table = LABEL_POLICIES.get(name) or read_toml(path, 'happy = ["hap", "exc"]')

    maps: dict[str, str] = {}
    for class_name, raw_labels in table.items():
        if not _is_list_of_labels(raw_labels):
            raise WrongUse(
                f"{path}: '{class_name}' must be a list of raw labels, such as "
                f'{class_name} = ["hap", "exc"]'
            )
        for raw in raw_labels:
            first_class = maps.setdefault(code(raw), class_name)
            if first_class != class_name:
                raise WrongUse(
                    f"{path}: '{raw}' stands in two classes, {first_class} and {class_name}; "
                    "keep one"
                )
    return Policy(path.name, tuple(table), maps)


def _is_list_of_labels(value: object) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(raw, str) for raw in value)
