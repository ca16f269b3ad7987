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

_CODE_OF: dict[str, str] = {}
for _code, _names in _read("categories.toml").items():
    _CODE_OF.update(dict.fromkeys(_names, _code))


def code(raw: str) -> str:
    """The short code of a raw category, or the category in lower case if it has none."""
    name = raw.strip().casefold()
    return _CODE_OF.get(name, name)
