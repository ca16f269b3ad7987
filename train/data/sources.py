"""A feature's rows as they are read from the store, and as a run takes them."""

import math
from itertools import pairwise

import numpy as np
import torch

from ser.cache.feature import Feature
from ser.cache.part import Part
from ser.cache.rows import Packed
from ser.cache.spec import Spec
from ser.corpus.manifest import Manifest
from ser.errors import MissingRows, WrongUse, ser_command

from ..records import FeatureRecord
from .inputs import Inputs
from .select import FeatureSelection, ModalitySelection
from .streamed import Streamed


def as_read(stored: Inputs, record: FeatureRecord, spec: Spec, vectors: bool) -> Inputs:
    """A feature's stored rows as a run takes them that has this record of it.

    Averaged to its hop, if it has one, and pooled where the run takes `vectors`.
    """
    if record.hop and spec.hop:
        stored = stored.averaged(round(record.hop / spec.hop))
    if vectors and spec.level != "utterance":
        stored = stored.pooled(record.pool)
    return stored


def feature_source(selection: FeatureSelection, manifest: Manifest, rows: np.ndarray) -> Streamed:
    """These rows [n] of the manifest: one of them is read now.

    Of the others all but the content is checked. Raises `MissingRows` and `CorruptStore`.
    """
    feature = selection.feature
    spec = feature.spec
    places = feature.places(manifest, rows.tolist())

    lengths = np.array(
        [part.offsets[row + 1] - part.offsets[row] for part, row in places], np.int64
    )
    if not lengths.all():
        raise MissingRows(
            f"{spec.name}: utterance {manifest.ids[rows[lengths.argmin()]]} has no rows at all; "
            f"run {_remove(feature)} and extract or import it again"
        )

    def read(utterances: np.ndarray) -> Inputs:
        chosen = [places[number] for number in utterances.tolist()]
        with_extras = selection.extra is not None or selection.beside is not None
        packed = feature.gather(chosen, [""] * len(chosen), with_extras)

        values = packed.values
        if selection.extra is not None:
            values = _extra(feature, packed, selection.extra)
        elif selection.beside is not None:
            values = with_column(values, _extra(feature, packed, selection.beside))
        stored = Inputs(torch.from_numpy(values), packed.offsets)
        return as_read(stored, selection.record, spec, selection.vectors)

    # Part by part, as they come, and row by row: blocks are read once.
    number_of_part: dict[Part, int] = {}
    part_numbers = []
    rows_in_part = []
    for part, row in places:
        number_of_part.setdefault(part, len(number_of_part))
        part_numbers.append(number_of_part[part])
        rows_in_part.append(row)
    order = np.lexsort((rows_in_part, part_numbers))

    # Whatever is read has the dtype and dimension of the first that is.
    empty = read(order[:1]).values[:0].clone()

    frames = round(selection.hop / (spec.hop or math.nan)) if selection.hop else 1
    lengths_read = np.ones_like(lengths) if selection.pooled else -(-lengths // frames)
    cost = lengths_read * empty.shape[1] * empty.itemsize
    as_values = selection.extra is None and selection.beside is None
    is_as_stored = not selection.pooled and selection.hop is None and as_values
    if not is_as_stored:
        # Beside what is read stands what is stored.
        cost += lengths * spec.dim * np.dtype(spec.dtype).itemsize

    offsets = np.concatenate([[0], np.cumsum(lengths_read)])
    return Streamed(empty, offsets, read=read, cost=cost, order=order)


def with_column(values: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Rows [rows, dim] with a column [rows, 1] of small whole numbers behind: [rows, dim + 1]."""
    return np.concatenate([values, column.astype(values.dtype)], axis=1)


def _extra(feature: Feature, packed: Packed, name: str) -> np.ndarray:
    """An extra of a feature's rows, [rows, 1]. Raises `MissingRows` if they lack it."""
    if name not in packed.extras:
        raise MissingRows(
            f"{feature.spec.name} holds rows without '{name}'; "
            f"run {_remove(feature)} and extract it again"
        )
    return packed.extras[name][:, None]


def _remove(feature: Feature) -> str:
    """The command that removes a feature whose rows cannot be trained on."""
    name = f"{feature.spec.feature}@{feature.fingerprint}"
    return ser_command("cache", "remove", name, "--store", feature.store)


def modality_source(selection: ModalitySelection, manifest: Manifest, rows: np.ndarray) -> Streamed:
    """As `feature_source`, of features side by side [rows, Σ dim].

    Behind these n utterances come the same ones of each view. Raises `WrongUse` if the rows of its
    features are not alike.
    """
    copies = [selection.parts]
    for view in selection.views:
        copies.append((view,))

    # The features of each copy.
    sources: list[list[Streamed]] = []
    for parts in copies:
        sources.append([feature_source(part, manifest, rows) for part in parts])
    _check_alike(selection, sources[0])
    if len(copies) == len(selection.parts) == 1:
        return sources[0][0]

    n = len(rows)
    dims = [part.dim for part in selection.parts]
    lengths = np.concatenate([np.diff(copy[0].offsets) for copy in sources])

    # No rows, of all columns and of the widest dtype.
    empty_copies = []
    for copy in sources:
        empty_copies.append(torch.cat([source.values for source in copy], 1))
    empty = torch.cat(empty_copies)

    def read(utterances: np.ndarray) -> Inputs:
        offsets = np.concatenate([[0], np.cumsum(lengths[utterances])])
        values = empty.new_empty(int(offsets[-1]), selection.dim)

        # The utterances are sorted: those of each copy stand together.
        bounds = np.searchsorted(utterances, n * np.arange(len(copies) + 1))
        for copy, (first, last) in zip(sources, pairwise(bounds), strict=True):
            rows_of_copy = values[offsets[first] : offsets[last]]
            columns_of_features = rows_of_copy.split(dims, 1)
            for source, columns in zip(copy, columns_of_features, strict=True):
                columns.copy_(source.read(utterances[first:last] % n).values)
        return Inputs(values, offsets)

    # Beside the rows of all features stand those of one, while they are read.
    costs_beside = []
    orders = []
    for number, copy in enumerate(sources):
        costs_beside.append(np.max([source.cost for source in copy], axis=0))
        orders.append(copy[0].order + n * number)
    return Streamed(
        empty,
        np.concatenate([[0], np.cumsum(lengths)]),
        read=read,
        cost=lengths * selection.dim * empty.itemsize + np.concatenate(costs_beside),
        order=np.concatenate(orders),
    )


def _check_alike(selection: ModalitySelection, sources: list[Streamed]) -> None:
    """Raise `WrongUse` if a feature has not as many rows of each utterance as the first."""
    first = selection.parts[0]
    for part, source in zip(selection.parts, sources, strict=True):
        if not np.array_equal(source.offsets, sources[0].offsets):
            raise WrongUse(
                f"{selection.name}: {part.record.read_name} has not as many rows as "
                f"{first.record.read_name}; join them in a fusion of vectors such as lgf-add, "
                "which pools them"
            )
