"""How tasks are handed out, cut up and given up, and what of a plan is in the store by now, whoever published it.

Nothing here runs on a cluster.
"""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ser.cache.store import open_store
from ser.extract.cluster_tasks import StoreProgress, extract_task, for_workers, give_up, split
from ser.extract.plan import ExtractionPlan, ExtractionTask
from ser.extract.run import ExtractionConfig, plan
from ser.tests.stand_in import StandInExtractor
from ser.tests.stand_in_corpus import contents, part_seconds, run, slow_texts, write_corpus
from ser.weights.find import Checkpoint


def one_task(corpus: Path, store: Path, features: str) -> ExtractionTask:
    """All of a small corpus as one task."""
    made = plan(ExtractionConfig(corpus, features, store=store, on_error="skip", device="cpu"))
    opened = open_store(store, create=True)
    opened.put_manifest(made.manifest)
    for feature in made.features:
        opened.add(feature.resolved.spec)
    [task] = made.tasks()
    [found] = for_workers(task, on_gpu=False)
    return found


def test_what_is_sent_is_small_and_features_with_a_model_go_to_gpus_apart(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", ["a", "bb", "ccc"])
    both = one_task(corpus, tmp_path / "store", "standin,standin2")
    assert pickle.loads(pickle.dumps(both)) == both
    assert not any(hasattr(utterance, "__dict__") for utterance in both.utterances), "64 bytes more for each of them"
    modelled = replace(both.config.resolved[0], checkpoint=Checkpoint(Path("weights"), "a model", "digest"))
    config = replace(both.config, resolved=(modelled, both.config.resolved[1]))
    both = replace(both, config=config)
    gpu, cpu = for_workers(both, on_gpu=True)
    assert [list(one.missing) for one in (gpu, cpu)] == [[one.spec.fingerprint] for one in config.resolved]
    assert [one.spec for each in (gpu, cpu) for one in each.config.resolved] == [one.spec for one in config.resolved]
    checkpoint = gpu.config.resolved[0].checkpoint
    assert checkpoint is not None and checkpoint.path.is_absolute() and gpu.config.store.is_absolute()
    [together] = for_workers(both, on_gpu=False)
    assert together.utterances == both.utterances and together.missing == both.missing


def test_a_task_is_cut_by_utterances_then_by_features_then_not(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", ["a", "bb", "ccc"])
    whole = one_task(corpus, tmp_path / "store", "standin,standin2")
    pieces = split(whole, {})
    assert pieces is not None
    assert [[u.id for u in piece.utterances] for piece in pieces] == [["u002"], ["u001", "u000"]]
    by_feature = split(pieces[0], {})
    assert by_feature is not None and [len(piece.missing) for piece in by_feature] == [1, 1]
    assert split(by_feature[0], {}) is None
    [[given_up]] = give_up(by_feature[0], "it kills").quarantined.values()
    assert (given_up.id, given_up.path, given_up.reason) == ("u002", "", "it kills") and given_up.input
    extract_task(by_feature[1])
    store = open_store(tmp_path / "store")
    found = [store[name].quarantined(store.manifest()) for name in ("standin", "standin2")]
    assert found == [{"u002": "it kills"}, {}]
    # What has come into the store meanwhile, cut in whatever way, is not a task again.
    [rest] = split(whole, {}) or []
    assert {u.id for u in rest.utterances} == {"u000", "u001", "u002"}
    assert sorted(map(len, rest.missing.values())) == [2, 3]
    extract_task(rest)
    assert split(whole, {}) == []


def planned(corpus: Path, store: Path, features: str, per_part: float = 2, **options: object) -> ExtractionPlan:
    return plan(ExtractionConfig(corpus, features, store=store, part_seconds=part_seconds(corpus, per_part), **options))


class Watched:
    """A plan, and all that is told of it."""

    def __init__(self, made: ExtractionPlan) -> None:
        self.told: dict[str, list[int]] = {}
        self.tasks = made.tasks()
        self.seen = StoreProgress(made, lambda stage, done, total: self.told.setdefault(stage, []).append(done))

    def look(self) -> dict[str, int]:
        self.seen.update(anew=True)
        assert all(steps == sorted(set(steps)) for steps in self.told.values()), "it goes up, and is told once"
        return {stage: steps[-1] for stage, steps in self.told.items()}

    def left(self) -> list[int]:
        return [len(task.utterances) for task in self.seen.left(self.tasks)]


def test_whoever_publishes_counts(tmp_path: Path) -> None:
    corpus, store = write_corpus(tmp_path / "corpus", slow_texts(9, 0)), tmp_path / "store"
    run(corpus, store, per_part=3, limit=3)  # three of nine were there before the plan
    watched = Watched(planned(corpus, store, "standin,standin2"))
    assert watched.look() == {"standin": 0, "standin2": 0}
    assert watched.seen.total == {"standin": 6, "standin2": 9} and watched.left() == [2, 2, 2, 2, 1]
    run(corpus, store, per_part=5, limit=5)  # another command, which cuts its parts otherwise
    assert watched.look() == {"standin": 2, "standin2": 0}
    run(corpus, store, features="standin2", per_part=4, limit=3)
    assert watched.look() == {"standin": 2, "standin2": 3}
    assert watched.left() == [1, 2, 2, 1]  # u000 to u002 have both, u003 and u004 lack standin2
    run(corpus, store, "standin,standin2")
    assert watched.look() == {"standin": 6, "standin2": 9} and watched.left() == []
    shutil.rmtree(store / "standin")
    run(corpus, store)
    assert watched.look() == {"standin": 6, "standin2": 9}, "never more than there is"


def test_a_stage_is_done_where_all_its_features_have_the_same_words(tmp_path: Path) -> None:
    """Rows of other transcripts, rows of another corpus and parts that make no sense do not count."""
    corpus, store = write_corpus(tmp_path / "corpus", slow_texts(4, 0)), tmp_path / "store"
    watched = Watched(planned(corpus, store, "standin:shift=1,standin:shift=2"))
    run(corpus, store, "standin:shift=1")
    assert watched.look() == {"standin": 0} and watched.seen.total == {"standin": 4}
    other = write_corpus(tmp_path / "changed", ["other", *slow_texts(4, 0)[1:]])
    run(other, store, "standin:shift=2", per_part=2, limit=3, corpus_name="corpus", replace=True)
    assert watched.look() == {"standin": 2}
    run(corpus, store, "standin:shift=2", corpus_name="elsewhere")
    assert watched.look() == {"standin": 2}
    run(corpus, store, "standin:shift=2", per_part=1)
    for part in store.glob("standin/*/parts/*/part.json"):
        if "u003" in part.read_text():
            part.write_text("{}")
    assert watched.look() == {"standin": 3}, "what cannot be read is left to those who read it"


def test_what_is_tried_again_counts_when_it_comes_back(tmp_path: Path) -> None:
    corpus, store = write_corpus(tmp_path / "corpus", ["fine", "[bad] 1", "[bad] 2"]), tmp_path / "store"
    first = Watched(planned(corpus, store, "standin", on_error="skip"))
    summary = run(corpus, store, on_error="skip")
    assert first.look() == {"standin": 3} and len(summary.quarantined["standin"]) == 2
    made = planned(corpus, store, "standin", on_error="skip", retry=True)
    watched = Watched(made)
    assert watched.look() == {"standin": 0} and watched.seen.total == {"standin": 2}
    for task in made.tasks():
        watched.seen.add(extract_task(task))
    assert watched.look() == {"standin": 2}


def test_a_worker_drops_what_came_while_it_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever engine runs it: half of its part is published by another command, cut otherwise."""
    corpus, store = write_corpus(tmp_path / "corpus", slow_texts(4, 0.3)), tmp_path / "store"
    extract = StandInExtractor.extract

    def meanwhile(self: StandInExtractor, text: str) -> object:
        monkeypatch.setattr(StandInExtractor, "extract", extract)
        run(corpus, store, per_part=2, limit=2)
        return extract(self, text)

    monkeypatch.setattr(StandInExtractor, "extract", meanwhile)
    summary = run(corpus, store, per_part=4)
    assert summary.features["standin"]["rows"] == 4 and summary.features["standin"]["computed"] == 2
    assert len(contents(store)) == 1
