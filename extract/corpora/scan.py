"""From a path to a manifest: find the layout, read it, hash every audio file, and name every problem.

Each layout has a reader, a function from a path to a `Reading`, which `FORMATS` names. Readers import from here, and
are imported by their names alone.
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

from ser.cache.atomic_io import LARGE, read_named
from ser.cache.manifest import Manifest, Parent
from ser.cache.store import check_name
from ser.errors import CodedAudio, UtteranceError, WrongUse, printable, unknown

from ..audio import open_audio, read_bytes
from . import DETECTORS, FITS, FORMATS, READ_DESCRIBED, TRANSCRIPTS

# Unicode categories that could rewrite a terminal's line or hide in a name: control, format, surrogate, separators.
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


@dataclass(frozen=True)
class Problem:
    """Something wrong with a corpus, in one sentence.

    `kind` says what it touches: `audio` and `text` problems belong to a manifest row whose audio or transcript cannot
    be used, and `corpus` problems to something that is not in the manifest at all: a missing session, a refused row.
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

    `rows` have the manifest's columns (`audio` a path under `root` with forward slashes), and may say `where` they came
    from ("line 7"). `synthetic` marks generated speech. `known` are the published counts of the whole corpus, by the
    names in `counts.py`, where it ought to be whole. `paths`: whoever laid out a corpus folder may have linked parts of
    it from another disk, but those that a table names stay inside its folder, links included, if they are opened.
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

    The manifest's audio paths are relative to `root`. An utterance whose audio or transcript cannot be used keeps its
    row and stands in `problems`, and so does everything that got no row at all.
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
        """The problems of what has no row in the manifest, so that nobody can quarantine it: name them, or stop."""
        return [problem for problem in self.problems if problem.kind == "corpus"]

    def with_texts(
        self, texts: Mapping[str, str], problems: list[Problem], name: str, made_by: Mapping[str, Any] | None = None
    ) -> "Scan":
        """The same audio with the transcripts `texts`, by id, as corpus `name`, whose parent is this one.

        `problems` take the place of those of the transcripts; `made_by` says how ser made them.
        """
        own = self.manifest
        rows = [{**row, "text": texts.get(row["id"]), "text_sha256": None} for row in own.table.to_pylist()]
        manifest = Manifest.from_rows(check_name("corpus", name), rows, own.synthetic)
        if name != own.corpus:
            manifest = replace(manifest, parent=Parent(own.corpus, own.digest, dict(made_by or {})))
        return replace(self, manifest=manifest, problems=[*(p for p in self.problems if p.kind != "text"), *problems])


def read_corpus(
    path: str | Path,
    format: str | None = None,
    name: str | None = None,
    text: str | Path | None = None,
    limit: int | None = None,
) -> Scan:
    """Scan a corpus.

    `format` is detected when None. `name` is the corpus' name in the store. `text` is a CSV, TSV or JSONL file
    with columns `id` and `text` whose transcripts take the place of the corpus' own, under another corpus name: an
    utterance that it does not name has no text, and is named in the problems.
    `limit` keeps the first utterances only. Raises `WrongUse` if the path is not a corpus of that format.
    """
    path = Path(path).expanduser()
    if limit is not None and limit < 1:
        raise WrongUse(f"a limit of {limit} leaves no utterance; give 1 or more")
    if name is not None:
        check_name("corpus", name)
    format = find_format(path, format)
    place = FORMATS.get(format, Path(format).expanduser())
    reading: Reading = _resolve(READ_DESCRIBED)(path, place) if isinstance(place, Path) else _resolve(place)(path)
    rows, problems = admit(reading)
    own, texts, unnamed = _name_from(reading.corpus), dict[str, str](), list[Problem]()
    if text is not None:
        text = Path(text).expanduser()
        texts, unnamed = _resolve(TRANSCRIPTS)(text, [row["id"] for row in rows])
    if limit is not None:
        rows = rows[:limit]
        kept = {row["id"] for row in rows}
        # Problems of utterances beyond the limit are no news to someone who asked for a few.
        problems, unnamed = ([p for p in of if p.id is None or p.id in kept] for of in (problems, unnamed))
    if not rows:
        first = f"; first problem: {problems[0]}" if problems else ""
        raise WrongUse(f"{path} holds no utterance that can be read as {format}{first}")
    rows, faults = _measure(rows, reading.root)
    manifest = Manifest.from_rows(own if text else name or own, rows, reading.synthetic)
    scan = Scan(manifest, reading.root, format, [*problems, *faults], reading.warnings, reading.known)
    return scan if text is None else scan.with_texts(texts, unnamed, name or f"{own}-{_name_from(text.stem)}")


