"""Rows that are parts of one recording, told apart by start and end: each is an utterance."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ser.corpus.headings import column_of, unit_of
from ser.corpus.segments import segment_id
from ser.corpus.table_file import is_missing
from ser.corpus.times import seconds_of, with_unit

from .sheet import Sheet


def with_segment_ids(sheet: Sheet) -> Sheet:
    """The sheet with a column id, where its rows without one are segments of their files."""
    by_column = {column_of(heading): heading for heading in sheet.columns}
    if "id" in by_column or not {"audio", "start", "end"} <= by_column.keys():
        return sheet

    files = sheet.columns[by_column["audio"]]
    starts = _seconds(sheet.columns[by_column["start"]], unit_of(by_column["start"]))
    ends = _seconds(sheet.columns[by_column["end"]], unit_of(by_column["end"]))
    if starts is None or ends is None or len(set(files)) == len(files):
        return sheet

    ids: list[Any] = []
    for file, start, end in zip(files, starts, ends, strict=True):
        ids.append(None if file is None else segment_id(str(file), start, end))
    return replace(sheet, columns={"id": ids, **sheet.columns})


def _seconds(times: Sequence[Any], unit: str) -> list[float | None] | None:
    """The times in seconds; None if one of them is none."""
    seconds: list[float | None] = []
    for time in times:
        if is_missing(time) or str(time).strip().casefold() == "nat":
            seconds.append(None)
            continue
        try:
            seconds.append(seconds_of(with_unit(time, unit)))
        except (ValueError, TypeError):
            return None
    return seconds
