"""`ser audit` on runs that ser trained by each of its protocols: no false alarm."""

import hashlib
import json
from pathlib import Path

import pytest

from ser.audit.audit import audit
from ser.cache.store import Store
from ser.corpus.manifest import Manifest
from ser.tests.store_samples import new_store
from ser.tests.tiny_store import add_feature, base_rows, make_rows
from ser.train.experiment import run_experiment
from ser.train.options import Experiment

EMOTIONS = ("ang", "hap", "neu", "sad")


def manifest_of(corpus: str, parts: bool = False) -> Manifest:
    """Five sessions of two speakers, improvised and scripted; or a split by speaker into parts."""
    rows = []
    for row in base_rows(("impro01", "script01_1"), 8):
        row["label"] = EMOTIONS[(row["turn"] + int(row["session"])) % 4]
        row["text"] = f"words of {row['id']}"
        if "script" in row["dialogue"]:
            row["text"] = f"what the script says {row['turn']}"
        row["id"] = f"{corpus}_{row['id']}"
        row["audio_sha256"] = hashlib.sha256(row["id"].encode()).hexdigest()
        if parts:
            row["session"] = {"4": "dev", "5": "test"}.get(row["session"], "train")
        rows.append(row)
    return Manifest.from_rows(corpus, rows)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("audited")
    plays = manifest_of("plays")
    store = new_store(folder / "store", plays)
    others = [manifest_of("split", parts=True), manifest_of("others")]
    for manifest in others:
        store.put_manifest(manifest)
    for manifest in (plays, *others):
        add_feature(store, manifest, "is13", make_rows(manifest, "is13"))
    return store


PROTOCOLS = {
    "session-out": "plays",
    "speaker-out": "plays",
    "script-out": "plays",
    "train1234-test5": "plays",
    "random-70-20-10": "plays",
    "official": "split",
    "corpus-out": "plays+others",
    "cross:plays:others": "plays+others",
}


def train(store: Store, out: Path, protocol: str, corpus: str, **options: object) -> None:
    given = {"labels": "4class", "seeds": 2, "store": store.path, "out": out, **options}
    run_experiment(Experiment("is13", "linear", corpus=corpus, protocol=protocol, **given))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_false_alarm(store: Store, tmp_path: Path, protocol: str) -> None:
    train(store, tmp_path / "runs", protocol, PROTOCOLS[protocol])

    done = audit([tmp_path / "runs"])
    assert done.faults == []
    assert done.verdict == "sound"
    (predictions,) = done.evidence.predictions
    assert predictions.source.endswith(f", 4class, {protocol}")

    # The store beside them says of every utterance what the runs do not.
    done = audit([tmp_path / "runs", store.path])
    assert done.faults == []
    assert done.verdict == "sound"


def test_folds_of_a_file(store: Store, tmp_path: Path) -> None:
    """Own folds that are cut by session are sound; by utterance they are not."""
    rows = store.manifest("plays").table.to_pylist()
    for by, verdict in (("session", "sound"), ("turn", "fault")):
        table = tmp_path / f"{by}.csv"
        lines = [f"{row['id']},{row[by]}" for row in rows]
        table.write_text("\n".join(["id,fold", *lines]))
        train(store, tmp_path / by, f"folds:{table}", "plays", seeds=1)

        done = audit([tmp_path / by])
        assert done.verdict == verdict, json.dumps([found.sentence for found in done.faults])
