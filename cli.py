"""The command `ser`: gathers the commands, and is the only place where an error becomes a message.

Exit codes: 0 done · 1 failed · 2 wrong use · 3 finished, with quarantined utterances.
"""

import errno
import logging
from typing import Any

import click

from ser.commands.cache import cache
from ser.commands.corpus import corpus
from ser.commands.doctor import doctor
from ser.commands.features import features
from ser.commands.output import LineStream, say
from ser.commands.predict import predict
from ser.commands.report import report
from ser.commands.sweep import sweep
from ser.commands.train import train
from ser.commands.weights import weights
from ser.errors import SerError


class Commands(click.Group):
    """A group whose commands end in one sentence, never in a traceback for a user's mistake."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn what it raises into a message and an exit code."""
        try:
            return super().invoke(ctx)
        except SerError as fault:
            message, code = str(fault), fault.exit_code
        except BrokenPipeError:
            ctx.exit(1)
        except OSError as fault:
            if fault.errno in (None, errno.EPIPE):
                raise
            message, code = f"{fault.filename}: {fault.strerror}" if fault.filename else str(fault.strerror), 1
        except KeyboardInterrupt:
            message, code = "interrupted; what was finished is kept, and the same command goes on from there", 1
        say(f"ser: {message}", err=True)
        ctx.exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="ser")
def main() -> None:
    """Speech emotion recognition in two stages: extract features once, train every fusion model in minutes.

    \b
    ser corpus show /data/IEMOCAP_full_release
    ser features /data/IEMOCAP_full_release
    ser train --features hubert+mpnet --fusion mit
    """
    logging.basicConfig(stream=LineStream(), format="%(levelname)s: %(message)s", level=logging.WARNING)


for _command in (corpus, features, train, sweep, report, predict, cache, weights, doctor):
    main.add_command(_command)
