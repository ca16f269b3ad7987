"""How many cores this process may use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ser.engines.machine import cores

MANY = len(os.sched_getaffinity(0))


def write(folder: Path, **files: str) -> tuple[Path, Path]:
    """Control groups and /proc/self/cgroup; `__` in a name is a folder's end, and `_cpu` a dot."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_max", ".max").replace("cpu_cfs", "cpu.cfs")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder, folder / "mine"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, MANY),  # no control groups at all
        ({"mine": "0::/\n", "cpu_max": "100000 100000\n"}, 1),  # docker run --cpus 1
        ({"mine": "0::/\n", "cpu_max": "150000 100000\n"}, min(2, MANY)),  # --cpus 1.5
        ({"mine": "0::/\n", "cpu_max": "max 100000\n"}, MANY),
        ({"mine": "0::/\n", "cpu_max": "6400000 100000\n"}, MANY),  # more than there are
        ({"mine": "0::/\n", "cpu_max": "1000 100000\n"}, 1),  # a hundredth of one
        ({"mine": "0::/a/b\n", "a__b__cpu_max": "max 100000\n", "a__cpu_max": "50000 50000\n"}, 1),  # systemd, Slurm
        ({"mine": "4:cpu:/x\n0::/\n", "cpu__cpu_cfs_quota_us": "-1\n"}, MANY),
        (
            {"mine": "4:cpu:/x\n", "cpu__cpu_cfs_quota_us": "90000\n", "cpu__cpu_cfs_period_us": "100000\n"},
            1,  # version 1
        ),
    ],
)
def test_a_quota_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert cores(*write(tmp_path, **files)) == expected


def test_the_affinity_counts() -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from ser.engines import cores; "
    assert subprocess.check_output([sys.executable, "-c", code + "print(cores())"], text=True) == "1\n"
