"""A recogniser's transcripts: those of transformers called directly, kept when the run is killed,
and trained on with the audio features of the corpus that they are of.
"""

import json
import re
import shutil
import signal
import string
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
import transformers
from click.testing import Result

from ser.cache.store import Store, open_store
from ser.cache.tools.remove import remove_superseded
from ser.cache.transcripts import put_transcripts
from ser.errors import ExtractionStopped, MissingRows, StoreError, WeightsError, WrongUse
from ser.extract.audio import decode
from ser.extract.config import ExtractionConfig
from ser.extract.corpora.recogniser import Recogniser
from ser.extract.corpora.runaway import has_run_away
from ser.extract.corpora.transcribe import Transcription
from ser.extract.corpora.word_errors import word_errors
from ser.tests.command_line import printed, ser
from ser.tests.named_commands import commands_in

# It registers an extractor too.
from ser.tests.stand_in_corpus import write_corpus

# Utterances.
COUNT = 8
SPECIAL = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|de|>",
    "<|transcribe|>",
    "<|notimestamps|>",
)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint that says several letters of every utterance, and knows two languages."""
    folder = tmp_path_factory.mktemp("whisper") / "whisper-random"
    letters = [*string.ascii_lowercase, "Ġ"]
    vocabulary = {token: number for number, token in enumerate([*letters, *SPECIAL])}
    end, start, en, de, transcribe, plain = (vocabulary[token] for token in SPECIAL)
    sizes = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
    }
    sizes |= {
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "max_target_positions": 24,
    }
    ids = {
        "pad_token_id": end,
        "bos_token_id": end,
        "eos_token_id": end,
        "decoder_start_token_id": start,
    }
    config = transformers.WhisperConfig(vocab_size=len(vocabulary), init_std=0.5, **sizes, **ids)
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(config)
    generation = {
        "max_length": 12,
        "is_multilingual": True,
        "lang_to_id": {"<|en|>": en, "<|de|>": de},
    }
    generation |= {"task_to_id": {"transcribe": transcribe}, "no_timestamps_token_id": plain, **ids}
    model.generation_config = transformers.GenerationConfig(**generation)
    model.save_pretrained(folder)
    tokenizer = transformers.WhisperTokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})
    transformers.WhisperProcessor(
        transformers.WhisperFeatureExtractor(), tokenizer
    ).save_pretrained(folder)

    return folder


def directly(folder: Path, path: Path, **options: Any) -> str:
    """One file's transcript, as the documentation of transformers shows it."""
    options = {"language": "en", **options}
    processor = transformers.WhisperProcessor.from_pretrained(folder)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    inputs = processor(decode(path).at(16000), sampling_rate=16000, return_tensors="pt")
    tokens = model.generate(**inputs, **options, task="transcribe")

    return processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Noises of one or two seconds, at last one of 31 s, and manual transcripts."""
    seconds = [1 + number % 2 for number in range(COUNT - 1)]
    return write_corpus(tmp_path, [f"so it is {number}" for number in range(COUNT)], [*seconds, 31])


# Of a transcriber with these options, what fits nowhere.
MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown language": ({"language": "xx"}, "--language xx: whisper-random knows de, en"),
    "transcripts that are there": ({"text": Path("corpus.csv")}, "give one"),
    "the corpus itself": ({"corpus_name": "corpus"}, "is the corpus itself"),
    "a name of no corpus": ({"corpus_name": "a+b"}, "cannot be called"),
}


def features(table: Path, whisper: Path, store: Path, *options: object) -> Result:
    """`ser features` with transcripts by this checkpoint."""
    words = ["features", table, "--transcribe", "whisper", "--model", f"whisper={whisper}"]
    return ser(*words, "--store", store, *options)


def test_segments_have_transcripts_of_their_own(whisper: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = (rng.normal(0, 1, 3 * 44100) * np.linspace(500, 5000, 3 * 44100)).astype(np.int16)
    sf.write(tmp_path / "long.wav", samples, 44100)
    spans = [(1.0, 2.5), (0.0, 1.0), (2.5, 3.0)]
    rows = [f"u{number},long.wav,{start},{end}" for number, (start, end) in enumerate(spans)]
    (tmp_path / "t.csv").write_text("\n".join(["id,file,start,end", *rows]))
    store = tmp_path / "s"
    done = features(tmp_path / "t.csv", whisper, store, "--language", "en", "--features", "logmel")
    assert done.exit_code == 0, done.output

    manifest = open_store(store).manifest("t-asr")
    texts = manifest.column("text")
    for text, (start, end) in zip(texts, spans, strict=True):
        part = samples[round(start * 44100) : round(end * 44100)]
        sf.write(tmp_path / "part.wav", part, 44100)
        assert text == directly(whisper, tmp_path / "part.wav")
    assert len(set(texts)) > 1
    assert manifest.is_segmented


def test_transcripts_are_those_of_transformers(whisper: Path, table: Path, tmp_path: Path) -> None:
    sf.write(tmp_path / "0.wav", np.zeros(16000), 16000)
    store = tmp_path / "s"
    english = ["--json", "--language", "en"]

    planned = json.loads(features(table, whisper, store, *english, "--dry-run").stdout)
    assert planned["transcripts"]["missing"] == COUNT
    assert 0 < planned["transcripts"]["seconds"] < 600

    done = features(table, whisper, store, *english, "--batch-seconds", 120)
    assert done.exit_code == 0, done.output
    manifest = open_store(store).manifest()
    texts = dict(zip(manifest.ids, manifest.column("text"), strict=True))
    expected = {}
    for number in range(COUNT - 1):
        expected[f"u{number:03d}"] = directly(whisper, tmp_path / f"{number}.wav")
    assert {id_: texts[id_] for id_ in expected} == expected
    assert len(set(expected.values())) > 3

    # The last one is longer than Whisper's window of 30 s.
    samples = decode(tmp_path / f"{COUNT - 1}.wav").samples
    windows = []
    for window in (samples[:480_000], samples[480_000:]):
        sf.write(tmp_path / "window.wav", window, 16000, subtype="FLOAT")
        windows.append(directly(whisper, tmp_path / "window.wav"))
    assert texts[f"u{COUNT - 1:03d}"] == " ".join(windows)

    # What is printed stands in the manifest.
    record = manifest.parent.transcripts
    assert json.loads(done.stdout) == {"transcripts": record}
    assert record["words"] == 4 * COUNT
    assert record["wer"] >= 1
    assert f"{COUNT} of {COUNT} utterances transcribed now" in done.stderr
    assert "word error rate" in done.stderr
    assert record["runaway"] == 0

    # No transcript is made twice, and another language makes others.
    again = features(table, whisper, store, *english)
    assert f"0 of {COUNT} utterances transcribed now" in again.stderr
    other = features(table, whisper, store, "--json")
    assert f"{COUNT} of {COUNT} utterances transcribed now" in other.stderr

    # The task is said where the language is not, and no file of the checkpoint says it.
    manifest = open_store(store).manifest()
    texts = dict(zip(manifest.ids, manifest.column("text"), strict=True))
    for number in (0, 1):
        path = tmp_path / f"{number}.wav"
        assert texts[f"u{number:03d}"] == directly(whisper, path, language=None)


# A transcript, the seconds of its audio, and whether nobody can have said it.
SAID = {
    "a sentence": ("The cloth is lying on the fridge.", 2.0, False),
    "nothing": ("", 1.0, False),
    "a word that is repeated": ("so " * 100, 30.0, True),
    "a word that is repeated in the second window": (
        "ab cd ef gh ij kl mn" + " so" * 100,
        45.0,
        True,
    ),
    "as many letters as an hour has": (string.ascii_letters * 2, 2.0, True),
    "a short word of a short noise": ("Thank you for watching!", 0.2, False),
    "verses with a refrain": ("we all live on a farm, and it is green; " * 3, 12.0, False),
}


@pytest.mark.parametrize("kind", SAID)
def test_a_transcript_that_nobody_can_have_said_is_known(kind: str) -> None:
    text, seconds, expected = SAID[kind]
    assert has_run_away(text, seconds, window_seconds=30.0) is expected


@pytest.mark.parametrize("ends", ["at temperature 0.4", "never"])
def test_a_text_that_runs_away_is_heard_again_and_named(
    whisper: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """Sampling at one temperature after the other, with the same random numbers each time."""
    temperatures: list[float] = []
    draws: list[float] = []
    looping = "so " * 100

    def hear(recogniser: Recogniser, windows: list[Any], **sampling: Any) -> list[str]:
        if not sampling:
            return [looping if len(window) < 20_000 else "a word" for window in windows]
        temperatures.append(sampling["temperature"])
        draws.append(float(torch.rand(1)))
        stops = ends != "never" and sampling["temperature"] == 0.4
        return ["so it is" if stops else looping]

    monkeypatch.setattr(Recogniser, "_hear", hear)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    done = features(table, whisper, tmp_path / "s", "--json")
    assert torch.equal(torch.get_rng_state(), before)

    # Those of one second, which are every second one, and the last window of the last.
    short = [f"u{number:03d}" for number in range(0, COUNT - 1, 2)]
    manifest = open_store(tmp_path / "s").manifest()
    texts = dict(zip(manifest.ids, manifest.column("text"), strict=True))
    tried = [0.2, 0.4] if ends != "never" else [0.2, 0.4, 0.6, 0.8, 1.0]
    assert temperatures == tried * (len(short) + 1)
    assert len(set(draws)) == len(tried)
    assert texts["u001"] == "a word"
    if ends != "never":
        assert {texts[id_] for id_ in short} == {"so it is"}
        assert "cannot be what was said" not in done.stderr
        return
    assert "warning: 5 transcripts cannot be what was said" in done.stderr
    assert "(u000, u002, u004, …)" in done.stderr
    assert re.search(r"warning: the word error rate is 1\d{3} %: more words are wrong", done.stderr)
    assert json.loads(done.stdout)["transcripts"]["runaway"] == len(short) + 1


@pytest.mark.parametrize("kind", MISFITS)
def test_options_that_do_not_fit_are_refused_before_anything_is_computed(
    whisper: Path, table: Path, tmp_path: Path, kind: str
) -> None:
    options, fault = MISFITS[kind]
    if "text" in options:
        options = {"text": table}
    models = {"whisper": str(whisper)}

    with pytest.raises(WrongUse, match=fault):
        Transcription(ExtractionConfig(table, store=tmp_path / "s", models=models, **options))

    assert not list(tmp_path.glob("s/transcripts/*")), "none is asked for after the work"


def test_a_checkpoint_that_cannot_transcribe_is_refused(
    whisper: Path, table: Path, tmp_path: Path
) -> None:
    other = tmp_path / "no"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "hubert"}')
    (other / "model.safetensors").write_bytes((whisper / "model.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="no is not a Whisper model"):
        Transcription(ExtractionConfig(table, models={"whisper": str(other)}))

    # No word without its tokenizer.
    half = tmp_path / "half"
    shutil.copytree(whisper, half, ignore=shutil.ignore_patterns("tokenizer.json"))
    config = ExtractionConfig(table, store=tmp_path / "s", models={"whisper": str(half)})
    with pytest.raises(WeightsError, match="half: its tokenizer cannot be loaded: it has 6 tokens"):
        Transcription(config).run()


def test_what_cannot_be_transcribed_is_named(whisper: Path, table: Path, tmp_path: Path) -> None:
    store = tmp_path / "s"
    (tmp_path / "3.wav").write_bytes(b"RIFF")
    config = ExtractionConfig(table, store=store, models={"whisper": str(whisper)})
    fault = r"1 problem with the corpus for whisper: u003 \(3\.wav\)"
    with pytest.raises(ExtractionStopped, match=fault):
        Transcription(config)

    # An utterance that it hears nothing in is kept, and counted.
    skipping = replace(config, on_error="skip")
    job = Transcription(skipping)
    put_transcripts(store, job.made_by, {job.utterances[5].digest: ""})
    done = features(table, whisper, store, "--on-error", "skip", "--features", "standin")
    assert done.exit_code == 3
    assert "u003: not transcribed: " in done.output
    assert ", 1 have no word" in done.output
    assert "quarantined in standin: u003: not transcribed" in done.output
    texts = open_store(store).manifest().column("text")
    assert texts[3] is None
    assert texts[5] == ""
    assert len(texts) == COUNT

    # The same file twice, whose header is right.
    for number in (0, 1):
        sf.write(tmp_path / f"{number}.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    of_nan = []
    for problem in Transcription(skipping).run().problems:
        if "not transcribed: holds NaN" in problem.reason:
            of_nan.append(problem.id)
    assert of_nan == ["u000", "u001"]


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four noises of a second and manual transcripts, in the working folder."""
    monkeypatch.chdir(tmp_path)
    return write_corpus(tmp_path, [f"so it is {number}" for number in range(4)], [1] * 4)


