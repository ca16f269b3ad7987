"""Ctrl-C while a run trains: no finished epoch is lost, and the same bytes come in the end."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from ser.commands.train import EpochsOnBar
from ser.tests.command_line import ser
from ser.train import job_in_training
from ser.train.checkpoint import read_progress
from ser.train.experiment import Experiment, run_experiment
from ser.train.fit import Adam
from ser.train.job import Job
from ser.train.records import Epoch
from ser.train.run_folder import LOG, STATE, Run, find_runs

SETTINGS = ("d_model=8", "gru_hidden=4", "heads=2", "batch_size=4")
EPOCHS = 5


def experiment(store: Path, out: Path, **options: Any) -> Experiment:
    return Experiment(
        "is13+bert", "lgf-add", store, out=out, epochs=EPOCHS, folds=1, set=SETTINGS, **options
    )


def epochs_in_state(run: Run) -> int:
    with safe_open(run.path / STATE, "numpy") as state:
        return read_progress(state.metadata()).epoch


def epochs_in_log(run: Run) -> list[int]:
    """Those that were trained; which one is kept is said in a line of its own."""
    trained = re.findall(r"epoch (\d+)\b(?! is kept)", (run.path / LOG).read_text())
    return [int(number) for number in trained]


def weights(run: Run) -> bytes:
    return (run.path / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the run that nobody interrupts."""
    [run] = run_experiment(experiment(store, tmp_path_factory.mktemp("whole")))
    return weights(run)


@pytest.fixture
def copies_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where epochs are long."""
    monkeypatch.setattr(job_in_training, "COPY_SECONDS", 0.0)
    monkeypatch.setattr(job_in_training, "COPY_RATIO", 0)


def interrupt_after(number: int, times: int = 1) -> Any:
    """Ctrl-C as soon as so many epochs are done."""

    def on_progress(job: Job, epoch: Epoch | None) -> None:
        if epoch is not None and epoch.epoch == number:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    return on_progress


def interrupt_at_update(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Ctrl-C at that update, from 1; returns the list that every update is added to."""
    updates: list[int] = []
    step = Adam.step

    def step_and_count(adam: Adam) -> None:
        step(adam)
        updates.append(len(updates) + 1)
        if len(updates) == number:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Adam, "step", step_and_count)
    return updates


def goes_on_to_the_same_bytes(store: Path, out: Path, whole: bytes) -> None:
    [run] = run_experiment(experiment(store, out, resume=True))
    assert weights(run) == whole
    assert epochs_in_log(run) == list(range(1, EPOCHS + 1)), "none is trained twice"


def test_the_state_after_the_last_epoch_is_written_where_epochs_are_short(
    store: Path, tmp_path: Path, whole: bytes
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment(store, tmp_path), interrupt_after(3))

    [run] = find_runs(tmp_path)
    assert epochs_in_state(run) == 3
    goes_on_to_the_same_bytes(store, tmp_path, whole)


@pytest.mark.usefixtures("copies_every_epoch")
def test_within_a_long_epoch_training_stops_at_once(
    store: Path, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates an epoch: the fifth is the first of the third epoch."""
    updates = interrupt_at_update(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment(store, tmp_path), None)
    monkeypatch.undo()

    assert len(updates) == 5
    [run] = find_runs(tmp_path)
    assert epochs_in_log(run) == [1, 2]
    assert epochs_in_state(run) == 2
    goes_on_to_the_same_bytes(store, tmp_path, whole)


def test_within_a_short_epoch_that_epoch_is_finished_first(
    store: Path, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at_update(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment(store, tmp_path))
    monkeypatch.undo()

    [run] = find_runs(tmp_path)
    assert epochs_in_state(run) == 3
    goes_on_to_the_same_bytes(store, tmp_path, whole)


def test_a_second_ctrl_c_does_not_wait(store: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment(store, tmp_path), interrupt_after(3, times=2))

    [run] = find_runs(tmp_path)
    assert epochs_in_log(run) == [1, 2, 3]
    assert not run.finished


def test_after_the_last_epoch_the_run_is_finished_first(
    store: Path, tmp_path: Path, whole: bytes
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment(store, tmp_path), interrupt_after(EPOCHS))
    goes_on_to_the_same_bytes(store, tmp_path, whole)


def test_before_the_first_epoch_nothing_is_waited_for(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = interrupt_at_update(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment(store, tmp_path))

    assert len(updates) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_command_that_goes_on_is_named_and_works(
    store: Path, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "--features", "is13+bert", "--fusion", "lgf-add", "--store", store]
    words += ["--out", tmp_path, "--epochs", EPOCHS, "--folds", 1]
    for setting in SETTINGS:
        words += ["--set", setting]

    on_bar = EpochsOnBar.__call__
    on_third = interrupt_after(3)

    def on_progress(self: EpochsOnBar, job: Job, epoch: Epoch | None) -> None:
        on_bar(self, job, epoch)
        on_third(job, epoch)

    monkeypatch.setattr(EpochsOnBar, "__call__", on_progress)
    stopped = ser(*words)
    monkeypatch.undo()

    assert stopped.exit_code == 1
    sentence = "interrupted; what was finished is kept, and the same command with --resume goes on"
    assert sentence in stopped.stderr
    [run] = tmp_path.glob("*/config.json")
    resumed = ser(*words, "--resume")
    assert resumed.exit_code == 0
    assert f"run {run.parent.name} goes on after epoch 3 of {EPOCHS}" in resumed.stderr
    assert f"| 3/{EPOCHS} [" in resumed.stderr
    assert f"| 0/{EPOCHS} [" not in resumed.stderr
    goes_on_to_the_same_bytes(store, tmp_path, whole)


ENDS = """
import os, signal, sys
from ser import cli
from ser.commands import train

def end(*_, **__):
    raise KeyboardInterrupt

def say(*words, **options):
    os.kill(os.getpid(), signal.SIGINT)
    print(*words, file=sys.stderr)

train._prepare = end
cli.say = say
sys.argv = ["ser", "train", "--features", "is13", "--fusion", "audio"]
cli.main()
"""


def test_one_more_ctrl_c_while_the_process_ends_prints_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("ser: interrupted; what was finished is kept")
    assert "Traceback" not in done.stderr
