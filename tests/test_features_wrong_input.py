"""`ser features` on a corpus with something wrong: one sentence and an exit code, nothing left out in silence."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ser.cli import main

ID = "Ses02F_impro02_F000"
WAV = f"Session2/sentences/wav/Ses02F_impro02/{ID}.wav"
TRANSCRIPTS = "Session2/dialog/transcriptions/Ses02F_impro02.txt"
LABELS = "Session2/dialog/EmoEvaluation/Ses02F_impro02.txt"


def no_transcript(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith(f"{ID} ")))


BREAK: list[tuple[Callable[[Path], Any], str, str]] = [  # what is done, the file and the reason that are named
    (shutil.rmtree, "Session3", "Session3 is missing from this copy of the corpus"),
    (Path.unlink, LABELS, "the labels of dialogue Ses02F_impro02 are missing"),
    (Path.unlink, WAV, "cannot be opened (No such file"),
    (lambda path: path.write_bytes(b""), WAV, "is empty"),
    (lambda path: path.write_bytes(path.read_bytes()[:5000]), WAV, "is cut short: its data chunk says"),
    (no_transcript, TRANSCRIPTS, "its transcript is missing"),
]


@pytest.fixture
def corpus(newcomer: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(newcomer / "corpus", tmp_path / "corpus"))


def features(newcomer: Path, corpus: Path, *options: str) -> Result:
    model = f"mpnet={newcomer / 'checkpoints' / 'mpnet-random'}"
    store = str(corpus.parent / "store")
    command = ["features", str(corpus), "--features", "logmel,mpnet", "--model", model, "--store", store, *options]
    return CliRunner().invoke(main, command)


@pytest.mark.parametrize(("spoil", "file", "reason"), BREAK)
def test_it_stops_with_one_sentence_or_leaves_nothing_out_in_silence(
    newcomer: Path, corpus: Path, spoil: Callable[[Path], Any], file: str, reason: str
) -> None:
    spoil(corpus / file)
    done = features(newcomer, corpus)
    assert done.exit_code == 1 and done.stdout == "" and not (corpus.parent / "store").exists()
    assert done.stderr.count("\n") == 1 and file in done.stderr and reason in done.stderr
    assert "--on-error skip" in done.stderr
    shown = CliRunner().invoke(main, ["corpus", "show", str(corpus)])
    assert shown.exit_code == 1 and file in shown.stdout and reason in shown.stdout

    utterances = json.loads(CliRunner().invoke(main, ["corpus", "show", str(corpus), "--json"]).stdout)["utterances"]
    done = features(newcomer, corpus, "--on-error", "skip", "--json")
    assert done.exit_code == 3 and reason in done.stderr
    assert {facts["rows"] + facts["quarantined"] for facts in json.loads(done.stdout).values()} == {utterances}
    again = features(newcomer, corpus, "--on-error", "skip")  # nothing to do, and still not whole
    assert again.exit_code == 3 and reason in again.stdout


def test_no_network_and_no_weights_is_one_sentence(newcomer: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ser", "features", str(newcomer / "corpus"), "--features", "hubert"]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "the checkpoint facebook/hubert-base-ls960 is not in Hugging Face's cache" in done.stderr
    assert "--model hubert=PATH" in done.stderr
