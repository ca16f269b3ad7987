"""From a corpus to a store: every row accounted for, nothing computed twice, the same rows however
it is run.
"""

import json
import os
import re
import shutil
import subprocess
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

from ser import engines
from ser.cache.manifests import generations
from ser.cache.store import open_store
from ser.engines import machine
from ser.errors import CorpusError, SerError, StoreError, UtteranceError, WrongUse
from ser.extract.check import relative_deviation
from ser.extract.plan import ExtractionPlan
from ser.extract.resolve import load_extractors, resolve_again
from ser.extract.run import (
    ExtractionConfig,
    ExtractionRun,
    ExtractionStopped,
    Summary,
    extract,
    plan,
)
from ser.extract.single import extract_utterance
from ser.extract.tasks import WorkerConfig
from ser.tests.command_line import ser
from ser.tests.dask_processes import workers_of
from ser.tests.stand_in_corpus import ser_features, write_corpus, write_table
from ser.weights.demo import write_random_checkpoint
from ser.weights.digest import digest_checkpoint

TEXTS = [
    "Yeah.",
    "I don't know what you mean.",
    "Yeah.",
    "[LAUGHTER]",
    "oh " * 40,
    "Leave me alone!",
    "why?",
    "Yeah.",
]
NAMES = ("hubert", "bert", "mpnet", "is13", "logmel", "mfcc")
EVERYTHING = ",".join([*NAMES, "hubert:layer=1"])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    words = " ".join(TEXTS).split()
    return {
        name: str(write_random_checkpoint(folder / name, name, words))
        for name in ("hubert", "bert", "mpnet")
    }


@dataclass(frozen=True)
class Corpus:
    """Eight utterances of 0.6 to 4.1 s in a folder, checkpoints, and where the store will be."""

    folder: Path
    models: dict[str, str]
    store: Path

    def plan(self, features: str = EVERYTHING, **options: Any) -> ExtractionPlan:
        mine = {name: path for name, path in self.models.items() if name in features}
        defaults = {"corpus": self.folder / "corpus.csv", "store": self.store, "models": mine}
        return plan(ExtractionConfig(features=features, **{**defaults, **options}))

    def run(self, features: str = EVERYTHING, told: Any = None, **options: Any) -> Summary:
        return extract(self.plan(features, **options), told)

    def rows(self, feature: str) -> list[np.ndarray]:
        """Of all utterances that are not quarantined."""
        opened = open_store(self.store)
        manifest, one = opened.manifest(), opened.feature(feature)
        bad = one.quarantined(manifest)
        packed = one.load(manifest, [row for row, id_ in enumerate(manifest.ids) if id_ not in bad])
        return [packed[i] for i in range(len(packed))]


@pytest.fixture
def corpus(tmp_path: Path, models: dict[str, str]) -> Corpus:
    write_corpus(tmp_path / "corpus", TEXTS, [0.6 + number / 2 for number in range(8)])
    return Corpus(tmp_path / "corpus", models, tmp_path / "store")


def test_however_it_is_run_the_rows_are_the_same_and_progress_ends(
    corpus: Corpus, fork_server: None
) -> None:
    """Without what cannot be used: the audio of one utterance is not there."""
    (corpus.folder / "2.wav").unlink()
    there = {
        name: 8 if name in ("bert", "mpnet") else 7 for name in ("decode", *EVERYTHING.split(","))
    }
    spread = {"workers": 2, "part_seconds": 5, "batch_seconds": 8}
    batches, fingerprints, plain = [], set(), None
    for number, way in enumerate(({}, {"batch_seconds": 8, "backend": "hdf5"}, spread)):
        seen, here = (
            defaultdict[str, list[object]](list),
            replace(corpus, store=corpus.folder / f"{number}"),
        )
        way |= {"told": lambda stage, *steps, seen=seen: seen[stage].append(steps)}
        summary = here.run(dtype="float32", on_error="skip", **way)
        plain = plain or here
        last = {name: (there[name], there[name]) for name in ("decode", *NAMES)}
        assert {stage: steps[-1] for stage, steps in seen.items()} == last
        assert all(steps == sorted(steps) for steps in seen.values())
        assert "limited by" in summary.sentence and set(summary.stages) >= set(seen)
        for name, facts in summary.features.items():
            assert facts["rows"] == there[name] and facts["random_weights"] == (
                name[:2] in ("hu", "be", "mp")
            )
            most = 0.0 if name in ("is13", "logmel", "mfcc") else 1e-5
            pairs = zip(here.rows(name), plain.rows(name), strict=True)
            assert all(relative_deviation(ours, theirs) <= most for ours, theirs in pairs), name
        batches.append([summary.features[name]["batches"] for name in ("hubert", "bert")])
        fingerprints.add(tuple(facts["fingerprint"] for facts in summary.features.values()))
    assert len(fingerprints) == 1 and batches[0] == [7, 6], (
        "the text that three utterances share is computed once"
    )
    assert 2 <= batches[1][0] <= 5 and batches[1][1] == 1


