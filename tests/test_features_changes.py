"""How a feature is computed and what from are never mixed: one thing is changed, and `ser features`
is run again.
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
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of six utterances, two checkpoints, and a store that has everything of them."""
    folder = tmp_path_factory.mktemp("made")
    write_corpus(folder / "corpus", TEXTS, [0.6] * len(TEXTS))
    for name in ("hubert", "bert"):
        write_random_checkpoint(folder / name, name, words=" ".join(TEXTS).split())
    assert run(folder) == dict.fromkeys(NAMES, 6)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to change, down to the times of its files."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def planned(
    folder: Path, features: str = FEATURES, store: str = "store", **options: Any
) -> ExtractionPlan:
    models = {name: str(folder / name) for name in ("hubert", "bert") if name in features}
    corpus = folder / "corpus" / "corpus.csv"
    return plan(ExtractionConfig(corpus, features, store=folder / store, models=models, **options))


def lacking(*asked: Any) -> dict[str, int]:
    """How many rows `ser features` would compute, by feature."""
    made = planned(*asked)
    return {
        feature.spec.name: len(made.missing[feature.spec.fingerprint]) for feature in made.features
    }


def run(*asked: Any, **options: Any) -> dict[str, int]:
    """How many rows it computed. Every feature ends complete."""
    summary = extract(planned(*asked, **options))
    assert summary.whole
    return {name: one["computed"] for name, one in summary.features.items()}


def files(folder: Path) -> dict[Path, bytes]:
    """Every file of the store's features."""
    found = (path for path in (folder / "store").rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in found if "manifests" not in path.parts}


def rows(folder: Path, feature: str, store: str = "store") -> dict[str, bytes]:
    opened = open_store(folder / store)
    packed = opened.feature(feature).load(opened.manifest())
    return {id_: packed[number].tobytes() for number, id_ in enumerate(packed.ids)}


def a_bit(path: Path) -> None:
    """The least of the first weight, behind the header and its length."""
    content = bytearray(path.read_bytes())
    content[8 + int.from_bytes(content[:8], "little")] ^= 1
    path.write_bytes(content)


def a_token(path: Path) -> None:
    """Two words of the tokenizer change places."""
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    path.write_text(json.dumps(tokenizer))


def a_setting(name: str, value: object) -> Change:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("hubert/model.safetensors", a_bit),
        ("bert/model.safetensors", a_bit),
        ("bert/tokenizer.json", a_token),
        ("bert/tokenizer_config.json", a_setting("do_lower_case", False)),
        ("hubert/preprocessor_config.json", a_setting("do_normalize", False)),
        ("hubert/config.json", a_setting("layer_norm_eps", 1e-4)),
    ],
)
def test_another_checkpoint(folder: Path, file: str, change: Change) -> None:
    change(folder / file)
    assert lacking(folder) == {name: 6 * file.startswith(name) for name in NAMES}


def test_another_setting_or_version_of_an_extractor(made: Path) -> None:
    settings = [
        "hubert:layer=1",
        "hubert:normalize=false",
        "hubert:precision=bfloat16",
        "bert:layer=0",
    ]
    settings += ["bert:special=false", "logmel:sampling_rate=8000", "logmel:bands=40"]
    assert lacking(made, ",".join(settings)) == dict.fromkeys(settings, 6)
    extractors = SpeechExtractor, TextExtractor, SmileExtractor, MelExtractor
    for code, feature in zip(extractors, NAMES, strict=True):
        with patch.object(code, "version", code.version + 1):
            assert lacking(made) == {name: 6 * (name == feature) for name in NAMES}


def test_what_is_computed_another_way_stands_beside_what_was_there(folder: Path) -> None:
    before = files(folder)
    a_bit(folder / "hubert" / "model.safetensors")
    a_token(folder / "bert" / "tokenizer.json")
    assert run(folder) == {"hubert": 6, "bert": 6, "is13": 0, "logmel": 0}
    assert run(folder, "logmel", dtype="float32") == {"logmel": 6}
    assert before.items() <= files(folder).items(), "what was there is altered"
    names = [feature.spec.name for feature in open_store(folder / "store").features()]
    assert sorted(names) == sorted([*NAMES, "hubert", "bert", "logmel"])
    assert run(folder) == dict.fromkeys(NAMES, 0)


