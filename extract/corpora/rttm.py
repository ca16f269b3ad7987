"""RTTM files (NIST's Rich Transcription Time Marked), as diarisation writes them: who speaks when.

A line of type SPEAKER is `SPEAKER file channel start duration <NA> <NA> speaker <NA> <NA>`, in
seconds.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from ser.corpus.times import seconds_of
from ser.disk.text import read_text
from ser.errors import CorpusError

from .annotations import AnnotationFormat, Annotations, Interval, Tier

# Fields of a line that are needed.
FIELDS = 8
# What stands for a value that is not known.
UNKNOWN = "<NA>"


def read_rttm(path: Path) -> Annotations:
    """What each speaker says of each recording, a tier for each recording.

    Other types of lines than SPEAKER say nothing of utterances. Raises `CorpusError` for a line
    that is none, with its number.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise CorpusError(f"cannot be read ({error})") from None

    tiers: dict[str, Tier] = {}
    of_other_channels = Counter[str]()
    for number, line in enumerate(lines, 1):
        cells = line.split()
        if not cells or cells[0].startswith(";") or cells[0] != "SPEAKER":
            continue
        try:
            if len(cells) < FIELDS:
                raise ValueError
            start = seconds_of(cells[3])
            # The sum of two decimals has more digits than they have.
            end = round(start + seconds_of(cells[4]), 9)
        except ValueError:
            raise CorpusError(
                f"line {number}: is not SPEAKER, file, channel, start, duration, two more fields "
                "and the speaker"
            ) from None
        speaker = None if cells[7] == UNKNOWN else cells[7]
        tier = tiers.setdefault(cells[1], Tier(cells[1]))
        tier.intervals.append(Interval(start, end, "", speaker))
        if cells[2] not in ("1", UNKNOWN):
            of_other_channels[cells[1]] += 1

    for recording, count in of_other_channels.items():
        note = f"{count} segments of {recording} are of another channel than 1: channels are mixed"
        tiers[recording] = replace(tiers[recording], note=note)
    return list(tiers.items())


FORMAT = AnnotationFormat("rttm", ".rttm", read_rttm, has_tiers=False, keeps_empty=True)
