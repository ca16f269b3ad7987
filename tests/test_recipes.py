"""Recipes: the papers' numbers and protocols, what a file may say, other features."""

import json
from pathlib import Path
from typing import Any

import pytest

from ser.errors import MissingRows, SerError, WrongUse
from ser.tests.command_line import ser
from ser.train.models import FUSIONS
from ser.train.settings import parse_settings
from ser.train.sweep.other_features import features_to_extract, on_features
from ser.train.sweep.recipe import list_recipes, read_recipe
from ser.train.sweep.tasks import plan_sweep

CELLS = {
    "msmser-table2": 10,
    "msmser-table1": 6,
    "msmser-table3": 13,
    "msmser-fig2": 7,
    "perspective-table2": 25,
    "perspective-table1": 4,
    "perspective-table3": 11,
    "perspective-table4": 8,
    "superb-er": 6,
    "usc-table3": 22,
}
# MSMSER, UA and WA of each cell.
TABLE_2 = {
    "Text": (66.5, 64.7),
    "Audio": (64.9, 63.2),
    "w/o Encoder": (71.9, 70.9),
    "w/o SelfAtt": (72.5, 71.4),
    "w/o MIT": (67.2, 65.1),
    "Full": (76.4, 75.2),
}
TABLE_3 = {
    "w/o RMM": (73.3, 71.7),
    "w/o RMM (only text)": (63.2, 61.2),
    "w/o RMM (only audio)": (55.5, 55.2),
    "Full": (76.4, 75.2),
    "Full (only text)": (65.8, 64.4),
    "Full (only audio)": (63.4, 62.9),
}
CELL = "[[cell]]\nname = 'a'\nfeatures = 'is13'\n"
AUDIO = f"{CELL}fusion = 'audio'\n"


@pytest.fixture(scope="module")
def recipes() -> dict[str, dict[str, Any]]:
    return list_recipes()


def _with_numbers(recipe: dict[str, Any]) -> dict[str, Any]:
    """The paper's numbers of each cell that has any."""
    return {cell: numbers for cell, numbers in recipe["paper"].items() if numbers}


def test_every_recipe_has_its_cells(recipes: dict[str, dict[str, Any]]) -> None:
    assert {name: recipe["cells"] for name, recipe in recipes.items()} == CELLS


@pytest.mark.parametrize(
    ("name", "expected"), [("msmser-table2", TABLE_2), ("msmser-table3", TABLE_3)]
)
def test_the_numbers_of_msmser(
    name: str, expected: dict[str, tuple[float, float]], recipes: dict[str, dict[str, Any]]
) -> None:
    scores = {}
    for cell, numbers in recipes[name]["paper"].items():
        if numbers:
            scores[cell] = numbers["ua"], numbers["wa"]
    assert scores == expected


def test_what_msmser_quotes(recipes: dict[str, dict[str, Any]]) -> None:
    quoted = recipes["msmser-table1"]["quoted"]
    assert quoted["KS-Transformer [11]"] == {"ua": 75.3, "wa": 74.3}
    # No WA is quoted.
    assert quoted["CMA [12]"] == {"ua": 72.8}


def test_the_numbers_of_perspective(recipes: dict[str, dict[str, Any]]) -> None:
    first = _with_numbers(recipes["perspective-table1"])
    assert first == {"Audio": {"wa": 71.19}, "Text": {"wa": 82.58}}

    second = _with_numbers(recipes["perspective-table2"])
    assert second["LGF ADD-Fusion, perspective"] == {"wa": 85.4, "wa_std": 0.4}
    assert second["LGF AT-Fusion, single"] == {"wa": 81.79, "wa_std": 1.37}
    by_accuracy = sorted(second, key=lambda cell: second[cell]["wa"])
    assert by_accuracy[0] == "LGF AT-Fusion, single"
    assert by_accuracy[-1] == "LGF ADD-Fusion, perspective"

    # Weighed by session 5's class counts, the paper's audio row of Table 3 gives its WA of Table 1
    # within rounding: its WA is plain accuracy.
    counts = {"ang": 170, "hap": 442, "neu": 384, "sad": 245}
    recalls = recipes["perspective-table3"]["paper"]["Unimodality, A"]
    right = sum(recalls[name] * count for name, count in counts.items())
    assert right / 1241 == pytest.approx(71.26, abs=0.01)

    quoted = recipes["perspective-table4"]["quoted"]
    assert len(quoted) == 6
    assert quoted["DANN (2020) [21]"] == {"wa": 82.68}


