"""Which ids may enter a manifest: they are data from someone else's files, keys of the store, and stand in reports."""

import unicodedata

LONGEST_ID = 255
# Unicode categories that could rewrite a terminal's line or hide in a name: control, format, surrogate, separators.
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def invisible(text: str) -> bool:
    """Whether a text holds what nobody sees on a page."""
    return any(unicodedata.category(character) in INVISIBLE for character in text)


def id_fault(id: str) -> str | None:
    """Why this cannot be an utterance's id, or None."""
    if not id.strip():
        return "the id is empty"
    if len(id) > LONGEST_ID:
        return f"the id {id[:20]!a}… has {len(id)} characters, more than {LONGEST_ID}"
    if invisible(id):
        return f"the id {id!a} holds a control character or is not valid Unicode"
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
