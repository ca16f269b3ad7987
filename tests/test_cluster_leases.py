"""How tasks are handed out, cut up and given up. Nothing here runs on a cluster."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from ser.cache.store import open_store
from ser.extract.cluster_tasks import by_device, cpu_needs, extract_task, give_up, split
from ser.extract.plan import ExtractionTask
from ser.extract.run import ExtractionConfig, plan
from ser.tests.stand_in_corpus import contents, run, slow_texts, write_corpus
from ser.weights.find import Checkpoint


def one_task(corpus: Path, store: Path, features: str) -> ExtractionTask:
    """All of a small corpus as one task."""
    made = plan(ExtractionConfig(corpus, features, store=store, on_error="skip", device="cpu"))
    opened = open_store(store, create=True)
    opened.put_manifest(made.manifest)
    for feature in made.features:
        opened.add(feature.resolved.spec)
    [task] = made.tasks()
    return task


def test_on_gpus_features_with_a_model_are_tasks_of_their_own(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", ["a", "bb", "ccc"])
    both = one_task(corpus, tmp_path / "store", "standin,standin2")
    modelled = replace(both.config.resolved[0], checkpoint=Checkpoint(Path("weights"), "a model", "digest"))
    config = replace(both.config, resolved=(modelled, both.config.resolved[1]))
    both = replace(both, config=config)
    gpu, cpu = by_device(both)
    assert [list(one.missing) for one in (gpu, cpu)] == [[one.spec.fingerprint] for one in config.resolved]
    assert [[one.spec for one in each.config.resolved] for each in (gpu, cpu)] == [
        [one.spec] for one in config.resolved
    ]
    assert gpu.config.store.is_absolute() and gpu.config.root.is_absolute()


def test_a_plain_worker_beside_one_with_a_gpu_is_not_idle() -> None:
    gpu, cpu, plain = {"GPU": 1.0, "CPU": 8.0}, {"CPU": 4.0}, dict[str, float]()
    for kinds in ([gpu], [gpu, cpu], [cpu], [{"GPU": 1.0}, cpu]):
        assert cpu_needs(kinds) == {"CPU": 1.0}
    for kinds in ([gpu, plain], [gpu, cpu, plain], [cpu, {"TPU": 1.0}], [{"GPU": 1.0}], [plain], []):
        assert cpu_needs(kinds) == {}


def test_a_task_that_was_sent_leaves_nothing_in_the_plan(tmp_path: Path) -> None:
    """Pickling an object that may have a dict makes it one, which the plan then keeps: 64 bytes for each of them."""
    whole = one_task(write_corpus(tmp_path / "corpus", ["a", "bb"]), tmp_path / "store", "standin")
    assert pickle.loads(pickle.dumps(whole)) == whole
    assert not any(hasattr(utterance, "__dict__") for utterance in whole.utterances)


def test_a_task_is_cut_by_utterances_then_by_features_then_not(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", ["a", "bb", "ccc"])
    whole = one_task(corpus, tmp_path / "store", "standin,standin2")
    pieces = split(whole)
    assert pieces is not None
    assert [[u.id for u in piece.utterances] for piece in pieces] == [["u002"], ["u001", "u000"]]
    by_feature = split(pieces[0])
    assert by_feature is not None and [len(piece.missing) for piece in by_feature] == [1, 1]
    assert split(by_feature[0]) is None
    record = give_up(by_feature[0], "it kills")
    assert [q.id for [q] in record.quarantined.values()] == ["u002"]
    extract_task(by_feature[1])
    store = open_store(tmp_path / "store")
    assert [feature.quarantined(store.manifest()) for feature in (store["standin"], store["standin2"])] == [
        {"u002": "it kills"},
        {},
    ]
    # What has come into the store meanwhile, cut in whatever way, is not a task again.
    [rest] = split(whole) or []
    assert {u.id for u in rest.utterances} == {"u000", "u001", "u002"}
    assert sorted(map(len, rest.missing.values())) == [2, 3]
    extract_task(rest)
    assert split(whole) == []


def test_what_is_given_up_is_quarantined_with_its_file(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", ["a"])
    for features, path in (("logmel", "0.wav"), ("standin", "")):
        [[entry]] = give_up(one_task(corpus, tmp_path / "store", features), "it kills").quarantined.values()
        assert (entry.id, entry.path, entry.reason) == ("u000", path, "it kills") and entry.input


def test_a_worker_drops_what_came_while_it_computed(tmp_path: Path) -> None:
    """Whatever engine runs it: half of its part is published by another command, cut otherwise."""
    corpus, store = write_corpus(tmp_path / "corpus", slow_texts(4, 0.3)), tmp_path / "store"
    with pytest.MonkeyPatch.context() as patch:
        from ser.tests.stand_in import StandInExtractor

        extract = StandInExtractor.extract

        def meanwhile(self: StandInExtractor, text: str) -> object:
            patch.setattr(StandInExtractor, "extract", extract)
            run(corpus, store, per_part=2, limit=2)
            return extract(self, text)

        patch.setattr(StandInExtractor, "extract", meanwhile)
        summary = run(corpus, store, per_part=4)
    assert summary.features["standin"]["rows"] == 4 and summary.features["standin"]["computed"] == 2
    assert len(contents(store)) == 1