def test_the_numbers_of_superb(recipes: dict[str, dict[str, Any]]) -> None:
    superb = {**_with_numbers(recipes["superb-er"]), **recipes["superb-er"]["quoted"]}
    accuracies = [numbers["wa"] for numbers in superb.values()]
    assert accuracies == [63.43, 64.92, 68.65, 67.62, 70.62]


def test_the_numbers_of_usc(recipes: dict[str, dict[str, Any]]) -> None:
    accuracies = {}
    for cell, numbers in recipes["usc-table3"]["paper"].items():
        if numbers and "built" not in cell:
            accuracies[cell] = numbers["wa"]
    assert accuracies == {"Text": 72.4, "Audio": 47.8, "Text + Audio": 76.9}

    quoted = recipes["usc-table3"]["quoted"]
    assert quoted["ICON, Text + Audio"] == {"wa": 63.8}
    assert len(quoted) == 6


def test_what_is_built_here_stands_beside_the_number_that_is_quoted(
    recipes: dict[str, dict[str, Any]],
) -> None:
    for recipe in recipes.values():
        for cell, numbers in recipe["paper"].items():
            system, built, _ = cell.partition(", built here")
            if built:
                assert recipe["quoted"][system] == numbers


@pytest.mark.parametrize("name", CELLS)
def test_every_recipe_has_a_linear_row_on_its_features(name: str) -> None:
    linear = set()
    trained = set()
    for cell in read_recipe(name).cells:
        features = cell.experiment.features
        is_linear = cell.experiment.fusion.startswith("linear")
        (linear if is_linear else trained).add(features)
    assert linear
    assert linear <= trained


@pytest.mark.parametrize("name", CELLS)
def test_the_papers_protocols(name: str) -> None:
    protocols = {
        "msmser": ("session-out", "4class", 1),
        "perspective": ("train1234-test5", "4class", 20),
        "superb": ("session-out", "4class", 1),
        "usc": ("random-70-20-10", "5class", 1),
    }
    paper = name.partition("-")[0]
    for cell in read_recipe(name).cells:
        experiment = cell.experiment
        labels = experiment.labels.replace("8class", "5class")
        assert (experiment.protocol, labels, experiment.seeds) == protocols[paper]
        assert experiment.select == "val"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(CELL, "cell a: .*missing required field `fusion`", id="no fusion"),
        pytest.param(
            AUDIO + "protokol = 'x'",
            "option for cell 'a' in .* 'protokol' .did you mean protocol",
            id="a misspelt option",
        ),
        pytest.param(AUDIO + "also_set = 'lr=1'", "unknown option for cell 'a'", id="also_set"),
        pytest.param(AUDIO + "test = 'only'", "unknown test", id="an unknown test"),
        pytest.param(
            AUDIO + "set = ['lr=1']",
            r"Expected `object`, got `array` - at `\$.set`",
            id="settings that are no table",
        ),
        pytest.param(
            AUDIO + "seeds = '3'", "cell 'a': seeds='3': must be int", id="a text for a number"
        ),
        pytest.param(
            AUDIO + "select = 'vla'",
            r"unknown value of --select 'vla' \(did you mean val\?\)",
            id="a misspelt choice",
        ),
        pytest.param(
            AUDIO + "test = 'only text'", "cannot hide a modality", id="a test it cannot have"
        ),
        pytest.param(
            AUDIO + "set = { dev = 'none' }",
            "cell 'a': --select val needs a dev part",
            id="no dev part",
        ),
        pytest.param(
            AUDIO.replace("is13", "egemaps"), "cell 'a'.*ser features", id="a missing feature"
        ),
        pytest.param("title = 'x'", "missing required field `cell`", id="no cell"),
        pytest.param("cells = 3", "unknown key 'cells'", id="an unknown key"),
        pytest.param(AUDIO + "paper = { ua = nan }", "Expected `float`", id="NaN for a number"),
        pytest.param("[[cell", "not a TOML file", id="not TOML"),
    ],
)
def test_wrong_recipes(store: Path, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(SerError, match=says):
        plan_sweep(read_recipe(file, store=store, out=tmp_path))


def test_wrong_names_are_refused_with_the_nearest(store: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="did you mean msmser-table2"):
        read_recipe("msmser-tabel2")
    with pytest.raises(
        WrongUse, match=r"unknown cell of msmser-table2 'Ful' \(did you mean Full\?\)"
    ):
        read_recipe("msmser-table2", ["Ful", "Text"])
    with pytest.raises(WrongUse, match="no fusion of this recipe has that setting"):
        plan_sweep(read_recipe("perspective-table1", store=store, out=tmp_path, set=("queries=3",)))


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        pytest.param(
            "bert+logmel",
            {"Text": "bert", "Audio": "logmel", "Full": "logmel+bert"},
            id="both modalities",
        ),
        pytest.param(
            "logmel",
            {"Text": "mpnet", "Audio": "logmel", "Full": "logmel+mpnet"},
            id="audio alone",
        ),
    ],
)
def test_a_recipe_on_other_features(
    store: Path, tmp_path: Path, features: str, expected: dict[str, str]
) -> None:
    recipe = on_features(read_recipe("msmser-table2", store=store, out=tmp_path), features)
    trained_on = {cell.name: cell.experiment.features for cell in recipe.cells}
    assert {name: trained_on[name] for name in expected} == expected


