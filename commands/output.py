"""What commands write: one answer on standard output, and progress on standard error.

Progress is a bar on a terminal, and one line a minute elsewhere.
"""

import json
import sys
from typing import Any

import click
from tqdm import tqdm


def answer(value: Any) -> None:
    """Print text as it is, and anything else as one JSON value."""
    click.echo(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def duration(seconds: float) -> str:
    """A duration to read, in its two largest units: "3.2 s", "5 min 20 s", "12 h 26 min"."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


class _LogStream:
    """A stream that turns the redrawing of a bar into lines of a log."""

    def write(self, text: str) -> None:
        if text := text.replace("\x1b[A", "").strip("\r\n "):  # tqdm moves the cursor between its bars
            click.echo(text, err=True)

    def flush(self) -> None:
        sys.stderr.flush()


def progress(total: float | None, what: str, unit: str = "it", **options: Any) -> "tqdm[Any]":
    """A `tqdm` bar of `total` steps on standard error; `what` names the stage."""
    if sys.stderr.isatty():
        return tqdm(total=total, desc=what, unit=unit, dynamic_ncols=True, **options)
    log: Any = _LogStream()
    return tqdm(total=total, desc=what, unit=unit, file=log, mininterval=60, maxinterval=60, ascii=True, **options)


class StageBars:
    """One bar per stage of a run, made when the stage first reports."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.bars: dict[str, tqdm[Any]] = {}

    def __enter__(self) -> "StageBars":
        return self

    def __exit__(self, *fault: object) -> None:
        for bar in self.bars.values():
            bar.close()

    def update(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` units of that stage are finished."""
        if stage not in self.bars:
            place = {"position": len(self.bars)} if sys.stderr.isatty() else {}
            self.bars[stage] = progress(total, f"{stage:<8}", self.unit, **place)
        self.bars[stage].update(done - self.bars[stage].n)
