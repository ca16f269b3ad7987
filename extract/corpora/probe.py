"""What an audio file is by its bytes and its header, before anything is decoded."""

from dataclasses import dataclass
from pathlib import Path

from ser.disk.memory import name_what_does_not_fit
from ser.errors import CorpusError, UtteranceError

from ..audio_header import Header
from ..recording import Recording
from .sample_digest import opening_of


@dataclass(frozen=True)
class Probe:
    """What an audio file is by its bytes and its header."""

    sha256: str | None = None
    """None if the file cannot be read."""
    frames: int | None = None
    """Samples of each channel; None if the header is wrong."""
    rate: int | None = None
    """In Hz."""
    channels: int = 1
    unreadable: UtteranceError | None = None
    """Why no part of it can be used."""
    too_long: UtteranceError | None = None
    """Why it cannot be used as a whole."""
    header: Header | None = None
    """What its header says of its length."""
    opening: str = ""
    """A digest of its first samples; empty if they cannot be decoded."""

    @property
    def fault(self) -> UtteranceError | None:
        """Why it cannot be used as one utterance."""
        return self.unreadable or self.too_long

    @property
    def seconds(self) -> float | None:
        """Its length; None if the header is wrong."""
        return None if self.frames is None or self.rate is None else self.frames / self.rate

    @property
    def duration(self) -> float | None:
        """In seconds; None if it cannot be used as one utterance."""
        return None if self.fault is not None else self.seconds


def probe(path: Path) -> Probe:
    """Hash an audio file and measure it by its header. A fault of the file is returned, not raised.

    Raises `CorpusError` if the disk, the mount or the memory fails. The whole file is read every
    time: size and modification time do not show changed bytes.
    """
    sha256 = None
    try:
        with name_what_does_not_fit(path, CorpusError), Recording(path) as recording:
            sha256 = recording.sha256
            recording.open()
            return Probe(
                sha256,
                recording.frames,
                recording.rate,
                recording.channels,
                too_long=_too_long(recording),
                header=recording.header,
                opening=opening_of(recording),
            )
    except UtteranceError as fault:
        # A new one, without its traceback, which holds the file.
        return Probe(sha256, unreadable=type(fault)(str(fault)))


def _too_long(recording: Recording) -> UtteranceError | None:
    try:
        recording.check_whole()
    except UtteranceError as fault:
        return UtteranceError(str(fault))
    return None
