"""Files that claim more than they hold: each number that sizes work, made large.

Whoever is `patient` has time for files that take seconds to make and to refuse.
"""

import io
import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf

# Beyond any file of the tests, and within what a program tries.
MIN_CLAIM = 10**6
MAX_CLAIM = 10**10

ROWS = 2_000_000
LONG_TEXT = 2_000_000
DOUBLED_LINES = 25
# Where there is time for it, and where there is not.
MANY_TABLES = 20_000
TABLES = 500

FLAC_RATE = 384_000
FLAC_MINUTES = 15


def claim(random: Random) -> int:
    """A number that is too large, often one that a bound on such numbers may let pass."""
    if random.random() < 0.5:
        return MIN_CLAIM
    return 10 ** random.randint(len(str(MIN_CLAIM)) - 1, len(str(MAX_CLAIM)) - 1)


def in_json(content: bytes, random: Random, patient: bool) -> bytes:
    """One of the numbers of a JSON file made large."""
    value = json.loads(content)
    places: list[tuple[Any, Any]] = []
    _find_numbers(value, places)
    if not places:
        return content
    # What a program repeats or allocates is called so; the others have their turn too.
    sizes = [(parent, key) for parent, key in places if str(key).startswith("num_")]
    if sizes and random.random() < 0.7:
        places = sizes
    parent, key = random.choice(places)
    parent[key] = claim(random)
    return json.dumps(value).encode()


def _find_numbers(value: Any, places: list[tuple[Any, Any]]) -> None:
    keys: Any = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = range(len(value))
    for key in keys:
        if isinstance(value[key], int) and not isinstance(value[key], bool):
            places.append((value, key))
        else:
            _find_numbers(value[key], places)


def in_toml(content: bytes, random: Random, patient: bool) -> bytes:
    """One of the numbers of a TOML file made large, or the last of its tables many times."""
    text = content.decode()
    tables = text.rpartition("[[")
    if tables[1] and random.random() < 0.5:
        copies = []
        for number in range(MANY_TABLES if patient else TABLES):
            copy = f"[[{tables[2].strip()}\n"
            copies.append(re.sub(r'(?m)^name = "(.*)"', rf'name = "\1 {number}"', copy))
        return (tables[0] + "".join(copies)).encode()

    numbers = list(re.finditer(r"(?<==\s)\d+", text))
    if not numbers:
        return content
    # One of them, or all: a bound on one may hang on another.
    chosen = numbers if random.random() < 0.3 else [random.choice(numbers)]
    large = str(claim(random))
    for number in reversed(chosen):
        text = text[: number.start()] + large + text[number.end() :]
    return text.encode()


def in_yaml(content: bytes, random: Random, patient: bool) -> bytes:
    """The file with lines of which each stands for the one before, several times."""
    lines = [content.decode().rstrip(), "a0: &a0 {k: 1}", "b0: &b0 {k: 1}"]
    for number in range(1, DOUBLED_LINES):
        before = ", ".join([f"*a{number - 1}"] * random.choice((2, 6)))
        lines.append(f"a{number}: &a{number} [{before}]")
        # Values that are shared take no memory; those that are merged are copied.
        lines.append(f"b{number}: &b{number} {{<<: [{before.replace('a', 'b')}]}}")
    return "\n".join(lines).encode()


def in_parquet(content: bytes, random: Random, patient: bool) -> bytes:
    """Each row's text once, for many rows: a few bytes for any number of them."""
    table = pq.read_table(io.BytesIO(content))
    rows = ROWS
    text = "a"
    if random.random() < 0.5:
        rows = 100_000
        text = "x" * LONG_TEXT

    numbers = pa.array(np.zeros(rows, "i4"))
    columns = {name: pa.DictionaryArray.from_arrays(numbers, [text]) for name in table.column_names}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def in_npy(content: bytes, random: Random, patient: bool) -> bytes:
    """An array whose header says more rows; its length stays the same, by the padding behind it."""
    head = content[:128].decode("latin-1")
    larger = re.sub(r"\((\d+),", f"({claim(random)},", head, count=1)
    surplus = len(larger) - len(head)
    return larger.replace(" " * surplus, "", 1).encode("latin-1") + content[128:]


def in_flac(content: bytes, random: Random, patient: bool) -> bytes:
    """A long silence, which takes next to no bytes, or a header that counts more samples."""
    if random.random() < 0.5:
        # The last 36 bits of these bytes of STREAMINFO.
        info = int.from_bytes(content[18:26], "big")
        larger = (info >> 36 << 36) | claim(random)
        return content[:18] + larger.to_bytes(8, "big") + content[26:]

    sink = io.BytesIO()
    silence = np.zeros(FLAC_RATE * 60, np.int16)
    with sf.SoundFile(sink, "w", FLAC_RATE, 1, format="FLAC", subtype="PCM_16") as file:
        for _ in range(FLAC_MINUTES if patient else 1):
            file.write(silence)
    return sink.getvalue()


# By suffix, how a file comes to claim more than it holds.
CLAIMS: dict[str, Callable[[bytes, Random, bool], bytes]] = {
    ".json": in_json,
    ".toml": in_toml,
    ".yaml": in_yaml,
    ".parquet": in_parquet,
    ".npy": in_npy,
    ".flac": in_flac,
}
