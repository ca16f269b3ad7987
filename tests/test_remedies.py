"""Every command that a message names is run by a test, in the situation that prints it.

A new message that names a command has to be added here, with the test that runs it.
"""

import re
import shlex
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import click
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file

from ser import doctor
from ser.cache.store import open_store
from ser.cli import main
from ser.corpus.labels import IEMOCAP
from ser.errors import CorpusError, ser_command
from ser.tests.command_line import ser
from ser.tests.named_commands import (
    FILLED,
    ROOT,
    commands_in,
    named_in_the_code,
    next_command,
    options_in_the_code,
    parse,
    run_named,
)
from ser.train.data.labelling import apply_policy
from ser.train.data.labels import get_policy

DAMAGE = "test_a_damaged_file_is_mended_as_printed"
FROM_THE_DEMO = "test_from_the_demo_to_a_page_by_what_is_printed"
MISSING_FEATURE = "test_a_feature_that_is_missing_is_extracted_by_the_command_that_is_named"
MISSING_ROWS = "test_rows_that_are_missing_are_extracted_by_the_command_that_is_named"
UNFINISHED = "test_a_run_that_is_not_finished_goes_on_by_the_command_that_is_named"

# The test that runs a command that a message of a file names.
RUN = {
    "cache/extract_command.py: ser features": "test_a_transcribed_corpus_is_made_again_as_named",
    "cache/extract_command.py: ser …": MISSING_FEATURE,
    "cache/extract_command.py: ser features CORPUS … … … …": MISSING_ROWS,
    "cache/feature.py: ser features CORPUS … … … …": MISSING_ROWS,
    "cache/manifest_log.py: ser cache verify --repair --store STORE": (
        "test_a_damaged_log_is_mended_as_printed"
    ),
    "cache/manifests.py: ser features": DAMAGE,
    "cache/store.py: ser cache push": (
        "test_a_url_in_place_of_a_store_is_copied_by_the_commands_that_are_named"
    ),
    "cache/store.py: ser cache rollback … --list --store …": (
        "test_manifests_are_listed_as_printed_when_none_is_put_back"
    ),
    "cache/store.py: ser features CORPUS …": MISSING_FEATURE,
    "cache/store.py: ser features CORPUS … …": MISSING_FEATURE,
    "cache/tools/pull.py: ser cache push URL": (
        "test_what_is_not_published_yet_is_pushed_as_printed"
    ),
    "cache/tools/remote.py: ser cache push URL --replace": (
        "test_what_is_damaged_where_it_is_published_is_pushed_again_as_printed"
    ),
    "cache/tools/verify.py: ser cache remove --superseded --store …": (
        "test_superseded_rows_are_removed_as_printed"
    ),
    "cache/transcripts.py: ser features CORPUS --transcribe whisper": (
        "test_damaged_transcripts_are_made_again_as_printed"
    ),
    "commands/cache.py: ser cache info NAME": (
        "test_a_feature_that_is_not_removed_is_shown_as_printed"
    ),
    "commands/cache.py: ser features": ("test_what_verify_has_moved_is_computed_again_as_printed"),
    "commands/corpus.py: next: ser corpus show …": FROM_THE_DEMO,
    "commands/corpus.py: next: ser features … …": FROM_THE_DEMO,
    "commands/ensemble.py: next: ser report … …": "test_the_report_that_an_ensemble_names",
    "commands/features.py: next: ser cache export …": "test_without_labels_an_export_is_offered",
    "commands/features.py: next: ser train … …": FROM_THE_DEMO,
    "commands/report.py: next: ser report … --html report.html --open": (
        "test_the_page_that_a_report_names"
    ),
    "commands/sweep.py: next: ser report … --html report.html …": (
        "test_what_a_sweep_names_next_works"
    ),
    "commands/sweep.py: ser cache pull": "test_a_store_at_a_url_is_pulled_for_other_features",
    "commands/train.py: next: ser report … --html report.html": FROM_THE_DEMO,
    "corpus/manifest.py: ser features": DAMAGE,
    "disk/read.py: ser cache verify --repair --store STORE": DAMAGE,
    "disk/read.py: ser features": DAMAGE,
    "engines/scheduler.py: dask worker … --host … --dashboard-address 127.0.0.1:0 --nthreads 1": (
        "test_a_worker_is_started_as_printed"
    ),
    "extract/resolve.py: ser features CORPUS --features …": (
        "test_a_feature_is_computed_again_by_the_command_that_it_names"
    ),
    "train/data/available.py: ser features CORPUS … … … …": (
        "test_a_quarantined_recording_is_computed_as_printed_when_it_is_mended"
    ),
    "train/data/labelling.py: ser corpus show CORPUS": (
        "test_a_release_with_other_counts_is_shown_as_printed"
    ),
    "train/data/select.py: ser features CORPUS … … …": (
        "test_layers_that_are_missing_are_extracted_as_printed"
    ),
    "train/data/sources.py: ser cache remove … --store …": (
        "test_an_utterance_without_rows_is_made_again_as_printed"
    ),
    "train/finetune.py: ser features CORPUS … … …": (
        "test_the_layer_to_finetune_from_is_extracted_as_printed"
    ),
    "train/model_file.py: ser train --resume …": UNFINISHED,
    "train/run_folder.py: ser train --resume …": UNFINISHED,
    "train/sweep/tasks.py: ser features CORPUS … … …": (
        "test_what_a_recipe_lacks_is_extracted_as_printed"
    ),
    "weights/folder.py: ser weights convert … DIR": (
        "test_pickled_weights_are_converted_as_printed"
    ),
    "weights/source.py: ser weights convert … DIR": (
        "test_pickled_weights_are_converted_as_printed"
    ),
}

