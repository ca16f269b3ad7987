"""How many cores this process may use, which device, and how a GPU is to compute."""

import os
import subprocess
import sys
from pkgutil import resolve_name

import pytest
import torch

from ser import engines
from ser.engines import machine
from ser.engines.machine import choose_device, exact_arithmetic, is_out_of_memory
from ser.errors import WrongUse


def test_the_affinity_counts() -> None:
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
        "from ser.engines import cores; "
    )
    assert (
        subprocess.check_output([sys.executable, "-c", code + "print(cores())"], text=True) == "1\n"
    )


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
    allocating = "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory"
    for told in (*allocating, "unable to find an engine"):
        assert is_out_of_memory(RuntimeError(told))
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(
        RuntimeError("an illegal memory access")
    )


def test_each_worker_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    numbers = sorted(engines.run(resolve_name, ["ser.engines.machine:this_worker"] * 5, 5))
    for worker, device in zip(numbers, ("cuda", "cuda:1", "cuda:2", "cuda", "cuda:1"), strict=True):
        monkeypatch.setattr(machine, "this_worker", worker)
        assert choose_device("auto") == device


def test_one_function_turns_tf32_off_whatever_was_set_before() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    torch.set_float32_matmul_precision("medium")
    torch.backends.fp32_precision = cudnn.fp32_precision = cudnn.conv.fp32_precision = "tf32"
    try:
        exact_arithmetic("cpu")
        assert {part.fp32_precision for part in (matmul, cudnn.conv, cudnn.rnn)} == {"ieee"}
        assert (matmul.allow_tf32, cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (
            False,
            False,
            "highest",
        )
    finally:
        torch.backends.fp32_precision = cudnn.fp32_precision = "none"


def test_deterministic_is_asked_of_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", "")
    exact_arithmetic("cpu", deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()
    exact_arithmetic("cuda", deterministic=True)
    assert (
        torch.are_deterministic_algorithms_enabled()
        and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    )
    exact_arithmetic("cuda")
    assert not torch.are_deterministic_algorithms_enabled()
