"""The report, looked at from outside: a real browser, the run folders, and tables read back."""

import csv
import io
import itertools
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from markupsafe import escape
from msgspec import structs

from ser.cache.store import open_store
from ser.commands.train import train
from ser.corpus.manifest import Manifest
from ser.errors import WrongUse
from ser.tests.chromium import MISSING, Browser, open_browser
from ser.tests.spoken_store import EVIL, spoken_manifest, spoken_store
from ser.train.experiment import prepare, run_experiment
from ser.train.model_file import load_model
from ser.train.models.msmser import MsmserSettings
from ser.train.options import Experiment
from ser.train.records import Epoch, FeatureRecord, RunConfig, Scores, SplitCorpus
from ser.train.report.attention import attend
from ser.train.report.cell import Cell, Origin
from ser.train.report.conditions import cautions, conditions
from ser.train.report.csv_file import to_csv
from ser.train.report.elements import TableElement
from ser.train.report.figures import dots, lines
from ser.train.report.files import write_tables
from ser.train.report.fitted_table import fitted, without_what_has_no_room
from ser.train.report.formats import (
    COUNT,
    DIFFERENCE,
    P_VALUE,
    PERCENT,
    PERCENT_WITH_DEVIATION,
    PERCENT_WITH_INTERVAL,
    TEXT,
    harmless,
)
from ser.train.report.grouping import group_runs
from ser.train.report.labels import name_apart
from ser.train.report.latex import to_latex
from ser.train.report.markdown import to_markdown
from ser.train.report.page import make_page, write_html
from ser.train.report.paper import claimed_better
from ser.train.report.sections.errors import agreement, errors, hardest_table
from ser.train.report.sections.significance import papers_tests_table
from ser.train.report.sections.what_was_run import (
    command,
    corpora_tables,
    features_table,
    left_out_table,
    what_was_run,
)
from ser.train.report.svg import STYLE, to_svg
from ser.train.report.table import Column, Table, columns_of
from ser.train.report.terminal import report_text
from ser.train.run_folder import CONFIG, RESULT, Run, column, find_runs, run_name
from ser.train.scores.classes import scores

