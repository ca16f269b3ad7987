"""What extractors take: the decoded audio of an utterance, or its transcript."""

from pathlib import Path

from ser.corpus.names import Modality
from ser.errors import UtteranceError

from .audio import Clip, decode
from .recording import Recordings
from .tasks import Utterance

# An extractor's input, or why there is none.
Input = Clip | str | UtteranceError


class Inputs:
    """Reads the inputs of utterances whose audio paths are below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recordings = Recordings()

    def read(self, utterance: Utterance, modality: Modality) -> Input:
        """The decoded audio or the transcript, or why it cannot be used.

        Raises `CorpusError` if the audio cannot be read or has changed since the scan: no fault of
        the utterance.
        """
        source = utterance.source or ""
        if modality == "text":
            return source
        try:
            if utterance.span is None:
                return decode(self.root / source, utterance.digest)
            recording = self.recordings.get(self.root / source, utterance.recording)
            return recording.clip(utterance.span)
        except UtteranceError as fault:
            return fault

    def close(self) -> None:
        """Let go of the recordings that are open."""
        self.recordings.close()
