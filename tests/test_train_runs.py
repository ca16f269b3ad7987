"""Run folders: named by their config, readable without us, never half there, never trained twice,
and sealed.
"""

import errno
import json
import random
import shutil
import stat
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import Result
from msgspec import structs
from safetensors.torch import load_file

from ser.commands.summary import summary_text
from ser.disk.locks import locked
from ser.disk.unfinished import unfinished_name
from ser.errors import CorruptStore, Diverged, SerError, StoreError, WrongUse
from ser.tests.command_line import ser
from ser.tests.tiny_store import make_manifest
from ser.train import job_in_training
from ser.train.estimate import estimate
from ser.train.experiment import Experiment, prepare, run_experiment
from ser.train.fit import Fitted
from ser.train.job import Job
from ser.train.model_file import load_model, write_model
from ser.train.models import FUSIONS
from ser.train.records import Epoch, to_json
from ser.train.report.cell_scores import CellScores
from ser.train.report.conditions import conditions
from ser.train.report.grouping import group_runs
from ser.train.report.terminal import report_text
from ser.train.run_folder import (
    CONFIG,
    LOG,
    MODEL,
    PREDICTIONS,
    RESULT,
    STATE,
    Run,
    find_runs,
    load_run,
    run_name,
)

SMALL = ("d_model=16", "gru_hidden=8", "heads=2", "batch_size=2", "lr=0.01")
FILES = {"--resume": (CONFIG, RESULT, MODEL, PREDICTIONS), "predict": (CONFIG, RESULT, MODEL)}
FILES |= {
    "report": (CONFIG, RESULT, PREDICTIONS),
    "sweep": FILES["--resume"],
    "train": FILES["--resume"],
}
FIXTURES = Path(__file__).parent / "fixtures"


def lgf(store: Path, out: Path, **options) -> Experiment:
    asked = {
        "features": "is13+bert",
        "fusion": "lgf-add",
        "loss": "perspective",
        "epochs": 4,
        "set": SMALL,
    }
    return Experiment(store=store, out=out, **{**asked, **options})


def short(store: Path, out: Path) -> Experiment:
    return lgf(store, out, epochs=2, folds=1, loss="single")


def test_a_run_folder_is_complete_and_readable_without_us(store: Path, tmp_path: Path) -> None:
    (run,) = run_experiment(lgf(store, tmp_path, folds=1))
    files = "config.json dev.parquet lock log model.safetensors predictions.parquet result.json"
    assert sorted(p.name for p in run.path.iterdir()) == files.split()

    config = json.loads((run.path / "config.json").read_text())
    # Complete, defaults too.
    assert config["settings"]["d_model"] == 16
    assert config["settings"]["dropout"] == 0.2
    assert config["features"]["audio"]["feature"] == "is13"
    assert len(config["features"]["audio"]["fingerprint"]) == 16
    assert len(config["manifest"]) == 64
    assert config["provenance"]["synthetic"] is True

    result = json.loads((run.path / "result.json").read_text())
    assert {
        "wa",
        "ua",
        "macro_f1",
        "per_class",
        "protocol",
        "select",
        "labels",
        "fold",
        "seed",
        "n",
    } <= result.keys()
    assert result["select"] == "val"
    assert result["speaker_independent"] is True
    assert result["random_weights"] == ["bert"]
    assert result["synthetic"] is True

    table = pq.read_table(run.path / "predictions.parquet").to_pandas()
    assert len(table) == result["n"]
    assert table["id"].str.startswith("Ses01").all()

    probabilities = np.stack(table["probabilities"])
    assert table["predicted"].tolist() == [result["classes"][k] for k in probabilities.argmax(1)]
    assert set(table["truth"]) <= {*result["classes"]}
    assert result["wa"] == pytest.approx((table["truth"] == table["predicted"]).mean())
    assert any(name.startswith("model.") for name in load_file(run.path / "model.safetensors"))
    # One line an epoch, and which one is kept.
    assert len((run.path / "log").read_text().splitlines()) == 4 + 1

    # And the saved model gives the saved probabilities.
    (job,) = prepare(lgf(store, tmp_path, folds=1))
    fitted, plan = load_model(load_run(run.path))
    assert plan.fusion.name == "lgf-add"
    assert plan.settings.d_model == 16
    assert set(fitted.scaling) == {"audio"}

    found = fitted.predict(job.data, job.fold.test, job.config)
    assert np.array_equal(found["logits"], probabilities)
    assert np.array_equal(found["text"], np.stack(table["probabilities head text"]))


