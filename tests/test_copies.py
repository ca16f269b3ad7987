"""What push publishes and pull brings back, and what neither does. With an S3 server:
test_copies_s3.py.
"""

import hashlib
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub.constants
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from ser.cache.store import Store, open_store
from ser.cache.tools.published import Published
from ser.cache.tools.remote import redacted
from ser.cache.tools.verify import verify
from ser.disk.records import canonical_json
from ser.errors import WrongUse
from ser.tests.command_line import printed, ser
from ser.tests.store_samples import (
    check_whole,
    fill,
    manifest_of,
    new_store,
    rewrite_record,
    sample_store,
    spec_of,
)
from ser.tests.test_cache_hostile import LIES


def push(store: Path, url: object, *options: object) -> str:
    return printed("cache", "push", url, "--store", store, *options).splitlines()[0]


def refused(*words: object) -> str:
    """A command's one sentence."""
    done = ser("cache", *words)
    assert done.exit_code in (1, 2) and done.stdout == "", done
    said = [line for line in done.stderr.splitlines() if line.startswith("ser: ")]
    assert len(said) == 1 and "unexpected" not in said[0], done.stderr
    return said[0]


def sound(path: Path) -> Store:
    assert not [one for one in verify(open_store(path)) if one.problem]
    return open_store(path)


def test_a_push_leaves_a_store_that_is_worked_in_alone(tmp_path: Path) -> None:
    store, _, manifest, _ = sample_store(tmp_path / "store", "zarr")
    for url in (store.path, store.path.as_uri()):
        assert "is a store that is in use" in refused("push", url, "--store", store.path)
    assert open_store(store.path).manifest().digest == manifest.digest
    assert all(
        "name the URL" in refused("push", url, "--store", store.path)
        for url in ("", "s3:/bucket/x")
    )


def test_what_is_pulled_is_what_was_pushed_without_its_words(backend: str, tmp_path: Path) -> None:
    _, feature, manifest, _ = sample_store(tmp_path / "s", backend)
    _, words, *_ = sample_store(tmp_path / "s", backend, level="token")
    pinned = push(tmp_path / "s", tmp_path / "pub")
    assert ser("cache", "pull", f"file://{pinned}", "--store", tmp_path / "got").exit_code == 0
    got = sound(tmp_path / "got")
    check_whole(got["frames"], got.manifest())
    assert [part.record for part in got["frames"].parts()] == [
        part.record for part in feature.parts()
    ]
    assert set(got.manifest().column("text")) == {None} and got.manifest().inputs(
        "text"
    ) == manifest.inputs("text")
    mine, theirs = words.load(manifest), got["tokens"].load(got.manifest())
    assert theirs.values.tobytes() == mine.values.tobytes() and {*mine.extras} - {
        *theirs.extras
    } == {"token"}
    assert not [
        file
        for file in (tmp_path / "pub").rglob("*")
        if file.is_file() and b"number 3" in file.read_bytes()
    ]
    assert sound(tmp_path / "pub")["frames"].complete(manifest)  # what lies there is a store
    assert (
        ser("cache", "push", tmp_path / "pub", "--store", tmp_path / "s", "--json").stdout.count(
            '"bytes": 0'
        )
        == 1
    )
    push(tmp_path / "s", tmp_path / "open", "--with-text")
    assert ser("cache", "pull", tmp_path / "open", "--store", tmp_path / "told").exit_code == 0
    assert sound(tmp_path / "told").manifest().same(manifest)
    assert {*open_store(tmp_path / "told")["tokens"].load(manifest).extras} == {"word", "token"}
    assert (
        ser("cache", "pull", pinned, "--store", tmp_path / "told").exit_code == 1 + 1
    )  # its parts are others
    assert ser("cache", "pull", tmp_path / "pub", "--store", tmp_path / "told").exit_code == 0
    assert open_store(tmp_path / "told").manifest().same(manifest)  # no transcript is lost


