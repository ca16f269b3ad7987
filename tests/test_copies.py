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


def pull(url: object, store: Path, *options: object) -> str:
    """What a pull that works prints."""
    return printed("cache", "pull", url, "--store", store, *options)


def refused(*words: object) -> str:
    """A command's one sentence."""
    done = ser("cache", *words)
    assert done.exit_code in (1, 2), done
    assert done.stdout == "", done

    sentences = [line for line in done.stderr.splitlines() if line.startswith("ser: ")]
    assert len(sentences) == 1, done.stderr
    assert "unexpected" not in sentences[0], done.stderr
    return sentences[0]


def sound(path: Path) -> Store:
    """The store at a path, in which nothing is wrong."""
    store = open_store(path)
    assert not [checked for checked in verify(store) if checked.problem]
    return store


def test_a_push_leaves_a_store_that_is_worked_in_alone(tmp_path: Path) -> None:
    store, _, manifest, _ = sample_store(tmp_path / "store", "zarr")

    for url in (store.path, store.path.as_uri()):
        assert "is a store that is in use" in refused("push", url, "--store", store.path)
    assert open_store(store.path).manifest().digest == manifest.digest

    for url in ("", "s3:/bucket/x"):
        assert "name the URL" in refused("push", url, "--store", store.path)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("with space", id="a space"),
        pytest.param("100%", id="a percent sign"),
        pytest.param("a%20b", id="an escape in a name"),
        pytest.param("a#b?c", id="marks of a URL"),
        pytest.param("a::b", id="two colons"),
        pytest.param("grün", id="a letter beyond ASCII"),
    ],
)
def test_a_url_and_a_path_name_the_same_folder(tmp_path: Path, name: str) -> None:
    sample_store(tmp_path / "store", "zarr")
    published = tmp_path / "places" / name

    push(tmp_path / "store", published.as_uri())
    assert [path.name for path in published.parent.iterdir()] == [name]
    by_url = pull(published.as_uri(), tmp_path / "by url")
    by_path = pull(str(published), tmp_path / "by path")

    assert by_url.rpartition("@")[2] == by_path.rpartition("@")[2]
    assert sound(tmp_path / "by url").manifest().digest == sound(published).manifest().digest


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("file://server/share", id="a machine"),
        pytest.param("file:folder", id="a relative path"),
    ],
)
def test_a_file_url_that_names_no_path_here_is_refused(tmp_path: Path, url: str) -> None:
    sample_store(tmp_path / "store", "zarr")

    assert "write file:///folder" in refused("push", url, "--store", tmp_path / "store")
    assert "write file:///folder" in refused("pull", url, "--store", tmp_path / "new")


def test_what_is_pulled_is_what_was_pushed_without_its_words(backend: str, tmp_path: Path) -> None:
    _, feature, manifest, _ = sample_store(tmp_path / "s", backend)
    _, words, *_ = sample_store(tmp_path / "s", backend, level="token")

    pinned = push(tmp_path / "s", tmp_path / "pub")
    pull(f"file://{pinned}", tmp_path / "got")

    got = sound(tmp_path / "got")
    check_whole(got["frames"], got.manifest())
    pulled_records = [part.record for part in got["frames"].parts()]
    assert pulled_records == [part.record for part in feature.parts()]
    assert set(got.manifest().column("text")) == {None}
    assert got.manifest().inputs("text") == manifest.inputs("text")

    mine = words.load(manifest)
    theirs = got["tokens"].load(got.manifest())
    assert theirs.values.tobytes() == mine.values.tobytes()
    assert set(mine.extras) - set(theirs.extras) == {"token"}

    for file in (tmp_path / "pub").rglob("*"):
        if file.is_file():
            assert b"number 3" not in file.read_bytes(), file

    # What lies there is a store, and a second push has nothing to do.
    assert sound(tmp_path / "pub")["frames"].complete(manifest)
    again = ser("cache", "push", tmp_path / "pub", "--store", tmp_path / "s", "--json")
    assert again.stdout.count('"bytes": 0') == 1


