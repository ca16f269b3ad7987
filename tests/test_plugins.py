"""What an installed package brings by entry points.

It is used in every process, refused in one sentence, and named by runs.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile as sf

from ser.errors import WrongUse
from ser.predict import predict
from ser.tests.command_line import printed, ser

# The package is installed, and its commands run, in processes that fixtures start.
pytestmark = pytest.mark.heavy

PLUGIN = Path(__file__).parent / "fixtures" / "example_plugin"
LABELS = ("ang", "hap", "neu", "sad")

RECIPE = """
[experiment]
features = 'example-loudness'
protocol = 'speaker-out'
epochs = 1

[[cell]]
name = 'example-mean'
fusion = 'example-mean'

[[cell]]
name = 'audio:utterance'
fusion = 'audio:utterance'
"""

# Runs commands given as JSON, and prints the exit code and output of each. RUN in a command is the
# first run of the sweep before it.
RUN_COMMANDS = """
import json
import sys
from click.testing import CliRunner
from ser.cli import main
from ser.engines.fork_server import start_fork_server

if __name__ == "__main__":
    if "--workers 2" in sys.argv[1]:
        # For the features too, which come first.
        start_fork_server("ser.train.sweep.run")

    answers = []
    run = ""
    for command in json.loads(sys.argv[1]):
        words = command.replace("RUN", run).split()
        result = CliRunner().invoke(main, words)
        answers.append([result.exit_code, result.output])
        if command.startswith("sweep") and "--json" in command:
            rows = json.loads(result.output.splitlines()[-1])["rows"]
            run = rows[0]["folders"][0]
    print(json.dumps(answers))