def test_where_things_lie_is_no_way(folder: Path, tmp_path: Path) -> None:
    """Neither the backend, the cut into parts nor the path of the weights or of the corpus asks for
    new rows.
    """
    folder = folder.rename(tmp_path / "elsewhere")
    table = folder / "corpus" / "corpus.csv"
    shutil.copytree(folder / "corpus", folder / "corpus" / "sounds")
    table.write_text(re.sub(r"(\d\.wav)", r"sounds/\1", table.read_text()))
    assert run(folder, backend="hdf5", part_seconds=1) == dict.fromkeys(NAMES, 0)


def keep_time(path: Path, content: bytes) -> None:
    """Change a file and nothing that `ls` shows of it."""
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def one_of_each(folder: Path) -> None:
    """Half of the samples of one, with the size and the time that they had, and the transcript of
    another.
    """
    path, table = folder / "corpus" / "3.wav", folder / "corpus" / "corpus.csv"
    content = path.read_bytes()
    keep_time(path, content[:44] + content[44:9644][::-1] + content[9644:])
    keep_time(table, table.read_bytes().replace(b"why?", b"who?"))


def two_change_places(folder: Path) -> None:
    one, two = folder / "corpus" / "1.wav", folder / "corpus" / "2.wav"
    first, second = one.read_bytes(), two.read_bytes()
    keep_time(one, second)
    keep_time(two, first)
    write_table(folder / "corpus", [TEXTS[1], TEXTS[0], *TEXTS[2:]])


def two_more(folder: Path) -> None:
    rng = np.random.default_rng(1)
    for number in (6, 7):
        sf.write(folder / "corpus" / f"{number}.wav", rng.normal(0, 0.1, 12800), 16000)
    write_table(folder / "corpus", [*TEXTS, "Yeah.", "Leave me!"])


def one_less(folder: Path) -> None:
    write_table(folder / "corpus", TEXTS[:5])


@pytest.mark.parametrize(
    ("change", "audio", "text"),  # and the utterances whose rows it changes
    [
        (one_of_each, {"u003"}, {"u004"}),
        (two_change_places, {"u001", "u002"}, {"u000", "u001"}),
        (two_more, {"u006", "u007"}, {"u006", "u007"}),
        (one_less, set(), set()),
    ],
)
def test_another_corpus(folder: Path, change: Change, audio: set[str], text: set[str]) -> None:
    before = files(folder)
    old = {name: rows(folder, name) for name in NAMES}
    change(folder)
    by_name = {name: text if name == "bert" else audio for name in NAMES}
    assert run(folder, replace=change is one_less) == {
        name: len(ids) for name, ids in by_name.items()
    }
    assert before.items() <= files(folder).items(), "what was there is altered"
    run(folder, store="fresh")
    for name, ids in by_name.items():
        new = rows(folder, name)
        assert new == rows(folder, name, "fresh"), "not what a new store would hold"
        assert {id_ for id_, row in new.items() if old[name].get(id_) != row} == ids


def test_a_bad_spec_costs_no_rows_and_missing_parts_are_computed_again(folder: Path) -> None:
    store = open_store(folder / "store")
    spec, parts = store["bert"].path / "spec.json", store["is13"].path / "parts"
    content = spec.read_bytes()
    spec.write_bytes(content[:-1])
    assert run(folder) == dict.fromkeys(NAMES, 0)
    assert json.loads(spec.read_bytes())["checkpoint"] == json.loads(content)["checkpoint"]
    shutil.rmtree(parts)
    assert run(folder) == {name: 6 * (name == "is13") for name in NAMES}
    assert ser("cache", "verify", "--store", folder / "store").exit_code == 0
    shutil.rmtree(parts)
    parts.symlink_to(folder / "not mounted")
    checked = ser("cache", "verify", "--store", folder / "store")
    assert checked.exit_code == 1 and "leads to no folder" in checked.output


def test_a_folder_of_parts_that_another_has_just_made_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(folder: Path) -> None:
        folder.mkdir()
        raise FileNotFoundError(folder)

    monkeypatch.setattr("os.scandir", too_late)
    assert part_names(tmp_path) == set()