def test_cells_with_views_of_what_is_replaced_are_left_out(store: Path, tmp_path: Path) -> None:
    # Of USC's own features this store has none.
    recipe = on_features(read_recipe("usc-table3", store=store, out=tmp_path), "hubert+mpnet")
    trained_on = {cell.name: cell.experiment.features for cell in recipe.cells}
    assert len(trained_on) == 20
    assert trained_on["Text + Audio, MFCC"] == "hubert+mpnet"
    assert "Audio, augmented" not in trained_on


def test_other_features_must_fit_the_fusion(store: Path, tmp_path: Path) -> None:
    recipe = on_features(read_recipe("msmser-table2", store=store, out=tmp_path), "is13+bert")
    with pytest.raises(WrongUse, match="cell 'Audio': --fusion audio:frame takes audio frames"):
        plan_sweep(recipe)


def test_the_command_takes_other_features(store: Path, tmp_path: Path) -> None:
    words = ["sweep", "perspective-table1", "--features", "hubert+mpnet", "--seeds", 1]
    words += ["--store", store, "--out", tmp_path, "--epochs", 1, "--workers", 1]
    done = ser(*words, "--dry-run", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["runs"] == 4
    assert "on hubert+mpnet" in done.stderr


def test_what_is_missing_is_made_by_one_command(store: Path, tmp_path: Path) -> None:
    views = []
    for kind in ("noise", "pitch", "stretch", "shift"):
        views.append(f"logmel:sampling_rate=22050,view={kind}-1")
    features = ["bert-cased", "logmel:sampling_rate=22050", *views]
    features += ["mfcc:sampling_rate=22050", "bert", "is13"]
    names = ",".join(features)
    command = f"ser features CORPUS --features {names} --corpus-name tiny --store {store}"
    with pytest.raises(MissingRows, match=f"cell 'Text'.*`{command}`"):
        plan_sweep(read_recipe("usc-table3", store=store, out=tmp_path))


def test_the_tops_of_the_recipe_start_from_the_layers_below_them() -> None:
    """HuBERT base has 12 layers; the store needs each of these once."""
    recipe = read_recipe("finetune-top")
    trained = set()
    for cell in recipe.cells:
        # What `audio` is on frames.
        settings, training = parse_settings(FUSIONS["audio:frame"], cell.experiment.set)
        assert not settings.standardise_audio
        features = cell.experiment.features
        layer = int(features.partition("layer=")[2] or 12)
        assert layer == 12 - training.finetune_audio
        trained.add((training.finetune_audio, training.lora_rank))
    assert trained == {(0, 0), (1, 0), (2, 0), (4, 0), (2, 8), (2, 32), (4, 8), (4, 32)}

    needed = ",".join(features_to_extract(recipe))
    assert set(needed.split(",")) == {f"hubert:layer={n}" for n in (8, 10, 11)} | {"hubert"}
    assert all(name in recipe.note for name in needed.split(","))
