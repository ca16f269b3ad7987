"""Stage 1 in one call: from a corpus to features in a store."""

from pathlib import Path
from typing import Any

from ser.corpus.manifest import Manifest
from ser.errors import WrongUse

from .config import ExtractionConfig
from .corpora.scan import scan_corpus
from .plan import plan
from .run import OnProgress, Summary, extract, stop_at

__all__ = ["extract_features", "read_corpus"]


def extract_features(
    config: ExtractionConfig | None = None,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> Summary:
    """Compute what the store lacks of a corpus's features, as `ser features` does.

    Takes an `ExtractionConfig`, or its fields as keyword arguments: `extract_features(corpus=
    "demo/corpus", features="hubert,mpnet", store="demo/features")`. Rows in the store are not
    touched, so that a call that was killed goes on where it stood. `on_progress` gets the stage,
    how many utterances are done, and of how many.

    Raises `WrongUse` for options that do not fit together, `WeightsError` where no encoder is
    found, `ExtractionStopped` for a corpus that is not whole (unless `on_error="skip"`), and
    `StoreError` for a full disk.
    """
    if config is not None and options:
        raise WrongUse("give an ExtractionConfig, or its fields by name, and not both")

    if config is None:
        for name in ("corpus", "store", "text"):
            if options.get(name) is not None:
                options[name] = Path(options[name])
        config = ExtractionConfig(**options)

    return extract(plan(config), on_progress)


def read_corpus(
    path: str | Path,
    format: str | None = None,
    name: str | None = None,
    text: str | Path | None = None,
    on_error: str = "fail",
) -> Manifest:
    """The manifest of a corpus on disk, one row per utterance, as `ser features` reads it.

    `format` is found out where it is None. `name` is what the corpus is called in a store. `text`
    is a table with columns `id` and `text` whose transcripts replace the corpus's own. Every audio
    file is hashed.

    Raises `WrongUse` for what is no corpus, and `ExtractionStopped`, naming it, for what has no row
    in the manifest, such as a missing session; with `on_error="skip"` the rest is returned.
    """
    scan = scan_corpus(path, format, name, text)
    stop_at(ExtractionConfig(Path(path), on_error=on_error), {}, scan.refused)
    return scan.manifest
