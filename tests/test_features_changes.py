"""How a feature is computed and what from are never mixed.

One thing is changed, and `ser features` is run again.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import soundfile as sf

from ser.cache.feature import part_names
from ser.cache.store import open_store
from ser.extract.extractor import Extractor
from ser.extract.mel import MelExtractor
from ser.extract.run import ExtractionConfig, ExtractionPlan, extract, plan
from ser.extract.smile import SmileExtractor
from ser.extract.speech import SpeechExtractor
from ser.extract.text import TextExtractor
from ser.tests.command_line import ser
from ser.tests.stand_in_corpus import write_corpus, write_table
from ser.weights.demo import write_random_checkpoint

TEXTS = ["Yeah.", "I don't know.", "[LAUGHTER]", "Leave me alone!", "why?", "Yeah."]
NAMES = ["hubert", "bert", "is13", "logmel"]
FEATURES = ",".join(NAMES)
ENCODERS = ("hubert", "bert")
NOTHING_LEFT = dict.fromkeys(NAMES, 0)

# Changes one thing in a folder, or in one of its files.
Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of six utterances, two checkpoints, and a store that has everything of them."""
    folder = tmp_path_factory.mktemp("extracted")
    write_corpus(folder / "corpus", TEXTS, [0.6] * len(TEXTS))
    for name in ENCODERS:
        write_random_checkpoint(folder / name, name, words=" ".join(TEXTS).split())
    assert run(folder) == dict.fromkeys(NAMES, 6)
    return folder


@pytest.fixture
def folder(extracted: Path, tmp_path: Path) -> Path:
    """A copy to change, down to the times of its files."""
    return Path(shutil.copytree(extracted, tmp_path / "copy"))


def plan_again(
    folder: Path, features: str = FEATURES, store: str = "store", **options: Any
) -> ExtractionPlan:
    """What `ser features` would do with the folder as it is now."""
    models = {name: str(folder / name) for name in ENCODERS if name in features}
    corpus = folder / "corpus" / "corpus.csv"
    return plan(ExtractionConfig(corpus, features, store=folder / store, models=models, **options))


def count_missing(folder: Path, features: str = FEATURES) -> dict[str, int]:
    """How many rows `ser features` would compute, by feature."""
    planned = plan_again(folder, features)
    counts = {}
    for feature in planned.features:
        counts[feature.spec.name] = len(planned.missing[feature.spec.fingerprint])
    return counts


def run(folder: Path, features: str = FEATURES, **options: Any) -> dict[str, int]:
    """How many rows `ser features` computed. Every feature ends complete."""
    summary = extract(plan_again(folder, features, **options))
    assert summary.whole
    return {name: facts["computed"] for name, facts in summary.features.items()}


def six_of(*names: str) -> dict[str, int]:
    """Six rows to compute of these features, and none of the others."""
    return {name: 6 if name in names else 0 for name in NAMES}


def files_of_features(folder: Path) -> dict[Path, bytes]:
    """Every file of the store but those of its manifests."""
    contents = {}
    for path in (folder / "store").rglob("*"):
        if path.is_file() and "manifests" not in path.parts:
            contents[path] = path.read_bytes()
    return contents


def rows(folder: Path, feature: str, store: str = "store") -> dict[str, bytes]:
    """The values of each utterance, by its id."""
    opened = open_store(folder / store)
    packed = opened.feature(feature).load(opened.manifest())
    return {id_: packed[number].tobytes() for number, id_ in enumerate(packed.ids)}


def change_a_bit(path: Path) -> None:
    """The least bit of the first weight, behind the header and its length."""
    content = bytearray(path.read_bytes())
    length_of_header = int.from_bytes(content[:8], "little")
    content[8 + length_of_header] ^= 1
    path.write_bytes(content)


def swap_two_tokens(path: Path) -> None:
    """Two words of the tokenizer change places."""
    tokenizer = json.loads(path.read_text())
    numbers = tokenizer["model"]["vocab"]
    numbers["a"], numbers["b"] = numbers["b"], numbers["a"]
    path.write_text(json.dumps(tokenizer))


