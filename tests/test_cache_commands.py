"""`ser cache` from the command line: published feature files up to a trained model, conversion,
what a list says.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from ser.cache.part import Quarantine
from ser.cache.publish import publish_part
from ser.cache.rows import PartRows
from ser.cache.store import open_store
from ser.commands.output import answer
from ser.corpus.manifest import Manifest
from ser.errors import MissingRows
from ser.tests.command_line import printed, ser
from ser.tests.store_samples import fill, manifest_of, rewrite_record, sample_store, spec_of


def test_published_feature_files_are_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a paper's authors might publish: a table of utterances, and two files of vectors in its
    order.
    """
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretindeed")
    rng = np.random.default_rng(0)
    kinds = ["neu", "ang", "sad", "hap", "exc", "xxx"]
    labels = rng.choice(kinds, 2000)
    rows = ["id,session,dialogue,turn,speaker,gender,label,text"]
    for row, label in enumerate(labels):
        session, gender = row // 400 + 1, "FM"[row % 2]
        rows.append(
            f"=u{row},{session},d{row // 40},{row % 40},{session}{gender},{gender},{label},NA"
        )
    (tmp_path / "utterances.csv").write_text("\n".join(rows))
    point = {kind: rng.normal(size=20) for kind in kinds}
    vectors = np.stack([point[label] for label in labels]) + rng.normal(size=(2000, 20))
    np.save(tmp_path / "gemaps.npy", vectors[:, :8].astype("f4"))
    np.save(tmp_path / "minilm.npy", vectors[:, 8:].astype("f4"))
    store = ("--store", tmp_path / "store")
    table = ("--manifest", tmp_path / "utterances.csv", "--corpus-name", "published")
    for name, modality in {"gemaps": "audio", "minilm": "text"}.items():
        said = printed(
            "cache",
            "import",
            name,
            tmp_path / f"{name}.npy",
            "--modality",
            modality,
            *table,
            *store,
        )
        assert said.endswith("2000 rows of 2000, 0 missing\n")
    assert set(open_store(tmp_path / "store").manifest().column("text")) == {"NA"}, (
        "that is a word here"
    )
    kept = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert (
        b"gemaps.npy" in kept and b"verysecret" not in kept and str(tmp_path).encode() not in kept
    )
    options = (
        "--fusion",
        "lgf-add",
        "--protocol",
        "train1234-test5",
        "--epochs",
        20,
        "--set",
        "lr=1e-2",
        "--json",
    )
    said = printed(
        "train", "--features", "gemaps+minilm", *options, *store, "--out", tmp_path / "runs"
    )
    [run] = json.loads(said)["runs"]
    assert run["n"] == (labels[1600:] != "xxx").sum() and run["fold"] == "session 5"
    assert run["wa"] > 0.9, "these vectors tell the emotions apart, if each stands by its own label"


def test_a_table_does_not_take_the_place_of_a_corpus(tmp_path: Path) -> None:
    """Else all that was computed from its audio were superseded, and soon removed as such."""
    store, feature, manifest, _ = sample_store(tmp_path / "s", "zarr")
    (tmp_path / "t.csv").write_text("\n".join(["id", *manifest.ids]))
    np.save(tmp_path / "x.npy", np.ones((len(manifest), 3), "f4"))
    command = (
        "cache",
        "import",
        "mine",
        tmp_path / "x.npy",
        "--modality",
        "audio",
        "--store",
        tmp_path / "s",
    )
    refused = ser(*command, "--manifest", tmp_path / "t.csv", "--corpus-name", "toy")
    assert (
        refused.exit_code == 2
        and "corpus toy has another manifest than the table" in refused.stderr
    )
    assert store.manifest().digest == manifest.digest and feature.rows(store.manifest()) == len(
        manifest
    )
    assert "10 rows of 10" in printed(*command)
    table = ("--manifest", tmp_path / "t.csv", "--corpus-name", "toy", "--replace")
    (tmp_path / "t.csv").write_text("\n".join(["id", *manifest.ids[:9]]))
    assert ser(*command, *table).exit_code == 1, "nine ids for ten rows"
    assert store.manifest().digest == manifest.digest, "an import that fails changes nothing"
    (tmp_path / "t.csv").write_text("\n".join(["id", *manifest.ids]))
    assert (
        "10 rows of 10" in printed(*command, *table) and store.manifest().digest != manifest.digest
    )
    with (tmp_path / "s" / "manifests" / "toy" / "log.jsonl").open("ab") as log:
        log.write(b"\xff\n" + b"[" * 5000 + b"\n")
    listed = printed("cache", "rollback", "toy", "--list", "--store", tmp_path / "s")
    assert (
        listed.index(manifest.digest) < listed.index(store.manifest().digest)
        and "cache import" in listed
    )
    assert "10 utterances" in printed(
        "cache", "rollback", "toy", manifest.digest[:8], "--store", tmp_path / "s"
    )
    assert store.manifest().digest == manifest.digest and feature.complete(store.manifest())
    assert "2 manifests ''" in ser("cache", "rollback", "toy", "", "--store", tmp_path / "s").stderr
    assert "10 rows of 10" in printed(
        *command, "--manifest", tmp_path / "t.csv", "--corpus-name", "other"
    )
    unnamed = ser(
        *command[:-1],
        tmp_path / "new",
        "--manifest",
        (tmp_path / "t.csv").rename(tmp_path / "a b.csv"),
    )
    assert unnamed.exit_code == 2 and "a corpus cannot be called 'a b'" in unnamed.stderr
    assert open_store(tmp_path / "new").features() == [], "what is refused is not begun"