def test_words_are_pushed_where_they_are_asked_for(backend: str, tmp_path: Path) -> None:
    _, _, manifest, _ = sample_store(tmp_path / "s", backend)
    sample_store(tmp_path / "s", backend, level="token")
    pinned = push(tmp_path / "s", tmp_path / "pub")
    push(tmp_path / "s", tmp_path / "open", "--with-text")

    pull(tmp_path / "open", tmp_path / "told")
    assert sound(tmp_path / "told").manifest().same(manifest)
    extras = open_store(tmp_path / "told")["tokens"].load(manifest).extras
    assert set(extras) == {"word", "token"}

    # The parts of the plain push are others.
    assert ser("cache", "pull", pinned, "--store", tmp_path / "told").exit_code == 2
    pull(tmp_path / "pub", tmp_path / "told")
    # No transcript is lost.
    assert open_store(tmp_path / "told").manifest().same(manifest)


def test_a_digest_names_what_was_published_and_nothing_else(tmp_path: Path) -> None:
    sample_store(tmp_path / "s", "zarr")
    first = push(tmp_path / "s", tmp_path / "pub")
    sample_store(tmp_path / "s", "zarr", level="utterance")
    second = push(tmp_path / "s", tmp_path / "pub")
    assert first != second
    assert push(tmp_path / "s", tmp_path / "pub") == second

    pull(first, tmp_path / "old")
    assert [feature.spec.name for feature in sound(tmp_path / "old").features()] == ["frames"]

    other = f"{tmp_path / 'pub'}@{'0' * 64}"
    assert "is missing" in refused("pull", other, "--store", tmp_path / "x")
    assert "and no digest" in refused("push", other, "--store", tmp_path / "s")
    for place in (tmp_path / "pub", tmp_path / "nowhere"):
        sentence = refused("pull", f"{place}@0000", "--store", tmp_path / "x")
        assert "@0000: nothing is published there" in sentence


def test_what_is_damaged_where_it_is_published_is_refused_and_can_be_pushed_again(
    tmp_path: Path,
) -> None:
    store = tmp_path / "s"
    pub = tmp_path / "pub"
    sample_store(store, "zarr")
    first = push(store, pub)
    sample_store(store, "zarr", level="utterance")
    second = push(store, pub)

    [record] = pub.glob(f"published-{second[-64:]}.json")
    record.write_bytes(record.read_bytes() + b" ")
    assert "not what its digest names" in refused("pull", second, "--store", tmp_path / "x")

    data = sorted((pub / "frames").glob("*/parts/*/data.zarr/values/c/0/0"))[-1]
    content = data.read_bytes()
    data.write_bytes(bytes(len(content)))
    assert "its sha256 is not" in refused("pull", first, "--store", tmp_path / "x")
    # Pulled halfway: incomplete, never wrong.
    assert not sound(tmp_path / "x")["frames"].complete(manifest_of(10))

    assert "not what its digest names" in refused("push", pub, "--store", store)
    assert push(store, pub, "--replace") == second
    assert data.read_bytes() == content

    data.write_bytes(bytes(len(content)))
    lost, cut = sorted(pub.glob("utterances/*/parts/*/part.json"))[:2]
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    next((pub / "manifests").glob("*/*.parquet")).unlink()
    assert push(store, pub, "--replace") == second
    assert data.read_bytes() == content

    # What was pulled halfway goes on.
    planned = ser("cache", "pull", first, "--store", tmp_path / "x", "--dry-run")
    assert "2 there already" in planned.stdout
    done = ser("cache", "pull", first, "--store", tmp_path / "x")
    assert done.stdout.startswith(first)
    assert sound(tmp_path / "x")["frames"].complete(manifest_of(10))

    pull(second, tmp_path / "y")
    sound(tmp_path / "y")
    next((tmp_path / "y").glob("*/*/parts/*/part.json")).unlink()
    assert "part.json: is missing" in refused("pull", second, "--store", tmp_path / "y")


Change = Callable[[dict[str, Any]], Any]


def republish(pub: Path, change: Change) -> None:
    """Publish something else there, with true digests, as an attacker would."""
    latest = (pub / "published-latest").read_text().strip()
    record = json.loads((pub / f"published-{latest}.json").read_bytes())
    change(record)
    content = canonical_json(record)
    digest = hashlib.sha256(content).hexdigest()
    (pub / f"published-{digest}.json").write_bytes(content)
    (pub / "published-latest").write_text(f"{digest}\n")


