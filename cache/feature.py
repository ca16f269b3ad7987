"""One feature of a store, computed in one way: its parts, and the rows that a manifest joins."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ser.corpus.manifest import Key, Manifest
from ser.disk.read import REPAIR
from ser.disk.records import checksummed_json, read_checksummed
from ser.disk.workspace import put_files
from ser.errors import CorruptStore, MissingRows

from .blocks import ArrayRead, ArrayRecord, Stretches, empty_to_read_into, read_stretches
from .extract_command import extract_rows_command
from .manifests import list_corpora, read_manifest
from .part import Part
from .rows import Packed, PartRows
from .spec import Spec

# A part, and an utterance's number in it.
Place = tuple[Part, int]


def part_names(feature: Path) -> set[str]:
    """The names of the parts in a feature's folder.

    Raises `CorruptStore` if its `parts` is a link to a disk that is away.
    """
    folder = feature / "parts"
    try:
        with os.scandir(folder) as entries:
            # A plain file beside the parts, such as a `Thumbs.db`, is no part.
            names = [entry.name for entry in entries if not entry.is_file(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        # Not asked for as a folder alone: another process may just have made it.
        if os.path.lexists(folder) and not folder.is_dir():
            fault = "leads to no folder; mount the disk, or remove it"
            raise CorruptStore(f"{folder}: {fault}") from None
        return set()

    return {name for name in names if not name.startswith(".")}


class Feature:
    """A folder `<store>/<feature>/<fingerprint>/`; with `spec`, its spec.json is not read."""

    def __init__(self, store: Path, path: Path, spec: Spec | None = None) -> None:
        if spec is None:
            spec = read_checksummed(path / "spec.json", Spec)
            if (spec.feature, spec.fingerprint) != (path.parent.name, path.name):
                fault = "stands in the folder of another feature or fingerprint"
                raise CorruptStore(f"{path / 'spec.json'}: {fault}; {REPAIR}")

        self.store = store
        self.path = path
        self.spec = spec

        # What `parts` last saw: the parts by name, the rows and quarantined utterances in them.
        self._parts: dict[str, Part] = {}
        self._rows: dict[Key, Place] = {}
        self._quarantined: dict[Key, str] = {}

        # Rows of the latest manifests, by id: for `__getitem__`.
        self._latest: dict[str, Place] = {}

    def __repr__(self) -> str:
        spec = self.spec
        return (
            f"<Feature {spec.feature}@{self.fingerprint}: {spec.level} × {spec.dim} {spec.dtype}>"
        )

    @property
    def fingerprint(self) -> str:
        """The folder's name: how the feature was computed."""
        return self.path.name

    def annotate(self, **provenance: Any) -> None:
        """Add to the spec's provenance, which the fingerprint does not hash."""
        # Read again: another process may have added to it.
        spec = Feature(self.store, self.path).spec
        self.spec = replace(spec, provenance={**spec.provenance, **provenance})
        put_files(self.store, self.path, {"spec.json": checksummed_json(self.spec.to_json())})

    def parts(self) -> list[Part]:
        """Every published part, by name. Raises `CorruptStore` for one that cannot be trusted."""
        names = sorted(part_names(self.path))
        if names == list(self._parts):
            return list(self._parts.values())

        folder = self.path / "parts"
        parts = {}
        try:
            for name in names:
                parts[name] = self._parts.get(name) or Part.open(folder / name, self.fingerprint)
        except CorruptStore:
            if all(os.path.lexists(folder / name) for name in names):
                raise
            # Another process has removed one since they were listed.
            return self.parts()

        self._parts = parts
        self._index_parts()
        return list(parts.values())

    def _index_parts(self) -> None:
        """Note where each row is. Should two parts hold the same row, the first by name counts."""
        self._rows = {}
        self._quarantined = {}
        self._latest = {}

        for part in self._parts.values():
            for number, key in enumerate(part.keys):
                self._rows.setdefault(key, (part, number))
            for entry in part.record.quarantined:
                key = (part.record.corpus, entry.id, entry.input)
                self._quarantined.setdefault(key, entry.reason)

    def keys(self, manifest: Manifest) -> list[Key]:
        """What joins each row of the manifest to the parts that are there now.

        In a second set of transcripts an utterance without an audio row of its own has its
        parent's.
        """
        self.parts()

        if manifest.parts:
            keys = []
            for part in manifest.parts:
                keys.extend(self.keys(part))
            return keys

        keys = manifest.keys(self.spec.modality)
        if manifest.parent is None or self.spec.modality != "audio":
            return keys

        parent = manifest.parent.corpus
        return [self._key_that_counts(key, (parent, *key[1:])) for key in keys]

    def _key_that_counts(self, key: Key, parents_key: Key) -> Key:
        """Which of two keys counts; the first where neither has a row or is quarantined.

        Any row counts before any quarantine.
        """
        if key in self._rows:
            return key
        if parents_key in self._rows:
            return parents_key
        if key in self._quarantined:
            return key
        if parents_key in self._quarantined:
            return parents_key
        return key

    def place(self, key: Key) -> Place | None:
        """The part that holds a row, and the row's number in it, when `parts` was last called."""
        return self._rows.get(key)

    def missing(self, manifest: Manifest, retry: bool = False) -> list[int]:
        """Manifest rows without a current row.

        Unless `retry`, those with a current quarantine are not missing.
        """
        keys = self.keys(manifest)
        skipped: Mapping[Key, str] = {} if retry else self._quarantined

        missing = []
        for number, key in enumerate(keys):
            if key not in self._rows and key not in skipped:
                missing.append(number)
        return missing

    def quarantined(self, manifest: Manifest) -> dict[str, str]:
        """Id → reason of the utterances that could not be computed from what the manifest names."""
        reasons = {}
        for id_, key in zip(manifest.ids, self.keys(manifest), strict=True):
            if key in self._quarantined and key not in self._rows:
                reasons[id_] = self._quarantined[key]
        return reasons

    def rows(self, manifest: Manifest) -> int:
        """How many utterances of the manifest have a current row."""
        return sum(key in self._rows for key in self.keys(manifest))

    def complete(self, manifest: Manifest) -> bool:
        """Whether every utterance of the manifest is there or quarantined."""
        return not self.missing(manifest)

    def load(self, manifest: Manifest, rows: Sequence[int] | None = None) -> Packed:
        """Utterances in the order of `rows` (manifest row numbers; None: all), in memory.

        Every block is verified. Raises `MissingRows` if some are not in the store and
        `CorruptStore` if one cannot be trusted.
        """
        if rows is None:
            rows = range(len(manifest))

        places = self.places(manifest, rows)
        return self.gather(places, [manifest.ids[row] for row in rows])

    def places(self, manifest: Manifest, rows: Sequence[int]) -> list[Place]:
        """Where utterances lie, for `gather`. Raises `MissingRows` if some are not in the store."""
        all_keys = self.keys(manifest)
        keys = [all_keys[row] for row in rows]

        missing = [key for key in keys if key not in self._rows]
        if missing:
            raise MissingRows(self._say_missing(manifest, missing, len(rows)))

        return [self._rows[key] for key in keys]

    def _say_missing(self, manifest: Manifest, missing: Sequence[Key], wanted: int) -> str:
        quarantined = sum(key in self._quarantined for key in missing)
        note = f", {quarantined} of them quarantined" if quarantined else ""

        fault = f"{len(missing)} of {wanted} utterances of corpus {manifest.corpus}{note}"
        corpus = missing[0][0]
        command = extract_rows_command(
            self.store, self.spec.name, manifest, corpus, retry=quarantined > 0
        )
        return (
            f"{self.spec.name} lacks {fault} (such as {missing[0][1]!r}); "
            f"run {command}, or import all"
        )

    def __getitem__(self, id_: str) -> npt.NDArray[Any]:
        """One utterance, `[n, dim]`, or `[dim]` at utterance level, in the stored dtype.

        An id whose input has changed, or that several corpora have, is read as in the latest
        manifests, of the first corpus by name; load by manifest to choose.
        """
        if id_ not in self._latest:
            self._latest = self._find_latest()
        if id_ not in self._latest:
            raise MissingRows(f"{self.spec.name} has no utterance {id_!r}")

        values = self.gather([self._latest[id_]], [id_], extras=False).values
        return values[0] if self.spec.level == "utterance" else values

    def _find_latest(self) -> dict[str, Place]:
        """Where each id of the latest manifests lies; the first corpus by name counts."""
        corpora = list_corpora(self.store)
        manifests = [read_manifest(self.store, corpus) for corpus in reversed(corpora)]

        keys: list[Key] = []
        for manifest in manifests:
            keys.extend(self.keys(manifest))

        return {key[1]: self._rows[key] for key in keys if key in self._rows}

    def gather(
        self, places: Sequence[Place], ids: list[str], extras: bool = True, values: bool = True
    ) -> Packed:
        """Utterances by their places, in the order given, each block verified.

        Extras are those that all parts have. Without `values` only extras are read.
        """
        stretches, offsets = _find_stretches(places)
        arrays = {"values": np.empty((0, self.spec.dim), self.spec.dtype)}

        for name in _arrays_to_read(stretches, extras, values):
            records = {part: part.record.arrays[name] for part in stretches}
            dtype, row_shape = self._array_kind(name, records.values())

            arrays[name] = empty_to_read_into((int(offsets[-1]), *row_shape), dtype)
            reads = []
            for part, record in records.items():
                reads.append(ArrayRead(part.folder, record, stretches[part]))
            read_stretches(reads, arrays[name])

        return Packed(arrays.pop("values"), offsets, ids, arrays)

    def _array_kind(self, name: str, records: Iterable[ArrayRecord]) -> tuple[str, tuple[int, ...]]:
        """The dtype of an array, and the shape of its rows, which are the same in all parts."""
        kinds = {(record.dtype, record.shape[1:]) for record in records}
        if name == "values":
            kinds.add((self.spec.dtype, (self.spec.dim,)))

        if len(kinds) > 1:
            fault = "has another dtype or dimension than its spec or in other parts"
            raise CorruptStore(f"{self.path / 'parts'}: array '{name}' {fault}; {REPAIR}")
        return kinds.pop()


