"""What `ser features` is asked for, on the command line and in Python. Imports nothing heavy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ser.options import option

from .corpora import FORMATS

__all__ = ["ExtractionConfig"]


@dataclass(frozen=True)
class ExtractionConfig:
    """What `ser features` is asked for; the command line gives the same options.

    `models` may also be a mapping, as `{"hubert": ID_OR_PATH}`.
    """

    corpus: Path

    features: str | Sequence[str] = option(
        "hubert,mpnet,bert,is13,logmel",
        help="What to compute, with variants such as hubert:layer=9.",
    )
    format: str | None = option(
        None,
        help=f"Layout on disk: {', '.join(FORMATS)} (textgrid:TIER, elan:TIER), or a file that "
        "describes it; detected by default.",
        metavar="NAME|FILE.toml",
    )
    corpus_name: str | None = option(
        None,
        help="Name of the corpus in the store; by default its format's.",
        metavar="N",
    )
    text: Path | None = option(
        None,
        help="Other transcripts (CSV with id, text), such as an ASR's; "
        "give them their own --corpus-name.",
        metavar="FILE",
    )
    transcribe: str | None = option(
        None,
        help="Transcripts by a speech recogniser: a second corpus over the same audio.",
        choices=["whisper"],
    )
    language: str | None = option(
        None,
        help="That --transcribe is told the speech is in, such as en.",
        metavar="CODE",
    )
    store: Path = option(
        Path("features"),
        help="The store: a folder, made if it is not there.",
        metavar="PATH",
    )
    backend: str = option(
        "zarr",
        help="How arrays are written.",
        choices=["zarr", "hdf5"],
    )
    dtype: Literal["float16", "float32"] = option(
        "float16",
        help="Of frames and tokens; utterance vectors are float32.",
        choices=["float16", "float32"],
    )
    device: str = option(
        "auto",
        help="auto, cpu, cuda, cuda:N or mps.",
        metavar="DEVICE",
    )
    models: Mapping[str, str] | Sequence[str] = option(
        (),
        help="Weights of an encoder: a Hugging Face id or a local folder. Repeatable.",
        metavar="NAME=ID_OR_PATH",
        name="model",
    )
    no_convert: bool = option(
        False,
        help="Refuse encoders that are published as pickles alone, which are converted once.",
    )
    workers: int | None = option(
        None,
        help="Processes; by default one, or with auto one per GPU.",
        metavar="N",
    )
    batch_seconds: float | None = option(
        None,
        help="Padded seconds of audio a batch; on a CPU one by one by default.",
        metavar="S",
    )
    part_seconds: float = option(
        600.0,
        help="Audio per part of the store: what a killed run loses at most.",
        metavar="S",
    )
    limit: int | None = option(
        None,
        help="N utterances, spread over the corpus's sessions and speakers.",
        metavar="N",
    )
    on_error: str = option(
        "fail",
        help="Stop at an utterance that cannot be read, or quarantine it and go on.",
        choices=["fail", "skip"],
    )
    scheduler: str | None = option(
        None,
        help="Run on dask: tcp://127.0.0.1:8786, a scheduler file, "
        "or local:4 for four processes here.",
        metavar="ADDRESS",
    )
    insecure: bool = option(
        False,
        help="Allow a plain --scheduler on another machine.",
    )
    timeout: float | None = option(
        None,
        help="Give up when a --scheduler is silent, or has no worker, for S seconds "
        "(60 by default).",
        metavar="S",
    )
    retry: bool = option(
        False,
        help="Try quarantined utterances again.",
    )
    replace: bool = option(
        False,
        help="Let this corpus take the place of one of its name that has more utterances.",
    )
    check: int | None = option(
        None,
        help="Compare N utterances with one-by-one extraction, record the deviation.",
        metavar="N",
    )
