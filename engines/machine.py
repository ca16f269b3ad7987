"""What this machine lets this process have."""

import math
import re
from pathlib import Path

from ser.cache.blocks import usable_cores
from ser.errors import WrongUse

SIGNS = ("out of memory", "can't allocate", "ALLOC_FAILED")  # of torch, on a GPU and on a CPU; of cuBLAS and cuDNN


def choose_device(name: str, here: bool = True) -> str:
    """The torch device that `--device` names; `auto` is the first GPU if there is one.

    With `here` false it is for another machine, and only its spelling is checked. Raises `WrongUse` for a name that is
    no device, or for one that torch does not find here.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise WrongUse(f"--device {name}: must be auto, cpu, cuda or cuda:N")
    if name == "cpu" or not here:
        return name
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not torch.cuda.is_available() or int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise WrongUse(f"--device {name}: torch finds no such device here; use --device auto")
    return name


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether this is an allocation that failed, in this process's memory or a GPU's."""
    return isinstance(fault, MemoryError) or any(sign in str(fault) for sign in SIGNS)


def memory() -> tuple[int | None, int | None]:
    """Bytes of memory that this process may use, and of those that are free now; None if the system does not say.

    The smaller of the machine's and the container's (cgroup's).
    """
    total = free = None
    try:
        lines = dict(line.split(":", 1) for line in _read(Path("/proc/meminfo")).splitlines())
        total, free = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (KeyError, ValueError):
        pass
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        most = _read(Path(limit)).strip()
        if most.isdecimal() and total is not None and int(most) < total:  # it may be "max"
            total, free = int(most), min(free or int(most), int(most))
    return total, free


def memory_budget(asked: str | None) -> int | None:
    """Bytes that `--memory` allows: "8GB" is 8e9, None half of what is free now, or no bound if nobody knows that.

    Raises `WrongUse` for what is no such size.
    """
    if asked is None:
        free = memory()[1]
        return None if free is None else free // 2
    size = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?) ?([MGT])B", asked.strip(), re.IGNORECASE)
    if not size or not float(size[1]):
        raise WrongUse(f"--memory {asked}: must be a number of MB, GB or TB, such as 8GB or 500MB")
    return int(float(size[1]) * {"M": 1e6, "G": 1e9, "T": 1e12}[size[2].upper()])


def cores(groups: Path = Path("/sys/fs/cgroup"), mine: Path = Path("/proc/self/cgroup")) -> int:
    """CPU cores that this process may use: fewer than the machine has, under taskset or in a container with a quota."""
    # Control groups of version 1 have one folder; those of version 2 are a tree, in which every one counts.
    quotas = [[_read(groups / "cpu" / f"cpu.cfs_{what}_us").strip() for what in ("quota", "period")]]
    for line in _read(mine).splitlines():
        if line.startswith("0::/"):
            inside = Path(line.removeprefix("0::/"))
            quotas += [_read(groups / group / "cpu.max").split() for group in (inside, *inside.parents)]
    numbers = [
        tuple(map(int, quota)) for quota in quotas if quota and all(map(str.isdecimal, quota))
    ]  # "max", -1: none
    return max(1, min([usable_cores(), *(math.ceil(quota / period) for quota, period in numbers)]))


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
