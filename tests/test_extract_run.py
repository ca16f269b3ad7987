"""From a corpus to a store.

Every row accounted for, nothing computed twice, the same rows however it is run.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
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
from click.testing import Result

from ser import engines
from ser.cache.manifest_log import generations
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
    OnProgress,
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
TEXT_ENCODERS = ("bert", "mpnet")
ENCODERS = ("hubert", *TEXT_ENCODERS)
WITHOUT_WEIGHTS = ("is13", "logmel", "mfcc")
NAMES = (*ENCODERS, *WITHOUT_WEIGHTS)
EVERYTHING = (*NAMES, "hubert:layer=1")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    words = " ".join(TEXTS).split()
    return {name: str(write_random_checkpoint(folder / name, name, words)) for name in ENCODERS}


@dataclass(frozen=True)
class Corpus:
    """Eight utterances of 0.6 to 4.1 s in a folder, checkpoints, and where the store will be."""

    folder: Path
    models: dict[str, str]
    store: Path

    @property
    def table(self) -> Path:
        return self.folder / "corpus.csv"

    def audio(self, number: int) -> Path:
        return self.folder / f"{number}.wav"

    def plan(self, features: str = ",".join(EVERYTHING), **options: Any) -> ExtractionPlan:
        models = {name: path for name, path in self.models.items() if name in features}
        defaults = {"corpus": self.table, "store": self.store, "models": models}
        return plan(ExtractionConfig(features=features, **{**defaults, **options}))

    def extract(
        self,
        features: str = ",".join(EVERYTHING),
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> Summary:
        return extract(self.plan(features, **options), on_progress)

    def rows(self, name: str) -> list[np.ndarray]:
        """Those of all utterances that are not quarantined."""
        store = open_store(self.store)
        manifest = store.manifest()
        feature = store.feature(name)

        quarantined = feature.quarantined(manifest)
        numbers = [number for number, id_ in enumerate(manifest.ids) if id_ not in quarantined]
        packed = feature.load(manifest, numbers)
        return [packed[number] for number in range(len(packed))]


@pytest.fixture
def corpus(tmp_path: Path, models: dict[str, str]) -> Corpus:
    write_corpus(tmp_path / "corpus", TEXTS, [0.6 + number / 2 for number in range(8)])
    return Corpus(tmp_path / "corpus", models, tmp_path / "store")


def write_noise(path: Path, samples: int) -> None:
    sf.write(path, np.random.default_rng(0).normal(0, 0.1, samples), 16000)


# Of eight utterances, where the audio of one is missing.
ROWS = {name: 8 if name in TEXT_ENCODERS else 7 for name in EVERYTHING}


def test_however_it_is_run_the_rows_are_the_same(corpus: Corpus, fork_server: None) -> None:
    """Without what cannot be used: the audio of one utterance is not there."""
    corpus.audio(2).unlink()
    ways: dict[str, dict[str, Any]] = {
        "one by one": {},
        "batched": {"batch_seconds": 8, "backend": "hdf5"},
        "in processes": {"workers": 2, "part_seconds": 5, "batch_seconds": 8},
    }

    stores = {}
    batches = {}
    fingerprints = set()
    for way, options in ways.items():
        progress = Progress()
        stores[way] = replace(corpus, store=corpus.folder / way)
        summary = stores[way].extract(
            on_progress=progress, dtype="float32", on_error="skip", **options
        )
        progress.check(summary)
        check_facts(summary)

        facts = summary.features
        batches[way] = (facts["hubert"]["batches"], facts["bert"]["batches"])
        fingerprints.add(tuple(facts[name]["fingerprint"] for name in EVERYTHING))

    assert len(fingerprints) == 1
    for way in ("batched", "in processes"):
        check_same_rows(stores[way], stores["one by one"])

    # The text that three utterances share is computed once.
    assert batches["one by one"] == (7, 6)
    assert 2 <= batches["batched"][0] <= 5
    assert batches["batched"][1] == 1


class Progress:
    """What an extraction tells of each stage on its way."""

    def __init__(self) -> None:
        self.steps: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.steps[stage].append((done, total))

    def check(self, summary: Summary) -> None:
        """Every stage goes forward, and ends at its total."""
        ends = {stage: steps[-1] for stage, steps in self.steps.items()}
        expected = {name: (ROWS[name], ROWS[name]) for name in NAMES}
        expected["decode"] = (7, 7)
        assert ends == expected

        for steps in self.steps.values():
            assert steps == sorted(steps)
        assert summary.stages.keys() >= self.steps.keys()


def check_facts(summary: Summary) -> None:
    """The summary counts the rows, and says whose weights are random."""
    assert "limited by" in summary.sentence
    assert summary.features.keys() == set(EVERYTHING)
    for name, facts in summary.features.items():
        assert facts["rows"] == ROWS[name], name
        assert facts["random_weights"] == (name not in WITHOUT_WEIGHTS), name


def check_same_rows(corpus: Corpus, reference: Corpus) -> None:
    """Each feature is that of the reference: the same bytes where no encoder computes."""
    for name in EVERYTHING:
        tolerance = 0.0 if name in WITHOUT_WEIGHTS else 1e-5
        for values, expected in zip(corpus.rows(name), reference.rows(name), strict=True):
            assert relative_deviation(values, expected) <= tolerance, name


def damage(corpus: Corpus) -> None:
    """One utterance truncated, one too short for IS13, one without a transcript."""
    path = corpus.audio(2)
    path.write_bytes(path.read_bytes()[:-500])

    write_noise(corpus.audio(4), samples=480)

    texts: list[str | None] = [*TEXTS]
    texts[6] = None
    write_table(corpus.folder, texts)


def test_fail_is_the_default_and_lists_them(corpus: Corpus) -> None:
    damage(corpus)
    with pytest.raises(ExtractionStopped) as fault:
        corpus.extract("is13,logmel,bert")

    message = str(fault.value)
    assert "u002 (2.wav)" in message
    assert "u006" in message
    assert "--on-error skip" in message
    assert "\n" not in message


def test_what_stopped_the_run_is_tried_again(corpus: Corpus) -> None:
    write_noise(corpus.audio(4), samples=480)
    with pytest.raises(ExtractionStopped, match=r"u004 \(4\.wav\).*too short for is13 \(30 ms\)"):
        corpus.extract("is13,logmel", part_seconds=3)

    store = open_store(corpus.store)
    assert store.feature("is13").quarantined(store.manifest()) == {}


def test_what_has_no_row_stops_or_is_named(corpus: Corpus) -> None:
    """A line that no manifest row came of cannot be quarantined: it must not pass in silence."""
    with corpus.table.open("a") as table:
        table.write("u000,0.wav,again\n")
    problem = "0.wav: u000: line 10: the id u000 is there twice"

    refusal = f"^{re.escape(f'1 problem with the corpus: {problem}')}; correct the corpus.*"
    with pytest.raises(ExtractionStopped, match=f"{refusal}--on-error skip$"):
        corpus.extract("logmel")
    assert not corpus.store.exists()

    summary = corpus.extract("logmel", on_error="skip")
    assert summary.refused == [problem]
    assert not summary.whole
    assert not any(summary.quarantined.values())
    assert summary.features["logmel"]["rows"] == 8


def test_skip_quarantines_by_name(corpus: Corpus) -> None:
    damage(corpus)
    summary = corpus.extract("is13,logmel,bert,hubert", on_error="skip")
    assert not summary.whole

    quarantined = {name: set(reasons) for name, reasons in summary.quarantined.items()}
    assert quarantined == {
        "is13": {"u002", "u004"},
        "logmel": {"u002"},
        "bert": {"u006"},
        "hubert": {"u002"},
    }
    assert "cut short" in summary.quarantined["is13"]["u002"]
    assert summary.quarantined["bert"]["u006"] == "no transcript"
    for facts in summary.features.values():
        assert facts["rows"] + facts["quarantined"] == 8

    again = corpus.extract("is13,logmel,bert,hubert", on_error="skip")
    assert not again.whole
    for facts in again.features.values():
        assert facts["computed"] == 0


def test_what_is_quarantined_is_tried_again_by_retry_or_with_other_bytes(corpus: Corpus) -> None:
    damage(corpus)
    first = corpus.extract("is13", on_error="skip")
    assert set(first.quarantined["is13"]) == {"u002", "u004"}

    retried = corpus.extract("is13", on_error="skip", retry=True)
    assert retried.quarantined == first.quarantined

    # Other bytes: no retry is needed.
    write_noise(corpus.audio(2), samples=16000)
    mended = corpus.extract("is13", on_error="skip")
    assert set(mended.quarantined["is13"]) == {"u004"}
    assert mended.features["is13"]["computed"] == 1


def test_a_trial_with_limit_leaves_the_corpus_whole(corpus: Corpus) -> None:
    assert corpus.extract("is13", limit=3).features["is13"]["rows"] == 3

    facts = corpus.extract("is13").features["is13"]
    assert facts["rows"] == 8
    assert facts["computed"] == 5
    assert facts["reused"] == 3
    assert facts["quarantined"] == 0

    assert corpus.extract("mfcc", limit=3).features["mfcc"]["rows"] == 3
    assert len(open_store(corpus.store).manifest()) == 8


def test_warnings_of_the_scan_are_in_the_summary(corpus: Corpus) -> None:
    quiet = corpus.plan("mfcc", limit=3)
    warning = replace(quiet, scan=replace(quiet.scan, warnings=["a clip is left out"]))
    assert extract(warning).warnings == ["a clip is left out"]


def test_missing_weights_stop_what_names_them_before_anything_is_computed(corpus: Corpus) -> None:
    def features(names: str) -> Result:
        words = ["features", corpus.table, "--store", corpus.store, "--json"]
        words += ["--model", "hubert=/nowhere", "--model", f"bert={corpus.models['bert']}"]
        return ser(*words, "--features", names)

    for names in ("hubert,hubert:layer=1,bert,is13", "hubert,hubert:layer=1"):
        done = features(names)
        assert done.exit_code == 2
        assert done.stdout == ""
        assert done.stderr.startswith("ser: hubert: /nowhere: no such folder")
        assert not corpus.store.exists()


def test_missing_weights_leave_out_a_default_feature_by_name(corpus: Corpus) -> None:
    words = ["features", corpus.table, "--store", corpus.store, "--json"]
    for name in ENCODERS:
        place = "/nowhere" if name == "hubert" else corpus.models[name]
        words += ["--model", f"{name}={place}"]
    done = ser(*words)

    assert done.exit_code == 3
    before, _, after = done.stderr.partition("decode")
    assert "hubert: left out, its weights are not here: /nowhere: no such folder" in before
    rows = {name: facts["rows"] for name, facts in json.loads(done.stdout).items()}
    assert rows == {"mpnet": 8, "bert": 8, "is13": 8, "logmel": 8}

    last = after.splitlines()[-1]
    [named] = [part for part in last.split("`") if part.startswith("ser ")]
    assert "--features hubert --model hubert=PATH" in named
    command = shlex.split(named.replace("PATH", corpus.models["hubert"]))
    completed = ser(*command[1:])
    assert completed.exit_code == 0, completed.output
    assert open_store(corpus.store).feature("hubert").rows(open_store(corpus.store).manifest()) == 8


def test_without_opensmile_a_default_feature_is_left_out_by_name(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that is asked for is refused, with the command that installs it."""
    monkeypatch.setattr("ser.extract.resolve.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "ser.extract.smile", None)
    words = ["features", corpus.table, "--store", corpus.store, "--dry-run"]
    for name in ENCODERS:
        words += ["--model", f"{name}={corpus.models[name]}"]

    done = ser(*words)
    assert done.exit_code == 3
    remedy = "opensmile is not installed here; run `pip install 'ser-fusion[smile]'`"
    # The reason once, and the command that completes it.
    assert f"is13: left out: {remedy}" in done.output
    assert done.output.count(remedy) == 1
    assert done.output.splitlines()[-1].startswith("is13 left out; once that is seen to, `ser feat")
    assert "logmel" in done.output

    for name in ("egemaps", "smile:set=GeMAPSv01b"):
        refused = ser(*words, "--features", name)
        assert refused.exit_code == 2
        assert remedy in refused.output


def test_the_licence_of_opensmile_is_said_at_first_use(corpus: Corpus) -> None:
    words = ["features", corpus.table, "--store", corpus.store, "--features", "egemaps"]
    said = "for research and non-commercial use"
    assert said in ser(*words).output
    assert said not in ser(*words).output


def test_audio_that_changes_while_running_stops_it(corpus: Corpus) -> None:
    planned = corpus.plan("logmel", on_error="skip")
    original = corpus.audio(5).read_bytes()

    sf.write(corpus.audio(5), np.zeros(16000), 16000)
    with pytest.raises(CorpusError, match=r"5\.wav: changed"):
        extract(planned)
    corpus.audio(5).write_bytes(original)

    away = corpus.folder.with_name("away")
    corpus.folder.rename(away)
    with pytest.raises(CorpusError, match=r"\.wav: .*No such file.*mounted"):
        extract(planned)
    away.rename(corpus.folder)

    # Nothing is quarantined for what was away.
    assert extract(plan(planned.config)).whole


def test_a_corpus_that_lost_utterances_does_not_become_the_latest(corpus: Corpus) -> None:
    corpus.extract("logmel")
    whole = open_store(corpus.store).manifest().digest

    original = corpus.audio(3).read_bytes()
    corpus.audio(3).unlink()
    lost_one = r"8 utterances there, and 1 of them \(such as 'u003'\).*--replace"
    with pytest.raises(WrongUse, match=lost_one):
        corpus.extract("logmel", on_error="skip")
    corpus.audio(3).write_bytes(original)

    write_table(corpus.folder, TEXTS[:4])
    with pytest.raises(WrongUse, match=r"8 utterances there, and 4 of them"):
        corpus.extract("logmel")
    assert open_store(corpus.store).manifest().digest == whole
    assert len(generations(corpus.store / "manifests" / "corpus")) == 1


def test_replace_makes_it_the_latest_and_rollback_takes_it_back(corpus: Corpus) -> None:
    corpus.extract("logmel")
    write_table(corpus.folder, TEXTS[:4])
    assert corpus.extract("logmel", replace=True).features["logmel"]["rows"] == 4
    assert len(open_store(corpus.store).manifest()) == 4

    back = ser("cache", "rollback", "corpus", "--store", corpus.store)
    assert "8 utterances" in back.stdout
    forth = ser("cache", "rollback", "corpus", "--store", corpus.store)
    assert "4 utterances" in forth.stdout

    log = generations(corpus.store / "manifests" / "corpus")
    commands = [generation.command for generation in log]
    assert commands == ["features", "features", "cache rollback", "cache rollback"]


def test_a_plan_writes_nothing(corpus: Corpus) -> None:
    corpus.plan(check=5)
    assert not corpus.store.exists()


CHECKED = (*EVERYTHING, "hubert:layer=1,pool=mean")


@dataclass(frozen=True)
class CheckedExtraction:
    """An extraction of `CHECKED` in which five utterances were compared with one by one."""

    plan: ExtractionPlan
    summary: Summary
    store: Path


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory, models: dict[str, str]) -> CheckedExtraction:
    folder = tmp_path_factory.mktemp("checked")
    write_corpus(folder / "corpus", TEXTS, [0.6 + number / 2 for number in range(8)])
    corpus = Corpus(folder / "corpus", models, folder / "store")
    planned = corpus.plan(",".join(CHECKED), check=5)
    return CheckedExtraction(planned, extract(planned), corpus.store)


