"""One feature of a store, computed in one way: its parts, and the rows that a manifest joins to
them.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ser.cache.manifests import list_corpora, read_manifest
from ser.cache.spec import Spec
from ser.corpus.manifest import Key, Manifest
from ser.disk.read import REPAIR
from ser.disk.records import checksummed_json, read_checksummed
from ser.disk.workspace import put_files
from ser.errors import CorruptStore, MissingRows

from .blocks import Stretch, read_stretches
from .part import Packed, Part, PartRows, publish

__all__ = ["Feature"]

Place = tuple[Part, int]  # a part, and an utterance's number in it


def part_names(feature: Path) -> set[str]:
    """The names of the parts in a feature's folder. Raises `CorruptStore` if that is a link to a
    disk that is away.
    """
    folder = feature / "parts"
    try:
        with os.scandir(
            folder
        ) as entries:  # a plain file beside the parts, such as a `Thumbs.db`, is no part
            names = [entry.name for entry in entries if not entry.is_file(follow_symlinks=False)]
            return {name for name in names if not name.startswith(".")}
    except (FileNotFoundError, NotADirectoryError):
        if (
            os.path.lexists(folder) and not folder.is_dir()
        ):  # another process may just have made the folder
            raise CorruptStore(
                f"{folder}: leads to no folder; mount the disk, or remove it"
            ) from None
        return set()


class Feature:
    """A folder `<store>/<feature>/<fingerprint>/`; with `spec`, its spec.json is not read."""

    def __init__(self, store: Path, path: Path, spec: Spec | None = None) -> None:
        if spec is None:
            spec = read_checksummed(path / "spec.json", Spec)
            if (spec.feature, spec.fingerprint) != (path.parent.name, path.name):
                fault = "stands in the folder of another feature or fingerprint"
                raise CorruptStore(f"{path / 'spec.json'}: {fault}; {REPAIR}")
        self.store, self.path, self.spec = store, path, spec
        self._parts: dict[str, Part] = {}
        self._rows: dict[Key, Place] = {}
        self._quarantined: dict[Key, str] = {}
        self._latest: dict[str, Place] = {}

    @property
    def fingerprint(self) -> str:
        """The folder's name: how the feature was computed."""
        return self.path.name

    def annotate(self, **provenance: Any) -> None:
        """Add to the spec's provenance, which the fingerprint does not hash."""
        spec = Feature(self.store, self.path).spec  # as it is now
        self.spec = replace(spec, provenance={**spec.provenance, **provenance})
        put_files(self.store, self.path, {"spec.json": checksummed_json(self.spec.to_json())})

    def parts(self) -> list[Part]:
        """Every published part, by name. Raises `CorruptStore` for one that cannot be trusted."""
        names, folder, known = sorted(part_names(self.path)), self.path / "parts", self._parts
        if names != list(known):
            try:
                self._parts = {
                    name: known.get(name) or Part.open(folder / name, self.fingerprint)
                    for name in names
                }
            except CorruptStore:
                if all(os.path.lexists(folder / name) for name in names):
                    raise
                return self.parts()  # another process has removed one since
            self._rows, self._quarantined, self._latest = {}, {}, {}
            for part in self._parts.values():  # should two hold the same row, the first counts
                for number, key in enumerate(part.keys):
                    self._rows.setdefault(key, (part, number))
                for entry in part.record.quarantined:
                    self._quarantined.setdefault(
                        (part.record.corpus, entry.id, entry.input), entry.reason
                    )
        return list(self._parts.values())

    def keys(self, manifest: Manifest) -> list[Key]:
        """What joins each row of the manifest to the parts that are there now.

        In a second set of transcripts an utterance without an audio row of its own has its
        parent's.
        """
        self.parts()
        if manifest.parts:
            return [key for part in manifest.parts for key in self.keys(part)]
        keys = manifest.keys(self.spec.modality)
        if manifest.parent is None or self.spec.modality != "audio":
            return keys
        keys = list(keys)
        for number, own in enumerate(keys):
            parents = (manifest.parent.corpus, *own[1:])
            row_there = own not in self._rows and parents in self._rows
            quarantined_there = own not in self._quarantined and parents in self._quarantined
            if row_there or (quarantined_there and own not in self._rows):
                keys[number] = parents
        return keys

    def place(self, key: Key) -> Place | None:
        """The part that holds a row, and the row's number in it, when `parts` was last called."""
        return self._rows.get(key)

    def missing(self, manifest: Manifest, retry: bool = False) -> list[int]:
        """Manifest rows that have neither a current row nor (unless `retry`) a current quarantine."""
        keys = enumerate(self.keys(manifest))
        skipped: Mapping[Key, str] = {} if retry else self._quarantined
        return [number for number, key in keys if key not in self._rows and key not in skipped]

    def quarantined(self, manifest: Manifest) -> dict[str, str]:
        """Id → reason of the utterances that could not be computed from what the manifest names."""
        keys = zip(manifest.ids, self.keys(manifest), strict=True)
        return {
            id_: self._quarantined[key]
            for id_, key in keys
            if key in self._quarantined and key not in self._rows
        }

    def rows(self, manifest: Manifest) -> int:
        """How many utterances of the manifest have a current row."""
        return sum(key in self._rows for key in self.keys(manifest))

    def complete(self, manifest: Manifest) -> bool:
        """Whether every utterance of the manifest is there or quarantined."""
        return not self.missing(manifest)

    def publish(
        self, rows: PartRows, backend: str = "zarr", written_by: Mapping[str, Any] | None = None
    ) -> str | None:
        """Publish one part, whole or not at all. Its name, or None if that part is there already."""
        return publish(self.store, self.path / "parts", rows, self.spec, backend, written_by or {})

    def load(self, manifest: Manifest, rows: Sequence[int] | None = None) -> Packed:
        """Utterances in the order of `rows` (manifest row numbers; None: all), in memory, every
        block verified.

        Raises `MissingRows` if some are not in the store and `CorruptStore` if one cannot be
        trusted.
        """
        rows = range(len(manifest)) if rows is None else rows
        return self.gather(self.places(manifest, rows), [manifest.ids[row] for row in rows])

    def places(self, manifest: Manifest, rows: Sequence[int]) -> list[Place]:
        """Where utterances lie, for `gather`. Raises `MissingRows` if some are not in the store."""
        all_keys = self.keys(manifest)
        keys = [all_keys[row] for row in rows]
        if missing := [key for key in keys if key not in self._rows]:
            known = sum(key in self._quarantined for key in missing)
            quarantined, retry = (
                (f", {known} of them quarantined", " --retry") if known else ("", "")
            )
            fault = (
                f"{len(missing)} of {len(rows)} utterances of corpus {manifest.corpus}{quarantined}"
            )
            command = f"`ser features CORPUS --features {self.spec.name} --store {self.store}{retry}`, or import all"
            raise MissingRows(
                f"{self.spec.name} lacks {fault} (such as {missing[0][1]!r}); run {command}"
            )
        return [self._rows[key] for key in keys]

    def __getitem__(self, id_: str) -> npt.NDArray[Any]:
        """One utterance, `[n, dim]`, or `[dim]` at utterance level, in the stored dtype.

        An id whose input has changed, or that several corpora have, is read as in the latest
        manifests, of the first corpus by name; load by manifest to choose.
        """
        if id_ not in self._latest:
            manifests = [
                read_manifest(self.store, corpus) for corpus in reversed(list_corpora(self.store))
            ]
            keys = [key for manifest in manifests for key in self.keys(manifest)]
            self._latest = {key[1]: self._rows[key] for key in keys if key in self._rows}
        if id_ not in self._latest:
            raise MissingRows(f"{self.spec.name} has no utterance {id_!r}")
        values = self.gather([self._latest[id_]], [id_], extras=False).values
        return values[0] if self.spec.level == "utterance" else values

    def gather(
        self, places: Sequence[Place], ids: list[str], extras: bool = True, values: bool = True
    ) -> Packed:
        """Utterances by their places, in the order given, each block verified. Extras are those
        that all parts have.

        Without `values` only extras are read.
        """
        stretches: dict[Part, list[Stretch]] = {part: [] for part, _ in places}
        offsets = [0]
        for part, row in places:
            start, stop = part.offsets[row], part.offsets[row + 1]
            mine, target = stretches[part], offsets[-1]
            before = mine[-1] if mine else (0, -1, 0)
            if (
                before[1] == start and before[2] + start - before[0] == target
            ):  # continues it, in part and target
                mine[-1] = (before[0], stop, before[2])
            else:
                mine.append((start, stop, target))
            offsets.append(target + stop - start)
        shared = [part.record.arrays.keys() - {"offsets"} for part in stretches]
        names = set.intersection(*shared) if shared and extras else {"values"}
        arrays = {"values": np.empty((0, self.spec.dim), self.spec.dtype)}
        for name in sorted(names if values else names - {"values"}):
            records = {part: part.record.arrays[name] for part in stretches}
            kinds = {(record.dtype, record.shape[1:]) for record in records.values()}
            if name == "values":
                kinds.add((self.spec.dtype, (self.spec.dim,)))
            if len(kinds) > 1:
                fault = (
                    f"array '{name}' has another dtype or dimension than its spec or in other parts"
                )
                raise CorruptStore(f"{self.path / 'parts'}: {fault}; {REPAIR}")
            dtype, shape = kinds.pop()
            arrays[name] = np.empty((offsets[-1], *shape), dtype)
            jobs = [(part.folder, record, stretches[part]) for part, record in records.items()]
            read_stretches(jobs, arrays[name])
        return Packed(arrays.pop("values"), np.array(offsets), ids, arrays)


def held_rows(feature: Feature, part: Part, kept: Sequence[int] | None = None) -> PartRows:
    """A part's utterances in memory, to be published again: all, or those `kept` by their numbers."""
    record, kept = part.record, range(len(part.record.ids)) if kept is None else kept
    packed = feature.gather(
        [(part, number) for number in kept], [record.ids[number] for number in kept]
    )
    return PartRows.from_packed(
        record.corpus, [record.inputs[number] for number in kept], packed, record.quarantined
    )
