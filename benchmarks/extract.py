"""Extraction against openSMILE, librosa and Hugging Face as their own pages show them.

Speech is EmoDB's where it lies beside the repository, else noise of IEMOCAP's lengths. HuBERT has
base's real size with random weights: the time is that of the real one.
"""

import functools
import itertools
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from ser import engines
from ser.benchmarks.compare import compare
from ser.extract.audio import Clip, decode
from ser.extract.extractor import ResolvedFeature
from ser.extract.resolve import load_extractors, resolve
from ser.extract.run import ExtractionConfig, ExtractionRun, extract, plan
from ser.weights.demo import write_random_checkpoint

UTTERANCES = 48
# Through the full-size model.
SPOKEN = 8

# HuBERT base's sizes.
BASE: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "conv_dim": (512,) * 7,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
}
SHARED = Path(
    os.environ.get("SER_SHARED") or Path(__file__).resolve().parent.parent.parent / "shared"
)


def cases(rounds: int) -> list[dict[str, Any]]:
    """Every comparison of this part: what, plain, ours, ratio, target."""
    with tempfile.TemporaryDirectory(prefix="ser-bench-") as folder:
        return _cases(Path(folder), rounds)


def _cases(folder: Path, rounds: int) -> list[dict[str, Any]]:
    corpus = _corpus(folder)
    files = [corpus.parent / f"{number}.wav" for number in range(UTTERANCES)]
    clips = [decode(path) for path in files]
    seconds = sum(clip.seconds for clip in clips)

    hubert = write_random_checkpoint(folder / "hubert", "hubert", **BASE)
    small = {}
    for name in ("hubert", "mpnet", "bert"):
        checkpoint = write_random_checkpoint(folder / f"small-{name}", name, words=["hello"])
        small[name] = str(checkpoint)

    [is13] = resolve(["is13"], {}, "float32")[0]
    [logmel] = resolve(["logmel"], {}, "float32")[0]
    by_length = sorted(files, key=lambda path: path.stat().st_size)
    spoken = by_length[-2 * SPOKEN :: 2]

    return [
        compare(
            f"is13, {engines.cores()} threads: CPU of a plain loop over {seconds:.0f} s",
            lambda: _smile_files(files),
            lambda: _threads(is13, files),
            1 / 1.08,
            rounds,
        ),
        _is13_against_processes(is13, files, rounds),
        compare(
            "logmel: CPU of librosa",
            lambda: [_librosa(clip) for clip in clips],
            lambda: _one_by_one(logmel, clips),
            1.0,
            rounds,
        ),
        *_hubert(folder, hubert, spoken, rounds),
        _together(folder, corpus, small, rounds),
    ]


