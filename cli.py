"""The command `ser`: gathers the commands, and is the only place where an error becomes a message.

Exit codes: 0 done · 1 failed · 2 wrong use · 3 finished, with something left out, or an audit with
a fault.
"""

import contextlib
import logging
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from ser.commands import (
    audit,
    cache,
    corpus,
    demo,
    doctor,
    ensemble,
    explore,
    features,
    predict,
    report,
    runs,
    sweep,
    train,
    weights,
)
from ser.commands.options import read_defaults, sets_any
from ser.commands.output import LineStream, say
from ser.commands.surroundings import prepare, restart_in_utf8
from ser.errors import DISTRIBUTION, FREE_MEMORY, SerError


class Commands(click.Group):
    """A group whose commands end in one sentence, never in a traceback for a user's mistake."""

    # Whether the process is there for this command, and not a caller's.
    owns_process = False

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        """Run the command line of this process, or the words of a caller in it."""
        self.owns_process = args is None
        if self.owns_process:
            restart_in_utf8()
        return super().main(args, *more, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn what it raises into a message and an exit code."""
        try:
            prepare()
            _escape_what_is_not_utf8()
            return super().invoke(ctx)
        except SerError as fault:
            _end(ctx, str(fault), fault.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            ctx.exit(1)
        except KeyboardInterrupt:
            with _last_ctrl_c() if self.owns_process else contextlib.nullcontext():
                _end(ctx, _interrupted(ctx.invoked_subcommand))
        except SystemExit as fault:
            # ser's own commands end by click's Exit: it is someone else's code that ends here.
            _end(ctx, _unexpected(fault))
        except Exception as fault:
            _end(ctx, _unexpected(fault))


@contextlib.contextmanager
def _last_ctrl_c() -> Iterator[None]:
    """Another Ctrl-C waits for what is said here, and ends the process at once after that.

    Python would print a traceback for one that comes while the process ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _escape_what_is_not_utf8() -> None:
    """Have both streams escape a path that is not UTF-8, which JSON takes too."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # of a stream that somebody put in place
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _end(ctx: click.Context, message: str, exit_code: int = 1) -> None:
    """Say why the command failed, and end it."""
    say(f"ser: {message}", err=True)
    ctx.exit(exit_code)


def _interrupted(command: str | None) -> str:
    """What is kept of an interrupted command, and how it goes on."""
    again = "the same command goes on from there"
    if command == "train":
        again = "the same command with --resume goes on from there"
    return f"interrupted; what was finished is kept, and {again}"


def _unexpected(fault: BaseException) -> str:
    """One sentence about a fault that nobody foresaw.

    It is what the system says, or else where the traceback is.
    """
    if isinstance(fault, UnicodeEncodeError) and fault.encoding == sys.getfilesystemencoding():
        return (
            f"this shell's locale ({fault.encoding}) cannot spell {fault.object!r}; set "
            "LC_ALL=C.UTF-8 or PYTHONUTF8=1, and run the same command again"
        )
    if isinstance(fault, OSError) and fault.errno is not None:
        return f"{fault.filename}: {fault.strerror}" if fault.filename else f"{fault.strerror}"

    if isinstance(fault, MemoryError):
        return f"the memory left is not enough; {FREE_MEMORY}"

    first_line = f"{type(fault).__name__}: {fault}".splitlines()[0]
    traceback_words = _keep_traceback("".join(traceback.format_exception(fault)))
    return f"an unexpected error ({first_line[:200]}); {traceback_words}"


def _keep_traceback(text: str) -> str:
    """Write a traceback to a file, and say where it is and what to do with it."""
    try:
        with tempfile.NamedTemporaryFile(prefix="ser-error-", suffix=".txt", delete=False) as file:
            file.write(text.encode(errors="backslashreplace"))
    except OSError:
        return f"please report it with this traceback:\n{text}"
    return f"the traceback is in {file.name}; unless it is your own code, please report it"


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name=DISTRIBUTION)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Speech emotion recognition in two stages: extract features once, train every fusion model in
    minutes.

    \b
    ser corpus show /data/IEMOCAP_full_release
    ser features /data/IEMOCAP_full_release
    ser train --features hubert+mpnet --fusion mit

    `ser demo` shows all of it on generated speech. Defaults of your own go into ser.toml, in the
    working folder.
    """
    for defaults in (Path("ser.toml"), Path("pyproject.toml")):
        if defaults.is_file():
            ctx.obj = defaults
            ctx.default_map = read_defaults(main, defaults)
            if sets_any(ctx.default_map.get(ctx.invoked_subcommand or "", {})):
                say(f"{defaults}: options that are not given are taken from this file", err=True)
            break

    logging.basicConfig(
        stream=LineStream(), format="%(levelname)s: %(message)s", level=logging.WARNING
    )


# In the order in which docs/commands.md lists them: the stages, then the rest.
main.add_command(demo.demo)
main.add_command(corpus.corpus)
main.add_command(features.features)
main.add_command(train.train)
main.add_command(sweep.sweep)
main.add_command(ensemble.ensemble)
main.add_command(report.report)
main.add_command(runs.runs)
main.add_command(audit.audit)
main.add_command(explore.explore)
main.add_command(predict.predict)
main.add_command(predict.export)
main.add_command(cache.cache)
main.add_command(weights.weights)
main.add_command(doctor.doctor)
