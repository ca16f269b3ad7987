"""`ser sweep layers`: a model on each layer, what dev chooses, and the curve in the report."""

from pathlib import Path

import numpy as np
import pytest

from ser.cache.spec import Spec
from ser.tests.command_line import ser
from ser.tests.store_samples import new_store
from ser.tests.tiny_store import add_feature, make_manifest, make_rows
from ser.train.report.grouping import group_runs
from ser.train.report.page import make_page
from ser.train.report.sections.against_linear import against_linear_table
from ser.train.report.sections.layers import layers as section_of_layers
from ser.train.report.sections.training import layers_table
from ser.train.run_folder import find_runs
from ser.train.sweep.each_layer import with_each_layer
from ser.train.sweep.recipe import read_recipe
from ser.train.sweep.run import run_sweep
from ser.train.sweep.tasks import plan_sweep

NAME = "hubert:layers=all,pool=mean"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Means of three layers, of which only layer 1 tells the classes."""
    manifest = make_manifest()
    opened = new_store(tmp_path_factory.mktemp("layers") / "s", manifest)
    rng = np.random.default_rng(0)
    telling = [rows.mean(0, dtype=np.float32) for rows in make_rows(manifest, "hubert")]
    for layer in range(3):
        rows = telling
        if layer != 1:
            rows = list(rng.normal(size=(len(manifest), 12)).astype(np.float32))
        spec = Spec(
            "hubert",
            "audio",
            "utterance",
            12,
            "float32",
            "made-up",
            1,
            f"layer={layer},pool=mean",
            config={"layer": layer, "pool": "mean"},
            checkpoint={"digest": "a", "random": True},
            provenance={"layers": 2},
        )
        add_feature(opened, manifest, spec, rows)
    return opened.path


def test_each_layer_is_a_cell_and_a_point_of_a_curve(store: Path, tmp_path: Path) -> None:
    words = ["sweep", "layers", "--features", NAME, "--store", store, "--out", tmp_path / "runs"]
    swept = ser(*words, "--folds", 2, "--epochs", 1, "--workers", 1)
    assert swept.exit_code == 0, swept.output
    for cell in ("Layer 0", "Layer 1", "Layer 2", "Chosen on dev", "All side by side"):
        assert cell in swept.output

    page = tmp_path / "page.html"
    reported = ser("report", tmp_path / "runs", "--html", page)
    assert reported.exit_code == 0, reported.output
    assert "What each layer holds" in page.read_text()


def test_the_curve_has_scores_of_test_and_what_dev_chose(store: Path, tmp_path: Path) -> None:
    recipe = read_recipe("layers", store=store, out=tmp_path, epochs=1, folds=2)
    recipe = with_each_layer(recipe)
    for _ in run_sweep(plan_sweep(recipe)):
        pass

    cells, _ = group_runs(find_runs(tmp_path))
    section = section_of_layers(cells)
    assert section is not None
    [table] = section.tables
    assert [row["layer"] for row in table.rows] == [0, 1, 2]
    scores = {row["layer"]: row["UA %"] for row in table.rows}
    assert max(scores, key=lambda layer: scores[layer][0]) == 1
    for cell in cells:
        layer = cell.settings.get("layer")
        if layer in scores:
            assert scores[layer] == cell.scores.with_interval("ua")

    of_dev = [heading for heading in table.headings if heading.startswith("% chosen on dev")]
    in_sum = [heading for heading in table.headings if heading.startswith("% in the sum of")]
    assert of_dev and len(in_sum) == 1
    assert sum(row[in_sum[0]][0] for row in table.rows) == pytest.approx(100)
    # What was set is no finding.
    found = {row["cell"] for row in layers_table(cells).rows}
    fixed = {cell.label for cell in cells if cell.settings.get("layer") in scores}
    assert found and not found & fixed
    # Nor is a model chosen by its test score what others are measured by.
    [beside] = against_linear_table(cells).rows
    assert beside["linear"] not in fixed
    assert "over-layers" in [part.anchor for part in make_page(cells, []).sections]


def test_a_feature_without_layers_is_refused(tmp_path: Path) -> None:
    manifest = make_manifest()
    opened = new_store(tmp_path / "s", manifest)
    add_feature(opened, manifest, "is13", make_rows(manifest, "is13"))
    refused = ser("sweep", "layers", "--features", "is13", "--store", opened.path)
    assert refused.exit_code == 2
    assert "such as --features whisper:layers=all,pool=mean" in refused.output
