"""From a path to a manifest: find the layout, read it, hash every audio file, and name every
problem.

Each layout has a reader, a function from a path to a `Reading`, which `FORMATS` names. Readers
import this module, and are reached by name.
"""

import hashlib
import os
import pkgutil
import re
import shlex
import unicodedata
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ser.corpus.manifest import Manifest, Parent
from ser.corpus.names import check_name
from ser.disk.read import LARGE, read_named
from ser.errors import CodedAudio, UtteranceError, WrongUse, printable, unknown

from ..audio import open_audio, read_bytes
from . import DETECTORS, FITS, FORMATS, READ_DESCRIBED, TRANSCRIPTS

# Unicode categories that could rewrite a terminal's line or hide in a name: control, format,
# surrogate, separators.
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
TABLES = {".csv", ".tsv", ".jsonl", ".parquet"}  # endings of the files that are read as tables


@dataclass(frozen=True)
class Problem:
    """Something wrong with a corpus, in one sentence.

    An `audio` or `text` problem belongs to a manifest row whose audio or transcript cannot be used,
    a `corpus` problem to something that is not in the manifest at all: a missing session, a refused
    row.
    """

    id: str | None
    path: str
    reason: str
    kind: Literal["audio", "text", "corpus"] = "corpus"

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.id + ': ' if self.id else ''}{self.reason}")


@dataclass(frozen=True)
class Reading:
    """A corpus as its reader found it, before audio is hashed and ids are checked.

    `rows` have the manifest's columns (`audio` a path under `root` with forward slashes), and may
    say `where` they come from ("line 7"). `synthetic` marks generated speech. `known` are the
    published counts of the whole corpus, by the names in `counts.py`, if it ought to be whole.
    `paths`: parts of a corpus folder may be links to another disk, but the audio that a table names
    stays inside its folder, links included, if it is opened.
    """

    corpus: str
    root: Path
    rows: list[dict[str, Any]]
    problems: list[Problem] = field(default_factory=list)
    synthetic: bool = False
    warnings: list[str] = field(default_factory=list)
    known: dict[str, Any] = field(default_factory=dict)
    paths: Literal["linked", "inside", "unopened"] = "linked"


@dataclass(frozen=True, eq=False)
class Scan:
    """A corpus as found on disk.

    The manifest's audio paths are relative to `root`. `problems` names each utterance whose audio
    or transcript cannot be used (it keeps its row), and everything that has no row at all.
    """

    manifest: Manifest
    root: Path
    format: str
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    known: dict[str, Any] = field(default_factory=dict)

    def unusable(self, modality: Literal["audio", "text"]) -> dict[str, Problem]:
        """The manifest's ids whose audio (or text) cannot be used, each with its first problem."""
        return {p.id: p for p in reversed(self.problems) if p.kind == modality and p.id is not None}

    @property
    def refused(self) -> list[Problem]:
        """The problems of what has no row in the manifest and cannot be quarantined: name them, or
        stop.
        """
        return [problem for problem in self.problems if problem.kind == "corpus"]

    def with_texts(
        self,
        texts: Mapping[str, str],
        problems: list[Problem],
        name: str,
        made_by: Mapping[str, Any] | None = None,
    ) -> "Scan":
        """The same audio with the transcripts `texts`, by id, as corpus `name`, whose parent is
        this one.

        `problems` replace those of the transcripts; `made_by` says how ser made them.
        """
        parent = self.manifest
        rows = [
            {**row, "text": texts.get(row["id"]), "text_sha256": None}
            for row in parent.table.to_pylist()
        ]
        manifest = Manifest.from_rows(name, rows, parent.synthetic)
        if name != parent.corpus:
            manifest = replace(
                manifest, parent=Parent(parent.corpus, parent.digest, dict(made_by or {}))
            )
        return replace(
            self,
            manifest=manifest,
            problems=[*(p for p in self.problems if p.kind != "text"), *problems],
        )


