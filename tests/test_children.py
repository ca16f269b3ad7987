"""No Python process that ser starts imports what lies in the working folder."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ser.children import isolated, isolated_children, python_module
from ser.tests.command_line import in_a_process

# Modules of the standard library that each child imports.
PLANTED = ("json.py", "multiprocessing.py", "random.py", "tempfile.py")
TELL = "import sys\nopen({ran!r}, 'a').write(__name__ + '\\n')\nsys.exit(1)\n"


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with modules that tell when they run."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    code = TELL.format(ran=str(tmp_path / "ran"))
    for name in PLANTED:
        (folder / name).write_text(code)
    monkeypatch.chdir(folder)
    return folder


def executed(folder: Path) -> str:
    """Which of the planted modules ran."""
    ran = folder.parent / "ran"
    return ran.read_text() if ran.exists() else ""


SCRIPT = """
from ser.tests.test_children import {name}

if __name__ == "__main__":
    {name}()
"""


def run_as_a_script(function: Callable[[], None], folder: Path) -> None:
    """Call a function of this file in a process that is not isolated itself, as `ser` is none.

    Its children would inherit that from a variable or an option.
    """
    script = folder / "scripts" / "script.py"
    script.parent.mkdir()
    script.write_text(SCRIPT.format(name=function.__name__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("PYTHONSAFEPATH", None)

    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr[-3000:]


def run_workers() -> None:
    from ser import engines

    assert sorted(engines.run(abs, range(-3, 1), 2)) == [0, 1, 2, 3]


def run_local_cluster() -> None:
    from ser import engines

    with engines.Cluster("local:1") as cluster:
        assert list(cluster.run(abs, [-1])) == [1]


def convert_checkpoint() -> None:
    from ser.weights.convert import convert

    convert(".", Path("..") / "converted")


def test_workers_are_isolated(downloads: Path, tmp_path: Path) -> None:
    """With the fork server and the resource tracker of multiprocessing."""
    run_as_a_script(run_workers, tmp_path)

    assert executed(downloads) == ""


def test_workers_of_a_local_cluster_are_isolated(downloads: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")

    run_as_a_script(run_local_cluster, tmp_path)

    assert executed(downloads) == ""


def test_a_conversion_is_isolated(downloads: Path, tmp_path: Path) -> None:
    # Imported here alone: every process of these tests imports this file anew.
    import torch
    from safetensors.torch import load_file

    from ser.weights.demo import write_random_checkpoint

    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", "bert", words=["well"])
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(tensors, checkpoint / "pytorch_model.bin")
    for file in checkpoint.iterdir():
        file.rename(downloads / file.name)

    run_as_a_script(convert_checkpoint, tmp_path)

    assert executed(downloads) == ""
    assert (tmp_path / "converted" / "model.safetensors").exists()


def test_ser_as_a_module_leaves_the_working_folder_out(downloads: Path) -> None:
    """Of what Python imports before ser's own first line there is nothing in the way."""
    environment = {**os.environ, "PYTHONSAFEPATH": ""}
    command = [sys.executable, "-m", "ser", "--help"]

    done = subprocess.run(command, env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert executed(downloads) == ""


def test_an_empty_entry_of_the_path_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be the working folder, where the child starts."""
    monkeypatch.setattr(sys, "path", ["", "/lib/one", "here", "/lib/two"])

    assert isolated({"LANG": "C"}) == {
        "LANG": "C",
        "PYTHONPATH": os.pathsep.join(["/lib/one", "/lib/two"]),
        "PYTHONSAFEPATH": "1",
    }
    assert "-P" in python_module("ser")


def test_the_environment_is_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    before = dict(os.environ)

    with pytest.raises(ZeroDivisionError), isolated_children():
        assert os.environ["PYTHONSAFEPATH"] == "1"
        raise ZeroDivisionError

    assert dict(os.environ) == before


def test_workers_start_where_the_temporary_folder_has_a_long_name(tmp_path: Path) -> None:
    """The fork server listens at a socket, whose path has room for 104 characters."""
    folder = tmp_path / ("x" * 120)
    folder.mkdir()

    in_a_process(run_workers, TMPDIR=str(folder))
