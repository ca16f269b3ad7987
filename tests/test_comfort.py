"""What makes the command line pleasant: defaults in a file, completion, lists of runs, the demo."""

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

import click
import pytest
from click.testing import CliRunner

from ser.cli import main
from ser.commands.demo import STEPS
from ser.disk.folders import remove_folder
from ser.disk.locks import locked
from ser.tests.command_line import ser
from ser.tests.newcomer import run_of
from ser.tests.test_docs import check_options
from ser.train.run_folder import Run, claimed, find_runs

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
    options = (
        'fusion = "text"\nfeatures = "mpnet"\nseeds = 2\n'
        'set = ["lr=1e-4", "d_model=16"]\nallow-missing = true\n'
    )
    (here / file).write_text(f'{head}store = "elsewhere"\n[{section}train]\n{options}')

    assert json.loads(ser("train", "--dry-run", "--json").stdout)["runs"] == 10
    assert json.loads(ser("train", "--dry-run", "--json", "--seeds", "1").stdout)["runs"] == 5
    shown = ser("train", "--settings").stdout
    assert f"--store elsewhere (default of {file})" in shown
    assert f"--set d_model=16 (default of {file})" in shown
    assert f"--allow-missing (default of {file})" in shown

    # One value, though `text` is two fusions.
    both = json.loads(ser("train", "--settings", "--json").stdout)
    assert [listed["fusion"] for listed in both] == ["text:token", "text:utterance"]
    assert both[0]["defaults"]["set"]
    assert ser("cache", "list").exit_code == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(
            'fusion = "mit"', "options stand under theirs, such as [train]", id="no command"
        ),
        pytest.param('[train]\nfusin = "mit"', "did you mean fusion?", id="an unknown option"),
        pytest.param("[trian]\n", "did you mean train?", id="an unknown command"),
        pytest.param("[train]\nset = 1", "set must be a list", id="no list"),
        pytest.param("[train]\nallow-missing = 1", "true or false", id="no flag"),
        pytest.param("train = ", "not a TOML file", id="no TOML"),
        pytest.param(
            'store = "a\\u0000b"', "not a TOML file (a text in it holds a NUL)", id="a NUL"
        ),
        pytest.param("tool.ser = []", "ser must be a table", id="no table"),
    ],
)
def test_a_wrong_file_of_defaults_is_told_in_one_sentence(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = "pyproject.toml" if text.startswith("tool") else "ser.toml"
    Path(file).write_text(text)

    done = ser("train", "--dry-run")

    assert done.exit_code == 2
    assert said in done.stderr
    assert file in done.stderr
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
    assert {Path(entry["run"]).name for entry in listed} == {run.name for run in runs}
    by_name = {run.name: run for run in runs}
    for entry in listed:
        run = by_name[Path(entry["run"]).name]
        assert entry["ua"] == 100 * run.result.ua
        assert entry["finished"]
        assert entry["fusion"] == run.config.fusion
        assert entry["bytes"] == sum(path.stat().st_size for path in run.path.iterdir())
        assert entry["ccc"] is None
    assert ser("runs").stdout == ser("runs", "list", "runs").stdout
    assert all("macro-F1" in ser("runs", command, "runs").stdout for command in ("list", "compare"))
    for condition in ("fusion=mit", "features=hubert", "queries=3.0"):
        [entry] = json.loads(ser("runs", "list", "--where", condition, "--json").stdout)
        assert entry["fusion"] == "mit"
    # A config leaves most settings out where they are at their defaults.
    assert len(json.loads(ser("runs", "list", "--where", "refit=false", "--json").stdout)) == len(
        runs
    )
    assert "did you mean fusion?" in ser("runs", "list", "--where", "fusin=mit").stderr
    table = json.loads(ser("runs", "compare", "runs", "--json").stdout)
    assert set(table["differences"]["fusion"]) == {run.config.fusion for run in runs}
    assert "protocol" not in table["differences"]
    told = ser("runs", "compare", "runs").stdout.splitlines()
    assert max(len(line) for line in told) <= 80
    assert sum(line.startswith("fusion ") for line in told) == 1


def test_a_run_of_ratings_is_listed_with_its_ccc(
    newcomer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So wide that each heading is on one line.
    monkeypatch.setenv("COLUMNS", "400")
    run = run_of(newcomer, "vad")
    [listed] = json.loads(ser("runs", "list", run.path, "--json").stdout)
    assert listed["ccc"] == pytest.approx(sum(run.result.ccc.values()) / 3)
    assert listed["ua"] is None

    shown = ser("runs", "list", run.path).stdout
    assert "mean CCC" in shown
    assert f"{listed['ccc']:.3f}" in shown
    assert "\n1 run on " in shown


@pytest.mark.parametrize("width", [60, 80, 100, 140])
@pytest.mark.parametrize("command", ["list", "compare"])
def test_a_list_of_runs_fits_the_terminal(
    here: Path, monkeypatch: pytest.MonkeyPatch, command: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))

    shown = ser("runs", command, "runs").stdout

    assert max(map(len, shown.splitlines())) <= width
    for run in find_runs("runs"):
        assert run.name in shown


def test_only_runs_are_removed(here: Path) -> None:
    [finished, _] = find_runs("runs")
    (here / "link").symlink_to(finished.path)

    for folder in ("runs", "link"):
        assert "is not a run folder" in ser("runs", "remove", folder).stderr
    assert "nothing to remove" in ser("runs", "remove", "runs", "--where", "fusion=other").stdout

    mine = f"fusion={finished.config.fusion}"
    assert finished.name in ser("runs", "remove", "runs", "--where", mine, "--dry-run").stdout
    assert finished.path.exists()


@pytest.fixture
def unfinished(here: Path) -> Run:
    """One of the two runs, without its result."""
    [_, run] = find_runs("runs")
    (run.path / "result.json").unlink()
    return run


def test_what_has_just_changed_or_is_trained_stays(unfinished: Run) -> None:
    assert "nothing to remove" in ser("runs", "prune").stdout, "it has just changed"

    with locked(unfinished.path / "lock"):
        assert "nothing to remove" in ser("runs", "prune", "--days", "0").stdout
        refused = ser("runs", "remove", f"runs/{unfinished.name}")
        assert "is being trained or removed" in refused.stderr

    assert unfinished.name in ser("runs", "prune", "--days", "0", "--dry-run").stdout
    assert unfinished.path.exists()


def test_a_training_waits_until_its_folder_is_removed(
    unfinished: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It then begins in a folder of its own."""
    folder = Path(shutil.copytree(unfinished.path, here / "other" / unfinished.name))
    began: list[bool] = []

    def train() -> None:
        with claimed(folder) as run:
            began.append(run.path.exists())

    training = threading.Thread(target=train)

    def remove_while_it_waits(*folders: Path, on_move: Callable[[], object]) -> None:
        training.start()
        training.join(0.5)
        assert not began
        remove_folder(*folders, on_move=on_move)

    with monkeypatch.context() as patch:
        patch.setattr("ser.train.remove_runs.remove_folder", remove_while_it_waits)
        assert "removed other" in ser("runs", "prune", "other", "--days", "0").stdout
    training.join()

    assert began == [True]
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_a_folder_that_goes_before_its_lock_is_made_is_made_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers = iter([lambda path: None, Path.mkdir])
    monkeypatch.setattr("ser.disk.locks.make_folder", lambda path: next(makers)(path))

    with claimed(here / "gone") as run:
        assert (run.path / "lock").exists()


def test_a_run_with_a_pipe_and_a_link_is_removed(unfinished: Run, here: Path) -> None:
    """Nobody waits for the pipe."""
    (unfinished.path / "lock").unlink()
    os.mkfifo(unfinished.path / "lock")
    # As a file is that a training has just put in its place.
    (unfinished.path / ".0.part").symlink_to("gone")

    assert len(json.loads(ser("runs", "list", "--json").stdout)) == 2
    ser("runs", "prune", "--days", "0")

    assert not unfinished.path.exists()
    assert not list((here / "runs" / ".tmp" / "tmp").iterdir())


def test_a_run_is_removed_from_within_on_a_full_disk(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [finished, _] = find_runs("runs")
    folder = finished.path.absolute()
    shutil.rmtree(here / "runs" / ".tmp", ignore_errors=True)
    monkeypatch.chdir(folder)
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "mkdir", Mock(side_effect=full))

    done = ser("runs", "remove", ".", f"../{finished.name}")

    assert done.stdout.startswith("removed . (")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        pytest.param("ser train --fu", "--fusion", id="an option"),
        pytest.param("ser features --backend h", "hdf5", id="a choice"),
    ],
)
def test_the_shell_completes(line: str, completed: str) -> None:
    environment = {
        "_SER_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
    }

    done = CliRunner(env=environment).invoke(main, [], prog_name="ser")

    assert done.stdout.split() == [f"plain,{completed}"]


def test_the_demo_is_commands_that_exist() -> None:
    for step in STEPS:
        check_options(shlex.split(step), "ser demo")


def test_the_demo_goes_on_without_opensmile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The extraction exits with 3, and the second model takes log-mel."""
    ran: list[list[str]] = []

    def run(words: list[str], **_: object) -> int:
        ran.append(words)
        return 3 if words[0] == "features" else 0

    monkeypatch.setattr("ser.commands.demo.find_spec", lambda name: None)
    monkeypatch.setattr(main, "main", run)
    with click.Context(main) as context:
        context.invoke(main.commands["demo"], folder=tmp_path, open_=False)
    assert [words[0] for words in ran] == [step.split()[0] for step in STEPS]
    assert "logmel+bert" in ran[4]
    assert "openSMILE is not installed" in capsys.readouterr().err


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