def test_a_finished_run_is_never_trained_again(store: Path, tmp_path: Path) -> None:
    told: list[tuple[Job, Epoch | None]] = []
    first = run_experiment(
        lgf(store, tmp_path, folds=2, seeds=2), lambda *event: told.append(event)
    )
    stamps = {run.path: (run.path / "result.json").stat().st_mtime_ns for run in first}
    names = [run.name for run in first]

    assert [(job.name, epoch and epoch.epoch) for job, epoch in told] == [
        *product(names, (1, 2, 3, 4, None))
    ]

    (job, epoch), *_ = told
    assert job.fold.name == "session 1"
    assert epoch is not None
    assert epoch.ua is not None

    again = run_experiment(
        lgf(store, tmp_path, folds=2, seeds=2), lambda *event: told.append(event)
    )
    assert {run.path: (run.path / "result.json").stat().st_mtime_ns for run in again} == stamps
    assert [epoch for _, epoch in told[20:]] == [None] * 4


def test_only_what_is_left_is_estimated(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "--features", "is13", "--fusion", "audio", "--store", store, "--epochs", 1]
    words += ["--out", tmp_path, "--set", "d_model=8", "--json", "--folds"]
    first = ser(*words, 1)
    assert "finished already" not in first.stderr

    more = ser(*words, 2)
    assert "1 run of 2 finished already" in more.stderr
    assert ", 1 run × 1 epoch," in more.stderr

    def never(*_: object) -> None:
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr("ser.train.estimate.estimate", never)
    again = ser(*words, 2)
    assert again.exit_code == 0, again.output
    assert "2 runs of 2 finished already" in again.stderr
    assert again.stdout == more.stdout


def test_a_copied_run_counts_once(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run,) = run_experiment(lgf(store, tmp_path / "runs", folds=1, epochs=1))

    for folder in ("begun", "copy"):
        shutil.copytree(run.path, tmp_path / folder / run.name)

    (tmp_path / "begun" / run.name / RESULT).unlink()
    assert find_runs(tmp_path / "begun", tmp_path / "runs", tmp_path / "copy") == [run]
    assert not caplog.records

    other = Run(tmp_path / "copy" / run.name)
    files = other.result.files | other.write_predictions({"id": ["another"]})
    other.write_json(RESULT, structs.replace(other.result, files=files))
    assert find_runs(tmp_path / "runs", tmp_path / "copy") == [run]
    assert "has other predictions than" in caplog.text


def test_any_change_of_the_config_is_another_run(store: Path, tmp_path: Path) -> None:
    plain = lgf(store, tmp_path, folds=1)
    settings = ("dropout=0.1", "soft_labels=true", "dev=next", "refit=true")
    others = {
        "epochs": 5,
        "loss": "single",
        "select": "last",
        "labels": "5class",
        "protocol": "train1234-test5",
    }
    others |= {
        "features": "is13+bert:pool=meanstd",
        "limit": 60,
        "precision": "bf16",
        "only": "improvised",
    }
    changes = [
        {},
        *({"set": (*SMALL, one)} for one in settings),
        *({key: value} for key, value in others.items()),
    ]
    names = [run_name(prepare(replace(plain, **change))[0].record) for change in changes]

    assert len(set(names)) == len(names)

    # What cannot change the numbers does not change the name.
    moved = replace(plain, out=tmp_path / "elsewhere", resume=True, seeds=2)
    assert run_name(prepare(moved)[0].record) == names[0]
    assert run_name(prepare(replace(plain, features="bert+is13"))[0].record) == names[0]

    # What came later is not in the config of a run that does not use it, so that older runs keep
    # their names.
    config = prepare(replace(plain, select="last"))[0].record
    assert "only" not in to_json(config)
    assert "refit" not in config.training
    assert config.training["dev"] == "auto"


