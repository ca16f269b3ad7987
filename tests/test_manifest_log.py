"""The log of a corpus's manifests: its own order decides, and verify sees when it is damaged."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ser.cache import manifest_log, manifests
from ser.cache.manifest_log import LOG, generations, with_line
from ser.cache.manifests import make_latest
from ser.cache.store import Store, open_store
from ser.cache.tools.verify import Checked, verify
from ser.disk.records import canonical_json
from ser.errors import CorruptStore
from ser.tests.store_samples import manifest_of

# Hours that the clock shows at each of three manifests: it is set back before the third.
CLOCK_SET_BACK = (1, 3, 2)


def stored(path: Path, monkeypatch: pytest.MonkeyPatch, hours: tuple[int, ...]) -> Store:
    """A store whose corpus had a manifest of 1, 2, 3 … utterances, each at that hour."""
    store = open_store(path / "store", create=True)
    for number, hour in enumerate(hours, 1):
        monkeypatch.setattr(manifest_log.time, "time", lambda hour=hour: 3600.0 * hour)
        store.put_manifest(manifest_of(number))
    return store


def log_of(store: Store) -> Path:
    return store.path / "manifests" / "toy" / LOG


def of_the_log(store: Store, repair: bool = False) -> Checked:
    """What verify says of the log."""
    [checked] = [entry for entry in verify(store, repair) if entry.path.endswith(LOG)]
    return checked


def test_rollback_goes_by_the_order_of_the_log_not_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stored(tmp_path, monkeypatch, CLOCK_SET_BACK)

    past = generations(log_of(store).parent)
    assert [generation.utterances for generation in past] == [1, 2, 3]
    assert len(store.rollback("toy")) == 2
    assert len(store.rollback("toy")) == 3, "that was the latest before the rollback"


def test_a_manifest_without_a_line_comes_before_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stored(tmp_path, monkeypatch, (1, 2, 3))
    log = log_of(store)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + lines[2])

    [first, *others] = generations(log.parent)
    assert first.command is None
    assert [generation.utterances for generation in others] == [1, 3]


def cut(log: bytes) -> bytes:
    return log[: len(log) // 2]


def without_the_first_line(log: bytes) -> bytes:
    return log[log.index(b"\n") + 1 :]


def without_the_last_line(log: bytes) -> bytes:
    return b"".join(log.splitlines(keepends=True)[:-1])


def without_the_second_line(log: bytes) -> bytes:
    lines = log.splitlines(keepends=True)
    return lines[0] + lines[2]


def swapped(log: bytes) -> bytes:
    first, second, third = log.splitlines(keepends=True)
    return second + first + third


DAMAGES = [
    cut,
    without_the_first_line,
    without_the_second_line,
    without_the_last_line,
    swapped,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_sees_a_damaged_log_and_repair_writes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    store = stored(tmp_path, monkeypatch, (1, 2, 3))
    latest = store.manifest().digest
    log = log_of(store)
    assert of_the_log(store).problem is None

    damaged = damage(log.read_bytes())
    log.write_bytes(damaged)
    assert str(log) in str(of_the_log(store).problem)

    assert of_the_log(store, repair=True).repaired
    assert of_the_log(store).problem is None
    assert store.manifest().digest == latest
    assert len(generations(log.parent)) == 3
    assert (store.path / "bad" / "manifests" / "toy" / f"{LOG}-1").read_bytes() == damaged


def test_every_flipped_bit_of_a_log_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_of(stored(tmp_path, monkeypatch, (1, 2)))
    content = log.read_bytes()
    for position in range(len(content)):
        altered = bytearray(content)
        altered[position] ^= 1 << position % 8
        log.write_bytes(altered)
        with pytest.raises(CorruptStore):
            manifest_log.check_log(log.parent)


def test_lines_of_an_earlier_ser_have_no_checksum_and_are_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stored(tmp_path, monkeypatch, (1, 2))
    old_lines = b""
    for generation in generations(log_of(store).parent):
        old_lines += canonical_json(generation) + b"\n"
    log_of(store).write_bytes(old_lines)
    assert of_the_log(store).problem is None

    store.put_manifest(manifest_of(3))
    assert log_of(store).read_bytes().startswith(old_lines)
    assert of_the_log(store).problem is None
    log_of(store).write_bytes(
        log_of(store).read_bytes().replace(b'"utterances":2', b'"utterances":9')
    )
    assert of_the_log(store).problem


def test_a_line_after_one_that_was_cut_short_is_whole(tmp_path: Path) -> None:
    log = with_line(b'{"digest', "0" * 64, 3, "features")
    assert log.startswith(b'{"digest\n{')


def test_a_writer_whose_line_another_overwrote_adds_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stored(tmp_path, monkeypatch, (1,))
    other_log = with_line(log_of(store).read_bytes(), "f" * 64, 9, "features")
    put_files = manifests.put_files
    puts = []

    def put_and_be_overwritten(*args: object) -> None:
        put_files(*args)
        if not puts:
            log_of(store).write_bytes(other_log)
        puts.append(args)

    monkeypatch.setattr(manifests, "put_files", put_and_be_overwritten)
    make_latest(store.path, manifest_of(2), "features")

    digests = [generation.digest for generation in generations(log_of(store).parent)]
    assert digests[1:] == ["f" * 64, store.manifest().digest]
    assert of_the_log(store).problem is None


def test_a_log_that_is_one_line_ahead_of_latest_is_worth_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stored(tmp_path, monkeypatch, (1, 2))
    latest = log_of(store).with_name("latest")
    before = generations(latest.parent)[0].digest
    latest.write_text(f"{before}\n")

    checked = of_the_log(store)
    assert checked.problem is None
    assert "killed" in str(checked.note)
