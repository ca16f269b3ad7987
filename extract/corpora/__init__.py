"""Corpora on disk: the layouts that `--format` names, and what reads each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ser.plugins import Registry

# Described in a TOML file beside this, each: docs/add-a-corpus.md.
DESCRIBED = ("ravdess", "crema-d", "savee", "tess", "esd", "emodb", "meld", "msp-podcast")
# From a path to a `scan.Reading`. A function of your own may stand here, or "module:function": it
# is imported where it is used, since `ser --help` names the formats. Or a TOML file that describes
# a layout.
_OWN: dict[str, str | Path | Callable[..., Any]] = {
    "iemocap": "ser.extract.corpora.iemocap:read_iemocap",
    **{name: Path(__file__).with_name(f"{name}.toml") for name in DESCRIBED},
    "audformat": "ser.extract.corpora.table:read_audformat",
    "table": "ser.extract.corpora.table:read_table",
}
FORMATS = Registry("corpus format", "ser.corpora", Callable | Path, _OWN)
# What a folder of this layout holds, as a pattern, by which those formats of FORMATS are detected,
# in this order. Described ones are by the names of their recordings, after these.
DETECTORS = {"iemocap": "Session[1-5]/dialog/", "audformat": "db.yaml"}
# What reads, and what recognises, a described layout: from a path and a description; and the file
# of `--text`.
READ_DESCRIBED, FITS = (
    "ser.extract.corpora.described:read_described",
    "ser.extract.corpora.described:fits",
)
TRANSCRIPTS = "ser.extract.corpora.table:read_transcripts"
