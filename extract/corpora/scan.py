"""From a path to a manifest: find the format, read it, hash every audio file, and name every problem."""

import hashlib
import os
import pkgutil
import re
import stat
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ser.cache.manifest import LONGEST_ID, IdsSeen, Manifest, id_fault, invisible
from ser.errors import CorpusError, SerError, WrongUse, unknown

from . import FORMATS
from .emodb import FULL_SIZE, is_emodb
from .iemocap import is_iemocap
from .reading import Problem, Reading, printable
from .table import SUFFIXES, records


def path_fault(audio: str, root: Path, follow_links: bool) -> str | None:
    """Why this path cannot be an utterance's audio, or None. `audio` is relative to `root`.

    `follow_links`: whoever laid out a corpus folder may have linked parts of it from another disk, but the paths that
    a table names stay under its folder, links included.
    """
    if invisible(audio):
        return f"the audio path {audio!a} holds a control character or is not valid Unicode"
    pure = PurePosixPath(audio.replace("\\", "/"))
    if pure.is_absolute() or audio[1:2] == ":":
        return f"the audio path {audio} is absolute; give it relative to {root}"
    if ".." in pure.parts:
        return f"the audio path {audio} leaves the corpus with '..'; move the file under {root}"
    if not follow_links and not (root / audio).resolve().is_relative_to(root.resolve()):
        return f"the audio path {audio} is a link that leaves the corpus; move the file under {root}"
    return None