def test_a_digest_names_what_was_published_and_nothing_else(tmp_path: Path) -> None:
    sample_store(tmp_path / "s", "zarr")
    first = push(tmp_path / "s", tmp_path / "pub")
    sample_store(tmp_path / "s", "zarr", level="utterance")
    second = push(tmp_path / "s", tmp_path / "pub")
    assert first != second == push(tmp_path / "s", tmp_path / "pub")
    assert ser("cache", "pull", first, "--store", tmp_path / "old").exit_code == 0
    assert [one.spec.name for one in sound(tmp_path / "old").features()] == ["frames"]
    assert "is missing" in refused(
        "pull", f"{tmp_path / 'pub'}@{'0' * 64}", "--store", tmp_path / "x"
    )
    for place in (tmp_path / "pub", tmp_path / "nowhere"):
        assert "@0000: nothing is published there" in refused(
            "pull", f"{place}@0000", "--store", tmp_path / "x"
        )
    assert "and no digest" in refused(
        "push", f"{tmp_path / 'pub'}@{'0' * 64}", "--store", tmp_path / "s"
    )
    (record,) = (tmp_path / "pub").glob(f"published-{second[-64:]}.json")
    record.write_bytes(record.read_bytes() + b" ")
    assert "not what its digest names" in refused("pull", second, "--store", tmp_path / "x")
    data = sorted((tmp_path / "pub/frames").glob("*/parts/*/data.zarr/values/c/0/0"))[-1]
    content = data.read_bytes()
    data.write_bytes(bytes(len(content)))
    assert "its sha256 is not" in refused("pull", first, "--store", tmp_path / "x")
    assert not sound(tmp_path / "x")["frames"].complete(
        manifest_of(10)
    )  # pulled halfway: incomplete, never wrong
    assert "not what its digest names" in refused(
        "push", tmp_path / "pub", "--store", tmp_path / "s"
    )
    assert (
        push(tmp_path / "s", tmp_path / "pub", "--replace") == second
        and data.read_bytes() == content
    )
    data.write_bytes(bytes(len(content)))
    lost, cut = sorted((tmp_path / "pub").glob("utterances/*/parts/*/part.json"))[:2]
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    next((tmp_path / "pub/manifests").glob("*/*.parquet")).unlink()
    assert (
        push(tmp_path / "s", tmp_path / "pub", "--replace") == second
        and data.read_bytes() == content
    )
    assert (
        "2 there already"
        in ser("cache", "pull", first, "--store", tmp_path / "x", "--dry-run").stdout
    )
    assert ser("cache", "pull", first, "--store", tmp_path / "x").stdout.startswith(first)
    assert sound(tmp_path / "x")["frames"].complete(manifest_of(10))
    assert ser("cache", "pull", second, "--store", tmp_path / "y").exit_code == 0 and sound(
        tmp_path / "y"
    )
    next((tmp_path / "y").glob("*/*/parts/*/part.json")).unlink()
    assert "part.json: is missing" in refused("pull", second, "--store", tmp_path / "y")


