"""Tables for R and spreadsheets: openSMILE's names, and columns of the corpus beside the values."""

import json
from pathlib import Path

import opensmile
import pandas as pd
import pytest

import ser as door
from ser.cache.store import Store, open_store
from ser.tests.command_line import ser
from ser.tests.tiny_store import make_manifest

NAMES = opensmile.Smile(
    opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals
).feature_names


@pytest.fixture(scope="module")
def smile(tmp_path_factory: pytest.TempPathFactory, newcomer: Path) -> Path:
    """A store with openSMILE's functionals, and its frames, of a few utterances."""
    store = tmp_path_factory.mktemp("smile") / "s"
    words = ["features", newcomer / "corpus", "--features", "egemaps,egemaps:level=lld"]
    assert ser(*words, "--limit", 4, "--store", store).exit_code == 0
    return store


def corpus(store: Store) -> pd.DataFrame:
    return door.utterances(store.manifest())


def test_columns_of_the_corpus_stand_between_the_id_and_opensmiles_names(
    smile: Path, tmp_path: Path
) -> None:
    file = tmp_path / "egemaps.csv"
    done = ser("cache", "export", "egemaps", file, "--with", "speaker,label,turn", "--store", smile)
    assert done.exit_code == 0, done.output

    table = pd.read_csv(file, dtype={"speaker": str})
    assert list(table) == ["id", "speaker", "label", "turn", *NAMES]
    expected = corpus(open_store(smile)).loc[table["id"]]
    for column in ("speaker", "label", "turn"):
        assert table[column].tolist() == expected[column].tolist()


def test_every_frame_has_the_columns_of_its_utterance(smile: Path, tmp_path: Path) -> None:
    file = tmp_path / "lld.csv"
    words = ["cache", "export", "egemaps:level=lld", file, "--with", "speaker"]
    assert ser(*words, "--store", smile).exit_code == 0

    table = pd.read_csv(file, dtype={"speaker": str})
    assert list(table)[:3] == ["id", "speaker", "frame"]
    assert table.groupby("id")["speaker"].nunique().tolist() == [1, 1, 1, 1]
    speakers = corpus(open_store(smile))["speaker"]
    assert table["speaker"].tolist() == speakers.loc[table["id"]].tolist()


def test_what_is_not_known_is_empty_and_votes_are_json(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "is13.csv"
    words = ["cache", "export", "is13", file, "--with", "votes,gender"]
    assert ser(*words, "--store", store).exit_code == 0

    table = pd.read_csv(file, index_col="id")
    manifest = make_manifest()
    for id_, votes in zip(manifest.ids, manifest.column("votes"), strict=True):
        shown = table.loc[id_, "votes"]
        if votes is None:
            assert pd.isna(shown)
        else:
            assert json.loads(shown) == votes
    assert table["gender"].isna().tolist() == [not name for name in manifest.column("gender")]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(["x.csv", "--with", "speeker"], "did you mean speaker", id="a typing error"),
        pytest.param(["x.csv", "--with", "id"], "unknown column of --with 'id'", id="the id twice"),
        pytest.param(["x.npz", "--with", "speaker"], "--with is for a table", id="no table"),
        pytest.param(
            ["x", "--with", "speaker", "--backend", "zarr"], "--with is for a table", id="a store"
        ),
    ],
)
def test_what_with_cannot_do_is_one_sentence(
    store: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    file, *words = options
    refused = ser("cache", "export", "is13", tmp_path / file, *words, "--store", store)
    assert refused.exit_code == 2
    assert says in refused.output
    assert not list(tmp_path.iterdir())


def test_pooled_features_have_opensmiles_names(smile: Path) -> None:
    store = open_store(smile)
    functionals = door.pooled(store["egemaps"], store.manifest())
    assert list(functionals) == NAMES

    frames = store["egemaps:level=lld"]
    means = door.pooled(frames, store.manifest(), "meanstd")
    first_of_each = list(means)[:: frames.spec.dim]
    assert first_of_each == ["mean.Loudness_sma3", "std.Loudness_sma3"]


def test_pooled_features_without_names_have_numbers(store: Path) -> None:
    opened = open_store(store)
    table = door.pooled(opened["is13"], opened.manifest())
    assert list(table)[:2] == ["0", "1"]
