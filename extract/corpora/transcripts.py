"""Another set of transcripts over the same audio, such as a recogniser's output."""

from pathlib import Path
from typing import Any

from ser.cache.errors import WrongUse

from .reading import Problem
from .table import records


def replace_transcripts(
    rows: list[dict[str, Any]], problems: list[Problem], path: Path, complete: bool = True
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The rows with the texts of `path`, a table with columns `id` and `text`, and the problems that then remain.

    The corpus' own transcripts are gone entirely: an utterance that `path` does not name has no text, and is named in
    the problems. Ids of `path` that the corpus lacks are problems as well, if the corpus is `complete`. Raises
    `WrongUse` if the file has not those columns.
    """
    if not path.is_file():
        raise WrongUse(f"{path} is no file; give a CSV, TSV or JSONL file with the columns id and text")
    known = {row["id"] for row in rows}
    texts: dict[str, str] = {}
    problems = [p for p in problems if p.kind != "text"]
    columns: set[str] = set()
    for line, record in records(path):
        columns.update(record if isinstance(record, dict) else ())
        fault = _fault(record, known, texts, complete)
        if fault:
            problems.append(Problem(None, str(path), f"{line}: {fault}"))
        elif isinstance(record, dict) and record["id"] in known:
            texts[record["id"]] = record.get("text") or ""
    if not {"id", "text"} <= columns:
        raise WrongUse(f"{path} lacks the columns id and text; it has {', '.join(sorted(columns)) or 'none'}")
    silent = [id for row in rows if (id := row["id"]) not in texts]
    problems += [Problem(id, str(path), "no transcript of this utterance", "text") for id in silent]
    return [{**row, "text": texts.get(row["id"])} for row in rows], problems


def _fault(record: dict[str, Any] | str, known: set[str], texts: dict[str, str], complete: bool) -> str | None:
    """Why a record is no transcript, or None."""
    if isinstance(record, str):
        return record
    id, text = record.get("id"), record.get("text")
    if not isinstance(id, str):
        return "has no id"
    if text is not None and not isinstance(text, str):
        return f"the text {ascii(text)[:60]} is not a string"
    if text is not None and any("\ud800" <= c <= "\udfff" for c in text):
        return f"the text of {id!a} is not valid Unicode"
    if id in texts:
        return f"the id {id!a} is there twice"
    if id not in known and complete:
        return f"the id {id!a} is not in the corpus"
    return None