def test_a_check_records_the_deviation(checked: CheckedExtraction) -> None:
    deviations = checked.summary.check
    assert deviations.keys() == set(CHECKED)
    assert deviations["is13"] == 0
    for name, deviation in deviations.items():
        assert deviation <= 1e-5, name

    hubert = open_store(checked.store).feature("hubert")
    assert "max_relative" in (hubert.path / "spec.json").read_text()


def test_a_plan_estimates_the_bytes_and_knows_what_is_there(checked: CheckedExtraction) -> None:
    written = sum(path.stat().st_size for path in checked.store.rglob("c/*/*"))
    assert 0.7 < checked.plan.bytes / written < 1.3

    again = plan(checked.plan.config)
    assert list(again.missing.values()) == [[]] * len(CHECKED)


def test_frames_and_tokens_are_float16_by_default(checked: CheckedExtraction) -> None:
    features = open_store(checked.store).features()
    float32 = {feature.spec.name for feature in features if feature.spec.dtype == "float32"}
    assert float32 == {"is13", "hubert:layer=1,pool=mean"}


def test_each_token_has_the_number_of_its_word(checked: CheckedExtraction) -> None:
    store = open_store(checked.store)
    packed = store.feature("bert").load(store.manifest())
    word = packed.extras["word"]
    assert word.dtype == np.int32
    assert len(word) == len(packed.values)


