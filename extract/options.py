"""The options of `ser features`, declared once: for the command line and for Python. Imports nothing heavy.

The command makes one click option of each field of `ExtractionConfig` that options.toml names, whose `help`, `metavar`,
`choices` and `name` from there are the field's metadata; `field.type` says whether it is a flag, a number, a path or
text.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .corpora import FORMATS

__all__ = ["ExtractionConfig"]

TEXTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
TEXTS["format"]["help"] %= ", ".join(FORMATS)


def option(name: str, default: Any) -> Any:
    """The field of `ExtractionConfig` of that name, an option of the command, with what options.toml says of it."""
    return field(default=default, metadata=TEXTS[name])


@dataclass(frozen=True)
class ExtractionConfig:
    """What `ser features` is asked for. `models` may also be a mapping, as {"hubert": ID_OR_PATH}."""

    corpus: Path
    features: str | Sequence[str] = option("features", "hubert,mpnet,bert,is13,logmel")
    format: str | None = option("format", None)
    corpus_name: str | None = option("corpus_name", None)
    text: Path | None = option("text", None)  # noqa: RUF009 (immutable)
    transcribe: str | None = option("transcribe", None)
    language: str | None = option("language", None)
    store: Path = option("store", Path("features"))  # noqa: RUF009
    backend: str = option("backend", "zarr")
    dtype: Literal["float16", "float32"] = option("dtype", "float16")
    device: str = option("device", "auto")
    models: Mapping[str, str] | Sequence[str] = option("models", ())
    workers: int | None = option("workers", None)
    batch_seconds: float | None = option("batch_seconds", None)
    part_seconds: float = option("part_seconds", 600.0)
    limit: int | None = option("limit", None)
    on_error: str = option("on_error", "fail")
    scheduler: str | None = option("scheduler", None)
    insecure: bool = option("insecure", False)
    retry: bool = option("retry", False)
    replace: bool = option("replace", False)
    check: int | None = option("check", None)
