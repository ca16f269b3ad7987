"""Which schedulers are talked to, how tasks are handed out and given up, without a cluster."""

import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from ser.cache.store import open_store
from ser.engines.cluster import Cluster
from ser.engines.scheduler import check_scheduler, no_worker
from ser.errors import WrongUse
from ser.extract.cluster import by_device, give_up, split
from ser.extract.pipeline import extract_task
from ser.extract.run import ExtractionConfig, plan
from ser.extract.tasks import ExtractionTask
from ser.tests.dask_processes import HERE
from ser.tests.stand_in import StandInExtractor
from ser.tests.stand_in_corpus import contents, run, write_corpus
from ser.weights.checkpoint import Checkpoint

DOCS = Path(__file__).parent.parent / "docs"
NEAR = "tcp://127.0.0.1:8786"
FAR = "tcp://10.0.0.1:8786"


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("tcp://127.1.2.3:1", id="loopback"),
        pytest.param("tcp://[::1]:8786", id="loopback of IPv6"),
        pytest.param("tcp://localhost:8786", id="localhost"),
        pytest.param("tls://far:1", id="encrypted"),
    ],
)
def test_this_machine_and_encrypted_ones(address: str, caplog: pytest.LogCaptureFixture) -> None:
    assert check_scheduler(address) == address
    assert not caplog.records


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("tcp://10.0.0.1:8786", id="another machine"),
        pytest.param("tcp://0.0.0.0:8786", id="any address"),
        pytest.param("tcp://[::]:1", id="any address of IPv6"),
        pytest.param("tcp://127.0.0.1.evil.org:1", id="a name that begins with loopback"),
        pytest.param("tcp://localhost.evil.org:1", id="a name that begins with localhost"),
        pytest.param("tcp://127.0.0.1@10.0.0.1:1", id="loopback as a user"),
        pytest.param("tcp://2130706433:1", id="loopback as one number"),
        pytest.param("ws://10.0.0.1:1", id="a web socket"),
        pytest.param("ucx://10.0.0.1:1", id="UCX"),
    ],
)
def test_plain_ones_elsewhere(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(WrongUse, match=r"dask runs whatever it is sent.*--insecure"):
        check_scheduler(address)
    with caplog.at_level(logging.WARNING):
        assert check_scheduler(address, insecure=True) == address
        assert not caplog.records
        # Who connects warns, not who asks first.
        Cluster(address, insecure=True)

    assert len(caplog.records) == 1
    assert "dask runs whatever anyone on the network sends" in caplog.text


def test_a_scheduler_file_obeys_the_same_rule(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"type": "Scheduler", "address": "tcp://127.0.0.1:4242"}))
    assert check_scheduler(str(file)) == "tcp://127.0.0.1:4242"
    file.write_text(json.dumps({"address": "tcp://10.0.0.1:4242"}))
    with pytest.raises(WrongUse, match="--insecure"):
        check_scheduler(str(file))
    assert check_scheduler(str(file), insecure=True) == "tcp://10.0.0.1:4242"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("{", id="no JSON"),
        pytest.param("[]", id="no object"),
        pytest.param("{}", id="no address"),
        pytest.param('{"address": 3}', id="a number"),
        pytest.param('{"address": "/etc/passwd"}', id="a path"),
    ],
)
def test_what_is_no_scheduler_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(text)

    with pytest.raises(WrongUse, match="not a scheduler file"):
        check_scheduler(str(file))


