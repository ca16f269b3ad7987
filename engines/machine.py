"""What this machine offers this process: devices, memory, cores."""

import contextlib
import os
import re
from pathlib import Path
from typing import Any

from ser.errors import WrongUse

# Of `--memory`, in bytes.
UNITS = {"M": 1e6, "G": 1e9, "T": 1e12}

# The number of this process among the workers that `processes` started.
this_worker = 0


def choose_device(name: str, here: bool = True) -> str:
    """The torch device that `--device` names.

    `auto` is a GPU if there is one (of several, another one for each worker process), otherwise
    Apple's, or the CPU. If it is not `here` but on another machine, only the spelling is checked.
    Raises `WrongUse` for what is not the name of a device, or for a device that torch does not
    find.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise WrongUse(f"--device {name}: must be auto, cpu, cuda, cuda:N or mps")
    if name == "cpu" or not here:
        return name
    import torch

    gpu_count = gpus("auto")
    apple = torch.backends.mps.is_available()
    if name == "auto" and gpu_count:
        number = this_worker % gpu_count
        return f"cuda:{number}" if number else "cuda"
    if name == "auto":
        return "mps" if apple else "cpu"

    number = int(name.partition(":")[2] or 0)
    is_here = apple if name == "mps" else number < gpu_count
    if not is_here:
        raise WrongUse(f"--device {name}: torch finds no such device here; use --device auto")
    return name


def gpus(device: str) -> int:
    """How many GPUs several workers can use: with `auto` all of this machine, else at most one."""
    if device != "auto":
        return int(device != "cpu")
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def exact_arithmetic(device: str, deterministic: bool = False) -> None:
    """Make torch compute float32 as float32 in this process: TF32 keeps ten bits of the mantissa.

    `deterministic` gives the same bytes each time on a GPU too, if set before the first product
    there: then cuBLAS reads its variable. An operation without a deterministic way raises torch's
    `RuntimeError`. A CPU needs nothing.
    """
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    # Since torch 2.9, where these settings come first.
    if hasattr(torch.backends, "fp32_precision"):
        backends: Any = torch.backends
        for part in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn):
            part.fp32_precision = "ieee"
    if not device.startswith("cuda"):
        return
    if ":" in device:
        # Also for calls without a device, such as of a stream.
        torch.cuda.set_device(device)
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.backends.cudnn.benchmark = False
    # Setting it imports torch's compiler.
    if deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(deterministic)


def memory() -> tuple[int | None, int | None]:
    """Bytes of memory that this process may use, and that are free now.

    The smaller of the machine's and the container's (cgroup's). None if the system does not report
    them.
    """
    total = None
    free = None
    with contextlib.suppress(OSError, KeyError, ValueError):
        kilobytes: dict[str, str] = {}
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, value = line.split(":", 1)
            kilobytes[name] = value
        all_of_it = kilobytes["MemTotal"].split()[0]
        available = kilobytes["MemAvailable"].split()[0]
        total = int(all_of_it) * 1024
        free = int(available) * 1024

    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        # It may be "max".
        with contextlib.suppress(OSError, ValueError):
            limit = int(Path(file).read_text())
            if total is not None and limit < total:
                total = limit
                free = min(free or limit, limit)
    return total, free


def memory_budget(option: str | None) -> int | None:
    """Bytes that `--memory` allows: "8GB" is 8e9, None half of what is free now.

    None means no bound, where what is free is unknown. Raises `WrongUse` for any other size.
    """
    if option is None:
        _, free = memory()
        return None if free is None else free // 2

    size = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?) ?([MGT])B", option.strip(), re.IGNORECASE)
    if not size or not float(size[1]):
        raise WrongUse(f"--memory {option}: must be a number of MB, GB or TB, such as 8GB or 500MB")
    return int(float(size[1]) * UNITS[size[2].upper()])


def cores() -> int:
    """CPU cores that this process may use.

    Fewer than the machine has, under taskset or in a container with a quota.
    """
    import joblib

    return joblib.cpu_count()
