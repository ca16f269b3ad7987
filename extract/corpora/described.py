"""A layout that follows from file names and tables, described in a TOML file: ravdess.toml beside this, or a user's own.

docs/add-a-corpus.md says what each key means. The file comes from anyone, so that its patterns are matched under a time
limit, and its templates are filled in by names alone.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import regex

from ser.cache.atomic_io import read_toml
from ser.cache.manifest import SCHEMA
from ser.errors import WrongUse

from ..audio import CODED, SOUND
from .scan import Problem, Reading, read_text
from .table import MEASURED, as_row, records

SECONDS = 1.0  # that a pattern may take for one name: one that backtracks without end takes for ever
LONGEST, REPEATS = 1000, 10_000  # of a pattern: its characters, and the product of its counted repeats
SAMPLE, FOLDERS = 500, 100  # recordings, and folders, that say whether a corpus is laid out so
COLUMNS = [name for name in SCHEMA.names if name not in (*MEASURED, "audio", "votes")]
FIELD = regex.compile(r"\{(\w+)\}")


class Table(msgspec.Struct, forbid_unknown_fields=True):
    """A table of the corpus: each file's fields, or its raters' votes."""

    file: str
    of: str = ""
    key: str = ""
    line: str | None = None
    where: dict[str, str] = {}
    votes: str = ""
    audio: str = ""
    encoding: str = "cp1252"


class Layout(msgspec.Struct, forbid_unknown_fields=True):
    """What a description holds."""

    name: str
    pattern: str
    columns: dict[str, str]
    example: str = ""
    maps: dict[str, dict[str, str]] = {}
    tables: list[Table] = []
    left_out: dict[str, str] = {}
    unknown: list[str] = []
    counts: dict[str, int | dict[str, int]] = {}
    partial: bool = False
    defects: dict[str, str] = {}
    licence: str = ""
    source: str = ""


@dataclass
class Loaded:
    """A table's rows by key; `shared` are the fields of whatever asked for it first, `asked` the keys of files."""

    rows: dict[str, dict[str, str]]
    shared: dict[str, str]
    votes: dict[str, list[list[str]]] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)


def read_layout(description: Path) -> Layout:
    """A description from its file. Raises `WrongUse` with what is wrong in it."""
    table = read_toml(description, "pattern = '(?P<speaker>[a-z]+)-(?P<emotion>[a-z]+)-[0-9]+'")
    try:
        layout = msgspec.convert(table, Layout)
    except msgspec.ValidationError as error:
        raise WrongUse(f"{description}: {error}; docs/add-a-corpus.md lists the keys") from None
    for column in layout.columns:
        if column not in COLUMNS:
            raise WrongUse(f"{description}: columns.{column} is no column; those are {', '.join(COLUMNS)}")
    for column in layout.maps:
        if column not in layout.columns and column != "votes":
            raise WrongUse(f"{description}: maps.{column} maps a column that is not under [columns]; add it there")
    try:
        "".encode(next((one.encoding for one in layout.tables), "utf-8"))
    except LookupError as error:
        raise WrongUse(f"{description}: {error}; name the encoding as Python does, such as gb18030") from None
    for where, pattern in {
        "pattern": layout.pattern,
        **{f"left_out.{what}": pattern for what, pattern in layout.left_out.items()},
        **{f"line of {one.file}": one.line for one in layout.tables if one.line is not None},
    }.items():
        _compiled(pattern, f"{description}: {where}")
    return layout


def fits(root: Path, description: Path) -> bool:
    """Whether most of the first recordings in a folder, or all that are not left out, are named as described."""
    names = _Names(read_layout(description), description)
    sample = list(islice((path for path in _files(root, FOLDERS) if _suffix(path) in SOUND | CODED), SAMPLE))
    named = [path for path in sample if not names.left_out(path)]
    return 2 * sum(names.fields(path) is not None for path in named) > len(named)


def read_described(root: Path, description: Path) -> Reading:
    """Read a corpus as a description says. A recording without a dialogue is a dialogue by itself."""
    layout = read_layout(description)
    return _Reader(root, layout, description).read()


class _Names:
    """The patterns of a description, compiled: they match a path from the start of any folder in it."""

    def __init__(self, layout: Layout, description: Path) -> None:
        self._where = f"{description}: pattern"
        self._name = _compiled(layout.pattern, self._where)
        self._left_out = {
            what: _compiled(one, f"{description}: left_out.{what}") for what, one in layout.left_out.items()
        }

    def fields(self, path: str) -> dict[str, str] | None:
        """The groups of a path, its `stem` and its `folder`; None if it is not named as described."""
        pure = PurePosixPath(path)
        match = _match(self._name, str(pure.with_suffix("")), self._where)
        if match is None:
            return None
        return {"stem": pure.stem, "folder": str(pure.parent), **match}

    def left_out(self, path: str) -> str | None:
        """As what a path is left out, if it is."""
        return next((what for what, one in self._left_out.items() if _match(one, path, what) is not None), None)


