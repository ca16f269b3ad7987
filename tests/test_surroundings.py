"""Surroundings that are not as usual: ser works in them, or says in one sentence what is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ser.tests.command_line import ser

SER = f"{sys.executable} -m ser"


def write_tone(file: Path, hertz: int) -> None:
    """Half a second."""
    seconds = np.arange(8000) / 16000
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * hertz * seconds), 16000)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A corpus of two tones."""
    write_tone(tmp_path / "a.wav", 220)
    write_tone(tmp_path / "b.wav", 330)
    file = tmp_path / "table.csv"
    file.write_text("audio,text,label\na.wav,x,ang\nb.wav,y,neu\n")
    return file


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line in a shell, in a folder."""
    variables = {**os.environ, **environment}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=variables, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "closed",
    [
        pytest.param("2>&-", id="standard error"),
        pytest.param(">&-", id="standard output"),
        pytest.param("<&- >&- 2>&-", id="all three"),
    ],
)
def test_closed_streams_change_nothing(table: Path, tmp_path: Path, closed: str) -> None:
    """No file that is opened later becomes standard output."""
    done = shell(f"{SER} features table.csv --features logmel --store s {closed}", tmp_path)

    assert done.returncode == 0, done.stderr
    verified = ser("cache", "verify", "--store", tmp_path / "s")
    assert verified.exit_code == 0, verified.output


def test_a_question_that_nobody_can_answer_says_what_to_do(table: Path, tmp_path: Path) -> None:
    ser("features", table, "--features", "logmel", "--store", tmp_path / "s")

    done = shell(f"{SER} cache remove logmel --store s <&-", tmp_path)

    assert done.returncode == 1
    assert "nothing was removed: say --yes" in done.stderr
    assert ser("cache", "remove", "logmel", "--store", tmp_path / "s", "--yes").exit_code == 0


def test_an_ascii_locale_spells_every_name(tmp_path: Path) -> None:
    write_tone(tmp_path / "ä.wav", 220)
    (tmp_path / "table.csv").write_text("audio,text,label\nä.wav,grüße,ang\n", encoding="utf-8")
    line = f"{SER} features table.csv --features logmel --store s"

    done = shell(line, tmp_path, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "s" / "logmel").is_dir()


def test_a_name_that_the_locale_cannot_spell_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def cannot(*_: object) -> None:
        raise UnicodeEncodeError(sys.getfilesystemencoding(), "grüße", 2, 3, "not in range")

    monkeypatch.setattr("ser.cache.tools.listing.list_features", cannot)
    (tmp_path / "manifests").mkdir()

    done = ser("cache", "list", "--store", tmp_path)

    assert done.exit_code == 1
    assert "cannot spell 'grüße'; set LC_ALL=C.UTF-8" in done.stderr


def test_a_working_folder_that_is_gone_is_told(table: Path, tmp_path: Path) -> None:
    line = f"mkdir gone; cd gone; rmdir ../gone; {SER} features {table} --store {tmp_path}/s"

    done = shell(line, tmp_path)

    assert done.returncode == 1
    assert done.stderr.startswith("ser: the working folder is gone")
    assert len(done.stderr.splitlines()) == 1


def test_a_link_to_itself_is_named_and_skipped(table: Path, tmp_path: Path) -> None:
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    table.write_text(table.read_text() + "loop.wav,z,hap\n")

    shown = ser("corpus", "show", table)
    done = ser("features", table, "--features", "logmel", "--store", tmp_path / "s",
               "--on-error", "skip")  # fmt: skip

    assert "unexpected" not in shown.output + done.output
    assert "loop.wav" in shown.output
    assert done.exit_code == 3
    assert "loop" in done.output


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("corpus", "show", "~nosuch/corpus"), id="a corpus"),
        pytest.param(("corpus", "demo", "~nosuch/"), id="the demo"),
        pytest.param(("cache", "pull", "~nosuch/x", "--store", "new"), id="a published store"),
    ],
)
def test_a_home_of_nobody_is_a_folder_of_that_name(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_demo: None
) -> None:
    monkeypatch.chdir(tmp_path)

    done = ser(*words)

    assert "unexpected" not in done.output, done.output


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_a_user_without_a_name_or_a_home(table: Path, tmp_path: Path) -> None:
    """As in `docker run --user 12345`; librosa's cache lies in a folder of its own."""
    for folder in (tmp_path, *tmp_path.parents):
        folder.chmod(folder.stat().st_mode | 0o055)
        if folder.name.startswith("pytest-of-"):
            break
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o777)
    command = f"{SER} features table.csv --features logmel,mfcc --store out/s"
    as_nobody = f"setpriv --reuid 12345 --clear-groups {command}"

    done = shell(as_nobody, tmp_path, HOME="/nonexistent", TMPDIR=str(out))

    assert done.returncode == 0, done.stderr
    assert not list(out.glob("ser-numba-*"))
