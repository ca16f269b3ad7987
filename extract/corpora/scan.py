"""From a path to a manifest: find the format, read it, hash every audio file, and name every problem."""

import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ser.cache.errors import CorpusError, SerError, WrongUse, unknown
from ser.cache.ids import LONGEST_ID, IdsSeen, id_fault
from ser.cache.manifest import Manifest

from .admission import path_fault
from .emodb import FULL_SIZE, is_emodb
from .formats import FORMATS
from .iemocap import is_iemocap
from .probe import probe
from .reading import Problem, Reading, printable
from .table import SUFFIXES
from .transcripts import replace_transcripts

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
        reading = FORMATS[format](path)
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
