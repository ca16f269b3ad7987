"""Splits of other toolkits: which utterances train, and which are tested.

EmoBox        fold_1/…_train_….jsonl, …_test_….jsonl; ids under `key`
s3prl, SUPERB Session1/train_meta_data.json, test_meta_data.json: {"meta_data": [{"path": …}]}
X-ARES        wds-audio-train-000.tar, …-valid-…, …-test-…; or wds-audio-fold-1-000.tar
nkululeko, autrainer, SpeechBrain   train.csv, dev.csv, test.csv (or .json)
MSP-Podcast   labels_consensus.csv with Split_Set, or partitions.txt
ser           a CSV with columns id, fold and perhaps part
lists         train.txt, dev.txt, test.txt with an id a line
"""

import hashlib
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from ser.errors import WrongUse

from ..evidence import Split
from .columns import Columns
from .parts import fold_in_name, part_in_name, part_of
from .sheet import ENDINGS, Sheet, sheet_of_objects
from .values import as_names

# How deep below a folder its split lies: fold_1/train.jsonl, meta_data/Session1/train.json.
DEPTH = 3

# Endings of sounds in a tar.
SOUNDS = {"wav", "flac", "mp3", "ogg", "opus", "m4a", "sox", "wma"}

# Bytes of an utterance's JSON, and those of a sound that are hashed at once.
LARGEST_JSON = 1 << 20
PIECE = 1 << 20


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
        # What lies deeper is another's.
        if files and depth > 0:
            break
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


def read_tar(path: Path) -> Sheet:
    """The utterances of a WebDataset, as X-ARES writes one for each part or fold.

    Each is a sound, which is hashed, and a JSON object of what is known of it: `a.wav`, `a.json`.
    """
    objects: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.isfile() or PurePosixPath(member.name).name.startswith("._"):
                    continue
                id_, _, ending = member.name.rpartition(".")
                known = objects.setdefault(id_ or member.name, {})
                if member.size and ending.casefold() == "json":
                    known.update(_json_of_member(archive, member))
                elif member.size and ending.casefold() in SOUNDS:
                    known["sha256"] = _digest(archive, member)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise WrongUse(f"{path}: is not a tar file that can be read ({error})") from None

    for id_, known in objects.items():
        known.pop("id", None)
        known["id"] = id_
    if not objects:
        return Sheet(path.name, path, {"id": []})
    return sheet_of_objects(path, list(objects.values()))


def _json_of_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    """What an utterance's JSON says; nothing where it is no object."""
    file = archive.extractfile(member)
    if file is None or member.size > LARGEST_JSON:
        return {}
    try:
        value = msgspec.json.decode(file.read())
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _digest(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
    file = archive.extractfile(member)
    if file is None:
        return None
    digest = hashlib.sha256()
    while piece := file.read(PIECE):
        digest.update(piece)
    return digest.hexdigest()


def join_members(members: Sequence[Members], source: str) -> list[Split]:
    """The folds that these files make together.

    A file that lists what another does for the same part of the same fold says nothing new: EmoBox
    has EmoDB's folds under two names.
    """
    by_fold: dict[str, dict[str, list[str]]] = {}
    listed: dict[tuple[str, str], list[tuple[str, set[str]]]] = {}
    for of_file in members:
        ids = set(of_file.ids)
        others = listed.setdefault((of_file.fold, of_file.part), [])
        if any(name != of_file.source and ids == other for name, other in others):
            continue
        others.append((of_file.source, ids))
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
