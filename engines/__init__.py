"""Run tasks in processes of this machine, or on a dask cluster (`Cluster`). Knows no task."""

from .cluster import Cluster
from .interrupts import defer_sigint
from .machine import cores, exact_arithmetic, gpus
from .processes import run
from .worker_cache import cached

__all__ = [
    "Cluster",
    "cached",
    "cores",
    "defer_sigint",
    "exact_arithmetic",
    "gpus",
    "run",
]