def moved(key: str, to: str) -> Change:
    """The first entry under a key gets another name."""

    def change(record: dict[str, Any]) -> None:
        first = next(iter(record[key]))
        record[key][to] = record[key].pop(first)

    return change


def a_part(record: dict[str, Any]) -> dict[str, Any]:
    return next(iter(record["parts"].values()))


RECORD_LIES: dict[str, Change] = {
    "a feature elsewhere": moved("features", "../../x/0123456789abcdef"),
    "a fingerprint elsewhere": moved("features", "frames/../../../x"),
    "a corpus elsewhere": moved("manifests", ".."),
    "another feature": moved("features", "other/0123456789abcdef"),
    "a part elsewhere": moved("parts", "frames/../../../x"),
    "a digest elsewhere": lambda record: record["manifests"]["toy"].update(
        sha256="../../../etc/passwd"
    ),
    "a huge part": lambda record: a_part(record).update(bytes=1 << 60),
    "a huge record": lambda record: a_part(record)["record"].update(bytes=1 << 60),
    "a part of another corpus": lambda record: a_part(record).update(corpus="else"),
    "a newer format": lambda record: record.update(format_version=2),
    "nothing": lambda record: record.clear(),
}
# Those of part.json.
PART_LIES = (
    "a chunk bomb",
    "another dimension",
    "a block outside its file",
    "a file with dots",
    "another fingerprint",
)


def republish_lying_part(pub: Path, lie: str) -> None:
    """Publish a part whose part.json lies, with true digests."""
    path = next((pub / "frames").glob("*/parts/*/part.json"))
    rewrite_record(path, LIES[lie])

    content = path.read_bytes()
    file = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    size = sum(record["bytes"] for record in json.loads(content)["files"].values())
    republish(pub, lambda record: a_part(record).update(record=file, bytes=size))


@pytest.mark.parametrize("lie", [*RECORD_LIES, *PART_LIES])
def test_what_a_stranger_publishes_is_not_trusted(lie: str, tmp_path: Path) -> None:
    pub = tmp_path / "pub"
    got = tmp_path / "a/b/got"
    sample_store(tmp_path / "s", "zarr", count=4)
    push(tmp_path / "s", pub)
    if lie in PART_LIES:
        republish_lying_part(pub, lie)
    else:
        republish(pub, RECORD_LIES[lie])
    before = set(tmp_path.rglob("*"))

    if lie == "a part of another corpus":
        ser("cache", "pull", pub, "--store", got)
    else:
        sentence = refused("pull", pub, "--store", got)
        assert "--repair" not in sentence
        assert "/tmp/" not in sentence.replace(str(tmp_path), "")

    made = set(tmp_path.rglob("*")) - before - {tmp_path / "a", tmp_path / "a/b"}
    for path in made:
        assert path.is_relative_to(got)
    if made:
        assert not any(feature.parts() for feature in sound(got).features())


def test_what_a_killed_push_left_counts_as_there_but_for_words(tmp_path: Path) -> None:
    """Its part is whole, and in no record yet."""
    store, *_ = sample_store(tmp_path / "s", "zarr", level="token", count=4)
    push(store.path, tmp_path / "plain")
    push(store.path, tmp_path / "worded", "--with-text")
    for name in ("plain", "worded"):
        for path in (tmp_path / name).glob("*"):
            if path.is_file():
                path.unlink()

    again = ser("cache", "push", tmp_path / "plain", "--store", store.path, "--dry-run")
    assert "0 parts, 0.0 MB to push, 1 there already" in again.stdout + again.stderr
    push(store.path, tmp_path / "plain")
    assert sound(tmp_path / "plain").features()

    sentence = refused("push", tmp_path / "worded", "--store", store.path)
    assert "another push has begun this part" in sentence


