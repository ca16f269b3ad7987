"""Which rows of a reading may enter a manifest: by their ids and audio paths."""

import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any

from ser.disk.paths import real_path
from ser.errors import printable

from .reading import Problem, Reading

# Unicode categories that could rewrite a terminal's line or hide in a name: control, format,
# surrogate, separators.
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def admit(reading: Reading) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The rows whose ids and audio paths may enter a manifest, and all problems so far."""
    rows = []
    problems = list(reading.problems)
    # By their NFC form.
    earlier_ids: dict[str, str] = {}

    for row in reading.rows:
        id = row["id"]
        audio = row.get("audio") or ""
        opened = audio if reading.paths != "unopened" else ""

        fault = _id_fault(row, opened, earlier_ids) or _path_fault(opened, reading)
        if fault is None:
            rows.append(row)
            continue
        where = row.get("where", "")
        reason = f"{where}: {fault}" if where else fault
        problems.append(Problem(printable(id), printable(audio or reading.corpus), reason))

    return rows, problems


def _id_fault(row: dict[str, Any], audio: str, earlier_ids: dict[str, str]) -> str | None:
    """Why these names may not be used, or None. A new id is added to `earlier_ids`.

    Two spellings of an id in Unicode (NFC and NFD) look alike, and count as one.
    """
    id = row["id"]
    if not id.strip():
        return "the id is empty"
    if _has_invisible(id):
        return f"the id {id!a} holds a control character or is not valid Unicode"
    if _has_invisible(audio):
        return f"the audio path {audio!a} holds a control character or is not valid Unicode"

    normal = unicodedata.normalize("NFC", id)
    earlier = earlier_ids.get(normal)
    if earlier == id:
        cause = ""
        if row.get("id_is_path"):
            cause = ": it is the audio path, since no column id gives another; add a column id"
        return f"the id {id} is there twice{cause}"
    if earlier is not None:
        return f"the id {id} is there twice, in two Unicode spellings (NFC and NFD)"
    earlier_ids[normal] = id
    return None


def _has_invisible(text: str) -> bool:
    return any(unicodedata.category(character) in INVISIBLE for character in text)


def _path_fault(audio: str, reading: Reading) -> str | None:
    """Why audio may not be opened there, or None."""
    root = reading.root
    path = PurePosixPath(audio.replace("\\", "/"))
    if path.is_absolute() or audio[1:2] == ":":
        return f"the audio path {audio} is absolute; give it relative to {root}"
    if ".." in path.parts:
        return f"the audio path {audio} leaves the corpus with '..'; move the file under {root}"
    if reading.paths == "inside" and not _is_inside(root / audio, root):
        return (
            f"the audio path {audio} is a link that leaves the corpus; move the file under {root}"
        )
    return None


def _is_inside(path: Path, root: Path) -> bool:
    return real_path(path).is_relative_to(real_path(root))
