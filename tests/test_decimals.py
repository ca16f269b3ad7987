"""Every CSV that ser writes, with decimal points or commas: the same numbers."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from ser.cache.store import open_store
from ser.cache.tools.exporting import export
from ser.cache.tools.importing import import_feature
from ser.errors import WrongUse
from ser.predict.several import SeveralAnswers
from ser.predict.table import write_table
from ser.predict.turns import Answer, Prediction
from ser.tests.command_line import ser
from ser.tests.store_samples import manifest_of
from ser.train.report.csv_file import to_csv
from ser.train.report.formats import COUNT, NUMBER, PERCENT_WITH_INTERVAL, TEXT
from ser.train.report.table import Column, Table

VALUES = np.array([[0.125, -2.5e-7, 3], [1e10, 0.5, -1]], np.float32)


def rows_of(text: str, delimiter: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text), delimiter=delimiter))


def test_a_feature_comes_back_as_it_was(tmp_path: Path) -> None:
    manifest = manifest_of(2)
    store = open_store(tmp_path / "store", create=True)
    np.save(tmp_path / "x.npy", VALUES)
    import_feature(store, "mine", tmp_path / "x.npy", "audio", manifest)
    feature = store.feature("mine")

    export(feature, manifest, tmp_path / "points.csv", beside=["dialogue"])
    export(feature, manifest, tmp_path / "commas.csv", beside=["dialogue"], decimal=",")
    points = rows_of((tmp_path / "points.csv").read_text(), ",")
    commas = rows_of((tmp_path / "commas.csv").read_text(), ";")
    # Names hold points, and keep them.
    assert commas[0] == points[0] == ["id", "dialogue", "mine.0", "mine.1", "mine.2"]
    for row, with_commas in zip(points[1:], commas[1:], strict=True):
        assert with_commas == [cell.replace(".", ",") for cell in row]

    export(feature, manifest, tmp_path / "alone.csv", decimal=",")
    again = open_store(tmp_path / "again", create=True)
    import_feature(again, "mine", tmp_path / "alone.csv", "audio", manifest)
    assert np.array_equal(again["mine"].load(manifest).values, VALUES)

    with pytest.raises(WrongUse, match=r"--decimal is for a table; name a \.csv file"):
        export(feature, manifest, tmp_path / "x.npz", decimal=",")


def test_predictions(tmp_path: Path) -> None:
    prediction = Prediction("a.b", "neu", {"ang": 0.25, "neu": 0.75}, ratings={"valence": 2.5})
    answers = SeveralAnswers({"run": Answer([prediction])}, [prediction])
    write_table(tmp_path / "commas.csv", answers, {"a.b": "a.b;c.wav"}, ",")

    headings, row = rows_of((tmp_path / "commas.csv").read_text(), ";")
    numbers = ["neu", "0,25", "0,75", "2,5"]
    assert headings[:5] == ["file", "predicted", "p_ang", "p_neu", "valence"]
    assert row == ["a.b;c.wav", *numbers, *numbers]


def test_a_report() -> None:
    columns = [
        Column("cell", TEXT),
        Column("UA %", PERCENT_WITH_INTERVAL),
        Column("n", COUNT),
        Column("lr", NUMBER),
    ]
    rows = [{"cell": "v1.0, big", "UA %": (50.5, 40, None), "n": 1234, "lr": 1e-4}]
    table = Table("odd", "Odd 1.5", columns, rows)

    caption, headings, row = rows_of(to_csv(table, ","), ";")
    assert caption == ["Odd 1.5"]
    assert headings == ["cell", "UA %", "UA % low", "UA % high", "n", "lr"]
    assert row == ["v1.0, big", "50,5000", "40,0000", "", "1234", "0,0001"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(("report", "runs"), "add --csv FILE", id="report"),
        pytest.param(("predict", "run", "a.wav"), "add --csv FILE", id="predict"),
        pytest.param(
            ("cache", "export", "x", "y", "--backend", "zarr"), "leave it out", id="export"
        ),
    ],
)
def test_without_a_csv_it_is_refused(words: tuple[str, ...], says: str) -> None:
    done = ser(*words, "--decimal", ",")
    assert done.exit_code == 2
    assert "--decimal is for" in done.output
    assert says in done.output
