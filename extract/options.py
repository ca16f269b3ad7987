"""The options of `ser features`, declared once: for the command line and for Python. Imports
nothing heavy.

The command makes one click option of each field of `ExtractionConfig` that options.toml names (its
`TEXTS`), with the `help`, `metavar`, `choices` and `name` from there; `field.type` says whether it
is a flag, a number, a path or text.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from .corpora import FORMATS

__all__ = ["ExtractionConfig"]

TEXTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
TEXTS["format"]["help"] %= ", ".join(FORMATS)


@dataclass(frozen=True)
class ExtractionConfig:
    """What `ser features` is asked for. `models` may also be a mapping, as {"hubert": ID_OR_PATH}."""

    TEXTS: ClassVar[Mapping[str, Mapping[str, Any]]] = TEXTS
    corpus: Path
    features: str | Sequence[str] = "hubert,mpnet,bert,is13,logmel"
    format: str | None = None
    corpus_name: str | None = None
    text: Path | None = None
    transcribe: str | None = None
    language: str | None = None
    store: Path = Path("features")
    backend: str = "zarr"
    dtype: Literal["float16", "float32"] = "float16"
    device: str = "auto"
    models: Mapping[str, str] | Sequence[str] = ()
    workers: int | None = None
    batch_seconds: float | None = None
    part_seconds: float = 600.0
    limit: int | None = None
    on_error: str = "fail"
    scheduler: str | None = None
    insecure: bool = False
    retry: bool = False
    replace: bool = False
    check: int | None = None