def test_damaged_transcripts_are_made_again_as_printed(whisper: Path, short: Path) -> None:
    assert features(short, whisper, Path("features"), "--features", "standin").exit_code == 0
    [transcripts] = Path("features", "transcripts").glob("*.json")
    transcripts.write_bytes(transcripts.read_bytes()[:-9])
    refused = ser("cache", "verify")
    assert "remove it" in refused.output

    transcripts.unlink()
    [command] = commands_in(refused)
    words = [short if word == "CORPUS" else word for word in command]
    done = ser(*words, "--features", "standin", "--model", f"whisper={whisper}")
    assert done.exit_code == 0, done.output
    assert ser("cache", "verify").exit_code == 0


def test_a_transcribed_corpus_is_made_again_as_named(whisper: Path, short: Path) -> None:
    """What made it only its user knows: no other words may take their place."""
    store = Path("features")
    for options in (["--features", "standin", "--limit", 2], ["--features", "logmel"]):
        assert features(short, whisper, store, *options).exit_code == 0
    opened = open_store(store)
    with pytest.raises(
        MissingRows, match="run the `ser features` command that made corpus corpus-asr again"
    ):
        opened["standin"].load(opened.manifest("corpus-asr"))

    assert features(short, whisper, store, "--features", "standin").exit_code == 0
    assert len(open_store(store)["standin"].load(opened.manifest("corpus-asr"))) == 4


