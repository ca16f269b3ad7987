"""The command that computes what a store lacks, as messages name it."""

from pathlib import Path

from ser.corpus.manifest import Manifest
from ser.errors import ser_command

from .manifests import list_corpora


def extract_command(
    store: Path | str, features: str | None = None, corpus: str | None = None, retry: bool = False
) -> str:
    """The `ser features` that computes these features (None: the default ones) of a corpus.

    `corpus` is its name in the store, or of several a+b; None: those of the store. Of several no
    name is given.
    """
    words = ["features", "CORPUS"]
    if features is not None:
        words += ["--features", features]

    corpora: list[str] = []
    if corpus is not None:
        corpora = corpus.split("+")
    elif (Path(store) / "manifests").is_dir():
        corpora = list_corpora(Path(store))
    if len(corpora) == 1:
        words += ["--corpus-name", corpora[0]]

    words += ["--store", str(store)]
    if retry:
        words += ["--retry"]
    return ser_command(*words)


def extract_rows_command(
    store: Path, feature: str, manifest: Manifest, corpus: str, retry: bool = False
) -> str:
    """The command that computes a feature's missing rows of a corpus of a manifest.

    Where its transcripts are not the corpus's own, only the user knows where they came from.
    """
    for part in manifest.parts or (manifest,):
        if part.corpus == corpus and part.parent is not None:
            return f"the `ser features` command that made corpus {corpus} again"
    return extract_command(store, feature, corpus, retry)