def change_setting(name: str, value: object) -> Change:
    def change(path: Path) -> None:
        settings = json.loads(path.read_text())
        settings[name] = value
        path.write_text(json.dumps(settings))

    return change


@pytest.mark.parametrize(
    ("file", "change"),
    [
        pytest.param("hubert/model.safetensors", change_a_bit, id="a weight of HuBERT"),
        pytest.param("bert/model.safetensors", change_a_bit, id="a weight of BERT"),
        pytest.param("bert/tokenizer.json", swap_two_tokens, id="two tokens"),
        pytest.param(
            "bert/tokenizer_config.json",
            change_setting("do_lower_case", False),
            id="the tokenizer's config",
        ),
        pytest.param(
            "hubert/preprocessor_config.json",
            change_setting("do_normalize", False),
            id="the preprocessor",
        ),
        pytest.param("hubert/config.json", change_setting("layer_norm_eps", 1e-4), id="the config"),
    ],
)
def test_another_checkpoint(folder: Path, file: str, change: Change) -> None:
    change(folder / file)
    encoder = file.partition("/")[0]
    assert count_missing(folder) == six_of(encoder)


@pytest.mark.parametrize(
    "feature",
    [
        "hubert:layer=1",
        "hubert:normalize=false",
        "hubert:precision=bfloat16",
        "bert:layer=0",
        "bert:special=false",
        "logmel:sampling_rate=8000",
        "logmel:bands=40",
    ],
)
def test_another_setting_of_an_extractor(extracted: Path, feature: str) -> None:
    assert count_missing(extracted, feature) == {feature: 6}


@pytest.mark.parametrize(
    ("extractor", "feature"),
    [
        pytest.param(SpeechExtractor, "hubert", id="speech"),
        pytest.param(TextExtractor, "bert", id="text"),
        pytest.param(SmileExtractor, "is13", id="openSMILE"),
        pytest.param(MelExtractor, "logmel", id="mel"),
    ],
)
def test_another_version_of_an_extractor(
    extracted: Path, extractor: type[Extractor], feature: str
) -> None:
    with patch.object(extractor, "version", extractor.version + 1):
        assert count_missing(extracted) == six_of(feature)


def test_what_is_computed_another_way_stands_beside_what_was_there(folder: Path) -> None:
    before = files_of_features(folder)
    change_a_bit(folder / "hubert" / "model.safetensors")
    swap_two_tokens(folder / "bert" / "tokenizer.json")
    assert run(folder) == six_of("hubert", "bert")
    assert run(folder, "logmel", dtype="float32") == {"logmel": 6}
    assert before.items() <= files_of_features(folder).items(), "what was there is altered"

    names = [feature.spec.name for feature in open_store(folder / "store").features()]
    assert sorted(names) == sorted([*NAMES, "hubert", "bert", "logmel"])
    assert run(folder) == NOTHING_LEFT


def test_where_things_lie_is_no_way(folder: Path, tmp_path: Path) -> None:
    """What asks for no new rows.

    That is the backend, the cut into parts, and the path of the weights or of the corpus.
    """
    folder = folder.rename(tmp_path / "elsewhere")
    table = folder / "corpus" / "corpus.csv"
    shutil.copytree(folder / "corpus", folder / "corpus" / "sounds")
    table.write_text(re.sub(r"(\d\.wav)", r"sounds/\1", table.read_text()))
    assert run(folder, backend="hdf5", part_seconds=1) == NOTHING_LEFT


