"""The manifest: one row per utterance, immutable, named by the digest of its bytes; and the names
that are allowed.
"""

import contextlib
import datetime
import hashlib
import io
import re
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ser.errors import CorruptStore, StoreError, WrongUse

from .atomic_io import folders_in, put_files, read_small
from .spec import FORMAT_VERSION, Modality, canonical_json, check_version

__all__ = ["Manifest"]

# Feature and corpus names become folders; ids never do.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
RESERVED = {
    "manifests",
    "transcripts",
    "tmp",
    "bad",
    "lost+found",
}  # the last one is made with an ext file system
LOG = "log.jsonl"
WITH_PARENT = 2  # the format's version of a manifest that names a parent
_DIGEST = re.compile(r"[0-9a-f]{64}")
_AGAIN = "run `ser features` to write it again"
# The raw labels that count as each class of a policy, in both stages; every name of a category; the
# counts of IEMOCAP's release; and the types of a manifest's columns.
LABEL_POLICIES, _NAMES, IEMOCAP, _COLUMNS = (
    tomllib.loads(Path(__file__).with_name(f"{name}.toml").read_text(encoding="utf-8"))
    for name in ("policies", "categories", "iemocap", "columns")
)
_CODE_OF = {name: code for code, names in _NAMES.items() for name in names}


def code(raw: str) -> str:
    """The short code of a raw category, or the category in lower case if it has none."""
    name = raw.strip().casefold()
    return _CODE_OF.get(name, name)


def is_name(name: str) -> bool:
    """Whether a feature or a corpus can have this name."""
    return NAME.fullmatch(name) is not None and name not in RESERVED


def check_name(kind: str, name: str) -> str:
    """A feature's or corpus's name, fit to be a folder. Raises `WrongUse`."""
    if not is_name(name):
        raise WrongUse(
            f"a {kind} cannot be called {name!r}; use at most 64 letters, digits, '-', '_' and '.'"
        )
    return name


# What a row of a store is computed from: corpus, id, and the digest of its audio or text.
Key = tuple[str, str, str | None]


def _arrow_type(name: Any) -> pa.DataType:
    return pa.list_(_arrow_type(name[0])) if isinstance(name, list) else pa.type_for_alias(name)


SCHEMA = pa.schema([(column, _arrow_type(name)) for column, name in _COLUMNS.items()])
OF_ITS_CORPUS = (
    "id",
    "session",
    "dialogue",
    "speaker",
)  # columns that name something within one corpus alone


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


def list_corpora(store: Path) -> list[str]:
    """The names of the corpora that have a manifest in a store."""
    return [folder.name for folder in folders_in(store / "manifests")]


def read_manifest(store: Path, corpus: str, digest: str | None = None) -> Manifest:
    """A corpus's manifest by its digest (None: the latest).

    Raises `WrongUse` for an unknown digest and `CorruptStore` for a manifest that cannot be
    trusted.
    """
    folder = store / "manifests" / corpus
    if digest is None:
        latest = read_small(folder / "latest", _AGAIN).decode(errors="replace")
        digest = latest.removesuffix("\n")
        if not _DIGEST.fullmatch(digest) or digest == latest:
            raise CorruptStore(f"{folder / 'latest'}: altered or cut short; {_AGAIN}")
    elif not _DIGEST.fullmatch(digest) or not (folder / f"{digest}.parquet").exists():
        raise WrongUse(f"{folder}: has no manifest {digest!r}")
    path = folder / f"{digest}.parquet"
    return Manifest.from_content(read_small(path, _AGAIN), digest, str(path), corpus)


class Generation(msgspec.Struct, frozen=True):
    """A manifest that is or was its corpus's latest: one line of the corpus's log."""

    digest: str
    time: str  # UTC, as in 2026-11-22T13:48:15+00:00
    utterances: int | None = None
    command: str | None = None  # None: of a version of ser that kept no log


def _utc(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def make_latest(store: Path, manifest: Manifest, command: str) -> None:
    """Make a manifest its corpus's latest, write it if it is missing, and add a line to the
    corpus's log.
    """
    folder, name, log = store / "manifests" / manifest.corpus, manifest.digest, b""
    with contextlib.suppress(StoreError):
        log = read_small(folder / LOG)
    log += msgspec.json.encode(Generation(name, _utc(time.time()), len(manifest), command)) + b"\n"
    files = {f"{name}.parquet": manifest.content, LOG: log, "latest": f"{name}\n".encode()}
    put_files(store, folder, files)


def generations(folder: Path) -> list[Generation]:
    """Every manifest that has been the latest in a corpus's folder, oldest first, each as often as
    it has been.

    One without a readable line in the log, such as an older ser's, has the time of its file.
    """
    past = []
    for line in read_small(folder / LOG).splitlines() if (folder / LOG).exists() else ():
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            past.append(msgspec.json.decode(line, type=Generation))
    logged = {one.digest for one in past}
    files = [file for file in folder.glob("*.parquet") if file.stem not in logged]
    past += [Generation(file.stem, _utc(file.stat().st_mtime)) for file in files]
    return sorted(past, key=lambda one: one.time)