def damage(corpus: Corpus) -> None:
    """One utterance truncated, one too short for IS13, one without a transcript."""
    path = corpus.folder / "2.wav"
    path.write_bytes(path.read_bytes()[:-500])
    sf.write(corpus.folder / "4.wav", np.random.default_rng(0).normal(0, 0.1, 480), 16000)
    write_table(corpus.folder, [text if number != 6 else None for number, text in enumerate(TEXTS)])


def test_fail_is_the_default_and_lists_them(corpus: Corpus) -> None:
    damage(corpus)
    with pytest.raises(ExtractionStopped) as fault:
        corpus.run("is13,logmel,bert")
    message = str(fault.value)
    assert (
        "u002 (2.wav)" in message
        and "u006" in message
        and "--on-error skip" in message
        and "\n" not in message
    )
    with pytest.raises(ExtractionStopped, match=r"u004 \(4\.wav\).*too short for is13 \(30 ms\)"):
        write_table(corpus.folder, TEXTS)
        (corpus.folder / "2.wav").write_bytes((corpus.folder / "3.wav").read_bytes())
        corpus.run("is13,logmel", part_seconds=3)
    kept = open_store(corpus.store)
    assert (
        kept.feature("is13").quarantined(kept.manifest()) == {}
    )  # what stopped the run is tried again


def test_what_has_no_row_stops_or_is_named(corpus: Corpus) -> None:
    """A line that no manifest row came of cannot be quarantined: it must not pass in silence
    either.
    """
    with (corpus.folder / "corpus.csv").open("a") as table:
        table.write("u000,0.wav,again\n")
    refused = "1 problem with the corpus: 0.wav: u000: line 10: the id u000 is there twice"
    with pytest.raises(
        ExtractionStopped, match=f"^{re.escape(refused)}; correct the corpus.*--on-error skip$"
    ):
        corpus.run("logmel")
    assert not corpus.store.exists()
    summary = corpus.run("logmel", on_error="skip")
    assert summary.refused == ["0.wav: u000: line 10: the id u000 is there twice"]
    assert (
        not summary.whole
        and not any(summary.quarantined.values())
        and summary.features["logmel"]["rows"] == 8
    )