"""


class Answer(NamedTuple):
    """What a command answered."""

    exit_code: int
    output: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the package as pip installs it."""
    folder = tmp_path_factory.mktemp("plugin")
    # setuptools builds inside it.
    shutil.copytree(PLUGIN, folder / "source")
    command = [sys.executable, "-m", "pip", "install", "-q"]
    command += ["--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--target", str(folder / "site"), str(folder / "source")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "site"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three speakers of eight utterances each, in the layout that the package reads."""
    folder = tmp_path_factory.mktemp("plugin") / "flat"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for speaker in ("anna", "bob", "cleo"):
        for number, label in enumerate((*LABELS, *LABELS)):
            samples = 0.1 * rng.standard_normal(8000 + 800 * number)
            sf.write(folder / f"{speaker}-{label}-{number}.wav", samples, 16000)
    return folder


def run_installed(site: Path, *commands: str) -> list[Answer]:
    """The answer to each command, all in one new process that has the package."""
    script = site.parent / "commands.py"
    script.write_text(RUN_COMMANDS)
    command = [sys.executable, str(script), json.dumps(commands)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [Answer(*answer) for answer in json.loads(done.stdout)]


class Experiment:
    """Commands over the corpus, with the store, the recipe and the runs in one folder."""

    def __init__(self, corpus: Path, folder: Path) -> None:
        self.corpus = corpus
        self.audio = corpus / "anna-ang-0.wav"
        self.store = folder / "features"
        self.runs = folder / "runs"
        self.recipe = folder / "both.toml"
        self.recipe.write_text(RECIPE)

    def extract(self, features: str, *options: str) -> str:
        words = ["features", self.corpus, "--store", self.store, "--features", features]
        return " ".join(map(str, [*words, "--format", "example-flat", *options]))

    def sweep(self, *options: str) -> str:
        words = ["sweep", self.recipe, "--store", self.store, "--out", self.runs]
        return " ".join(map(str, [*words, *options]))

    def predict(self) -> str:
        return f"predict RUN {self.audio} --json"

    def train(self, fusion: str) -> str:
        return f"train --store {self.store} --features example-loudness --fusion {fusion}"


class Trained(NamedTuple):
    """An experiment with what the package brings, and what its commands answered."""

    experiment: Experiment
    extracted: Answer
    settings: Answer
    swept: Answer
    swept_again: Answer
    predicted: Answer
    # Each with how its answer begins.
    refused: list[tuple[Answer, str]]

    @property
    def run_folders(self) -> list[Path]:
        """The first run of each cell: the package's fusion, and ser's own."""
        rows = json.loads(self.swept.output.splitlines()[-1])["rows"]
        return [Path(row["folders"][0]) for row in rows]


@pytest.fixture(scope="module")
def trained(site: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    experiment = Experiment(corpus, tmp_path_factory.mktemp("experiment"))
    refusals = {
        experiment.extract("broken"): (
            "ser: the feature 'broken' of ser-example 1.0 cannot be imported "
            "(ModuleNotFoundError: No module named"
        ),
        experiment.extract("mfcc"): (
            "ser: ser and ser-example 1.0 both bring a feature called 'mfcc'; "
            "uninstall ser-example 1.0"
        ),
        experiment.extract("example-loudnes"): (
            "ser: unknown feature 'example-loudnes' (did you mean example-loudness?)"
        ),
        experiment.train("wrong"): (
            "ser: the fusion 'wrong' of ser-example 1.0 is not a Fusion: ser_example:LOUDNESS"
        ),
    }

    answers = run_installed(
        site,
        experiment.extract(
            "example-loudness:hop=0.05,example-loudness", "--workers 2", "--part-seconds 4"
        ),
        "train --fusion example-mean --settings",
        experiment.sweep("--workers 2", "--json"),
        experiment.sweep("--workers 1", "--dry-run"),
        experiment.predict(),
        # What is wrong with one thing that a package brings is in nobody else's way.
        experiment.extract("logmel"),
        *refusals,
    )
    *good, logmel = answers[:6]
    for answer in (*good, logmel):
        assert answer.exit_code == 0, answer.output
    refused = list(zip(answers[6:], refusals.values(), strict=True))
    return Trained(experiment, *good, refused)


def test_a_package_brings_an_extractor_a_fusion_and_a_corpus(trained: Trained) -> None:
    assert "width" in trained.settings.output
    assert "ser-example" in trained.settings.output
    assert "6 runs, 6 finished already" in trained.swept_again.output

    [prediction] = json.loads(trained.predicted.output)["predictions"]
    assert prediction["label"] in LABELS


def test_what_is_wrong_with_a_package_is_one_sentence(trained: Trained) -> None:
    for answer, message in trained.refused:
        assert answer.exit_code == 2, answer.output
        assert message in answer.output
        assert answer.output.count("\n") == 1, answer.output


EXITS_ON_IMPORT = "import sys\nsys.exit()\n"
ENTRY_POINTS_THAT_EXIT = """
[ser.extractors]
leaving = leaving:FEATURE
[ser.fusions]
leaving = leaving:FUSION
[ser.corpora]
leaving = leaving:read
"""


def test_a_package_that_ends_the_process_is_named(corpus: Path, tmp_path: Path) -> None:
    """A script without a main guard: nothing is computed, and the exit code says so."""
    site = tmp_path / "site"
    metadata = site / "leaving-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "leaving.py").write_text(EXITS_ON_IMPORT)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: leaving\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS_THAT_EXIT)

    table = tmp_path / "table.csv"
    table.write_text(f"audio,text,label\n{corpus}/anna-ang-0.wav,hello,ang\n")

    answers = run_installed(
        site,
        f"features {table} --features leaving --store {tmp_path}/store",
        f"features {table} --format leaving --features logmel --store {tmp_path}/store",
        "train --fusion leaving --settings",
    )

    for answer in answers:
        assert answer.exit_code == 2, answer.output
        assert "of leaving 1.0 cannot be imported (SystemExit: )" in answer.output


def test_code_that_ends_the_process_later_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an extractor that is called, say: ser's own commands end otherwise."""
    monkeypatch.setattr("ser.cache.tools.listing.list_features", lambda *_: sys.exit())
    (tmp_path / "manifests").mkdir()

    done = ser("cache", "list", "--store", tmp_path)

    assert done.exit_code == 1
    assert "an unexpected error (SystemExit" in done.stderr


def test_a_run_names_the_package_of_its_fusion(trained: Trained) -> None:
    of_package, _ = trained.run_folders
    config = json.loads((of_package / "config.json").read_text())
    assert config["provenance"]["package"] == "ser-example 1.0"

    same_code = f"code={config['code'][:8]}"
    runs = json.loads(
        printed("runs", "list", trained.experiment.runs, "--json", "--where", same_code)
    )
    assert {run["fusion"] for run in runs} == {"example-mean"}


def test_an_edited_model_is_another_one_and_what_it_returns_is_looked_at(
    trained: Trained, site: Path, tmp_path: Path
) -> None:
    """Whatever the version of its package says."""
    edited = Path(shutil.copytree(site, tmp_path / "site"))
    source = edited / "ser_example.py"
    width_of_output = "settings.width, classes)"
    text = source.read_text()
    assert width_of_output in text
    source.write_text(text.replace(width_of_output, "settings.width, classes + 1)"))

    command = trained.experiment.sweep("--workers 1", "--cell example-mean")
    [answer] = run_installed(edited, command)
    assert answer.exit_code == 2
    assert "3 runs, 0 finished already" in answer.output
    assert "must return a dict of heads [n, 4]" in answer.output


def test_a_run_without_its_package_says_what_to_install(trained: Trained) -> None:
    remedy = "of ser-example 1.0, .*; run `pip install ser-example==1.0`"
    of_package, of_ser = trained.run_folders

    with pytest.raises(WrongUse, match=f"the fusion 'example-mean' {remedy}"):
        predict(of_package, [trained.experiment.audio])
    with pytest.raises(WrongUse, match=f"example-loudness was computed by an extractor {remedy}"):
        predict(of_ser, [trained.experiment.audio])
