"""Scripts of an evaluation: whether Python can read them at all. They are never run."""

import ast
from pathlib import Path

from ser.disk.read import read_named
from ser.errors import WrongUse

from ..evidence import Script


def read_script(path: Path) -> Script:
    """A Python file, and what keeps it from being parsed; an empty fault if nothing does."""
    try:
        source = read_named(path)
    except OSError as error:
        raise WrongUse(f"{path}: cannot be read ({error.strerror}); check its mode") from None
    try:
        ast.parse(source, filename=str(path))
    except SyntaxError as error:
        return Script(path.name, f"line {error.lineno}: {error.msg}")
    except (ValueError, RecursionError, MemoryError) as error:
        return Script(path.name, str(error))
    return Script(path.name, "")
