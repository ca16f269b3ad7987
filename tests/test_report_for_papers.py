"""What `ser report` writes for a paper: tables that fit a column, and figures."""

import csv
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from ser.tests.command_line import ser
from ser.tests.made_run import write_run
from ser.train.models.msmser import MsmserSettings
from ser.train.records import FeatureRecord
from ser.train.report.cell import Cell
from ser.train.report.conditions import caveat
from ser.train.report.elements import Plot
from ser.train.report.figure_files import write_figures
from ser.train.report.figures import dots
from ser.train.report.files import write_paper_tables
from ser.train.report.formats import PERCENT, TEXT
from ser.train.report.grouping import group_runs
from ser.train.report.latex import paper_to_latex
from ser.train.report.paper_tables import PaperRow, PaperTable, paper_tables
from ser.train.report.table import Column, Table
from ser.train.run_folder import find_runs
from ser.train.settings import TrainingSettings

LATEX = shutil.which("pdflatex")
needs_latex = pytest.mark.skipif(
    LATEX is None, reason="no LaTeX here: apt-get install texlive-latex-recommended"
)
SESSIONS = {f"session {number}": (f"{number}F", f"{number}M") for number in range(1, 6)}


def write_msmser(folder: Path, seeds: Sequence[int] = (0, 1)) -> list[Cell]:
    """Runs of MSMSER's full model, without its interaction transformer, and with fewer queries."""
    features = {
        "audio": FeatureRecord(feature="hubert", fingerprint="0" * 16, pool="mean"),
        "text": FeatureRecord(feature="mpnet", fingerprint="1" * 16, pool="mean"),
    }
    training = vars(TrainingSettings())
    for fusion, changes in (("mit", {}), ("concat", {}), ("mit", {"queries": 3})):
        settings = vars(MsmserSettings(**changes))
        for fold, speakers in SESSIONS.items():
            for seed in seeds:
                write_run(
                    folder,
                    speakers,
                    fusion=fusion,
                    features=features,
                    dims={"audio": 768, "text": 768},
                    settings=settings,
                    training=training,
                    fold=fold,
                    seed=seed,
                )
    cells, _ = group_runs(find_runs(folder))
    return cells


def test_cells_have_the_recipes_own_names(tmp_path: Path) -> None:
    cells = write_msmser(tmp_path)

    [table] = paper_tables(cells)

    assert table.name == "msmser-table2"
    names = [row.name for row in table.rows]
    assert names[0] == "w/o MIT"
    assert set(names[1:]) == {"Full", "Full (queries 3)"}
    by_name = {row.name: row for row in table.rows}
    assert by_name["w/o MIT"].paper == {"ua": 67.2, "wa": 65.1}
    for row in table.rows[1:]:
        assert row.paper == {"ua": 76.4, "wa": 75.2}
    [concat] = [cell for cell in cells if cell.config.fusion == "concat"]
    score = concat.scores.score("ua")
    assert by_name["w/o MIT"].ours["ua"] == (score.pooled, score.over_seeds[1])


def test_the_spread_is_over_folds_where_there_is_one_seed(tmp_path: Path) -> None:
    cells = write_msmser(tmp_path, seeds=[0])

    [table] = paper_tables(cells)

    assert "standard deviation over the folds" in table.caption
    [concat] = [cell for cell in cells if cell.config.fusion == "concat"]
    score = concat.scores.score("wa")
    assert table.rows[0].ours["wa"] == (score.pooled, score.over_folds[1])


def test_cells_of_no_recipe_stand_in_a_table_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path)
    cells, _ = group_runs(find_runs(tmp_path))

    [table] = paper_tables(cells)

    assert table.name == "scores"
    assert [row.name for row in table.rows] == [cells[0].label]
    assert table.of_paper == []
    assert table.tested is False


TABLE = PaperTable(
    "odd",
    "Odd & 100 % [a] --set",
    ("ua", "wa"),
    [
        PaperRow("w/o MIT & a_b [c]", {"ua": (70.25, 1.5), "wa": (70, None)}, {"ua": 67.2}, 0.0001),
        PaperRow("a name so long that it takes a second line", {"ua": (1, 1), "wa": (-1, 2)}, {}),
    ],
    "A note of 5 %.",
)


