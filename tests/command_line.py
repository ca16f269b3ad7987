"""`ser …` in this process, and functions of tests in a process of their own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from click.testing import CliRunner, Result

from ser.cli import main

# Commands that time a few steps before they train. Here a single batch is timed, twice: what the
# times are worth is tested where nothing else is.
TIMED = ("train", "sweep")
SHORT_TRIALS = {"TIMED_EPOCHS": 2, "ENOUGH_SECONDS": 0.0}


def ser(*words: object) -> Result:
    """Run one command."""
    arguments = [str(word) for word in words]
    if arguments[:1] and arguments[0] in TIMED:
        with patch.multiple("ser.train.estimate", **SHORT_TRIALS):
            return CliRunner().invoke(main, arguments)
    return CliRunner().invoke(main, arguments)


def printed(*words: object) -> str:
    """What a command prints on standard output; it must work."""
    done = ser(*words)
    assert done.exit_code == 0, (done.output, done.exception)
    return str(done.stdout)


def in_a_process(
    function: Callable[..., None], *words: object, cwd: Path | None = None, **env: str
) -> str:
    """What a function of a file of tests prints in a process of its own."""
    name = function.__name__
    module = Path(function.__code__.co_filename).stem
    code = f"import sys; from ser.tests.{module} import {name}; {name}(*sys.argv[1:])"
    command = [sys.executable, "-c", code, *map(str, words)]

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
