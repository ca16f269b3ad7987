"""What commands write: one answer on standard output, progress on standard error.

Progress is a bar on a terminal, and one line a minute elsewhere.
"""

import io
import json
import shlex
import shutil
import sys
import webbrowser
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from ser.disk.paths import real_path
from ser.errors import printable

NARROWEST = 40  # letters in a line, on however narrow a terminal


def safe(text: str) -> str:
    """Lines of text, with control characters that a terminal would obey escaped."""
    return "\n".join(printable(line) for line in text.split("\n"))


def say(text: str, err: bool = False, nl: bool = True) -> None:
    """Print lines of text, which may hold control characters: see `safe`."""
    click.echo(safe(text), err=err, nl=nl)


def table(rows: Iterable[Sequence[Any]], columns: Sequence[str], **style: Any) -> str:
    """Rows under `columns`, as tabulate formats them in this `style`.

    Cells are escaped before tabulate counts their widths: what `say` escapes afterwards would shift
    the columns.
    """
    from tabulate import tabulate

    escaped = []
    for row in rows:
        escaped.append([safe(cell) if isinstance(cell, str) else cell for cell in row])
    return tabulate(escaped, [safe(column) for column in columns], **style)


def answer(value: Any) -> None:
    """Print text as it is, and any other value as JSON, in which NaN becomes null."""
    if not isinstance(value, str):
        finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
        value = json.dumps(finite, ensure_ascii=False)
    say(value)


def next_step(*words: object) -> None:
    """Suggest the next command, on standard error: it is not part of the answer."""
    command = shlex.join(["ser", *map(str, words)])
    say(f"next: {command}", err=True)


def open_page(page: Path, wanted: bool) -> None:
    """Show a page in the user's browser, if `wanted`; without a browser, print the page's path."""
    if wanted and not webbrowser.open(real_path(page).as_uri()):
        say(f"no browser could be opened here: {real_path(page)}", err=True)


def terminal_width() -> int:
    """Letters in a line: those of `COLUMNS`, or of the terminal, else 100."""
    width, _ = shutil.get_terminal_size((100, 24))
    return max(width, NARROWEST)


def plural(count: int, noun: str) -> str:
    """A count of things: "1 run", "1,000 runs"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def parameters_text(parameters: int, trained: int) -> str:
    """How many weights a model has, and how many of them train: "9,000 parameters"."""
    words = f"{parameters:,} parameters"
    if trained < parameters:
        words += f" ({trained:,} of them train)"
    return words


def size_text(size: float) -> str:
    """Bytes in the unit that fits them: "12.3 MB", "1.20 GB"."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """A duration in its two largest units: "3.2 s", "5 min 20 s", "12 h 26 min"."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s"


class LineStream(io.StringIO):
    """A stream that prints each state of a progress bar as a line of its own."""

    def write(self, text: str) -> int:
        # tqdm moves the cursor between its bars.
        line = text.replace("\x1b[A", "").strip("\r\n ")
        if line:
            say(line, err=True)
        return len(text)


def progress(total: float | None, label: str, unit: str = "it", **options: Any) -> "tqdm[Any]":
    """A `tqdm` bar of `total` steps on standard error, with this label."""
    if sys.stderr.isatty():
        return tqdm(total=total, desc=label, unit=unit, dynamic_ncols=True, **options)
    return tqdm(
        total=total,
        desc=label,
        unit=unit,
        file=LineStream(),
        mininterval=60,
        maxinterval=60,
        ascii=True,
        **options,
    )


@contextmanager
def stage_bars(unit: str = "utt", **options: Any) -> Iterator[Callable[[str, int, int], None]]:
    """One bar per stage, made when the stage first reports how much of it is done.

    `options` are tqdm's.
    """
    bars: dict[str, tqdm[Any]] = {}
    with ExitStack() as stack:

        def update(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = stack.enter_context(progress(total, f"{stage:<8}", unit, **options))
            bars[stage].update(done - bars[stage].n)
            if done >= total:
                bars[stage].close()

        yield update