def test_a_default_that_was_read_from_a_file_names_the_same_run(
    store: Path, tmp_path: Path
) -> None:
    """Such a text is equal to the default, and another object."""
    read = json.loads('"class"')
    [job] = prepare(lgf(store, tmp_path, folds=1, target="class"))
    [same] = prepare(lgf(store, tmp_path, folds=1, target=read))
    assert same.name == job.name
    assert "target" not in to_json(same.record)


def test_curves_for_tensorboard(store: Path, tmp_path: Path) -> None:
    asked = lgf(store, tmp_path, folds=1, log="tensorboard")
    if find_spec("tensorboard") is None:
        with pytest.raises(
            WrongUse,
            match=r"TensorBoard is not installed; `pip install 'ser-fusion\[tensorboard\]'`",
        ):
            prepare(asked)

        pytest.skip("TensorBoard is not installed")

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = run_experiment(asked)
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()

    for name in ("loss", "ua", "wa"):
        drawn = [(point.step, point.value) for point in events.Scalars(f"train/{name}")]
        assert drawn == [
            (line.epoch, pytest.approx(line.score(name))) for line in run.result.history
        ]

    assert run.path.name == run_name(prepare(replace(asked, log=None))[0].record)


def test_a_dry_run_writes_nothing(store: Path, tmp_path: Path) -> None:
    found = estimate(prepare(lgf(store, tmp_path / "out", epochs=10, seeds=3)))
    assert found.runs == 15
    assert found.parameters > 1000
    assert found.seconds > 0
    assert not found.at_most
    assert estimate(prepare(lgf(store, tmp_path / "out", set=("patience=2",)))).at_most
    # Four sessions of two dialogues but one dialogue, two dialogues a batch.
    assert found.updates == 15 * 10 * 4

    wide = lgf(
        store,
        tmp_path / "out",
        fusion="concat:utterance",
        loss="single",
        select="last",
        set=("hidden=50",),
    )
    asked = [
        "train",
        "--store",
        wide.store,
        "--features",
        wide.features,
        "--fusion",
        wide.fusion,
        "--select",
        "last",
    ]
    asked += ["--set", "hidden=50", "--epochs", "4", "--dry-run", "--out", wide.out]
    shown = ser(*asked)
    as_json = ser(*asked, "--json")
    [job, *_] = jobs = prepare(wide)
    # Forwards and for the weights' gradients, and between the two layers for the hidden values'
    # gradients.
    first = 2 * sum(job.data.dims.values()) * 50
    second = 2 * 50 * 4
    trained_on = sum(len(job.fold.train) for job in jobs)
    flops = trained_on * 4 * (2 * first + 3 * second)

    assert json.loads(as_json.stdout)["flops"] == pytest.approx(flops, rel=1e-9)
    assert f"{flops:.3g} FLOP in matrix products" in shown.stdout
    assert not (tmp_path / "out").exists()


BOTH = """
import os, sys
from ser.train.experiment import Experiment, run_experiment
settings = ("d_model=16", "gru_hidden=8", "heads=2", "batch_size=2", "lr=0.01")
options = {"store": sys.argv[1], "out": sys.argv[2], "epochs": 4, "folds": 1, "set": settings}
made = Experiment("is13+bert", "lgf-add", **options)
for name in "ab":
    if not os.fork():
        # In one piece, unlike print.
        run_experiment(made, lambda job, epoch: os.write(1, f"{name} ".encode()))
        sys.exit()
os.wait(), os.wait()
"""


def test_two_processes_at_the_same_run_train_it_once(store: Path, tmp_path: Path) -> None:
    (job,) = prepare(lgf(store, tmp_path, epochs=4, folds=1, loss="single"))
    lock = tmp_path / job.name / "lock"
    pipe = subprocess.PIPE
    lock.parent.mkdir()

    with locked(lock):
        both = subprocess.Popen(
            [sys.executable, "-c", BOTH, store, tmp_path], stdout=pipe, stderr=pipe, text=True
        )
        said = [both.stderr.readline() for _ in range(2)]

    output, errors = both.communicate(timeout=120)
    # One trained 4 epochs.
    assert sorted(Counter(output.split()).values()) == [1, 5]
    assert said == [f"{lock.parent}: waits for the process that trains this run\n"] * 2
    assert errors == ""


