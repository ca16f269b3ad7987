"""Each read and write fails once: an answer or one sentence, and the store is whole afterwards."""

import ctypes
import errno
import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ser.tests.command_line import in_a_process, ser
from ser.tests.tiny_store import make_store

SMALL = "--epochs 1 --folds 1 --set d_model=4 --set gru_hidden=2 --set heads=1"
COMMANDS = (
    "cache import new new.npy --modality audio --store store",
    "cache import new new.npy --modality audio --store store --backend hdf5",
    "cache verify --store store",
    "cache export bert bert.h5 --store store",
    f"train --store store --features is13 --fusion audio --out runs {SMALL}",
)
# Of a command's reads or writes, the one that fails; and how often at least one of a command does.
CALLS = ("1", "3", "8")
MORE_CALLS = ("1", "2", "3", "5", "8", "20")
# 0: it comes short.
ERRORS = (0, errno.EINVAL, errno.EIO)


def start_anew() -> None:
    """The store as it was, without what a command before has made."""
    for folder in ("store", "runs", "bert.h5"):
        shutil.rmtree(folder, ignore_errors=True)
    Path("bert.h5").unlink(missing_ok=True)
    shutil.copytree("before", "store")


def run(command: str) -> tuple[int, str]:
    """Exit code and output."""
    result = ser(*command.split())
    return result.exit_code, result.output


def fail_each_call(at_least: str, *calls: str) -> None:
    """In a process with the shim, in a folder with `before` and `new.npy`: every way of failing.

    Each command fails at these `calls`, and `at_least` so often.

    The command answers or says one sentence; then, without a fault, the store is whole and the same
    command succeeds.
    """
    shim = ctypes.CDLL(None)
    folder = str(Path.cwd()).encode()
    fired = dict.fromkeys(COMMANDS, 0)

    for command, writing, error, call in itertools.product(COMMANDS, (0, 1), ERRORS, calls):
        start_anew()
        shim.fail_at(folder, int(call), writing, error)
        code, output = run(command)
        calls_left = shim.calls_left()
        shim.fail_at(b"", 0, 0, 0)

        where = f"{'write' if writing else 'read'} {call} of {command}, errno {error}: {output}"
        assert code in (0, 1), where
        assert "unexpected error" not in output, where
        assert code == 0 or "\nser: " in f"\n{output}" or "1 bad" in output, where
        assert run("cache verify --store store")[0] == 0, where
        if (code and "import" in command) or "train" in command:
            assert run(command)[0] == 0, where
        if calls_left == 0:
            fired[command] += 1

    assert min(fired.values()) >= int(at_least), fired


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler"
)
@pytest.mark.parametrize(
    ("calls", "at_least"),
    [
        pytest.param(CALLS, 3, id="some calls"),
        pytest.param(MORE_CALLS, 6, id="more calls", marks=pytest.mark.slow),
    ],
)
def test_each_read_and_write_fails_once(
    tmp_path: Path, calls: tuple[str, ...], at_least: int
) -> None:
    shim = tmp_path / "faulty.so"
    source = Path(__file__).with_name("faulty_fs.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-w", source, "-o", shim, "-ldl"], check=True)
    work = tmp_path / "work"
    work.mkdir()
    store = make_store(work / "before", turns=4)
    np.save(work / "new.npy", np.ones((len(store.manifest().ids), 3), np.float32))

    in_a_process(fail_each_call, at_least, *calls, cwd=work, LD_PRELOAD=str(shim))
