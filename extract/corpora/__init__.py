"""Corpora on disk: the layouts that `--format` names, and what reads each."""

from collections.abc import Callable
from typing import Any

from ser.plugins import Registry

# From a path to a `scan.Reading`. A function of your own may stand here, or "module:function": it is imported where it
# is used, since `ser --help` names the formats.
_OWN: dict[str, str | Callable[..., Any]] = {
    "iemocap": "ser.extract.corpora.iemocap:read_iemocap",
    "emodb": "ser.extract.corpora.emodb:read_emodb",
    "table": "ser.extract.corpora.table:read_table",
}
FORMATS = Registry("corpus format", "ser.corpora", Callable, _OWN)
# Whether a folder has this layout, for those formats that are detected, in this order.
DETECTORS: dict[str, str | Callable[..., Any]] = {
    "iemocap": "ser.extract.corpora.iemocap:is_iemocap",
    "emodb": "ser.extract.corpora.emodb:is_emodb",
}
# What reads the file of `--text`.
TRANSCRIPTS = "ser.extract.corpora.table:read_transcripts"