def read_corpus(
    path: str | Path,
    format: str | None = None,
    name: str | None = None,
    text: str | Path | None = None,
    limit: int | None = None,
) -> Scan:
    """Scan a corpus.

    `format` is detected when None. `name` is the corpus' name in the store. `text` is a CSV, TSV or
    JSONL file with columns `id` and `text` whose transcripts replace the corpus' own, under another
    corpus name: an utterance that it lacks has no text, and is named in the problems. `limit` keeps
    the first utterances only. Raises `WrongUse` if the path is not a corpus of that format.
    """
    path = Path(path).expanduser()
    if limit is not None and limit < 1:
        raise WrongUse(f"a limit of {limit} leaves no utterance; give 1 or more")
    if name is not None:
        check_name("corpus", name)
    format = find_format(path, format)
    place = FORMATS.get(format, Path(format).expanduser())
    reading: Reading = (
        _resolve(READ_DESCRIBED)(path, place) if isinstance(place, Path) else _resolve(place)(path)
    )
    rows, problems = admit(reading)
    corpus, texts, without_text = _name_from(reading.corpus), dict[str, str](), list[Problem]()
    if text is not None:
        text = Path(text).expanduser()
        name = check_name("corpus", name or f"{corpus}-{_name_from(text.stem)}")
        texts, without_text = _resolve(TRANSCRIPTS)(text, [row["id"] for row in rows])
    if limit is not None:
        rows = rows[:limit]
        kept = {None, *(row["id"] for row in rows)}
        problems, without_text = (
            [p for p in some if p.id in kept] for some in (problems, without_text)
        )
    if not rows:
        first = f"; first problem: {problems[0]}" if problems else ""
        raise WrongUse(f"{path} holds no utterance that can be read as {format}{first}")
    rows, faults = _measure(rows, reading.root)
    manifest = Manifest.from_rows(corpus if text else name or corpus, rows, reading.synthetic)
    scan = Scan(
        manifest, reading.root, format, [*problems, *faults], reading.warnings, reading.known
    )
    return scan.with_texts(texts, without_text, name) if text and name else scan


def find_format(path: str | Path, format: str | None = None) -> str:
    """The format of the corpus at `path`, or the given one: a quick check, before anything slow.

    Raises `WrongUse` if nothing is there, if it does not look like a corpus, or for an unknown
    format.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise WrongUse(f"{path} does not exist; give the folder of a corpus, or a table file")
    if format is not None and format not in FORMATS and not format.endswith(".toml"):
        raise unknown("corpus format", format, [*FORMATS, "FILE.toml"])
    if format is not None or not path.is_dir():
        return format or "table"
    for format, inside in DETECTORS.items():
        if any(path.glob(inside)):
            return format
    for format, place in FORMATS.data.items():
        if isinstance(place, Path) and _resolve(FITS)(path, place):
            return format
    if sessions := sorted(path.glob(f"*/{DETECTORS['iemocap']}")):
        raise WrongUse(
            f"{path} is not a corpus, but the folder inside it is: give {sessions[0].parents[1]}"
        )
    tables = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in TABLES)
    hint = (
        f"it holds {tables[0]}: give that file"
        if tables
        else "give a CSV, TSV, Parquet or JSONL file"
    )
    raise WrongUse(
        f"{path} is not a corpus that ser knows: neither laid out nor named as any of {', '.join(FORMATS)}; describe "
        f"it in a TOML file for --format (docs/add-a-corpus.md), or to read it as a table, {hint}"
    )


def _resolve(reference: str | Callable[..., Any]) -> Callable[..., Any]:
    return pkgutil.resolve_name(reference) if isinstance(reference, str) else reference


def _name_from(stem: str) -> str:
    return (
        re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:64] or "corpus"
    )  # as long as `check_name` allows


def admit(reading: Reading) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The rows whose ids and audio paths may enter a manifest, and all problems so far."""
    ids: dict[str, str] = {}  # by their NFC form
    rows, problems = [], list(reading.problems)
    for row in reading.rows:
        id, audio = row["id"], row.get("audio") or ""
        if fault := _fault(id, audio if reading.paths != "unopened" else "", reading, ids):
            reason = f"{row.get('where', '')}: {fault}".removeprefix(": ")
            problems.append(Problem(printable(id), printable(audio or reading.corpus), reason))
        else:
            rows.append(row)
    return rows, problems


