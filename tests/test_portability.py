"""Systems that lack what Linux has.

The whole way from a corpus to a prediction, in a Python without it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

# Read by each Python that starts, workers too. asyncio comes first: it has a part for Windows,
# which is not taken here.
WITHOUT = """
import asyncio, multiprocessing, os, signal, sys

for name in ("O_DIRECT", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC"):
    delattr(os, name)
for name in ("sched_getaffinity", "fork", "fchmod"):
    delattr(os, name)
del signal.pthread_sigmask, signal.SIGKILL
sys.modules["fcntl"] = None
multiprocessing.get_all_start_methods = lambda: ["spawn"]

unlink = os.unlink

def unlink_closed(path, *, dir_fd=None):
    there = os.lstat(path, dir_fd=dir_fd)
    for held in os.scandir("/proc/self/fd"):
        if os.path.exists(held.path) and os.path.samestat(os.stat(held.path), there):
            raise PermissionError(13, "is open", path)
    unlink(path, dir_fd=dir_fd)

os.unlink = os.remove = unlink_closed
"""
COMMANDS = """
import sys
from pathlib import Path
from ser.cli import main

COMMANDS = (
    "corpus demo corpus",
    "features corpus --features logmel --workers 2 --limit 40",
    "cache verify",
    "train --features logmel --fusion audio --protocol random-70-20-10 "
    "--epochs 2 --set d_model=8 --set heads=2",
    "report runs",
    "predict RUN AUDIO --json",
)
if __name__ == "__main__":
    for command in COMMANDS:
        run = next(Path().glob("runs/*/model.safetensors"), Path()).parent
        audio = next(Path().rglob("Ses*.wav"), "")
        words = command.replace("RUN", str(run)).replace("AUDIO", str(audio)).split()
        code = main(words, standalone_mode=False)
        if code:
            sys.exit(f"{command}: {code}")
"""


def test_without_what_other_systems_lack(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    (tmp_path / "commands.py").write_text(COMMANDS)
    path = str(tmp_path)
    if os.environ.get("PYTHONPATH"):
        path += os.pathsep + os.environ["PYTHONPATH"]

    done = subprocess.run(
        [sys.executable, "commands.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "logmel  : 100%" in done.stderr
    assert done.stderr.count("no locks") == 1
    assert json.loads(done.stdout.splitlines()[-1])