SMALL = ("d_model=16", "heads=2", "batch_size=16", "lr=0.003")
needs_chromium = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A store, the runs of four cells, trained for real, and their page."""
    folder = tmp_path_factory.mktemp("report")
    spoken_store(folder / "store")
    common: dict[str, Any] = {"store": folder / "store", "out": folder / "runs", "folds": 2}
    for queries in (3, 6):
        run_experiment(
            Experiment(
                "hubert+mpnet", "mit", epochs=2, set=(*SMALL, f"queries={queries}"), **common
            )
        )
    run_experiment(
        Experiment("is13+bert", "lgf-add", epochs=2, loss="perspective", seeds=2, **common)
    )
    run_experiment(Experiment("is13", "audio", epochs=2, **common))
    runs = find_runs(folder / "runs")
    content = make_page(*group_runs(runs))
    cells = {cell.label: cell for cell in content.cells}
    tables = {table.name: table for table in content.tables}
    page = folder / "report.html"
    write_html(content, page)
    text = page.read_text(encoding="utf-8")
    return SimpleNamespace(
        folder=folder, runs=runs, content=content, cells=cells, tables=tables, page=page, text=text
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


# --- the page, without a browser


def test_same_runs_give_the_same_bytes(report: Any, tmp_path: Path) -> None:
    again = make_page(*group_runs(list(reversed(report.runs))))
    plots = report.content.plots
    # Drawing takes most of the time: a plot of each kind is drawn anew.
    redrawn = {plot.draw.func: number for number, plot in enumerate(plots)}.values()
    assert len(redrawn) > 3
    for number, plot in enumerate(again.plots):
        if number not in redrawn:
            plot.__dict__["svg"] = plots[number].svg
    # A file takes the place of a link.
    (tmp_path / "again.html").symlink_to("again.html")

    write_html(again, tmp_path / "again.html")

    assert (tmp_path / "again.html").read_bytes() == report.page.read_bytes()


def test_several_protocols_are_rows(report: Any) -> None:
    """Beside each other they would leave a narrow page."""
    cell = report.cells["audio:utterance · is13"]
    config = structs.replace(cell.config, protocol="speaker-out")
    other = made_up("two", cell.runs[0], [config])

    for cells, turned in (([cell], True), ([cell, other], False)):
        [protocols] = [
            element
            for element in what_was_run(cells, []).elements
            if isinstance(element, TableElement) and element.table.name == "protocol"
        ]
        assert protocols.turned is turned


def test_nothing_in_the_page_comes_from_elsewhere(report: Any) -> None:
    tags = re.findall(r"<([a-z][\w-]*)([^>]*)>", report.text)
    assert len(tags) > 1000
    assert not {tag for tag, _ in tags} & {
        "script",
        "iframe",
        "object",
        "embed",
        "img",
        "form",
        "base",
    }
    for tag, attributes in tags:
        assert not re.search(r"[\s\"']on\w+\s*=", attributes), tag
        for value in re.findall(r"(?:src|href|action)\s*=\s*[\"']?([^\"'\s]+)", attributes):
            assert value.startswith(("#", "data:")), (tag, value)
        assert "url(" not in attributes.replace("url(#", ""), (tag, attributes)


def test_each_answer_has_its_place_and_all_references_lead_somewhere(report: Any) -> None:
    ids = re.findall(r'<[^>]* id="([^"]+)"', report.text)
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:href="#|url\(#)([^")]+)', report.text)
    labelled = [
        name
        for names in re.findall(r'aria-labelledby="([^"]+)"', report.text)
        for name in names.split()
    ]
    assert targets and labelled and set(targets) | set(labelled) <= set(ids)
    after_the_scores = [
        "significance",
        "emotions",
        "calibration",
        "training",
        "modalities",
        "query-tokens",
    ]
    assert re.findall(r'<section id="([^"]+)"', report.text) == [
        "results",
        *after_the_scores,
        "inside",
        "errors",
        "what-was-run",
    ]
    assert "no comparison with the paper is meant" in report.text


def test_evil_texts_are_shown_as_they_are_and_colours_follow_the_scheme(report: Any) -> None:
    assert "<script" not in report.text and "<img" not in report.text
    assert {row["text"] for row in report.tables["hardest"].rows} & set(EVIL), (
        "the fixture must show one of them"
    )
    pictures = re.findall(r'<svg class="plot".*?</svg>', report.text, flags=re.DOTALL)
    assert len(pictures) > 10
    for picture in pictures:
        assert (
            not re.findall(r"#[0-9a-f]{6}\b", re.sub(r"base64,[^\"]*", "", picture))
            and "var(--ink)" in picture
        )


def svg_element(draw: Callable[[Any], Any], points: Any) -> str:
    _, inside = to_svg(lambda: draw(points), "odd")
    return f"<svg>{inside}</svg>"


def test_words_in_pictures_are_left_alone() -> None:
    """What looks like a number, a colour or a formula in a label is the reader's text; long ones
    are not cut.
    """
    label = 'lr 0.01234 #0072b2 $x$ <b> & id="q" xlink:href'

    above = partial(dots, xlabel="UA %", above=True)
    svg = svg_element(above, [("UA", label, 50)])
    assert label in [element.text for element in ElementTree.fromstring(svg).iter("text")]
    long = [
        ("UA", f"lgf-add · is13+bert · {target} · epochs 12 · standardise_text True", 50)
        for target in "ab"
    ]
    as_series = [(place, series, value) for series, place, value in long]
    in_legends = [(partial(dots, legend=2), as_series), (partial(lines, legend=1), as_series)]
    for draw, points in [(above, long), *in_legends]:
        wrapped = svg_element(draw, points)
        words = " ".join(
            element.text or "" for element in ElementTree.fromstring(wrapped).iter("text")
        )
        assert all(label in words for _, label, _ in long), "whole, over two lines"
    assert "0.01234" not in re.sub(r">[^<]*<", "><", svg) and "xlink" not in re.sub(
        r">[^<]*<", "><", svg
    )


def test_unfinished_runs_count_nowhere_and_a_store_that_is_gone_is_told(
    report: Any, tmp_path: Path, undrawn: None
) -> None:
    open_run = Run(tmp_path / report.runs[0].name)
    open_run.path.mkdir()
    open_run.write_json(CONFIG, report.runs[0].config)
    (report.folder / "store").rename(report.folder / "away")
    try:
        write_html(make_page(*group_runs([*report.runs, open_run])), tmp_path / "report.html")
    finally:
        (report.folder / "away").rename(report.folder / "store")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(
        told in text
        for told in ("counted nowhere here: 1 run: ", "votes are not at hand", "cannot be shown")
    )
    (dropped, *_) = (run for run in report.runs if run.config.fusion == "lgf-add")
    cells, _ = group_runs([run for run in report.runs if run != dropped])
    label = "lgf-add · is13+bert · perspective"
    text = report_text(cells, [], width=140)
    assert re.search(rf"^{re.escape(label)} .*  3 in 2 × 2  ", text, re.MULTILINE)
    assert f"Runs are missing, so not every seed is scored on every fold: {label}." in cautions(
        cells
    )
    with pytest.raises(WrongUse, match="none of these 1 runs is finished"):
        group_runs([open_run])
    one = report.cells[label]
    recut = made_up(
        "recut",
        one.runs[0],
        [
            one.runs[0].config,
            structs.replace(one.runs[0].config, cut="of a file since changed"),
        ],
    )
    assert recut.whole and recut.recut and not one.recut
    assert any("Folds of one name are cut in several ways" in said for said in cautions([recut]))


def test_the_line_of_chance_runs_through_no_name() -> None:
    """Names stand above their values, where a line from top to bottom would cross them."""
    points = [("UA", f"a cell with the long name {number}", 30.0 + number) for number in range(4)]
    points += [("WA", name, value + 5) for _, name, value in points]
    with matplotlib.rc_context({}, STYLE):
        drawing = dots(points, above=True, apart=True, baseline=31, legend=2, xlim=(25, 75))
        drawing.canvas.draw()
        [axes] = drawing.axes
        names = [text.get_window_extent() for text in axes.texts]
        dashed = [lines for lines in axes.collections if lines.get_linestyle()[0][1] is not None]
        [chance] = dashed
        segments = [axes.transData.transform(ends) for ends in chance.get_segments()]

    assert len(names) == 4
    assert len(segments) == 4
    for (x, one_end), (_, other_end) in segments:
        for name in names:
            beside = x < name.x0 or x > name.x1
            over_or_below = max(one_end, other_end) < name.y0 or min(one_end, other_end) > name.y1
            assert beside or over_or_below


def test_no_plot_repeats_another(report: Any) -> None:
    plots = report.content.plots
    numbers = {to_csv(numbers_of(plot.table)) for plot in plots}
    drawings = {plot.svg for plot in plots}

    assert len(numbers) == len(drawings) == len(plots) > 10
    of_scores = [plot for plot in plots if plot.table.name.endswith("-plot")]
    assert [plot.title for plot in of_scores] == ["Scores with their 95 % intervals"]


def of_people(origin: Origin) -> Origin:
    """The same with speech that is not generated."""
    assert origin.manifest is not None
    return origin._replace(manifest=replace(origin.manifest, synthetic=False))


def test_transcripts_of_people_beside_generated_ones_are_not_shown(report: Any) -> None:
    cell = Cell("of two corpora", report.cells["audio:utterance · is13"].runs)
    generated = cell.origin.manifest
    assert cell.shows_text is True
    people = replace(generated, corpus="people", synthetic=False)

    cell.__dict__["origin"] = cell.origin._replace(manifest=Manifest.joined([generated, people]))

    assert cell.shows_text is False


def numbers_of(table: Table) -> Table:
    """The table by its numbers alone."""
    return Table("", "", table.columns, table.rows)


def test_transcripts_of_people_are_shown_only_on_request(
    report: Any, tmp_path: Path, undrawn: None
) -> None:
    """The page, its figures and what `--tables` prints."""
    mit = [run for run in report.runs if run.config.fusion == "mit"]
    cells, _ = group_runs(mit)
    asked, _ = group_runs(mit, with_text=True)
    for cell in [*cells, *asked]:
        cell.__dict__["origin"] = of_people(cell.origin)
    texts = [text for text in cells[0].utterances.text if text and len(text.split()) > 1]
    hardest = asked[0].utterances.text[hardest_table(asked).rows[0]["utterance"]]

    page = make_page(cells, [])
    write_html(page, tmp_path / "without.html")
    write_html(make_page(asked, []), tmp_path / "with.html")

    without = (tmp_path / "without.html").read_text(encoding="utf-8")
    for text in texts:
        assert text not in without
        assert escape(text) not in without
    assert "shown with --with-text" in without
    assert "word 1" in without
    assert "text" not in hardest_table(cells).headings
    assert hardest not in report_text(cells, [], tables=["all"], width=400)
    attended = [table for table in page.tables if table.name.startswith("attention-")]
    assert attended
    for table in attended:
        words = [row["what"] for row in table.rows if row["modality"] == "text"]
        for word in words:
            assert re.fullmatch(r"word \d+|special tokens", word)
    assert str(escape(hardest)) in (tmp_path / "with.html").read_text(encoding="utf-8")


# --- numbers against the run folders


def test_labels_name_what_differs(report: Any) -> None:
    both = {f"mit · hubert+mpnet · queries {queries}" for queries in (3, 6)}
    assert report.cells.keys() == {
        "audio:utterance · is13",
        "lgf-add · is13+bert · perspective",
        *both,
    }
    assert name_apart([report.cells["audio:utterance · is13"].config] * 2) == [
        "audio:utterance",
        "audio:utterance (2)",
    ]
    one = FeatureRecord(feature="h", fingerprint="0", pool="mean", hop=0.1)
    layers = FeatureRecord(feature="h:layers=all", fingerprint="0", pool="mean", joined=[one])
    config = report.cells["mit · hubert+mpnet · queries 3"].config
    of_layers = [structs.replace(config, features={"audio": audio}) for audio in (one, layers)]
    assert name_apart(of_layers) == ["mit · h", "mit · h:layers=all"], "both with a hop of 0.1 s"


def test_the_command_runs_the_cell_again(report: Any) -> None:
    """The words of the command, as `ser train` reads them, give the cell's own run names."""
    for cell in report.cells.values():
        options = train.make_context("train", shlex.split(command(cell))[2:]).params
        known = {field.name for field in fields(Experiment)} - {"resume"}
        options = {name: value for name, value in options.items() if name in known}
        names = {run_name(job.record) for job in prepare(Experiment(**options))}
        assert names == {run.path.name for run in cell.runs}


