"""A file system with faults: reads and writes that come short or fail, and locks that hold nobody off."""

import ctypes
import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ser.tests.command_line import ser
from ser.tests.tiny_store import make_store

SMALL = "--epochs 1 --folds 1 --set d_model=4 --set gru_hidden=2 --set heads=1"
COMMANDS = {
    "import": "cache import new new.npy --modality audio --store store",
    "import as HDF5": "cache import new new.npy --modality audio --store store --backend hdf5",
    "verify": "cache verify --store store",
    "export": "cache export bert bert.h5 --store store",
    "train": f"train --store store --features is13 --fusion audio --out runs {SMALL}",
}
CALLS = (1, 2, 3, 5, 8, 20)  # of a command's reads or writes, the one that fails


def drive(command: str) -> None:
    """In a process with the shim, in a folder with `store` and `new.npy`: each read and write fails once, in each way.

    The command answers or says one sentence; then, without a fault, the store is whole and the same command succeeds.
    """
    shim = ctypes.CDLL(None)
    here = str(Path.cwd())
    shutil.copytree("store", "before")

    def run(words: str) -> tuple[int, str]:
        result = ser(*words.split())
        return result.exit_code, result.output

    fired = 0
    for writing, error, call in itertools.product((0, 1), (0, errno.EINVAL, errno.EIO), CALLS):
        for made in ("store", "runs", "bert.h5"):
            shutil.rmtree(made, ignore_errors=True)
        Path("bert.h5").unlink(missing_ok=True)
        shutil.copytree("before", "store")
        shim.fail_at(here.encode(), call, writing, error)
        code, output = run(command)
        left = shim.calls_left()
        shim.fail_at(b"", 0, 0, 0)
        where = f"{'write' if writing else 'read'} {call} of {command}, errno {error}: {output}"
        assert code in (0, 1) and "unexpected error" not in output, where
        assert code == 0 or "\nser: " in f"\n{output}" or "1 bad" in output, where
        assert run("cache verify --store store")[0] == 0, where
        if (code and "import" in command) or "train" in command:
            assert run(command)[0] == 0, where
        fired += left == 0
    assert fired > 5


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler")
@pytest.mark.parametrize("name", COMMANDS)
def test_each_read_and_write_fails_once(tmp_path: Path, name: str) -> None:
    shim = tmp_path / "faulty.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-w", Path(__file__).with_name("faulty_fs.c"), "-o", shim, "-ldl"], check=True
    )
    (work := tmp_path / "work").mkdir()
    store = make_store(work / "store", turns=4)
    np.save(work / "new.npy", np.ones((len(store.manifest().ids), 3), np.float32))
    drive_it = f"from ser.tests.test_faulty_fs import drive; drive({json.dumps(COMMANDS[name])})"
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "LD_PRELOAD": str(shim)}
    done = subprocess.run(
        [sys.executable, "-c", drive_it], cwd=work, env=os.environ | paths, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