def find_format(path: str | Path, format: str | None = None) -> str:
    """The format of the corpus at `path`, or the one that is asked for: a quick look, before anything slow.

    Raises `WrongUse` if nothing is there, if it looks like no corpus, or for an unknown format.
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
        raise WrongUse(f"{path} is not a corpus, but the folder inside it is: give {sessions[0].parents[1]}")
    tables = sorted(p.name for p in path.iterdir() if p.suffix.lower() in {".csv", ".tsv", ".jsonl", ".parquet"})
    hint = f"it holds {tables[0]}: give that file" if tables else "give a CSV, TSV, Parquet or JSONL file"
    raise WrongUse(
        f"{path} is not a corpus that ser knows: neither laid out nor named as any of {', '.join(FORMATS)}; describe "
        f"it in a TOML file for --format (docs/add-a-corpus.md), or to read it as a table, {hint}"
    )


def _resolve(reference: str | Callable[..., Any]) -> Callable[..., Any]:
    return pkgutil.resolve_name(reference) if isinstance(reference, str) else reference


def _name_from(stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:64] or "corpus"  # as long as `check_name` allows


def admit(reading: Reading) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The rows whose ids and audio paths may enter a manifest, and all problems so far."""
    spellings: dict[str, str] = {}
    rows, problems = [], list(reading.problems)
    for row in reading.rows:
        id, audio = row["id"], row.get("audio") or ""
        if fault := _fault(id, audio if reading.paths != "unopened" else "", reading, spellings):
            reason = f"{row.get('where', '')}: {fault}".removeprefix(": ")
            problems.append(Problem(printable(id), printable(audio or reading.corpus), reason))
        else:
            rows.append(row)
    return rows, problems


def _fault(id: str, audio: str, reading: Reading, spellings: dict[str, str]) -> str | None:
    """Why these cannot be an utterance's id and audio path, or None, and then the id is remembered.

    `spellings` are the ids so far by their NFC: those that only Unicode spells in two ways (NFC and NFD) look alike.
    """
    if not id.strip():
        return "the id is empty"
    for what, text in (("id", id), ("audio path", audio)):
        if any(unicodedata.category(character) in INVISIBLE for character in text):
            return f"the {what} {text!a} holds a control character or is not valid Unicode"
    if earlier := spellings.get(key := unicodedata.normalize("NFC", id)):
        spelt = "" if earlier == id else ", in two Unicode spellings (NFC and NFD)"
        return f"the id {id} is there twice{spelt}"
    spellings[key] = id
    root, pure = reading.root, PurePosixPath(audio.replace("\\", "/"))
    if pure.is_absolute() or audio[1:2] == ":":
        return f"the audio path {audio} is absolute; give it relative to {root}"
    if ".." in pure.parts:
        return f"the audio path {audio} leaves the corpus with '..'; move the file under {root}"
    if reading.paths == "inside" and not (root / audio).resolve().is_relative_to(root.resolve()):
        return f"the audio path {audio} is a link that leaves the corpus; move the file under {root}"
    return None


def _measure(rows: list[dict[str, Any]], root: Path) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The rows with `audio_sha256` and `duration` from the files themselves, and what is wrong with those."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # reading and hashing release the GIL
        probes = list(pool.map(lambda row: probe(root / row["audio"]), rows))
    wrong = [(row, fault) for row, (_, fault) in zip(rows, probes, strict=True) if fault]
    faults = [Problem(row["id"], row["audio"], str(fault), "audio") for row, fault in wrong]
    coded = [row["audio"] for row, fault in wrong if isinstance(fault, CodedAudio)]
    if coded and len(coded) == sum(found["audio_sha256"] is not None for found, _ in probes):
        endings = {shlex.quote(f"*{PurePosixPath(audio).suffix}") for audio in coded}
        named = " -o ".join(f"-name {ending}" for ending in sorted(endings))
        each = """-exec sh -c 'ffmpeg -i "$1" -vn "$1.wav" && mv "$1.wav" "${1%.*}.wav"' _ {} \\;"""
        convert = f"convert them with `find -L {shlex.quote(str(root))}/ \\( {named} \\) {each}`"
        faults.insert(0, Problem(None, str(root), f"no file here can be decoded as it is: {convert}", "audio"))
    return [row | found for row, (found, _) in zip(rows, probes, strict=True)], faults


def probe(path: Path) -> tuple[dict[str, Any], UtteranceError | None]:
    """Hash an audio file and measure it by its header. What is wrong with it is returned beside that, never raised.

    `audio_sha256` is None if the file cannot be read, `duration` (seconds) if its header is wrong. Raises `CorpusError`
    if the disk, the mount or the memory fails. The whole file is read every time: size and modification time do not
    show changed bytes.
    """
    found: dict[str, Any] = {"audio_sha256": None, "duration": None}
    try:
        data = read_bytes(path)
        found["audio_sha256"] = hashlib.sha256(data).hexdigest()
        with open_audio(data, path.name) as file:
            found["duration"] = file.frames / file.samplerate
    except UtteranceError as fault:
        return found, type(fault)(str(fault))  # without its traceback, which holds the file
    return found, None


def visible(folder: Path, suffix: str) -> list[Path]:
    """The entries of `folder` with that suffix, by name, without the `._*` files that a Mac leaves beside real ones."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in entries if p.suffix.lower() == suffix and not p.name.startswith("."))


def read_text(path: Path, other: str = "cp1252") -> str:
    """The text of a file, UTF-16 if it begins so; if it is not UTF-8, in the `other` encoding, or else in Latin-1."""
    raw = read_named(path, LARGE)
    for encoding in ("utf-16",) if raw[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else ("utf-8-sig", other):
        with suppress(UnicodeError):
            return raw.decode(encoding)
    return raw.decode("latin-1")
