"""Every file that a command reads, changed: each outcome is right, or one sentence.

What goes into tables and features is compared with what comes out in test_fuzz_tables.py and
test_fuzz_features.py. 15 seconds of it in `make test`, always the same; an hour of others in
`make test-slow` (`SER_FUZZ_SECONDS`, from `SER_FUZZ_SEED` on).
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import resource
import shutil
import signal
import tempfile
import time
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import h5py
import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import zarr
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ser.cache.transcripts import put_transcripts
from ser.tests.claims import CLAIMS
from ser.tests.command_line import ser
from ser.tests.file_forms import form_of
from ser.tests.newcomer import once
from ser.train.sweep.search_record import SearchRecord
from ser.weights.demo import write_random_checkpoint

FILES = Path(__file__).parent / "fixtures" / "fuzz"
TARGETS: dict[str, list[str]] = tomllib.loads((FILES / "targets.toml").read_text())
# By checksums: a changed byte is refused or makes no difference.
SEALED = ("store/", "runs/", "pub/")
# In what is printed: no two are the same.
TIMES = r"about [^,]*$| at [\d.]+ GB/s"
SMALL = "--fusion lgf-add --epochs 1 --set d_model=8 --set gru_hidden=4 --set heads=2 --folds 1"


def make(folder: Path) -> None:
    """A corpus of noise, its features, a run, and one file of each kind that is read."""
    shutil.copytree(FILES, folder, dirs_exist_ok=True)
    (folder / "audio").mkdir()
    noise = np.random.default_rng(0)
    for n in range(12):
        sf.write(folder / "audio" / f"u{n}.wav", noise.normal(0, 0.1, 4000 + 100 * n), 16000)
    sf.write(folder / "quiet.flac", np.zeros(8000), 16000)

    rows = [json.loads(line) for line in (folder / "table.jsonl").read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "table.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:3]), folder / "turns.parquet")

    values = noise.normal(size=(12, 4)).astype("f4")
    ids = [row["id"] for row in rows]
    np.save(folder / "new.npy", values)
    np.savez(folder / "new.npz", values=values, offsets=np.arange(13), ids=np.array(ids))
    save_file({"values": values}, folder / "new.safetensors")
    with h5py.File(folder / "new.h5", "w") as file:
        file["values"] = values
        file["offsets"] = np.arange(13)
    group = zarr.create_group(folder / "new.zarr", attributes={"ids": ids})
    group.create_array("values", data=values)

    write_random_checkpoint(folder / "bert", "bert", words=["well", "word"])
    shards = folder / "shards"
    shutil.copytree(folder / "bert", shards, dirs_exist_ok=True)
    (shards / "model.safetensors").rename(shards / "model-00001-of-00001.safetensors")

    with contextlib.chdir(folder):
        for command in (
            "features table.csv --store store --features logmel,bert --model bert=bert",
            "cache import mel new.npy --modality audio --store store --backend hdf5",
            f"train --store store --features logmel+bert --out runs {SMALL}",
            "cache push pub --store store --features logmel",
        ):
            assert outcome(command)[0] == 0, command
        shutil.copytree("store", "old")
        put_transcripts(Path("store"), {"recogniser": "none"}, {"0" * 64: "well"})
        SearchRecord("recipe.toml", ["lr"], ["0" * 16]).write(Path("runs"))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A copy of `make`'s folder for this process, as the working folder."""
    folder = tmp_path_factory.mktemp("house") / "house"
    shutil.copytree(once(tmp_path_factory, "fuzz", make), folder)
    with contextlib.chdir(folder):
        yield


# For a command on a file that claims too much: of the processors, and of addresses beyond those of
# the process.
ENOUGH_SECONDS = 20
ENOUGH_BYTES = 3 << 30


class TakesTooLong(BaseException):
    """A command still works when its time is over."""


