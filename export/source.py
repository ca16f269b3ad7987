"""The source of a model and of all that it uses, as one file."""

import ast
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PLAIN = Path(__file__).with_name("plain_layers.py.jinja")
FAST = ("ser.train.models.ragged", "ser.train.models.layers")  # whose names `PLAIN` may have too


def source_of(roots: Iterable[Any]) -> str:
    """The classes and functions `roots` with all of ser, or of their own package, that they use, in an order that runs.

    What `PLAIN` defines stands in the place of the fast form.
    """
    collected = _Collected()
    for root in roots:
        collected.add(root.__module__, root.__name__)
    imports = [f"import {name}" for name in sorted(collected.modules)]
    imports += [f"from {name} import {', '.join(sorted(of))}" for name, of in sorted(collected.names.items())]
    return "\n".join(imports) + "\n\n" + "\n\n".join(collected.pieces)


class _Collected:
    def __init__(self) -> None:
        self.pieces: list[str] = []  # of source, what is used before what uses it
        self.modules: set[str] = set()  # "torch.nn.functional as F"
        self.names: dict[str, set[str]] = {}  # module → what is imported from it
        self._seen: set[tuple[str, str]] = set()
        self._lines: dict[str, list[str]] = {}
        self._defined: dict[str, dict[str, ast.stmt]] = {}  # module → name → where it is defined or imported

    def add(self, module: str, name: str) -> None:
        """A name of a module, after all that it uses."""
        if module in FAST and name in self._names_of(PLAIN.name):
            module = PLAIN.name
        node = self._names_of(module).get(name)
        if node is None or (module, name) in self._seen:
            return
        self._seen.add((module, name))
        if isinstance(node, ast.Import):
            self.modules |= {_line(alias) for alias in node.names if name in (alias.asname, alias.name)}
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(node, module)
            [alias] = [alias for alias in node.names if name in (alias.asname, alias.name)]
            if origin.partition(".")[0] in ("ser", module.partition(".")[0]):
                self.add(origin, alias.name)
            else:
                self.names.setdefault(origin, set()).add(_line(alias))
        elif fixed := _plain_type(node):
            self.pieces.append(f"{name} = {fixed}\n")
        else:
            for one in ast.walk(node):
                if isinstance(one, ast.Name):
                    self.add(module, one.id)
            first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
            lines = self._lines[module][first - 1 : node.end_lineno]
            self.pieces.append("\n" * isinstance(node, ast.ClassDef | ast.FunctionDef) + "\n".join(lines) + "\n")

    def _names_of(self, module: str) -> dict[str, ast.stmt]:
        if module not in self._defined:
            path = PLAIN if module == PLAIN.name else Path(str(importlib.import_module(module).__file__))
            text = path.read_text(encoding="utf-8")
            self._lines[module] = text.split("\n")
            found = self._defined[module] = {}
            for node in ast.parse(text).body:
                if isinstance(node, ast.Import | ast.ImportFrom):
                    found |= {alias.asname or alias.name: node for alias in node.names}
                elif isinstance(node, ast.ClassDef | ast.FunctionDef):
                    found[node.name] = node
                elif isinstance(node, ast.Assign):
                    found |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        return self._defined[module]


def _line(alias: ast.alias) -> str:
    return f"{alias.name} as {alias.asname}" if alias.asname else alias.name


def _origin(node: ast.ImportFrom, module: str) -> str:
    """The module that is imported from, in full."""
    within = module.split(".")[: -node.level] if node.level else []
    return ".".join([*within, *([node.module] if node.module else [])])


def _plain_type(node: ast.stmt) -> str | None:
    """`int` of `Count = Annotated[int, Meta(…)]`: what a setting may be is checked by ser alone."""
    value: Any = getattr(node, "value", None)
    annotated = isinstance(value, ast.Subscript) and ast.unparse(value.value) == "Annotated"
    return ast.unparse(value.slice.elts[0]) if annotated else None