class _Reader:
    def __init__(self, root: Path, layout: Layout, description: Path) -> None:
        self.root, self.layout, self.description = root, layout, description
        self.names = _Names(layout, description)
        self.reading = Reading(layout.name, root, [])
        self.paths: dict[str, list[str]] = {}  # by their last parts
        self.loaded: dict[tuple[int, str], Loaded] = {}
        self.turns: Counter[tuple[str | None, str]] = Counter()
        self.known: set[str] = set()  # the fields that there are

    def read(self) -> Reading:
        layout, reading, left = self.layout, self.reading, Counter[str]()
        files = list(_files(self.root))
        for path in files:
            self.paths.setdefault(path.rpartition("/")[2], []).append(path)
        sound = {path.rpartition(".")[0] for path in files if _suffix(path) in SOUND}
        for path in files:
            suffix = _suffix(path)
            if suffix not in SOUND | CODED or (suffix in CODED and path.rpartition(".")[0] in sound):
                continue
            if (what := self.names.left_out(path)) is not None:
                left[what] += 1
            elif (found := self.names.fields(path)) is None:
                example = f" ({layout.example})" if layout.example else ""
                reason = f"the name does not follow the convention of {layout.name}{example}"
                reading.problems.append(Problem(None, path, reason))
            elif (row := self._joined(found)) is None:
                left["in no row of its table"] += 1
            else:
                self._add(path, row, f"{found['stem']}: ")
        self._add_without_file()
        self._check_fields()
        reading.warnings.extend(f"{count} files are left out: {what}" for what, count in left.items())
        ids = {row["id"] for row in reading.rows}
        reading.warnings.extend(f"known defect: {id}: {what}" for id, what in layout.defects.items() if id in ids)
        whole = layout.counts.get("utterances", 0)
        if layout.partial and isinstance(whole, int) and len(ids) < whole:
            reading.warnings.append(f"{len(ids)} of {layout.name}'s {whole} utterances are here")
        else:
            reading.known.update(layout.counts)
        return reading

    def _joined(self, found: dict[str, str]) -> dict[str, Any] | None:
        """A file's fields with those of its rows in the tables; None if a table that lists the files has no such row.
        """
        fields: dict[str, Any] = dict(found)
        self.known |= fields.keys()
        for number, table in enumerate(self.layout.tables):
            name, key = _filled(table.file, fields), _filled(table.of, fields)
            loaded = None if name is None or key is None else self._load(number, name, found)
            if loaded is None or key is None:
                continue
            if table.votes:
                fields["votes"] = loaded.votes.get(key)
            elif key in loaded.rows:
                loaded.asked.add(key)
                fields |= loaded.rows[key]
            elif table.audio:
                return None
        return {name: value for name, value in fields.items() if value not in self.layout.unknown}

    def _load(self, number: int, name: str, found: dict[str, str]) -> Loaded | None:
        """The table of that name, read once; None where it is not here, of which a warning tells."""
        table = self.layout.tables[number]
        if (number, name) in self.loaded:
            return self.loaded[number, name] if self.loaded[number, name].shared else None
        loaded = self.loaded[number, name] = Loaded({}, {})
        places = [p for p in self.paths.get(name.rpartition("/")[2], ()) if p == name or p.endswith(f"/{name}")]
        if not places:
            if table.audio:
                raise WrongUse(f"{self.root} has no {name}, which lists the utterances of {self.layout.name}: add it")
            if "{stem}" not in table.file:
                self.reading.warnings.append(f"{name} is not here, and nothing is taken from it")
            return None
        loaded.shared = {one: found[one] for one in ("folder", *FIELD.findall(table.file)) if one in found}
        votes = self.layout.maps.get("votes", {})
        for where, row in self._rows(table, places[0]):
            if isinstance(row, str):
                self.reading.problems.append(Problem(None, places[0], f"{where}: {row}"))
                continue
            self.known |= row.keys()
            key = _filled(table.key, row)
            if key is None or any(row.get(column) != value for column, value in table.where.items()):
                continue
            if not table.votes:
                loaded.rows.setdefault(key, row)
            elif (vote := _filled(table.votes, row)) is not None:
                loaded.votes.setdefault(key, []).append([votes.get(vote, vote)])
        return loaded

    def _rows(self, table: Table, path: str) -> Iterator[tuple[str, dict[str, str] | str]]:
        if table.line is None:
            for where, record in records(self.root / path):
                yield where, record if isinstance(record, str) else {k: str(v) for k, v in record.items() if v != ""}
            return
        where = f"{self.description}: line of {table.file}"
        pattern = _compiled(table.line, where, folders=False)
        for number, line in enumerate(read_text(self.root / path, table.encoding).split("\n"), 1):
            if line.strip() and (match := _match(pattern, line.strip(), where)) is not None:
                yield f"line {number}", match

    def _add(self, path: str, fields: Mapping[str, Any], where: str) -> None:
        layout, record = self.layout, {"audio": path, "votes": fields.get("votes")}
        try:
            for column, template in {"id": "{stem}", **layout.columns}.items():
                value = _filled(template, fields)
                if value is not None and column in layout.maps:
                    listed = layout.maps[column]
                    if value not in listed and "*" not in listed:
                        raise ValueError(f"the {column} {value[:60]!a} is not among maps.{column}")
                    value = listed.get(value, listed.get("*"))
                record[column] = value or None
            row = as_row(record, "audio", SCHEMA.names)
        except ValueError as error:
            self.reading.problems.append(Problem(None, path, f"{where}{error}"))
            return
        dialogue = row.get("session"), row["dialogue"]
        row.setdefault("turn", self.turns[dialogue])
        self.turns[dialogue] += 1
        self.reading.rows.append(row)

    def _add_without_file(self) -> None:
        """The rows of the tables that list the utterances whose file is not here: their text may be of use."""
        for (number, _), loaded in self.loaded.items():
            if template := self.layout.tables[number].audio:
                for key, row in loaded.rows.items():
                    fields = {k: v for k, v in (loaded.shared | row).items() if v not in self.layout.unknown}
                    if key not in loaded.asked and (path := _filled(template, fields)) is not None:
                        self._add(path, {"stem": PurePosixPath(path).stem, **fields}, f"{key}: ")

    def _check_fields(self) -> None:
        """Raise `WrongUse` if a template names a field that neither a pattern nor a table gives, all tables here."""
        if not all(loaded.shared for loaded in self.loaded.values()) or not self.reading.rows + self.reading.problems:
            return
        for column, template in self.layout.columns.items():
            for name in FIELD.findall(template):
                if self.known and name not in self.known:
                    raise WrongUse(
                        f"{self.description}: columns.{column} names {{{name}}}, which no group of a pattern and no "
                        f"column of a table gives; known: {', '.join(sorted(self.known))}"
                    )


