"""Which ids and audio paths may enter a manifest. Both are data from someone else's files, never trusted."""

import unicodedata
from pathlib import Path, PurePosixPath

LONGEST_ID = 255
# Unicode categories that could rewrite a terminal's line or hide in a name: control, format, surrogate, separators.
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def id_fault(id: str) -> str | None:
    """Why this cannot be an utterance's id, or None. Ids are keys of the store and come back in reports."""
    if not id.strip():
        return "the id is empty"
    if any(unicodedata.category(c) in INVISIBLE for c in id):
        return f"the id {id!a} holds a control character or is not valid Unicode"
    if len(id) > LONGEST_ID:
        return f"the id {id[:20]}… has {len(id)} characters, more than {LONGEST_ID}"
    return None


class IdsSeen:
    """Refuses ids that repeat, or differ from an earlier one only in how Unicode spells them (NFC against NFD)."""

    def __init__(self) -> None:
        self._spelling: dict[str, str] = {}

    def fault(self, id: str) -> str | None:
        """Why this id cannot follow the earlier ones, or None, and then it is remembered."""
        earlier = self._spelling.get(key := unicodedata.normalize("NFC", id))
        if earlier is None:
            self._spelling[key] = id
            return None
        if earlier == id:
            return f"the id {id} is there twice"
        return f"the id {id} is there twice, in two Unicode spellings (NFC and NFD)"


def path_fault(audio: str, root: Path, follow_links: bool) -> str | None:
    """Why this path cannot be an utterance's audio, or None. `audio` is relative to `root`.

    `follow_links`: whoever laid out a corpus folder may have linked parts of it from another disk, but the paths that
    a table names stay under its folder, links included.
    """
    if any(unicodedata.category(c) in INVISIBLE for c in audio):
        return f"the audio path {audio!a} holds a control character or is not valid Unicode"
    pure = PurePosixPath(audio.replace("\\", "/"))
    if pure.is_absolute() or audio[1:2] == ":":
        return f"the audio path {audio} is absolute; give it relative to {root}"
    if ".." in pure.parts:
        return f"the audio path {audio} leaves the corpus with '..'; move the file under {root}"
    if not follow_links and not (root / audio).resolve().is_relative_to(root.resolve()):
        return f"the audio path {audio} is a link that leaves the corpus; move the file under {root}"
    return None
