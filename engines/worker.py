"""On a dask worker: which one this is, and what it declares to have."""

import os
import socket
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Worker


def this_worker() -> "Worker | None":
    """The dask worker whose task this thread has in hand."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        return get_worker()
    except ValueError:
        return None


def here() -> dict[str, Any]:
    """Which dask worker this is: its address, name, host and process; nothing where it is none."""
    if (worker := this_worker()) is None:
        return {}
    return {"worker": worker.address, "name": str(worker.name), "host": socket.gethostname(), "pid": os.getpid()}


def resources() -> dict[str, float]:
    """What this dask worker declares to have, as in `dask worker --resources "GPU=1 CPU=8"`."""
    worker = this_worker()
    return dict(worker.state.total_resources) if worker else {}
