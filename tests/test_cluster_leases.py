"""Leases: how parts are handed out, cut up and given up. Nothing here runs on a cluster."""

import pickle
from dataclasses import replace
from pathlib import Path

from ser.cache.store import open_store
from ser.extract.cluster_tasks import Task, extract_part, leases, lost, some_cpu, split
from ser.extract.run import ExtractionConfig, plan
from ser.extract.worker import Setup
from ser.tests.stand_in_corpus import write_corpus
from ser.weights.find import Checkpoint


def lease(corpus: Path, store: Path, features: str) -> Task:
    """All of a small corpus as one lease."""
    made = plan(ExtractionConfig(corpus, features, store=store, on_error="skip"))
    wanted = tuple(feature.wanted for feature in made.features)
    opened = open_store(store, create=True)
    opened.put_manifest(made.manifest)
    for one in wanted:
        opened.add(one.spec)
    setup = Setup(store, made.scan.root, made.manifest.corpus, wanted, "zarr", "cpu", 1, None, True)
    [found] = leases(setup, made.parts(), on_gpu=False)
    return found


def test_on_gpus_features_with_a_model_are_leased_apart(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", ["a", "bb", "ccc"])
    both = lease(corpus, tmp_path / "store", "standin,standin2")
    modelled = replace(both.setup.wanted[0], checkpoint=Checkpoint(Path("weights"), "a model", "digest"))
    setup = replace(both.setup, wanted=(modelled, both.setup.wanted[1]))
    gpu, cpu = leases(setup, [both.part], on_gpu=True)
    assert [list(one.part.missing) for one in (gpu, cpu)] == [[one.spec.fingerprint] for one in setup.wanted]
    assert [[one.spec for one in each.setup.wanted] for each in (gpu, cpu)] == [[one.spec] for one in setup.wanted]
    checkpoint = gpu.setup.wanted[0].checkpoint
    assert checkpoint is not None and checkpoint.path.is_absolute() and gpu.setup.store.is_absolute()
    [together] = leases(setup, [both.part], on_gpu=False)
    assert together.part == both.part


def test_a_plain_worker_beside_one_with_a_gpu_is_not_idle() -> None:
    gpu, cpu, plain = {"GPU": 1.0, "CPU": 8.0}, {"CPU": 4.0}, dict[str, float]()
    for kinds in ([gpu], [gpu, cpu], [cpu], [{"GPU": 1.0}, cpu]):
        assert some_cpu(kinds) == {"CPU": 1.0}
    for kinds in ([gpu, plain], [gpu, cpu, plain], [cpu, {"TPU": 1.0}], [{"GPU": 1.0}], [plain], []):
        assert some_cpu(kinds) == {}


def test_a_lease_that_was_sent_leaves_nothing_in_the_plan(tmp_path: Path) -> None:
    """Pickling an object that may have a dict makes it one, which the plan then keeps: 64 bytes for each of them."""
    whole = lease(write_corpus(tmp_path / "corpus", ["a", "bb"]), tmp_path / "store", "standin")
    assert pickle.loads(pickle.dumps(whole)) == whole
    assert not any(hasattr(utterance, "__dict__") for utterance in whole.part.utterances)


def test_a_lease_is_cut_by_utterances_then_by_features_then_not(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", ["a", "bb", "ccc"])
    whole = lease(corpus, tmp_path / "store", "standin,standin2")
    pieces = split(whole)
    assert pieces is not None
    assert [[u.id for u in piece.part.utterances] for piece in pieces] == [["u002"], ["u001", "u000"]]
    by_feature = split(pieces[0])
    assert by_feature is not None and [len(piece.part.missing) for piece in by_feature] == [1, 1]
    assert split(by_feature[0]) is None
    record = lost(by_feature[0], "it kills")
    assert [q.id for [q] in record.quarantined.values()] == ["u002"]
    extract_part(by_feature[1])
    store = open_store(tmp_path / "store")
    assert [feature.quarantined(store.manifest()) for feature in (store["standin"], store["standin2"])] == [
        {"u002": "it kills"},
        {},
    ]
    # What has come into the store meanwhile, cut in whatever way, is not leased again.
    [rest] = split(whole) or []
    assert {u.id for u in rest.part.utterances} == {"u000", "u001", "u002"}
    assert sorted(map(len, rest.part.missing.values())) == [2, 3]
    extract_part(rest)
    assert split(whole) == []


def test_what_is_lost_is_quarantined_with_its_file(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", ["a"])
    for features, path in (("logmel", "0.wav"), ("standin", "")):
        [[entry]] = lost(lease(corpus, tmp_path / "store", features), "it kills").quarantined.values()
        assert (entry.id, entry.path, entry.reason) == ("u000", path, "it kills") and entry.input
