"""Extraction against the plain way: openSMILE, librosa and Hugging Face as their own pages show
them.

Speech is EmoDB's where it lies beside the repository, else noise of IEMOCAP's lengths. HuBERT has
base's real size with random weights: the time is that of the real one.
"""

import os
import tempfile
import time
from collections.abc import Callable
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
SPOKEN = 8  # through the full-size model
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
    hubert = write_random_checkpoint(folder / "hubert", "hubert", **BASE)
    small = {
        name: str(write_random_checkpoint(folder / f"small-{name}", name, words=["hello"]))
        for name in ("hubert", "mpnet", "bert")
    }
    clips = [decode(path) for path in files]
    seconds = sum(clip.seconds for clip in clips)
    [is13], [logmel] = resolve(["is13"], {}, "float32")[0], resolve(["logmel"], {}, "float32")[0]
    rows = [
        compare(
            f"is13, {engines.cores()} threads: CPU of a plain loop over {seconds:.0f} s",
            lambda: [_smile(path) for path in files],
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
    ]
    spoken = sorted(files, key=lambda path: path.stat().st_size)[-2 * SPOKEN :: 2]
    rows += _hubert(folder, hubert, spoken, rounds)
    rows.append(_together(folder, corpus, small, rounds))
    return rows


def _corpus(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    real = sorted((SHARED / "data" / "emodb").rglob("*.wav"))[:: max(1, 339 // UTTERANCES)]
    (folder / "corpus").mkdir()
    for number in range(UTTERANCES):
        if len(real) >= UTTERANCES:
            samples, rate = sf.read(real[number])
        else:
            samples, rate = rng.normal(0, 0.1, int(16000 * rng.lognormal(1.25, 0.6))), 16000
        sf.write(folder / "corpus" / f"{number}.wav", samples, rate)
    lines = [f"u{number:03},{number}.wav,hello number {number}" for number in range(UTTERANCES)]
    (folder / "corpus" / "corpus.csv").write_text("\n".join(["id,audio,text", *lines]))
    return folder / "corpus" / "corpus.csv"


def _smile(path: Path) -> np.ndarray:
    """IS13 in the cheapest way that opensmile's page shows: no table of names is built."""
    import opensmile

    smile = _smile.__dict__.setdefault(
        "it", opensmile.Smile(opensmile.FeatureSet.IS13, opensmile.FeatureLevel.Functionals)
    )
    samples, rate = sf.read(path, dtype="float32")
    return np.asarray(smile(samples, rate))


def _smile_share(paths: list[Path]) -> int:
    for path in paths:
        _smile(path)
    return len(paths)


def _threads(wanted: ResolvedFeature, files: list[Path]) -> None:
    [one] = load_extractors([wanted], "cpu")
    with ThreadPoolExecutor(engines.cores()) as pool:
        list(pool.map(lambda path: one.run([decode(path)]), files))


def _one_by_one(wanted: ResolvedFeature, clips: list[Clip]) -> None:
    [one] = load_extractors([wanted], "cpu")
    for clip in clips:
        one.run([clip])


def _is13_against_processes(
    wanted: ResolvedFeature, files: list[Path], rounds: int
) -> dict[str, Any]:
    cores = engines.cores()
    shares = [files[number::cores] for number in range(cores)]
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        list(pool.map(_smile_share, [files[:2]] * cores))  # started and warm
        return compare(
            f"is13: wall clock of {cores} openSMILE processes, one per core",
            lambda: list(pool.map(_smile_share, shares)),
            lambda: _threads(wanted, files),
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


def _hubert(folder: Path, checkpoint: Path, files: list[Path], rounds: int) -> list[dict[str, Any]]:
    import torch
    import transformers

    torch.set_num_threads(engines.cores())
    table = folder / "corpus" / "spoken.csv"
    table.write_text("\n".join(["id,audio", *(f"{path.stem},{path.name}" for path in files)]))
    stores = iter(range(1000))

    def load() -> tuple[
        Any, Any
    ]:  # each way starts from files, as a script does; ours hashes the weights besides
        model = transformers.HubertModel.from_pretrained(checkpoint).eval()
        return model, transformers.AutoFeatureExtractor.from_pretrained(checkpoint)

    def plain(
        loaded: tuple[Any, Any] | None = None,
    ) -> None:  # the loop that people write: batch 1, one .npy each
        model, extractor = loaded or load()
        for path in files:
            samples, rate = sf.read(path, dtype="float32")
            values = extractor(samples, sampling_rate=rate, return_tensors="pt").input_values
            with torch.inference_mode():
                np.save(folder / f"{path.stem}.npy", model(values).last_hidden_state[0].numpy())

    def naive() -> None:  # batches of eight in the corpus' order: not even the same numbers
        model, extractor = load()
        for first in range(0, len(files), 8):
            samples = [sf.read(path, dtype="float32")[0] for path in files[first : first + 8]]
            batch = extractor(samples, sampling_rate=16000, padding=True, return_tensors="pt")
            with torch.inference_mode():
                hidden = model(**batch).last_hidden_state
            for path, rows in zip(files[first : first + 8], hidden, strict=True):
                np.save(folder / f"{path.stem}.npy", rows.numpy())

    def ours(feature: str = "hubert") -> Callable[[], None]:
        def run() -> None:
            models = {"hubert": str(checkpoint)}
            store = folder / f"store-{next(stores)}"
            extract(
                plan(ExtractionConfig(table, feature, store=store, models=models, dtype="float32"))
            )

        return run

    def opened() -> ExtractionRun:
        store = folder / f"store-{next(stores)}"
        run = ExtractionRun(
            plan(ExtractionConfig(table, "hubert", store=store, models=models, dtype="float32"))
        )
        run.worker.extractors("audio")
        return run

    models = {"hubert": str(checkpoint)}
    loaded, ready = load(), iter([opened() for _ in range(max(rounds, 1))])
    wall: dict[str, Any] = {"rounds": rounds, "clock": time.perf_counter, "unit": "s"}
    fast = _has_bfloat16()
    return [
        compare(
            "hubert base into a store, both with the model loaded: wall clock of a loop, batch 1, .npy each",
            lambda: plain(loaded),
            lambda: next(ready).extract(),
            0.95,
            **wall,
        ),
        compare(
            "hubert base into a store: wall clock of a loop, batch 1, .npy each",
            plain,
            ours(),
            0.95,
            **wall,
        ),
        compare(
            "hubert base into a store: wall clock of naive batches of 8",
            naive,
            ours(),
            None,
            **wall,
        ),
        compare(
            "hubert base, bfloat16"
            + ("" if fast else " (this CPU has none)")
            + ": CPU of ours in float32",
            ours(),
            ours("hubert:precision=bfloat16"),
            1.6 if fast else None,
            rounds,
        ),
    ]


def _together(folder: Path, corpus: Path, models: dict[str, str], rounds: int) -> dict[str, Any]:
    features = ("hubert", "mpnet", "bert", "is13", "logmel")
    stores = iter(range(1000))

    def run(names: str) -> None:
        mine = {name: path for name, path in models.items() if name in names}
        extract(
            plan(
                ExtractionConfig(
                    corpus, names, store=folder / f"together-{next(stores)}", models=mine
                )
            )
        )

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
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