def test_a_list_says_what_is_there(tmp_path: Path) -> None:
    made = {"provenance": {"model": "facebook/x"}, "checkpoint": {"random": True}}
    store, feature, _, arrays = sample_store(tmp_path / "s", "zarr", **made)
    grown = manifest_of(11)
    store.put_manifest(grown)
    store.add(spec_of(feature="begun"))
    begun, frames = json.loads(printed("cache", "list", "--store", tmp_path / "s", "--json"))
    assert (begun["feature"], begun["corpus"], begun["rows"], begun["complete"]) == (
        "begun",
        None,
        0,
        False,
    )
    assert (frames["rows"], frames["of"], frames["complete"], frames["model"]) == (
        10,
        11,
        False,
        "facebook/x",
    )
    assert frames["random_weights"] and frames["backends"] == ["zarr"] and frames["superseded"] == 0
    info = json.loads(printed("cache", "info", "frames", "--store", tmp_path / "s", "--json"))
    assert info["provenance"] == {"model": "facebook/x"} and info["corpora"]["toy"]["rows"] == 10
    assert info["corpora"]["toy"]["vectors"] == sum(len(array) for array in arrays.values())
    assert frames["problem"] is None and begun["problem"] is None
    bad = Quarantine(grown.ids[10], grown.inputs("audio")[10], "x.wav", "truncated")
    publish_part(feature, PartRows("toy", quarantined=[bad]), "zarr", {})
    [*_, first, said] = printed("cache", "list", "--store", tmp_path / "s").splitlines()
    assert "incomplete" in first and "10 of 11" in said and " complete, 1 quarantined" in said


@pytest.mark.parametrize(("level", "dim"), [("utterance", 88), ("frame", 8)])
def test_a_csv_for_r_without_what_is_quarantined(tmp_path: Path, level: str, dim: int) -> None:
    made = (
        {"extractor": "smile", "config": {"feature_set": "eGeMAPSv02", "level": "functionals"}}
        if dim == 88
        else {}
    )
    store, feature, manifest, arrays = sample_store(
        tmp_path / "s", "zarr", level=level, dim=dim, **made
    )
    grown = manifest_of(11)
    store.put_manifest(grown)
    refused = ser("cache", "export", f"{level}s", tmp_path / "x.csv", "--store", tmp_path / "s")
    assert (
        refused.exit_code == 1
        and "lacks 1 of 11" in refused.stderr
        and not (tmp_path / "x.csv").exists()
    )
    bad = Quarantine(grown.ids[10], grown.inputs("audio")[10], "x.wav", "truncated")
    publish_part(feature, PartRows("toy", quarantined=[bad]), "zarr", {})
    done = ser("cache", "export", f"{level}s", tmp_path / "x.csv", "--store", tmp_path / "s")
    assert (done.exit_code, done.stderr) == (3, f"left out: {grown.ids[10]}: truncated\n")
    table = pd.read_csv(tmp_path / "x.csv", float_precision="round_trip")
    if level == "frame":
        assert table.pop("frame").tolist() == [
            row for id_ in manifest.ids for row in range(len(arrays[id_]))
        ]
    assert table.pop("id").tolist() == [id_ for id_ in manifest.ids for _ in arrays[id_]]
    assert table.columns[0] == ("F0semitoneFrom27.5Hz_sma3nz_amean" if dim == 88 else "frames.0")
    assert np.array_equal(table.to_numpy(feature.spec.dtype), np.concatenate([*arrays.values()]))


