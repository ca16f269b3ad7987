"""How many cores this process may use, which device, and how a GPU is to compute."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from ser import engines
from ser.engines.machine import choose_device, cores, exact_arithmetic, is_out_of_memory
from ser.errors import WrongUse

MANY = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, MANY),  # no control groups at all
        ({"mine": "0::/", "cpu.max": "100000 100000"}, 1),  # docker run --cpus 1
        ({"mine": "0::/", "cpu.max": "150000 100000"}, min(2, MANY)),  # --cpus 1.5
        ({"mine": "0::/", "cpu.max": "max 100000"}, MANY),
        ({"mine": "0::/", "cpu.max": "6400000 100000"}, MANY),  # more than there are
        ({"mine": "0::/", "cpu.max": "1000 100000"}, 1),  # a hundredth of one
        ({"mine": "0::/a/b", "a/b/cpu.max": "max 100000", "a/cpu.max": "50000 50000"}, 1),  # systemd, Slurm
        ({"mine": "4:cpu:/x\n0::/", "cpu/cpu.cfs_quota_us": "-1"}, MANY),  # version 1
        ({"mine": "4:cpu:/x", "cpu/cpu.cfs_quota_us": "90000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_a_quota_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    assert cores(tmp_path, tmp_path / "mine") == expected


def test_the_affinity_counts() -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from ser.engines import cores; "
    assert subprocess.check_output([sys.executable, "-c", code + "print(cores())"], text=True) == "1\n"


def test_auto_is_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [(0, False, "cpu", "mps"), (0, True, "mps", "cuda"), (2, True, "cuda", "cuda:2")]
    for count, apple, auto, refused in there:
        monkeypatch.setattr(torch.cuda, "is_available", lambda count=count: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda apple=apple: apple)
        assert choose_device("auto") == auto == choose_device(auto)
        assert (engines.gpus("auto"), engines.gpus("cpu")) == (count, 0)
        with pytest.raises(WrongUse, match="finds no such device here"):
            choose_device(refused)


def test_a_lack_of_memory_is_known_by_what_is_said_of_it() -> None:
    for told in ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory"):
        assert is_out_of_memory(RuntimeError(told))
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(RuntimeError("an illegal memory access"))


def device_of_three(task: int) -> str:
    torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 3  # type: ignore[assignment]
    return choose_device("auto")


def test_each_worker_has_a_gpu_of_its_own(fork_server: None) -> None:
    found = Counter(engines.run(device_of_three, range(5), 5))
    assert found == {"cuda": 2, "cuda:1": 2, "cuda:2": 1}


def test_one_function_turns_tf32_off_whatever_was_set_before() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    torch.set_float32_matmul_precision("medium")
    torch.backends.fp32_precision = cudnn.fp32_precision = cudnn.conv.fp32_precision = "tf32"
    try:
        exact_arithmetic("cpu")
        assert {part.fp32_precision for part in (matmul, cudnn.conv, cudnn.rnn)} == {"ieee"}
        assert (matmul.allow_tf32, cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (False, False, "highest")
    finally:
        torch.backends.fp32_precision = cudnn.fp32_precision = "none"


def test_deterministic_is_asked_of_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", "")
    exact_arithmetic("cpu", deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()
    exact_arithmetic("cuda", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    exact_arithmetic("cuda")
    assert not torch.are_deterministic_algorithms_enabled()