# Messages that speak of a command and do not ask for it: there has to be one.
SPOKEN_OF = {
    "commands/runs.py: ser report",
    "export/__init__.py: ser predict",
    "export/card.py: ser predict",
    "export/card.py: ser predict FOLDER",
    "export/card.py: ser predict FOLDER --table",
    "export/card.py: ser report",
    "extract/resolve.py: ser features",
    "predict/predictor.py: ser predict",
    "train/remove_runs.py: ser runs",
    "train/run_folder.py: ser train",
}

# Why no test runs it.
NOT_RUN = {
    "doctor.py: ser weights convert … DIR": "the words of weights/folder.py, which are run",
    "cache/tools/remote.py: pip install '…[cloud]'": "it fetches packages; see the extras below",
    "engines/scheduler.py: pip install 'ser-fusion[cluster]'": "likewise",
    "export/__init__.py: pip install '…[onnx]'": "likewise",
    "train/models/encoders/lora.py: pip install '…[lora]'": "likewise",
    "extract/registry.py: pip install '…[…]'": "likewise",
    "commands/demo.py: pip install '…[smile]'": "likewise",
    "train/options.py: pip install 'ser-fusion[tensorboard]'": "likewise",
    "plugins.py: pip install …": "it fetches a package that only its user knows",
    "extract/text.py: pip install sentencepiece protobuf": "it fetches packages",
    "commands/doctor.py: git clone https://github.com/ser-fusion/ser": "it needs the network",
    "commands/doctor.py: make install": "it fetches packages; CI begins by it",
    "commands/doctor.py: .venv/bin/python -m benchmarks.gpu": "it needs a GPU for five minutes",
    "engines/scheduler.py: dask scheduler --scheduler-file": "the cluster's tests start it",
    "extract/audio.py: git lfs pull": "it needs the server that holds the corpus",
}


def test_every_command_that_a_message_names_is_accounted_for() -> None:
    known = RUN.keys() | SPOKEN_OF | NOT_RUN.keys()
    assert named_in_the_code() - known == set(), "add the test that runs it"
    assert known - named_in_the_code() == set(), "no message names it any more"


def test_the_tests_that_run_them_are_there() -> None:
    defined = set()
    for path in (ROOT / "tests").glob("test_*.py"):
        defined |= set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M))
    assert set(RUN.values()) <= defined


