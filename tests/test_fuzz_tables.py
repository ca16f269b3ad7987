"""Random tables by writers of every kind, read in every place: what went in comes out.

Rows, ids, labels and all other values are compared; what is wrong is named; nothing else is
refused. Seconds of it in `make test`, always the same; others in `make test-slow`
(`SER_FUZZ_SECONDS`, from `SER_FUZZ_SEED` on).
"""

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from ser.errors import CorpusError, WrongUse
from ser.train.data.fold_files import read_folds

from .drawn_tables import (
    ALIKE,
    FAULT,
    DrawnTable,
    assert_comes_out,
    drawn_tables,
    meanings_of_row,
    meant_by,
)
from .table_places import OF_CORPUS, PLACES, CameOut, Place, write_recordings
from .table_writers import UNQUOTED, WRITERS, Writer

SETTINGS: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "phases": [hypothesis.Phase.generate, hypothesis.Phase.shrink],
    "suppress_health_check": list(hypothesis.HealthCheck),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings for tables to name."""
    folder = tmp_path_factory.mktemp("tables")
    write_recordings(folder)
    return folder


def attack(body: Callable[..., None], examples: int, seed: int | None = None) -> None:
    """So many examples of a body that hypothesis gives data; the same ones without a `seed`."""
    settings = hypothesis.settings(max_examples=examples, derandomize=seed is None, **SETTINGS)
    test = settings(hypothesis.given(st.data())(body))
    if seed is not None:
        test = hypothesis.seed(seed)(test)
    test()


def read_careful(folder: Path, place: Place, data: Any) -> None:
    table = place.prepare(data.draw(drawn_tables(place.columns, place.can_lack_ids)))
    kind = data.draw(st.sampled_from(place.writers))
    writer = WRITERS[kind]
    hypothesis.assume(writer.can_write(table))

    hypothesis.event(kind)
    path = folder / f"{place.name}.{_ending(kind, writer)}"
    writer.write(path, table.rows(writer.as_written))
    try:
        out = _came_out(path, place, table, writer)
    finally:
        path.unlink()

    if out is not None:
        assert_comes_out(table, writer.columns(table), place.gives, out)
        if place.warns:
            _check_warnings(out)


def _ending(kind: str, writer: Writer) -> str:
    return "csv" if kind == "tabs in a CSV" else writer.ending


def _came_out(path: Path, place: Place, table: DrawnTable, writer: Writer) -> CameOut | None:
    """What came out; None where the table may be refused, and is."""
    try:
        return place.read(path, table)
    except (CorpusError, WrongUse) as error:
        sentence = str(error)
        assert "\n" not in sentence
        wrong_rows = _wrong_rows(place, table, writer)
        is_allowed = (
            writer.refuses(table)
            or (place.every_row_counts and wrong_rows)
            or len(wrong_rows) == len(table)
            or (place.gives == ("id", "text") and _has_no_text(table, writer))
        )
        assert is_allowed, f"refused without a reason: {sentence}"
        return None


def _wrong_rows(place: Place, table: DrawnTable, writer: Writer) -> list[int]:
    """The numbers of the rows that hold a wrong value."""
    written = writer.columns(table)
    wrong = []
    for number in range(len(table)):
        # Every value is read, whether it comes out or not.
        read = OF_CORPUS if place.every_row_counts else place.gives
        if FAULT in meanings_of_row(written, read, number).values():
            wrong.append(number)
    return wrong


def _has_no_text(table: DrawnTable, writer: Writer) -> bool:
    texts = writer.columns(table).get("text", [])
    return not any(meant_by("text", text) for text in texts)


def _check_warnings(out: CameOut) -> None:
    """What came out as it went in and is odd is said."""
    said = "\n".join(out.warnings)
    for column in ("label", "speaker", "session"):
        names = {row.get(column) for row in out.rows.values()}
        if names & {"NA", "nan", "None"}:
            assert f"the {column} of " in said
        if column != "label" and any(len(names & alike) > 1 for alike in ALIKE):
            assert f" {column}s are written in several ways" in said


def read_unquoted(folder: Path, place: Place, data: Any) -> None:
    """Of writers that know no quotation: no row is merged with another, none is lost in silence."""
    table = place.prepare(data.draw(drawn_tables(place.columns)))
    # audformat has nothing but commas.
    kinds = sorted(UNQUOTED) if place.name == "table" else ["commas"]
    writer = UNQUOTED[data.draw(st.sampled_from(kinds))]
    path = folder / f"{place.name}.{writer.ending}"
    writer.write(path, table.rows(writer.as_written))
    try:
        out = place.read(path, table)
    except (CorpusError, WrongUse) as error:
        # A database is named by its folder, and its table by what is wrong with it.
        assert path.name in str(error) or str(path.parent) in str(error)
        hypothesis.event("refused")
        return
    finally:
        path.unlink()

    written = writer.columns(table)
    lost = 0
    for number, id_ in enumerate(table.ids):
        if id_ not in out.rows:
            lost += 1
            continue
        for column, meaning in meanings_of_row(written, place.gives, number).items():
            value = out.rows[id_].get(column)
            if column == "text":
                assert _without_marks(value) == _without_marks(meaning)
            elif column not in ("dialogue", "turn"):
                assert value == meaning, f"{column} of {id_}"

    assert set(out.rows) <= set(table.ids), "rows that nobody wrote"
    assert lost <= len(out.problems), "rows are lost without a word"
    hypothesis.event("some named" if lost else "all read")


def _without_marks(text: str | None) -> str:
    return (text or "").replace('"', "").strip()


FOLD_NAMES: dict[Any, str] = {"1": "1", " 2 ": "2", "fold a": "fold a", "03": "03"}
FOLD_NUMBERS: dict[Any, str] = {1: "1", 2.0: "2", 10: "10"}
PARTS = {"train": "train", "Dev": "dev", " test": "test"}


def read_lists_of_folds(folder: Path, data: Any) -> None:
    table = data.draw(drawn_tables(["id"]))
    names = data.draw(st.sampled_from([FOLD_NAMES, FOLD_NUMBERS]))
    size = len(table)
    folds = data.draw(st.lists(st.sampled_from(list(names)), min_size=size, max_size=size))
    parts = data.draw(st.lists(st.sampled_from(list(PARTS)), min_size=size, max_size=size))
    has_parts = data.draw(st.booleans())
    columns = {**table.columns, "fold": folds}
    if has_parts:
        columns["part"] = parts
    headings = {**table.headings, "fold": "Fold", "part": "part"}
    table = DrawnTable(table.ids, columns, headings, table.strangers)

    writer = WRITERS[data.draw(st.sampled_from(sorted(WRITERS)))]
    hypothesis.assume(writer.can_write(table) and (writer.is_typed or names is FOLD_NAMES))
    path = folder / f"folds.{writer.ending}"
    writer.write(path, table.rows(writer.as_written))
    listed = {fold.name: fold.ids for fold in read_folds(path)}

    expected: dict[str, dict[str, set[str]]] = {}
    for number, id_ in enumerate(table.ids):
        fold = expected.setdefault(
            names[folds[number]], {part: set() for part in ("train", "dev", "test")}
        )
        fold[PARTS[parts[number]] if has_parts else "test"].add(id_)
    if not has_parts:
        for fold in expected.values():
            fold["train"] = set(table.ids) - fold["test"]
    assert listed == expected


# Where a row that is torn is none. One wrong row refuses a list of utterances, and a description
# keeps the recording.
LOSE_TORN_ROWS = ("a corpus", "--text", "audformat")


@pytest.mark.parametrize("name", PLACES)
def test_what_careful_writers_wrote(folder: Path, name: str) -> None:
    attack(lambda data: read_careful(folder, PLACES[name], data), 60)


@pytest.mark.parametrize("name", LOSE_TORN_ROWS)
def test_what_writers_without_quotation_wrote(folder: Path, name: str) -> None:
    attack(lambda data: read_unquoted(folder, PLACES[name], data), 60)


def test_lists_of_folds(folder: Path) -> None:
    attack(lambda data: read_lists_of_folds(folder, data), 60)


def attack_place(folder: Path, name: str, seed: int) -> None:
    place = PLACES[name]
    attack(lambda data: read_careful(folder, place, data), 200, seed)
    if name in LOSE_TORN_ROWS:
        attack(lambda data: read_unquoted(folder, place, data), 100, seed)


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_tables_for_minutes(folder: Path) -> None:
    ends = time.monotonic() + float(os.environ.get("SER_FUZZ_SECONDS", "900"))
    first = int(os.environ.get("SER_FUZZ_SEED", "0"))
    for seed in itertools.count(first):
        if time.monotonic() > ends:
            break
        print(seed)
        for name in PLACES:
            attack_place(folder, name, seed)
        attack(lambda data: read_lists_of_folds(folder, data), 100, seed)