def _compiled(pattern: str, where: str, folders: bool = True) -> Any:
    repeats = [int(number[:9]) or 1 for number in regex.findall(r"[{,]\s*([0-9]+)", pattern)]
    if len(pattern) > LONGEST or math.prod(repeats) > REPEATS:
        raise WrongUse(f"{where} is too large; use at most {LONGEST} characters, and fewer counted repeats")
    try:
        regex.compile(pattern)
        return regex.compile(f"(?:.*/)?(?:{pattern})" if folders else pattern)
    except (regex.error, RecursionError, OverflowError, ValueError) as error:
        raise WrongUse(f"{where} is not a regular expression ({error}); correct it") from None


def _match(pattern: Any, text: str, where: str) -> dict[str, str] | None:
    try:
        match = pattern.fullmatch(text, timeout=SECONDS)
    except TimeoutError:
        raise WrongUse(
            f"{where} takes over {SECONDS:g} s to match {text[:60]!a}; write it without a repeat within a repeat"
        ) from None
    return match and {name: value for name, value in match.groupdict().items() if value is not None}


def _filled(template: str, fields: Mapping[str, Any]) -> str | None:
    """The template with each {field} filled in; None if one of them is not known."""
    if any(fields.get(name) is None for name in FIELD.findall(template)):
        return None
    return FIELD.sub(lambda match: fields[match[1]], template)


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _files(root: Path, folders: int | None = None) -> Iterator[str]:
    """The files below `root`, or those of its first `folders`, in order, without hidden ones.

    Links are followed, each folder is read once. Raises `OSError` for a folder that cannot be read.
    """

    def stop(error: OSError) -> None:
        if not isinstance(error, NotADirectoryError):
            raise error

    seen = set[str]()
    for folder, inner, names in islice(os.walk(root, onerror=stop, followlinks=True), folders):
        real = os.path.realpath(folder)
        inner[:] = [] if real in seen else sorted(name for name in inner if not name.startswith("."))
        if real not in seen:
            seen.add(real)
            under = Path(folder).relative_to(root)
            yield from ((under / name).as_posix() for name in sorted(names) if not name.startswith("."))