def replace_transcripts(
    rows: list[dict[str, Any]], problems: list[Problem], path: Path, complete: bool = True
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The rows with the texts of `path`, a table with columns `id` and `text`, and the problems that then remain.

    The corpus' own transcripts are gone entirely: an utterance that `path` does not name has no text, and is named in
    the problems. Ids of `path` that the corpus lacks are problems as well, if the corpus is `complete`. Raises
    `WrongUse` if the file has not those columns.
    """
    if not path.is_file():
        raise WrongUse(f"{path} is no file; give a CSV, TSV or JSONL file with the columns id and text")
    known = {row["id"] for row in rows}
    texts: dict[str, str] = {}
    problems = [p for p in problems if p.kind != "text"]
    columns: set[str] = set()
    for line, record in records(path):
        columns.update(record if isinstance(record, dict) else ())
        fault = _fault(record, known, texts, complete)
        if fault:
            problems.append(Problem(None, str(path), f"{line}: {fault}"))
        elif isinstance(record, dict) and record["id"] in known:
            texts[record["id"]] = record.get("text") or ""
    if not {"id", "text"} <= columns:
        raise WrongUse(f"{path} lacks the columns id and text; it has {', '.join(sorted(columns)) or 'none'}")
    silent = [id for row in rows if (id := row["id"]) not in texts]
    problems += [Problem(id, str(path), "no transcript of this utterance", "text") for id in silent]
    return [{**row, "text": texts.get(row["id"])} for row in rows], problems


def _fault(record: dict[str, Any] | str, known: set[str], texts: dict[str, str], complete: bool) -> str | None:
    """Why a record is no transcript, or None."""
    if isinstance(record, str):
        return record
    id, text = record.get("id"), record.get("text")
    if not isinstance(id, str):
        return "has no id"
    if text is not None and not isinstance(text, str):
        return f"the text {ascii(text)[:60]} is not a string"
    if text is not None and any("\ud800" <= c <= "\udfff" for c in text):
        return f"the text of {id!a} is not valid Unicode"
    if id in texts:
        return f"the id {id!a} is there twice"
    if id not in known and complete:
        return f"the id {id!a} is not in the corpus"
    return None


# WAVE format tags whose blocks have one size: PCM, float, A-law, µ-law, extensible.
FIXED_BLOCKS = {1, 3, 6, 7, 0xFFFE}
STREAMED = 0xFFFFFFFF  # the data size that a writer into a pipe leaves behind: unknown
MOST_PER_BYTE = 8192  # samples: FLAC's longest block of silence, 65,535 samples, takes about ten bytes
CHUNK = 1 << 22


@dataclass(frozen=True)
class Probe:
    """`sha256` is None where no file could be read, `duration` (seconds) where nobody can tell; `fault` is a reason."""

    sha256: str | None = None
    duration: float | None = None
    fault: str | None = None


def probe(path: Path) -> Probe:
    """Hash an audio file and measure it. Never raises: what is wrong stands in `fault`.

    The whole file is read every time, since size and modification time do not notice changed bytes. soundfile reads
    a cut-off file short without a word, hence the header is compared with the bytes that are there.
    """
    try:
        # O_NONBLOCK: opening a FIFO would otherwise wait for its writer for ever.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return Probe(fault="the audio file is missing")
    except (OSError, ValueError) as error:
        return Probe(fault=f"the audio file cannot be opened ({getattr(error, 'strerror', None) or error})")
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        return Probe(fault="this is a folder or a device, not an audio file")
    with os.fdopen(handle, "rb", buffering=0) as file:
        if not status.st_size:
            return Probe(hashlib.sha256().hexdigest(), 0.0, "the audio file is empty (0 bytes)")
        try:
            head = block = file.read(CHUNK)
            digest = hashlib.sha256(block)
            while block := file.read(CHUNK):
                digest.update(block)
        except OSError as error:
            return Probe(fault=f"the audio file cannot be read ({error.strerror})")
    return Probe(digest.hexdigest(), *_measure(path, head, status.st_size))


def _measure(path: Path, head: bytes, size: int) -> tuple[float | None, str | None]:
    """Seconds of audio in the file, and what is wrong with it."""
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return _measure_other(path, head, size)
    rate = block = tag = 0
    at = 12
    while at + 8 <= len(head):
        name, promised = struct.unpack_from("<4sI", head, at)
        at += 8
        if name == b"fmt " and at + 16 <= len(head):
            tag, _, rate, _, block = struct.unpack_from("<HHIIH", head, at)
        if name == b"data":
            break
        at += promised + promised % 2
    else:
        if at < size:  # more metadata than `head` holds
            return _measure_other(path, head, size)
        return None, "truncated: the WAV file ends before its audio begins"
    if not rate or not block:
        return None, "the WAV file's header gives no sampling rate"
    there = size - at
    held = there if promised == STREAMED else min(there, promised)
    if tag not in FIXED_BLOCKS:
        seconds, fault = _measure_other(path, head, size)
    else:
        seconds, fault = held // block / rate, None
    if promised > there and promised != STREAMED:
        fault = f"truncated: the header promises {promised} bytes of audio, the file holds {there}"
    elif seconds == 0:
        fault = "the audio file holds no samples"
    return seconds, fault


def _measure_other(path: Path, head: bytes, size: int) -> tuple[float | None, str | None]:
    """The same for everything that is no plain WAV, by soundfile's reading of the header."""
    import soundfile

    if head.startswith(b"version https://git-lfs"):
        return None, "this is a git-LFS pointer, not audio: run `git lfs pull`"
    try:
        info = soundfile.info(path)
    except (soundfile.SoundFileError, OSError) as error:
        return None, f"not readable as audio ({str(error).rpartition(': ')[2].strip().rstrip('.')})"
    if not info.frames or not info.samplerate:
        return 0.0, "the audio file holds no samples"
    if info.frames > size * MOST_PER_BYTE:
        return None, f"the header promises {info.frames} samples, more than the file's {size} bytes can hold"
    return info.frames / info.samplerate, None


__all__ = ["FORMATS", "Problem", "Scan", "find_format", "read_corpus"]

CORPUS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


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

    def unusable(self, modality: Literal["audio", "text"]) -> dict[str, Problem]:
        """The manifest's ids whose audio (or text) cannot be used, each with its first problem."""
        found: dict[str, Problem] = {}
        for problem in self.problems:
            if problem.kind == modality and problem.id is not None:
                found.setdefault(problem.id, problem)
        return found

    @property
    def refused(self) -> list[Problem]:
        """The problems of what has no row in the manifest, so that nobody can quarantine it: name them, or stop."""
        return [problem for problem in self.problems if problem.kind == "corpus"]


def read_corpus(
    path: str | Path,
    format: str | None = None,
    name: str | None = None,
    text: str | Path | None = None,
    limit: int | None = None,
) -> Scan:
    """Scan a corpus.

    `format` is found out when None. `name` is the corpus' name in the store. `text` is a CSV, TSV or JSONL file
    with columns `id` and `text` whose transcripts take the place of the corpus' own, under another corpus name.
    `limit` keeps the first utterances only. Raises `WrongUse` if the path is no corpus of that format.
    """
    path = Path(path).expanduser()
    if limit is not None and limit < 1:
        raise WrongUse(f"a limit of {limit} leaves no utterance; give 1 or more")
    format = find_format(path, format)
    with _readable(path):
        reading = pkgutil.resolve_name(FORMATS[format])(path)
    rows, problems = _admit(reading, follow_links=format != "table")
    if limit is not None:
        rows = rows[:limit]
        kept = {row["id"] for row in rows}
        # Problems of utterances beyond the limit are no news to someone who asked for a few.
        problems = [p for p in problems if p.id is None or p.id in kept]
    if text is not None:
        rows, problems = replace_transcripts(rows, problems, Path(text).expanduser(), complete=limit is None)
        name = name if name is not None else f"{_name_from(reading.corpus)}-{_name_from(Path(text).stem)}"
    if not rows:
        raise _no_utterances(path, format, problems)
    rows, faults = _probe_audio(rows, reading.root)
    name = _checked_name(name) if name is not None else _name_from(reading.corpus)
    manifest = Manifest.from_rows(name, rows, reading.synthetic)
    return Scan(manifest, reading.root, format, [*problems, *faults], _warnings(format, rows))


def find_format(path: str | Path, format: str | None = None) -> str:
    """The format of the corpus at `path`, or the one that is asked for: a quick look, before anything slow.

    Raises `WrongUse` if nothing is there, if it looks like no corpus, or for an unknown format.
    """
    path = Path(path).expanduser()
    with _readable(path):
        if not path.exists():
            raise WrongUse(f"{path} does not exist; give the folder of a corpus, or a table file")
        format = format or detect(path)
    if format not in FORMATS:
        raise unknown("corpus format", format, FORMATS)
    return format


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what the file system refuses into a `CorpusError`."""
    try:
        yield
    except SerError:
        raise
    except OSError as error:
        raise CorpusError(
            f"{error.filename or path} cannot be read ({error.strerror}); see to that and run again"
        ) from error


def detect(path: Path) -> str:
    """The format of the corpus at `path`. Raises `WrongUse` if it looks like none."""
    if path.is_file():
        return "table"
    if is_iemocap(path):
        return "iemocap"
    for inner in sorted(p for p in path.iterdir() if p.is_dir()):
        if is_iemocap(inner):
            raise WrongUse(f"{path} is no corpus, but the folder inside it is: give {inner}")
    if is_emodb(path):
        return "emodb"
    tables = sorted(p.name for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    hint = f"; it holds {tables[0]}: give that file to read it as a table" if tables else ""
    raise WrongUse(
        f"{path} is no corpus that ser knows: it has neither IEMOCAP's Session1 … Session5 nor recordings named as "
        f"in EmoDB{hint or '; other corpora are read from a CSV, TSV, Parquet or JSONL file'}"
    )


def _admit(reading: Reading, follow_links: bool) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The rows whose ids and audio paths may enter a manifest, and all problems so far."""
    seen = IdsSeen()
    rows, problems = [], list(reading.problems)
    for row, where in zip(reading.rows, reading.where or [""] * len(reading.rows), strict=True):
        id, audio = row["id"], row.get("audio")
        fault = id_fault(id) or seen.fault(id)
        fault = fault or (path_fault(audio, reading.root, follow_links) if audio is not None else None)
        if fault:
            said = f"{where}: {fault}" if where else fault
            problems.append(Problem(printable(id[:LONGEST_ID]), printable(audio or ""), said))
        else:
            rows.append(row)
    return rows, problems


def _probe_audio(rows: list[dict[str, Any]], root: Path) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The rows with `audio_sha256` and `duration` from the files themselves, and what is wrong with those."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # reading and hashing release the GIL
        probes = list(pool.map(lambda row: probe(root / row["audio"]), rows))
    measured = [{**r, "audio_sha256": p.sha256, "duration": p.duration} for r, p in zip(rows, probes, strict=True)]
    faults = [Problem(r["id"], r["audio"], p.fault, "audio") for r, p in zip(rows, probes, strict=True) if p.fault]
    return measured, faults


def _checked_name(name: str) -> str:
    """A corpus' name becomes a folder of the store."""
    if not CORPUS_NAME.fullmatch(name):
        raise WrongUse(f"'{name}' cannot be a corpus name: use letters, digits, '.', '_' and '-', such as iemocap-asr")
    return name


def _name_from(stem: str) -> str:
    """A corpus name made from a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:80] or "corpus"


def _no_utterances(path: Path, format: str, problems: Iterable[Problem]) -> WrongUse:
    first = next((f"; first problem: {p}" for p in problems), "")
    return WrongUse(f"{path} holds no utterance that can be read as {format}{first}")


def _warnings(format: str, rows: list[dict[str, Any]]) -> list[str]:
    if format == "emodb" and len(rows) != FULL_SIZE:
        return [f"{len(rows)} of EmoDB's {FULL_SIZE} recordings are here"]
    return []
