"""Reads over a network that end: after so many bytes, and when nothing comes."""

import asyncio
import contextlib
import logging
import time
from typing import Any

PIECE = 1 << 20

# In each stretch of the patience at least so many bytes must come.
LEAST = 1 << 16

# After so many seconds it is said what is waited for.
SAY_AFTER = 10.0

log = logging.getLogger("ser.cache")


def can_stream(filesystem: Any) -> bool:
    """Whether a file system of fsspec gives its files piece by piece."""
    from fsspec.asyn import AsyncFileSystem

    if not filesystem.async_impl:
        return False
    return type(filesystem).open_async is not AsyncFileSystem.open_async


def read_at_most(filesystem: Any, place: str, max_bytes: int, patience: float) -> bytes:
    """The first bytes of a file, however long the answer is.

    Raises `TimeoutError` if nothing comes for `patience` seconds, or too little: a file has as many
    stretches of them as 64 KB.
    """
    from fsspec.asyn import sync

    content: bytes = sync(filesystem.loop, _read, filesystem, place, max_bytes, patience)
    return content


async def _read(filesystem: Any, place: str, max_bytes: int, patience: float) -> bytes:
    begun = time.monotonic()
    content = bytearray()
    stream = await _answer(_open(filesystem, place, max_bytes), patience, place)
    is_told = False

    try:
        while len(content) < max_bytes:
            allowed = begun + patience * (1 + len(content) // LEAST) - time.monotonic()
            reading = stream.read(min(PIECE, max_bytes - len(content)))
            piece = await _answer(reading, min(patience, allowed), place)
            if not piece:
                break
            content += piece

            waited = time.monotonic() - begun
            if not is_told and waited > SAY_AFTER and len(content) < LEAST:
                is_told = True
                log.warning(
                    "%s: %d bytes in %.0f s; at most %.0f s", place, len(content), waited, patience
                )
    finally:
        # What is still under way is not read.
        await _close(stream)
    return bytes(content)


async def _open(filesystem: Any, place: str, max_bytes: int) -> Any:
    """A file to read from; of S3 the answer's body, whatever its length is said to be."""
    if "s3" not in filesystem.protocol:
        return await filesystem.open_async(place, "rb")

    bucket, key, _ = filesystem.split_path(place)
    part = f"bytes=0-{max_bytes - 1}"
    try:
        answer = await filesystem._call_s3("get_object", Bucket=bucket, Key=key, Range=part)
    except OSError as error:
        # An empty file has no such range.
        if "range is not satisfiable" not in str(error):
            raise
        answer = await filesystem._call_s3("get_object", Bucket=bucket, Key=key)
    return answer["Body"]


async def _close(stream: Any) -> None:
    """Close a file and its connection."""
    body = getattr(stream, "r", None)
    closing = stream.close()
    if asyncio.iscoroutine(closing):
        with contextlib.suppress(Exception):
            await closing
    if body is not None:
        body.close()


async def _answer(awaitable: Any, seconds: float, place: str) -> Any:
    """What comes within so many seconds; that it takes long is said before. Raises TimeoutError."""
    waiting = asyncio.ensure_future(awaitable)
    await asyncio.wait({waiting}, timeout=min(SAY_AFTER, max(seconds, 0)))
    if not waiting.done() and seconds > SAY_AFTER:
        log.warning("%s: nothing comes for %.0f s; at most %.0f s", place, SAY_AFTER, seconds)
        await asyncio.wait({waiting}, timeout=seconds - SAY_AFTER)

    if not waiting.done():
        waiting.cancel()
        raise TimeoutError
    return waiting.result()
