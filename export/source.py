"""The source of a model and of all that it uses, as one file that needs nothing of ser but `plain_layers.py`."""

import ast
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.util import resolve_name
from inspect import getsource
from typing import Annotated, Any, get_args, get_origin

from ser.errors import WrongUse

from . import plain_layers

FAST = ("ser.train.models.ragged", "ser.train.models.layers")  # whose names `plain_layers` may have too


def source_of(roots: Iterable[Any]) -> str:
    """The classes and functions `roots` with all of ser, or of their own package, that they use, in an order that runs.

    What `plain_layers` defines is imported from there in the place of the fast form. Raises `WrongUse` for two things
    of one name.
    """
    imports, pieces, seen = dict[str, set[str]](), list[str](), dict[ast.stmt, str]()  # nodes, with their names

    def add(module: str, name: str) -> None:
        """A name of a module, after all that it uses."""
        node = _statements(module).get(name)
        if node is None or node in seen:
            return
        ours = not isinstance(node, ast.Import | ast.ImportFrom)
        if ours and name in seen.values():
            raise WrongUse(f"{module}.{name}: another {name} would stand beside it in one file; rename one of them")
        seen[node] = name if ours else ""
        value = getattr(import_module(module), name)
        if module in FAST and name in vars(plain_layers) and ours:
            imports.setdefault("from plain_layers import", set()).add(name)
        elif isinstance(node, ast.Import):
            imports.setdefault(f"import {ast.unparse(node.names[0])}", set())
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), import_module(module).__package__)
            if origin.partition(".")[0] in ("ser", module.partition(".")[0]):
                add(origin, node.names[0].name)
            else:
                imports.setdefault(f"from {origin} import", set()).add(ast.unparse(node.names[0]))
        elif get_origin(value) is Annotated:  # what a setting may be is checked by ser alone
            pieces.append(f"{name} = {get_args(value)[0].__name__}")
        else:
            for one in ast.walk(node):
                if isinstance(one, ast.Name):
                    add(module, one.id)
            assigned = isinstance(node, ast.Assign | ast.AnnAssign)
            written = ast.get_source_segment(getsource(import_module(module)), node)
            pieces.append(str(written) if assigned else f"\n{getsource(value)}")

    for root in roots:
        add(root.__module__, root.__name__)
    lines = [f"{line} {', '.join(sorted(names))}".rstrip() for line, names in sorted(imports.items())]
    return "\n".join([*lines, "", *pieces])


@cache
def _statements(module: str) -> dict[str, ast.stmt]:
    """Where a module defines or imports its names; an import stands once for each name."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(getsource(import_module(module))).body:
        if isinstance(node, ast.Import):
            found |= {one.asname or one.name.partition(".")[0]: ast.Import([one]) for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {one.asname or one.name: ast.ImportFrom(node.module, [one], node.level) for one in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {one.id: node for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
    return found
