"""The signatures of the public Python API, as `tests/fixtures/api.txt` holds them.

`python -m ser.tests.api_signatures` writes them anew, and refuses while CHANGELOG.md says nothing
new under Unreleased.
"""

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FIXTURE = ROOT / "tests" / "fixtures" / "api.txt"


def documented() -> dict[str, list[str]]:
    """The public names by module, as `docs/api.md` lists them."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    found = re.findall(r"^::: (\S+)\n    options: \{ members: \[(.*)\] \}$", text, re.MULTILINE)
    return {module: names.split(", ") for module, names in found}


def signatures() -> Iterator[str]:
    """One line for each public function, class and method."""
    for module, names in documented().items():
        for name in names:
            thing = getattr(importlib.import_module(module), name)
            yield f"{module}.{name}{_signature(thing)}"
            for member, value in vars(thing).items() if inspect.isclass(thing) else ():
                function = (
                    value.__func__ if isinstance(value, classmethod | staticmethod) else value
                )
                if not member.startswith("_") and inspect.isfunction(function):
                    yield f"{module}.{name}.{member}{_signature(function)}"
                elif not member.startswith("_") and (
                    isinstance(value, property) or hasattr(value, "attrname")
                ):
                    yield f"{module}.{name}.{member}"


def _signature(thing: object) -> str:
    try:
        return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(thing)))  # type: ignore[arg-type]
    except ValueError:
        return ""


def changelog() -> str:
    """The sha256 of what CHANGELOG.md says under Unreleased."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return hashlib.sha256(
        text.partition("## [Unreleased]")[2].partition("\n## [")[0].encode()
    ).hexdigest()


if __name__ == "__main__":
    head = f"changelog {changelog()}"
    before = FIXTURE.read_text(encoding="utf-8").splitlines() if FIXTURE.exists() else [""]
    lines = list(signatures())
    if before[1:] != lines and before[0] == head:
        sys.exit(
            "CHANGELOG.md: say under Unreleased what has changed of the Python API, then run this again"
        )
    FIXTURE.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
