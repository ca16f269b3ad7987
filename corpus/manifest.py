"""The manifest: one row per utterance, immutable, named by the digest of its bytes."""

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ser.disk.records import FORMAT_VERSION, canonical_json, check_version
from ser.errors import CorruptStore, WrongUse

from .names import Modality
from .schema import OF_ITS_CORPUS, SCHEMA

__all__ = ["Manifest"]


WITH_PARENT = 2  # the format's version of a manifest that names a parent
_AGAIN = "run `ser features` to write it again"
# What a row of a store is computed from: corpus, id, and the digest of its audio or text.
Key = tuple[str, str, str | None]


class Parent(msgspec.Struct, frozen=True):
    """The corpus of the same audio with other transcripts: its audio rows of equal id and digest
    count here too.
    """

    corpus: str
    digest: str  # of its manifest when the transcripts were stored
    transcripts: dict[str, Any] = {}  # how ser made them: the model, and their word error rate


@dataclass(frozen=True, eq=False)
class Manifest:
    """The utterances of one corpus, in corpus order, or of several, which are its `parts`: see
    `joined`.

    `table` has the columns of `SCHEMA`. `synthetic` marks generated speech, whose scores say
    nothing about people. `parent` is set if the transcripts are not the corpus's own, such as an
    ASR's.
    """

    corpus: str
    table: pa.Table
    synthetic: bool = False
    parent: Parent | None = None
    parts: tuple["Manifest", ...] = ()
    _keys: dict[Modality, list[Key]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def from_rows(
        cls, corpus: str, rows: Iterable[Mapping[str, Any]], synthetic: bool = False
    ) -> "Manifest":
        """Build a manifest from mappings; columns that a row lacks are null.

        `text_sha256`, the sha256 of the transcript's UTF-8 bytes, is filled in.
        """
        filled = [dict(row) for row in rows]
        for row in filled:
            if row.get("text") is not None:
                row["text_sha256"] = hashlib.sha256(row["text"].encode()).hexdigest()
        return cls(corpus, pa.Table.from_pylist(filled, schema=SCHEMA), synthetic)

    @classmethod
    def joined(cls, parts: Sequence["Manifest"]) -> "Manifest":
        """Several corpora as one, "a+b", one after the other; it is never written to a store.

        Ids, sessions, dialogues and speakers get their corpus's name before them: speaker 03 of a
        is "a/03".
        """
        tables = []
        for part in parts:
            own = {
                n: [v if v is None else f"{part.corpus}/{v}" for v in part.column(n)]
                for n in OF_ITS_CORPUS
            }
            tables.append(
                pa.table(dict(zip(SCHEMA.names, part.table.columns, strict=True)) | own, SCHEMA)
            )
        table, synthetic = pa.concat_tables(tables), any(part.synthetic for part in parts)
        return cls("+".join(part.corpus for part in parts), table, synthetic, parts=tuple(parts))

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> list[Any]:
        """One column as a list of Python values, nulls as None."""
        return self.table.column(name).to_pylist()

    @cached_property
    def ids(self) -> list[str]:
        """The utterances' ids, in row order."""
        return self.column("id")

    def same(self, other: "Manifest") -> bool:
        """Whether both have the same rows in the same order, and agree in what else they say of the
        corpus.
        """
        about, others = (self.synthetic, self.parent), (other.synthetic, other.parent)
        return self.table.equals(other.table) and about == others

    def without_text(self) -> "Manifest":
        """The same utterances without their transcripts, whose digests stay: text features still
        join to them.
        """
        nulls = pa.nulls(len(self), pa.string())
        table = self.table.set_column(SCHEMA.get_field_index("text"), SCHEMA.field("text"), nulls)
        return Manifest(self.corpus, table, self.synthetic, self.parent)

    def lost(self, other: "Manifest") -> list[str]:
        """The ids that `other` does not have, or no more with the audio or the transcript that they
        have here.
        """
        gone = set[str]()
        for name in ("id", "audio_sha256", "text", "text_sha256"):
            theirs = dict(zip(other.ids, other.column(name), strict=True))
            mine = zip(self.ids, self.column(name), strict=True)
            gone |= {id_ for id_, value in mine if value is not None and theirs.get(id_) is None}
        return [id_ for id_ in self.ids if id_ in gone]

    def gives_way(self, other: "Manifest", replace: bool, where: object) -> bool:
        """Whether `other` takes the place of this one, the latest at `where`.

        It does not if it is the same, or, unless it may `replace` this one, the same without
        transcripts. Otherwise raises `WrongUse` if it lacks utterances, their audio or transcripts,
        unless it may `replace` this one.
        """
        if self.same(other) or (not replace and self.without_text().same(other)):
            return False
        if not replace and (lost := self.lost(other)):
            raise WrongUse(
                f"{where}: corpus {self.corpus} has {len(self)} utterances there, and {len(lost)} of them "
                f"(such as {lost[0]!r}) are missing now, or their audio or transcript is; if a part of the corpus is "
                "away, bring it back; give another corpus a --corpus-name of its own, or let this one take its place "
                "with --replace"
            )
        return True

    def inputs(self, modality: Modality) -> list[str | None]:
        """The digest of what each row's feature is computed from; None if the row has no such
        input.
        """
        return self.column(f"{modality}_sha256")

    def keys(self, modality: Modality) -> list[Key]:
        """What joins each row to a store."""
        if self.parts:
            return [key for part in self.parts for key in part.keys(modality)]
        if modality not in self._keys:
            rows = zip(self.ids, self.inputs(modality), strict=True)
            self._keys[modality] = [(self.corpus, id_, digest) for id_, digest in rows]
        return self._keys[modality]

    @cached_property
    def content(self) -> bytes:
        """The manifest as a Parquet file."""
        metadata = {"corpus": self.corpus, "synthetic": str(self.synthetic).lower()}
        metadata |= {"parent": canonical_json(self.parent).decode()} if self.parent else {}
        version = WITH_PARENT if self.parent else FORMAT_VERSION
        sink = io.BytesIO()
        pq.write_table(
            self.table.replace_schema_metadata({"format_version": str(version), **metadata}), sink
        )
        return sink.getvalue()

    @cached_property
    def digest(self) -> str:
        """Sha256 of `content`: the manifest's name in the store; of several corpora theirs, joined
        with "+".
        """
        if self.parts:
            return "+".join(part.digest for part in self.parts)
        return hashlib.sha256(self.content).hexdigest()

    @classmethod
    def from_content(
        cls, content: bytes, digest: str, where: str, corpus: str | None = None
    ) -> "Manifest":
        """Read a manifest back. Raises `CorruptStore` for other bytes than `digest` names, or of
        another `corpus`.
        """
        if hashlib.sha256(content).hexdigest() != digest:
            raise CorruptStore(f"{where}: the manifest's bytes do not match its name; {_AGAIN}")
        try:
            table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
            table.validate(full=True)  # that texts are UTF-8, among others
            metadata = table.schema.metadata or {}
            check_version(int(metadata.get(b"format_version", 0)), where, WITH_PARENT)
            # cast() imports pyarrow.compute, a tenth of the time that `ser cache list` takes.
            table = (
                table.replace_schema_metadata(None)
                if table.schema.equals(SCHEMA)
                else table.cast(SCHEMA)
            )
            if any(
                one.values.null_count or one.values.values.null_count
                for one in table["votes"].chunks
            ):
                raise ValueError("a vote is null")
            parent = msgspec.json.decode(metadata.get(b"parent", b"null"), type=Parent | None)
            manifest = cls(
                metadata[b"corpus"].decode(), table, metadata[b"synthetic"] == b"true", parent
            )
        except (
            pa.ArrowException,
            ValueError,
            KeyError,
            RecursionError,
            msgspec.MsgspecError,
        ) as error:
            raise CorruptStore(f"{where}: not a manifest of a store; {_AGAIN}") from error
        if manifest.corpus != (corpus or manifest.corpus):
            raise CorruptStore(f"{where}: is the manifest of corpus {manifest.corpus!r}; {_AGAIN}")
        # Another pyarrow would write other bytes for the same table, and so another digest.
        manifest.__dict__["content"] = content
        return manifest
