"""How many samples a FLAC file holds, by its last frame (RFC 9639, sections 8 and 9)."""

from .audio_content import Content, Mend

# At most 65,535 samples are in a frame, which takes 10 bytes and more.
MAX_SAMPLES_PER_BYTE = 65535 / 10

# In STREAMINFO: the size of the first block, and of all but the last where blocks have one size.
_MIN_BLOCK = slice(8, 10)
# In STREAMINFO: the last 36 of these bits are the number of samples, 0 where it is not known.
_COUNT = slice(21, 26)
_COUNT_BITS = 36

# How a frame begins: with blocks of one size, and with blocks of several.
_SYNC_FIXED = b"\xff\xf8"
_SYNC_VARIABLE = b"\xff\xf9"
# Bytes from the end in which the last frame begins: a frame of 65,535 samples is smaller.
_LAST_FRAME = 1 << 20
# Frames whose CRC-16 is computed before the file counts as one that does not end with a frame.
_TRIES = 3
# A frame's head is at most so long, CRC-8 included.
_LONGEST_HEAD = 16


def counted_samples(data: Content) -> int:
    """How many samples the header counts; 0 where it does not know, as after a pipe."""
    return int.from_bytes(data[_COUNT], "big") & ((1 << _COUNT_BITS) - 1)


def mended_count(data: Content, count: int) -> Mend:
    """Another number of samples for its header."""
    fields = int.from_bytes(data[_COUNT], "big") >> _COUNT_BITS << _COUNT_BITS
    return Mend(_COUNT.start, (fields | count).to_bytes(5, "big"))


def held_samples(data: Content) -> int | None:
    """How many samples there are, by the last frame; None if the file does not end with one."""
    counted = counted_samples(data)
    smallest_block = int.from_bytes(data[_MIN_BLOCK], "big")
    tail = data[max(42, len(data) - _LAST_FRAME) : len(data)]
    start = len(tail)
    tries = 0
    while tries < _TRIES:
        start = tail.rfind(b"\xff", 0, start)
        if start < 0:
            return None

        held = _samples_up_to(tail[start : start + _LONGEST_HEAD], smallest_block)
        if held is None:
            continue
        # The CRC-16 of the whole frame takes a moment; it is needed if the header says otherwise.
        if held == counted or _is_whole_frame(tail[start:]):
            return held
        tries += 1
    return None


def _samples_up_to(head: bytes, smallest_block: int) -> int | None:
    """The number of the sample after the frame that begins so; None if none does.

    Where blocks have one size it is `smallest_block`.
    """
    sync = head[:2]
    if sync not in (_SYNC_FIXED, _SYNC_VARIABLE) or len(head) < 6 or head[3] & 1:
        return None

    number, position = _coded_number(head)
    block, position = _block_size(head, position)
    # The rate may take bytes of its own.
    position += {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    if number is None or not block or position >= len(head):
        return None
    if _crc(head[:position], 8, 0x07) != head[position]:
        return None

    if sync == _SYNC_VARIABLE:
        return number + block
    return number * smallest_block + block


def _coded_number(head: bytes) -> tuple[int | None, int]:
    """The number of the frame, or of its first sample, coded as UTF-8 is, and where it ends."""
    first = head[4]
    length = 8 - (first ^ 0xFF).bit_length()
    if length == 0:
        return first, 5
    if length == 1 or 4 + length > len(head):
        return None, len(head)

    number = first & (0x7F >> length)
    for byte in head[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    return number, 4 + length


def _block_size(head: bytes, position: int) -> tuple[int, int]:
    """The samples of the frame, 0 if its code is none, and where the code ends."""
    code = head[2] >> 4
    if code == 1:
        return 192, position
    if 2 <= code <= 5:
        return 144 << code, position
    if code == 6:
        return 1 + int.from_bytes(head[position : position + 1], "big"), position + 1
    if code == 7:
        return 1 + int.from_bytes(head[position : position + 2], "big"), position + 2
    return (1 << code if code else 0), position


def _is_whole_frame(frame: bytes) -> bool:
    """Whether these bytes end in the CRC-16 of what is before it."""
    return _crc(frame[:-2], 16, 0x8005) == int.from_bytes(frame[-2:], "big")


def _crc(content: bytes, bits: int, polynomial: int) -> int:
    """The cyclic redundancy check of a FLAC head (8 bits) or frame (16 bits)."""
    top = 1 << (bits - 1)
    mask = (1 << bits) - 1
    remainder = 0
    for byte in content:
        remainder ^= byte << (bits - 8)
        for _ in range(8):
            is_set = remainder & top
            remainder = remainder << 1 & mask
            if is_set:
                remainder ^= polynomial
    return remainder
