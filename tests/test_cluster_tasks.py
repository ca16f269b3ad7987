"""How tasks are handed out, cut up and given up. Nothing here runs on a cluster."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from ser.cache.store import open_store
from ser.extract.cluster_tasks import by_device, extract_task, give_up, split
from ser.extract.plan import ExtractionTask
from ser.extract.run import ExtractionConfig, plan
from ser.tests.stand_in import StandInExtractor
from ser.tests.stand_in_corpus import contents, run, write_corpus
from ser.weights.find import Checkpoint

TEXTS = ["a", "bb", "ccc", "dddd"]


def one_task(corpus: Path, store: Path, features: str) -> ExtractionTask:
    """All of a small corpus as one task."""
    made = plan(ExtractionConfig(corpus, features, store=store, on_error="skip", device="cpu"))
    opened = open_store(store, create=True)
    opened.put_manifest(made.manifest)
    for feature in made.features:
        opened.add(feature.resolved.spec)
    [task] = made.tasks()
    return task


def test_what_is_sent_is_small_and_features_with_a_model_go_to_gpus_apart(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", TEXTS[:3])
    both = one_task(corpus, tmp_path / "store", "standin,standin2")
    assert pickle.loads(pickle.dumps(both)) == both
    assert not any(hasattr(utterance, "__dict__") for utterance in both.utterances), "64 bytes more for each of them"
    modelled = replace(both.config.resolved[0], checkpoint=Checkpoint(Path("weights"), "a model", "digest"))
    config = replace(both.config, resolved=(modelled, both.config.resolved[1]))
    both = replace(both, config=config)
    gpu, cpu = by_device(both)
    assert [one.fingerprints for one in (gpu, cpu)] == [(one.spec.fingerprint,) for one in config.resolved]
    assert [one.spec for each in (gpu, cpu) for one in each.config.resolved] == [one.spec for one in config.resolved]
    assert gpu.config.asked.store.is_absolute() and gpu.config.root.is_absolute()


def test_a_task_is_cut_by_utterances_then_by_features_then_not(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", TEXTS[:3])
    whole = one_task(corpus, tmp_path / "store", "standin,standin2")
    pieces = split(whole)
    assert [[u.id for u in piece.utterances] for piece in pieces] == [["u002"], ["u001", "u000"]]
    by_feature = split(pieces[0])
    assert by_feature is not None and [len(piece.fingerprints) for piece in by_feature] == [1, 1]
    assert split(by_feature[0]) is None
    [[given_up]] = give_up(by_feature[0], "it kills").quarantined.values()
    assert (given_up.id, given_up.path, given_up.reason) == ("u002", "", "it kills") and given_up.input
    extract_task(by_feature[1])
    store = open_store(tmp_path / "store")
    found = [store[name].quarantined(store.manifest()) for name in ("standin", "standin2")]
    assert found == [{"u002": "it kills"}, {}]
    # What has come into the store meanwhile, cut in whatever way, is not a task again.
    rest = split(whole) or []
    assert [(len(one.utterances), len(one.fingerprints)) for one in rest] == [(1, 1), (2, 2)]
    assert all(extract_task(one).computed for one in rest)
    assert split(whole) == []


def test_a_worker_drops_what_came_while_it_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever engine runs it: half of its part is published by another command, cut otherwise."""
    corpus, store = write_corpus(tmp_path / "corpus", TEXTS), tmp_path / "store"
    extract = StandInExtractor.extract

    def meanwhile(self: StandInExtractor, text: str) -> object:
        monkeypatch.setattr(StandInExtractor, "extract", extract)
        run(corpus, store, per_part=2, limit=2)
        return extract(self, text)

    monkeypatch.setattr(StandInExtractor, "extract", meanwhile)
    summary = run(corpus, store, per_part=4)
    assert summary.features["standin"]["rows"] == 4 and summary.features["standin"]["computed"] == 2
    assert len(contents(store)) == 1