def _corpus(folder: Path) -> Path:
    """The table of a corpus of `UTTERANCES` files: EmoDB's speech, or noise."""
    speech = sorted((SHARED / "data" / "emodb").rglob("*.wav"))
    speech = speech[:: max(1, 339 // UTTERANCES)]
    rng = np.random.default_rng(0)
    (folder / "corpus").mkdir()
    lines = ["id,audio,text"]

    for number in range(UTTERANCES):
        if len(speech) >= UTTERANCES:
            samples, rate = sf.read(speech[number])
        else:
            rate = 16000
            samples = rng.normal(0, 0.1, int(rate * rng.lognormal(1.25, 0.6)))
        sf.write(folder / "corpus" / f"{number}.wav", samples, rate)
        lines.append(f"u{number:03},{number}.wav,hello number {number}")

    table = folder / "corpus" / "corpus.csv"
    table.write_text("\n".join(lines))
    return table


@functools.cache
def _opensmile() -> Any:
    """The extractor of IS13, built once in a process."""
    import opensmile

    return opensmile.Smile(opensmile.FeatureSet.IS13, opensmile.FeatureLevel.Functionals)


def _smile(path: Path) -> np.ndarray:
    """IS13 in the cheapest way that opensmile's page shows: no table of names is built."""
    smile = _opensmile()
    samples, rate = sf.read(path, dtype="float32")
    return np.asarray(smile(samples, rate))


def _smile_files(paths: list[Path]) -> int:
    for path in paths:
        _smile(path)
    return len(paths)


def _threads(feature: ResolvedFeature, files: list[Path]) -> None:
    [extractor] = load_extractors([feature], "cpu")
    with ThreadPoolExecutor(engines.cores()) as pool:
        list(pool.map(lambda path: extractor.run([decode(path)]), files))


def _one_by_one(feature: ResolvedFeature, clips: list[Clip]) -> None:
    [extractor] = load_extractors([feature], "cpu")
    for clip in clips:
        extractor.run([clip])


def _is13_against_processes(
    feature: ResolvedFeature, files: list[Path], rounds: int
) -> dict[str, Any]:
    cores = engines.cores()
    shares = [files[number::cores] for number in range(cores)]

    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        # All are started, and warm.
        list(pool.map(_smile_files, [files[:2]] * cores))

        return compare(
            f"is13: wall clock of {cores} openSMILE processes, one per core",
            lambda: list(pool.map(_smile_files, shares)),
            lambda: _threads(feature, files),
            0.95,
            rounds,
            time.perf_counter,
            "s",
        )


def _librosa(clip: Clip) -> np.ndarray:
    import librosa

    power = librosa.feature.melspectrogram(
        y=clip.samples, sr=16000, n_fft=400, hop_length=160, n_mels=80, pad_mode="constant"
    )
    return np.asarray(np.log(np.maximum(power, 1e-10)))


class _HuggingFace:
    """HuBERT as a script runs it: from files, into one .npy each in `folder`."""

    def __init__(self, checkpoint: Path, files: list[Path], folder: Path) -> None:
        self.checkpoint = checkpoint
        self.files = files
        self.folder = folder

    def load(self) -> tuple[Any, Any]:
        """The model and its feature extractor; ours hashes the weights besides."""
        import transformers

        model = transformers.HubertModel.from_pretrained(self.checkpoint).eval()
        extractor = transformers.AutoFeatureExtractor.from_pretrained(self.checkpoint)
        return model, extractor

    def loop(self, loaded: tuple[Any, Any] | None = None) -> None:
        """The loop that people write: batches of one."""
        import torch

        model, extractor = loaded or self.load()
        for path in self.files:
            samples, rate = sf.read(path, dtype="float32")
            values = extractor(samples, sampling_rate=rate, return_tensors="pt").input_values
            with torch.inference_mode():
                np.save(
                    self.folder / f"{path.stem}.npy", model(values).last_hidden_state[0].numpy()
                )

    def naive_batches(self) -> None:
        """Batches of eight in the corpus' order: not even the same numbers."""
        import torch

        model, extractor = self.load()
        for first in range(0, len(self.files), 8):
            files = self.files[first : first + 8]
            samples = [sf.read(path, dtype="float32")[0] for path in files]
            batch = extractor(samples, sampling_rate=16000, padding=True, return_tensors="pt")
            with torch.inference_mode():
                hidden = model(**batch).last_hidden_state

            for path, rows in zip(files, hidden, strict=True):
                np.save(self.folder / f"{path.stem}.npy", rows.numpy())


def _hubert(folder: Path, checkpoint: Path, files: list[Path], rounds: int) -> list[dict[str, Any]]:
    import torch

    torch.set_num_threads(engines.cores())
    theirs = _HuggingFace(checkpoint, files, folder)
    table = folder / "corpus" / "spoken.csv"
    lines = [f"{path.stem},{path.name}" for path in files]
    table.write_text("\n".join(["id,audio", *lines]))
    store_numbers = itertools.count()

    def config(feature: str) -> ExtractionConfig:
        return ExtractionConfig(
            table,
            feature,
            store=folder / f"store-{next(store_numbers)}",
            models={"hubert": str(checkpoint)},
            dtype="float32",
        )

    def ours() -> None:
        extract(plan(config("hubert")))

    def ours_in_bfloat16() -> None:
        extract(plan(config("hubert:precision=bfloat16")))

    # One for each round, with its model loaded.
    runs = []
    for _ in range(max(rounds, 1)):
        run = ExtractionRun(plan(config("hubert")))
        run.worker.extractors("audio")
        runs.append(run)
    loaded_runs = iter(runs)
    loaded = theirs.load()

    has_bfloat16 = _has_bfloat16()
    lacks = "" if has_bfloat16 else " (this CPU has none)"
    store = "hubert base into a store"
    wall: dict[str, Any] = {"rounds": rounds, "clock": time.perf_counter, "unit": "s"}
    return [
        compare(
            f"{store}, both with the model loaded: wall clock of a loop, batch 1, .npy each",
            lambda: theirs.loop(loaded),
            lambda: next(loaded_runs).extract(),
            0.95,
            **wall,
        ),
        compare(
            f"{store}: wall clock of a loop, batch 1, .npy each",
            theirs.loop,
            ours,
            0.95,
            **wall,
        ),
        compare(
            f"{store}: wall clock of naive batches of 8",
            theirs.naive_batches,
            ours,
            None,
            **wall,
        ),
        compare(
            f"hubert base, bfloat16{lacks}: CPU of ours in float32",
            ours,
            ours_in_bfloat16,
            1.6 if has_bfloat16 else None,
            rounds,
        ),
    ]


def _together(folder: Path, corpus: Path, models: dict[str, str], rounds: int) -> dict[str, Any]:
    features = ("hubert", "mpnet", "bert", "is13", "logmel")
    store_numbers = itertools.count()

    def run(names: str) -> None:
        config = ExtractionConfig(
            corpus,
            names,
            store=folder / f"together-{next(store_numbers)}",
            models={name: path for name, path in models.items() if name in names},
        )
        extract(plan(config))

    def one_after_the_other() -> None:
        for name in features:
            run(name)

    return compare(
        "five features together (small models): CPU of one after the other",
        one_after_the_other,
        lambda: run(",".join(features)),
        1 / 1.1,
        rounds,
    )


def _has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
