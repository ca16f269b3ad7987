"""Python processes that ser starts, isolated from the working folder.

`python -c` and `python -m` put the working folder first on the path of imports. There a downloaded
corpus or repository may hold a `json.py`, which would run. So every child is started with what is
said here: it imports from where this process does, and never from the working folder.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path


def python_module(module: str, *words: str) -> list[str]:
    """The command line that runs a module as a program."""
    return [sys.executable, "-P", "-m", module, *words]


def isolated(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for a Python process, with this process's path of imports."""
    # An empty entry, and a relative one, would be the working folder.
    path = [entry for entry in sys.path if Path(entry).is_absolute()]
    return {**environment, "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}


@contextlib.contextmanager
def isolated_children() -> Iterator[None]:
    """Within the context, each Python process that a library starts is isolated."""
    before = dict(os.environ)
    os.environ.update(isolated(before))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
