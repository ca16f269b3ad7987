"""Features of utterances, each computed once for several runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ser.errors import UtteranceError
from ser.extract.extractor import Extractor, FeatureRows, ResolvedFeature
from ser.extract.recording import Recordings
from ser.extract.resolve import load_extractors
from ser.extract.single import Source, extract_utterance


@dataclass(frozen=True)
class Computed:
    """What came of one audio file, segment or transcript."""

    rows: dict[str, FeatureRows] = field(default_factory=dict)
    """By fingerprint."""
    warnings: Sequence[str] = ()
    fault: UtteranceError | None = None


class FeatureSource:
    """Computes the features of some runs.

    With `remembers` those of an utterance once, until `forget`.
    """

    def __init__(self, device: str, remembers: bool = False) -> None:
        self.device = device
        self.remembers = remembers
        # By modality, the features of all runs, by fingerprint.
        self.features: dict[str, dict[str, ResolvedFeature]] = {}
        # By modality, loaded when an utterance first has it.
        self._extractors: dict[str, list[Extractor]] = {}
        self._recordings = Recordings()
        self._computed: dict[tuple[str, Source], Computed] = {}

    def add(self, modality: str, features: Sequence[ResolvedFeature]) -> None:
        """Compute these features too, where they are not there yet."""
        known = self.features.setdefault(modality, {})
        for feature in features:
            known.setdefault(feature.spec.fingerprint, feature)

    def extractors(self, modality: str) -> list[Extractor]:
        """What computes the features of a modality, loaded once."""
        if modality not in self._extractors:
            features = list(self.features[modality].values())
            self._extractors[modality] = load_extractors(features, self.device)
        return self._extractors[modality]

    def rows(self, modality: str, source: Source, warnings: list[str]) -> dict[str, FeatureRows]:
        """The features of one audio file, segment or transcript, by fingerprint.

        Adds what is odd about it to `warnings`. Raises `UtteranceError` if it cannot be used.
        """
        key = (modality, source)
        computed = self._computed.get(key)
        if computed is None:
            computed = self._compute(modality, source)
        if self.remembers:
            self._computed[key] = computed

        if computed.fault is not None:
            raise computed.fault
        warnings += computed.warnings
        return computed.rows

    def _compute(self, modality: str, source: Source) -> Computed:
        warnings: list[str] = []
        try:
            rows = extract_utterance(self.extractors(modality), source, warnings, self._recordings)
        except UtteranceError as fault:
            return Computed(fault=fault)
        return Computed(rows, warnings)

    def forget(self) -> None:
        """Let go of what was computed."""
        self._computed.clear()