def test_the_protocol_table_says_who_trains_and_what_is_known_before(report: Any) -> None:
    [row] = report.tables["protocol"].rows  # of all cells: they are cut alike
    results = report.content.cells[0].results
    assert (
        row["dev"] == "0.1 in whole dialogues"
        and "no test speaker is in training" in row["how it cuts"]
    )
    for part in ("train", "dev", "test"):
        assert row[f"n {part}"] == "–".join(
            map(str, sorted({result.parts[part] for result in results}))
        )
    known = sum(result.repeated_texts for result in results) / sum(result.n for result in results)
    assert row["test transcripts also in training %"] == pytest.approx(100 * known) and known > 0
    store = report.folder / "store"
    (job, *_) = prepare(
        Experiment("is13", "audio", store=store, only="scripted", out=report.folder / "no")
    )
    assert job.data.utterances.ids and all(
        "_script" in utterance for utterance in job.data.utterances.ids
    )


def test_the_corpus_table_counts_what_any_cell_tested(report: Any) -> None:
    whole = report.cells["audio:utterance · is13"]
    part = Cell("one fold", whole.runs[:1])
    [corpus] = corpora_tables([part, whole])
    absent = left_out_table([part, whole])
    assert not any(map(str.isdigit, absent.caption)), "an utterance may stand in several rows"
    n = whole.scores.predictions.table.id.nunique()
    assert (
        n > part.scores.predictions.table.id.nunique() and f"{n} utterances tested" in corpus.note
    )
    assert sum(corpus.rows[0][f"n {name}"] for name in whole.scores.classes) == n


