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
BLOCK = re.compile(r"^::: (\S+)\n    options: \{ members: \[(.*)\] \}$", re.MULTILINE)


def documented() -> dict[str, list[str]]:
    """The public names by module, as `docs/api.md` lists them."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    return {module: names.split(", ") for module, names in BLOCK.findall(text)}


def signatures() -> Iterator[str]:
    """One line for each public function, class and method."""
    for module, names in documented().items():
        for name in names:
            value = getattr(importlib.import_module(module), name)
            yield f"{module}.{name}{signature_of(value)}"
            if inspect.isclass(value):
                yield from member_signatures(f"{module}.{name}", value)


def member_signatures(name: str, kind: type) -> Iterator[str]:
    """One line for each public method and property that the class itself defines."""
    for member, value in vars(kind).items():
        if member.startswith("_"):
            continue
        if isinstance(value, classmethod | staticmethod):
            value = value.__func__

        # A cached property has the name of its attribute.
        is_property = isinstance(value, property) or hasattr(value, "attrname")
        if inspect.isfunction(value):
            yield f"{name}.{member}{signature_of(value)}"
        elif is_property:
            yield f"{name}.{member}"


def signature_of(value: object) -> str:
    """The parameters, without addresses in memory; empty for what has none that can be read."""
    try:
        signature = inspect.signature(value)  # type: ignore[arg-type]
    except ValueError:
        return ""
    without_addresses = re.sub(r" at 0x[0-9a-f]+", "", str(signature))
    # Before 3, pandas names its classes by the modules that hold them.
    return re.sub(r"\bpandas\.core\.\w+\.", "pandas.", without_addresses)


def changelog() -> str:
    """The sha256 of what CHANGELOG.md says under Unreleased."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    _, _, since = text.partition("## [Unreleased]")
    unreleased, _, _ = since.partition("\n## [")
    return hashlib.sha256(unreleased.encode()).hexdigest()


def write_fixture() -> None:
    """Write the signatures anew. Ends the process with a sentence where the changelog is silent."""
    head = f"changelog {changelog()}"
    lines = list(signatures())

    if FIXTURE.exists():
        held_head, *held_lines = FIXTURE.read_text(encoding="utf-8").splitlines()
        if held_lines != lines and held_head == head:
            sys.exit(
                "CHANGELOG.md: say under Unreleased what has changed of the Python API, then run "
                "this again"
            )

    FIXTURE.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_fixture()
