"""Every line that `ser report` and `ser runs` print fits the terminal, whatever the runs."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from click.testing import CliRunner

from ser.commands.report import report
from ser.commands.runs import runs, runs_text
from ser.tests.made_run import write_run
from ser.tests.newcomer import run_of
from ser.train.experiment import run_experiment
from ser.train.options import Experiment
from ser.train.report.cell import Cell
from ser.train.report.grouping import group_runs
from ser.train.report.terminal import report_text
from ser.train.run_folder import find_runs
from ser.train.runs import run_facts

WIDTHS = [60, 100]
SESSIONS = {f"session {number}": (f"{number}F", f"{number}M") for number in range(1, 6)}
LONG = {"epochs": 1, "lr": 1e-3, "weight_decay": 1e-4, "hidden": 256, "dropout": 0.25}


def many_seeds_and_folds(folder: Path) -> None:
    for (session, speakers), seed in product(SESSIONS.items(), range(3)):
        write_run(folder, speakers, fold=session, seed=seed)


def long_names(folder: Path) -> None:
    """A sweep over two settings, and a cell that lacks folds."""
    for (session, speakers), rate in product(SESSIONS.items(), (1e-3, 3e-4)):
        settings = {**LONG, "lr": rate, "weight_decay": rate}
        write_run(folder, speakers, fold=session, select="best-test", settings=settings)
    write_run(folder, SESSIONS["session 1"], settings={**LONG, "dropout": 0.5})


def distributions(folder: Path, store: Path) -> None:
    small = ("d_model=16", "heads=2", "queries=3")
    experiment = Experiment(
        "hubert+mpnet",
        "mit",
        target="distribution",
        epochs=1,
        folds=2,
        set=small,
        store=store,
        out=folder,
    )
    run_experiment(experiment)


@pytest.fixture(
    params=["one seed", "many", "long names", "distributions", "ratings", "layers", "all"]
)
def folders(
    request: pytest.FixtureRequest, tmp_path: Path, newcomer: Path, store: Path
) -> list[Path]:
    """Folders of runs of each kind."""
    kind: str = request.param
    if kind == "one seed":
        write_run(tmp_path)
    elif kind == "many":
        many_seeds_and_folds(tmp_path)
    elif kind == "long names":
        long_names(tmp_path)
    elif kind == "distributions":
        distributions(tmp_path, store)
    elif kind == "ratings":
        return [run_of(newcomer, name).path for name in ("vad", "class+vad")]
    elif kind == "layers":
        return [run_of(newcomer, "superb").path]
    else:
        many_seeds_and_folds(tmp_path)
        return [tmp_path, *sorted((newcomer / "runs").iterdir())]
    return [tmp_path]


def texts_of(cells: list[Cell]) -> dict[str, Callable[[int], str]]:
    """Each thing that `ser report` prints, by the width that it is printed for."""
    texts: dict[str, Callable[[int], str]] = {
        "report": lambda width: report_text(cells, [], width=width),
        "report --tables all": lambda width: report_text(cells, [], tables=["all"], width=width),
    }
    if sum(bool(cell.scores.classes) for cell in cells) > 1:
        texts["report --paired"] = lambda width: report_text(cells, [], paired=True, width=width)
    return texts


def test_every_line_fits(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders[0].parent)
    names = [str(folder) for folder in folders]
    all_runs = find_runs(*folders)
    cells, _ = group_runs(all_runs)
    texts = texts_of(cells)
    facts = [run_facts(run) for run in all_runs]
    texts["runs list"] = lambda width: runs_text(facts, width)

    for width in WIDTHS:
        monkeypatch.setenv("COLUMNS", str(width))
        shown = {command: text(width) for command, text in texts.items()}
        compared = CliRunner().invoke(runs, ["compare", *names])
        assert compared.exit_code == 0, compared.exception
        shown["runs compare"] = compared.stdout

        for command, text in shown.items():
            for line in text.splitlines():
                assert len(line) <= width, (command, line)
        for run in all_runs:
            assert run.path.name in shown["runs list"]


@pytest.mark.parametrize("make", [many_seeds_and_folds, long_names])
def test_the_scores_of_a_cell_are_one_line_of_100_letters(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    shown = CliRunner().invoke(report, [str(tmp_path)]).stdout

    _, _, after_the_rule = shown.partition("---\n")
    table, _, _ = after_the_rule.partition("\n\n")
    cells, _ = group_runs(find_runs(tmp_path))
    with_scores = [line for line in table.splitlines() if line.startswith("audio:frame")]
    assert len(with_scores) == len(cells)
    for line in with_scores:
        # UA, WA and macro-F1, perhaps with their intervals.
        assert line.count("75.00") == 2
        assert "74.17" in line
    for line in table.splitlines():
        # The rest of a name that has no room.
        assert line in with_scores or line.startswith("  ")


def test_what_repeats_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many_seeds_and_folds(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    shown = CliRunner().invoke(report, [str(tmp_path)]).stdout

    words = " ".join(shown.split())
    assert "Runs: 5 × 3 (folds × seeds)." in words
    assert "Predictions of each seed: 40." in words
    heading = next(line for line in shown.splitlines() if line.startswith("cell"))
    assert "runs" not in heading.split()


def test_a_score_without_an_interval_has_its_reason(tmp_path: Path) -> None:
    """Each speaker scores the same, so leaving one out says nothing."""
    many_seeds_and_folds(tmp_path)
    cells, _ = group_runs(find_runs(tmp_path))
    [cell] = cells
    table = cell.scores.predictions.table
    cell.scores.predictions.table = table.assign(predicted=table.truth)

    words = " ".join(report_text(cells, []).split())

    assert "none where the score is the same, or not known, without any one of them" in words


def test_a_run_is_one_line_of_60_letters(tmp_path: Path) -> None:
    many_seeds_and_folds(tmp_path)
    all_runs = find_runs(tmp_path)

    lines = runs_text([run_facts(run) for run in all_runs], 60).splitlines()

    assert len(all_runs) == 15
    for run in all_runs:
        [line] = [line for line in lines if run.path.name in line]
        assert f" {run.config.fold} " in line
        assert f" {100 * run.result.ua:.2f} " in line
