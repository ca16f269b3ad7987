"""What an installed package brings by entry points: used in every process, refused in one sentence,
named by runs.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from ser.errors import WrongUse
from ser.predict import predict
from ser.tests.command_line import printed

PLUGIN = Path(__file__).parent / "fixtures" / "example_plugin"
CELL = "[[cell]]\nname = '{0}'\nfusion = '{0}'\n"
RECIPE = "[experiment]\nfeatures = 'example-loudness'\nprotocol = 'speaker-out'\nepochs = 1\n"
RECIPE += CELL.format("example-mean") + CELL.format("audio:utterance")
SER = """
import json, sys
from click.testing import CliRunner
from ser.cli import main
from ser.engines.fork_server import start_fork_server
if __name__ == "__main__":
    if "--workers 2" in sys.argv[1]:
        start_fork_server("ser.train.sweep.run")  # for the features too, which come first
    done, run = [], ""
    for command in json.loads(sys.argv[1]):
        one = CliRunner().invoke(main, command.replace("RUN", run).split())
        done.append([one.exit_code, one.output])
        if command.startswith("sweep") and "--json" in command:
            run = json.loads(one.output.splitlines()[-1])["rows"][0]["folders"][0]
    print(json.dumps(done))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the package as pip installs it."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PLUGIN, folder / "source")  # setuptools builds inside it
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run(
        [*install, "--target", folder / "site", folder / "source"], check=True, capture_output=True
    )
    return folder / "site"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, noise = tmp_path_factory.mktemp("plugin") / "flat", np.random.default_rng(0)
    folder.mkdir()
    for speaker in ("anna", "bob", "cleo"):
        for number, label in enumerate(("ang", "hap", "neu", "sad") * 2):
            samples = 0.1 * noise.standard_normal(8000 + 800 * number)
            sf.write(folder / f"{speaker}-{label}-{number}.wav", samples, 16000)
    return folder


def installed(site: Path, *commands: str) -> list[tuple[int, str]]:
    """Each command in one new process that has the package: exit code and output. RUN is the first
    of a sweep.
    """
    script = site.parent / "commands.py"
    script.write_text(SER)
    command = [sys.executable, script, json.dumps(commands)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [(code, output) for code, output in json.loads(run.stdout)]


def test_a_package_brings_an_extractor_a_fusion_and_a_corpus(
    site: Path, corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "both.toml").write_text(RECIPE)
    store, runs = tmp_path / "features", tmp_path / "runs"
    wav, features = corpus / "anna-ang-0.wav", f"features {corpus} --store {store} --features"
    again = f"sweep {tmp_path}/both.toml --store {store} --out {runs} --workers 1"
    done = installed(
        site,
        f"{features} example-loudness:hop=0.05,example-loudness --format example-flat --workers 2 --part-seconds 4",
        "train --fusion example-mean --settings",
        f"sweep {tmp_path}/both.toml --store {store} --out {runs} --workers 2 --json",
        f"{again} --dry-run",
        f"predict RUN {wav} --json",
        # What is wrong with one thing that a package brings is in nobody else's way.
        f"{features} logmel --format example-flat",
        f"{features} broken --format example-flat",
        f"{features} mfcc --format example-flat",
        f"{features} example-loudnes --format example-flat",
        f"train --store {store} --features example-loudness --fusion wrong",
    )
    good, bad = done[:6], done[6:]
    assert [code for code, _ in good] == [0] * 6, good
    assert "width" in good[1][1] and "ser-example" in good[1][1]
    wanted = [
        "ser: the feature 'broken' of ser-example 1.0 cannot be imported (ModuleNotFoundError: No module named",
        "ser: ser and ser-example 1.0 both bring a feature called 'mfcc'; uninstall ser-example 1.0",
        "ser: unknown feature 'example-loudnes' (did you mean example-loudness?)",
        "ser: the fusion 'wrong' of ser-example 1.0 is not a Fusion: ser_example:LOUDNESS",
    ]
    for (code, output), message in zip(bad, wanted, strict=True):
        assert code == 2 and message in output and output.count("\n") == 1, output
    rows = json.loads(good[2][1].splitlines()[-1])["rows"]
    mean, plain = (Path(row["folders"][0]) for row in rows)
    config = json.loads((mean / "config.json").read_text())
    assert config["provenance"]["package"] == "ser-example 1.0"
    listed = printed("runs", "list", runs, "--json", "--where", f"code={config['code'][:8]}")
    assert {one["fusion"] for one in json.loads(listed)} == {"example-mean"}
    assert "6 runs, 6 finished already" in good[3][1]
    assert json.loads(good[4][1])["predictions"][0]["label"] in ("ang", "hap", "neu", "sad")
    # A model that was edited is another one, whatever its package's version; and what it returns is
    # looked at.
    source = site / "ser_example.py"
    source.write_text(
        source.read_text().replace("settings.width, classes)", "settings.width, classes + 1)")
    )
    [(code, output)] = installed(site, f"{again} --cell example-mean")
    assert (
        code == 2
        and "3 runs, 0 finished already" in output
        and "must return a dict of heads [n, 4]" in output
    )
    for run, what in (
        (mean, "the fusion 'example-mean'"),
        (plain, "example-loudness was computed by an extractor"),
    ):
        with pytest.raises(
            WrongUse, match=f"{what} of ser-example 1.0, .*; run `pip install ser-example==1.0`"
        ):
            predict(run, [wav])
