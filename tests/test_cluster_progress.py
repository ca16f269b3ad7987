"""What of a plan is in the store by now, whoever has published it. Nothing here runs on a cluster."""

import shutil
from pathlib import Path

import pytest

from ser.extract.cluster_tasks import StoreProgress, extract_task
from ser.extract.plan import ExtractionPlan
from ser.extract.run import ExtractionConfig, plan
from ser.extract.worker import new_parts, part_names
from ser.tests.stand_in_corpus import contents, part_seconds, run, slow_texts, write_corpus


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


def test_a_stage_of_several_features_is_done_when_all_have_it(tmp_path: Path) -> None:
    corpus, store = write_corpus(tmp_path / "corpus", slow_texts(4, 0)), tmp_path / "store"
    watched = Watched(planned(corpus, store, "standin:shift=1,standin:shift=2"))
    run(corpus, store, "standin:shift=1")
    assert watched.look() == {"standin": 0} and watched.seen.total == {"standin": 4}
    run(corpus, store, "standin:shift=2", limit=3)
    assert watched.look() == {"standin": 3}


def test_other_transcripts_do_not_count(tmp_path: Path) -> None:
    corpus, store = write_corpus(tmp_path / "corpus", slow_texts(3, 0)), tmp_path / "store"
    watched = Watched(planned(corpus, store, "standin"))
    run(write_corpus(tmp_path / "changed", ["other", *slow_texts(3, 0)[1:]]), store, corpus_name="corpus")
    assert watched.look() == {"standin": 2}
    run(corpus, store, corpus_name="elsewhere")
    assert watched.look() == {"standin": 2}


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


def test_a_part_that_makes_no_sense_is_left_to_those_who_read_it(tmp_path: Path) -> None:
    corpus, store = write_corpus(tmp_path / "corpus", slow_texts(4, 0)), tmp_path / "store"
    watched = Watched(planned(corpus, store, "standin"))
    run(corpus, store, per_part=2)
    first, _ = sorted(store.glob("standin/*/parts/*/part.json"))
    first.write_text("{}")
    assert watched.look() == {"standin": 2}


def test_each_part_is_read_once(tmp_path: Path) -> None:
    corpus, store = write_corpus(tmp_path / "corpus", slow_texts(4, 0)), tmp_path / "store"
    run(corpus, store, per_part=2)
    [folder] = store.glob("standin/*")
    late, all_ = part_names(folder), set[str]()
    assert [len(list(new_parts(folder, known))) for known in (late, all_, all_)] == [0, 2, 0]
    run(corpus, store, per_part=2, corpus_name="again")
    (folder / "parts" / "Thumbs.db").touch()
    assert [len(list(new_parts(folder, known))) for known in (late, all_, all_)] == [2, 2, 0]
    assert list(new_parts(tmp_path / "nowhere", set())) == []


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