def test_a_line_has_our_scores_the_papers_number_and_p() -> None:
    text = paper_to_latex(TABLE)

    assert r"w/o MIT \& a\_b [c] & 70.25$\pm$1.50 & 70.00 & 67.20 & $<$ 0.001 \\" in text
    assert r"& 1.00$\pm$1.00 & $-$1.00$\pm$2.00 & -- & -- \\" in text
    assert r"\toprule" in text
    assert r"\caption{Odd \& 100 \% [a] -{}-set}" in text


def compiled(folder: Path, source: str, *classes: str) -> str:
    """The log of a document, which compiles."""
    document = folder / "document.tex"
    lines = [*classes, r"\begin{document}", source, r"\end{document}"]
    document.write_text("\n".join(lines), encoding="utf-8")
    command = [str(LATEX), "-interaction=nonstopmode", "-halt-on-error", document.name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-3000:]
    return (folder / "document.log").read_text(encoding="utf-8", errors="replace")


@needs_latex
@pytest.mark.parametrize("columns", ["onecolumn", "twocolumn"])
def test_tables_for_a_paper_fit_its_column(tmp_path: Path, columns: str) -> None:
    write_paper_tables(write_msmser(tmp_path / "runs"), tmp_path / "tables.tex")
    source = (tmp_path / "tables.tex").read_text(encoding="utf-8") + paper_to_latex(TABLE)

    log = compiled(
        tmp_path,
        source,
        rf"\documentclass[{columns}]{{article}}",
        r"\usepackage{booktabs,tabularx}",
    )

    assert "Overfull" not in log


@needs_latex
def test_the_full_tables_compile(tmp_path: Path) -> None:
    write_msmser(tmp_path / "runs")
    shown = ser("report", tmp_path / "runs", "--latex-all", tmp_path / "all.tex")
    assert shown.exit_code == 0, shown.output
    source = (tmp_path / "all.tex").read_text(encoding="utf-8")
    assert source.count(r"\begin{table}") > 8

    compiled(tmp_path, source, r"\documentclass{article}", r"\usepackage{booktabs}")


def a_plot() -> Plot:
    rows = [{"cell": "one", "UA %": 61.25}, {"cell": "two", "UA %": 48.5}]
    points = [("UA", row["cell"], row["UA %"]) for row in rows]
    table = Table("a-plot", "A plot", [Column("cell", TEXT), Column("UA %", PERCENT)], rows)
    return Plot(table, "A plot", lambda: dots(points, above=True, baseline=25, xlabel="UA %"))


def test_a_figure_is_a_pdf_an_svg_and_a_png_with_its_numbers(tmp_path: Path) -> None:
    write_figures([a_plot()], tmp_path / "figures")

    folder = tmp_path / "figures"
    assert {path.name for path in folder.iterdir()} == {
        f"a-plot.{form}" for form in ("pdf", "svg", "png", "csv")
    }
    assert (folder / "a-plot.pdf").read_bytes().startswith(b"%PDF-")
    assert (folder / "a-plot.png").read_bytes().startswith(b"\x89PNG")
    svg = (folder / "a-plot.svg").read_text(encoding="utf-8")
    assert "one" in svg
    # Colours of the page's variables are near black.
    assert not re.findall("#01010[1-9]|#020202|#030303", svg)
    numbers = list(csv.reader((folder / "a-plot.csv").open(encoding="utf-8")))
    assert numbers == [["cell", "UA %"], ["one", "61.2500"], ["two", "48.5000"]]


def test_the_same_figure_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_figures([a_plot()], tmp_path / folder)

    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_every_figure_of_the_page_is_written(tmp_path: Path, undrawn: None) -> None:
    write_msmser(tmp_path / "runs", seeds=[0])

    done = ser("report", tmp_path / "runs", "--figures", tmp_path / "figures")

    assert done.exit_code == 0, done.output
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"scores-plot", "recalls", "confusion", "queries"} <= names
    assert f"wrote {len(names)} figures into" in " ".join(done.output.split())
    assert caveat([run.result for run in find_runs(tmp_path / "runs")]) is not None