def test_the_features_table_says_what_is_wrong_with_a_damaged_feature(report: Any) -> None:
    [spec] = (report.folder / "store" / "is13").glob("*/spec.json")
    content = spec.read_bytes()
    spec.write_bytes(content[:-9])
    try:
        cells, _ = group_runs(report.runs)
        rows = {row["feature"]: row for row in features_table(cells).rows}
    finally:
        spec.write_bytes(content)
    assert (
        "spec.json" in rows["is13"]["from"]
        and rows["is13"]["dim"] == 16
        and rows["bert"]["level"] == "token"
    )


def test_agreement_counts_every_rater_and_ids_tell_the_style(report: Any) -> None:
    cell = report.cells["audio:utterance · is13"]
    p = cell.scores.predictions.table
    named = {
        "ang": {"Anger"},
        "hap": {"Happiness", "Excited"},
        "neu": {"Neutral"},
        "sad": {"Sadness"},
    }
    for id_, truth, share in zip(p.id, p.truth, agreement(cell), strict=True):
        votes = [vote for rater in cell.utterances.votes[id_] for vote in rater]
        assert len(votes) == 3
        assert share == pytest.approx(100 * sum(vote in named[truth] for vote in votes) / 3)
    groups = report.tables["groups"].rows
    styles = {
        row["group"]: row["utterances"] for row in groups if row["by"] == "scripted or improvised"
    }
    tested = report.content.cells[0].scores.predictions.table.drop_duplicates("id")
    scripted = tested.id.str.contains("_script")
    assert styles == {"improvised": (~scripted).sum(), "scripted": scripted.sum()}


def test_groups_that_are_too_many_for_a_plot_stand_in_the_table_alone(
    report: Any, tmp_path: Path, undrawn: None
) -> None:
    """Nothing is known but the speakers: the store is away, and the ids are not IEMOCAP's."""
    cell = Cell("many speakers", report.cells["audio:utterance · is13"].runs)
    cell.__dict__["origin"] = Origin(lack="the store is away")
    predictions = cell.scores.predictions
    table = predictions.table
    speakers = [f"speaker {number % 13}" for number in range(len(table))]
    predictions.table = table.assign(id="u" + table.id, speaker=speakers)

    section = errors([cell], first_of_several=False)

    assert section is not None
    [groups] = [table for table in section.tables if table.name == "groups"]
    assert {row["by"] for row in groups.rows} == {"speaker"}
    assert len(groups.rows) == 13
    write_html(make_page([cell], []), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Errors by group" in text


def made_up(label: str, run: Run, configs: Sequence[RunConfig], **result: Any) -> Cell:
    """A cell of runs with these configs, and the run's own result but for what is given."""
    runs = []
    for config in configs:
        made_up_run = Run(run.path)
        made_up_run.__dict__["config"] = config
        made_up_run.__dict__["result"] = structs.replace(run.result, **result)
        runs.append(made_up_run)
    return Cell(label, runs)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"dev": "none"},
            ["The cells differ in dev: what they differ by may be due to that alone."],
        ),
        ({"corpus": "d"}, ["The cells differ in corpus: their numbers must not be compared."]),
        ({"labels": "5class"}, ["The cells differ in labels: their numbers must not be compared."]),
        (
            {"parts": {"train": 7, "dev": 1, "test": 2}},
            ["The cells differ in n train, n dev, n test: their numbers must not be compared."],
        ),
        (
            {"speaker_independent": False, "speakers": {"a": True, "b": False}},
            ["Speakers of the test part are heard in training too, so scores are too high: two."],
        ),
        (
            {"speaker_independent": False, "speakers": None},
            [
                "Whether test speakers are heard in training is not known, so scores may be too "
                "high: two."
            ],
        ),
        ({}, []),
    ],
)
def test_cautions_say_what_is_known_and_what_differs(
    report: Any, changes: dict[str, Any], says: list[str]
) -> None:
    run = report.cells["audio:utterance · is13"].runs[0]
    corpus = {"corpus": changes.get("corpus", run.config.corpus)}
    one, two = (
        made_up("one", run, [run.config]),
        made_up("two", run, [structs.replace(run.config, **corpus)], **changes),
    )
    assert cautions([one, two])[1:] == says
    assert (papers_tests_table([one, two]).rows[0]["utterances"] is None) == ("corpus" in changes)
    assert ("(speaker-dependent)" in conditions(two.runs)) == bool(changes.get("speakers"))
    joined = made_up(
        "joined",
        run,
        [structs.replace(run.config, corpus="a+b")],
        corpora=dict.fromkeys(
            "ab", SplitCorpus(synthetic=True, classes={}, train=0, dev=0, test=0)
        ),
    )
    table = one.scores.predictions.table
    joined.scores.predictions.table = table.assign(id=run.config.corpus + "/" + table.id)
    assert papers_tests_table([one, joined]).rows[0]["utterances"] == one.scores.n
    seeds = [run.config, structs.replace(run.config, seed=1)]
    one, two = (
        made_up("one", run, seeds),
        made_up("two", run, [structs.replace(seed, **corpus) for seed in seeds], **changes),
    )
    assert papers_tests_table([one, two]).rows[0]["pairs of runs"] == (
        None if "corpus" in changes else 2
    )


def an_epoch(stage: str, loss: float) -> Epoch:
    """Of a run that evaluates nothing."""
    return Epoch(
        stage=stage,
        epoch=1,
        epochs=1,
        loss=loss,
        wa=None,
        ua=None,
        seconds=0.1,
        kept=True,
        macro_f1=None,
        ccc=None,
    )