@pytest.mark.parametrize(
    ("reference", "heard", "errors", "words"),
    [
        ("It's [LAUGHTER] so, it\u2019s SO!", "it's so its so", 1, 4),
        ("'Hello,' they said, 'n' \u2018go\u2019 the dogs'", "hello they said n go the dogs", 0, 7),
        ("one two three", "", 3, 3),
        ("one two three", "zero one three four", 3, 3),
        ("...", "something", 0, 0),
        # Vowel signs are combining marks, and part of the word.
        ("हिन्दी में", "हिन्दी में", 0, 2),
    ],
)
def test_word_errors(reference: str, heard: str, errors: int, words: int) -> None:
    compared = word_errors([(reference, heard)])
    assert (compared.errors, compared.words) == (errors, words)


# `ser`, which stops at its third transcript to be killed there.
STOPS = """
import sys, time
from ser.cli import main
from ser.extract.corpora import transcribe
put, pauses = transcribe.put_transcripts, iter([0, 0, 600])
def put_and_pause(*asked):
    put(*asked)
    time.sleep(next(pauses))
transcribe.put_transcripts = put_and_pause
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_transcription_goes_on(whisper: Path, table: Path, tmp_path: Path) -> None:
    words = ["features", table, "--transcribe", "whisper", "--model", f"whisper={whisper}"]
    words += ["--part-seconds", 1]
    store = ["--store", tmp_path / "s"]
    process = subprocess.Popen([sys.executable, "-c", STOPS, *map(str, [*words, *store])])
    kept = tmp_path / "s" / "transcripts"
    while len(list(kept.glob("*.json"))) < 3 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    files = {path: path.stat().st_ino for path in kept.glob("*.json")}
    assert 3 <= len(files) < COUNT
    altered = min(files)
    altered.write_bytes(altered.read_bytes().replace(b":", b";", 1))
    assert f"{altered}: altered or cut short" in ser("cache", "verify", *store).stderr

    done = ser(*words, *store)
    assert f"{COUNT - len(files) + 1} of {COUNT} utterances transcribed now" in done.output
    for path, inode in files.items():
        if path != altered:
            assert path.stat().st_ino == inode

    # As if it had not been killed.
    assert ser(*words, "--store", tmp_path / "whole").exit_code == 0
    mended = open_store(tmp_path / "s").manifest("corpus-asr")
    whole = open_store(tmp_path / "whole").manifest("corpus-asr")
    assert mended.same(whole)
    assert ser("cache", "verify", *store).exit_code == 0


def rows_of(store: Store, name: str) -> Counter[str]:
    """How many rows of a feature are kept for each corpus."""
    return Counter(part.record.corpus for part in store[name].parts() for _ in part.keys)


def test_the_parents_audio_trains_with_the_recognisers_words(
    demo_store: Path, whisper: Path, tmp_path: Path
) -> None:
    corpus = demo_store.parent / "corpus"
    path = shutil.copytree(demo_store, tmp_path / "s")
    models = f"whisper={whisper}", f"bert={demo_store.parent}/checkpoints/bert-random"
    asked = ["--store", path, "--model", models[0], "--model", models[1]]
    job = Transcription(ExtractionConfig(corpus, store=path, models={"whisper": str(whisper)}))
    # As made before.
    words = {utterance.digest: "so it was" for utterance in job.utterances[8:]}
    put_transcripts(path, job.made_by, words)

    done = printed(
        "features", corpus, "--transcribe", "whisper", "--features", "is13,bert", *asked, "--json"
    )
    found = json.loads(done)
    store = open_store(path)
    parent = store.manifest("demo")
    child = store.manifest("demo-asr")
    n = len(parent)
    assert found["is13"]["computed"] == 0
    assert found["is13"]["reused"] == n
    assert found["bert"]["computed"] == n
    assert rows_of(store, "is13") == {"demo": n}
    assert (child.parent.corpus, child.parent.digest) == ("demo", parent.digest)
    words = [
        "sweep",
        "perspective-table1",
        "--corpus",
        "demo-asr",
        "--store",
        path,
        "--out",
        tmp_path / "runs",
    ]
    audio, text, *_ = json.loads(
        printed(*words, "--seeds", 1, "--epochs", 1, "--workers", 1, "--json")
    )["rows"]
    assert len(audio["folders"]) == len(text["folders"]) == 1
    assert "transcripts" in text["differs"]
    assert "transcripts" not in audio["differs"]
    listed = json.loads(printed("cache", "list", "--store", path, "--json"))
    lines = {(line["feature"], line["corpus"]): line for line in listed}
    shown = lines["is13", "demo-asr"]
    assert shown["rows"] == n
    assert shown["lent"] == n
    assert shown["superseded"] == 0
    assert shown["bytes"] == 0
    assert shown["complete"] is True

    # The child's rows are no one's to remove while it asks for them, and a parent without them
    # makes it incomplete.
    store.put_manifest(replace(parent, table=parent.table.slice(1)), replace=True)
    assert not list(remove_superseded(store, [store["is13"].path]))
    assert (
        ser(
            "cache", "export", "is13", tmp_path / "asr.npz", "--corpus", "demo-asr", "--store", path
        ).exit_code
        == 0
    )
    assert ser("cache", "remove", "is13", "--yes", "--store", path).exit_code == 0
    done = ser(
        "train",
        "--store",
        path,
        "--corpus",
        "demo-asr",
        "--features",
        "is13",
        "--fusion",
        "audio:utterance",
    )
    assert done.exit_code != 0
    assert "is13" in done.output


def test_other_transcripts_share_audio_in_both_orders(
    table: Path, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "asr.csv").write_text(
        "\n".join(["id,text", *(f"u{number:03d},so it was" for number in range(COUNT))])
    )
    other = ["--text", tmp_path / "asr.csv", "--corpus-name", "heard", "--features", "logmel"]
    own = ["--corpus-name", "mine", "--features", "logmel"]

    for name, orders in (("after", (own, other)), ("before", ([*other[:5], "mfcc"], own, other))):
        for options in orders:
            store = open_store(tmp_path / name, create=True)
            assert ser("features", table, "--store", store.path, *options).exit_code == 0

        heard = store.manifest("heard")
        assert heard.parent.corpus == "mine"
        assert heard.parent.digest == store.manifest("mine").digest
        assert rows_of(store, "logmel") == {"mine": COUNT}
        assert store["logmel"].complete(heard)

        copied = [
            "cache",
            "export",
            "logmel",
            tmp_path / f"{name} copied",
            "--backend",
            "hdf5",
            "--corpus",
            "heard",
        ]
        assert ser(*copied, "--store", store.path).exit_code == 0
        assert open_store(copied[3])["logmel"].complete(open_store(copied[3]).manifest("heard"))

    # An older ser refuses the child alone; what has no parent is written as it always was.
    monkeypatch.setattr("ser.corpus.manifest.WITH_PARENT", 1)
    assert store.manifest("mine").column("text")[0] == "so it is 0"

    with pytest.raises(
        StoreError, match=r"has format version 2, newer than this ser's 1; update ser"
    ):
        store.manifest("heard")
