"""Labels as corpora write them, and the policies that make classes of them.

Labels stay raw in a store: a policy is applied at training time.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def _read(name: str) -> Mapping[str, Any]:
    return tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


# The raw labels that count as each class of a policy, in both stages.
LABEL_POLICIES = _read("policies.toml")

# The counts of IEMOCAP's release.
IEMOCAP = _read("iemocap.toml")


def _codes_by_name() -> dict[str, str]:
    """The short code of every name under which corpora write a category."""
    codes = {}
    for category, names in _read("categories.toml").items():
        for name in names:
            codes[name] = category
    return codes


_CODES = _codes_by_name()


def code(raw: str) -> str:
    """The short code of a raw category, or the category in lower case if it has none."""
    name = raw.strip().casefold()
    return _CODES.get(name, name)
