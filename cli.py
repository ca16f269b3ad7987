"""The command `ser`: gathers the commands, and is the only place where an error becomes a message.

Exit codes: 0 done · 1 failed · 2 wrong use · 3 finished, with quarantined utterances.
"""

import contextlib
import logging
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import click

from ser.commands import (
    cache,
    completion,
    corpus,
    demo,
    doctor,
    features,
    predict,
    report,
    runs,
    sweep,
    train,
    weights,
)
from ser.commands.options import read_defaults
from ser.commands.output import LineStream, say
from ser.errors import DISTRIBUTION, SerError


class Commands(click.Group):
    """A group whose commands end in one sentence, never in a traceback for a user's mistake."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn what it raises into a message and an exit code."""
        for stream in (
            sys.stdout,
            sys.stderr,
        ):  # a path that is not UTF-8 is printed escaped, which JSON takes too
            with contextlib.suppress(AttributeError):  # of a stream that somebody put in place
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        try:
            return super().invoke(ctx)
        except SerError as fault:
            message, code = str(fault), fault.exit_code
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            ctx.exit(1)
        except KeyboardInterrupt:
            message, code = (
                "interrupted; what was finished is kept, and the same command goes on from there",
                1,
            )
        except Exception as fault:
            message, code = _unexpected(fault), 1
        say(f"ser: {message}", err=True)
        ctx.exit(code)


def _unexpected(fault: Exception) -> str:
    """One sentence about a fault that nobody foresaw: what the system says, or else where its
    traceback is.
    """
    if isinstance(fault, OSError) and fault.errno is not None:
        return f"{fault.filename}: {fault.strerror}" if fault.filename else f"{fault.strerror}"
    what, *_ = f"{type(fault).__name__}: {fault}".splitlines()
    text = "".join(traceback.format_exception(fault))
    try:
        with tempfile.NamedTemporaryFile(prefix="ser-error-", suffix=".txt", delete=False) as file:
            file.write(text.encode(errors="backslashreplace"))
        where = f"the traceback is in {file.name}; unless it is your own code, please report it"
    except OSError:
        where = f"please report it with this traceback:\n{text}"
    return f"an unexpected error ({what[:200]}); {where}"


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
    if own := [path for path in (Path("ser.toml"), Path("pyproject.toml")) if path.is_file()]:
        ctx.obj, ctx.default_map = own[0], read_defaults(main, own[0])
    logging.basicConfig(
        stream=LineStream(), format="%(levelname)s: %(message)s", level=logging.WARNING
    )


_STAGES = (
    demo.demo,
    corpus.corpus,
    features.features,
    train.train,
    sweep.sweep,
    report.report,
    runs.runs,
)
_OTHERS = (
    predict.predict,
    predict.export,
    cache.cache,
    weights.weights,
    doctor.doctor,
    completion.completion,
)
for _command in (*_STAGES, *_OTHERS):
    main.add_command(_command)