def _fault(id: str, audio: str, reading: Reading, ids: dict[str, str]) -> str | None:
    """Why these cannot be an utterance's id and audio path, or None. Adds the id to the earlier
    `ids`.

    Two spellings of an id in Unicode (NFC and NFD) look alike, and count as one.
    """
    if not id.strip():
        return "the id is empty"
    for name, text in (("id", id), ("audio path", audio)):
        if any(unicodedata.category(character) in INVISIBLE for character in text):
            return f"the {name} {text!a} holds a control character or is not valid Unicode"
    if earlier := ids.get(normal := unicodedata.normalize("NFC", id)):
        return f"the id {id} is there twice" + (
            "" if earlier == id else ", in two Unicode spellings (NFC and NFD)"
        )
    ids[normal] = id
    root, pure = reading.root, PurePosixPath(audio.replace("\\", "/"))
    if pure.is_absolute() or audio[1:2] == ":":
        return f"the audio path {audio} is absolute; give it relative to {root}"
    if ".." in pure.parts:
        return f"the audio path {audio} leaves the corpus with '..'; move the file under {root}"
    if reading.paths == "inside" and not (root / audio).resolve().is_relative_to(root.resolve()):
        return (
            f"the audio path {audio} is a link that leaves the corpus; move the file under {root}"
        )
    return None


def _measure(rows: list[dict[str, Any]], root: Path) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The rows with `audio_sha256` and `duration` from the files themselves, and the problems of
    the files.
    """
    with ThreadPoolExecutor(
        min(8, os.cpu_count() or 1)
    ) as pool:  # reading and hashing release the GIL
        probes = list(pool.map(lambda row: probe(root / row["audio"]), rows))
    wrong = [(row, fault) for row, (_, fault) in zip(rows, probes, strict=True) if fault]
    problems = [Problem(row["id"], row["audio"], str(fault), "audio") for row, fault in wrong]
    coded = [row["audio"] for row, fault in wrong if isinstance(fault, CodedAudio)]
    if coded and len(coded) == sum(columns["audio_sha256"] is not None for columns, _ in probes):
        endings = {shlex.quote(f"*{PurePosixPath(audio).suffix}") for audio in coded}
        named = " -o ".join(f"-name {ending}" for ending in sorted(endings))
        each = """-exec sh -c 'ffmpeg -i "$1" -vn "$1.wav" && mv "$1.wav" "${1%.*}.wav"' _ {} \\;"""
        convert = f"convert them with `find -L {shlex.quote(str(root))}/ \\( {named} \\) {each}`"
        problems.insert(
            0, Problem(None, str(root), f"no file here can be decoded as it is: {convert}", "audio")
        )
    return [row | columns for row, (columns, _) in zip(rows, probes, strict=True)], problems


def probe(path: Path) -> tuple[dict[str, Any], UtteranceError | None]:
    """Hash an audio file and measure it by its header. A fault of the file is returned beside that,
    never raised.

    `audio_sha256` is None if the file cannot be read, `duration` (seconds) if its header is wrong.
    Raises `CorpusError` if the disk, the mount or the memory fails. The whole file is read every
    time: size and modification time do not show changed bytes.
    """
    columns: dict[str, Any] = {"audio_sha256": None, "duration": None}
    try:
        data = read_bytes(path)
        columns["audio_sha256"] = hashlib.sha256(data).hexdigest()
        with open_audio(data, path.name) as file:
            columns["duration"] = file.frames / file.samplerate
    except UtteranceError as fault:
        return columns, type(fault)(str(fault))  # without its traceback, which holds the file
    return columns, None


def visible(folder: Path, suffix: str) -> list[Path]:
    """The entries of `folder` with that suffix, sorted, without the `._*` files that a Mac leaves
    beside real ones.
    """
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in entries if p.suffix.lower() == suffix and not p.name.startswith("."))


def read_text(path: Path, other: str = "cp1252") -> str:
    """The text of a file: UTF-16 by its byte order mark, else UTF-8, else the `other` encoding,
    else Latin-1.
    """
    raw = read_named(path, LARGE)
    for encoding in (
        ("utf-16",) if raw[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else ("utf-8-sig", other)
    ):
        with suppress(UnicodeError):
            return raw.decode(encoding)
    return raw.decode("latin-1")