def test_a_check_of_no_utterance_is_no_perfect_one(corpus: Corpus) -> None:
    """No number at all, rather than 0.0, where IS13 has no utterance long enough."""
    write_corpus(corpus.folder, ["Yeah."], [0.03])
    summary = corpus.extract("is13,bert", check=1, on_error="skip")
    assert summary.check.keys() == {"bert"}


def test_the_time_is_estimated_from_the_corpus_itself(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right to a factor of four. The encoders that the estimate opened serve the run."""
    # By the CPU's clock: others share the machine.
    monkeypatch.setattr("ser.extract.pipeline.time", SimpleNamespace(perf_counter=time.thread_time))
    least = 40
    monkeypatch.setattr("ser.extract.run.MIN_ESTIMATED", least)
    texts = [f"{number} times" for number in range(least)]
    write_corpus(corpus.folder, texts, list(np.linspace(0.6, 2.0, least)))

    too_few = corpus.plan("is13", limit=least - 1)
    assert ExtractionRun(too_few).estimate() is None

    with ExtractionRun(corpus.plan("hubert,is13")) as run:
        estimate = run.estimate()
        extractors = run.worker.extractors("audio")
        start = time.process_time()
        summary = run.extract()
        seconds = (time.process_time() - start) / engines.cores()
        assert run.worker.extractors("audio") is extractors

    assert estimate is not None
    assert seconds / 4 < estimate < seconds * 4
    assert summary.features["hubert"]["computed"] == least

    nothing_left = corpus.plan("hubert,is13")
    assert ExtractionRun(nothing_left).estimate() is None


def test_several_gpus_get_a_process_each(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    planned = corpus.plan("hubert", part_seconds=3)
    assert len(planned.tasks()) > 2
    assert ExtractionRun(planned).processes == 2

    named = replace(planned, config=replace(planned.config, device="cuda:1"))
    assert ExtractionRun(named).processes == 1

    configs: list[WorkerConfig] = []

    def do_nothing(_function: Any, tasks: Any, _processes: int) -> list[Any]:
        configs.extend(task.config for task in tasks)
        return []

    monkeypatch.setattr(engines, "run", do_nothing)
    with pytest.raises(SerError, match="unaccounted for"):
        extract(planned)
    assert {config.device for config in configs} == {"auto"}

    # Chosen by the process that computes.
    monkeypatch.setattr(machine, "this_worker", 1)
    assert configs[0].here().device == "cuda:1"


def test_a_disk_too_small_is_refused_before_it_starts(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    with pytest.raises(StoreError, match=r"about 0\.20 MB will be written and 0\.01 MB are free"):
        corpus.plan("is13")


def test_a_worker_that_dies_is_named(corpus: Corpus) -> None:
    """A process killed by the kernel: one sentence, and what was published stays."""
    texts = [*TEXTS]
    texts[3] += " [wait]"
    write_table(corpus.folder, texts)

    options = ("--features", "is13,standin", "--workers", 2, "--part-seconds", 1)
    command = ser_features(corpus.table, corpus.store, 1, *options)
    never = {**os.environ, "SER_STAND_IN_GO": str(corpus.folder / "never")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=never)

    # Two, and the one that forks them.
    processes = workers_of(process.pid)
    while len(processes) < 3 and process.poll() is None:
        time.sleep(0.05)
        processes = workers_of(process.pid)
    processes[1].kill()

    _, errors = process.communicate()
    assert process.returncode == 1
    assert "SIGKILL" in errors
    assert "what was finished is kept" in errors

    again = corpus.extract("is13,standin", part_seconds=1)
    assert again.features["is13"]["rows"] == 8
    assert again.features["standin"]["rows"] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"features": "is14"}, "did you mean is13", id="misspelt"),
        pytest.param(
            {"features": "hubert", "models": {"hubert": "/nowhere at all"}},
            "no such folder",
            id="weights that are not there",
        ),
        pytest.param(
            {"features": "is13", "models": ["is13=/x"]},
            "without weights",
            id="weights of what has none",
        ),
        pytest.param(
            {"features": "is13", "models": ["hubert"]}, "NAME=ID_OR_PATH", id="a model's name alone"
        ),
        pytest.param(
            {"features": "is13", "backend": "pickle"}, "zarr or hdf5", id="another backend"
        ),
        pytest.param({"features": "is13", "part_seconds": 0}, "above 0", id="empty parts"),
        pytest.param({"features": ""}, "no feature is named", id="no feature"),
        pytest.param(
            {"features": "is13, log mel"}, "unknown feature .log mel.", id="a space in a name"
        ),
        pytest.param({"features": "logmel:window=inf"}, "window is a number", id="infinite"),
        pytest.param({"features": "logmel:hop=nan"}, "hop is a number", id="not a number"),
        pytest.param({"features": "logmel", "device": "tpu"}, "cuda:N", id="another device"),
        pytest.param(
            {"features": "logmel", "device": "cuda:7"},
            "cuda:7: torch finds no such device here",
            id="a GPU that is not here",
        ),
        pytest.param(
            {"features": "logmel", "device": "cuda:7", "scheduler": "local:2"},
            "torch finds no such device here",
            id="a GPU that is not here, for workers",
        ),
        pytest.param(
            {"features": "is13", "corpus": Path("elsewhere")},
            "elsewhere does not",
            id="a corpus that is not there",
        ),
        pytest.param(
            {"features": "is13", "store": Path(__file__).parent},
            "not a store and not empty; name another",
            id="a folder of other things",
        ),
    ],
)
def test_wrong_requests(corpus: Corpus, options: dict[str, Any], message: str) -> None:
    with pytest.raises(WrongUse, match=message):
        corpus.plan(**options)
    assert not corpus.store.exists()


def test_new_speech_gets_the_stores_numbers(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus.extract("hubert:layers=0-1,bert,is13,logmel")
    features = open_store(corpus.store).features()
    digested: list[str] = []

    def note_digest(path: Path, files: Any) -> Any:
        digested.append(path.name)
        return digest_checkpoint(path, files)

    monkeypatch.setattr("ser.weights.digest.digest_checkpoint", note_digest)
    resolved = resolve_again([feature.spec for feature in features], corpus.models)
    # The checkpoint of two layers once.
    assert sorted(digested) == ["bert", "hubert"]

    for feature, again in zip(features, resolved, strict=True):
        speech = corpus.audio(0) if feature.spec.modality == "audio" else TEXTS[0]
        warnings: list[str] = []
        [rows] = extract_utterance(load_extractors([again]), speech, warnings).values()
        assert not warnings
        assert np.array_equal(rows.values.squeeze(), feature["u000"].squeeze())


def test_new_speech_that_is_cut_short_is_refused(corpus: Corpus) -> None:
    audio = corpus.audio(0)
    audio.write_bytes(audio.read_bytes()[:9000])
    with pytest.raises(UtteranceError, match="cut short"):
        extract_utterance([], audio, [])


def test_what_would_be_computed_otherwise_is_refused(corpus: Corpus) -> None:
    corpus.extract("hubert,is13")
    store = open_store(corpus.store)

    other = write_random_checkpoint(corpus.folder / "other", "hubert", seed=1)
    with pytest.raises(WrongUse, match=r"checkpoint.*--model hubert=PATH"):
        resolve_again([store.feature("hubert").spec], {"hubert": str(other)})

    is13 = store.feature("is13").spec
    with pytest.raises(WrongUse, match="differs in version"):
        resolve_again([replace(is13, version=0)])

    imported = replace(is13, feature="gemaps", extractor="import")
    reason = "imported from a file, and cannot be computed for new speech"
    with pytest.raises(WrongUse, match=reason):
        resolve_again([imported])


def test_a_text_beyond_512_tokens_is_cut_and_told(corpus: Corpus) -> None:
    write_table(corpus.folder, ["oh " * 700, *TEXTS[1:]])
    summary = corpus.extract("bert,bert:layer=1,mpnet", limit=2)
    assert [warning for warning in summary.warnings if "cut" in warning] == [
        "u000: its transcript of 702 tokens is cut to 512 for bert",
        "u000: its transcript of 702 tokens is cut to 512 for mpnet",
    ]
    assert corpus.rows("bert")[0].shape == (512, 64)