@contextlib.contextmanager
def little_time_and_memory() -> Iterator[None]:
    """Let what runs within have a few seconds and gigabytes alone."""

    def stop(*_: Any) -> None:
        raise TakesTooLong(f"more than {ENOUGH_SECONDS} s of the processors")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    addresses = pages * resource.getpagesize() + ENOUGH_BYTES
    before = signal.signal(signal.SIGPROF, stop)
    try:
        signal.setitimer(signal.ITIMER_PROF, ENOUGH_SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (addresses, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def outcome(command: str) -> tuple[int, str, bytes]:
    """Exit code, what was printed and what was exported.

    Anything but an answer or one sentence fails.
    """
    with tempfile.TemporaryDirectory(dir=".") as out:
        run = str(next(Path("runs").glob("*/log"), Path()).parent)
        words = command.replace("SMALL", SMALL).replace("OUT", out).replace("RUN", run).split()
        result = ser(*words)
        assert isinstance(result.exception, SystemExit | None), repr(result.exception)
        assert result.exit_code in (0, 1, 2, 3), command
        assert result.exit_code == 0 or result.output.strip(), command
        assert "Traceback" not in result.output, result.output
        assert "unexpected error" not in result.output, result.output
        # That memory ends is said with the file that was too large.
        assert "error: the memory left" not in result.output, result.output
        exported = Path(out, "file.safetensors")
        printed = re.sub(TIMES, "", result.stdout.replace(Path(out).name, "OUT"))
        return result.exit_code, printed, exported.read_bytes() if exported.exists() else b""


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1 << 70,
    1e308,
    float("nan"),
    float("-inf"),
    "",
    "9" * 5000,
    "../../etc/passwd",
    "\0",
    "\x1b[2J",
    "\ud800",
    "é",
    "=1+1",
    [],
    {},
    [[]],
    {"a": {}},
    ["x"],
    {"": None},
    3,
    0.5,
    "3",
    "none",
]


def changed(value: Any, random: Random) -> Any:
    """A copy with one node dropped, doubled, moved or put in place of another, or something odd."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.1:
        return random.choice(ODD)

    copy = value.copy()
    keys = list(value) if isinstance(value, dict) else range(len(value))

    key: Any = random.choice(keys)
    other: Any = random.choice(keys)
    match random.randrange(8):
        case 0:
            del copy[key]
        case 1 if isinstance(value, dict):
            copy[f"{key}_"] = copy[key]
        case 1:
            copy.insert(key, copy[key])
        case 2:
            copy[key] = copy[other]
        case 3:
            copy[key] = random.choice(ODD)
        case _:
            copy[key] = changed(copy[key], random)
    return copy


ODD_BYTES = (b"", b"\0", b"\xff\xfe", b"[" * 5000, b'"', b"\n", b"-1", b"1e999", bytes(9))


def flipped(content: bytes, random: Random) -> bytes:
    """A copy with bytes flipped, cut, doubled or put in."""
    ends = [random.randrange(len(content) + 1), random.randrange(len(content) + 1)]
    start = min(ends)
    stop = min(max(ends), start + random.choice((1, 8, 1000)))
    piece = content[start:stop]

    odd = random.choice((*ODD_BYTES, piece * 2))
    if random.random() < 0.3 and piece:
        odd = bytes(byte ^ 1 << random.randrange(8) for byte in piece)

    if random.random() < 0.1:
        return content[:start]
    return content[:start] + odd + content[stop:]


def changed_file(path: Path, content: bytes, random: Random) -> tuple[bytes, bool]:
    """Other content, and whether its checksum is right: a lie."""
    form = form_of(path)
    if form is None or random.random() < 0.3:
        return flipped(content, random), False

    try:
        return form.write(changed(form.read(content), random)), True
    except Exception:
        # There is no such file.
        hypothesis.reject()


@contextlib.contextmanager
def replaced(path: Path, content: bytes, lie: bool) -> Iterator[None]:
    """The file with that content; a manifest that lies has the name that vouches for it."""
    kept = {file: file.read_bytes() for file in (path, path.with_name("latest")) if file.exists()}
    if lie and "manifests" in path.parts:
        path = path.with_name(f"{hashlib.sha256(content).hexdigest()}.parquet")
        path.with_name("latest").write_text(f"{path.stem}\n")
    try:
        path.write_bytes(content)
        yield
    finally:
        path.unlink()
        for file, before in kept.items():
            file.write_bytes(before)


def attack(target: str, examples: int, seed: int | None = None) -> None:
    """So many changes of a file, the same ones each time without a `seed`."""
    [path] = Path().glob(target)
    content = path.read_bytes()
    usual = [outcome(command) for command in TARGETS[target]]
    is_sealed = target.startswith(SEALED)

    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=timedelta(seconds=240),
        derandomize=seed is None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.randoms(use_true_random=False))
    def change_once(random: Random) -> None:
        new, lie = changed_file(path, content, random)
        hypothesis.note(f"{target}: {new[:3000]!r}")
        with replaced(path, new, lie):
            outcomes = [outcome(command) for command in TARGETS[target]]
        for before, after in zip(usual, outcomes, strict=True):
            if is_sealed and not lie:
                assert after == before or after[0] != 0, "another answer"

    if seed is not None:
        change_once = hypothesis.seed(seed)(change_once)
    change_once()


def claim_too_much(target: str, examples: int, seed: int, patient: bool) -> None:
    """So many times, let a file claim more than it holds: the answer comes soon, or a sentence."""
    [path] = Path().glob(target)
    content = path.read_bytes()
    random = Random(seed)
    for _ in range(examples):
        lie = CLAIMS[path.suffix](content, random, patient)
        with replaced(path, lie, lie=True), little_time_and_memory():
            for command in TARGETS[target]:
                outcome(command)


# What may claim: the files of others, and those whose checksums are no secret.
CAN_CLAIM = [target for target in TARGETS if Path(target).suffix in CLAIMS]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's count of pages")
@pytest.mark.parametrize("target", CAN_CLAIM)
def test_a_file_that_claims_too_much(house: None, target: str) -> None:
    # A config has many numbers, and a table claims rows or long texts.
    examples = {"bert/config.json": 3, "table.parquet": 2}.get(target, 1)
    claim_too_much(target, examples, seed=1, patient=False)


@pytest.mark.parametrize("target", TARGETS)
def test_a_changed_file(house: None, target: str) -> None:
    attack(target, 2)


@pytest.mark.slow
def test_an_hour_of_changed_files(house: None) -> None:
    ends = time.monotonic() + float(os.environ.get("SER_FUZZ_SECONDS", "3400"))
    # Of the seeds, and which target begins.
    first = int(os.environ.get("SER_FUZZ_SEED", "0"))
    targets = itertools.islice(itertools.cycle(TARGETS), first, None)
    for seed, target in enumerate(targets, first):
        print(seed, target)
        if time.monotonic() > ends:
            break
        attack(target, 50, seed)
        if target in CAN_CLAIM:
            claim_too_much(target, 10, seed, patient=True)
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert kibibytes < 4 << 20, "more than 4 GiB"


@pytest.mark.timeout(240)
# ser.toml need not be there.
@pytest.mark.parametrize("target", [target for target in TARGETS if target != "ser.toml"])
def test_a_special_file(house: None, target: str) -> None:
    """A pipe that nobody writes to, or a file without an end.

    Who opens one as a plain file, opens the other so.
    """
    [path] = Path().glob(target)
    path.rename("kept")
    try:
        if [*TARGETS].index(target) % 2:
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
        for command in TARGETS[target]:
            exit_code, _, _ = outcome(command)
            # Manifests are listed without their log too: that it is damaged, verify says.
            assert exit_code != 0 or command.startswith("cache rollback"), command
    finally:
        path.unlink(missing_ok=True)
        Path("kept").rename(path)


def test_a_fault_that_nobody_foresaw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("x\ny")

    monkeypatch.setattr("ser.cache.tools.listing.list_features", broken)
    # Away from the ser.toml of another test.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manifests").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    done = ser("cache", "list", "--store", tmp_path)

    [file] = tmp_path.glob("ser-error-*.txt")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert len(done.output.splitlines()) == 1
    assert "an unexpected error (KeyError" in done.output
    assert str(file) in done.output
    assert "Traceback" in file.read_text()
    assert "in broken" in file.read_text()

    # Where there is no room for the file.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    done = ser("cache", "list", "--store", tmp_path)
    assert done.exit_code == 1
    assert "please report it with this traceback:\nTraceback" in done.output


def test_a_path_that_is_not_unicode_on_a_disk_of_its_own(house: None) -> None:
    odd = os.fsdecode(b"caf\xe9")
    Path(odd, "store", "lost+found").mkdir(parents=True)
    shutil.copytree("audio", f"{odd}/audio")
    shutil.copy("table.csv", odd)
    commands = (
        f"features {odd}/table.csv --store {odd}/store --features logmel,bert --model bert=bert",
        f"train --store {odd}/store --features logmel+bert --out {odd}/runs {SMALL} --json",
        f"cache info bert --store {odd}/store --json",
        f"report {odd}/runs --html {odd}/page.html",
        f"cache push {odd}/pub --store {odd}/store",
        f"runs list {odd}/runs --json",
    )

    for command in commands:
        code, printed, _ = outcome(command)
        assert code == 0, printed
        if "--json" in command:
            assert json.loads(printed), printed
    assert outcome(f"predict RUN audio/u0.wav --text {odd}")[0] == 2
