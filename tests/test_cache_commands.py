"""`ser cache` from the command line: published feature files up to a trained model, conversion,
what a list says.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile

from ser.cache.feature import Feature
from ser.cache.part import Quarantine
from ser.cache.publish import publish_part
from ser.cache.rows import PartRows
from ser.cache.store import open_store
from ser.commands.output import answer
from ser.corpus.manifest import Manifest
from ser.errors import MissingRows
from ser.tests.command_line import printed, ser
from ser.tests.store_samples import fill, manifest_of, rewrite_record, sample_store, spec_of


def failed(exit_code: int, *words: object) -> str:
    """What a command that ends with this exit code says on standard error."""
    done = ser(*words)
    assert done.exit_code == exit_code, (done.output, done.exception)
    return done.stderr


KINDS = ["neu", "ang", "sad", "hap", "exc", "xxx"]


def write_published_files(folder: Path) -> np.ndarray:
    """What a paper's authors might publish: a table of utterances, and two files of vectors in its
    order. Returns the labels.
    """
    rng = np.random.default_rng(0)
    labels = rng.choice(KINDS, 2000)
    rows = ["id,session,dialogue,turn,speaker,gender,label,text"]
    for row, label in enumerate(labels):
        session = row // 400 + 1
        gender = "FM"[row % 2]
        speaker = f"{session}{gender}"
        rows.append(f"=u{row},{session},d{row // 40},{row % 40},{speaker},{gender},{label},NA")
    (folder / "utterances.csv").write_text("\n".join(rows))

    points = {kind: rng.normal(size=20) for kind in KINDS}
    vectors = np.stack([points[label] for label in labels]) + rng.normal(size=(2000, 20))
    np.save(folder / "gemaps.npy", vectors[:, :8].astype("f4"))
    np.save(folder / "minilm.npy", vectors[:, 8:].astype("f4"))
    return labels


def test_published_feature_files_are_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretindeed")
    labels = write_published_files(tmp_path)
    store = ("--store", tmp_path / "store")
    table = ("--manifest", tmp_path / "utterances.csv", "--corpus-name", "published")

    for name, modality in {"gemaps": "audio", "minilm": "text"}.items():
        file = tmp_path / f"{name}.npy"
        text = printed("cache", "import", name, file, "--modality", modality, *table, *store)
        assert text.endswith("numbers, of 2000 utterances; 0 missing; joined by manifest order\n")

    texts = open_store(tmp_path / "store").manifest().column("text")
    assert set(texts) == {"NA"}, "that is a word here"

    contents = [path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()]
    kept = b"".join(contents)
    assert b"gemaps.npy" in kept
    assert b"verysecret" not in kept
    assert str(tmp_path).encode() not in kept

    options = ["--features", "gemaps+minilm", "--fusion", "lgf-add"]
    options += ["--protocol", "train1234-test5", "--epochs", 20, "--set", "lr=1e-2"]
    answer_text = printed("train", *options, *store, "--out", tmp_path / "runs", "--json")
    [run] = json.loads(answer_text)["runs"]
    assert run["n"] == (labels[1600:] != "xxx").sum()
    assert run["fold"] == "session 5"
    assert run["wa"] > 0.9, "these vectors tell the emotions apart, if each stands by its own label"


def import_command(folder: Path, rows: int, store: Path) -> list[object]:
    """The import of a file of so many vectors."""
    np.save(folder / "x.npy", np.ones((rows, 3), "f4"))
    return ["cache", "import", "mine", folder / "x.npy", "--modality", "audio", "--store", store]


def write_ids(path: Path, ids: Sequence[str]) -> None:
    """A table of utterances that says their ids alone."""
    path.write_text("\n".join(["id", *ids]))


def test_a_table_does_not_take_the_place_of_a_corpus(tmp_path: Path) -> None:
    """Else all that was computed from its audio were superseded, and soon removed as such."""
    store, feature, manifest, _ = sample_store(tmp_path / "s", "zarr")
    command = import_command(tmp_path, len(manifest), store.path)
    table = ["--manifest", tmp_path / "t.csv", "--corpus-name", "toy"]

    write_ids(tmp_path / "t.csv", manifest.ids)
    fault = failed(2, *command, *table)
    assert "corpus toy has another manifest than the table" in fault
    assert store.manifest().digest == manifest.digest
    assert feature.rows(store.manifest()) == len(manifest)
    assert "10 rows of 3 numbers, of 10 utterances" in printed(*command)

    write_ids(tmp_path / "t.csv", manifest.ids[:9])
    # Nine ids for ten rows.
    failed(1, *command, *table, "--replace")
    assert store.manifest().digest == manifest.digest, "an import that fails changes nothing"

    write_ids(tmp_path / "t.csv", manifest.ids)
    assert "10 rows of 3 numbers, of 10 utterances" in printed(*command, *table, "--replace")
    assert store.manifest().digest != manifest.digest

    other = ["--manifest", tmp_path / "t.csv", "--corpus-name", "other"]
    assert "10 rows of 3 numbers, of 10 utterances" in printed(*command, *other)


def test_an_earlier_manifest_comes_back_by_rollback(tmp_path: Path) -> None:
    store, feature, manifest, _ = sample_store(tmp_path / "s", "zarr")
    where = ["--store", store.path]
    write_ids(tmp_path / "t.csv", manifest.ids)
    table = ["--manifest", tmp_path / "t.csv", "--corpus-name", "toy", "--replace"]
    printed(*import_command(tmp_path, len(manifest), store.path), *table)

    # Lines of the log that nobody can read.
    with (store.path / "manifests" / "toy" / "log.jsonl").open("ab") as log:
        log.write(b"\xff\n" + b"[" * 5000 + b"\n")
    listed = printed("cache", "rollback", "toy", "--list", *where)
    assert listed.index(manifest.digest) < listed.index(store.manifest().digest)
    assert "cache import" in listed

    assert "10 utterances" in printed("cache", "rollback", "toy", manifest.digest[:8], *where)
    assert store.manifest().digest == manifest.digest
    assert feature.complete(store.manifest())
    assert "2 manifests ''" in ser("cache", "rollback", "toy", "", *where).stderr


def test_a_table_whose_name_is_no_corpus_s_is_refused_before_anything_is_begun(
    tmp_path: Path,
) -> None:
    manifest = manifest_of(10)
    write_ids(tmp_path / "a b.csv", manifest.ids)
    command = import_command(tmp_path, len(manifest), tmp_path / "new")

    fault = failed(2, *command, "--manifest", tmp_path / "a b.csv")

    assert "a corpus cannot be called 'a b'" in fault
    assert open_store(tmp_path / "new").features() == []


def test_a_list_says_what_is_there(tmp_path: Path) -> None:
    made = {"provenance": {"model": "facebook/x"}, "checkpoint": {"random": True}}
    store, feature, _, arrays = sample_store(tmp_path / "s", "zarr", **made)
    where = ["--store", store.path]
    grown = manifest_of(11)
    store.put_manifest(grown)
    store.add(spec_of(feature="begun"))

    begun, frames = json.loads(printed("cache", "list", *where, "--json"))
    assert begun["feature"] == "begun"
    assert begun["corpus"] is None
    assert begun["rows"] == 0
    assert begun["complete"] is False
    assert begun["problem"] is None
    assert frames["rows"] == 10
    assert frames["of"] == 11
    assert frames["complete"] is False
    assert frames["model"] == "facebook/x"
    assert frames["random_weights"]
    assert frames["backends"] == ["zarr"]
    assert frames["superseded"] == 0
    assert frames["problem"] is None

    info = json.loads(printed("cache", "info", "frames", *where, "--json"))
    assert info["provenance"] == {"model": "facebook/x"}
    assert info["corpora"]["toy"]["rows"] == 10
    assert info["corpora"]["toy"]["vectors"] == sum(len(array) for array in arrays.values())

    quarantine(feature, grown)
    [*_, begun_line, frames_line] = printed("cache", "list", *where).splitlines()
    assert "incomplete" in begun_line
    assert "10 of 11" in frames_line
    assert " complete, 1 quarantined" in frames_line


def quarantine(feature: Feature, manifest: Manifest) -> None:
    """Publish that the last utterance of a manifest could not be computed."""
    bad = Quarantine(manifest.ids[-1], manifest.inputs("audio")[-1], "x.wav", "truncated")
    publish_part(feature, PartRows("toy", quarantined=[bad]), "zarr", {})


EGEMAPS = {"extractor": "smile", "config": {"feature_set": "eGeMAPSv02", "level": "functionals"}}


@pytest.mark.parametrize(
    ("level", "dim", "made", "first_column"),
    [
        pytest.param(
            "utterance", 88, EGEMAPS, "F0semitoneFrom27.5Hz_sma3nz_amean", id="functionals"
        ),
        pytest.param("frame", 8, {}, "frames.0", id="frames"),
    ],
)
def test_a_csv_for_r_without_what_is_quarantined(
    tmp_path: Path, level: str, dim: int, made: dict[str, Any], first_column: str
) -> None:
    store, feature, manifest, arrays = sample_store(
        tmp_path / "s", "zarr", level=level, dim=dim, **made
    )
    grown = manifest_of(11)
    store.put_manifest(grown)
    file = tmp_path / "x.csv"
    command = ["cache", "export", f"{level}s", file, "--store", store.path]

    assert "lacks 1 of 11" in failed(1, *command)
    assert not file.exists()

    quarantine(feature, grown)
    assert failed(3, *command) == f"left out: {grown.ids[10]}: truncated\n"

    ids = []
    frames: list[int] = []
    for id_ in manifest.ids:
        ids += [id_] * len(arrays[id_])
        frames += range(len(arrays[id_]))
    table = pd.read_csv(file, float_precision="round_trip")
    if level == "frame":
        assert table.pop("frame").tolist() == frames
    assert table.pop("id").tolist() == ids
    assert table.columns[0] == first_column
    assert np.array_equal(table.to_numpy(feature.spec.dtype), np.concatenate([*arrays.values()]))


def test_what_to_remove_is_named_and_asked(tmp_path: Path) -> None:
    store, feature, manifest, _ = sample_store(tmp_path / "s", "zarr")
    where = ["--store", store.path]
    other = store.add(spec_of(config={"another": "way"}))
    name = f"frames@{other.fingerprint}"

    fault = failed(2, "cache", "remove", "frames", "--yes", *where)
    assert f"frames@{other.fingerprint[:8]}" in fault
    # Nobody said yes.
    failed(1, "cache", "remove", name, *where)

    fill(other, manifest, "hdf5")
    assert printed("cache", "remove", name, "--yes", *where).startswith("removed 0.")
    # Whoever reads it meanwhile.
    with pytest.raises(MissingRows, match="lacks 10 of 10"):
        other.load(manifest)
    assert len(store["frames"].load(manifest)) == 10, "the other way's parts are whole"

    assert printed("cache", "remove", "frames", "--yes", *where).startswith("removed 0.")
    assert not feature.path.parent.exists()
    assert not list((store.path / "tmp").iterdir())
    failed(2, "cache", "remove", *where)


def test_what_cannot_be_read_can_be_removed_and_stops_nothing_else(tmp_path: Path) -> None:
    store, feature, manifest, _ = sample_store(tmp_path / "s", "zarr")
    where = ("--store", store.path)
    poisoned = store.add(spec_of(feature="hubert"))
    fill(poisoned, manifest, "zarr")
    rewrite_record(poisoned.path / "spec.json", lambda record: record.update(dim=-64))

    listed = printed("cache", "list", *where)
    assert "spec.json" in listed
    assert "complete" in listed
    assert "10" in printed("cache", "info", "frames", *where)
    assert feature.complete(manifest)
    assert "hubert" in ser("cache", "verify", *where).stderr

    store.put_manifest(Manifest("toy", manifest.table.slice(2)), replace=True)
    superseded = ["cache", "remove", "frames", "--superseded"]
    ahead = printed(*superseded, "--dry-run", *where)
    assert "would remove 2 rows" in ahead
    assert "2 rows, " in ahead
    assert len(feature.missing(manifest)) == 0

    assert "removed 2 rows" in printed(*superseded, "--yes", *where)
    assert "spec.json" in ser("cache", "remove", "--superseded", "--yes", *where).stderr
    failed(1, "cache", "remove", "hubert", "--yes", *where)

    name = f"hubert@{poisoned.fingerprint[:4]}"
    assert "removed 0." in printed("cache", "remove", name, "--yes", *where)
    assert not poisoned.path.exists()
    assert [feature.spec.name for feature in store.features()] == ["frames"]


# Of a terminal's title, of C1, and what turns writing around.
STEERING = "\x1b]0;owned\x07\x9b31m\u202ered\r"


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["cache", "list", "--store", "s"], id="list"),
        pytest.param(["cache", "info", "frames", "--store", "s"], id="info"),
        pytest.param(["corpus", "show", "t.csv"], id="show"),
        pytest.param(["corpus", "show", "t.csv", "--json"], id="show as JSON"),
        pytest.param(["report", STEERING], id="report"),
    ],
)
def test_nothing_that_is_printed_steers_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """Labels, speakers, models and paths are someone else's data."""
    monkeypatch.chdir(tmp_path)
    provenance = {"model": {"name": STEERING, "digest": "d"}}
    checkpoint = {"name": STEERING}
    sample_store(Path("s"), "zarr", count=2, provenance=provenance, checkpoint=checkpoint)
    soundfile.write("a.wav", np.zeros(16000), 16000)
    table = f'id,audio,speaker,label\na,a.wav,"{STEERING}","{STEERING}"\n'
    Path("t.csv").write_bytes(table.encode())

    done = ser(*words)

    assert done.output.replace("\n", "").isprintable()
    if words[0] != "report":
        assert "owned" in done.output
    if "--json" in words:
        assert STEERING.strip() in json.loads(done.stdout)["labels"]


def test_an_answer_in_json_has_null_where_a_number_is_not_finite(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer({"ua": [float("nan"), 1.5], "wa": float("-inf")})

    assert capsys.readouterr().out == '{"ua": [null, 1.5], "wa": null}\n'