def republish(pub: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Publish something else there, with true digests, as an attacker would."""
    record = json.loads(
        (pub / f"published-{(pub / 'published-latest').read_text().strip()}.json").read_bytes()
    )
    change(record)
    content = canonical_json(record)
    digest = hashlib.sha256(content).hexdigest()
    (pub / f"published-{digest}.json").write_bytes(content)
    (pub / "published-latest").write_text(f"{digest}\n")


def moved(key: str, to: str) -> Callable[[dict[str, Any]], Any]:
    return lambda record: record[key].__setitem__(to, record[key].pop(next(iter(record[key]))))


def a_part(record: dict[str, Any]) -> dict[str, Any]:
    return next(iter(record["parts"].values()))


RECORD_LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a feature elsewhere": moved("features", "../../x/0123456789abcdef"),
    "a fingerprint elsewhere": moved("features", "frames/../../../x"),
    "a corpus elsewhere": moved("manifests", ".."),
    "another feature": moved("features", "other/0123456789abcdef"),
    "a part elsewhere": moved("parts", "frames/../../../x"),
    "a digest elsewhere": lambda r: r["manifests"]["toy"].__setitem__(
        "sha256", "../../../etc/passwd"
    ),
    "a huge part": lambda r: a_part(r).__setitem__("bytes", 1 << 60),
    "a huge record": lambda r: a_part(r)["record"].__setitem__("bytes", 1 << 60),
    "a part of another corpus": lambda r: a_part(r).__setitem__("corpus", "else"),
    "a newer format": lambda r: r.__setitem__("format_version", 2),
    "nothing": lambda r: r.clear(),
}
SOME = (
    "a chunk bomb",
    "another dimension",
    "a block outside its file",
    "a file with ..",
    "another fingerprint",
)


@pytest.mark.parametrize("lie", [*RECORD_LIES, *SOME])
def test_what_a_stranger_publishes_is_not_trusted(lie: str, tmp_path: Path) -> None:
    sample_store(tmp_path / "s", "zarr", count=4)
    push(tmp_path / "s", tmp_path / "pub")
    if lie in LIES:
        path = next((tmp_path / "pub/frames").glob("*/parts/*/part.json"))
        rewrite_record(path, LIES[lie])
        file = {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        size = sum(one["bytes"] for one in json.loads(path.read_bytes())["files"].values())
        republish(tmp_path / "pub", lambda r: a_part(r).update(record=file, bytes=size))
    else:
        republish(tmp_path / "pub", RECORD_LIES[lie])
    before = {*tmp_path.rglob("*")}
    if lie == "a part of another corpus":
        ser("cache", "pull", tmp_path / "pub", "--store", tmp_path / "a/b/got")
    else:
        said = refused("pull", tmp_path / "pub", "--store", tmp_path / "a/b/got")
        assert "--repair" not in said and "/tmp/" not in said.replace(str(tmp_path), "")
    made = {*tmp_path.rglob("*")} - before - {tmp_path / "a", tmp_path / "a/b"}
    assert all(path.is_relative_to(tmp_path / "a/b/got") for path in made)
    if made:
        assert not any(feature.parts() for feature in sound(tmp_path / "a/b/got").features())


def test_what_a_killed_push_left_counts_as_there_but_for_words(tmp_path: Path) -> None:
    """Its part is whole, and in no record yet."""
    store, *_ = sample_store(tmp_path / "s", "zarr", level="token", count=4)
    for name, options in (("plain", ()), ("worded", ("--with-text",))):
        push(store.path, tmp_path / name, *options)
        for path in (tmp_path / name).glob("*"):
            if path.is_file():
                path.unlink()
    again = ser("cache", "push", tmp_path / "plain", "--store", store.path, "--dry-run")
    assert "0 parts, 0.0 MB to push, 1 there already" in again.stdout + again.stderr
    push(store.path, tmp_path / "plain")
    assert sound(tmp_path / "plain").features()
    assert "another push has begun this part" in refused(
        "push", tmp_path / "worded", "--store", store.path
    )


def test_a_part_that_another_push_has_begun_is_left_to_it(tmp_path: Path) -> None:
    """What a killed push has put is taken up, also a file cut short; with other numbers only with
    --replace.
    """
    first, feature, manifest, arrays = sample_store(tmp_path / "first", "hdf5")
    second = new_store(tmp_path / "second", manifest)
    fill(
        second.add(feature.spec),
        manifest,
        "hdf5",
        {id_: array + 1 for id_, array in arrays.items()},
    )
    begun, cut, *_ = (part.folder.relative_to(first.path) / "data.h5" for part in feature.parts())
    for path, size in ((begun, None), (cut, 1000)):
        (tmp_path / "pub" / path).parent.mkdir(parents=True)
        (tmp_path / "pub" / path).write_bytes((first.path / path).read_bytes()[:size])
    assert "another push has begun this part" in refused(
        "push", tmp_path / "pub", "--store", second.path
    )
    push(first.path, tmp_path / "pub")
    assert sound(tmp_path / "pub")["frames"].complete(manifest)
    assert (tmp_path / "pub" / begun).read_bytes() == (first.path / begun).read_bytes()
    push(second.path, tmp_path / "pub", "--replace")
    assert ser("cache", "pull", tmp_path / "pub", "--store", tmp_path / "got").exit_code == 0
    mine, theirs = second["frames"].load(manifest), sound(tmp_path / "got")["frames"].load(manifest)
    assert theirs.values.tobytes() == mine.values.tobytes()


def test_latest_goes_backwards_for_nobody(tmp_path: Path) -> None:
    sample_store(tmp_path / "large", "zarr", count=10)
    sample_store(tmp_path / "small", "zarr", count=4)
    push(tmp_path / "large", tmp_path / "pub")
    assert "6 of them" in refused("push", tmp_path / "pub", "--store", tmp_path / "small")
    push(tmp_path / "small", tmp_path / "pub", "--replace")
    assert "10 utterances there" in refused("pull", tmp_path / "pub", "--store", tmp_path / "large")
    assert len(sound(tmp_path / "large").manifest()) == 10
    assert (
        ser("cache", "pull", tmp_path / "pub", "--store", tmp_path / "large", "--replace").exit_code
        == 0
    )
    assert len(sound(tmp_path / "large").manifest()) == 4


def test_only_what_is_asked_for(tmp_path: Path) -> None:
    store, feature, *_ = sample_store(tmp_path / "s", "zarr")
    sample_store(tmp_path / "s", "zarr", level="utterance")
    other = replace(manifest_of(5, "other"), synthetic=True)
    store.put_manifest(other)
    fill(feature, other, "zarr")
    push(tmp_path / "s", tmp_path / "pub")
    about = json.loads(
        ser("cache", "pull", tmp_path / "pub", "--dry-run", "--json", "--corpus", "other").stdout
    )
    assert about["parts"] == 2 and about["bytes"] == sum(
        p.bytes for p in feature.parts() if p.record.corpus == "other"
    )
    words = ["pull", tmp_path / "pub", "--store", tmp_path / "got", "--corpus", "other"]
    assert ser("cache", *words, "--features", "frames:hop=0.1").exit_code == 0
    got = sound(tmp_path / "got")
    assert got.corpora() == ["other"] and got["frames"].complete(other) and len(got.features()) == 1
    assert "did you mean frames" in refused(*words, "--features", "frame")


NAMES = {  # what a name of `ser train` reads of these
    "hubert": "hubert",
    "hubert:hop=0.1": "hubert",
    "hubert@{0}:pool=meanstd": "hubert",
    "hubert:layer=0,hop=0.06+logmel": "hubert:layer=0 logmel",
    "hubert:layer=0@{1}": "hubert:layer=0",
    "hubert:layer=0,pool=mean": "hubert:layer=0,pool=mean",
    "hubert:layers=0-1@{1}": "hubert hubert:layer=0 hubert:layer=0,pool=mean",
    "logmel:hop=0.02": "logmel:hop=0.02",
    "bert": "",
    "hubert:layer=7": "",
    "logmel:hop=0.05": "",  # another feature, as mel is extracted with a hop of its own
}


@pytest.mark.parametrize("asked", NAMES)
def test_a_name_brings_what_training_reads_by_it(asked: str) -> None:
    there = [
        "hubert",
        "hubert:layer=0",
        "hubert:layer=0,pool=mean",
        "logmel",
        "logmel:hop=0.02",
        "bert:layer=1",
    ]
    specs = [spec_of(feature=name.split(":")[0], variant=name.partition(":")[2]) for name in there]
    record = Published(features={spec.folder: spec for spec in specs})
    asked, wanted = asked.format(*(spec.fingerprint[:6] for spec in specs)), NAMES[asked]
    if wanted:
        assert {record.features[folder].name for folder in record.folders_of(asked, "there")} == {
            *wanted.split()
        }
    else:
        with pytest.raises(WrongUse, match="known: bert:layer=1, hubert"):
            record.folders_of(asked, "there")


def test_the_card_says_how_the_features_were_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(3, "my_iemocap_")
    store = new_store(tmp_path / "s", manifest)
    store.put_manifest(manifest_of(4, "a_corpus_without_rows"))
    odd = {"variant": "a='$(x)'", "provenance": {"model": "a|b <script>"}}
    feature = store.add(spec_of(feature="is13", extractor="smile", **odd))
    fill(feature, manifest, "zarr")
    pinned = push(tmp_path / "s", tmp_path / "pub")
    text = (tmp_path / "pub/README.md").read_text()
    assert (
        text.startswith("---\npretty_name:")
        and feature.fingerprint in text
        and str(tmp_path) not in text
    )
    assert (
        f"ser cache pull FOLDER@{pinned.partition('@')[2]} --store" in text
        and "pip install ser-fusion`" in text
    )
    assert (
        "sail.usc.edu/iemocap" in text
        and "research and non-commercial" in text
        and "a\\|b \\<script>" in text
    )
    assert "| my\\_iemocap\\_ |" in text and "(my\\_iemocap\\_): the University" in text
    (line,) = (line for line in text.splitlines() if line.startswith("ser train"))
    assert shlex.split(line)[5] == "is13:a='$(x)'"
    other = store.add(spec_of(feature="is13", extractor="other", **odd))  # under the same name
    fill(other, manifest, "zarr")
    push(tmp_path / "s", tmp_path / "pub")
    lines = (tmp_path / "pub/README.md").read_text().split("```")[1].splitlines()[1:]
    pull, python, train = (
        shlex.split(line.replace("FOLDER", str(tmp_path / "pub")))[1:] for line in lines
    )
    monkeypatch.chdir(tmp_path)
    assert ser(*pull).exit_code == 0 and train[-1] == manifest.corpus
    exec(python[1])
    (tmp_path / "pub/README.md").write_text("mine")
    push(tmp_path / "s", tmp_path / "pub")
    assert (tmp_path / "pub/README.md").read_text() == "mine"


def test_the_hub_is_not_asked_while_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system in memory has the Hub's paths; with HF_HUB_OFFLINE its library asks nobody, and
    names it.
    """
    sample_store(tmp_path / "s", "hdf5")
    url = "hf://datasets/me/features@main"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for words in (
        ["pull", url, "--store", tmp_path / "got"],
        ["push", url, "--store", tmp_path / "s"],
    ):
        assert "unset the `HF_HUB_OFFLINE`" in refused(*words)
    monkeypatch.setitem(_registry, "hf", MemoryFileSystem)
    pinned = push(tmp_path / "s", url)
    hub = MemoryFileSystem()
    assert any(path.endswith("datasets/me/features@main/README.md") for path in hub.store)
    for path in [path for path in hub.store if "/parts/" in path]:
        hub.rm(path)
    assert "missing, altered or cut short" in refused("pull", pinned, "--store", tmp_path / "got")
    assert not any(feature.parts() for feature in sound(tmp_path / "got").features())


def test_a_url_that_cannot_be_used_is_one_sentence_without_its_password(
    tmp_path: Path, monkeypatch: Any
) -> None:
    sample_store(tmp_path / "s", "zarr", count=2)
    url = "sftp://me:secret@127.0.0.1:9/x"
    assert "secret" not in refused("push", url, "--store", tmp_path / "s")
    said = redacted("at https://u:p@ss@host/a?X-Sig=1 and hf://datasets/a/b@main")
    assert said == "at https://host/a and hf://datasets/a/b@main"
    assert push(tmp_path / "s", tmp_path / "what?").startswith(
        f"{tmp_path / 'what?'}@"
    )  # a path has no signature
    assert "cannot be used" in refused("push", "nosuch://x/y", "--store", tmp_path / "s")
    for words in (["cache", "list"], ["cache", "info", "f"], ["features", tmp_path / "nowhere"]):
        told = ser(*words, "--store", "s3://a/b").stderr  # before the corpus is looked at
        assert (
            all(one in told for one in ("must be a path", "README.md", "`pull URL --dry-run`"))
            and "s3:/a" not in told
        )

    def absent(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", absent)
    assert "pip install 'ser-fusion[cloud]'" in refused(
        "push", "s3://a/b", "--store", tmp_path / "s"
    )
