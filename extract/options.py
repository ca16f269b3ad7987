"""The options of `ser features`, declared once: for the command line and for Python. Imports nothing heavy.

The command makes one click option of each field of `ExtractionConfig` that has a `help`; `field.type` says whether it
is a flag, a number, a path or text, and `choices` are the only values that it takes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .corpora import FORMATS

__all__ = ["ExtractionConfig"]

FORMAT_HELP = f"Layout on disk: {', '.join(FORMATS)}, or a file that describes it; detected by default."


def option(default: Any, help: str, metavar: str | None = None, choices: Sequence[str] = (), name: str = "") -> Any:
    """A field that is an option of the command, called `name` there if that is not the field's own."""
    return field(default=default, metadata={"help": help, "metavar": metavar, "choices": choices, "name": name})


@dataclass(frozen=True)
class ExtractionConfig:
    """What `ser features` is asked for. `models` may also be a mapping, as {"hubert": ID_OR_PATH}."""

    corpus: Path
    features: str | Sequence[str] = option(
        "hubert,mpnet,bert,is13,logmel", "What to compute, with variants such as hubert:layer=9."
    )
    format: str | None = option(None, FORMAT_HELP, "NAME|FILE.toml")
    corpus_name: str | None = option(None, "Name of the corpus in the store; by default its format's.", "N")
    text: Path | None = option(  # noqa: RUF009
        None, "Other transcripts (CSV with id, text), such as an ASR's; give them their own --corpus-name.", "FILE"
    )
    transcribe: str | None = option(
        None, "Transcripts by a speech recogniser: a second corpus over the same audio.", choices=("whisper",)
    )
    language: str | None = option(None, "That --transcribe is told the speech is in, such as en.", "CODE")
    store: Path = option(Path("features"), "The store: a folder, made if it is not there.", "PATH")  # noqa: RUF009
    backend: str = option("zarr", "How arrays are written.", choices=("zarr", "hdf5"))
    dtype: Literal["float16", "float32"] = option(
        "float16", "Of frames and tokens; utterance vectors are float32.", choices=("float16", "float32")
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.", "DEVICE")
    models: Mapping[str, str] | Sequence[str] = option(
        (), "Weights of an encoder: a Hugging Face id or a local folder. Repeatable.", "NAME=ID_OR_PATH", name="model"
    )
    workers: int | None = option(None, "Processes; by default one, or with auto one per GPU.", "N")
    batch_seconds: float | None = option(None, "Padded seconds of audio a batch; on a CPU one by one by default.", "S")
    part_seconds: float = option(600.0, "Audio per part of the store: what a killed run loses at most.", "S")
    limit: int | None = option(None, "Only the corpus's first N utterances.", "N")
    on_error: str = option(
        "fail", "Stop at an utterance that cannot be read, or quarantine it and go on.", choices=("fail", "skip")
    )
    scheduler: str | None = option(
        None, "Run on dask: tcp://127.0.0.1:8786, a scheduler file, or local:4 for four processes here.", "ADDRESS"
    )
    insecure: bool = option(False, "Allow a plain --scheduler on another machine.")
    retry: bool = option(False, "Try quarantined utterances again.")
    replace: bool = option(False, "Let this corpus take the place of one of its name that has more utterances.")
    check: int | None = option(None, "Compare N utterances with one-by-one extraction, record the deviation.", "N")