def change_unseen(path: Path, content: bytes) -> None:
    """Change a file and nothing that `ls` shows of it."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    after = path.stat()
    assert after.st_size == before.st_size
    assert after.st_mtime_ns == before.st_mtime_ns


def change_an_audio_and_a_text(folder: Path) -> None:
    """Half of the samples of one utterance, and the transcript of another."""
    audio = folder / "corpus" / "3.wav"
    content = audio.read_bytes()
    half_reversed = content[:44] + content[44:9644][::-1] + content[9644:]
    change_unseen(audio, half_reversed)

    table = folder / "corpus" / "corpus.csv"
    change_unseen(table, table.read_bytes().replace(b"why?", b"who?"))


def swap_utterances(folder: Path) -> None:
    """Two change places: the audio of u001 and u002, the texts of u000 and u001."""
    first = folder / "corpus" / "1.wav"
    second = folder / "corpus" / "2.wav"
    content_of_first = first.read_bytes()
    content_of_second = second.read_bytes()
    change_unseen(first, content_of_second)
    change_unseen(second, content_of_first)

    write_table(folder / "corpus", [TEXTS[1], TEXTS[0], *TEXTS[2:]])


def add_two_utterances(folder: Path) -> None:
    rng = np.random.default_rng(1)
    for number in (6, 7):
        sf.write(folder / "corpus" / f"{number}.wav", rng.normal(0, 0.1, 12800), 16000)
    write_table(folder / "corpus", [*TEXTS, "Yeah.", "Leave me!"])


def remove_an_utterance(folder: Path) -> None:
    write_table(folder / "corpus", TEXTS[:5])


# And the utterances whose rows the change concerns.
@pytest.mark.parametrize(
    ("change", "audio", "text"),
    [
        pytest.param(
            change_an_audio_and_a_text, {"u003"}, {"u004"}, id="another audio and another text"
        ),
        pytest.param(swap_utterances, {"u001", "u002"}, {"u000", "u001"}, id="two change places"),
        pytest.param(add_two_utterances, {"u006", "u007"}, {"u006", "u007"}, id="two more"),
        pytest.param(remove_an_utterance, set(), set(), id="one less"),
    ],
)
def test_another_corpus(folder: Path, change: Change, audio: set[str], text: set[str]) -> None:
    changed = {name: text if name == "bert" else audio for name in NAMES}
    files_before = files_of_features(folder)
    rows_before = {name: rows(folder, name) for name in NAMES}

    change(folder)
    computed = run(folder, replace=change is remove_an_utterance)
    assert computed == {name: len(ids) for name, ids in changed.items()}
    assert files_before.items() <= files_of_features(folder).items(), "what was there is altered"

    run(folder, store="fresh")
    for name, ids in changed.items():
        rows_now = rows(folder, name)
        assert rows_now == rows(folder, name, "fresh"), "not what a new store would hold"

        before = rows_before[name]
        assert {id_ for id_, row in rows_now.items() if before.get(id_) != row} == ids


def test_a_bad_spec_costs_no_rows(folder: Path) -> None:
    spec = open_store(folder / "store")["bert"].path / "spec.json"
    content = spec.read_bytes()
    spec.write_bytes(content[:-1])

    assert run(folder) == NOTHING_LEFT
    assert json.loads(spec.read_bytes())["checkpoint"] == json.loads(content)["checkpoint"]


def test_missing_parts_are_computed_again(folder: Path) -> None:
    parts = open_store(folder / "store")["is13"].path / "parts"
    shutil.rmtree(parts)
    assert run(folder) == six_of("is13")
    assert ser("cache", "verify", "--store", folder / "store").exit_code == 0


def test_parts_on_a_disk_that_is_not_there_are_a_problem(folder: Path) -> None:
    parts = open_store(folder / "store")["is13"].path / "parts"
    shutil.rmtree(parts)
    parts.symlink_to(folder / "not mounted")

    verified = ser("cache", "verify", "--store", folder / "store")
    assert verified.exit_code == 1
    assert "leads to no folder" in verified.output


def test_a_folder_of_parts_that_another_has_just_made_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def come_too_late(folder: Path) -> None:
        folder.mkdir()
        raise FileNotFoundError(folder)

    monkeypatch.setattr("os.scandir", come_too_late)
    assert part_names(tmp_path) == set()
