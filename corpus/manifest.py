"""The manifest: one row per utterance, immutable, named by the digest of its bytes."""

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ser.disk.parquet import open_parquet
from ser.disk.records import FORMAT_VERSION, canonical_json, check_version
from ser.errors import CorruptStore, WrongUse

from .names import Modality
from .schema import OF_ITS_CORPUS, SCHEMA

# The format's version of a manifest that names a parent.
WITH_PARENT = 2

_AGAIN = "run the `ser features` command of this corpus again, which writes it again"

# What a row of a store is computed from: corpus, id, and the digest of its audio or text.
Key = tuple[str, str, str | None]


class Parent(msgspec.Struct, frozen=True):
    """The corpus of the same audio with other transcripts.

    Its audio rows of equal id and digest count for the manifest that names it, too.
    """

    corpus: str

    digest: str
    """Of its manifest when the transcripts were stored."""

    transcripts: dict[str, Any] = {}
    """How ser made them: the model, and their word error rate."""


@dataclass(frozen=True, eq=False)
class Manifest:
    """The utterances of one corpus, in corpus order, or of several: see `joined`."""

    corpus: str

    table: pa.Table
    """One row per utterance, with the columns of `SCHEMA`."""

    synthetic: bool = False
    """Whether the speech is generated, so that scores say nothing about people."""

    parent: Parent | None = None
    """Set if the transcripts are not the corpus's own, such as an ASR's."""

    parts: tuple["Manifest", ...] = ()
    """The manifests of several corpora."""

    recordings: Mapping[str, str] = field(default_factory=dict)
    """If its utterances are segments, the sha256 of each audio file, by its path.

    Then `start` and `end` are places in that file, and `audio_sha256` is a `segment_digest`.
    """

    sounds: Mapping[str, str] = field(default_factory=dict)
    """What stands for the samples of audio files that hold the same ones in other bytes.

    By the sha256 of such a file; all other files sound like no other.
    """

    _keys: dict[Modality, list[Key]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def from_rows(
        cls,
        corpus: str,
        rows: Iterable[Mapping[str, Any]],
        synthetic: bool = False,
        recordings: Mapping[str, str] | None = None,
        sounds: Mapping[str, str] | None = None,
    ) -> "Manifest":
        """Build a manifest from mappings; columns that a row lacks are null.

        `text_sha256`, the sha256 of the transcript's UTF-8 bytes, is filled in.
        """
        filled = []
        for row in rows:
            row = dict(row)
            if row.get("text") is not None:
                row["text_sha256"] = hashlib.sha256(row["text"].encode()).hexdigest()
            filled.append(row)

        table = pa.Table.from_pylist(filled, schema=SCHEMA)
        return cls(
            corpus,
            table,
            synthetic,
            recordings=dict(recordings or {}),
            sounds=dict(sounds or {}),
        )

    @classmethod
    def joined(cls, parts: Sequence["Manifest"]) -> "Manifest":
        """Several corpora as one, "a+b", one after the other; it is never written to a store.

        Ids, sessions, dialogues and speakers get their corpus's name before them: speaker 03 of a
        is "a/03".
        """
        names = "+".join(part.corpus for part in parts)
        table = pa.concat_tables([part._with_corpus_in_names() for part in parts])
        synthetic = any(part.synthetic for part in parts)

        sounds: dict[str, str] = {}
        for part in parts:
            sounds.update(part.sounds)

        return cls(names, table, synthetic, parts=tuple(parts), sounds=sounds)

    def _with_corpus_in_names(self) -> pa.Table:
        """The table, with the corpus's name before all that has a name within it alone."""
        columns: dict[str, Any] = dict(zip(SCHEMA.names, self.table.columns, strict=True))

        for name in OF_ITS_CORPUS:
            columns[name] = [
                None if value is None else f"{self.corpus}/{value}" for value in self.column(name)
            ]

        return pa.table(columns, SCHEMA)

    def __len__(self) -> int:
        return self.table.num_rows

    def __repr__(self) -> str:
        return f"<Manifest of {self.corpus}: {len(self)} utterances>"

    def column(self, name: str) -> list[Any]:
        """One column as a list of Python values, nulls as None."""
        return self.table.column(name).to_pylist()

    @cached_property
    def ids(self) -> list[str]:
        """The utterances' ids, in row order."""
        return self.column("id")

    def same(self, other: "Manifest") -> bool:
        """Whether both have the same rows in the same order, and say the same of the corpus."""
        if (self.synthetic, self.parent) != (other.synthetic, other.parent):
            return False
        if self.recordings != other.recordings or self.sounds != other.sounds:
            return False
        return self.table.equals(other.table)

    def without_text(self) -> "Manifest":
        """The same utterances without their transcripts.

        Their digests stay: text features still join to them.
        """
        nulls = pa.nulls(len(self), pa.string())
        table = self.table.set_column(SCHEMA.get_field_index("text"), SCHEMA.field("text"), nulls)
        return replace(self, table=table)

    @property
    def is_segmented(self) -> bool:
        """Whether its utterances are parts of their audio files."""
        return bool(self.recordings)

    def recording_digests(self) -> list[str | None]:
        """The sha256 of the whole audio file of each row, of which a segment is a part."""
        if self.parts:
            digests: list[str | None] = []
            for part in self.parts:
                digests += part.recording_digests()
            return digests

        own = self.column("audio_sha256")
        if not self.recordings:
            return own
        paths = self.column("audio")
        return [self.recordings.get(path, sha) for path, sha in zip(paths, own, strict=True)]

    def lost(self, other: "Manifest") -> list[str]:
        """The ids that `other` lacks, or has without the audio or the transcript they have here."""
        lost = set()

        for name in ("id", "audio_sha256", "text", "text_sha256"):
            theirs = dict(zip(other.ids, other.column(name), strict=True))
            for id_, value in zip(self.ids, self.column(name), strict=True):
                if value is not None and theirs.get(id_) is None:
                    lost.add(id_)

        return [id_ for id_ in self.ids if id_ in lost]

    def gives_way(self, other: "Manifest", replace: bool, store: object) -> bool:
        """Whether `other` takes the place of this one, the latest of `store`.

        It does not if it is the same, or, unless it may `replace` this one, the same without
        transcripts. Otherwise raises `WrongUse` if it lacks utterances, their audio or transcripts,
        unless it may `replace` this one.
        """
        if self.same(other):
            return False
        if replace:
            return True
        if self.without_text().same(other):
            return False

        lost = self.lost(other)
        if lost:
            raise WrongUse(
                f"{store}: corpus {self.corpus} has {len(self)} utterances there, and {len(lost)} "
                f"of them (such as {lost[0]!r}) are missing now, or their audio or transcript is; "
                "if a part of the corpus is away, bring it back; give another corpus a "
                "--corpus-name of its own, or let this one take its place with --replace"
            )
        return True

    def inputs(self, modality: Modality) -> list[str | None]:
        """The digest of what each row's feature is computed from; None where there is no input."""
        return self.column(f"{modality}_sha256")

    def keys(self, modality: Modality) -> list[Key]:
        """What joins each row to a store."""
        if self.parts:
            joined = []
            for part in self.parts:
                joined.extend(part.keys(modality))
            return joined

        if modality not in self._keys:
            rows = zip(self.ids, self.inputs(modality), strict=True)
            self._keys[modality] = [(self.corpus, id_, digest) for id_, digest in rows]
        return self._keys[modality]

    @cached_property
    def content(self) -> bytes:
        """The manifest as a Parquet file."""
        version = WITH_PARENT if self.parent else FORMAT_VERSION
        metadata = {
            "format_version": str(version),
            "corpus": self.corpus,
            "synthetic": str(self.synthetic).lower(),
        }
        if self.parent:
            metadata["parent"] = canonical_json(self.parent).decode()
        if self.recordings:
            metadata["recordings"] = canonical_json(self.recordings).decode()
        if self.sounds:
            metadata["sounds"] = canonical_json(self.sounds).decode()

        sink = io.BytesIO()
        pq.write_table(self.table.replace_schema_metadata(metadata), sink)
        return sink.getvalue()

    @cached_property
    def digest(self) -> str:
        """Sha256 of `content`: the manifest's name in the store.

        Of several corpora theirs, joined with "+".
        """
        if self.parts:
            return "+".join(part.digest for part in self.parts)
        return hashlib.sha256(self.content).hexdigest()

    @classmethod
    def from_content(
        cls, content: bytes, digest: str, source: str, corpus: str | None = None
    ) -> "Manifest":
        """Read a manifest back. `source` is for messages.

        Raises `CorruptStore` for other bytes than `digest` names, or of another `corpus`, and
        `StoreError` for a newer format.
        """
        if hashlib.sha256(content).hexdigest() != digest:
            raise CorruptStore(f"{source}: the manifest's bytes do not match its name; {_AGAIN}")

        try:
            manifest = cls._decode(content, source)
        except (
            pa.ArrowException,
            ValueError,
            KeyError,
            RecursionError,
            msgspec.MsgspecError,
        ) as error:
            raise CorruptStore(f"{source}: not a manifest of a store; {_AGAIN}") from error

        if corpus and manifest.corpus != corpus:
            raise CorruptStore(f"{source}: is the manifest of corpus {manifest.corpus!r}; {_AGAIN}")

        # Another pyarrow would write other bytes for the same table, and so another digest.
        manifest.__dict__["content"] = content
        return manifest

    @classmethod
    def _decode(cls, content: bytes, source: str) -> "Manifest":
        table = open_parquet(content).read(use_threads=False)
        # Among others, that texts are UTF-8.
        table.validate(full=True)

        metadata = table.schema.metadata or {}
        check_version(int(metadata.get(b"format_version", 0)), source, WITH_PARENT)
        corpus = metadata[b"corpus"].decode()
        synthetic = metadata[b"synthetic"] == b"true"
        parent = msgspec.json.decode(metadata.get(b"parent", b"null"), type=Parent | None)

        recordings = msgspec.json.decode(metadata.get(b"recordings", b"{}"), type=dict[str, str])
        sounds = msgspec.json.decode(metadata.get(b"sounds", b"{}"), type=dict[str, str])

        table = _with_schema(table)
        _check_votes(table["votes"])
        return cls(corpus, table, synthetic, parent, recordings=recordings, sounds=sounds)


def _with_schema(table: pa.Table) -> pa.Table:
    """The table with the columns of `SCHEMA`, whoever wrote it. Raises `ValueError`."""
    if table.schema.equals(SCHEMA):
        return table.replace_schema_metadata(None)
    # This imports pyarrow.compute, a tenth of the time that `ser cache list` takes.
    return table.cast(SCHEMA)


def _check_votes(votes: pa.ChunkedArray) -> None:
    """Raise `ValueError` if a rater or a vote is null."""
    for chunk in votes.chunks:
        raters = chunk.values
        if raters.null_count or raters.values.null_count:
            raise ValueError("a vote is null")