def test_a_finished_run_takes_no_lock_and_a_new_one_does_without(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (first,) = run_experiment(lgf(store, tmp_path / "runs", folds=1, epochs=1))
    (first.path / "lock").unlink()
    assert run_experiment(lgf(store, tmp_path / "runs", folds=1, epochs=1)) == [first]
    assert not (first.path / "lock").exists()

    no_locks = OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr("filelock.lock_descriptor", Mock(side_effect=no_locks))
    assert len(run_experiment(lgf(store, tmp_path / "runs", folds=2, epochs=2))) == 2

    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{tmp_path / 'runs'}: its file system has no locks;")


def test_what_a_killed_process_left_is_removed(store: Path, tmp_path: Path) -> None:
    """On a disk of its own: the folder of the runs has a `lost+found`."""
    (tmp_path / "lost+found" / "#12").mkdir(parents=True)
    run = tmp_path / prepare(lgf(store, tmp_path, folds=1))[0].name
    code = "import os, pathlib, sys; from ser.disk.workspace import workspace\n"
    code += "with workspace(pathlib.Path(sys.argv[1])): os._exit(9)"

    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / ".tmp")]).returncode == 9

    run.mkdir()
    run.chmod(0o2775)
    (run / unfinished_name()).write_text("cut short")
    run_experiment(lgf(store, tmp_path, folds=1))

    assert not list((tmp_path / ".tmp" / "tmp").iterdir())
    assert not list(run.glob(".*"))
    # Who may write there may lock.
    assert stat.S_IMODE((run / "lock").stat().st_mode) == 0o664
    assert [found.path for found in find_runs(tmp_path)] == [run]


def test_a_diverged_run_leaves_its_last_good_weights(store: Path, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="epoch 1, batch 2"):
        run_experiment(lgf(store, tmp_path, folds=1, set=("lr=1e30", *SMALL[:-1])))

    (run,) = find_runs(tmp_path)
    assert not run.finished
    assert "batch 2" in (run.path / LOG).read_text()
    assert all(torch.isfinite(value).all() for value in load_file(run.path / MODEL).values())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"select": "valid"}, "did you mean val"),
        ({"loss": "prospective"}, "did you mean perspective"),
        ({"seeds": 0}, "--seeds 0"),
        ({"folds": "some"}, "--folds some"),
        ({"device": "tpu"}, "--device tpu"),
        ({"corpus": "iemocap"}, "iemocap"),
        ({"only": "scripted"}, "no id of corpus tiny says that its utterance is scripted"),
        ({"set": ("refit=true",), "select": "last"}, "needs --select val and a dev part"),
        ({"set": ("dev=none",)}, "--select val needs a dev part"),
        ({"set": ("patience=3",), "select": "last"}, "--select last looks at none"),
        ({"set": ("refit=true", "dev=none")}, "needs --select val and a dev part"),
        ({"fusion": "audio", "features": "is13"}, "--loss perspective needs audio and text heads"),
    ],
)
def test_wrong_experiments(store: Path, tmp_path: Path, options: dict, says: str) -> None:
    with pytest.raises(WrongUse, match=says):
        run_experiment(lgf(store, tmp_path, **options))


def test_the_summary_says_what_the_scores_are_of(store: Path, tmp_path: Path) -> None:
    cell = CellScores(run_experiment(lgf(store, tmp_path)))
    assert cell.interval_over == "10 speakers"

    text = summary_text(cell)
    raw = make_manifest().column("label")
    assert (
        f"left out: {raw.count('fru')} (label fru is not in 4class), {raw.count('xxx')} (label xxx"
        in text
    )

    others = 100 * (raw.count("fru") + raw.count("xxx")) / len(raw)
    stated = (
        f"session-out · val · 4class (leaves out {others:.1f} % of the corpus) · "
        "dev 0.1 in whole dialogues · n train 60–64 · n dev 10 · n test 16–20"
    )
    assert stated in text
    assert (
        "random weights (bert) and synthetic corpus (tiny): no comparison with the paper is meant"
        in text
    )

    best = CellScores(run_experiment(lgf(store, tmp_path, select="best-test", folds=1)))
    assert best.results[0].select == "best-test"
    assert "best-test (epoch chosen on the TEST part)" in conditions(best.runs)


