"""Look up and download a model on the Hub, or on the mirror that HF_ENDPOINT names.

Always the main branch: a conversion that somebody proposes in a pull request is never taken.
"""

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ser.disk.deadline import within
from ser.disk.faults import DISK_FULL, explain_disk_errors
from ser.disk.paths import expand_user
from ser.errors import SerError, WeightsError

# Told of a model, how many of its bytes have come, and of how many.
OnDownload = Callable[[str, int, int], None]

# Seconds between two looks at what has come.
LOOK_EVERY = 0.5
# Seconds that the Hub may be silent.
PATIENCE = 10
# Seconds until it has said what a model holds: some servers trickle.
ANSWER_WITHIN = 60


@dataclass(frozen=True)
class Repository:
    """What a model's main branch holds."""

    name: str
    commit: str
    # Bytes of each file, by its path.
    sizes: Mapping[str, int]


def host() -> str:
    """The host that models come from."""
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc


def hub_cache() -> Path:
    """Hugging Face's cache: HF_HUB_CACHE, or `hub` in HF_HOME."""
    from huggingface_hub import constants

    return expand_user(constants.HF_HUB_CACHE)


def look_up(name: str, remedy: str) -> Repository:
    """The files of a model and their sizes; one request.

    With HF_HUB_OFFLINE=1 there is none. Raises `WeightsError`, whose sentence ends in `remedy`.
    """
    from huggingface_hub import HfApi

    with explained(name, remedy):
        info = within(
            ANSWER_WITHIN,
            host(),
            lambda: HfApi().model_info(name, files_metadata=True, timeout=PATIENCE),
        )
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    return Repository(name, str(info.sha), sizes)


def still_to_come(repository: Repository, files: Iterable[str]) -> int:
    """Bytes of those files that Hugging Face's cache does not hold."""
    from huggingface_hub import try_to_load_from_cache

    size = 0
    for file in files:
        cached = try_to_load_from_cache(repository.name, file, revision=repository.commit)
        if not isinstance(cached, str):
            size += repository.sizes[file]
    return size


def download(
    name: str,
    files: Sequence[str],
    size: int,
    remedy: str,
    on_download: OnDownload | None = None,
) -> Path:
    """Bring files of a model into Hugging Face's cache; returns their folder.

    What is there is not fetched again: `size` are the bytes of the rest. Where a connection breaks,
    the Hub's client goes on from there, and gives up when five in a row bring nothing. Raises
    `WeightsError`, whose sentence ends in `remedy`, and `StoreError` if the disk is full.
    """
    from huggingface_hub import snapshot_download

    with explained(name, remedy), _watched(name, size, on_download):
        folder = snapshot_download(name, allow_patterns=list(files), etag_timeout=PATIENCE)
    return Path(folder)


@contextmanager
def explained(name: str, remedy: str) -> Iterator[None]:
    """Turn what the Hub's client raises into a `WeightsError` of one sentence.

    Or a `StoreError`, if the disk is full. The client raises its own errors, those of the library
    that it speaks HTTP with, and the system's.
    """
    try:
        yield
    except SerError:
        raise
    except Exception as error:
        for cause in _causes(error):
            if isinstance(cause, OSError) and cause.errno in DISK_FULL:
                with explain_disk_errors(f"downloading {name}", hub_cache()):
                    raise cause from None
        raise WeightsError(f"{name}: {_explain(name, error)}, {remedy}") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it, the last cause at the end."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _explain(name: str, error: Exception) -> str:
    """Why a model did not come, and what to do; a remedy may follow behind a comma."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    copy = "copy the model's folder here from a machine with a network"
    for cause in _causes(error):
        if isinstance(cause, HFValidationError):
            return (
                "no such folder, and it is not a Hugging Face id either; "
                "copy the model's folder here"
            )
        # Before the more general fault, of which it is a kind.
        if isinstance(cause, GatedRepoError):
            return (
                f"is gated: accept its conditions at {constants.ENDPOINT}/{name}, log in "
                "(`hf auth login`, or HF_TOKEN) and run the same command again; or copy the "
                "model's folder here"
            )
        if isinstance(cause, RepositoryNotFoundError):
            return (
                f"no such folder, and {host()} has no such model, or hides it: check the name, or "
                "log in (`hf auth login`, or HF_TOKEN) for a private one; or copy its folder here"
            )

    missing = "no such folder, and not in Hugging Face's cache"
    if constants.HF_HUB_OFFLINE:
        return f"{missing}, and HF_HUB_OFFLINE is set; {copy}"
    return f"{missing}, and {_fault_of_network(error)}; {copy}"


def _fault_of_network(error: Exception) -> str:
    """What went wrong between here and the Hub."""
    from huggingface_hub.errors import FileMetadataError

    for cause in _causes(error):
        response: Any = getattr(cause, "response", None)
        status = getattr(response, "status_code", None)
        if status == 429:
            wait = response.headers.get("Retry-After")
            pause = f"{wait} s" if wait else "some minutes"
            return (
                f"{host()} takes no more requests for now (429): wait {pause} and run the same "
                "command again, with HF_TOKEN more are allowed"
            )
        if status is not None:
            return f"{host()} answered with {status}: run the same command again later"
        if "Timeout" in type(cause).__name__:
            # Of `within`, or of a client that waits for each byte.
            seconds = ANSWER_WITHIN if type(cause) is TimeoutError else PATIENCE
            return f"{host()} did not answer in {seconds} s: run the same command again"
        if isinstance(cause, FileMetadataError | json.JSONDecodeError):
            return (
                f"{host()} did not answer as a Hub does: check HF_ENDPOINT, the proxy, and whether "
                "this network asks for a login"
            )
    return f"{host()} could not be reached ({type(error).__name__})"


@contextmanager
def _watched(name: str, total: int, on_download: OnDownload | None) -> Iterator[None]:
    """Tell `on_download`, all the while, how many bytes of a model have come.

    They are counted on disk: whatever way the client brings them, there they arrive. Without
    `on_download` the client shows bars of its own.
    """
    if on_download is None and total:
        yield
        return

    with _without_bars():
        if on_download is None or not total:
            yield
            return

        finished = threading.Event()
        watcher = threading.Thread(
            target=_watch, args=(name, total, on_download, finished), daemon=True
        )
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()
        on_download(name, total, total)


def _watch(name: str, total: int, on_download: OnDownload, finished: threading.Event) -> None:
    blobs = hub_cache() / f"models--{name.replace('/', '--')}" / "blobs"
    before = _bytes_in(blobs)
    done = 0
    while not finished.wait(LOOK_EVERY):
        done = max(done, min(_bytes_in(blobs) - before, total))
        on_download(name, done, total)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without the bars of the Hub's client."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _bytes_in(folder: Path) -> int:
    """Bytes of the files in a folder; 0 where there is none."""
    size = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                size += _size(entry)
    except FileNotFoundError:
        return size
    return size


def _size(entry: "os.DirEntry[str]") -> int:
    """The bytes of one file; 0 if it has just been renamed."""
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return 0
