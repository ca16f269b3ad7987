"""The card, README.md, of what is published: for people, and for the Hub."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ser.cache.spec import Spec
from ser.corpus.manifest import Manifest
from ser.errors import printable

from .published import Published, PublishedPart, feature_folder

# A card without this line is a person's own, and stays.
MARK = b"<!-- written by `ser cache push`"

# The Hub's names of sizes, and the utterances below which each counts.
HUB_SIZES = {"n<1K": 1e3, "1K<n<10K": 1e4, "10K<n<100K": 1e5, "100K<n<1M": 1e6}

# What to install to read from each kind of URL.
PACKAGES_BY_SCHEME = {
    "s3": "'ser-fusion[cloud]'",
    "gs": "ser-fusion gcsfs",
    "sftp": "ser-fusion paramiko",
}


@dataclass(frozen=True)
class FeatureOfCard:
    """A published feature, and its parts."""

    folder: str
    spec: Spec
    parts: list[PublishedPart]

    @property
    def fingerprint(self) -> str:
        """The name of its folder."""
        return self.folder.split("/")[1]

    @property
    def rows(self) -> int:
        """Utterances of all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def megabytes(self) -> str:
        """The size of all parts."""
        return f"{sum(part.bytes for part in self.parts) / 1e6:.1f}"

    @property
    def model(self) -> str:
        """The model that it comes from."""
        return self.spec.provenance.get("model") or "–"

    @property
    def weights(self) -> str:
        """The beginning of the digest of the model's weights."""
        return str(self.spec.checkpoint.get("digest") or "–")[:12]


@dataclass(frozen=True)
class Example:
    """What the three lines of the card load: the feature and the corpus of which most is there."""

    corpus: str
    # The feature's name, with the beginning of its fingerprint if there are several of that name.
    name: str
    modality: str

    @property
    def code(self) -> str:
        """A line of Python that prints the shape of the values."""
        load = f's["{self.name}"].load(s.manifest("{self.corpus}")).values.shape'
        return f'from ser.cache.store import open_store; s = open_store("features"); print({load})'


def write_card(
    existing: bytes | None, published: Published, manifests: Sequence[Manifest], url: str
) -> bytes:
    """The card of what is published; the `existing` one, if a person has rewritten that."""
    if existing is not None and MARK not in existing:
        return existing

    import jinja2

    # Markdown, not HTML.
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["cell"] = escape_cell
    environment.filters["quote"] = shlex.quote
    source = Path(__file__).with_name("card.md").read_text(encoding="utf-8")

    features = _features_of_card(published)
    kind = url.split("://")[0] if "://" in url else "file"
    text = environment.from_string(source).render(
        url=url,
        kind=kind,
        digest=url.split("@")[-1],
        packages=PACKAGES_BY_SCHEME.get(kind, "ser-fusion"),
        size=_size_category(manifests),
        manifests=manifests,
        hours={manifest.corpus: _hours(manifest) for manifest in manifests},
        with_text=[manifest.corpus for manifest in manifests if _has_text(manifest)],
        features=features,
        example=_choose_example(features, manifests),
    )
    return text.encode(errors="replace")


def escape_cell(text: object) -> str:
    """A text that a table of Markdown shows as it is."""
    escapes = {ord(character): f"\\{character}" for character in "|<`[*_"}
    return printable(str(text)).translate(escapes)


def _features_of_card(published: Published) -> list[FeatureOfCard]:
    parts: dict[str, list[PublishedPart]] = {folder: [] for folder in published.features}
    for folder, part in published.parts.items():
        parts.setdefault(feature_folder(folder), []).append(part)
    return [
        FeatureOfCard(folder, spec, parts[folder]) for folder, spec in published.features.items()
    ]


def _size_category(manifests: Sequence[Manifest]) -> str:
    utterances = sum(len(manifest) for manifest in manifests)
    for name, limit in HUB_SIZES.items():
        if utterances < limit:
            return name
    return "n>1M"


def _hours(manifest: Manifest) -> float:
    durations = [seconds for seconds in manifest.column("duration") if seconds]
    return round(sum(durations) / 3600, 2)


def _has_text(manifest: Manifest) -> bool:
    return manifest.table["text"].null_count < len(manifest)


def _choose_example(features: Sequence[FeatureOfCard], manifests: Sequence[Manifest]) -> Example:
    """The feature and the corpus of which the largest share is there; the first of several."""
    best_share = -1.0
    corpus = manifests[0].corpus
    feature = None
    for manifest in manifests:
        for candidate in features:
            rows = sum(part.rows for part in candidate.parts if part.corpus == manifest.corpus)
            share = rows / (len(manifest) or 1)
            if share > best_share:
                best_share = share
                corpus = manifest.corpus
                feature = candidate

    if feature is None:
        return Example(corpus, "FEATURE", "audio")

    name = feature.spec.name
    if [other.spec.name for other in features].count(name) > 1:
        name = f"{name}@{feature.fingerprint[:8]}"
    return Example(corpus, name, feature.spec.modality)
