"""What a run's config.json says of the data that it is trained on."""

from typing import Any

import msgspec

from ..records import CorpusRecord, FeatureRecord, LabelRecord


class DatasetRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What of a dataset can change a run's numbers: fields of `RunConfig`."""

    corpus: str
    """The corpus, or several joined with +."""

    manifest: str
    """The digest of its manifest; of several corpora, theirs joined with +."""

    labels: LabelRecord
    """The label policy."""

    features: dict[str, FeatureRecord]
    """The inputs by modality, audio before text."""

    views: list[FeatureRecord]
    """The augmented copies that train too."""

    limit: int | None
    """`--limit`: how many utterances were used at most."""

    only: str | None = None
    """`--only`: scripted or improvised; None for all utterances."""

    target: str = "class"
    """What is learnt, see `targets.TARGETS`."""


class DatasetOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """Where a dataset comes from: fields of a run's `Provenance`, which its name does not hash."""

    synthetic: bool
    """Whether any of the speech is generated."""

    random_weights: list[str]
    """The features that were computed with random weights."""

    specs: dict[str, dict[str, Any]]
    """By modality, the feature's spec.json, or {"joined": […]} of several."""

    left_out: dict[str, int | list[str]]
    """Why utterances were not used → how many, or their ids."""

    store: str
    """The absolute path of the store."""

    corpora: dict[str, CorpusRecord] | None = None
    """Each of several corpora, by name."""

    transcripts: dict[str, Any] | None = None
    """Who made the transcripts, where an ASR did, and of which corpus ("of")."""

    encoders: dict[str, dict[str, Any]] | None = None
    """By modality, the config of an encoder that the run trains too."""


# Of utterances that no run is trained on, such as those of a prediction.
NO_RECORD = DatasetRecord(
    corpus="",
    manifest="",
    labels=LabelRecord(policy="none", classes=[], maps={}),
    features={},
    views=[],
    limit=None,
)
NO_ORIGIN = DatasetOrigin(synthetic=False, random_weights=[], specs={}, left_out={}, store="")
