"""The record of what is published at a URL, and the root digest that names it."""

import re
from collections.abc import Iterable
from typing import Annotated

import msgspec

from ser.cache.blocks import ByteCount
from ser.cache.feature_name import parse_feature_name
from ser.cache.part import FileRecord, PartRecord, file_record
from ser.cache.spec import Spec
from ser.corpus.manifest import Manifest
from ser.corpus.names import NAME
from ser.disk.records import canonical_json, parse_checksummed, to_record
from ser.errors import CorruptStore, unknown

from .remote import Remote, explained

# The file that names the latest root digest, and the record under each.
LATEST = "published-latest"
RECORD = "published-{}.json"

_HEX16 = "[0-9a-f]{16}"
_HEX64 = "[0-9a-f]{64}"

# Names become paths, on both sides.
CorpusName = Annotated[str, msgspec.Meta(pattern=rf"\A{NAME.pattern}\Z")]
PartFolder = Annotated[str, msgspec.Meta(pattern=rf"\A{NAME.pattern}/{_HEX16}/parts/{_HEX16}\Z")]


class PublishedPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part's part.json, and what it records."""

    record: FileRecord
    corpus: str
    # Utterances.
    rows: ByteCount
    # Of its other files.
    bytes: ByteCount


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that is published; the sha256 of its `content` is the root digest."""

    # The file of each corpus's manifest.
    manifests: dict[CorpusName, FileRecord] = {}
    # By their folders, `<feature>/<fingerprint>`.
    features: dict[str, Spec] = {}
    parts: dict[PartFolder, PublishedPart] = {}
    format_version: int = 1

    def __post_init__(self) -> None:
        """Raise `ValueError` for a feature that is not the one of its folder's name."""
        for folder, spec in self.features.items():
            if not NAME.fullmatch(spec.feature) or spec.folder != folder:
                raise ValueError(f"{folder!r} is the folder of another feature or fingerprint")

    @property
    def content(self) -> bytes:
        """The record as a file."""
        return canonical_json(msgspec.to_builtins(self))

    def folders_of(self, features: str, url: str) -> set[str]:
        """The folders of these features, "a+b:variant@fingerprint", that `ser train` would read.

        With `layers=` they are all of the feature; otherwise those that are stored under the whole
        name, such as `hubert:layer=9,pool=mean`, or, if there are none, those without what is done
        on reading: `hubert:layer=9`. Raises `WrongUse` for a feature that is not there.
        """
        folders: set[str] = set()
        for name in features.split("+"):
            matching = self._folders_of_one(name)
            if not matching:
                known = {spec.name for spec in self.features.values()}
                raise unknown(f"feature of {url}", name, known)
            folders |= matching
        return folders

    def _folders_of_one(self, name: str) -> set[str]:
        feature, options, on_reading, prefix = parse_feature_name(name)

        # A fingerprint names one of the layers.
        all_layers = any(option.startswith("layers=") for option in options)
        start = f"{feature}/" if all_layers else f"{feature}/{prefix}"
        variants = {
            folder: spec.variant
            for folder, spec in self.features.items()
            if folder.startswith(start)
        }
        if all_layers:
            return set(variants)

        read_options = [f"{way}={value}" for way, value in on_reading.items()]
        wanted = ",".join(sorted([*options, *read_options]))
        if wanted not in variants.values():
            wanted = ",".join(sorted(options))
        return {folder for folder, variant in variants.items() if variant == wanted}


def split_digest(url: str) -> tuple[str, str | None]:
    """The URL, and the root digest after its `@`.

    That has all 64 digits, since fewer would be easy to forge.
    """
    match = re.fullmatch(f"(.+)@({_HEX64})", url)
    return (match[1], match[2]) if match else (url, None)


def feature_folder(part_folder: str) -> str:
    """The folder `<feature>/<fingerprint>` of a part's folder."""
    return part_folder.partition("/parts/")[0]


def read_published(remote: Remote, digest: str) -> Published:
    """What was published under a root digest.

    Raises `CorruptStore` if it is not what the digest names.
    """
    path = RECORD.format(digest)
    url = f"{remote.shown}/{path}"

    content = remote.read(path) if re.fullmatch(_HEX64, digest) else None
    with explained(url):
        if content is None or file_record(content).sha256 != digest:
            raise CorruptStore(f"{url}: is missing, or not what its digest names")
        return to_record(content, Published, url)


def read_part_record(content: bytes, url: str) -> tuple[PublishedPart, PartRecord]:
    """What a part.json says, and how it stands in the record. Raises `CorruptStore`."""
    record = parse_checksummed(content, PartRecord, f"{url}/part.json")
    size = sum(file.bytes for file in record.files.values())
    part = PublishedPart(file_record(content), record.corpus, len(record.ids), size)
    return part, record


def read_published_manifest(remote: Remote, corpus: str, record: FileRecord) -> Manifest:
    """A published manifest. Raises `CorruptStore` if it is not the one of the record."""
    path = f"manifests/{corpus}/{record.sha256}.parquet"
    url = f"{remote.shown}/{path}"
    with explained(url):
        return Manifest.from_content(remote.fetch(path, record), record.sha256, url, corpus)


def with_parents(manifests: Iterable[Manifest]) -> set[str]:
    """These corpora and their parents, whose audio rows count for them too."""
    corpora = set()
    for manifest in manifests:
        corpora.add(manifest.corpus)
        if manifest.parent:
            corpora.add(manifest.parent.corpus)
    return corpora