def test_skip_quarantines_by_name_and_retry_tries_again(corpus: Corpus) -> None:
    damage(corpus)
    summary = corpus.run("is13,logmel,bert,hubert", on_error="skip")
    bad = {"is13": {"u002", "u004"}, "logmel": {"u002"}, "bert": {"u006"}, "hubert": {"u002"}}
    assert {name: set(found) for name, found in summary.quarantined.items()} == bad
    assert not summary.whole and "cut short" in summary.quarantined["is13"]["u002"]
    assert summary.quarantined["bert"]["u006"] == "no transcript"
    assert all(facts["rows"] + facts["quarantined"] == 8 for facts in summary.features.values())
    again = corpus.run("is13,logmel,bert,hubert", on_error="skip")
    assert all(facts["computed"] == 0 for facts in again.features.values()) and not again.whole
    retried = corpus.run("is13", on_error="skip", retry=True)
    assert retried.quarantined == {"is13": summary.quarantined["is13"]}
    sf.write(corpus.folder / "2.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    mended = corpus.run("is13", on_error="skip")  # other bytes: no retry needed
    assert set(mended.quarantined["is13"]) == {"u004"} and mended.features["is13"]["computed"] == 1


def test_a_trial_with_limit_leaves_the_corpus_whole(corpus: Corpus) -> None:
    assert corpus.run("is13", limit=3).features["is13"]["rows"] == 3
    facts = corpus.run("is13").features["is13"]
    assert [facts[key] for key in ("rows", "computed", "reused", "quarantined")] == [8, 5, 3, 0]
    assert corpus.run("mfcc", limit=3).features["mfcc"]["rows"] == 3
    assert len(open_store(corpus.store).manifest()) == 8
    made = corpus.plan("mfcc", limit=3)
    summary = extract(replace(made, scan=replace(made.scan, warnings=["a clip is left out"])))
    assert summary.warnings == ["a clip is left out"]


def test_missing_weights_stop_their_own_feature_alone(corpus: Corpus) -> None:
    options = ["features", corpus.folder / "corpus.csv", "--store", corpus.store, "--json"]
    options += [
        "--model",
        "hubert=/nowhere",
        "--model",
        f"bert={corpus.models['bert']}",
        "--features",
    ]
    done = ser(*options, "hubert,hubert:layer=1,bert,is13")
    assert (
        done.exit_code == 1 and "\nser: hubert is left out: /nowhere: no such folder" in done.stderr
    )
    assert {name: facts["rows"] for name, facts in json.loads(done.stdout).items()} == {
        "bert": 8,
        "is13": 8,
    }
    alone = ser(*options, "hubert,hubert:layer=1")
    assert (
        alone.exit_code == 2 and alone.stdout == "" and "/nowhere: no such folder" in alone.stderr
    )


def test_audio_that_changes_while_running_stops_it(corpus: Corpus) -> None:
    made, away = corpus.plan("logmel", on_error="skip"), corpus.folder.with_name("away")
    kept = (corpus.folder / "5.wav").read_bytes()
    sf.write(corpus.folder / "5.wav", np.zeros(16000), 16000)
    with pytest.raises(CorpusError, match=r"5\.wav: changed"):
        extract(made)
    (corpus.folder / "5.wav").write_bytes(kept)
    corpus.folder.rename(away)
    with pytest.raises(CorpusError, match=r"\.wav: .*No such file.*mounted"):
        extract(made)
    away.rename(corpus.folder)
    assert extract(plan(made.config)).whole, "nothing is quarantined for what was away"


def test_a_corpus_that_lost_utterances_does_not_become_the_latest(corpus: Corpus) -> None:
    corpus.run("logmel")
    whole = open_store(corpus.store).manifest().digest
    kept = (corpus.folder / "3.wav").read_bytes()
    (corpus.folder / "3.wav").unlink()
    with pytest.raises(
        WrongUse, match=r"8 utterances there, and 1 of them \(such as 'u003'\).*--replace"
    ):
        corpus.run("logmel", on_error="skip")
    (corpus.folder / "3.wav").write_bytes(kept)
    write_table(corpus.folder, TEXTS[:4])
    with pytest.raises(WrongUse, match=r"8 utterances there, and 4 of them"):
        corpus.run("logmel")
    assert open_store(corpus.store).manifest().digest == whole
    assert corpus.run("logmel", replace=True).features["logmel"]["rows"] == 4
    assert len(open_store(corpus.store).manifest()) == 4
    said = [ser("cache", "rollback", "corpus", "--store", corpus.store) for _ in range(2)]
    assert "8 utterances" in said[0].stdout and "4 utterances" in said[1].stdout, said
    commands = [one.command for one in generations(corpus.store / "manifests" / "corpus")]
    assert commands == ["features", "features", "cache rollback", "cache rollback"]


def test_a_dry_plan_writes_nothing_and_estimates_and_a_check_records_the_deviation(
    corpus: Corpus,
) -> None:
    made = corpus.plan(f"{EVERYTHING},hubert:layer=1,pool=mean", check=5)
    assert not corpus.store.exists()
    summary = extract(made)
    assert set(summary.check) == {*EVERYTHING.split(","), "hubert:layer=1,pool=mean"}
    assert all(value <= 1e-5 for value in summary.check.values()) and summary.check["is13"] == 0
    written = sum(path.stat().st_size for path in corpus.store.rglob("c/*/*"))
    assert 0.7 < made.bytes / written < 1.3
    assert list(plan(made.config).missing.values()) == [[]] * 8
    store = open_store(corpus.store)
    float32 = {f.spec.name for f in store.features() if f.spec.dtype == "float32"}
    assert float32 == {"is13", "hubert:layer=1,pool=mean"}, (
        "frames and tokens are float16 by default"
    )
    packed = store.feature("bert").load(store.manifest())
    assert packed.extras["word"].dtype == np.int32 and len(packed.extras["word"]) == len(
        packed.values
    )
    assert "max_relative" in (store.feature("hubert").path / "spec.json").read_text()
    # No number at all, rather than a perfect 0.0, where IS13 has no utterance long enough.
    write_corpus(corpus.folder, ["Yeah."], [0.03])
    short = replace(corpus, store=corpus.folder / "other").run(
        "is13,bert", check=1, on_error="skip"
    )
    assert set(short.check) == {"bert"}


def test_the_time_is_estimated_from_the_corpus_itself(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right to a factor of four, by the CPU's clock: others share the machine. The encoders it
    opened serve the run.
    """
    monkeypatch.setattr("ser.extract.pipeline.time", SimpleNamespace(perf_counter=time.thread_time))
    most = 40
    monkeypatch.setattr("ser.extract.run.MIN_ESTIMATED", most)
    write_corpus(
        corpus.folder,
        [f"{number} times" for number in range(most)],
        list(np.linspace(0.6, 2.0, most)),
    )
    assert ExtractionRun(corpus.plan("is13", limit=most - 1)).estimate() is None
    with ExtractionRun(corpus.plan("hubert,is13")) as run:
        about = run.estimate()
        opened = run.worker.extractors("audio")
        begun = time.process_time()
        summary = run.extract()
        spent = (time.process_time() - begun) / engines.cores()
        assert run.worker.extractors("audio") is opened
    assert about is not None and spent / 4 < about < spent * 4
    assert summary.features["hubert"]["computed"] == most
    assert ExtractionRun(corpus.plan("hubert,is13")).estimate() is None  # all is there


def test_several_gpus_get_a_process_each(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    made = corpus.plan("hubert", part_seconds=3)
    assert len(made.tasks()) > 2 and ExtractionRun(made).processes == 2
    assert ExtractionRun(replace(made, config=replace(made.config, device="cuda:1"))).processes == 1
    given: list[WorkerConfig] = []
    monkeypatch.setattr(
        engines, "run", lambda _, tasks, processes: given.extend(one.config for one in tasks) or []
    )
    with pytest.raises(SerError, match="unaccounted for"):
        extract(made)
    assert {one.device for one in given} == {"auto"}
    monkeypatch.setattr(machine, "this_worker", 1)
    assert given[0].here().device == "cuda:1", "chosen by the process that computes"


def test_a_disk_too_small_is_refused_before_it_starts(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    with pytest.raises(StoreError, match=r"about 0\.20 MB will be written and 0\.01 MB are free"):
        corpus.plan("is13")


def test_a_worker_that_dies_is_named(corpus: Corpus) -> None:
    """A process killed by the kernel: one sentence, and what was published stays."""
    write_table(
        corpus.folder,
        [f"{text} [wait]" if number == 3 else text for number, text in enumerate(TEXTS)],
    )
    options = ("--features", "is13,standin", "--workers", 2, "--part-seconds", 1)
    command = ser_features(corpus.folder / "corpus.csv", corpus.store, 1, *options)
    never = {**os.environ, "SER_STAND_IN_GO": str(corpus.folder / "never")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=never)
    while (
        len(found := workers_of(process.pid)) < 3 and process.poll() is None
    ):  # one that forks the others
        time.sleep(0.05)
    found[1].kill()
    _, errors = process.communicate()
    assert process.returncode == 1 and "SIGKILL" in errors and "what was finished is kept" in errors
    again = corpus.run("is13,standin", part_seconds=1)
    assert [facts["rows"] for facts in again.features.values()] == [8, 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "is14"}, "did you mean is13"),
        ({"features": "hubert", "models": {"hubert": "/nowhere at all"}}, "no such folder"),
        ({"features": "is13", "models": ["is13=/x"]}, "without weights"),
        ({"features": "is13", "models": ["hubert"]}, "NAME=ID_OR_PATH"),
        ({"features": "is13", "backend": "pickle"}, "zarr or hdf5"),
        ({"features": "is13", "part_seconds": 0}, "above 0"),
        ({"features": ""}, "no feature is named"),
        ({"features": "is13, log mel"}, "unknown feature .log mel."),
        ({"features": "logmel:window=inf"}, "window is a number"),
        ({"features": "logmel", "device": "tpu"}, "cuda:N"),
        ({"features": "logmel", "device": "cuda:7"}, "cuda:7: torch finds no such device here"),
        (
            {"features": "logmel", "device": "cuda:7", "scheduler": "local:2"},
            "torch finds no such device here",
        ),
        ({"features": "logmel:hop=nan"}, "hop is a number"),
        ({"features": "is13", "corpus": Path("elsewhere")}, "elsewhere does not"),
        (
            {"features": "is13", "store": Path(__file__).parent},
            "not a store and not empty; name another",
        ),
    ],
)
def test_wrong_requests(corpus: Corpus, options: dict[str, Any], message: str) -> None:
    with pytest.raises(WrongUse, match=message):
        corpus.plan(**options)
    assert not corpus.store.exists()


def test_new_speech_gets_the_stores_numbers_or_a_refusal(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus.run("hubert:layers=0-1,bert,is13,logmel")
    store, audio, warnings = open_store(corpus.store), corpus.folder / "0.wav", list[str]()
    hashed: list[Path] = []
    monkeypatch.setattr(
        "ser.weights.find.digest_checkpoint",
        lambda path, files: hashed.append(path) or digest_checkpoint(path, files),
    )
    resolved = resolve_again([feature.spec for feature in store.features()], corpus.models)
    assert sorted(path.name for path in hashed) == ["bert", "hubert"], "that of two layers once"
    for feature, again in zip(store.features(), resolved, strict=True):
        given = audio if feature.spec.modality == "audio" else TEXTS[0]
        [found] = extract_utterance(load_extractors([again]), given, warnings).values()
        assert not warnings and np.array_equal(found.values.squeeze(), feature["u000"].squeeze())
    audio.write_bytes(audio.read_bytes()[:9000])
    with pytest.raises(UtteranceError, match="cut short"):
        extract_utterance([], audio, warnings)
    other, is13 = (
        write_random_checkpoint(corpus.folder / "other", "hubert", seed=1),
        store.feature("is13").spec,
    )
    with pytest.raises(WrongUse, match=r"checkpoint.*--model hubert=PATH"):
        resolve_again([store.feature("hubert:layer=1").spec], {"hubert": str(other)})
    with pytest.raises(WrongUse, match="differs in version"):
        resolve_again([replace(is13, version=0)])
    with pytest.raises(
        WrongUse, match="imported from a file, and cannot be computed for new speech"
    ):
        resolve_again([replace(is13, feature="gemaps", extractor="import")])


def test_a_text_beyond_512_tokens_is_cut_and_told(corpus: Corpus) -> None:
    write_table(corpus.folder, ["oh " * 700, *TEXTS[1:]])
    summary = corpus.run("bert,bert:layer=1,mpnet", limit=2)
    assert [line for line in summary.warnings if "cut" in line] == [
        "u000: its transcript of 702 tokens is cut to 512 for bert",
        "u000: its transcript of 702 tokens is cut to 512 for mpnet",
    ]
    assert corpus.rows("bert")[0].shape == (512, 64)
