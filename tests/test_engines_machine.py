"""How many cores this process may use, which device, and how a GPU is to compute."""

import os
import subprocess
import sys
from pkgutil import resolve_name

import pytest
import torch

from ser import engines
from ser.disk.memory import is_out_of_memory
from ser.engines import machine
from ser.engines.machine import choose_device, exact_arithmetic
from ser.errors import WrongUse

ON_ONE_CORE = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
from ser.engines import cores
print(cores())
"""


def test_the_affinity_counts() -> None:
    assert subprocess.check_output([sys.executable, "-c", ON_ONE_CORE], text=True) == "1\n"


@pytest.mark.parametrize(
    ("gpus", "apple", "best", "missing"),
    [
        pytest.param(0, False, "cpu", "mps", id="no accelerator"),
        pytest.param(0, True, "mps", "cuda", id="an Apple chip"),
        pytest.param(2, True, "cuda", "cuda:2", id="two GPUs"),
    ],
)
def test_auto_is_the_best_there_is(
    gpus: int, apple: bool, best: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)

    assert choose_device("auto") == best
    assert choose_device(best) == best
    assert engines.gpus("auto") == gpus
    assert engines.gpus("cpu") == 0
    with pytest.raises(WrongUse, match="finds no such device here"):
        choose_device(missing)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param("can't allocate memory", id="CPU"),
        pytest.param("CUBLAS_STATUS_ALLOC_FAILED", id="cuBLAS"),
        pytest.param("MPS backend out of memory", id="MPS"),
        pytest.param("unable to find an engine", id="cuDNN"),
    ],
)
def test_a_lack_of_memory_is_known_by_its_message(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))


def test_a_lack_of_memory_is_known_by_its_class() -> None:
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("an illegal memory access"))


def test_each_worker_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    expected = ("cuda", "cuda:1", "cuda:2", "cuda", "cuda:1")

    numbers = sorted(engines.run(resolve_name, ["ser.engines.machine:this_worker"] * 5, 5))

    for number, device in zip(numbers, expected, strict=True):
        monkeypatch.setattr(machine, "this_worker", number)
        assert choose_device("auto") == device


def test_one_function_turns_tf32_off_whatever_was_set_before() -> None:
    matmul = torch.backends.cuda.matmul
    cudnn = torch.backends.cudnn
    torch.set_float32_matmul_precision("medium")
    torch.backends.fp32_precision = "tf32"
    cudnn.fp32_precision = "tf32"
    cudnn.conv.fp32_precision = "tf32"

    try:
        exact_arithmetic("cpu")

        assert matmul.fp32_precision == "ieee"
        assert cudnn.conv.fp32_precision == "ieee"
        assert cudnn.rnn.fp32_precision == "ieee"
        assert matmul.allow_tf32 is False
        assert cudnn.allow_tf32 is False
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.backends.fp32_precision = "none"
        cudnn.fp32_precision = "none"


def test_deterministic_is_asked_of_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", "")

    exact_arithmetic("cpu", deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()

    exact_arithmetic("cuda", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"

    exact_arithmetic("cuda")
    assert not torch.are_deterministic_algorithms_enabled()
