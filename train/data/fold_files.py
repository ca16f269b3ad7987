"""Files of folds: a table, or EmoBox's folders, as sets of ids."""

import io
import re
from pathlib import Path
from typing import Any

import msgspec

from ser.disk.read import read_named
from ser.errors import WrongUse

PARTS = ("train", "dev", "test")
Listed = tuple[str, dict[str, set[str]]]  # a fold's name, and the ids of each part


def read_folds(path: Path) -> list[Listed]:
    """Folds in the file's order.

    - `.csv`, `.tsv` with columns `id,fold`: each utterance is tested in its fold and trains in the others; with a third
      column `part` (train, dev, test) each line names one utterance's part in one fold.
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
        msgspec.MsgspecError,
    ) as error:
        raise WrongUse(f"{path}: not a list of folds ({type(error).__name__}: {error})") from None
    if not folds:
        raise WrongUse(f"{path}: holds no fold; a folder holds fold_1, fold_2, … as EmoBox's do")
    return folds


def _read_table(path: Path) -> list[Listed]:
    import pandas as pd

    separator = "\t" if path.suffix == ".tsv" else ","
    source = io.BytesIO(read_named(path))
    table = pd.read_csv(
        source,
        sep=separator,
        dtype=str,
        keep_default_na=False,
        index_col=False,
        encoding="utf-8-sig",
    )
    if not {"id", "fold"} <= set(table) or table.empty:
        raise WrongUse(
            f"{path}: needs the columns id and fold (and part, if each fold's parts are named)"
        )
    ids, folds = table["id"], table.groupby("fold", sort=False)["id"]
    for id_ in ids[table["fold"] == ""]:
        raise WrongUse(f"{path}: {id_} names no fold; give each line an id and its fold")
    if "part" not in table:
        return [
            (name, {"train": {*ids.drop(of.index)}, "dev": set(), "test": {*of}})
            for name, of in folds
        ]
    for part, id_ in zip(table["part"], ids, strict=True):
        if part not in PARTS:
            raise WrongUse(f"{path}: part '{part}' of {id_} must be train, dev or test")
    return [
        (name, {part: {*of[table["part"][of.index] == part]} for part in PARTS})
        for name, of in folds
    ]


def _read_emobox(path: Path) -> list[Listed]:
    lines, folds = msgspec.json.Decoder(dict[str, Any]).decode_lines, []
    for folder in sorted(
        path.glob("fold_*"), key=lambda folder: int(re.sub(r"\D", "", folder.name) or 0)
    ):
        parts = {}
        for part, word in (("train", "train"), ("dev", "valid"), ("test", "test")):
            files = sorted(folder.glob(f"*{word}*.jsonl"))
            parts[part] = {str(line["key"]) for file in files for line in lines(read_named(file))}
        folds.append((folder.name.replace("_", " "), parts))
    return folds