def test_every_command_of_ser_parses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a folder for every word that is filled in."""
    monkeypatch.chdir(tmp_path)
    for entry in RUN:
        _, _, command = entry.partition(": ")
        command = command.removeprefix("next: ")
        # Of those that are spoken of, and those whose options a function adds, there is the name.
        words = shlex.split(command.replace(FILLED, str(tmp_path)))
        if words[0] != "ser" or FILLED in command or len(words) < 4:
            continue
        parse(words[1:])


@pytest.mark.parametrize("entry", sorted(SPOKEN_OF))
def test_a_command_that_is_spoken_of_is_there(entry: str) -> None:
    name = entry.rpartition(": ser ")[2].split()[0]
    assert name in main.list_commands(click.Context(main))


def test_what_pip_is_told_to_install_is_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for entry in NOT_RUN:
        for extra in re.findall(r"\[(\w+)\]'", entry):
            assert extra in extras


def test_every_option_that_a_message_names_is_there() -> None:
    """Of whichever command: none is left over from another day."""
    # click's own.
    known = {"--help"}
    for name in main.list_commands(click.Context(main)):
        known |= options_of(main.commands[name])

    foreign = {
        "--dashboard-address",
        "--host",
        "--nthreads",
        "--resources",
        "--scheduler-file",
        "--tls-ca-file",
        "--tls-cert",
        "--tls-key",
    }
    assert options_in_the_code() - known - foreign == set()


def options_of(command: click.Command) -> set[str]:
    options = set()
    for option in command.params:
        options |= {*option.opts, *option.secondary_opts}
    if isinstance(command, click.Group):
        for below in command.commands.values():
            options |= options_of(below)
    return options


def test_a_command_is_quoted_as_a_shell_takes_it() -> None:
    command = ser_command("features", "CORPUS", "--store", "a store")
    assert command == "`ser features CORPUS --store 'a store'`"


# What is done on another day, or on another machine


def trained(store: Path, out: Path, *options: object, features: str = "is13") -> Result:
    """One short training."""
    train = ["train", "--features", features, "--fusion", "audio", "--store", store, "--out", out]
    return ser(
        *train, "--epochs", 1, "--folds", 1, "--set", "d_model=8", "--set", "heads=2", *options
    )


@pytest.mark.parametrize(
    "remedy", [r"--set (batch_size=\d+)", r"--precision (bf16)"], ids=["smaller", "coarser"]
)
def test_a_training_that_memory_ends_goes_on_as_named(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remedy: str
) -> None:
    with monkeypatch.context() as patch:
        short = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        patch.setattr("ser.train.train_jobs.fit", Mock(side_effect=short))
        refused = trained(store, tmp_path)
    assert refused.exit_code == 1
    assert "run again while less else is running there" in refused.output
    assert trained(store, tmp_path).exit_code == 0

    [value] = re.findall(remedy, refused.output)
    option = remedy.split()[0]
    done = trained(store, tmp_path / "other", option, value)
    assert done.exit_code == 0, done.output


def test_what_cannot_be_deterministic_is_trained_without_as_named(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fault = RuntimeError("nll_loss2d does not have a deterministic implementation, but …")
        patch.setattr("ser.train.train_jobs.fit", Mock(side_effect=fault))
        refused = trained(store, tmp_path, "--deterministic")
    assert "--deterministic" in refused.output and "leave it out" in refused.output
    assert trained(store, tmp_path).exit_code == 0


@pytest.mark.parametrize("remedy", [[], ["--device", "cpu"]], ids=["left out", "on the CPU"])
def test_bf16_on_apples_gpu_is_done_in_each_way_that_is_named(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remedy: list[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("torch.backends.mps.is_available", lambda: True)
        refused = trained(store, tmp_path, "--device", "mps", "--precision", "bf16")
    assert refused.exit_code == 2
    assert "leave it out, or add --device cpu" in refused.output
    options = ["--precision", "bf16", *remedy] if remedy else []
    assert trained(store, tmp_path, *options).exit_code == 0


def test_what_doctor_advises_is_a_command_or_options_that_are_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "IEMOCAP_BYTES", 1e30)
    monkeypatch.setattr(doctor, "LITTLE_MEMORY", 1e30)
    small = {finding.subject: finding for finding in doctor.examine(tmp_path)}
    assert "--store elsewhere" in small["disk"].advice
    assert "train with --limit" in small["memory"].advice

    advice = " ".join(finding.advice for finding in small.values())
    known = options_of(main.commands["train"]) | options_of(main.commands["features"])
    assert set(re.findall(r"--[a-z-]+", advice)) <= known


# Sweeps


CELL = '[[cell]]\nname = "{0}"\nfeatures = "is13"\nfusion = "audio"\nset = {{ d_model = {1} }}\n'
RATED_CELL = CELL.replace("set =", 'target = "vad"\nset =')
RECIPES = {
    "two cells": CELL.format("a", 8) + CELL.format("b", 16),
    "one cell": CELL.format("a", 8),
    "two names of one run": CELL.format("a", 8) + CELL.format("b", 8),
    "one of classes and one of ratings": CELL.format("a", 8) + RATED_CELL.format("b", 8),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_sweep_names_next_works(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """Paired tests where there are two cells to compare, and else without."""
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(RECIPES[recipe])
    short = ["--folds", 1, "--epochs", 1, "--workers", 1, "--set", "heads=2"]
    swept = ser("sweep", "mine.toml", "--store", store, "--out", "runs", *short)
    assert swept.exit_code == 0, swept.output

    command = next_command(swept)
    assert command[:4] == ["report", "runs", "--html", "report.html"]
    if recipe != "two cells":
        # The page is the same one, and takes longest.
        command = [*command[:2], *command[4:]]
    assert ("--paired" in command) == (recipe == "two cells")
    reported = ser(*command)
    assert reported.exit_code == 0, reported.output
    assert Path("report.html").exists() == (recipe == "two cells")


def test_a_sweep_that_trains_nothing_names_no_report(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.toml").write_text(RECIPES["one cell"])
    monkeypatch.setattr("ser.train.train_jobs.fit", Mock(side_effect=MemoryError()))
    swept = ser(
        "sweep",
        tmp_path / "mine.toml",
        "--store",
        store,
        "--out",
        tmp_path / "runs",
        "--folds",
        1,
        "--epochs",
        1,
        "--workers",
        1,
    )
    assert swept.exit_code == 1, swept.output
    assert "next: " not in swept.output


def test_a_store_at_a_url_is_pulled_for_other_features(store: Path, tmp_path: Path) -> None:
    url = (tmp_path / "published").as_uri()
    assert ser("cache", "push", url, "--store", store).exit_code == 0
    (tmp_path / "mine.toml").write_text(RECIPES["one cell"])
    sweep = ["sweep", tmp_path / "mine.toml", "--features", "is13", "--folds", 1, "--epochs", 1]
    sweep += ["--workers", 1, "--out", tmp_path / "runs"]
    refused = ser(*sweep, "--store", url)
    assert refused.exit_code == 2
    [[*command]] = commands_in(refused)

    assert ser(*command, url, "--store", tmp_path / "here").exit_code == 0
    done = ser(*sweep, "--store", tmp_path / "here")
    assert done.exit_code == 0, done.output


# What takes encoders


def models(newcomer: Path, *names: str) -> list[str]:
    """The options that name a newcomer's checkpoints, which stand for published ones."""
    options = []
    for name in names:
        checkpoint = newcomer / "checkpoints" / f"{name.partition('-')[0]}-random"
        options += ["--model", f"{name}={checkpoint}"]
    return options


