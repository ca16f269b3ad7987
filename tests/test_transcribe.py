"""A recogniser's transcripts: those of transformers called directly, kept when the run is killed, and trained on with
the audio features of the corpus that they are of.
"""

import json
import signal
import string
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
import transformers
from click.testing import CliRunner, Result

from ser.cache.store import Store, open_store
from ser.cli import main
from ser.errors import ExtractionStopped, WeightsError, WrongUse
from ser.extract.audio import decode
from ser.extract.options import ExtractionConfig
from ser.extract.transcribe import Transcription, word_errors
from ser.tests.newcomer import newcomer, run_of

__all__ = ["newcomer"]  # a fixture

SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>")


def ser(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint that says several letters of every utterance, and knows two languages."""
    folder = tmp_path_factory.mktemp("whisper") / "whisper-random"
    letters = [*string.ascii_lowercase, "Ġ"]
    vocabulary = {token: number for number, token in enumerate([*letters, *SPECIAL])}
    end, start, en, de, transcribe, plain = (vocabulary[token] for token in SPECIAL)
    sizes = {f"{part}_{what}": value for part in ("encoder", "decoder") for what, value in
             {"layers": 1, "attention_heads": 2, "ffn_dim": 32}.items()}
    ids = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    config = transformers.WhisperConfig(
        vocab_size=len(vocabulary), d_model=16, max_target_positions=24, init_std=0.5, **sizes, **ids
    )
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(config)
    generation = {"max_length": 12, "is_multilingual": True, "lang_to_id": {"<|en|>": en, "<|de|>": de}}
    generation |= {"task_to_id": {"transcribe": transcribe}, "no_timestamps_token_id": plain, **ids}
    model.generation_config = transformers.GenerationConfig(**generation)
    model.save_pretrained(folder)
    tokenizer = transformers.WhisperTokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})
    transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


def directly(folder: Path, path: Path) -> str:
    """One file's transcript, as the documentation of transformers shows it."""
    processor = transformers.WhisperProcessor.from_pretrained(folder)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    inputs = processor(decode(path).at(16000), sampling_rate=16000, return_tensors="pt")
    [text] = processor.batch_decode(model.generate(**inputs, language="en", task="transcribe"), skip_special_tokens=True)
    return text.strip()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Twelve noises of one to three seconds, one of 40 s, and manual transcripts."""
    noise, lines = np.random.default_rng(0), ["id,audio,text,label"]
    for number in range(13):
        samples = noise.standard_normal(round(16000 * (40 if number == 12 else 1 + number % 3))) * (0.01 + number / 40)
        sf.write(tmp_path / f"{number}.wav", samples, 16000)
        lines.append(f"u{number},{number}.wav,so it is {number},ang")
    (tmp_path / "noises.csv").write_text("\n".join(lines))
    return tmp_path / "noises.csv"


def test_transcripts_are_those_of_transformers(whisper: Path, table: Path, tmp_path: Path) -> None:
    asked = [table, "--transcribe", "whisper", "--model", f"whisper={whisper}", "--store", tmp_path / "s"]
    done = ser("features", *asked, "--language", "en", "--batch-seconds", 120)
    assert done.exit_code == 0, done.output
    manifest = open_store(tmp_path / "s").manifest("noises-asr")
    texts = dict(zip(manifest.ids, manifest.column("text"), strict=True))
    print(texts)
    expected = {f"u{n}": directly(whisper, tmp_path / f"{n}.wav") for n in range(12)}
    assert {id_: texts[id_] for id_ in expected} == expected
