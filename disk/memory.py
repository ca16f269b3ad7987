"""Memory that ends while a file is read: said in one sentence that names the file."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ser.errors import FREE_MEMORY, SerError

# In messages of torch on a GPU and on a CPU, of cuBLAS and cuDNN, of a cuDNN without memory to try
# its kernels, of libraries in C++, and of the system where a file is mapped.
SIGNS = (
    "out of memory",
    "can't allocate",
    "cannot allocate memory",
    "ALLOC_FAILED",
    "unable to find an engine",
    "bad_alloc",
)


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether this is an allocation that failed, in this process's memory or a GPU's."""
    if isinstance(fault, MemoryError):
        return True
    text = str(fault)
    return any(sign.casefold() in text.casefold() for sign in SIGNS)


def does_not_fit(path: Path | str) -> str:
    """The sentence about a file that is too large for what memory is left."""
    return f"{path} does not fit into the memory left; {FREE_MEMORY}"


@contextlib.contextmanager
def name_what_does_not_fit(path: Path | str, fault: type[SerError]) -> Iterator[None]:
    """Raise a `fault` that names the file if memory ends while it is read.

    Everything else, ser's own faults among it, is raised as it is.
    """
    try:
        yield
    except SerError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise fault(does_not_fit(path)) from error