@pytest.fixture
def own(newcomer: Path, tmp_path: Path) -> Path:
    """A newcomer's corpus and features, which may be written to."""
    shutil.copytree(newcomer / "features", tmp_path / "features")
    return tmp_path


def extract_as_printed(refused: Result, newcomer: Path, own: Path, *names: str) -> None:
    [command] = commands_in(refused)
    known = {"CORPUS": newcomer / "corpus", "STORE": own / "features"}
    words = [known.get(word, word) for word in command]
    done = ser(*words, *models(newcomer, *names))
    assert done.exit_code == 0, done.output


def test_layers_that_are_missing_are_extracted_as_printed(newcomer: Path, own: Path) -> None:
    layers = "hubert:layers=0-1,pool=mean"
    for path in (own / "features" / "hubert").iterdir():
        if '"layer":0' in (path / "spec.json").read_text().replace(" ", ""):
            shutil.rmtree(path)
    refused = trained(own / "features", own / "runs", features=layers)
    assert f"does not have all of {layers}" in refused.output

    extract_as_printed(refused, newcomer, own, "hubert")
    done = trained(own / "features", own / "runs", features=layers)
    assert done.exit_code == 0, done.output


def test_the_layer_to_finetune_from_is_extracted_as_printed(newcomer: Path, own: Path) -> None:
    train = ["train", "--fusion", "bert", "--store", own / "features", "--out", own / "runs"]
    train += ["--epochs", 1, "--folds", 1, "--set", "finetune_text=1"]
    refused = ser(*train, "--features", "bert")
    assert refused.exit_code == 2, refused.output

    extract_as_printed(refused, newcomer, own, "bert")
    [features] = re.findall(r"and train on (\S+)", refused.output)
    done = ser(*train, "--features", features)
    assert done.exit_code == 0, done.output


