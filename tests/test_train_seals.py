"""Run folders are sealed: one altered bit, a link, another run's file or a NaN is one sentence, never an answer."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

from ser.errors import CorruptStore, Diverged, StoreError
from ser.tests.command_line import ser
from ser.train import run as training
from ser.train.experiment import Experiment, run_experiment
from ser.train.fit import Fitted
from ser.train.run import load_model, write_model
from ser.train.run_folder import CONFIG, LOG, MODEL, PREDICTIONS, RESULT, STATE, Run, open_run

SMALL = ("d_model=16", "gru_hidden=8", "heads=2", "batch_size=2")
FILES = {"--resume": (CONFIG, RESULT, MODEL, PREDICTIONS), "predict": (CONFIG, RESULT, MODEL)}
FILES |= {"report": (CONFIG, RESULT, PREDICTIONS), "sweep": FILES["--resume"], "train": FILES["--resume"]}
FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_experiment(lgf(store, tmp_path_factory.mktemp("runs")))[0]


def lgf(store: Path, out: Path, **options: Any) -> Experiment:
    return Experiment("is13+bert", "lgf-add", store=store, out=out, epochs=2, folds=1, set=SMALL, **options)


def command(name: str, store: Path, run: Path) -> Result:
    options = ["--store", store, "--out", run.parent, "--epochs=2", "--folds=1", *(f"--set={one}" for one in SMALL)]
    recipe = run.parent / "own.toml"
    recipe.write_text('title = "t"\n[[cell]]\nname = "one"\nfeatures = "is13+bert"\nfusion = "lgf-add"\n')
    words: dict[str, list[object]] = {
        "predict": ["predict", run, "a.wav"],
        "report": ["report", run.parent],
        "--resume": ["train", "--resume", run],
        "train": ["train", "--features=is13+bert", "--fusion=lgf-add", *options],
        "sweep": ["sweep", recipe, "--workers=1", *options],
    }
    return ser(*words[name])


@pytest.mark.parametrize("name", FILES)
def test_one_altered_bit_is_refused_by_every_command(store: Path, trained: Run, tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(trained.path, tmp_path / "runs" / trained.name))
    sound = command(name, store, run)
    assert sound.exit_code == 0 or (name == "predict" and "made-up" in sound.stderr), sound.output  # not our extractor
    dice = random.Random(name)
    for file in FILES[name]:
        content = (run / file).read_bytes()
        for at in (dice.randrange(len(content)), len(content) - dice.randrange(1, 60)):  # anywhere, and in the seal
            altered = bytearray(content)
            altered[at] ^= 1 << dice.randrange(8)
            (run / file).write_bytes(altered)
            told = command(name, store, run)
            assert told.exit_code == 1 and not told.stdout, (at, told.output)
            [sentence] = [line for line in told.stderr.splitlines() if line.startswith("ser: ")]
            assert file in sentence and sentence.endswith("remove the run folder and train again")
        (run / file).write_bytes(content)


@pytest.mark.parametrize("file", FILES["train"])
def test_no_bit_of_a_run_can_change(trained: Run, tmp_path: Path, file: str) -> None:
    run = Path(shutil.copytree(trained.path, tmp_path / trained.name))
    content, checked = (run / file).read_bytes(), Run(run).checked()
    for bit in range(0, 8 * len(content), 8 * len(content) // 500 | 1):
        altered = bytearray(content)
        altered[bit // 8] ^= 1 << bit % 8
        (run / file).write_bytes(altered)
        with pytest.raises(CorruptStore, match=r"\.(json|safetensors|parquet): "):
            Run(run).checked()
    if file.endswith("json"):  # without its seal, one of this version is not taken for an older one's
        record = json.loads(content)
        for key in ("sha256", "run", "files"):
            record.pop(key, None)
            (run / file).write_text(json.dumps(record, indent=1))
            with pytest.raises(CorruptStore, match=file):
                Run(run).checked()
    (run / file).write_bytes(content)
    assert Run(run).checked() == checked


def test_what_does_not_match_its_name_is_refused(
    store: Path, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = shutil.copytree(trained.path, tmp_path / "the best one")
    with pytest.raises(CorruptStore, match=f"belongs to run {trained.name}; name the folder so"):
        _ = open_run(named).config
    (tmp_path / "link").symlink_to(trained.path)  # to another name is a link, and what it leads to is checked
    assert open_run(tmp_path / "link").config == trained.config
    monkeypatch.chdir(trained.path)
    for named in (tmp_path / "link", Path()):
        assert ser("train", "--resume", named).exit_code == 0
    old = shutil.copytree(FIXTURES / "runs-v1" / "06ced0fd35029b43", tmp_path / "old")
    with pytest.raises(CorruptStore, match="holds run 06ced0fd35029b43; name the folder so"):
        _ = open_run(old).config


def unfinished(store: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that was interrupted after its first state."""

    def stop(progress: Any) -> None:
        if list(out.glob(f"*/{STATE}")):
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "STATE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(lgf(store, out), stop)
    [state] = out.glob(f"*/{STATE}")
    return Run(state.parent)


