"""A recogniser's transcripts: those of transformers called directly, kept when the run is killed,
and trained on with the audio features of the corpus that they are of.
"""

import json
import shutil
import signal
import string
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
import transformers

from ser.cache.store import Store, open_store
from ser.cache.tools.remove import remove_superseded
from ser.cache.transcripts import put_transcripts
from ser.errors import ExtractionStopped, StoreError, WeightsError, WrongUse
from ser.extract.audio import decode
from ser.extract.config import ExtractionConfig
from ser.extract.corpora.transcribe import Transcription
from ser.extract.corpora.word_errors import word_errors
from ser.tests.command_line import printed, ser
from ser.tests.stand_in_corpus import write_corpus  # and registers an extractor

COUNT = 8  # utterances
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


def directly(folder: Path, path: Path) -> str:
    """One file's transcript, as the documentation of transformers shows it."""
    processor = transformers.WhisperProcessor.from_pretrained(folder)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    inputs = processor(decode(path).at(16000), sampling_rate=16000, return_tensors="pt")
    tokens = model.generate(**inputs, language="en", task="transcribe")
    return processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Noises of one or two seconds, at last one of 31 s, and manual transcripts."""
    seconds = [1 + number % 2 for number in range(COUNT - 1)]
    return write_corpus(tmp_path, [f"so it is {number}" for number in range(COUNT)], [*seconds, 31])


def test_transcripts_are_those_of_transformers(whisper: Path, table: Path, tmp_path: Path) -> None:
    sf.write(tmp_path / "0.wav", np.zeros(16000), 16000)
    asked = [
        table,
        "--transcribe",
        "whisper",
        "--model",
        f"whisper={whisper}",
        "--store",
        tmp_path / "s",
        "--json",
    ]
    missing = json.loads(ser("features", *asked, "--language", "en", "--dry-run").stdout)[
        "transcripts"
    ]["missing"]
    done = ser("features", *asked, "--language", "en", "--batch-seconds", 120)
    assert missing == COUNT and done.exit_code == 0, done.output
    manifest = open_store(tmp_path / "s").manifest()
    texts = dict(zip(manifest.ids, manifest.column("text"), strict=True))
    expected = {
        f"u{number:03d}": directly(whisper, tmp_path / f"{number}.wav")
        for number in range(COUNT - 1)
    }
    assert {id_: texts[id_] for id_ in expected} == expected and len(set(expected.values())) > 3
    samples, both = decode(tmp_path / f"{COUNT - 1}.wav").samples, []
    for window in (samples[:480_000], samples[480_000:]):
        sf.write(tmp_path / "window.wav", window, 16000, subtype="FLOAT")
        both.append(directly(whisper, tmp_path / "window.wav"))
    assert texts[f"u{COUNT - 1:03d}"] == " ".join(both)
    # What is printed stands in the manifest; no transcript is made twice, and another language
    # makes others.
    about = manifest.parent.transcripts
    assert (
        json.loads(done.stdout) == {"transcripts": about}
        and about["words"] == 4 * COUNT
        and about["wer"] >= 1
    )
    assert (
        f"{COUNT} of {COUNT} utterances transcribed now" in done.stderr
        and "word error rate" in done.stderr
    )
    assert (
        f"0 of {COUNT} utterances transcribed now"
        in ser("features", *asked, "--language", "en").stderr
    )
    assert f"{COUNT} of {COUNT} utterances transcribed now" in ser("features", *asked).stderr


def test_what_cannot_be_transcribed_is_named(whisper: Path, table: Path, tmp_path: Path) -> None:
    models = {"whisper": str(whisper)}
    for options, message in (
        ({"language": "xx"}, "--language xx: whisper-random knows de, en"),
        ({"text": table}, "give one"),
        ({"corpus_name": "corpus"}, "is the corpus itself"),
        ({"corpus_name": "a+b"}, "cannot be called"),
    ):
        with pytest.raises(WrongUse, match=message):  # before anything is computed
            Transcription(ExtractionConfig(table, store=tmp_path / "s", models=models, **options))
    assert not list(tmp_path.glob("s/transcripts/*")), "none is asked for after the work"
    (tmp_path / "no").mkdir()
    (tmp_path / "no/config.json").write_text('{"model_type": "hubert"}')
    (tmp_path / "no/model.safetensors").write_bytes((whisper / "model.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="no is not a Whisper model"):
        Transcription(ExtractionConfig(table, models={"whisper": str(tmp_path / "no")}))
    shutil.copytree(
        whisper, tmp_path / "half", ignore=shutil.ignore_patterns("tokenizer.json")
    )  # no word without it
    with pytest.raises(WeightsError, match="half: its tokenizer cannot be loaded: it has 6 tokens"):
        Transcription(
            ExtractionConfig(
                table, store=tmp_path / "s", models={"whisper": str(tmp_path / "half")}
            )
        ).run()
    (tmp_path / "3.wav").write_bytes(b"RIFF")
    asked = ExtractionConfig(table, store=tmp_path / "s", models=models)
    with pytest.raises(
        ExtractionStopped, match=r"1 problem with the corpus for whisper: u003 \(3\.wav\)"
    ):
        Transcription(asked)
    # An utterance that it hears nothing in is kept, and counted.
    job = Transcription(replace(asked, on_error="skip"))
    put_transcripts(tmp_path / "s", job.made_by, {job.utterances[5].digest: ""})
    done = ser("features", table, "--transcribe", "whisper", "--model", f"whisper={whisper}", "--store", tmp_path / "s",
               "--on-error", "skip", "--features", "standin")  # fmt: skip
    assert (
        done.exit_code == 3
        and "u003: not transcribed: " in done.output
        and ", 1 have no word" in done.output
    )
    assert "quarantined in standin: u003: not transcribed" in done.output
    texts = open_store(tmp_path / "s").manifest().column("text")
    assert (texts[3], texts[5], len(texts)) == (None, "", COUNT)
    for number in (0, 1):  # the same file twice, whose header is right
        sf.write(tmp_path / f"{number}.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    problems = Transcription(replace(asked, on_error="skip")).run().problems
    assert [one.id for one in problems if "not transcribed: holds NaN" in one.reason] == [
        "u000",
        "u001",
    ]


@pytest.mark.parametrize(
    ("reference", "heard", "errors", "words"),
    [
        ("It's [LAUGHTER] so, it\u2019s SO!", "it's so its so", 1, 4),
        ("'Hello,' they said, 'n' \u2018go\u2019 the dogs'", "hello they said n go the dogs", 0, 7),
        ("one two three", "", 3, 3),
        ("one two three", "zero one three four", 3, 3),
        ("...", "something", 0, 0),
        ("हिन्दी में", "हिन्दी में", 0, 2),  # vowel signs are combining marks, and part of the word
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


def test_a_killed_transcription_goes_on(whisper: Path, table: Path, tmp_path: Path) -> None:
    asked = [
        "features",
        str(table),
        "--transcribe",
        "whisper",
        "--model",
        f"whisper={whisper}",
        "--part-seconds",
        "1",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", STOPS, *asked, "--store", str(tmp_path / "s")]
    )
    kept = tmp_path / "s" / "transcripts"
    while len(list(kept.glob("*.json"))) < 3 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    files = {path: path.stat().st_ino for path in kept.glob("*.json")}
    altered = min(files)
    altered.write_bytes(altered.read_bytes().replace(b":", b";", 1))
    assert (
        f"{altered}: altered or cut short"
        in ser("cache", "verify", "--store", tmp_path / "s").stderr
    )
    done = ser(*asked, "--store", tmp_path / "s")
    assert f"{COUNT - len(files) + 1} of {COUNT} utterances transcribed now" in done.output
    assert 3 <= len(files) < COUNT
    assert all(path.stat().st_ino == files[path] for path in files if path != altered)
    assert ser(*asked, "--store", tmp_path / "whole").exit_code == 0
    both = [open_store(tmp_path / name).manifest("corpus-asr") for name in ("s", "whole")]
    assert (
        both[0].same(both[1]) and ser("cache", "verify", "--store", tmp_path / "s").exit_code == 0
    )


def rows_of(store: Store, name: str) -> Counter[str]:
    """How many rows of a feature are kept for each corpus."""
    return Counter(part.record.corpus for part in store[name].parts() for _ in part.keys)


def test_the_parents_audio_trains_with_the_recognisers_words(
    demo_store: Path, whisper: Path, tmp_path: Path
) -> None:
    corpus, path = demo_store.parent / "corpus", shutil.copytree(demo_store, tmp_path / "s")
    models = f"whisper={whisper}", f"bert={demo_store.parent}/checkpoints/bert-random"
    asked = ["--store", path, "--model", models[0], "--model", models[1]]
    job = Transcription(ExtractionConfig(corpus, store=path, models={"whisper": str(whisper)}))
    put_transcripts(
        path, job.made_by, {one.digest: "so it was" for one in job.utterances[8:]}
    )  # as made before
    done = printed(
        "features", corpus, "--transcribe", "whisper", "--features", "is13,bert", *asked, "--json"
    )
    found, store = json.loads(done), open_store(path)
    parent, child = (store.manifest(name) for name in ("demo", "demo-asr"))
    n = len(parent)
    assert (found["is13"]["computed"], found["is13"]["reused"], found["bert"]["computed"]) == (
        0,
        n,
        n,
    )
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
    audio, text = json.loads(
        printed(*words, "--seeds", 1, "--epochs", 1, "--workers", 1, "--json")
    )["rows"]
    assert len(audio["folders"]) == len(text["folders"]) == 1
    assert "transcripts" in text["differs"] and "transcripts" not in audio["differs"]
    listed = json.loads(printed("cache", "list", "--store", path, "--json"))
    [shown] = [one for one in listed if one["feature"] == "is13" and one["corpus"] == "demo-asr"]
    assert (
        shown["rows"],
        shown["lent"],
        shown["superseded"],
        shown["bytes"],
        shown["complete"],
    ) == (n, n, 0, 0, True)

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
    assert done.exit_code != 0 and "is13" in done.output


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
        assert (
            heard.parent.corpus == "mine" and heard.parent.digest == store.manifest("mine").digest
        )
        assert rows_of(store, "logmel") == {"mine": COUNT} and store["logmel"].complete(heard)
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