def test_what_a_recipe_lacks_is_extracted_as_printed(newcomer: Path, own: Path) -> None:
    (own / "mine.toml").write_text(
        "".join(
            f'[[cell]]\nname = "{name}"\nfeatures = "{name}"\nfusion = "audio"\n'
            for name in ("egemaps", "smile:set=GeMAPSv01b")
        )
    )
    sweep = ["sweep", own / "mine.toml", "--store", own / "features", "--out", own / "runs"]
    sweep += ["--folds", 1, "--epochs", 1, "--workers", 1]
    refused = ser(*sweep)
    assert "for all cells" in refused.output

    command = commands_in(refused)[-1]
    assert (
        ser(*[newcomer / "corpus" if word == "CORPUS" else word for word in command]).exit_code == 0
    )
    done = ser(*sweep)
    assert done.exit_code == 0, done.output


def test_pickled_weights_are_converted_as_printed(
    newcomer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_this_process: None
) -> None:
    """By what `ser features` says of a folder; `ser doctor` has nothing to add of the cache."""
    hub = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(hub))
    repository = hub / "models--facebook--hubert-base-ls960"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(newcomer / "checkpoints" / "hubert-random", snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    torch.save(load_file(snapshot / "model.safetensors"), snapshot / "pytorch_model.bin")
    (snapshot / "model.safetensors").unlink()

    extract = ["features", newcomer / "corpus", "--features", "hubert", "--limit", 2]
    refused = ser(*extract, "--model", f"hubert={snapshot}", "--store", tmp_path / "s")
    assert refused.exit_code == 2, refused.output
    [done] = run_named(refused, DIR=tmp_path / "converted")
    assert done.exit_code == 0, done.output
    model = f"hubert={tmp_path / 'converted'}"
    assert ser(*extract, "--model", model, "--store", tmp_path / "s").exit_code == 0

    # A pickle in the cache is converted on the way: nothing is left to do.
    advice = {finding.subject: finding.advice for finding in doctor.examine(tmp_path)}
    assert advice["weights of hubert"] == ""


def test_a_release_with_other_counts_is_shown_as_printed(
    newcomer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo corpus, whose ids are IEMOCAP's, taken for the release."""
    manifest = replace(open_store(newcomer / "features").manifest(), synthetic=False)
    monkeypatch.setitem(IEMOCAP, "utterances", len(manifest))
    with pytest.raises(CorpusError) as refused:
        apply_policy(get_policy("4class"), manifest)
    said = SimpleNamespace(output=str(refused.value))
    [shown] = run_named(said, CORPUS=newcomer / "corpus")
    assert f"{len(manifest)}" in shown.output
