"""`ser doctor` against what the machine itself says."""

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from ser import doctor
from ser.engines.machine import memory
from ser.tests.command_line import ser
from ser.weights.demo import write_random_checkpoint


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without models, and an empty cache of Hugging Face's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("SER_CACHE", str(tmp_path / "ser"))


def findings(**options: Any) -> dict[str, doctor.Finding]:
    return {finding.subject: finding for finding in doctor.examine(**options)}


def test_machine_is_told_as_it_is(tmp_path: Path) -> None:
    # Others use the disk too.
    free_before = shutil.disk_usage(tmp_path).free / 1e9
    found = findings(store=tmp_path / "deep" / "store")
    free_after = shutil.disk_usage(tmp_path).free / 1e9
    least_free = min(free_before, free_after)
    most_free = max(free_before, free_after)

    assert found["cores"].state.startswith(str(len(os.sched_getaffinity(0))))
    assert least_free - 0.5 < float(found["disk"].state.split()[0]) < most_free + 0.5
    assert torch.__version__ in found["software"].state
    assert found["GPU"].fine is torch.cuda.is_available()
    assert "research" in found["licences"].state
    assert not (tmp_path / "deep").exists(), "it writes nothing"

    total, free = memory()
    assert total and free and 0 < free <= total <= psutil.virtual_memory().total


def test_weights_in_the_cache_are_found_and_pickles_are_named(tmp_path: Path) -> None:
    before = findings()["weights of hubert"]
    assert not before.fine and "--model hubert=PATH" in before.advice
    folder = tmp_path / "hub" / "models--facebook--hubert-base-ls960"
    snapshot = write_random_checkpoint(folder / "snapshots" / ("0" * 40), "hubert")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    found = findings()["weights of hubert"]
    assert found.fine and "facebook/hubert-base-ls960 in Hugging Face's cache" in found.state
    shutil.copytree(folder, tmp_path / "hub" / "models--me--hubert")
    assert findings()["other weights"].state == "on this machine: me/hubert"

    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    found = findings()["weights of hubert"]
    assert found.fine
    assert "as a pickle: converted when it is first used" in found.state

    (snapshot / "pytorch_model.bin").unlink()
    found = findings()["weights of hubert"]
    assert not found.fine
    assert f"ser weights convert {snapshot}" in found.advice


def test_converted_weights_are_found_and_listed(tmp_path: Path) -> None:
    kept = tmp_path / "ser" / "converted" / "facebook--hubert-base-ls960" / ("0" * 40)
    write_random_checkpoint(kept, "hubert")

    found = findings()["weights of hubert"]
    assert found.fine
    assert found.state == f"facebook/hubert-base-ls960, converted, in {kept}"
    listed = ser("weights", "list").stdout
    assert f"ok, converted: {kept}" in listed


def test_what_lacks_has_advice_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "IEMOCAP_BYTES", 1e30)
    found = findings()
    assert "--store" in found["disk"].advice
    assert all(one.fine == (not one.advice) for one in found.values())


def test_locks_that_other_machines_do_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "MOUNTS", tmp_path / "mounts")
    shared = "nfs rw,vers=3,local_lock=flock", "lustre rw,localflock", "fuse.sshfs rw", "beegfs rw"
    for mount in ("ext4 rw", "nfs4 rw,vers=4.2,local_lock=none", *shared):
        other = f"none / overlay rw 0 0\nhost:/y {tmp_path}y fuse.x rw 0 0\n"
        (tmp_path / "mounts").write_text(f"{other}host:/x {tmp_path.resolve()} {mount} 0 0\n")

        found = findings(store=tmp_path / "store")["store locks"]
        warned = "other machines may not see them" in found.state
        assert warned is (mount in shared), found
        assert found.fine is not warned, found


def test_a_gpu_is_told_and_checked_from_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="H100", total_memory=8e10)
    answers = {
        "is_available": True,
        "device_count": 1,
        "get_device_properties": card,
        "is_bf16_supported": True,
    }
    for name, value in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    assert findings()["GPU"].state == "H100 (80 GB), with bfloat16"
    monkeypatch.setattr("ser.benchmarks.gpu.main", lambda words: 7)
    assert ser("doctor", "--gpu").exit_code == 7

    # As where only the wheel is installed.
    monkeypatch.delitem(sys.modules, "ser.benchmarks.gpu")
    monkeypatch.setitem(sys.modules, "ser.benchmarks", None)
    shown = ser("doctor", "--gpu")
    assert shown.exit_code == 2
    assert "git clone" in shown.stderr
    assert shown.stderr.count("\n") == 1
