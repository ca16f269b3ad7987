"""The card of a published store: a README.md for whoever finds it, in the form of a Hugging Face dataset card."""

from collections.abc import Mapping
from pathlib import Path

from ser.errors import printable

from .remote import Published
from .spec import Spec

_MARK = b"<!-- written by `ser cache push`"
_CATEGORIES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}


def card(there: bytes | None, published: Published, specs: Mapping[str, Spec], url: str) -> bytes:
    """The card of what is published at a URL, or what is there where somebody has written it anew.

    `specs` are those of the features by folder.
    """
    if there is not None and _MARK not in there:
        return there
    import jinja2

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False)
    environment.filters["cell"] = lambda text: printable(str(text)).translate({ord(c): f"\\{c}" for c in "|<`[*_"})
    utterances = sum(one.utterances for one in published.manifests.values())
    names = {folder: one.name for folder, one in published.features.items()}
    example = next(iter(names), "")
    text = environment.from_string(Path(__file__).with_suffix(".md").read_text(encoding="utf-8")).render(
        published=published,
        specs=specs,
        url=url,
        corpora=list(published.manifests),
        texts=[name for name, one in published.manifests.items() if one.texts],
        category=next((name for most, name in _CATEGORIES.items() if utterances < most), "n>1M"),
        example=names.get(example, ""),
        text_example=example and specs[example].modality == "text",
        iemocap=[n for n, one in published.manifests.items() if "iemocap" in n.casefold() and not one.synthetic],
        smile=[names[folder] for folder, spec in specs.items() if spec.extractor == "smile"],
    )
    return text.encode()
