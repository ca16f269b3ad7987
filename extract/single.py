"""One utterance that is in no corpus: the features of a file or a text, for `ser predict`."""

from collections.abc import Sequence
from pathlib import Path

from ser.errors import UtteranceError

from .audio import decode
from .extractor import Extractor, FeatureRows


def extract_utterance(
    extractors: Sequence[Extractor], source: Path | str, warnings: list[str]
) -> dict[str, FeatureRows]:
    """The features of one audio file (a path) or transcript (a string), by fingerprint.

    Adds what is odd about it, such as a cut text, to `warnings`. Raises `UtteranceError` if it
    cannot be used.
    """
    if isinstance(source, Path):
        clip = decode(source)
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