def test_a_part_that_another_push_has_begun_is_left_to_it(tmp_path: Path) -> None:
    """What a killed push has put is taken up, also a file cut short; with other numbers only with
    --replace.
    """
    pub = tmp_path / "pub"
    first, feature, manifest, arrays = sample_store(tmp_path / "first", "hdf5")
    second = new_store(tmp_path / "second", manifest)
    others = {id_: array + 1 for id_, array in arrays.items()}
    fill(second.add(feature.spec), manifest, "hdf5", others)

    files = [part.folder.relative_to(first.path) / "data.h5" for part in feature.parts()]
    begun = files[0]
    cut = files[1]
    for path, size in ((begun, None), (cut, 1000)):
        (pub / path).parent.mkdir(parents=True)
        (pub / path).write_bytes((first.path / path).read_bytes()[:size])
    assert "another push has begun this part" in refused("push", pub, "--store", second.path)

    push(first.path, pub)
    assert sound(pub)["frames"].complete(manifest)
    assert (pub / begun).read_bytes() == (first.path / begun).read_bytes()

    push(second.path, pub, "--replace")
    pull(pub, tmp_path / "got")
    mine = second["frames"].load(manifest)
    theirs = sound(tmp_path / "got")["frames"].load(manifest)
    assert theirs.values.tobytes() == mine.values.tobytes()


def test_latest_goes_backwards_for_nobody(tmp_path: Path) -> None:
    pub = tmp_path / "pub"
    large = tmp_path / "large"
    small = tmp_path / "small"
    sample_store(large, "zarr", count=10)
    sample_store(small, "zarr", count=4)

    push(large, pub)
    assert "6 of them" in refused("push", pub, "--store", small)

    push(small, pub, "--replace")
    assert "10 utterances there" in refused("pull", pub, "--store", large)
    assert len(sound(large).manifest()) == 10

    pull(pub, large, "--replace")
    assert len(sound(large).manifest()) == 4


def test_only_what_is_asked_for(tmp_path: Path) -> None:
    store, feature, *_ = sample_store(tmp_path / "s", "zarr")
    sample_store(tmp_path / "s", "zarr", level="utterance")
    other = replace(manifest_of(5, "other"), synthetic=True)
    store.put_manifest(other)
    fill(feature, other, "zarr")
    push(tmp_path / "s", tmp_path / "pub")

    options = ["--dry-run", "--json", "--corpus", "other"]
    planned = json.loads(ser("cache", "pull", tmp_path / "pub", *options).stdout)
    sizes = [part.bytes for part in feature.parts() if part.record.corpus == "other"]
    assert planned["parts"] == 2
    assert planned["bytes"] == sum(sizes)

    words = ["pull", tmp_path / "pub", "--store", tmp_path / "got", "--corpus", "other"]
    assert ser("cache", *words, "--features", "frames:hop=0.1").exit_code == 0
    got = sound(tmp_path / "got")
    assert got.corpora() == ["other"]
    assert got["frames"].complete(other)
    assert len(got.features()) == 1
    assert "did you mean frames" in refused(*words, "--features", "frame")


PUBLISHED = (
    "hubert",
    "hubert:layer=0",
    "hubert:layer=0,pool=mean",
    "logmel",
    "logmel:hop=0.02",
    "bert:layer=1",
)


