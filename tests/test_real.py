"""Real weights on real speech: exact, as good as faster-whisper, and no worse than scikit-learn.

    make test-real             one seed, about ten minutes on two cores
    make test-real FULL=1      three seeds

Whisper base's weights come from the Python index, EmoDB's recordings from ../shared/data, which
stays there; each test is skipped, with the reason, where its part is not reached.
"""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ser.cache.store import open_store
from ser.extract.audio import decode
from ser.extract.config import ExtractionConfig
from ser.extract.corpora.recogniser import Recogniser
from ser.extract.corpora.word_errors import word_errors
from ser.extract.resolve import load_extractors, resolve
from ser.extract.run import extract, plan
from ser.tests.conftest import ROOT
from ser.tests.real_weights import fetch_whisper, real_folder
from ser.train.experiment import run_experiment
from ser.train.options import Experiment
from ser.weights.convert import convert

pytestmark = pytest.mark.real

EMODB = ROOT.parent / "shared" / "data" / "emodb"
SEEDS = 3 if os.environ.get("SER_REAL_FULL") else 1
LABELS = {"W": "ang", "F": "hap", "N": "neu", "T": "sad"}

# What faster-whisper 1.2.1 hears in every 34th recording: `compute_type="float32"`,
# `beam_size=1`, `temperature=0`, `language="de"`, `without_timestamps=True`.
HEARD_BY_FASTER_WHISPER = {
    "03a01Fa": "Der Lappen liegt auf dem Eisschrank.",
    "03b09Wa": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "08b03Fe": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "09b03Fa": "An den Wochenenden bin ich jetzt immer nach Hause gefahren "
    "und habe ein eigenes Besuch.",
    "11a02Tc": "das will sie mitfach abgeben.",
    "12a02Nb": "das will sie am Mittwoch abgeben.",
    "13a07Na": "In sieben Stunden wird es so weit sein.",
    "14a05Fb": "Das schwarze Blattpapier befindet sich da oben neben dem Holzstück.",
    "15a02Wd": "Das will sie mit Woche abgeben.",
    "16a02Wb": "Das will sie am Mittwoch abgeben.",
}
# The texts of EmoDB, by the code in a file's name (Burkhardt et al., 2005, Table 1).
TEXTS = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}

# Features of one recipe for `ser train`, and the fusion that `ser features` names for them.
FEATURES = {
    "Whisper base, layer 6": ("whisper:layer=6,pool=mean", "audio"),
    "Whisper base, all layers": ("whisper:layers=all,pool=mean", "linear"),
    "egemaps": ("egemaps", "audio"),
    "is13": ("is13", "audio"),
}


@pytest.fixture(scope="session")
def emodb() -> Path:
    if not EMODB.is_dir():
        pytest.skip(f"{EMODB} is not here: real speech stays outside of the project")
    return EMODB


@pytest.fixture(scope="session")
def whisper() -> Path:
    """Whisper base as `ser weights convert` writes it."""
    folder = real_folder() / "whisper-base"
    if not folder.exists():
        convert(str(fetch_whisper()), folder)
    return folder


@pytest.fixture(scope="session")
def store(emodb: Path, whisper: Path) -> Path:
    """The features of all recordings, computed once."""
    names = dict.fromkeys(name for name, _ in FEATURES.values())
    config = ExtractionConfig(
        emodb,
        features=",".join(names),
        store=real_folder() / "features",
        models={"whisper": str(whisper)},
        workers=2,
        part_seconds=120.0,
    )
    extract(plan(config))
    return Path(config.store)


def recordings(emodb: Path, every: int) -> list[Path]:
    return sorted(emodb.glob("*.wav"))[::every]


