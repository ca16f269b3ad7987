"""Problems that repeat are one line, with a count, two examples and the cause."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from click.testing import Result

from ser.extract.corpora.alike import problem_lines
from ser.extract.corpora.reading import Problem
from ser.tests.command_line import ser

COUNT = 12


@pytest.fixture
def spans(tmp_path: Path) -> Path:
    """A table without ids, whose rows are all of one recording."""
    sf.write(tmp_path / "a.wav", np.full(1600, 0.1), 16000)
    rows = ["a.wav,ang"] * COUNT
    (tmp_path / "t.csv").write_text("\n".join(["audio,label", *rows]))
    return tmp_path / "t.csv"


@pytest.fixture
def silent(tmp_path: Path) -> Path:
    """A table of recordings, all but one of which are no audio."""
    rows = ["good.wav,ang"]
    sf.write(tmp_path / "good.wav", np.random.default_rng(0).normal(0, 0.1, 1600), 16000)
    for number in range(COUNT):
        (tmp_path / f"{number}.wav").write_bytes(b"RIFF")
        rows.append(f"{number}.wav,ang")
    (tmp_path / "t.csv").write_text("\n".join(["audio,label", *rows]))
    return tmp_path / "t.csv"


def lines_with(text: str, answer: Result) -> list[str]:
    return [line for line in answer.output.splitlines() if text in line]


def test_an_id_column_that_is_missing_is_named_once(spans: Path) -> None:
    shown = ser("corpus", "show", spans)
    [line] = lines_with("there twice", shown)
    assert f"{COUNT - 1} of one kind, such as a.wav: a: line 3: " in line
    assert "no column id gives another; add a column id" in line
    assert f"{COUNT - 1} problems; --json names each" in shown.output

    problems = json.loads(ser("corpus", "show", spans, "--json").stdout)["problems"]
    assert len(problems) == COUNT - 1


def test_the_advice_on_ids_works(spans: Path) -> None:
    rows = [f"u{number},a.wav,ang" for number in range(COUNT)]
    spans.write_text("\n".join(["id,audio,label", *rows]))
    assert ser("corpus", "show", spans).exit_code == 0


def test_an_id_that_is_given_twice_says_nothing_of_a_column(spans: Path) -> None:
    spans.write_text("id,audio,label\nu,a.wav,ang\nu,a.wav,ang\n")
    [line] = lines_with("there twice", ser("corpus", "show", spans))
    assert line.endswith("the id u is there twice")


def test_extraction_stops_with_one_sentence(spans: Path, tmp_path: Path) -> None:
    words = ["features", spans, "--features", "logmel", "--store", tmp_path / "s"]
    stopped = ser(*words)
    assert stopped.exit_code == 1
    [line] = lines_with("there twice", stopped)
    assert line.startswith(f"ser: {COUNT - 1} problems with the corpus: {COUNT - 1} of one kind")

    skipped = ser(*words, "--on-error", "skip")
    assert skipped.exit_code == 3
    [before, after] = lines_with("there twice", skipped)
    assert before.startswith("  not in the corpus as read: ")
    assert after.startswith("left out of the corpus: ")


def test_what_is_quarantined_is_one_line_and_each_is_named_by_the_command_that_it_names(
    silent: Path, tmp_path: Path
) -> None:
    store = ["--store", tmp_path / "s"]
    words = ["features", silent, "--features", "logmel,mfcc", *store, "--on-error", "skip"]
    done = ser(*words)
    assert done.exit_code == 3
    [line] = lines_with("quarantined in", done)
    assert line.startswith(f"quarantined in logmel, mfcc: {COUNT} of one kind, such as ")
    [command] = re.findall(f"each of the {COUNT} is named by `ser (.*)`", done.output)

    info = ser(*shlex.split(command))
    assert info.exit_code == 0
    for number in range(COUNT):
        assert f"'{number}': cannot be decoded" in info.output


def test_two_of_a_kind_have_a_line_each_and_kinds_are_told_apart() -> None:
    twice = [Problem(f"u{n}", f"{n}.wav", f"line {n}: the id u{n} is there twice") for n in (1, 2)]
    empty = [Problem(f"v{n}", f"{n}.wav", "is empty") for n in range(1500)]
    lines = problem_lines([*twice, *empty])
    assert lines == [
        *map(str, twice),
        "1,500 of one kind, such as 0.wav: v0: is empty; 1.wav: v1: is empty",
    ]


def test_a_name_within_a_reason_does_not_make_it_another_kind() -> None:
    problems = []
    for name in ("a", "b c", "d'e"):
        problems.append(
            Problem(name, f"{name}.wav", f"the audio path {name}.wav leaves the corpus")
        )
    assert len(problem_lines(problems)) == 1