def _find_stretches(
    places: Sequence[Place],
) -> tuple[dict[Part, Stretches], npt.NDArray[np.int64]]:
    """What to read from each part, and the offsets of the utterances in the target, `[n + 1]`."""
    places_of_part: dict[Part, list[int]] = {}
    numbers = np.empty(len(places), np.int64)
    for place, (part, number) in enumerate(places):
        places_of_part.setdefault(part, []).append(place)
        numbers[place] = number

    starts = np.empty(len(places), np.int64)
    stops = np.empty(len(places), np.int64)
    for part, of_part in places_of_part.items():
        starts[of_part] = part.row_offsets[numbers[of_part]]
        stops[of_part] = part.row_offsets[numbers[of_part] + 1]
    offsets = np.concatenate([[0], np.cumsum(stops - starts)])

    stretches = {}
    for part, of_part in places_of_part.items():
        targets = offsets[of_part]
        stretches[part] = _joined(Stretches(starts[of_part], stops[of_part], targets))

    return stretches, offsets


def _joined(stretches: Stretches) -> Stretches:
    """The same rows, with those as one that follow one another in the part and in the target."""
    starts, stops, targets = stretches
    if len(starts) == 1:
        return stretches
    lengths = stops - starts

    follows = (starts[1:] == stops[:-1]) & (targets[1:] == targets[:-1] + lengths[:-1])
    firsts = np.concatenate([[True], ~follows])
    lasts = np.concatenate([~follows, [True]])
    return Stretches(starts[firsts], stops[lasts], targets[firsts])


def _arrays_to_read(parts: Iterable[Part], extras: bool, values: bool) -> list[str]:
    """The arrays that all these parts have, without `offsets` and what is not asked for."""
    shared: set[str] | None = None
    for part in parts:
        names = part.record.arrays.keys() - {"offsets"}
        shared = names if shared is None else shared & names

    if shared is None or not extras:
        shared = {"values"}
    if not values:
        shared = shared - {"values"}
    return sorted(shared)


def read_part(feature: Feature, part: Part, kept: Sequence[int] | None = None) -> PartRows:
    """A part's utterances, to be published again: all, or those `kept` by their numbers."""
    record = part.record
    if kept is None:
        kept = range(len(record.ids))

    places = [(part, number) for number in kept]
    ids = [record.ids[number] for number in kept]
    inputs = [record.inputs[number] for number in kept]

    packed = feature.gather(places, ids)
    return PartRows.from_packed(record.corpus, inputs, packed, record.quarantined)
