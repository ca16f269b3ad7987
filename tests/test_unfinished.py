"""What killed processes leave beside a published path: known by its mark, and removed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ser.cache.tools.remote import Remote
from ser.disk.unfinished import remove_unfinished, unfinished_name
from ser.disk.workspace import TEMPORARY, workspace_beside
from ser.disk.write import write_whole

BEGIN_A_WORKSPACE = """
import sys
from pathlib import Path
from ser.disk.workspace import workspace_beside
with workspace_beside(Path(sys.argv[1])) as folder:
    (folder / "weights").write_bytes(bytes(1000))
    print("begun", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def forgotten_folders() -> None:
    """Each folder is looked at anew, as by another process."""
    remove_unfinished.cache_clear()


def kill_in_a_workspace(path: Path) -> None:
    """Begin a workspace beside the path in another process, and kill that."""
    command = [sys.executable, "-c", BEGIN_A_WORKSPACE, path]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_workspace_beside_a_path_leaves_nothing(tmp_path: Path) -> None:
    with workspace_beside(tmp_path / "model") as folder:
        assert folder.is_dir()
        assert TEMPORARY in folder.parts

    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    kill_in_a_workspace(tmp_path / "model")
    assert list(tmp_path.rglob("weights"))

    with workspace_beside(tmp_path / "another"):
        assert not list(tmp_path.rglob("weights"))

    assert list(tmp_path.iterdir()) == []


def test_what_is_in_use_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    theirs = tmp_path / TEMPORARY / "tmp" / "notes"
    theirs.mkdir(parents=True)

    with workspace_beside(tmp_path / "model") as folder:
        with workspace_beside(tmp_path / "another"):
            assert folder.is_dir()
        assert folder.is_dir()

    assert theirs.is_dir()


def make_unfinished(folder: Path, seconds_ago: float) -> Path:
    file = folder / unfinished_name()
    file.write_bytes(b"cut short")
    changed = time.time() - seconds_ago
    os.utime(file, (changed, changed))
    return file


def test_an_unfinished_file_is_removed_by_the_next_writer(
    tmp_path: Path, forgotten_folders: None
) -> None:
    file = make_unfinished(tmp_path, seconds_ago=60)
    theirs = tmp_path / ".mine.part"
    theirs.write_text("not ser's")

    write_whole(tmp_path / "report.html", b"page")

    assert not file.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", ".mine.part"}


def test_a_push_removes_what_a_killed_one_left_in_a_whole_part(
    tmp_path: Path, forgotten_folders: None
) -> None:
    folder = tmp_path / "pub" / "frames" / "0" / "parts"
    folder.mkdir(parents=True)
    left = make_unfinished(folder, seconds_ago=60)
    (folder / "part.json").write_text("{}")

    Remote(str(tmp_path / "pub")).remove_unfinished()

    assert not left.exists()
    assert [path.name for path in folder.iterdir()] == ["part.json"]


def test_an_unfinished_file_that_is_written_stays(tmp_path: Path, forgotten_folders: None) -> None:
    """It is locked; or has just been made, and is not locked yet."""
    from ser.disk.descriptor_lock import try_lock

    written = make_unfinished(tmp_path, seconds_ago=60)
    fresh = make_unfinished(tmp_path, seconds_ago=0)
    with written.open("r+b") as file:
        assert try_lock(file.fileno())

        write_whole(tmp_path / "report.html", b"page")

    assert written.exists()
    assert fresh.exists()


def test_another_machines_unfinished_file_stays_for_a_day(
    tmp_path: Path, forgotten_folders: None
) -> None:
    """Its lock may be invisible here."""
    theirs = tmp_path / f".ser-{'0' * 8}-{'1' * 16}.part"
    make_unfinished(tmp_path, seconds_ago=3600).rename(theirs)
    write_whole(tmp_path / "report.html", b"page")
    assert theirs.exists()

    remove_unfinished.cache_clear()
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(theirs, (two_days_ago, two_days_ago))
    write_whole(tmp_path / "report.html", b"page")
    assert not theirs.exists()
