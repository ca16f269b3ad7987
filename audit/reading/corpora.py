"""What a corpus says of its utterances: its folder, its manifest, a store, a table of speakers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ser.cache.store import open_store
from ser.corpus.manifest import Manifest
from ser.corpus.same_audio import sounds_of
from ser.extract.corpora.scan import scan_corpus

from ..evidence import Utterance
from .columns import Columns
from .sheet import Sheet
from .values import as_name, keys_of_values

# Names that mean that nobody knows.
NOT_KNOWN = {"unknown", "nan", "none", "n/a", "na", ""}


def is_store(path: Path) -> bool:
    """Whether a folder is a store of ser."""
    return (path / "manifests").is_dir()


def read_store(path: Path) -> tuple[dict[str, dict[str, Utterance]], list[str]]:
    """What the manifests of a store say, by corpus and id, and a note for each."""
    store = open_store(path)
    by_corpus = {}
    notes = []
    for corpus in store.corpora():
        by_corpus[corpus] = _of_manifest(store.manifest(corpus))
        notes.append(f"{path}: {len(by_corpus[corpus]):,} utterances of corpus {corpus}")
    return by_corpus, notes


def read_corpus(path: Path) -> tuple[dict[str, Utterance], list[str]]:
    """What a corpus on disk says, by id, and a note; every audio file is hashed."""
    scan = scan_corpus(path)
    utterances = _of_manifest(scan.manifest)
    return utterances, [f"{path}: {len(utterances):,} utterances, read as {scan.format}"]


def _of_manifest(manifest: Manifest) -> dict[str, Utterance]:
    utterances = {}
    rows = zip(
        manifest.ids,
        manifest.column("speaker"),
        manifest.column("dialogue"),
        manifest.column("text"),
        manifest.column("label"),
        sounds_of(manifest),
        strict=True,
    )
    for id_, speaker, dialogue, text, label, sound in rows:
        utterances[id_] = Utterance(speaker, dialogue, text, label, sound)
    return utterances


def utterances_of(sheet: Sheet, columns: Columns, with_labels: bool = True) -> dict[str, Utterance]:
    """What the rows of a file say of their utterances, by id; nothing where they say nothing."""
    about = {"speaker", "dialogue", "text", "sound"}
    if with_labels:
        about.add("truth")
    if about.isdisjoint(columns.headings):
        return {}

    ids = sheet.columns[columns.headings["id"]]
    speakers = _column(sheet, columns, "speaker")
    dialogues = _column(sheet, columns, "dialogue")
    texts = _column(sheet, columns, "text")
    labels = _column(sheet, columns, "truth" if with_labels else "")
    sounds = _column(sheet, columns, "sound")

    utterances = {}
    rows = zip(ids, speakers, dialogues, texts, labels, sounds, strict=True)
    for id_, speaker, dialogue, text, label, sound in rows:
        if id_ is not None:
            utterances[str(id_).strip()] = Utterance(speaker, dialogue, text, label, sound)
    return utterances


def _column(sheet: Sheet, columns: Columns, held: str) -> Sequence[str | None]:
    heading = columns.headings.get(held)
    if heading is None or heading not in sheet.columns:
        return [None] * len(sheet)

    values = sheet.columns[heading]
    keys = keys_of_values(values)
    value_of = dict(zip(keys, values, strict=True))
    name_of = {key: _known_name(value) for key, value in value_of.items()}
    return [name_of[key] for key in keys]


def _known_name(value: Any) -> str | None:
    name = as_name(value)
    return None if name is None or name.casefold() in NOT_KNOWN else name