def test_frames_are_those_of_transformers_in_batches_too(emodb: Path, whisper: Path) -> None:
    """Layers 0, 3 and 6 of eight recordings, one by one and in one batch of 240 s."""
    files = recordings(emodb, 43)
    layers = (0, 3, 6)
    names = [f"whisper:layer={layer}" for layer in layers]
    features, _ = resolve(names, {"whisper": str(whisper)}, "float32")
    clips = [decode(file) for file in files]

    [in_batches] = load_extractors(features, batch_seconds=240.0)
    [one_by_one] = load_extractors(features)
    batched = in_batches.run(clips)
    alone = one_by_one.run(clips)

    processor = transformers.WhisperFeatureExtractor.from_pretrained(whisper)
    model = transformers.WhisperModel.from_pretrained(whisper, dtype=torch.float32).encoder.eval()
    for number, clip in enumerate(clips):
        inputs = processor(clip.at(16000), sampling_rate=16000, return_tensors="pt")
        with torch.inference_mode():
            states = model(inputs.input_features, output_hidden_states=True).hidden_states

        frames = -(-len(clip.at(16000)) // 320)
        for layer, feature in zip(layers, features, strict=True):
            expected = states[layer][0, :frames].numpy()
            largest = np.abs(expected).max()
            for rows in (batched[number], alone[number]):
                values = rows[feature.spec.fingerprint].values
                assert np.abs(values - expected).max() <= 1e-5 * largest, (files[number], layer)


def test_ten_recordings_are_heard_as_transformers_and_faster_whisper_hear_them(
    emodb: Path, whisper: Path
) -> None:
    """faster-whisper pads the spectrogram with zeros, ser and transformers the speech with silence.

    Padded its way, transformers hears what faster-whisper heard, so that the padding is all there
    is between them.
    """
    files = recordings(emodb, 34)
    clips = [decode(file) for file in files]
    config = ExtractionConfig(emodb, models={"whisper": str(whisper)}, language="de", device="cpu")
    heard = Recogniser(config).transcribe(clips)

    processor = transformers.WhisperFeatureExtractor.from_pretrained(whisper)
    spectrograms = []
    padded_with_zeros = []
    for clip in clips:
        wave = clip.at(16000)
        spectrogram = processor(wave, sampling_rate=16000, return_tensors="pt").input_features
        spectrograms.append(spectrogram)
        padded = spectrogram.clone()
        padded[:, :, -(-len(wave) // 160) :] = 0
        padded_with_zeros.append(padded)

    assert heard == generated(whisper, torch.cat(spectrograms))
    of_faster_whisper = [HEARD_BY_FASTER_WHISPER[file.stem] for file in files]
    assert generated(whisper, torch.cat(padded_with_zeros)) == of_faster_whisper

    said = [TEXTS[file.stem[2:5]] for file in files]
    for name, texts in (("ser", heard), ("faster-whisper", of_faster_whisper)):
        errors = word_errors(zip(said, texts, strict=True))
        print(f"\n{name}: WER {100 * errors.rate:.1f} % ({errors.errors} of {errors.words} words)")


def generated(whisper: Path, spectrograms: torch.Tensor) -> list[str]:
    """What transformers hears in spectrograms [n, bands, frames], by greedy search."""
    model = transformers.WhisperForConditionalGeneration.from_pretrained(
        whisper, dtype=torch.float32
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(whisper)
    with torch.inference_mode():
        tokens = model.generate(spectrograms, language="de", task="transcribe", num_beams=1)
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [text.strip() for text in texts]


def logistic_regression(store: Path, features: str) -> float:
    """Ten lines of scikit-learn: pooled UA in percent of folds of one speaker each."""
    opened = open_store(store)
    ids = opened.manifest().ids
    columns = []
    for name in expanded(features):
        feature = opened.feature(name)
        columns.append(np.stack([feature[id_].squeeze() for id_ in ids]))
    x = np.concatenate(columns, 1).astype(np.float64)
    labels = np.array([LABELS[id_[5]] for id_ in ids])
    speakers = np.array([id_[:2] for id_ in ids])

    predicted = np.empty_like(labels)
    for speaker in np.unique(speakers):
        test = speakers == speaker
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=5000))
        predicted[test] = model.fit(x[~test], labels[~test]).predict(x[test])
    return 100 * float(balanced_accuracy_score(labels, predicted))


def expanded(features: str) -> list[str]:
    if "layers=all" not in features:
        return [features]
    return [features.replace("layers=all", f"layer={layer}") for layer in range(7)]


def pooled_ua(store: Path, features: str, fusion: str, out: Path) -> list[float]:
    """The pooled UA in percent of each seed of ser's defaults."""
    runs = run_experiment(
        Experiment(
            features=features,
            fusion=fusion,
            store=store,
            protocol="speaker-out",
            seeds=SEEDS,
            out=out,
        )
    )
    by_seed: dict[int, tuple[list[str], list[str]]] = {}
    for run in runs:
        table = run.predictions()
        truth, predicted = by_seed.setdefault(run.config.seed, ([], []))
        truth += table.column("truth").to_pylist()
        predicted += table.column("predicted").to_pylist()
    return [100 * float(balanced_accuracy_score(*both)) for both in by_seed.values()]


@pytest.mark.parametrize("row", FEATURES)
def test_the_defaults_are_within_a_point_of_logistic_regression(
    store: Path, tmp_path: Path, row: str
) -> None:
    """scikit-learn's trains on the dev part too."""
    features, fusion = FEATURES[row]
    ours = pooled_ua(store, features, fusion, tmp_path)
    theirs = logistic_regression(store, features)
    of_seeds = " ".join(f"{ua:.1f}" for ua in ours)
    print(f"\n{row}, {fusion}: ser {np.mean(ours):.1f} ({of_seeds}), scikit-learn {theirs:.1f}")

    assert np.mean(ours) >= theirs - 1.0


def test_file_names_are_emodbs(emodb: Path) -> None:
    """What the labels, speakers and texts above are read from."""
    for file in recordings(emodb, 1):
        assert re.fullmatch(r"\d\d[ab]\d\d[WFNT][a-z]", file.stem), file
        assert file.stem[2:5] in TEXTS
