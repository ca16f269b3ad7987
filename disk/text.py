"""The text of a file that somebody else wrote, in whatever encoding it has."""

from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from contextlib import suppress
from pathlib import Path

from .read import LARGE, read_named

# UTF-32 first: its little-endian mark begins with that of UTF-16.
MARKS = {
    BOM_UTF32_LE: "utf-32",
    BOM_UTF32_BE: "utf-32",
    BOM_UTF16_LE: "utf-16",
    BOM_UTF16_BE: "utf-16",
    BOM_UTF8: "utf-8-sig",
}

# Bytes that show how a file without a mark is encoded.
SAMPLE = 1 << 16

# The share of zero bytes from which a file is UTF-16, or no text: headings alone make so many.
FEW_ZEROS = 0.1


def read_text(path: Path, fallback: str = "cp1252") -> str:
    """The text of a file: by its byte order mark, else UTF-8, else the `fallback` encoding.

    UTF-16 is known without a mark, too. What is none of these is read as Latin-1. Raises
    `ValueError` for a file that is no text, and `OSError` as `read_named` does.
    """
    content = read_named(path, LARGE)

    encoding = _marked(content) or _utf16_without_mark(content)
    if encoding is not None:
        return content.decode(encoding)

    for encoding in ("utf-8", fallback):
        with suppress(UnicodeError):
            return content.decode(encoding)
    return content.decode("latin-1")


def _marked(content: bytes) -> str | None:
    """The encoding that a byte order mark names, if there is one."""
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            return encoding
    return None


def _utf16_without_mark(content: bytes) -> str | None:
    """UTF-16 in the order of its bytes, if they are that; raises `ValueError` for what is no text.

    Each ASCII character of UTF-16, such as a comma, has a zero byte, all on the same side. In any
    other encoding a zero byte is a stray one.
    """
    sample = content[:SAMPLE]
    zeros_first = sample[0::2].count(0)
    zeros_second = sample[1::2].count(0)
    if zeros_first + zeros_second < FEW_ZEROS * len(sample) or not sample:
        return None

    if zeros_second > 9 * zeros_first:
        return "utf-16-le"
    if zeros_first > 9 * zeros_second:
        return "utf-16-be"
    raise ValueError("it is full of zero bytes, and so is no text; save it as UTF-8")