def test_a_missing_scheduler_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="No such file"):
        check_scheduler(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"scheduler": "foo"}, "--scheduler foo: is not an address", id="a word"),
        pytest.param({"scheduler": "local"}, "local:4", id="local"),
        pytest.param({"scheduler": "local:"}, "local:4", id="local without a number"),
        pytest.param({"scheduler": "local:0"}, "local:4", id="no worker"),
        pytest.param({"scheduler": "local:-1"}, "local:4", id="fewer than none"),
        pytest.param({"scheduler": "local:many"}, "local:4", id="a number in words"),
        pytest.param({"scheduler": "tcp://10.0.0.1:8786"}, "--insecure", id="a plain one"),
        pytest.param(
            {"scheduler": "local:2", "workers": 4},
            "--workers starts processes here.*give one",
            id="workers too",
        ),
    ],
)
def test_a_wrong_one_is_refused_before_all_else(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    """There is no corpus."""
    with pytest.raises(WrongUse, match=message):
        plan(
            ExtractionConfig(tmp_path / "no corpus", "standin", store=tmp_path / "store", **options)
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", [NEAR, "tcp://[::1]:8786", "tcp://localhost:8786"])
def test_a_worker_listens_no_wider_than_its_scheduler(address: str) -> None:
    """tests/dask_processes.py starts its own with these words, and looks where they listen."""
    command = f"dask worker {address} {' '.join(HERE)} --nthreads 1"
    assert no_worker(address, {}).endswith(f"start one by `{command}` and run again")
    resources = '--resources "GPU=1, CPU=8"'
    assert f"`{command} {resources}`" in no_worker(address, {"GPU": 0.25, "CPU": 8.0})
    assert "--host ITS_ADDRESS --dashboard-address 127.0.0.1:0" in no_worker(FAR, {})


def test_the_docs_start_what_listens_here() -> None:
    """With the words of tests/dask_processes.py, which looks where what it starts listens."""
    lines = (DOCS / "scaling.md").read_text().splitlines()
    started = [line for line in lines if line.startswith(("dask scheduler ", "dask worker "))]
    assert len(started) == 2
    for line in started:
        for option, value in zip(HERE[::2], HERE[1::2], strict=True):
            assert f" {option} {value} " in line
        assert "--no-dashboard" not in line


@pytest.fixture
def both(tmp_path: Path) -> ExtractionTask:
    """Two features of three utterances, as one task."""
    corpus = write_corpus(tmp_path / "corpus", ["a", "bb", "ccc"])
    store = tmp_path / "store"
    made = plan(
        ExtractionConfig(corpus, "standin,standin2", store=store, on_error="skip", device="cpu")
    )
    open_store(store, create=True).put_manifest(made.manifest)
    for feature in made.features:
        open_store(store).add(feature.spec)
    [task] = made.tasks()
    return task


def test_what_is_sent_is_small(both: ExtractionTask) -> None:
    assert pickle.loads(pickle.dumps(both)) == both
    for utterance in both.utterances:
        assert not hasattr(utterance, "__dict__"), "64 bytes more for each of them"


def test_features_with_a_model_go_to_gpus_apart(both: ExtractionTask) -> None:
    modelled = replace(
        both.config.features[0], checkpoint=Checkpoint(Path("weights"), "a model", "digest")
    )
    config = replace(both.config, features=(modelled, both.config.features[1]))
    both = replace(both, config=config)
    gpu, cpu = by_device(both)

    for task, feature in zip((gpu, cpu), config.features, strict=True):
        assert task.specs == (feature.spec,)
        assert [kept.spec for kept in task.config.features] == [feature.spec]
    assert gpu.config.store.is_absolute()
    assert gpu.config.root.is_absolute()


def test_a_task_is_cut_by_utterances_then_by_features_then_not(both: ExtractionTask) -> None:
    pieces = split(both)
    assert pieces is not None
    longest, others = pieces
    assert [utterance.id for utterance in longest.utterances] == ["u002"]
    assert [utterance.id for utterance in others.utterances] == ["u001", "u000"]

    by_feature = split(longest)
    assert by_feature is not None
    assert [len(piece.specs) for piece in by_feature] == [1, 1]
    deadly, harmless = by_feature
    assert split(deadly) is None

    [[given_up]] = give_up(deadly, "it kills").quarantined.values()
    assert given_up.id == "u002"
    assert given_up.path == ""
    assert given_up.reason == "it kills"
    assert given_up.input

    extract_task(harmless)
    store = open_store(both.config.store)
    assert store["standin"].quarantined(store.manifest()) == {"u002": "it kills"}
    assert store["standin2"].quarantined(store.manifest()) == {}

    # What has come into the store meanwhile, cut in whatever way, is not a task again.
    remaining = split(both) or []
    sizes = [(len(task.utterances), len(task.specs)) for task in remaining]
    assert sizes == [(1, 1), (2, 2)]
    for task in remaining:
        assert extract_task(task).computed
    assert split(both) == []


def test_a_worker_drops_what_came_while_it_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever engine runs it: half of its part is published by another command, cut otherwise."""
    corpus = write_corpus(tmp_path / "corpus", ["a", "bb", "ccc", "dddd"])
    store = tmp_path / "store"
    extract = StandInExtractor.extract

    def meanwhile(self: StandInExtractor, text: str) -> object:
        monkeypatch.setattr(StandInExtractor, "extract", extract)
        run(corpus, store, per_part=2, limit=2)
        return extract(self, text)

    monkeypatch.setattr(StandInExtractor, "extract", meanwhile)
    summary = run(corpus, store, per_part=4)

    assert summary.features["standin"]["rows"] == 4
    assert summary.features["standin"]["computed"] == 2
    assert len(contents(store)) == 1