# What a name of `ser train` reads of these.
NAMES = {
    "hubert": ["hubert"],
    "hubert:hop=0.1": ["hubert"],
    "hubert@{0}:pool=meanstd": ["hubert"],
    "hubert:layer=0,hop=0.06+logmel": ["hubert:layer=0", "logmel"],
    "hubert:layer=0@{1}": ["hubert:layer=0"],
    "hubert:layer=0,pool=mean": ["hubert:layer=0,pool=mean"],
    "hubert:layers=0-1@{1}": ["hubert", "hubert:layer=0", "hubert:layer=0,pool=mean"],
    "logmel:hop=0.02": ["logmel:hop=0.02"],
    "bert": [],
    "hubert:layer=7": [],
    # Another feature, as mel is extracted with a hop of its own.
    "logmel:hop=0.05": [],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_brings_what_training_reads_by_it(name: str) -> None:
    specs = []
    for published in PUBLISHED:
        feature, _, variant = published.partition(":")
        specs.append(spec_of(feature=feature, variant=variant))
    record = Published(features={spec.folder: spec for spec in specs})
    fingerprints = [spec.fingerprint[:6] for spec in specs]
    asked = name.format(*fingerprints)

    if not NAMES[name]:
        with pytest.raises(WrongUse, match="known: bert:layer=1, hubert"):
            record.folders_of(asked, "there")
        return

    brought = {record.features[folder].name for folder in record.folders_of(asked, "there")}
    assert brought == set(NAMES[name])


def test_the_card_says_how_the_features_were_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(3, "my_iemocap_")
    store = new_store(tmp_path / "s", manifest)
    store.put_manifest(manifest_of(4, "a_corpus_without_rows"))
    odd = {"variant": "a='$(x)'", "provenance": {"model": "a|b <script>"}}
    feature = store.add(spec_of(feature="is13", extractor="smile", **odd))
    fill(feature, manifest, "zarr")
    card = tmp_path / "pub/README.md"

    pinned = push(tmp_path / "s", tmp_path / "pub")

    text = card.read_text()
    assert text.startswith("---\npretty_name:")
    assert feature.fingerprint in text
    assert str(tmp_path) not in text
    assert f"ser cache pull FOLDER@{pinned.partition('@')[2]} --store" in text
    assert "pip install ser-fusion`" in text
    assert "sail.usc.edu/iemocap" in text
    assert "research and non-commercial" in text
    assert "a\\|b \\<script>" in text
    assert "| my\\_iemocap\\_ |" in text
    assert "(my\\_iemocap\\_): the University" in text
    [train] = [line for line in text.splitlines() if line.startswith("ser train")]
    assert shlex.split(train)[5] == "is13:a='$(x)'"

    # Under the same name.
    other = store.add(spec_of(feature="is13", extractor="other", **odd))
    fill(other, manifest, "zarr")
    push(tmp_path / "s", tmp_path / "pub")

    # The card's commands work as they stand there.
    lines = card.read_text().split("```")[1].splitlines()[1:]
    commands = [shlex.split(line.replace("FOLDER", str(tmp_path / "pub"))) for line in lines]
    pull_command, python_command, train_command = commands
    monkeypatch.chdir(tmp_path)
    assert ser(*pull_command[1:]).exit_code == 0
    assert train_command[-1] == manifest.corpus
    exec(python_command[2])

    # A card of one's own is left.
    card.write_text("mine")
    push(tmp_path / "s", tmp_path / "pub")
    assert card.read_text() == "mine"


def test_the_hub_is_not_asked_while_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system in memory has the Hub's paths; with HF_HUB_OFFLINE its library asks nobody, and
    names it.
    """
    sample_store(tmp_path / "s", "hdf5")
    url = "hf://datasets/me/features@main"

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for command, store in (("pull", tmp_path / "got"), ("push", tmp_path / "s")):
        assert "unset the `HF_HUB_OFFLINE`" in refused(command, url, "--store", store)

    monkeypatch.setitem(_registry, "hf", MemoryFileSystem)
    pinned = push(tmp_path / "s", url)
    hub = MemoryFileSystem()
    assert any(path.endswith("datasets/me/features@main/README.md") for path in hub.store)

    for path in [path for path in hub.store if "/parts/" in path]:
        hub.rm(path)
    assert "missing, altered or cut short" in refused("pull", pinned, "--store", tmp_path / "got")
    assert not any(feature.parts() for feature in sound(tmp_path / "got").features())


def test_a_url_that_cannot_be_used_is_one_sentence_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "s"
    sample_store(store, "zarr", count=2)
    assert "secret" not in refused("push", "sftp://me:secret@127.0.0.1:9/x", "--store", store)

    text = redacted("at https://u:p@ss@host/a?X-Sig=1 and hf://datasets/a/b@main")
    assert text == "at https://host/a and hf://datasets/a/b@main"

    # A path has no signature.
    odd = tmp_path / "what?"
    assert push(store, odd).startswith(f"{odd}@")

    assert "cannot be used" in refused("push", "nosuch://x/y", "--store", store)

    def no_s3fs(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", no_s3fs)
    assert "pip install 'ser-fusion[cloud]'" in refused("push", "s3://a/b", "--store", store)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["cache", "list"], id="list"),
        pytest.param(["cache", "info", "f"], id="info"),
        # Before the corpus is looked at.
        pytest.param(["features", "nowhere"], id="features"),
    ],
)
def test_a_url_in_place_of_a_store_says_what_takes_one(words: list[str]) -> None:
    message = ser(*words, "--store", "s3://a/b").stderr

    for part in ("must be a path", "README.md", "`pull URL --dry-run`"):
        assert part in message
    assert "s3:/a" not in message
