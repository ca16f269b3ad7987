"""Progress on standard error: a bar on a terminal, one line a minute elsewhere."""

import sys
from typing import Any

import click
from tqdm import tqdm


class _Lines:
    """A stream that turns the redrawing of a bar into lines of a log."""

    def write(self, text: str) -> None:
        if text := text.replace("\x1b[A", "").strip("\r\n "):  # tqdm steers the cursor between its bars
            click.echo(text, err=True)

    def flush(self) -> None:
        sys.stderr.flush()


def progress(total: float | None, what: str, unit: str = "it", **options: Any) -> "tqdm[Any]":
    """A `tqdm` bar of `total` steps on standard error; `what` names the stage."""
    if sys.stderr.isatty():
        return tqdm(total=total, desc=what, unit=unit, dynamic_ncols=True, **options)
    lines: Any = _Lines()
    return tqdm(total=total, desc=what, unit=unit, file=lines, mininterval=60, maxinterval=60, ascii=True, **options)


class Stages:
    """One bar per stage of a run, made when the stage first reports."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.bars: dict[str, tqdm[Any]] = {}

    def __enter__(self) -> "Stages":
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