def test_a_damaged_state_is_not_gone_on_from(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = unfinished(store, tmp_path, monkeypatch)
    content = bytearray((run.path / STATE).read_bytes())
    content[-9] ^= 4
    (run.path / STATE).write_bytes(content)
    told = command("--resume", store, run.path)
    assert told.exit_code == 1 and f"{STATE}: altered or cut short" in told.stderr and not run.finished
    (run.path / STATE).unlink()
    assert command("--resume", store, run.path).exit_code == 0


@pytest.mark.parametrize("name", ["log", STATE, CONFIG, "tensorboard"])
def test_links_are_not_followed(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    run, victim = unfinished(store, tmp_path / "runs", monkeypatch), tmp_path / "victim"
    held = (run.path / name).read_bytes() if (run.path / name).exists() else b"mine"
    victim.write_bytes(held)
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to(victim)
    for how in ("--resume", "train"):
        told = command(how, store, run.path)
        assert told.exit_code == 1 and f"{name}: is a link or a special file" in told.stderr
    assert victim.read_bytes() == held
    run.path.rename(tmp_path / "elsewhere")
    run.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is a link or a special file, and no run is written through one"):
        run_experiment(lgf(store, tmp_path / "runs"))


def test_weights_and_predictions_that_are_no_numbers(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [run] = run_experiment(lgf(store, tmp_path / "a"))
    fitted, *_ = load_model(run)
    weights = fitted.model.state_dict()
    next(iter(weights.values())).view(-1)[0] = torch.nan
    run.write_json(RESULT, {**run.result, "files": run.result["files"] | write_model(run, weights, fitted.scaling)})
    with pytest.raises(CorruptStore, match="does not hold the weights of fusion 'lgf-add'"):
        load_model(Run(run.path))

    def broken(*arguments: Any, of: Any = Fitted.predict, **options: Any) -> dict[str, np.ndarray]:
        return {head: found * np.nan for head, found in of(*arguments, **options).items()}

    monkeypatch.setattr(Fitted, "predict", broken)
    with pytest.raises(Diverged, match="the predictions became nan"):
        run_experiment(lgf(store, tmp_path / "b"))
    assert not list((tmp_path / "b").glob(f"*/{RESULT}"))


def test_the_log_of_a_backup_is_not_cut(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cp -al` makes hard links; without a state the run starts anew, and so does its log."""
    run, backup = unfinished(store, tmp_path / "runs", monkeypatch), tmp_path / "backup"
    (run.path / STATE).unlink()
    (run.path / LOG).unlink()
    backup.write_text("as it was")
    (run.path / LOG).hardlink_to(backup)
    assert command("--resume", store, run.path).exit_code == 0
    assert backup.read_text() == "as it was" and "epoch 2" in (run.path / LOG).read_text()