def test_folds_of_ones_own(store: Path, tmp_path: Path) -> None:
    manifest = make_manifest()
    lines = [
        f"{i},{int(s) % 3}\n" for i, s in zip(manifest.ids, manifest.column("session"), strict=True)
    ]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.csv").write_text("id,fold\n" + "".join(lines))

    runs = run_experiment(
        lgf(store, tmp_path / "runs", protocol=f"folds:{tmp_path / 'a' / 'mine.csv'}")
    )
    assert len(runs) == 3
    assert runs[0].result.protocol == "folds:mine.csv"

    # The same folds from elsewhere are the same runs; other folds under the same name are not.
    moved = lgf(store, tmp_path / "runs", protocol=f"folds:{tmp_path / 'b' / 'mine.csv'}")
    assert [run_name(job.record) for job in prepare(moved)] == [run.path.name for run in runs]

    lines[0] = lines[0].replace(",1", ",2")
    (tmp_path / "b" / "mine.csv").write_text("id,fold\n" + "".join(lines))
    # But for the one fold that has the changed utterance in training before and after.
    assert (
        len({run_name(job.record) for job in prepare(moved)} & {run.path.name for run in runs}) == 1
    )

    # Which moved one utterance of a speaker to a fold of its own, and the manifest knows whose it
    # is.
    moved_runs = run_experiment(moved)

    for shown in (
        conditions(moved_runs),
        report_text(*group_runs(moved_runs)).replace("\n", " "),
    ):
        assert (
            "folds:mine.csv (speaker-dependent) · 1 of 10 test speakers are heard in training"
            in shown
        )

    result = structs.replace(runs[0].result, speakers=None, speaker_independent=False)
    runs[0].write_json(RESULT, result)
    unknown = conditions([load_run(runs[0].path)])
    assert unknown.startswith(
        "folds:mine.csv · whether test speakers are heard in training is not known · "
    )

    shown = report_text(*group_runs([load_run(runs[0].path)]))
    assert "heard in training is not known, so scores may be too high: lgf-add" in " ".join(
        shown.split()
    )


def test_a_run_is_gone_on_with_by_its_folder(store: Path, tmp_path: Path) -> None:
    run_experiment(lgf(store, tmp_path, seeds=2, folds=2))
    wanted = find_runs(tmp_path)[2].path
    before = {
        run.path.name: (run.path / "model.safetensors").stat().st_mtime_ns
        for run in find_runs(tmp_path)
    }
    bytes_before = (wanted / "model.safetensors").read_bytes()
    (wanted / "result.json").unlink()
    done = ser("train", "--resume", wanted, "--json")

    assert done.exit_code == 0, done.output
    assert [Path(run["path"]).name for run in json.loads(done.stdout)["runs"]] == [wanted.name]

    after = {
        run.path.name: (run.path / "model.safetensors").stat().st_mtime_ns
        for run in find_runs(tmp_path)
    }
    assert {name for name in before if before[name] != after[name]} == {wanted.name}
    assert (wanted / "model.safetensors").read_bytes() == bytes_before
    assert "leave out --epochs" in ser("train", "--resume", wanted, "--epochs", 3).output
    assert "is not a run folder" in ser("train", "--resume", tmp_path / "nowhere").output
    assert "--fusion is missing" in ser("train", "--resume").output

    run = Run(wanted)
    provenance = run.config.provenance
    (wanted / "result.json").unlink()
    longer = structs.replace(provenance, asked={**provenance.asked, "epochs": 99})
    run.write_json(CONFIG, structs.replace(run.config, provenance=longer))
    changed = ser("train", "--resume", wanted)

    assert changed.exit_code != 0
    assert "have changed since this run began" in changed.output

    for nothing in ({}, {"asked": {"fusion": "mit"}, "store": "x"}):
        run.write_json(CONFIG, {**to_json(run.config), "provenance": nothing})
        told = ser("train", "--resume", wanted)
        assert told.exit_code in (1, 2)
        assert "config.json: " in told.output
        assert "Traceback" not in told.output


