"""Folds that somebody else has cut: a table, a JSON list, or a folder of EmoBox's jsonl lists."""

import csv
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from ser.cache.errors import WrongUse


@dataclass
class ListedFold:
    """The ids of each part of a fold."""

    name: str
    train: list[str] = field(default_factory=list)
    dev: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)


def read_folds(path: Path) -> list[ListedFold]:
    """Folds in the file's order.

    - `.csv`, `.tsv` with columns `id,fold`: each utterance is tested in its fold and trains in the others; with a third
      column `part` (train, dev, test) each line names one utterance's part in one fold.
    - `.json`: a list of `{"name", "train": [id, …], "dev": […], "test": […]}`.
    - a folder: EmoBox's `fold_1/…train….jsonl` and `…test….jsonl` (`valid` too), ids under `key`.

    Raises `WrongUse` for anything else.
    """
    if path.is_dir():
        return _emobox(path)
    readers = {".csv": _table, ".tsv": _table, ".json": _json}
    if path.suffix not in readers:
        raise WrongUse(f"{path}: folds come as .csv, .tsv or .json, or as a folder of EmoBox's fold_N")
    try:
        folds = readers[path.suffix](path)
    except FileNotFoundError:
        raise WrongUse(f"{path}: no such file of folds") from None
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError, KeyError) as error:
        raise WrongUse(f"{path}: not a list of folds ({type(error).__name__}: {error})") from None
    if not folds:
        raise WrongUse(f"{path}: holds no fold")
    return folds


def _table(path: Path) -> list[ListedFold]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    if not lines or not {"id", "fold"} <= lines[0].keys():
        raise WrongUse(f"{path}: needs the columns id and fold (and part, if each fold's parts are named)")
    folds = {line["fold"]: ListedFold(line["fold"]) for line in lines}
    for line in lines:
        if "part" not in line:
            for fold in folds.values():
                (fold.test if fold.name == line["fold"] else fold.train).append(line["id"])
        elif line["part"] in ("train", "dev", "test"):
            getattr(folds[line["fold"]], line["part"]).append(line["id"])
        else:
            raise WrongUse(f"{path}: part '{line['part']}' of {line['id']} must be train, dev or test")
    return list(folds.values())


def _json(path: Path) -> list[ListedFold]:
    folds = json.loads(path.read_text(encoding="utf-8"))
    return [ListedFold(str(fold["name"]), fold["train"], fold.get("dev", []), fold["test"]) for fold in folds]


def _emobox(path: Path) -> list[ListedFold]:
    folders = sorted(path.glob("fold_*"), key=lambda folder: int(re.sub(r"\D", "", folder.name) or 0))
    if not folders:
        raise WrongUse(f"{path}: a folder of folds must hold fold_1, fold_2, … as EmoBox's do")
    folds = []
    for folder in folders:
        fold = ListedFold(folder.name.replace("_", " "))
        for part, word in (("train", "train"), ("dev", "valid"), ("test", "test")):
            for file in sorted(folder.glob(f"*{word}*.jsonl")):
                lines = file.read_text(encoding="utf-8").splitlines()
                getattr(fold, part).extend(json.loads(line)["key"] for line in lines if line.strip())
        folds.append(fold)
    return folds