def test_stages_and_settings_of_runs_that_differ_stand_in_their_place(report: Any) -> None:
    """Of a second run the first model has an epoch more; a second cell's config has a setting more,
    and a view.
    """
    plain = report.cells["audio:utterance · is13"]
    views = [FeatureRecord(feature="is13:view=1", fingerprint="0", pool="mean", hop=0.1)]
    training = {**plain.config.training, "focal_gamma": 2.0}
    other = structs.replace(plain.config, training=training, views=views)
    cell = made_up("two", plain.runs[0], [other] * 2, layers={"hubert:layer=0": 0.25})
    losses = (
        [("train", 1), ("train", 2), ("again", 3)],
        [("train", 2), ("train", 4), ("train", 8), ("again", 9)],
    )
    for number, told in enumerate(losses):
        history = [an_epoch(stage, loss) for stage, loss in told]
        cell.results[number] = structs.replace(cell.results[number], history=history)
    rows = {table.name: table.rows for table in make_page([plain, cell], []).tables}
    assert [row["loss"] for row in rows["learning-loss"] if row["cell"] == "two"] == [1.5, 3, 8, 6]
    assert [row["used"] for row in rows["settings"] if row["setting"] == "focal_gamma"] == [
        "0.0, 2.0"
    ]
    assert [row["feature"] for row in rows["features"]] == ["is13", "is13:view=1,hop=0.1"]
    assert [row["share %"] for row in rows["layers"]] == [(25, 0)]
    alone = made_up("one", plain.runs[0], [other], layers={"hubert:layer=0": 0.25})
    assert (
        next(table for table in make_page([alone], []).tables if table.name == "layers").texts[0][2]
        == "25.00"
    )
    assert (
        name_apart([plain.config, other])[1]
        == "audio:utterance · views is13:view=1 · focal_gamma 2"
    )


def a_feature(name: str) -> FeatureRecord:
    return FeatureRecord(feature=name, fingerprint="0", pool="mean")


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({}, ""),
        ({"settings": {"epochs": 3, "queries": 3}}, "epochs, queries"),
        ({"select": "best-test", "precision": "bf16"}, "select, precision"),
        ({"models": {"audio": "facebook/hubert-large-ll60k"}}, "checkpoint of hubert"),
        ({"models": {"audio": "hubert-base-ls960"}}, ""),  # a local copy
        ({"views": [a_feature("hubert:view=1")]}, "views"),
        ({"settings": {"queries": 2}}, None),  # a cell of Fig. 2, which gives no numbers
        ({"features": {"audio": a_feature("hubert:layer=0")}}, None),
        ({"folds": 4}, None),
        ({"only": "scripted"}, None),
        ({"utterances": 339}, None),  # of another corpus
    ],
)
def test_only_what_is_alike_stands_beside_the_papers(
    report: Any, changes: dict[str, Any], differs: str | None
) -> None:
    """MSMSER's full model in five folds on the paper's checkpoints, but for these changes."""
    first = report.cells["mit · hubert+mpnet · queries 3"].runs[0]
    settings = vars(MsmserSettings(**changes.get("settings", {})))
    features = {**first.config.features, **changes.get("features", {})}
    models = {"audio": "facebook/hubert-base-ls960", "text": "microsoft/mpnet-base"} | changes.get(
        "models", {}
    )
    specs = {m: {"provenance": {"model": model}} for m, model in models.items()}
    provenance = structs.replace(first.config.provenance, specs=specs, left_out={})
    given = {
        key: changes[key] for key in ("select", "precision", "views", "only") if key in changes
    }
    whole = structs.replace(
        first.config, settings=settings, features=features, provenance=provenance, **given
    )
    configs = [structs.replace(whole, fold=str(fold)) for fold in range(changes.get("folds", 5))]
    parts = {"train": changes.get("utterances", 5531) - 1241, "dev": 0, "test": 1241}
    cell = made_up("ours", first, configs, synthetic=False, random_weights=[], parts=parts)
    rows = {table.name: table.rows for table in make_page([cell], []).tables}
    bias, *_ = rows["bias"]
    if differs is None:
        assert "papers" not in rows and bias["paper UA %"] is None
        return
    [row] = rows["papers"]
    assert (
        row["differs in"] == (differs or None)
        and row["paper UA %"] == (76.4, None)
        and row["UA difference"]
    )
    assert bias["paper UA %"] == 76.4 and differs in bias["in the papers"]


def test_the_better_of_two_papers_cells_is_claimed(report: Any) -> None:
    first = report.cells["mit · hubert+mpnet · queries 3"].runs[0]
    made = {}
    for fusion, queries in (("mit", 30), ("mit:no-selfatt", 30), ("mit", 3)):
        settings = {**first.config.settings, "queries": queries}
        config = structs.replace(first.config, fusion=fusion, settings=settings)
        folds = [structs.replace(config, fold=str(fold)) for fold in range(5)]
        made[fusion, queries] = made_up(fusion, first, folds)
    full, without = made["mit", 30], made["mit:no-selfatt", 30]
    assert [
        claimed_better(*pair, "ua") for pair in ((full, without), (without, full), (full, full))
    ] == [1, -1, 0]


