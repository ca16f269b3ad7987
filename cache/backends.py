"""The backends of a store, by the name that `--backend` and part.json give them."""

from .hdf5_layout import HDF5
from .layout import Backend
from .zarr_layout import ZARR

BACKENDS: dict[str, Backend] = {"zarr": ZARR, "hdf5": HDF5}
