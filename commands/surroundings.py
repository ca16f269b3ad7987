"""What surrounds the process: its standard streams, its locale, its working folder, its caches."""

import atexit
import contextlib
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from ser.errors import SerError


def prepare() -> None:
    """Make good what can be, before a command runs. Raises `SerError` for what cannot."""
    _open_standard_streams()
    _check_working_folder()
    _find_room_for_numba()


def restart_in_utf8() -> None:
    """Start this process anew where its locale spells paths in ASCII alone.

    Python cannot change that later.
    """
    is_ascii = sys.getfilesystemencoding().lower() in ("ascii", "us-ascii", "646")
    if is_ascii and hasattr(os, "execv"):
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _open_standard_streams() -> None:
    """Let streams that whoever started ser has closed lead nowhere.

    Otherwise the next file that is opened is standard output or standard error.
    """
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        try:
            os.fstat(number)
        except OSError:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def _check_working_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise SerError(
            "the working folder is gone: it was deleted or moved; cd to one that is there and run "
            "the same command again"
        ) from None


def _find_room_for_numba() -> None:
    """Give numba, which librosa compiles with, a cache where it finds none that it may write.

    It looks beside librosa, and in the user's folder.
    """
    if "NUMBA_CACHE_DIR" in os.environ:
        return

    spec = find_spec("librosa")
    beside = Path(str(spec.origin)).parent if spec else Path()
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    if os.access(beside, os.W_OK) or _may_make(Path(user_cache)):
        return

    with contextlib.suppress(OSError):
        folder = tempfile.mkdtemp(prefix="ser-numba-")
        os.environ["NUMBA_CACHE_DIR"] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _may_make(folder: Path) -> bool:
    """Whether a folder is, or can be made, and may be written to."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)
