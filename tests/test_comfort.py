"""What makes the command line pleasant: defaults in a file, completion, the list of runs, the demo
in one command.
"""

import errno
import json
import os
import shlex
import shutil
import subprocess
import threading
import venv
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from click.testing import CliRunner

from ser.cli import main
from ser.commands.demo import STEPS
from ser.tests.command_line import ser
from ser.tests.newcomer import run_of
from ser.tests.test_docs import check_options
from ser.train.run_folder import find_runs

ROOT = Path(__file__).parent.parent


@pytest.fixture
def here(newcomer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the newcomer's runs (copied) and store (linked)."""
    shutil.copytree(newcomer / "runs" / "mit", tmp_path / "runs")
    shutil.copytree(newcomer / "runs" / "text", tmp_path / "runs", dirs_exist_ok=True)
    (tmp_path / "features").symlink_to(newcomer / "features")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("file", ["ser.toml", "pyproject.toml"])
def test_defaults_come_from_a_file_and_the_command_line_goes_before_them(
    file: str, here: Path
) -> None:
    (here / "features").rename(here / "elsewhere")
    section = "tool.ser." if file == "pyproject.toml" else ""
    head = "[tool.ser]\n" if section else ""
    own = (
        'fusion = "text"\nfeatures = "mpnet"\nseeds = 2\n'
        'set = ["lr=1e-4", "d_model=16"]\nallow-missing = true\n'
    )
    (here / file).write_text(f'{head}store = "elsewhere"\n[{section}train]\n{own}')
    found = json.loads(ser("train", "--dry-run", "--json").stdout)
    assert found["runs"] == 10
    assert json.loads(ser("train", "--dry-run", "--json", "--seeds", "1").stdout)["runs"] == 5
    shown = ser("train", "--settings").stdout
    assert (
        f"--store elsewhere (default of {file})" in shown
        and f"--set d_model=16 (default of {file})" in shown
    )
    assert f"--allow-missing (default of {file})" in shown
    both = json.loads(
        ser("train", "--settings", "--json").stdout
    )  # one value, though `text` is two fusions
    assert [one["fusion"] for one in both] == ["text:token", "text:utterance"] and both[0][
        "defaults"
    ]["set"]
    assert ser("cache", "list").exit_code == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('fusion = "mit"', "options stand under theirs, such as [train]"),
        ('[train]\nfusin = "mit"', "did you mean fusion?"),
        ("[trian]\n", "did you mean train?"),
        ("[train]\nset = 1", "set must be a list"),
        ("[train]\nallow-missing = 1", "true or false"),
        ("train = ", "not a TOML file"),
        ('store = "a\\u0000b"', "not a TOML file (a text in it holds a NUL)"),
        ("tool.ser = []", "ser must be a table"),
    ],
)
def test_a_wrong_file_of_defaults_is_told_in_one_sentence(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = "pyproject.toml" if text.startswith("tool") else "ser.toml"
    Path(file).write_text(text)
    done = ser("train", "--dry-run")
    assert done.exit_code == 2 and said in done.stderr and file in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("table", "option"),
    [
        pytest.param('[features]\nscheduler = "tcp://10.0.0.1:1"', "scheduler", id="a scheduler"),
        pytest.param("[sweep]\ninsecure = true", "insecure", id="an open network"),
        pytest.param("[cache.remove]\nyes = true", "yes", id="no question"),
        pytest.param("[cache.push]\nwith-text = true", "with-text", id="words that are published"),
        pytest.param('store = "s3://bucket/features"', "store", id="a store elsewhere"),
        pytest.param('[features]\nmodel = ["hubert=https://h.org/x"]', "model", id="weights"),
    ],
)
def test_what_widens_trust_is_taken_from_the_command_line_alone(
    table: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corpus may come with a ser.toml of somebody else's."""
    monkeypatch.chdir(tmp_path)
    Path("ser.toml").write_text(table)

    done = ser("cache", "list")

    assert done.exit_code == 2
    assert "is taken from the command line alone" in done.stderr
    assert f"say --{option}" in done.stderr


def test_a_file_of_defaults_is_said_where_it_is_used(here: Path) -> None:
    (here / "ser.toml").write_text('[train]\nfusion = "text"\n')

    used = ser("train", "--settings")
    unused = ser("cache", "list")

    assert used.stderr.startswith("ser.toml: options that are not given are taken from this file")
    assert "ser.toml" not in unused.stderr


def test_runs_are_listed_filtered_and_compared(here: Path) -> None:
    runs = find_runs("runs")
    listed = json.loads(ser("runs", "list", "--where", "target=class", "--json").stdout)
    assert {Path(one["run"]).name for one in listed} == {run.name for run in runs}
    for one in listed:
        [run] = [run for run in runs if run.name == Path(one["run"]).name]
        assert (
            one["ua"] == 100 * run.result.ua
            and one["finished"]
            and one["fusion"] == run.config.fusion
        )
        assert one["bytes"] == sum(path.stat().st_size for path in run.path.iterdir())
        assert one["ccc"] is None
    assert ser("runs").stdout == ser("runs", "list", "runs").stdout
    assert all("macro-F1" in ser("runs", command, "runs").stdout for command in ("list", "compare"))
    for condition in ("fusion=mit", "features=hubert", "queries=3.0"):
        [one] = json.loads(ser("runs", "list", "--where", condition, "--json").stdout)
        assert one["fusion"] == "mit"
    # A config leaves most settings out where they are at their defaults.
    assert len(json.loads(ser("runs", "list", "--where", "refit=false", "--json").stdout)) == len(
        runs
    )
    assert "did you mean fusion?" in ser("runs", "list", "--where", "fusin=mit").stderr
    table = json.loads(ser("runs", "compare", "runs", "--json").stdout)
    assert set(table["differences"]["fusion"]) == {run.config.fusion for run in runs}
    assert "protocol" not in table["differences"]
    told = ser("runs", "compare", "runs").stdout.splitlines()
    assert max(map(len, told)) <= 80 and sum(line.startswith("fusion ") for line in told) == 1


def test_a_run_of_ratings_is_listed_with_its_ccc(newcomer: Path) -> None:
    run = run_of(newcomer, "vad")
    [listed] = json.loads(ser("runs", "list", run.path, "--json").stdout)
    assert listed["ccc"] == pytest.approx(sum(run.result.ccc.values()) / 3) and listed["ua"] is None
    done = ser("runs", "list", run.path).stdout
    assert "mean CCC" in done and f"{listed['ccc']:.3f}" in done and "\n1 run on " in done


def test_only_runs_are_removed_and_none_that_is_trained(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ser.disk.folders import remove_folder
    from ser.disk.locks import locked
    from ser.train.run_folder import claimed

    finished, unfinished = find_runs("runs")
    (unfinished.path / "result.json").unlink()
    (here / "link").symlink_to(finished.path)
    assert all(
        "is not a run folder" in ser("runs", "remove", folder).stderr for folder in ("runs", "link")
    )
    assert "nothing to remove" in ser("runs", "prune").stdout  # it has just changed
    with locked(unfinished.path / "lock"):
        assert "nothing to remove" in ser("runs", "prune", "--days", "0").stdout
        assert (
            "is being trained or removed" in ser("runs", "remove", f"runs/{unfinished.name}").stderr
        )
    assert (
        unfinished.name in ser("runs", "prune", "--days", "0", "--dry-run").stdout
        and unfinished.path.exists()
    )
    began, waits = list[bool](), shutil.copytree(unfinished.path, here / "other" / unfinished.name)

    def train() -> None:
        with claimed(waits) as run:
            began.append(run.path.exists())

    def removed_meanwhile(*folders: Path, on_move: Callable[[], object]) -> None:
        trains.start()
        trains.join(0.5)
        assert not began
        remove_folder(*folders, on_move=on_move)

    trains = threading.Thread(target=train)
    with monkeypatch.context() as patch:
        patch.setattr("ser.train.remove_runs.remove_folder", removed_meanwhile)
        assert "removed other" in ser("runs", "prune", "other", "--days", "0").stdout
    trains.join()
    assert began == [True] and [path.name for path in waits.iterdir()] == ["lock"]
    makers = iter([lambda path: None, Path.mkdir])  # first it is gone before the lock is made
    with monkeypatch.context() as patch:
        patch.setattr("ser.disk.locks.make_folder", lambda path: next(makers)(path))
        with claimed(here / "gone") as run:
            assert (run.path / "lock").exists()
    (unfinished.path / "lock").unlink()
    os.mkfifo(unfinished.path / "lock")  # nobody waits for it
    (unfinished.path / ".0.part").symlink_to(
        "gone"
    )  # as a file is that a training has just put in its place
    assert len(json.loads(ser("runs", "list", "--json").stdout)) == 2
    ser("runs", "prune", "--days", "0")
    assert not unfinished.path.exists() and not list((here / "runs" / ".tmp" / "tmp").iterdir())
    assert "nothing to remove" in ser("runs", "remove", "runs", "--where", "fusion=other").stdout
    mine = f"fusion={finished.config.fusion}"
    assert finished.name in ser("runs", "remove", "runs", "--where", mine, "--dry-run").stdout
    shutil.rmtree(here / "runs" / ".tmp")
    os.chdir(finished.path)
    monkeypatch.setattr(
        Path, "mkdir", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    )
    assert ser("runs", "remove", ".", f"../{finished.name}").stdout.startswith("removed . (")
    assert not finished.path.exists()


def test_the_shell_completes_options_and_their_choices() -> None:
    for begun, completed in {"train --fu": ["--fusion"], "features --backend h": ["hdf5"]}.items():
        words = f"ser {begun}"
        asked = {
            "_SER_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        done = CliRunner(env=asked).invoke(main, [], prog_name="ser")
        assert done.stdout.split() == [f"plain,{value}" for value in completed]


def test_the_demo_is_commands_that_exist() -> None:
    for step in STEPS:
        check_options(shlex.split(step), "ser demo")


@pytest.mark.slow
def test_the_wheel_alone_runs_the_demo_and_the_sdist_builds(tmp_path: Path) -> None:
    """`pip install ser-fusion` in a plain environment, then `ser demo`, far from any checkout."""
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    builder = tmp_path / "builder" / "bin" / "python"
    plain = tmp_path / "plain" / "bin"
    for folder in (builder.parent.parent, plain.parent):
        venv.create(folder, with_pip=True)
    pip = [
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "-c",
        str(ROOT / "constraints.txt"),
    ]
    subprocess.run([builder, *pip, "build"], check=True)
    # The sdist, and of it the wheel.
    subprocess.run([builder, "-m", "build", "-o", tmp_path / "dist", source], check=True)
    [wheel] = (tmp_path / "dist").glob("ser_fusion-*.whl")
    subprocess.run([plain / "python", *pip, "torch"], check=True)
    subprocess.run([plain / "python", *pip, wheel], check=True)
    environment = {
        "PATH": f"{plain}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [plain / "ser", "demo"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "synthetic" in (tmp_path / "demo" / "report.html").read_text()
    assert "next, with a corpus of your own" in done.stdout