def test_what_to_remove_is_named_and_asked(tmp_path: Path) -> None:
    store, feature, manifest, _ = sample_store(tmp_path / "s", "zarr")
    other = store.add(spec_of(config={"another": "way"}))
    refused = ser("cache", "remove", "frames", "--yes", "--store", tmp_path / "s")
    assert refused.exit_code == 2 and f"frames@{other.fingerprint[:8]}" in refused.stderr
    name = f"frames@{other.fingerprint}"
    assert ser("cache", "remove", name, "--store", tmp_path / "s").exit_code == 1, "nobody said yes"
    fill(other, manifest, "hdf5")
    assert printed("cache", "remove", name, "--yes", "--store", tmp_path / "s").startswith(
        "removed 0."
    )
    with pytest.raises(MissingRows, match="lacks 10 of 10"):  # whoever reads it meanwhile
        other.load(manifest)
    assert len(store["frames"].load(manifest)) == 10, "the other way's parts are whole"
    assert printed("cache", "remove", "frames", "--yes", "--store", tmp_path / "s").startswith(
        "removed 0."
    )
    assert not feature.path.parent.exists() and not list((store.path / "tmp").iterdir())
    assert ser("cache", "remove", "--store", tmp_path / "s").exit_code == 2


def test_what_cannot_be_read_can_be_removed_and_stops_nothing_else(tmp_path: Path) -> None:
    store, feature, manifest, _ = sample_store(tmp_path / "s", "zarr")
    poisoned = store.add(spec_of(feature="hubert"))
    fill(poisoned, manifest, "zarr")
    rewrite_record(poisoned.path / "spec.json", lambda record: record.update(dim=-64))
    where = ("--store", tmp_path / "s")
    assert "spec.json" in printed("cache", "list", *where) and "complete" in printed(
        "cache", "list", *where
    )
    assert "10" in printed("cache", "info", "frames", *where) and feature.complete(manifest)
    assert "hubert" in ser("cache", "verify", *where).stderr
    store.put_manifest(Manifest("toy", manifest.table.slice(2)), replace=True)
    ahead = ser("cache", "remove", "frames", "--superseded", "--dry-run", *where)
    assert (
        ahead.exit_code == 0
        and "would remove 2 rows" in ahead.stdout
        and "2 rows, " in ahead.stdout
    )
    assert len(feature.missing(manifest)) == 0
    assert "removed 2 rows" in printed("cache", "remove", "frames", "--superseded", "--yes", *where)
    assert "spec.json" in ser("cache", "remove", "--superseded", "--yes", *where).stderr
    assert ser("cache", "remove", "hubert", "--yes", *where).exit_code == 1
    assert "removed 0." in printed(
        "cache", "remove", f"hubert@{poisoned.fingerprint[:4]}", "--yes", *where
    )
    assert not poisoned.path.exists() and [one.spec.name for one in store.features()] == ["frames"]


def test_nothing_that_is_printed_steers_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels, speakers, models and paths are someone else's data; also C1 controls and what turns
    writing around.
    """
    evil = "\x1b]0;owned\x07\x9b31m\u202ered\r"
    provenance = {"model": {"name": evil, "digest": "d"}}
    store, *_ = sample_store(
        tmp_path / "s", "zarr", count=2, provenance=provenance, checkpoint={"name": evil}
    )
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    (tmp_path / "t.csv").write_bytes(
        f'id,audio,speaker,label\na,a.wav,"{evil}","{evil}"\n'.encode()
    )
    for words in (
        ["cache", "list", "--store", store.path],
        ["cache", "info", "frames", "--store", store.path],
        ["corpus", "show", tmp_path / "t.csv"],
        ["corpus", "show", tmp_path / "t.csv", "--json"],
        ["report", tmp_path / evil],
    ):
        done = ser(*words)
        assert done.output.replace("\n", "").isprintable() and "owned" in done.output + str(
            words[1]
        ), words
        assert "--json" not in words or evil in json.loads(done.stdout)["labels"]
    answer({"ua": [float("nan"), 1.5], "wa": float("-inf")})
    assert capsys.readouterr().out == '{"ua": [null, 1.5], "wa": null}\n'
