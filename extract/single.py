"""One utterance that is in no corpus: the features of a file or a text, for `ser predict`."""

from collections.abc import Sequence
from pathlib import Path

from ser.disk.memory import name_what_does_not_fit
from ser.errors import CorpusError, UtteranceError

from .audio import Clip, decode
from .extractor import Extractor, FeatureRows
from .recording import Recordings, Segment

# An audio file, a part of one, or a transcript.
Source = Path | Segment | str


def extract_utterance(
    extractors: Sequence[Extractor],
    source: Source,
    warnings: list[str],
    recordings: Recordings | None = None,
) -> dict[str, FeatureRows]:
    """The features of one audio file or segment, or transcript (a string), by fingerprint.

    `recordings` are those that stay open for further segments of them.

    Adds what is odd about it, such as a cut text, to `warnings`. Raises `UtteranceError` if it
    cannot be used.
    """
    if not isinstance(source, str):
        clip = _decoded(source, recordings or Recordings())
        path = source.path if isinstance(source, Segment) else source
        with name_what_does_not_fit(path, CorpusError):
            results = [extractor.run([clip])[0] for extractor in extractors]
        # The extractors add theirs to those of the decoder.
        warnings += dict.fromkeys(clip.warnings)
    else:
        results = [extractor.run([source])[0] for extractor in extractors]

    features: dict[str, FeatureRows] = {}
    for result in results:
        if isinstance(result, UtteranceError):
            raise result
        features.update(result)

    # Features that are computed together have the same ones.
    of_features: dict[str, None] = {}
    for rows in features.values():
        of_features.update(dict.fromkeys(rows.warnings))
    warnings += of_features
    return features


def _decoded(source: Path | Segment, recordings: Recordings) -> Clip:
    if isinstance(source, Path):
        return decode(source)
    recording = recordings.get(source.path)
    clip = recording.clip(source.span)
    clip.warnings += recording.header.warnings
    return clip
