"""Splits of other toolkits: which utterances train, and which are tested.

EmoBox        fold_1/…_train_….jsonl, …_test_….jsonl; ids under `key`
s3prl, SUPERB Session1/train_meta_data.json, test_meta_data.json: {"meta_data": [{"path": …}]}
X-ARES        wds-audio-train-000.tar, …-valid-…, …-test-…; or wds-audio-fold-1-000.tar
nkululeko, autrainer, SpeechBrain   train.csv, dev.csv, test.csv (or .json)
MSP-Podcast   labels_consensus.csv with Split_Set, or partitions.txt
ser           a CSV with columns id, fold and perhaps part
lists         train.txt, dev.txt, test.txt with an id a line
"""

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser.errors import WrongUse

from ..evidence import Split
from .columns import Columns
from .parts import fold_in_name, part_in_name, part_of
from .sheet import ENDINGS, Sheet
from .values import as_names

# How deep below a folder its split lies: fold_1/train.jsonl.
DEPTH = 2


@dataclass(frozen=True)
class Members:
    """Ids that one file puts into one part of one fold."""

    source: str
    fold: str
    part: str
    ids: list[str]


def files_of_split(folder: Path) -> list[Path]:
    """The files of a folder whose names say a part or a fold, in order."""
    files = []
    for depth in range(DEPTH):
        for path in sorted(folder.glob("/".join(["*"] * (depth + 1)))):
            if path.suffix.lower() not in {*ENDINGS, ".tar"} or not path.is_file():
                continue
            # EmoBox has the lines of some parts once more as one object.
            if path.suffix.lower() == ".json" and path.with_suffix(".jsonl").is_file():
                continue
            # A folder's own name may say the part: train/list.txt.
            name = str(path.relative_to(folder).with_suffix(""))
            if part_in_name(name) or (path.suffix == ".tar" and fold_in_name(name)):
                files.append(path)
    return files


def part_and_fold(path: Path, root: Path | None) -> tuple[str | None, str]:
    """The part and the fold that a file's name says; "" for no fold."""
    name = str(path.relative_to(root).with_suffix("")) if root else path.stem
    return part_in_name(path.stem) or part_in_name(name), fold_in_name(name) or ""


def read_members(sheet: Sheet, columns: Columns, part: str | None, fold: str) -> list[Members]:
    """What a file says of parts: by its columns, or by the `part` and `fold` that its name says."""
    if "id" not in columns:
        raise WrongUse(
            f"{sheet.path}: no column names the utterances; its columns are "
            f"{', '.join(sheet.headings)}: say which with --columns id=…"
        )
    ids = [str(value).strip() for value in sheet.columns[columns.headings["id"]]]

    folds = _column(sheet, columns, "fold") or [fold] * len(ids)
    words = _column(sheet, columns, "part")
    if words is None and part is None:
        return _tested_in_turn(sheet, ids, folds)

    members: dict[tuple[str, str], list[str]] = {}
    for row, id_ in enumerate(ids):
        in_part = part if words is None else part_of(words[row])
        if in_part is not None:
            members.setdefault((folds[row], in_part), []).append(id_)
    return [
        Members(sheet.source, in_fold, in_part, of_part)
        for (in_fold, in_part), of_part in members.items()
    ]


def corpora_before_ids(sheet: Sheet, columns: Columns) -> set[str]:
    """The names of corpora that stand before all ids of theirs.

    EmoBox writes `{"key": "emodb-03a01Fa", "dataset": "emodb", …}`.
    """
    corpora = sheet.columns.get("dataset")
    if corpora is None or columns.headings.get("id") not in sheet.columns:
        return set()

    before = set()
    elsewhere = set()
    ids = sheet.columns[columns.headings["id"]]
    for corpus, id_ in zip(corpora, ids, strict=True):
        if str(id_).startswith(f"{corpus}-"):
            before.add(str(corpus))
        else:
            elsewhere.add(str(corpus))
    return before - elsewhere


def names_parts(sheet: Sheet, columns: Columns) -> bool:
    """Whether a file's columns put utterances into parts or folds."""
    if "fold" in columns:
        return True
    words = _column(sheet, columns, "part")
    return words is not None and any(part_of(word) for word in words)


def _column(sheet: Sheet, columns: Columns, held: str) -> list[str] | None:
    if held not in columns:
        return None
    return [name or "" for name in as_names(sheet.columns[columns.headings[held]])]


def _tested_in_turn(sheet: Sheet, ids: list[str], folds: Sequence[str]) -> list[Members]:
    """Folds without parts: each utterance is tested in its fold, and trains in the others."""
    members = []
    for fold in dict.fromkeys(folds):
        tested = [id_ for id_, of_id in zip(ids, folds, strict=True) if of_id == fold]
        trained = [id_ for id_, of_id in zip(ids, folds, strict=True) if of_id != fold]
        members.append(Members(sheet.source, fold, "test", tested))
        members.append(Members(sheet.source, fold, "train", trained))
    return members


def read_tar(path: Path, part: str | None, fold: str) -> tuple[list[str], str | None, str]:
    """The ids in a WebDataset, as X-ARES writes one for each part or fold."""
    try:
        with tarfile.open(path) as archive:
            names = [name for name in archive.getnames() if not name.startswith("._")]
    except (OSError, tarfile.TarError, EOFError) as error:
        raise WrongUse(f"{path}: is not a tar file that can be read ({error})") from None
    # An utterance is a sound and its labels: a.wav, a.json.
    ids = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    return ids, part, fold


def join_members(members: Sequence[Members], source: str) -> list[Split]:
    """The folds that these files make together."""
    by_fold: dict[str, dict[str, list[str]]] = {}
    for of_file in members:
        parts = by_fold.setdefault(of_file.fold, {})
        parts.setdefault(of_file.part, []).extend(of_file.ids)
    return [Split(source, fold, parts) for fold, parts in by_fold.items()]


def splits_in_json(path: Path, value: Any) -> list[Split]:
    """The splits of a JSON object of parts, or of folds of parts: `{"train": [id, …], …}`."""
    if not isinstance(value, dict) or not value:
        return []
    if all(isinstance(ids, list) and part_of(part) for part, ids in value.items()):
        return [Split(path.name, "", _parts_of_json(value))]

    splits = []
    for fold, parts in value.items():
        if not isinstance(parts, dict) or not parts:
            return []
        if not all(isinstance(ids, list) and part_of(part) for part, ids in parts.items()):
            return []
        splits.append(Split(path.name, fold, _parts_of_json(parts)))
    return splits


def _parts_of_json(parts: dict[str, list[Any]]) -> dict[str, list[str]]:
    named: dict[str, list[str]] = {}
    for word, members in parts.items():
        ids = []
        for member in members:
            if isinstance(member, dict):
                member = next(
                    (member[key] for key in ("id", "key", "path", "wav", "file") if key in member),
                    None,
                )
            if member is not None:
                ids.append(str(member))
        named[part_of(word) or word] = ids
    return named
