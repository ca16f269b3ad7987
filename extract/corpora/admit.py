"""Which rows of a reading may enter a manifest: by their ids and audio paths."""

import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any

from ser.disk.paths import real_path
from ser.errors import printable

from .audio_paths import AudioPaths
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
    files = AudioPaths(reading.root)
    # Audio paths that are spelled otherwise than their files.
    respelled: dict[str, str] = {}

    for row in reading.rows:
        id = row["id"]
        audio = row.get("audio") or ""
        opened = audio if reading.paths != "unopened" else ""

        fault = _id_fault(row, opened, earlier_ids) or _path_fault(opened, reading.root)
        if fault is None and opened and reading.paths == "inside":
            path = files.find(opened)
            if path != opened:
                respelled[opened] = path
                row = {**row, "audio": path}
            fault = _link_fault(path, reading.root)

        if fault is None:
            rows.append(row)
            continue
        line = row.get("line", "")
        reason = f"{line}: {fault}" if line else fault
        problems.append(Problem(printable(id), printable(audio or reading.corpus), reason))

    if respelled:
        first, path = next(iter(respelled.items()))
        reading.warnings.append(
            f"{len(respelled)} audio paths differ from the names of their files in slashes, case "
            f"or Unicode form: {first} is read from {path}"
        )
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
        if row.get("id_is_span"):
            cause = ": the same part of one recording; leave one of them out, or add a column id"
        return f"the id {id} is there twice{cause}"
    if earlier is not None:
        return f"the id {id} is there twice, in two Unicode spellings (NFC and NFD)"
    earlier_ids[normal] = id
    return None


def _has_invisible(text: str) -> bool:
    return any(unicodedata.category(character) in INVISIBLE for character in text)


def _path_fault(audio: str, root: Path) -> str | None:
    """Why a path may not be followed, or None."""
    path = PurePosixPath(audio.replace("\\", "/"))
    if path.is_absolute() or audio[1:2] == ":":
        return f"the audio path {audio} is absolute; give it relative to {root}"
    if ".." in path.parts:
        return f"the audio path {audio} leaves the corpus with '..'; move the file under {root}"
    return None


def _link_fault(audio: str, root: Path) -> str | None:
    """Why a file may not be opened, or None."""
    if real_path(root / audio).is_relative_to(real_path(root)):
        return None
    return f"the audio path {audio} is a link that leaves the corpus; move the file under {root}"