def test_memory_that_ends_is_told_in_one_sentence(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real allocation that fails: torch's own words for it are a page."""
    greedy = torch.nn.Linear(1, 1)
    greedy.forward = lambda batch: {"logits": greedy.weight.new_empty(1 << 50)}
    monkeypatch.setitem(
        FUSIONS, "concat:utterance", replace(FUSIONS["concat:utterance"], build=lambda *_: greedy)
    )
    experiment = Experiment(
        "is13+bert", "concat:utterance", store, device="cpu", out=tmp_path / "runs"
    )

    for work in (lambda asked: estimate(prepare(asked)), run_experiment):
        with pytest.raises(
            SerError, match=r"memory of cpu ran out .* bf16 or --set batch_size=16, which change"
        ):
            work(experiment)


# One altered bit, a link, another run's file or a NaN is one sentence, never an answer
# ------------------------------


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_experiment(short(store, tmp_path_factory.mktemp("runs")))[0]


def command(name: str, store: Path, run: Path) -> Result:
    options = [
        "--store",
        store,
        "--out",
        run.parent,
        "--epochs=2",
        "--folds=1",
        *(f"--set={one}" for one in SMALL),
    ]
    recipe = run.parent / "own.toml"
    recipe.write_text(
        'title = "t"\n[[cell]]\nname = "one"\nfeatures = "is13+bert"\nfusion = "lgf-add"\n'
    )
    words: dict[str, list[object]] = {
        "predict": ["predict", run, "a.wav"],
        "report": ["report", run.parent],
        "--resume": ["train", "--resume", run],
        "train": ["train", "--features=is13+bert", "--fusion=lgf-add", *options],
        "sweep": ["sweep", recipe, "--workers=1", *options],
    }

    return ser(*words[name])


@pytest.mark.parametrize("name", FILES)
def test_one_altered_bit_is_refused_by_every_command(
    store: Path, trained: Run, tmp_path: Path, name: str
) -> None:
    run = Path(shutil.copytree(trained.path, tmp_path / "runs" / trained.name))
    sound = command(name, store, run)
    # Not our extractor.
    assert sound.exit_code == 0 or (name == "predict" and "made-up" in sound.stderr), sound.output

    dice = random.Random(name)

    for file in FILES[name]:
        content = (run / file).read_bytes()
        # Anywhere, and in the seal.
        for at in (
            dice.randrange(len(content)),
            len(content) - dice.randrange(1, 60),
        ):
            altered = bytearray(content)
            altered[at] ^= 1 << dice.randrange(8)
            (run / file).write_bytes(altered)
            told = command(name, store, run)

            assert told.exit_code == 1 and not told.stdout, (at, told.output)

            [sentence] = [line for line in told.stderr.splitlines() if line.startswith("ser: ")]
            assert file in sentence
            assert sentence.endswith("remove the run folder and train again")

        (run / file).write_bytes(content)


@pytest.mark.parametrize("file", FILES["train"])
def test_no_bit_of_a_run_can_change(trained: Run, tmp_path: Path, file: str) -> None:
    run = Path(shutil.copytree(trained.path, tmp_path / trained.name))
    content = (run / file).read_bytes()
    checked = Run(run).checked()

    for bit in range(0, 8 * len(content), 8 * len(content) // 500 | 1):
        altered = bytearray(content)
        altered[bit // 8] ^= 1 << bit % 8
        (run / file).write_bytes(altered)

        with pytest.raises(CorruptStore, match=r"\.(json|safetensors|parquet): "):
            Run(run).checked()

    if file.endswith("json"):
        # Without its seal it is not taken either.
        record = json.loads(content)
        for key in ("sha256", "run", "files"):
            record.pop(key, None)
            (run / file).write_text(json.dumps(record, indent=1))

            with pytest.raises(CorruptStore, match=file):
                Run(run).checked()

    (run / file).write_bytes(content)
    assert Run(run).checked() == checked


def test_what_does_not_match_its_name_is_refused(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = shutil.copytree(trained.path, tmp_path / "the best one")
    with pytest.raises(CorruptStore, match=f"belongs to run {trained.name}; name the folder so"):
        _ = load_run(named).config

    # To another name is a link, and what it leads to is checked.
    (tmp_path / "link").symlink_to(trained.path)
    assert load_run(tmp_path / "link").config == trained.config

    monkeypatch.chdir(trained.path)

    for named in (tmp_path / "link", Path()):
        assert ser("train", "--resume", named).exit_code == 0

    other = Run(tmp_path / "0123456789abcdef")
    other.path.mkdir()
    other.write_json(CONFIG, trained.config)

    with pytest.raises(CorruptStore, match=f"holds run {trained.name}; name the folder so"):
        _ = other.config


@pytest.fixture
def begun(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that was interrupted after its first state."""

    def stop(job: Job, epoch: Epoch | None) -> None:
        if list(tmp_path.glob(f"runs/*/{STATE}")):
            raise KeyboardInterrupt

    monkeypatch.setattr(job_in_training, "STATE_SECONDS", 0.0)

    with pytest.raises(KeyboardInterrupt):
        run_experiment(short(store, tmp_path / "runs"), stop)

    [state] = tmp_path.glob(f"runs/*/{STATE}")

    return Run(state.parent)


def test_a_damaged_state_is_not_gone_on_from(store: Path, begun: Run) -> None:
    content = bytearray((begun.path / STATE).read_bytes())
    content[-9] ^= 4
    (begun.path / STATE).write_bytes(content)
    told = command("--resume", store, begun.path)

    assert told.exit_code == 1
    assert f"{STATE}: altered or cut short" in told.stderr
    assert not begun.finished

    (begun.path / STATE).unlink()
    assert command("--resume", store, begun.path).exit_code == 0


@pytest.mark.parametrize("name", ["log", STATE, CONFIG, "tensorboard"])
def test_links_are_not_followed(store: Path, begun: Run, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    held = (begun.path / name).read_bytes() if (begun.path / name).exists() else b"mine"
    victim.write_bytes(held)
    (begun.path / name).unlink(missing_ok=True)
    (begun.path / name).symlink_to(victim)

    for how in ("--resume", "train"):
        told = command(how, store, begun.path)
        assert told.exit_code == 1
        assert f"{name}: is a link or a special file" in told.stderr

    assert victim.read_bytes() == held

    begun.path.rename(tmp_path / "elsewhere")
    begun.path.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(
        StoreError, match="is a link or a special file, and no run is written through one"
    ):
        run_experiment(short(store, tmp_path / "runs"))


def test_predictions_and_weights_that_are_nan(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [run] = run_experiment(short(store, tmp_path / "a"))
    fitted, *_ = load_model(run)
    weights = fitted.model.state_dict()
    next(iter(weights.values())).view(-1)[0] = torch.nan
    files = {**run.result.files, **write_model(run, weights, fitted.scaling)}
    run.write_json(RESULT, structs.replace(run.result, files=files))

    with pytest.raises(CorruptStore, match="does not hold the weights of fusion 'lgf-add'"):
        load_model(Run(run.path))

    def broken(*arguments: Any, of: Any = Fitted.predict, **options: Any) -> dict[str, np.ndarray]:
        return {head: found * np.nan for head, found in of(*arguments, **options).items()}

    monkeypatch.setattr(Fitted, "predict", broken)

    with pytest.raises(Diverged, match="the predictions became nan"):
        run_experiment(short(store, tmp_path / "b"))

    assert not list((tmp_path / "b").glob(f"*/{RESULT}"))


def test_the_log_of_a_backup_is_not_cut(store: Path, begun: Run, tmp_path: Path) -> None:
    """`cp -al` makes hard links; without a state the run starts anew, and so does its log."""
    backup = tmp_path / "backup"
    (begun.path / STATE).unlink()
    (begun.path / LOG).unlink()
    backup.write_text("as it was")
    (begun.path / LOG).hardlink_to(backup)

    assert command("--resume", store, begun.path).exit_code == 0
    assert backup.read_text() == "as it was"
    assert "epoch 2" in (begun.path / LOG).read_text()
