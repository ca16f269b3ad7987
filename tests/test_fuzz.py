"""Every file that a command reads, changed by structure and by bytes: each outcome is right, or one sentence.

20 seconds of it in `make test`, always the same; an hour (`SER_FUZZ_SECONDS`) of other ones in `make test-slow`.
"""

import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import resource
import shutil
import signal
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
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
from click.testing import CliRunner
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ser.cache.spec import checksummed_json
from ser.cli import main
from ser.tests.demo_store import once
from ser.weights.demo import write_random_checkpoint

SMALL = "--fusion lgf-add --epochs 1 --set d_model=8 --set gru_hidden=4 --set heads=2 --folds 1"
TRAIN = f"train --store store --features logmel+bert --dry-run {SMALL}"
BERT = "features table.csv --features bert --model bert=bert --store OUT/store"
PREDICT = "predict RUN audio/u0.wav --text well --json"
REPORT = "report runs --html OUT/r.html --latex OUT/r.tex"
NEW = "cache import new {} --modality audio --manifest table.csv --store OUT/store"
PART = "store/logmel/*/parts/*"
# The file, below the folder that `house` makes, and the command that reads it. OUT is a new folder.
TARGETS = {
    "store/manifests/table/*.parquet": TRAIN,
    "store/manifests/table/latest": "cache export logmel OUT/file.safetensors --store store",
    "store/logmel/*/spec.json": "cache info logmel --store store --json",
    f"{PART}/part.json": "cache export logmel OUT/file.safetensors --store store",
    f"{PART}/data.zarr/values/zarr.json": "cache verify --store store",
    f"{PART}/data.zarr/values/c/0/0": "cache export logmel OUT/file.safetensors --store store",
    f"{PART}/data.zarr/offsets/c/0": "cache export logmel OUT/file.safetensors --store store",
    "store/mel/*/parts/*/data.h5": "cache verify --store store",
    "runs/*/config.json": f"{REPORT};{PREDICT};train --resume RUN --dry-run",
    "runs/*/result.json": f"{REPORT};{PREDICT}",
    "runs/*/predictions.parquet": REPORT,
    "runs/*/model.safetensors": PREDICT,
    "recipe.toml": "sweep recipe.toml --store store --dry-run --json",
    "labels.toml": f"{TRAIN} --labels labels.toml",
    "folds.csv": f"{TRAIN} --protocol folds:folds.csv",
    "folds.json": f"{TRAIN} --protocol folds:folds.json",
    "emobox/fold_1/train.jsonl": f"{TRAIN} --protocol folds:emobox",
    "turns.csv": "predict RUN --table turns.csv --json",
    "turns.parquet": "predict RUN --table turns.parquet --json",
    "audio/u0.wav": PREDICT,
    "table.csv": "corpus show table.csv --json",
    "table.jsonl": "corpus show table.jsonl --json",
    "table.parquet": "features table.parquet --features logmel --store OUT/store",
    "texts.csv": f"{BERT} --text texts.csv",
    "bert/config.json": BERT,
    "bert/tokenizer.json": BERT,
    "bert/tokenizer_config.json": BERT,
    "bert/model.safetensors": BERT,
    "shards/model.safetensors.index.json": BERT.replace("=bert", "=shards"),
    "scheduler.json": "features table.csv --features logmel --scheduler scheduler.json --store OUT/store --dry-run",
    "ids.json": NEW.format("new.npy") + " --ids ids.json",
    "ids.txt": NEW.format("new.npy") + " --ids ids.txt",
    "new.zarr/values/zarr.json": NEW.format("new.zarr"),
    "new.zarr/zarr.json": NEW.format("new.zarr"),
    "new.safetensors.json": NEW.format("new.safetensors"),
    **{f"new.{suffix}": NEW.format(f"new.{suffix}") for suffix in ("npy", "npz", "h5", "safetensors", "csv")},
}
SEALED = ("store/",)  # by checksums: a changed byte is refused or makes no difference


