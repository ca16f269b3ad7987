"""Files of folds: a table, or EmoBox's folders, as sets of ids."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ser.corpus.delimited import read_delimited
from ser.disk.read import read_named
from ser.errors import WrongUse

PARTS = ("train", "dev", "test")


@dataclass(frozen=True)
class ListedFold:
    """A fold as a file spells it out."""

    name: str
    ids: dict[str, set[str]]
    """Of each of `PARTS`."""


def read_folds(path: Path) -> list[ListedFold]:
    """Folds in the file's order.

    - `.csv`, `.tsv` with columns `id,fold`: each utterance is tested in its fold and trains in the
      others; with a third column `part` (train, dev, test) each line names one utterance's part in
      one fold.
    - a folder: EmoBox's `fold_1/…train….jsonl` and `…test….jsonl` (`valid` too), ids under `key`.

    Raises `WrongUse` for anything else.
    """
    try:
        if path.is_dir():
            folds = _read_emobox(path)
        elif path.suffix in (".csv", ".tsv"):
            folds = _read_table(path)
        else:
            raise WrongUse(f"{path}: folds come as .csv or .tsv, or as a folder of EmoBox's fold_N")
    except FileNotFoundError:
        raise WrongUse(
            f"{path}: no such file of folds; give a .csv or .tsv, or a folder of EmoBox's fold_N"
        ) from None
    except WrongUse:
        raise
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        RecursionError,
        csv.Error,
        msgspec.MsgspecError,
    ) as error:
        raise WrongUse(f"{path}: not a list of folds ({type(error).__name__}: {error})") from None

    if not folds:
        raise WrongUse(f"{path}: holds no fold; a folder holds fold_1, fold_2, … as EmoBox's do")
    return folds


def _read_table(path: Path) -> list[ListedFold]:
    import pandas as pd

    text = read_named(path).decode("utf-8-sig")
    rows = list(read_delimited(text, has_tabs=path.suffix == ".tsv"))
    names = rows[0].cells if rows else []
    for row in rows:
        if len(row.cells) != len(names):
            raise WrongUse(
                f"{path}: {row.where} has {len(row.cells)} columns where the header has "
                f"{len(names)}; correct the line"
            )
    table = pd.DataFrame([row.cells for row in rows[1:]], columns=names, dtype=str)
    if not {"id", "fold"} <= set(table) or table.empty:
        raise WrongUse(
            f"{path}: needs the columns id and fold (and part, if each fold's parts are named)"
        )
    for id_, fold in zip(table["id"], table["fold"], strict=True):
        if fold == "":
            raise WrongUse(f"{path}: {id_} names no fold; give each line an id and its fold")

    names_parts = "part" in table
    if names_parts:
        for id_, part in zip(table["id"], table["part"], strict=True):
            if part not in PARTS:
                raise WrongUse(f"{path}: part '{part}' of {id_} must be train, dev or test")

    folds = []
    for name, lines in table.groupby("fold", sort=False):
        ids = {}
        if names_parts:
            for part in PARTS:
                ids[part] = set(lines["id"][lines["part"] == part])
        else:
            ids["train"] = set(table["id"].drop(lines.index))
            ids["dev"] = set()
            ids["test"] = set(lines["id"])
        folds.append(ListedFold(name, ids))
    return folds


def _read_emobox(path: Path) -> list[ListedFold]:
    decoder = msgspec.json.Decoder(dict[str, Any])
    words = {"train": "train", "dev": "valid", "test": "test"}

    folds = []
    for folder in sorted(path.glob("fold_*"), key=_number):
        ids: dict[str, set[str]] = {}
        for part, word in words.items():
            ids[part] = set()
            for file in sorted(folder.glob(f"*{word}*.jsonl")):
                lines = decoder.decode_lines(read_named(file))
                ids[part].update(str(line["key"]) for line in lines)
        folds.append(ListedFold(folder.name.replace("_", " "), ids))
    return folds


def _number(folder: Path) -> int:
    """10 of "fold_10"; 0 where there is none."""
    digits = re.sub(r"\D", "", folder.name)
    return int(digits or 0)