def test_the_highest_of_two_alike_is_told_if_one_has_no_interval(
    report: Any, tmp_path: Path, undrawn: None
) -> None:
    one = report.cells["mit · hubert+mpnet · queries 3"]
    runs = [Run(run.path) for run in one.runs]
    for run in runs:
        settings = {**run.config.settings, "queries": 5}
        run.__dict__["config"] = structs.replace(run.config, settings=settings)
    two = Cell("mit · hubert+mpnet · queries 5", runs)
    two.scores.predictions.table = two.scores.predictions.table.assign(speaker="a")
    whole, low, high = one.scores.with_interval("ua")
    assert two.scores.with_interval("ua") == (whole, None, None) != (whole, low, high)
    write_html(make_page([one, two], []), tmp_path / "report.html")
    assert "UA is highest with 3 query tokens" in (tmp_path / "report.html").read_text(
        encoding="utf-8"
    )


# --- attention against the equations


def test_attention_is_the_models_own(report: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are those of torch's own attention to what the layer is given; reading them
    changes no number.
    """
    cell = report.cells["mit · hubert+mpnet · queries 6"]
    run, (store, manifest, _), (utterance, other, *_) = (
        cell.runs[0],
        cell.origin,
        cell.scores.predictions.table.id,
    )
    fitted, plan = load_model(run)
    layer, given = fitted.model.interaction.decoder[-1].multihead_attn, list[Any]()
    monkeypatch.setattr("ser.train.report.attention.load_model", lambda run: (fitted, plan))
    with layer.register_forward_hook(lambda _, taken, __: given.append(taken)):
        first, one = attend(run, store, manifest, [other, utterance])
    assert first.utterance == other and first.frames.shape != one.frames.shape
    assert one.frames.shape[0] == one.words.shape[0] == len(one.tokens) == 6
    np.testing.assert_allclose(one.frames.sum(1) + one.words.sum(1), 1, atol=1e-5)
    assert one.tokens.sum() == pytest.approx(1, abs=1e-5)
    assert list(one.texts) == [*cell.utterances.text[utterance].split(), None], (
        "the last one: special tokens"
    )
    # The predictions of the run came from the plain model.
    np.testing.assert_allclose(
        one.probabilities, run.predictions()["probabilities"][0].as_py(), atol=1e-5
    )
    plain = torch.nn.MultiheadAttention(layer.out_proj.in_features, layer.heads)
    plain.load_state_dict(layer.state_dict())
    x, _, (memory, _) = given[-1]
    with torch.inference_mode():
        expected = plain(x, memory, memory)[1].numpy()
    np.testing.assert_allclose(one.frames, expected[:, : one.frames.shape[1]], atol=1e-6)


# --- tables


TABLE = Table(
    "odd",
    "Odd & <b>100 %</b>",
    [
        Column("cell", TEXT),
        Column("UA %", PERCENT_WITH_INTERVAL),
        Column("runs %", PERCENT_WITH_DEVIATION),
        Column("n", COUNT),
        Column("p", P_VALUE),
    ],
    [
        {"cell": "=1+1", "UA %": (50, 40, 60), "runs %": (50, None), "n": 1234, "p": 0.0001},
        {"cell": "a | b_c <i> $x$", "runs %": (25, 1), "p": 0.5},
    ],
    "A note of 5 %.",
)


def test_tables_keep_their_columns_and_hold_no_formula_and_no_markup() -> None:
    _, *lines = csv.reader(io.StringIO(to_csv(TABLE)))
    assert lines[0] == [
        "cell",
        "UA %",
        "UA % low",
        "UA % high",
        "runs %",
        "runs % deviation",
        "n",
        "p",
    ]
    assert lines[1] == ["'=1+1", "50.0000", "40.0000", "60.0000", "50.0000", "", "1234", "0.0001"]
    assert lines[2][1:4] == ["", "", ""]
    for evil in ("=1", "+1", "-1", "@x", "\tx", "\rx", "\n=1"):
        assert harmless(evil).startswith("'")
    assert harmless("-0.5 is text here") == "'-0.5 is text here" and harmless("plain") == "plain"
    text = to_markdown(TABLE)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}
    assert (
        "<" not in text and "50.00 [40.00, 60.00]" not in text and r"50.00 \[40.00, 60.00\]" in text
    )
    text = to_latex(TABLE)  # of booktabs
    assert r"\toprule" in text and r"\bottomrule" in text and r"\caption{Odd \& " in text
    assert r"b\_c" in text and r"\$x\$" in text and r"$\pm$" in text and "±" not in text
    assert r"{}[LAUGHTER] -{}-set" in to_latex(
        Table("b", "b", [Column("words", TEXT)], [{"words": "[LAUGHTER] --set"}])
    )  # no dash
    assert not re.search(r"(?<!\\)[%&](?!.*\\\\)", text.replace(" & ", " "))


def test_every_table_is_written_in_every_form(report: Any, tmp_path: Path) -> None:
    tables = report.content.tables
    assert len({table.name for table in tables}) == len(tables) > 20
    for form in ("csv", "markdown", "latex_all"):
        write_tables(tables, tmp_path / form, form)
        assert (tmp_path / form).stat().st_size > 5000
    for line in csv.reader((tmp_path / "csv").open(encoding="utf-8")):
        assert not [cell for cell in line if re.match(r"[=@]|[+-](?![\d.])", cell)]
    assert PERCENT.shown(None) == "–"
    assert DIFFERENCE.shown(-1.234) == "−1.23"
    assert COUNT.shown(12345) == "12,345"


# --- in a real browser


# How far each colour is from the paper behind it.
CONTRAST = """
const hex = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const light = h => [1, 3, 5].map(i => parseInt(h.slice(i, i + 2), 16) / 255)
  .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
const names = ['ink', 'muted', 'accent', 'c1', 'c2', 'c3', 'c4', 'c5', 'c6', 'c7'];
const papers = ['--paper', '--raised'];
return Object.fromEntries(names.map(
  n => [n, Math.min(...papers.map(p => ratio(light(hex('--' + n)), light(hex(p)))))]));
"""


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_quiet_fits_and_has_contrast(
    report: Any, browser: Browser, scheme: str
) -> None:
    """WCAG's 4.5 for text and 3 for what is drawn."""
    for width in (1280, 390):
        browser.show(report.page, width, scheme)
        assert browser.log("browser") == [] and browser.requests() == [
            report.page.resolve().as_uri()
        ]
        assert browser.evaluate("return document.title") != "owned"
        browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        wide = browser.evaluate("return document.documentElement.scrollWidth")
        assert wide <= width, "tables must scroll in their own frames, not the page"
    found = browser.evaluate(CONTRAST)
    assert min(found[name] for name in ("ink", "muted", "accent")) >= 4.5, found
    assert min(found.values()) >= 3, found


# Tables that are wider than their frame, and cells that are wider than themselves or the page.
CUT = """
const width = document.documentElement.clientWidth;
const cut = [];
for (const frame of document.querySelectorAll('.frame')) {
  if (frame.scrollWidth > frame.clientWidth + 1) cut.push(frame.getAttribute('aria-label'));
}
for (const cell of document.querySelectorAll('tbody :is(td, th)')) {
  const box = cell.getBoundingClientRect();
  const leaves = box.right > width + 1 || cell.scrollWidth > cell.clientWidth + 1;
  if (box.width > 0 && leaves) cut.push(cell.textContent);
}
return cut;
"""


@needs_chromium
@pytest.mark.parametrize("width", [1280, 768, 400])
def test_no_table_and_no_cell_is_cut(report: Any, browser: Browser, width: int) -> None:
    browser.show(report.page, width)

    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")

    assert browser.evaluate(CUT) == []
    assert browser.evaluate("return document.documentElement.scrollWidth") <= width


@needs_chromium
def test_a_row_without_room_is_a_card_with_its_headings(report: Any, browser: Browser) -> None:
    shown_heading = (
        "const cell = document.querySelector('#table-scores tbody td');"
        "return [getComputedStyle(cell, '::before').content, getComputedStyle(cell).display]"
    )
    browser.show(report.page, 1280)
    assert browser.evaluate(shown_heading) == ["none", "table-cell"]

    browser.show(report.page, 400)
    assert browser.evaluate(shown_heading) == ['"UA %"', "block"]


@needs_chromium
def test_the_scores_are_read_first(report: Any, browser: Browser) -> None:
    browser.show(report.page, 1280)

    first_table = browser.evaluate("return document.querySelector('main table').id")
    best = report.content.cells[0]
    cells = browser.evaluate(
        "return [...document.querySelector('#table-scores tbody tr').cells].map(c => c.textContent)"
    )

    assert first_table == "table-scores"
    assert cells[0] == best.label
    assert cells[1].startswith(f"{best.scores.score('ua').pooled:.2f}")


@needs_chromium
def test_pictures_and_tables_have_words_and_the_runs_their_scores(
    report: Any, browser: Browser
) -> None:
    browser.show(report.page)
    pictures = browser.evaluate(
        "return [...document.querySelectorAll('svg[role=img]')].map("
        "s => [s.querySelector('title')?.textContent, s.querySelector('desc')?.textContent])"
    )
    assert len(pictures) > 10 and all(
        title and len(description) > 20 for title, description in pictures
    )
    captions = browser.evaluate(
        "return [...document.querySelectorAll('table')].map(t => t.caption?.textContent)"
    )
    assert len(captions) > 20 and all(captions)
    assert (
        browser.evaluate(
            "return document.querySelectorAll('figure:not(:has(details table))').length"
        )
        == 0
    )
    assert browser.evaluate("return [...document.querySelectorAll('th')].every(t => t.scope)")
    lines = browser.evaluate(
        "return [...document.querySelectorAll('#table-runs tbody tr')].map("
        "r => [...r.cells].map(c => c.textContent))"
    )
    scores = {
        run.path.name: [f"{100 * run.result.score(metric):.2f}" for metric in ("ua", "wa")]
        for run in report.runs
    }
    assert {line[0]: line[4:6] for line in lines} == scores


# --- full size


@pytest.mark.slow
def test_480_runs_stay_small_and_quick(report: Any, tmp_path: Path) -> None:
    """Run folders as a sweep leaves them, with made-up predictions of the Perspective protocol's
    size.
    """
    template = next(run for run in report.runs if run.config.fusion == "lgf-add")
    manifest = spoken_manifest(turns=124)
    open_store(tmp_path / "store", create=True).put_manifest(manifest)
    rng, classes = np.random.default_rng(0), template.result.classes
    truth = rng.integers(0, 4, len(manifest.ids))
    known = {
        "id": manifest.ids,
        "speaker": manifest.column("speaker"),
        "truth": [classes[k] for k in truth],
    }
    one = structs.replace(template.result.history[0], ua=0.5)
    lines = [structs.replace(one, epoch=epoch, loss=1.4 / epoch) for epoch in range(1, 151)]
    for cell, seed in itertools.product(range(24), range(20)):
        config = structs.replace(
            template.config,
            corpus=manifest.corpus,
            manifest=manifest.digest,
            seed=seed,
            settings={**template.config.settings, "lr": 0.001 * (cell + 1)},
            provenance=structs.replace(template.config.provenance, store=str(tmp_path / "store")),
        )
        shares = rng.dirichlet(np.ones(4), len(truth)).astype(np.float32)
        predicted = shares.argmax(1)
        run = Run(tmp_path / "runs" / run_name(config))
        run.path.mkdir(parents=True)
        named = [classes[k] for k in predicted]
        given = {column("probabilities", test): list(shares) for test in template.result.tests}
        files = run.write_predictions({**known, "predicted": named, **given})
        files |= run.write_json(CONFIG, config)
        found = scores(truth.tolist(), predicted.tolist(), classes)
        result = structs.replace(
            template.result,
            **found,
            seed=seed,
            tests=dict.fromkeys(template.result.tests, Scores(**found)),
            history=lines,
            files=files,
        )
        run.write_json(RESULT, result)
    started = time.process_time()
    # The attention of a trained model is in it too.
    write_html(
        make_page(*group_runs([*find_runs(tmp_path / "runs"), *report.runs])),
        tmp_path / "report.html",
    )
    cpu, size = time.process_time() - started, (tmp_path / "report.html").stat().st_size
    assert size < 5e6 and cpu < 20, f"{size / 1e6:.2f} MB, {cpu:.1f} s of CPU"


# --- on the terminal


@pytest.mark.parametrize("width", [60, 100])
def test_every_line_fits_the_terminal(report: Any, width: int) -> None:
    cells = report.content.cells

    text = report_text(cells, report.runs[:1], paired=True, width=width)
    everything = report_text(cells, [], tables=["all"], width=width)

    for line in [*text.splitlines(), *everything.splitlines()]:
        assert len(line) <= width, line
    words = " ".join(text.split())
    for cell in cells:
        value, *_ = cell.scores.with_interval("ua")
        assert f"{value:.2f}" in words
    assert "over seeds" not in text, "of one seed it repeats the score"
    assert words.count("95 % interval (jackknife") == 1


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_cell_of_a_table_is_lost_where_it_is_narrow(width: int) -> None:
    table = Table(
        "narrow",
        "Narrow",
        [
            Column("cell", TEXT),
            *columns_of(PERCENT_WITH_INTERVAL, [f"score {number} %" for number in range(6)]),
            Column("words", TEXT),
        ],
        [
            {
                "cell": f"cell-{row} · with a name of some length",
                **{f"score {n} %": (10.0 * row + n, 1.0, 99.0) for n in range(6)},
                "words": "said in ten words that may go to a further line",
            }
            for row in range(3)
        ],
    )

    text = fitted(table, width)

    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    assert words.count("[1.00,") == words.count("99.00]") == 18
    for row in range(3):
        for number in range(6):
            assert f"{10.0 * row + number:.2f}" in words
    assert "  ".join(words).count("further") == 3


def test_columns_without_room_are_left_out_and_named() -> None:
    columns = columns_of(TEXT, ["run", "fusion", "date"])
    rows = [{"run": "r" * 16, "fusion": "f" * 16, "date": "d" * 16}]
    table = Table("runs", "", columns, rows)

    whole, none_left_out = without_what_has_no_room(table, 52, ["date"], [])
    smaller, left_out = without_what_has_no_room(table, 40, ["date"], [])

    assert none_left_out == []
    assert whole.headings == ["run", "fusion", "date"]
    assert left_out == ["date"]
    assert smaller.headings == ["run", "fusion"]


def test_the_tables_that_are_named_are_printed(report: Any) -> None:
    cells = report.content.cells

    text = report_text(cells, [], tables=["calibration", "raters"])

    assert "Calibration and conformal sets" in text
    assert "The raters’ own scores" in text
    assert "macro-F1: mean F1" not in text
    with pytest.raises(WrongUse, match="calibration"):
        report_text(cells, [], tables=["calibratoin"])
    with pytest.raises(WrongUse, match="nothing to show there"):
        report_text(cells, [], tables=["chosen"])


def test_the_terminal_says_the_same(report: Any) -> None:
    cells = report.content.cells
    text = report_text(cells, [], width=140)
    for cell in cells:
        line = next(line for line in text.splitlines() if line.startswith(f"{cell.label} "))
        whole, *ends = cell.scores.with_interval("ua")
        assert f"{whole:.2f}{' [' * (None not in ends)}" in line
    assert "no comparison with the paper is meant" in text and "McNemar" not in text
    paired = report_text(cells, [], paired=True, width=400)
    ours, theirs = paired.split("Tests that papers print, which ignore clusters")
    assert "McNemar" in theirs and "McNemar" not in ours and "no test: 4 dialogues" in ours
    assert "chosen on the test score" in text and "chosen on the test score" not in report_text(
        cells[:1], []
    )
    with pytest.raises(WrongUse, match="one cell"):
        report_text(cells[:1], [], paired=True)
    tested = papers_tests_table(group_runs(report.runs, ours=cells[-1].label)[0])
    assert [[*row.values()][:2] for row in tested.rows] == [
        [cells[-1].label, cell.label] for cell in cells[:-1]
    ]
    edited = name_apart([structs.replace(cells[0].config, code=letter * 64) for letter in "ab"])
    assert [label.rpartition(" · ")[2] for label in edited] == ["code aaaaaaaa", "code bbbbbbbb"]
