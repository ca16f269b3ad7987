"""A part's arrays in one HDF5 file, `data.h5`: contiguous, unfiltered datasets."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .blocks import ArrayRecord
from .layout import ArrayBlock, Arrays, Backend, Content, FileContents, OtherBytes

_FILE = "data.h5"

# HDF5's own: deflate, shuffle, fletcher32.
_OWN_FILTERS = {1, 2, 3}


def _encode(arrays: Arrays) -> FileContents:
    """The file is made in memory, which takes as much again.

    The HDF5 library reports a full disk late or not at all.
    """
    import h5py

    image = io.BytesIO()
    offsets: dict[str, int] = {}

    with h5py.File(image, "w") as file:
        for name, array in arrays.items():
            dataset = file.create_dataset(name, array.shape, array.dtype)
            # This allocates all of it; the array's bytes take its place in the file.
            dataset[:1] = 0
            file.flush()
            offsets[name] = dataset.id.get_offset() or 0

    content: Content = []
    end = 0
    for name in sorted(offsets, key=offsets.__getitem__):
        array = arrays[name]
        content.append(OtherBytes(image.getbuffer()[end : offsets[name]]))
        for views in array.blocks(0, array.shape[0]):
            content.append(ArrayBlock(name, views))
        end = offsets[name] + sum(piece.nbytes for piece in array.pieces)

    content.append(OtherBytes(image.getbuffer()[end:]))
    return {_FILE: content}


def _inspect(folder: Path, arrays: Mapping[str, ArrayRecord]) -> str | None:
    import h5py

    with h5py.File(folder / _FILE, "r") as file:
        if set(file) != set(arrays):
            return f"{_FILE} holds {sorted(file)} where {sorted(arrays)} are recorded"

        # All of them before any is compared: one that lies elsewhere moves the others.
        for name in arrays:
            fault = foreign_hdf5(file, name)
            if fault:
                return f"{_FILE}: {fault}"

        for name, array in arrays.items():
            if not _is_recorded(file[name], array):
                return f"{_FILE}: array '{name}' is another for HDF5 than for its blocks"

    return None


def _is_recorded(dataset: Any, array: ArrayRecord) -> bool:
    """Whether a dataset is contiguous, as recorded, and lies where its blocks do."""
    expected = (array.shape, array.dtype, None)
    if (dataset.shape, dataset.dtype, dataset.chunks) != expected:
        return False

    offset = dataset.id.get_offset()
    for block in array.blocks:
        if block.offset != offset:
            return False
        offset += block.bytes

    return True


def foreign_hdf5(file: Any, name: str) -> str | None:
    """Why a dataset's bytes may lie outside its file or need foreign code, or None.

    `file` is an open `h5py.File` or group. Links are examined before they are followed.
    """
    import h5py

    is_hard_link = isinstance(file.get(name, getlink=True), h5py.HardLink)
    if not is_hard_link or not isinstance(file[name], h5py.Dataset):
        return f"'{name}' is a group, or a link to elsewhere"

    created = file[name].id.get_create_plist()
    if created.get_layout() == h5py.h5d.VIRTUAL or created.get_external_count():
        return f"'{name}' keeps its values elsewhere"

    filters = {created.get_filter(number)[0] for number in range(created.get_nfilters())}
    if filters - _OWN_FILTERS:
        return f"'{name}' uses a filter other than gzip, shuffle and fletcher32"

    return None


HDF5 = Backend(_encode, _inspect)
