"""What is printed of a store that is damaged, copied, imported or put back works as printed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from click.testing import Result

from ser.cache.publish import publish_part
from ser.cache.store import open_store
from ser.tests.command_line import printed, ser
from ser.tests.named_commands import commands_in, run_named
from ser.tests.store_samples import fill, new_store, part_rows, rewrite_record, sample_store
from ser.tests.tiny_store import add_feature, make_manifest, make_rows

FEATURE = "egemaps"
COUNT = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `corpus` of short recordings in a table, and its `features`."""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "corpus").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(COUNT):
        sf.write(folder / "corpus" / f"u{number}.wav", rng.normal(0, 0.1, 4000), 16000)
        label = ("angry", "sad")[number // 4 % 2]
        row = {"id": f"u{number}", "audio": f"u{number}.wav", "label": label}
        rows.append({**row, "speaker": f"s{number % 4}"})
    pd.DataFrame(rows).to_csv(folder / "corpus" / "table.csv", index=False)

    printed("features", folder / "corpus" / "table.csv", *named_store(folder))
    return folder


def named_store(folder: Path) -> list[object]:
    """Options of `ser features`: of which feature, and into which store."""
    return ["--features", FEATURE, "--corpus-name", "mine", "--store", folder / "features"]


@pytest.fixture
def recordings(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `made`, which may be written to: the working folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_what_is_named(answer: Result, folder: Path) -> None:
    """Run what a message names in its order, and where it says so the same extraction again."""
    assert commands_in(answer)[-1] == ["features"]
    assert "the `ser features` command" in answer.output
    for command in commands_in(answer)[:-1]:
        ser(*[folder / "features" if word == "STORE" else word for word in command])
    printed("features", folder / "corpus" / "table.csv", *named_store(folder))


def export(folder: Path) -> Result:
    """Read all of the feature."""
    table = folder / "exported.csv"
    return ser("cache", "export", FEATURE, table, "--with", "label", "--store", folder / "features")


# Files that are altered


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def of_the_spec(folder: Path, change: Callable[[Path], None]) -> None:
    [spec] = folder.glob(f"features/{FEATURE}/*/spec.json")
    change(spec)


def set_version(path: Path) -> None:
    rewrite_record(path, lambda record: record.update(format_version=0))


def flip_last_bits(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


def flip_first_bits(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


def in_manifests(folder: Path, pattern: str, change: Callable[[bytes], bytes]) -> None:
    [path] = folder.glob(f"features/manifests/mine/{pattern}")
    edit(path, change)


def in_values(folder: Path, change: Callable[[bytes], bytes]) -> None:
    edit(min(folder.glob(f"features/{FEATURE}/*/parts/*/data.zarr/values/c/0/0")), change)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "latest is cut": lambda folder: in_manifests(folder, "latest", lambda content: content[:-5]),
    "the manifest is altered": lambda folder: in_manifests(folder, "*.parquet", flip_last_bits),
    "the spec is altered": lambda folder: of_the_spec(folder, lambda path: edit(path, bytes.upper)),
    "the spec has no version": lambda folder: of_the_spec(folder, set_version),
    "a part is altered": lambda folder: in_values(folder, flip_first_bits),
    "a part is cut": lambda folder: in_values(folder, lambda content: content[:-5]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_mended_as_printed(recordings: Path, damage: str) -> None:
    DAMAGE[damage](recordings)
    refused = export(recordings)
    assert refused.exit_code == 1, refused.output

    run_what_is_named(refused, recordings)
    done = export(recordings)
    assert done.exit_code == 0, done.output
    assert len(pd.read_csv(recordings / "exported.csv")) == COUNT


def test_a_damaged_log_is_mended_as_printed(recordings: Path) -> None:
    in_manifests(recordings, "log.jsonl", lambda content: content[20:])
    verify = ["cache", "verify", "--store", recordings / "features"]
    refused = ser(*verify)
    assert refused.exit_code == 1, refused.output

    run_named(refused, STORE=recordings / "features")
    assert ser(*verify).exit_code == 0


def test_what_verify_has_moved_is_computed_again_as_printed(recordings: Path) -> None:
    in_values(recordings, flip_last_bits)
    moved = ser("cache", "verify", "--repair", "--store", recordings / "features")
    run_what_is_named(moved, recordings)
    assert export(recordings).exit_code == 0


def test_a_newer_manifest_is_not_written_over_but_with_the_option(recordings: Path) -> None:
    """What the damaged one held is unknown."""
    DAMAGE["latest is cut"](recordings)
    table = recordings / "corpus" / "table.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]))

    extract = ["features", table, *named_store(recordings)]
    refused = ser(*extract)
    assert "takes its place with --replace" in refused.output
    assert ser(*extract, "--replace").exit_code == 0


# Rows that are missing, quarantined, twice or empty


def test_a_quarantined_recording_is_computed_as_printed_when_it_is_mended(
    recordings: Path,
) -> None:
    sound = (recordings / "corpus" / "u3.wav").read_bytes()
    (recordings / "corpus" / "u3.wav").write_bytes(b"nothing")
    shutil.rmtree(recordings / "features")
    table = recordings / "corpus" / "table.csv"
    skipped = ser("features", table, *named_store(recordings), "--on-error", "skip")
    assert skipped.exit_code == 3, skipped.output

    train = ["train", "--features", FEATURE, "--fusion", "audio:utterance", "--labels", "all"]
    train += ["--protocol", "speaker-out", "--epochs", 1, "--folds", 1]
    train += ["--store", recordings / "features", "--out", recordings / "runs"]
    refused = ser(*train)
    assert refused.exit_code == 1, refused.output

    (recordings / "corpus" / "u3.wav").write_bytes(sound)
    for done in (*run_named(refused, CORPUS=table), ser(*train)):
        assert done.exit_code == 0, done.output


def test_superseded_rows_are_removed_as_printed(tmp_path: Path, backend: str) -> None:
    store, feature, manifest, _ = sample_store(tmp_path / "a store", backend)
    publish_part(feature, part_rows(manifest, feature.spec, range(len(manifest))), backend)

    noted = ser("cache", "verify", "--store", store.path)
    [asked] = run_named(noted)
    assert "say --yes to remove it" in asked.output
    [command] = commands_in(noted)
    assert ser(*command, "--yes").exit_code == 0
    assert not commands_in(ser("cache", "verify", "--store", store.path))


def test_an_utterance_without_rows_is_made_again_as_printed(tmp_path: Path) -> None:
    """As an extractor of a package may have published it."""
    manifest = make_manifest()
    store = new_store(tmp_path / "s", manifest)
    rows = make_rows(manifest, "hubert")
    add_feature(store, manifest, "hubert", [rows[0][:0], *rows[1:]])

    train = ["train", "--features", "hubert", "--fusion", "audio", "--epochs", 1, "--folds", 1]
    train += ["--set", "d_model=8", "--set", "heads=2", "--store", store.path]
    train += ["--out", tmp_path / "runs"]
    refused = ser(*train)
    assert f"utterance {manifest.ids[0]} has no rows at all" in refused.output

    [command] = commands_in(refused)
    assert ser(*command, "--yes").exit_code == 0
    add_feature(store, manifest, "hubert", rows)
    done = ser(*train)
    assert done.exit_code == 0, done.output


def test_a_feature_is_computed_again_by_the_command_that_it_names(recordings: Path) -> None:
    store = recordings / "features"
    shown = printed("cache", "info", FEATURE, "--json", "--store", store)
    [command] = {entry["command"] for entry in find(json.loads(shown), "command")}
    feature = open_store(store)[FEATURE]
    shutil.rmtree(feature.path)

    words = command.replace("CORPUS", str(recordings / "corpus" / "table.csv")).split()
    printed(*words[1:], "--corpus-name", "mine")
    assert open_store(store)[FEATURE].fingerprint == feature.fingerprint


def find(facts: object, key: str) -> list[dict[str, str]]:
    """Every record within that has the key."""
    found = []
    if isinstance(facts, dict):
        if isinstance(facts.get(key), str):
            found.append(facts)
        values = list(facts.values())
    else:
        values = list(facts) if isinstance(facts, list) else []
    for value in values:
        found += find(value, key)
    return found


def test_a_feature_that_is_not_removed_is_shown_as_printed(recordings: Path) -> None:
    refused = ser("cache", "remove", FEATURE, "--dry-run", "--store", recordings / "features")
    assert refused.exit_code == 2
    [done] = run_named(refused, NAME=FEATURE)
    assert done.exit_code == 0, done.output


# Manifests that are put back


@pytest.mark.parametrize("digest", [[], ["9999"]], ids=["none before", "an unknown one"])
def test_manifests_are_listed_as_printed_when_none_is_put_back(
    recordings: Path, digest: list[str]
) -> None:
    refused = ser("cache", "rollback", "mine", *digest, "--store", recordings / "features")
    assert refused.exit_code == 2
    [listed] = run_named(refused)
    assert listed.exit_code == 0, listed.output

    latest = open_store(recordings / "features").manifest().digest
    assert latest in listed.output
    printed("cache", "rollback", "mine", latest, "--store", recordings / "features")


# Copies


def test_what_is_not_published_yet_is_pushed_as_printed(recordings: Path) -> None:
    pull = ["cache", "pull", recordings / "published", "--store", recordings / "copy"]
    refused = ser(*pull)
    assert refused.exit_code == 2
    [pushed] = run_named(refused, URL=recordings / "published")
    assert pushed.exit_code == 0, pushed.output
    assert ser(*pull).exit_code == 0


def test_a_url_in_place_of_a_store_is_copied_by_the_commands_that_are_named(
    recordings: Path,
) -> None:
    url = (recordings / "published").as_uri()
    refused = ser("cache", "list", "--store", url)
    assert commands_in(refused) == [["cache", "push"]]
    assert "`pull`" in refused.output and "`pull URL --dry-run`" in refused.output

    printed("cache", "push", url)
    printed("cache", "pull", url, "--dry-run", "--store", recordings / "copy")
    printed("cache", "pull", url, "--store", recordings / "copy")
    assert "README.md" in {path.name for path in (recordings / "published").iterdir()}


def test_what_is_damaged_where_it_is_published_is_pushed_again_as_printed(
    recordings: Path,
) -> None:
    published = recordings / "published"
    printed("cache", "push", published)
    data = min(published.glob(f"{FEATURE}/*/parts/*/data.zarr/values/c/0/0"))
    edit(data, flip_first_bits)

    pull = ["cache", "pull", published, "--store", recordings / "copy"]
    refused = ser(*pull)
    assert refused.exit_code == 1, refused.output
    [pushed] = run_named(refused, URL=published)
    assert pushed.exit_code == 0, pushed.output
    assert ser(*pull).exit_code == 0


def test_a_part_that_is_damaged_here_is_pushed_when_it_is_mended_as_printed(
    recordings: Path,
) -> None:
    in_values(recordings, flip_last_bits)
    push = ["cache", "push", recordings / "published"]
    refused = ser(*push)
    assert refused.exit_code == 1, refused.output
    run_what_is_named(refused, recordings)
    assert ser(*push).exit_code == 0


def test_a_push_that_never_ends_is_taken_over_by_the_option_that_is_named(tmp_path: Path) -> None:
    first, feature, manifest, arrays = sample_store(tmp_path / "first", "hdf5")
    second = new_store(tmp_path / "second", manifest)
    fill(
        second.add(feature.spec), manifest, "hdf5", {id_: rows + 1 for id_, rows in arrays.items()}
    )
    begun = feature.parts()[0].folder.relative_to(first.path) / "data.h5"
    (tmp_path / "published" / begun).parent.mkdir(parents=True)
    shutil.copy(first.path / begun, tmp_path / "published" / begun)

    push = ["cache", "push", tmp_path / "published", "--store", second.path]
    assert "or with --replace if it never will" in ser(*push).output
    assert ser(*push, "--replace").exit_code == 0


def test_another_part_of_that_name_is_pulled_into_a_new_store_as_named(tmp_path: Path) -> None:
    first, feature, manifest, arrays = sample_store(tmp_path / "first", "hdf5")
    second = new_store(tmp_path / "second", manifest)
    fill(
        second.add(feature.spec), manifest, "hdf5", {id_: rows + 1 for id_, rows in arrays.items()}
    )
    address = printed("cache", "push", tmp_path / "published", "--store", first.path).split()[0]

    refused = ser("cache", "pull", address, "--store", second.path)
    assert "name a new folder with --store" in refused.output
    printed("cache", "pull", address, "--store", tmp_path / "new")


# Feature files of others


@pytest.fixture
def vectors(recordings: Path) -> Path:
    """A file of numbers, a row an utterance, in the order of the table."""
    path = recordings / "theirs.csv"
    rng = np.random.default_rng(0)
    pd.DataFrame(rng.normal(size=(COUNT, 3))).to_csv(path, header=False, index=False)
    return path


def imported(path: Path, *options: object, name: str = "theirs") -> Result:
    return ser("cache", "import", name, path, "--modality", "audio", *options)


def test_rows_of_some_utterances_are_imported_with_the_option_that_is_named(
    recordings: Path, vectors: Path
) -> None:
    lines = vectors.read_text().splitlines()
    vectors.write_text("\n".join(lines[:5]))
    refused = imported(vectors, "--no-header")
    assert "give ids with --ids" in refused.output

    ids = recordings / "ids.txt"
    ids.write_text("\n".join(f"u{number}" for number in range(5)))
    done = imported(vectors, "--no-header", "--ids", ids)
    assert done.exit_code == 0, done.output


def test_arrays_with_names_are_imported_without_the_option_as_named(recordings: Path) -> None:
    path = recordings / "named.npz"
    np.savez(path, **{f"u{number}": np.ones((2, 3), np.float32) for number in range(COUNT)})
    ids = recordings / "ids.txt"
    ids.write_text("\n".join(f"v{number}" for number in range(COUNT)))
    assert "leave --ids out" in imported(path, "--ids", ids).output
    assert imported(path).exit_code == 0


@pytest.mark.parametrize(
    "remedy",
    [["--corpus-name", "theirs"], ["--manifest", "TABLE", "--replace"], []],
    ids=["another name", "in its place", "no manifest"],
)
def test_another_manifest_is_imported_in_each_way_that_is_named(
    recordings: Path, vectors: Path, remedy: list[str]
) -> None:
    table = recordings / "other.csv"
    rows = pd.read_csv(recordings / "corpus" / "table.csv")
    rows.assign(label="happy").to_csv(table, index=False)
    named = ["--no-header", "--manifest", table]
    refused = imported(vectors, *named, "--corpus-name", "mine")
    assert refused.exit_code == 2, refused.output
    assert "leave --manifest out" in refused.output
    assert "another --corpus-name, or let it take that place with --replace" in refused.output

    if "--replace" in remedy:
        done = imported(vectors, *named, "--corpus-name", "mine", "--replace")
    elif remedy:
        done = imported(vectors, *named, *remedy)
    else:
        done = imported(vectors, "--no-header", "--corpus-name", "mine")
    assert done.exit_code == 0, done.output


def test_a_first_line_of_numbers_is_a_row_with_the_option_that_is_named(
    recordings: Path, vectors: Path
) -> None:
    lines = vectors.read_text().splitlines()
    vectors.write_text("\n".join(["0,1,2", *lines[1:]]))
    refused = imported(vectors)
    assert "remove the line, or say --no-header if it is a row" in refused.output
    assert imported(vectors, "--no-header").exit_code == 0

    vectors.write_text("\n".join(["0,1,2", *lines]))
    assert imported(vectors, name="others").exit_code == 1
    vectors.write_text("\n".join(["x,y,z", *lines]))
    assert imported(vectors, name="others").exit_code == 0


def test_an_array_has_no_header_as_is_said(recordings: Path) -> None:
    path = recordings / "theirs.npy"
    np.save(path, np.ones((COUNT, 3), np.float32))
    assert "leave --no-header out" in imported(path, "--no-header").output
    assert imported(path).exit_code == 0


@pytest.mark.parametrize("target", ["x.npz", "x.zarr"])
def test_columns_are_exported_to_the_file_that_is_named(recordings: Path, target: str) -> None:
    refused = ser("cache", "export", FEATURE, recordings / target, "--with", "label")
    assert refused.exit_code == 2
    assert "name a .csv file, or leave --with out" in refused.output
    assert ser("cache", "export", FEATURE, recordings / target).exit_code == 0
    assert export(recordings).exit_code == 0