def make(folder: Path) -> None:
    """A corpus of noise, its features, a run, and one file of each kind that is read."""
    (folder / "audio").mkdir(parents=True)
    noise, labels = np.random.default_rng(0), ("ang", "hap", "neu", "sad")
    rows: list[dict[str, Any]] = []
    for n in range(12):
        sf.write(folder / "audio" / f"u{n}.wav", noise.normal(0, 0.1, 4000 + 100 * n), 16000)
        row = {"id": f"u{n}", "audio": f"audio/u{n}.wav", "text": f"well word {n}", "label": labels[n % 4]}
        row |= {"session": str(n // 4 + 1), "dialogue": f"d{n // 4}", "speaker": f"s{n // 4}{n % 2}", "turn": n % 4}
        rows.append({**row, "votes": [[labels[n % 4]], ["neu"]], "valence": n / 4})
    ids = [row["id"] for row in rows]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "table.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:3]), folder / "turns.parquet")
    rows = [{**row, "votes": json.dumps(row["votes"])} for row in rows]
    for name, columns in (("table", list(rows[0])), ("turns", ["audio", "text", "turn"]), ("texts", ["id", "text"])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows[:3] if name == "turns" else rows)
    cell = 'name = "a"\nfeatures = "logmel+bert"\nfusion = "lgf-add"\nset = { d_model = 8 }\npaper = { ua = 50.1 }'
    (folder / "recipe.toml").write_text(f'title = "t"\n[experiment]\nseeds = 1\n[[cell]]\n{cell}\nmodel = ["bert=x"]\n')
    (folder / "labels.toml").write_text('bad = ["ang", "sad"]\ngood = ["hap", "neu"]\n')
    (folder / "folds.csv").write_text("id,fold\n" + "".join(f"{id_},{n // 4}\n" for n, id_ in enumerate(ids)))
    parts = {"train": ids[:6], "dev": ids[6:8], "test": ids[8:]}
    (folder / "folds.json").write_text(json.dumps([{"name": "one", **parts}]))
    (folder / "emobox" / "fold_1").mkdir(parents=True)
    for part, word in (("train", "train"), ("dev", "valid"), ("test", "test")):
        lines = "".join(json.dumps({"key": id_}) + "\n" for id_ in parts[part])
        (folder / "emobox" / "fold_1" / f"{word}.jsonl").write_text(lines)
    (folder / "scheduler.json").write_text(json.dumps({"address": "tcp://10.0.0.1:8786", "workers": {}}))
    (folder / "ids.json").write_text(json.dumps(ids))
    (folder / "ids.txt").write_text("\n".join(ids) + "\n")
    values = noise.normal(size=(12, 4)).astype("f4")
    np.save(folder / "new.npy", values)
    np.savez(folder / "new.npz", values=values, offsets=np.arange(13), ids=np.array(ids))
    save_file({"values": values}, folder / "new.safetensors")
    (folder / "new.safetensors.json").write_text(json.dumps({"ids": ids}))
    np.savetxt(folder / "new.csv", values, delimiter=",", header="a,b,c,d", comments="")
    with h5py.File(folder / "new.h5", "w") as file:
        file["values"], file["offsets"] = values, np.arange(13)
    zarr.create_group(folder / "new.zarr", attributes={"ids": ids}).create_array("values", data=values)
    write_random_checkpoint(folder / "bert", "bert", words=["well", "word"])
    shutil.copytree(folder / "bert", folder / "shards")
    (folder / "shards" / "model.safetensors").rename(folder / "shards" / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"x": "model-00001-of-00001.safetensors"}}
    (folder / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
    with contextlib.chdir(folder):
        for command in (
            "features table.csv --store store --features logmel,bert --model bert=bert",
            "cache import mel new.npy --modality audio --store store --backend hdf5",
            f"train --store store --features logmel+bert --out runs {SMALL}",
        ):
            assert CliRunner().invoke(main, command.split()).exit_code == 0, command


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of `make`'s folder for this process, as the working folder."""
    made, own = once(tmp_path_factory, "fuzz", make), tmp_path_factory.mktemp("house") / "house"
    shutil.copytree(made, own)
    with contextlib.chdir(own):
        yield own


def outcome(command: str) -> tuple[int, str, bytes]:
    """Exit code, what was printed and what was exported; anything but an answer or one sentence fails."""
    with tempfile.TemporaryDirectory(dir=".") as out:
        words = command.replace("OUT", out).replace("RUN", str(next(Path("runs").iterdir()))).split()
        result = CliRunner().invoke(main, words)
        assert result.exit_code in (0, 1, 2, 3), result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        assert "Traceback" not in result.output and "unexpected error" not in result.output, result.output
        assert result.exit_code not in (1, 2) or result.output.strip(), words
        exported = Path(out, "file.safetensors")
        return result.exit_code, result.stdout.replace(out, "OUT"), exported.read_bytes() if exported.exists() else b""


ODD: list[Any] = [None, True, -1, 0, 1 << 70, 1e308, float("nan"), float("-inf"), "", "9" * 5000, "../../etc/passwd"]
ODD += ["\0", "\x1b[2J", "\ud800", "é", "=1+1", [], {}, [[]], {"a": {}}, ["x"], {"": None}, 3, 0.5, "3", "none"]


def changed(value: Any, random: Random) -> Any:
    """A copy with one node dropped, doubled, moved or put in place of another, or something odd."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.1:
        return random.choice(ODD)
    copy = value.copy()
    key, other = (random.choice(list(value) if isinstance(value, dict) else range(len(value))) for _ in "ab")
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


def flipped(content: bytes, random: Random) -> bytes:
    """A copy with bytes flipped, cut, doubled or put in."""
    start, stop = sorted(random.randrange(len(content) + 1) for _ in "ab")
    piece = content[start : min(stop, start + random.choice((1, 8, 1000)))]
    odd = random.choice((b"", b"\0", b"\xff\xfe", b"[" * 5000, b'"', b"\n", b"-1", b"1e999", bytes(9), piece * 2))
    if random.random() < 0.3 and piece:
        odd = bytes(byte ^ 1 << random.randrange(8) for byte in piece)
    return content[:start] if random.random() < 0.1 else content[:start] + odd + content[start + len(piece) :]


def toml(value: Any) -> str:
    """A value as inline TOML."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{json.dumps(key)} = {toml(one)}' for key, one in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return str(value) if isinstance(value, float) else json.dumps(value)


def written(write: Callable[[Any], Any]) -> bytes:
    write(sink := io.BytesIO())
    return sink.getvalue()


def hdf5(arrays: dict[str, Any]) -> bytes:
    def write(sink: io.BytesIO) -> None:
        with h5py.File(sink, "w") as file:
            for name, array in arrays.items():
                file[name] = np.array(array)

    return written(write)


def csv_text(rows: list[Any]) -> bytes:
    csv.writer(sink := io.StringIO()).writerows(rows)
    return sink.getvalue().encode()


def tensors(content: bytes) -> list[Any]:
    size = 8 + int.from_bytes(content[:8], "little")
    return [json.loads(content[8:size]), content[size:]]


def hdf5_arrays(content: bytes) -> dict[str, Any]:
    with h5py.File(io.BytesIO(content)) as file:
        return {name: dataset[()].tolist() for name, dataset in file.items()}


def parquet(columns: list[Any]) -> bytes:
    table = pa.table([pa.array(values) for _, values in columns], [name for name, _ in columns])
    marks = {"format_version": "1", "corpus": "table", "synthetic": "false"}
    return written(lambda sink: pq.write_table(table.replace_schema_metadata(marks), sink))


# By suffix: bytes to a value of dicts and lists, and back.
FORMS: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = {
    ".json": (json.loads, lambda value: json.dumps(value).encode()),
    ".jsonl": (
        lambda content: [json.loads(line) for line in content.splitlines()],
        lambda lines: "\n".join(map(json.dumps, lines)).encode(),
    ),
    ".toml": (
        lambda content: tomllib.loads(content.decode()),
        lambda table: "\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in table.items()).encode(),
    ),
    ".csv": (lambda content: list(csv.reader(content.decode().splitlines())), csv_text),
    ".parquet": (
        lambda content: [[*column] for column in pq.read_table(io.BytesIO(content)).to_pydict().items()],
        parquet,
    ),
    ".npy": (
        lambda content: np.load(io.BytesIO(content)).tolist(),
        lambda v: written(lambda s: np.save(s, np.array(v))),
    ),
    ".npz": (
        lambda content: {name: array.tolist() for name, array in np.load(io.BytesIO(content)).items()},
        lambda arrays: written(lambda s: np.savez(s, **{k: np.array(v) for k, v in arrays.items()})),
    ),
    ".h5": (hdf5_arrays, hdf5),
    ".safetensors": (
        tensors,
        lambda value: len(head := json.dumps(value[0]).encode()).to_bytes(8, "little") + head + value[1],
    ),
}


def sealed_again(content: bytes) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(content)
    record.pop("sha256")
    return record


@contextlib.contextmanager
def replaced(path: Path, content: bytes, renamed: bool) -> Iterator[None]:
    """The file with that content; a manifest under the name that vouches for it."""
    before, latest, lie = (
        path.read_bytes(),
        path.with_name("latest"),
        path.with_name(f"{hashlib.sha256(content).hexdigest()}.parquet"),
    )
    kept = latest.read_bytes() if renamed else b""
    try:
        if renamed:
            lie.write_bytes(content)
            latest.write_text(f"{lie.stem}\n")
        else:
            path.write_bytes(content)
        yield
    finally:
        if renamed:
            lie.unlink()
            latest.write_bytes(kept)
        path.write_bytes(before)


def attack(target: str, examples: int, seed: int | None = None) -> None:
    [path] = Path().glob(target)
    content, is_sealed = path.read_bytes(), target.startswith(SEALED)
    load, dump = FORMS.get(path.suffix, (None, None))
    if path.name in ("spec.json", "part.json"):
        load, dump = sealed_again, checksummed_json
    usual = [outcome(command) for command in TARGETS[target].split(";")] if is_sealed else []

    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=timedelta(seconds=30),
        derandomize=seed is None,
        suppress_health_check=list(hypothesis.HealthCheck),
        print_blob=False,
    )
    @hypothesis.given(st.randoms(use_true_random=False))
    def one(random: Random) -> None:
        by_structure = load is not None and random.random() < 0.7
        if by_structure:
            try:
                new = dump(changed(load(content), random))
            except Exception:  # no such file can be written
                hypothesis.reject()
        else:
            new = flipped(content, random)
        hypothesis.note(f"{target}: {new[:3000]!r}")
        with replaced(path, new, by_structure and "manifests" in target):
            found = [outcome(command) for command in TARGETS[target].split(";")]
        if is_sealed and not by_structure:
            for before, after in zip(usual, found, strict=True):
                assert after == before or after[0], f"{target}: another answer"

    (one if seed is None else hypothesis.seed(seed)(one))()


@pytest.mark.parametrize("target", TARGETS)
def test_a_changed_file(house: Path, target: str) -> None:
    attack(target, int(os.environ.get("SER_FUZZ_EXAMPLES", "6")))


@pytest.mark.slow
def test_an_hour_of_changed_files(house: Path) -> None:
    ends = time.monotonic() + float(os.environ.get("SER_FUZZ_SECONDS", "3400"))
    for seed, target in enumerate(itertools.cycle(TARGETS)):
        if time.monotonic() > ends:
            break
        attack(target, 50, seed)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 << 20, "more than 4 GiB"  # KiB


@pytest.mark.parametrize("kind", ["pipe", "zeros"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_special_file(house: Path, target: str, kind: str) -> None:
    [path] = Path().glob(target)
    path.rename("kept")
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")

    def late(*_: Any) -> None:
        raise AssertionError(f"{target}: waits for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    try:
        for command in TARGETS[target].split(";"):
            assert outcome(command)[0] in (1, 2, 3)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        path.unlink()
        Path("kept").rename(path)


def test_a_fault_that_nobody_foresaw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("x\ny")

    monkeypatch.setattr("ser.cache.maintain.list_features", broken)
    (tmp_path / "manifests").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    told = CliRunner().invoke(main, ["cache", "list", "--store", str(tmp_path)])
    [file] = tmp_path.glob("ser-error-*.txt")
    assert told.exit_code == 1 and told.stdout == "" and len(told.output.splitlines()) == 1
    assert "an unexpected error (KeyError" in told.output and str(file) in told.output
    assert "Traceback" in file.read_text() and "in broken" in file.read_text()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    told = CliRunner().invoke(main, ["cache", "list", "--store", str(tmp_path)])
    assert told.exit_code == 1 and "please report it with this traceback:\nTraceback" in told.output


def test_a_path_that_is_not_unicode(house: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    shutil.copytree("audio", f"{odd}/audio")
    shutil.copy("table.csv", odd)
    steps = [f"features {odd}/table.csv --store {odd}/store --features logmel,bert --model bert=bert"]
    steps += [f"train --store {odd}/store --features logmel+bert --out {odd}/runs {SMALL} --json"]
    steps += [f"cache info bert --store {odd}/store --json", f"report {odd}/runs --html {odd}/page.html"]
    for words in steps:
        code, printed, _ = outcome(words)
        assert code == 0 and ("--json" not in words or json.loads(printed)), printed


@pytest.mark.parametrize("suffix", ["h5", "npz", "safetensors", "zarr"])
def test_an_export_that_the_disk_has_no_room_for(house: Path, suffix: str) -> None:
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
    try:
        code, printed, _ = outcome(f"cache export logmel OUT/file.{suffix} --store store")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 1 and not printed
