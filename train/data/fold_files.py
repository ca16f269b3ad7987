"""Files of folds: a table, or EmoBox's folders, as sets of ids."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser.corpus.headings import column_of
from ser.corpus.table_file import TABLE_ENDINGS, TableRow, read_table_file, text_of
from ser.errors import CorpusError, WrongUse

PARTS = ("train", "dev", "test")


@dataclass(frozen=True)
class ListedFold:
    """A fold as a file spells it out."""

    name: str
    ids: dict[str, set[str]]
    """Of each of `PARTS`."""


def read_folds(path: Path) -> list[ListedFold]:
    """Folds in the file's order.

    - a table (CSV, TSV, JSONL, Parquet) with columns `id` and `fold`: each utterance is tested in
      its fold and trains in the others; with a third column `part` (train, dev, test) each line
      names one utterance's part in one fold.
    - a folder: EmoBox's `fold_1/…train….jsonl` and `…test….jsonl` (`valid` too), ids under `key`.

    Raises `WrongUse` for anything else.
    """
    kinds = "give a .csv, .tsv, .jsonl or .parquet, or a folder of EmoBox's fold_N"
    if not path.exists():
        raise WrongUse(f"{path}: no such file of folds; {kinds}")
    if not path.is_dir() and path.suffix.lower() not in TABLE_ENDINGS:
        raise WrongUse(f"{path}: is no file of folds; {kinds}")

    try:
        folds = _read_emobox(path) if path.is_dir() else _read_table(path)
    except (CorpusError, OSError) as error:
        raise WrongUse(f"{path}: not a list of folds ({error})") from None

    if not folds:
        raise WrongUse(f"{path}: holds no fold; a folder holds fold_1, fold_2, … as EmoBox's do")
    return folds


def _read_table(path: Path) -> list[ListedFold]:
    table = read_table_file(path)
    columns = [_column(heading) for heading in table.headings]
    for name in ("fold", "part"):
        if columns.count(name) > 1:
            raise WrongUse(f"{path}: two columns are called {name}; keep the one that counts")
    if not {"id", "fold"} <= set(columns) or not table.rows:
        raise WrongUse(
            f"{path}: needs the columns id and fold (and part, if each fold's parts are named)"
        )

    all_ids = set()
    lines_by_fold: dict[str, list[_FoldLine]] = {}
    for row in table.rows:
        line = _fold_line(path, row)
        if "part" in columns and line.part not in PARTS:
            raise WrongUse(f"{path}: part '{line.part}' of {line.id} must be train, dev or test")
        all_ids.add(line.id)
        lines_by_fold.setdefault(line.fold, []).append(line)

    folds = []
    for name, lines in lines_by_fold.items():
        ids: dict[str, set[str]] = {part: set() for part in PARTS}
        if "part" in columns:
            for line in lines:
                ids[line.part].add(line.id)
        else:
            ids["test"] = {line.id for line in lines}
            ids["train"] = all_ids - ids["test"]
        folds.append(ListedFold(name, ids))
    return folds


@dataclass(frozen=True)
class _FoldLine:
    """A line of a table of folds."""

    id: str
    fold: str
    part: str


def _fold_line(path: Path, row: TableRow) -> _FoldLine:
    """The line of a row. Raises `WrongUse` if it is none, or lacks its id or fold."""
    if row.fault:
        raise WrongUse(f"{path}: {row.where} {row.fault}; correct the line")

    values = {_column(heading): _text(value) for heading, value in row.values.items()}
    if "id" not in values:
        raise WrongUse(f"{path}: {row.where} names no utterance; give each line an id and its fold")
    if "fold" not in values:
        raise WrongUse(f"{path}: {values['id']} names no fold; give each line an id and its fold")
    return _FoldLine(values["id"], values["fold"], values.get("part", "").casefold())


def _column(heading: str) -> str:
    """What a heading means: `id`, whatever it is called, or the heading in lower case."""
    return column_of(heading).casefold()


def _text(value: Any) -> str:
    return text_of(value).strip()


def _read_emobox(path: Path) -> list[ListedFold]:
    words = {"train": "train", "dev": "valid", "test": "test"}

    folds = []
    for folder in sorted(path.glob("fold_*"), key=_number):
        ids: dict[str, set[str]] = {}
        for part, word in words.items():
            ids[part] = set()
            for file in sorted(folder.glob(f"*{word}*.jsonl")):
                ids[part].update(_ids_of_part(file))
        folds.append(ListedFold(folder.name.replace("_", " "), ids))
    return folds


def _ids_of_part(file: Path) -> list[str]:
    """The ids of one file of EmoBox's, which has a line for each utterance."""
    ids = []
    for row in read_table_file(file).rows:
        values = {_column(heading): value for heading, value in row.values.items()}
        if row.fault or "id" not in values:
            raise WrongUse(f"{file}: {row.where} {row.fault or 'has no key'}; correct the line")
        ids.append(_text(values["id"]))
    return ids


def _number(folder: Path) -> int:
    """10 of "fold_10"; 0 where there is none."""
    digits = re.sub(r"\D", "", folder.name)
    return int(digits or 0)
