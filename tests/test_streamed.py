"""Stores larger than memory train with the same bytes, within the budget, and fail alike."""

import os
import re
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ser.cache import blocks
from ser.cache.spec import Spec
from ser.cache.store import open_store
from ser.engines.machine import memory_budget
from ser.errors import CorruptStore, WrongUse
from ser.tests.command_line import in_a_process
from ser.tests.tiny_store import add_feature, make_manifest, make_rows, make_store, new_store
from ser.train import job_in_training
from ser.train.data.loading import load_dataset
from ser.train.data.memory import DataCache
from ser.train.data.streamed import Streamed
from ser.train.estimate import estimate
from ser.train.experiment import Experiment, prepare, run_experiment
from ser.train.fit import fit_standardizers
from ser.train.run_folder import LOG, STATE, Run, find_runs

MIT = ("d_model=8", "heads=2", "queries=2", "standardise_audio=true", "batch_size=4")
STREAMED: dict[str, Any] = {
    "features": "hubert+mpnet",
    "fusion": "mit",
    "memory": "0.015MB",
    "set": MIT,
}
STREAMED |= {"epochs": 4, "folds": 1, "resume": True}
CASES = {
    "mit": ("hubert+mpnet", "mit", "0.015MB", MIT, ""),
    "vectors": ("is13+bert", "lgf-add", "0.025MB", ("batch_size=2",), ""),
    "joined": ("hubert+is13+mpnet", "lgf-add", "0.035MB", ("batch_size=1",), ""),
    "hop": ("hubert:layer=0,hop=0.06+mpnet", "mit", "0.013MB", MIT, ""),
    "layers": ("hubert:layers=0-1", "audio", "0.04MB", ("d_model=8", "heads=2", *MIT[3:]), ""),
    "views": (
        "logmel",
        "cnn",
        "0.2MB",
        ("frames=48", "channels=2", "batch_size=4"),
        "logmel:view=pitch-1",
    ),
    "views of vectors": ("is13", "audio", "0.03MB", ("batch_size=1",), "is13:view=pitch-1"),
}


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny store with a hop, two layers and views."""
    manifest = make_manifest()
    store = make_store(tmp_path_factory.mktemp("rich") / "s")
    more = {"hop": 0.02, "checkpoint": {"digest": "d", "architecture": "hubert", "layers": 1}}

    for layer in (0, 1):
        config = {"layer": layer, "norm": "before"}
        rows = [values + np.float16(layer) for values in make_rows(manifest, "hubert")]
        add_feature(
            store, manifest, "hubert", rows, variant=f"layer={layer}", config=config, **more
        )

    for feature in ("logmel", "is13"):
        add_feature(
            store, manifest, feature, make_rows(manifest, feature, seed=5), variant="view=pitch-1"
        )

    return store.path


def weights(run: Run) -> bytes:
    """What the run has learnt, and what it predicts."""
    model = (run.path / "model.safetensors").read_bytes()
    return model + (run.path / "predictions.parquet").read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_the_same_bytes_as_in_memory(rich: Path, tmp_path: Path, case: str) -> None:
    features, fusion, memory, settings, views = CASES[case]
    plain = Experiment(
        features,
        fusion,
        store=rich,
        out=tmp_path / "a",
        epochs=2,
        folds=1,
        set=settings,
        views=views,
    )
    small = replace(plain, out=tmp_path / "b", memory=memory)
    for experiment, is_streamed in ((small, True), (plain, False)):
        inputs = prepare(experiment)[0].data.inputs
        assert any(rows.streamed for rows in inputs.values()) == is_streamed

    [run] = run_experiment(plain)
    [streamed] = run_experiment(small)
    assert run.path.name == streamed.path.name
    assert weights(run) == weights(streamed)


def test_an_estimate_names_what_is_streamed(rich: Path) -> None:
    features, fusion, memory, settings, _ = CASES["mit"]
    plain = Experiment(features, fusion, store=rich, epochs=2, folds=1, set=settings)
    assert estimate(prepare(replace(plain, memory=memory))).streamed == ("audio", "text")
    assert not estimate(prepare(plain)).streamed


# Of 65 columns the last would stand alone in pieces of 32 or 64.
@pytest.mark.parametrize("dim", [80, 65])
def test_statistics_are_the_same_in_small_pieces(tmp_path: Path, dim: int) -> None:
    manifest = make_manifest()
    store = new_store(tmp_path / "s", manifest)
    rng = np.random.default_rng(0)
    rows = [
        rng.normal(3, 2, (int(rng.integers(1, 60)), dim)).astype(np.float32)
        for _ in range(len(manifest))
    ]
    spec = Spec("logmel", "audio", "frame", dim, "float32", "made-up", 1)
    add_feature(store, manifest, spec, rows)
    found = []
    sums = []
    settings = ("standardise_audio=true",)

    for memory in ("1GB", "0.1MB"):
        [job, *_] = prepare(
            Experiment("logmel", "audio", store=store.path, memory=memory, set=settings)
        )
        found.append(fit_standardizers(job.data, job.fold, job.config.settings)["audio"])
        sums.append(job.data.inputs["audio"].moments(job.fold.train))

    wide = job.data.inputs["audio"].take(job.fold.train).values.double()
    assert found[0].mean.equal(found[1].mean)
    assert found[0].std.equal(found[1].std)

    for low, high, total, squares in sums:
        assert low.equal(wide.amin(0))
        assert high.equal(wide.amax(0))
        assert total.equal(wide.sum(0))
        assert squares.equal((wide * wide).sum(0))


def measured(store: str, *cases: str) -> None:
    """Print the peak memory of a run for each case of a width and a budget, each in a fork."""
    # As where there are many cores.
    blocks.MAX_THREADS = 8

    for dim, memory in (case.split() for case in cases):
        if not os.fork():
            asked: Any = {
                "store": store,
                "out": f"{store}-{dim}",
                "memory": memory,
                "epochs": 1,
                "folds": 1,
            }
            run_experiment(Experiment(f"hubert:dim={dim}+bert", "mit", set=MIT, **asked))
            print(dim, re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
            break

        assert not os.wait()[1]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's mark is read from /proc")
def test_the_budget_bounds_the_peak(tmp_path: Path) -> None:
    """On features four times the budget, against the same model on some of a thirty-second of the
    width.
    """
    manifest = make_manifest(32)
    rng = np.random.default_rng(0)
    budget = 16
    store = new_store(tmp_path / "s", manifest)
    add_feature(store, manifest, "bert", make_rows(manifest, "bert"))
    lengths = rng.integers(100, 300, len(manifest))

    for dim, backend in ((16, "zarr"), (512, "zarr"), (520, "hdf5")):
        spec = Spec("hubert", "audio", "frame", dim, "float16", "made-up", 1, variant=f"dim={dim}")
        for numbers in np.array_split(np.arange(len(manifest)), 4):
            rows = {
                i: rng.random((lengths[i], dim), np.float32).astype(np.float16) for i in numbers
            }
            feature = add_feature(store, manifest, spec, rows, numbers, backend=backend)

        assert dim == 16 or sum(part.bytes for part in feature.parts()) > 3.9e6 * budget

    cases = ["16 8GB", *(f"{dim} {budget}MB" for dim in (512, 520))]
    told = in_a_process(measured, store.path, *cases, OMP_NUM_THREADS="1")
    peaks = {
        int(dim): int(kilobytes) * 1024 / 1e6
        for dim, kilobytes in map(str.split, told.splitlines())
    }
    # Of the narrow features, in memory.
    held = 2 * lengths.sum() * 16 / 1e6
    # A batch in float32 is the model's input, and as much wider as its features are.
    batch = 4 * 4 * lengths.max() * 520 / 1e6

    assert max(peaks[512], peaks[520]) <= peaks[16] - held + batch + 1.1 * budget


def test_a_block_that_is_altered_meanwhile_is_told_and_the_run_goes_on_after_it(
    rich: Path, tmp_path: Path
) -> None:
    """The fault in the thread is the sentence of the reader; mended, the run ends with the same
    bytes.
    """
    store = make_store(tmp_path / "s").path
    small = Experiment(**STREAMED, store=store, out=tmp_path / "b")
    [whole] = run_experiment(replace(small, out=tmp_path / "a", memory=None))
    [part] = open_store(store).feature("hubert").parts()
    block = part.record.arrays["values"].blocks[-1]
    file = part.folder / block.file
    content = file.read_bytes()

    def alter(job: object, epoch: object) -> None:
        file.unlink()
        file.write_bytes(
            content[: block.offset]
            + bytes([content[block.offset] ^ 1])
            + content[block.offset + 1 :]
        )

    with pytest.raises(CorruptStore, match=re.escape(str(file)) + ".*altered"):
        run_experiment(small, alter)
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("ser reads ahead")
    ]
    file.write_bytes(content)
    [mended] = run_experiment(small)
    assert weights(mended) == weights(whole)


def stopped(store: str, out: str) -> None:
    """Runs that are killed, or interrupted, within the epoch after their first state, each in a
    fork.
    """
    job_in_training.STATE_SECONDS = 0.0
    window = Streamed.window
    check = blocks.check_block
    after = []

    def slow(*asked: Any) -> None:
        time.sleep(0.3)
        check(*asked)

    def stops(self: Streamed, utterances: Any) -> Any:
        after.extend(Path(out, how).glob("*/state.safetensors"))
        if len(after) == 6:
            if how == "SIGINT":
                blocks.check_block = slow
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
                [window(self, utterances) for _ in range(1000)]
            os.kill(os.getpid(), signal.SIGKILL)
        return window(self, utterances)

    Streamed.window = stops
    for how in ("SIGKILL", "SIGINT"):
        if not os.fork():
            try:
                run_experiment(Experiment(**STREAMED, store=store, out=f"{out}/{how}"))
            except KeyboardInterrupt:
                print(how, *[thread.name for thread in threading.enumerate()])
            break
        print(how, os.wait()[1], flush=True)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_run_that_is_stopped_while_it_reads_ends_at_once_and_goes_on_to_the_same_bytes(
    rich: Path, tmp_path: Path
) -> None:
    """In the middle of an epoch, with a window ahead that would take minutes to read."""
    [whole] = run_experiment(Experiment(**{**STREAMED, "memory": None}, store=rich, out=tmp_path))
    told = in_a_process(stopped, rich, tmp_path)
    assert told.splitlines() == ["SIGKILL 9", "SIGINT MainThread", "SIGINT 0"]

    for how in ("SIGKILL", "SIGINT"):
        [part] = find_runs(tmp_path / how)
        assert (part.path / STATE).exists()

        with pytest.raises(WrongUse, match=r"not finished.*--resume"):
            _ = part.result

        [resumed] = run_experiment(Experiment(**STREAMED, store=rich, out=tmp_path / how))
        assert weights(resumed) == weights(whole)
        assert len(resumed.result.history) == 4
        assert not (part.path / STATE).exists()
        assert {*re.findall(r"epoch (\d+)", (part.path / LOG).read_text())} == {*"1234"}


def test_a_budget_too_small_is_one_sentence_that_names_one_that_does(
    rich: Path, tmp_path: Path
) -> None:
    options = {**STREAMED, "memory": "0.001MB", "epochs": 1}
    experiment = Experiment(**options, store=rich, out=tmp_path)
    fault = r"too small for the largest batch.*--memory (\d+)MB is enough"
    with pytest.raises(WrongUse, match=fault) as caught:
        run_experiment(experiment)

    enough = re.search(r"--memory (\d+MB)", str(caught.value))
    assert enough
    assert run_experiment(replace(experiment, memory=enough[1]))


@pytest.mark.parametrize("text", ["8", "lots", "0GB", "-1GB", "8 KB"])
def test_what_is_no_size_is_no_budget(text: str) -> None:
    with pytest.raises(WrongUse, match=r"--memory .*such as 8GB"):
        memory_budget(text)


def test_a_budget_is_in_bytes() -> None:
    assert memory_budget("8GB") == 8_000_000_000
    assert memory_budget("1.5 mb") == 1_500_000


def test_workers_share_a_budget(rich: Path, tmp_path: Path) -> None:
    own = DataCache()
    shared = DataCache(tmp_path, workers=4)
    alone, _ = load_dataset(Experiment("logmel", "audio", rich, memory="0.1MB"), own)
    together, _ = load_dataset(Experiment("logmel", "audio", rich, memory="0.4MB"), shared)

    # Four map the same pages.
    assert alone.inputs["audio"].streamed
    assert not together.inputs["audio"].streamed

    more = Experiment("logmel", "audio", rich, memory="1GB", allow_missing=True)
    roomy, _ = load_dataset(more, own)
    assert not roomy.inputs["audio"].streamed, (
        "what another streams is not what this one has room for"
    )


def test_what_other_cells_hold_is_let_go(rich: Path) -> None:
    cache = DataCache()
    first, _ = load_dataset(Experiment("logmel:", "audio", rich, memory="0.55MB"), cache)
    second_name = "logmel:view=pitch-1"
    second, _ = load_dataset(Experiment(second_name, "audio", rich, memory="0.55MB"), cache)

    audio = first.inputs["audio"]
    assert first.inputs["audio"] is audio
    assert not second.inputs["audio"].streamed
    assert first.inputs["audio"] is not audio
