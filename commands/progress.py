"""Progress on standard error: a bar on a terminal, one line a minute elsewhere."""

import sys
from typing import Any

import click
from tqdm import tqdm


class _Lines:
    """A stream that turns the redrawing of a bar into lines of a log."""

    def write(self, text: str) -> None:
        if text := text.strip("\r\n "):
            click.echo(text, err=True)

    def flush(self) -> None:
        sys.stderr.flush()


def progress(total: float | None, what: str, unit: str = "it", **options: Any) -> "tqdm[Any]":
    """A `tqdm` bar of `total` steps on standard error; `what` names the stage."""
    if sys.stderr.isatty():
        return tqdm(total=total, desc=what, unit=unit, dynamic_ncols=True, **options)
    lines: Any = _Lines()
    return tqdm(total=total, desc=what, unit=unit, file=lines, mininterval=60, maxinterval=60, ascii=True, **options)
