"""What the store's manifest says about the utterances that a cell was tested on."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ser.cache.manifest import Manifest
from ser.cache.store import Store, open_store
from ser.errors import SerError
from ser.train.labels import Policy

from .cells import Cell

# Dialogue names of the IEMOCAP release: Ses01F_impro01_F000, Ses05M_script01_1b_M012.
_STYLE = re.compile(r"Ses\d\d[FM]_(impro|script)")
STYLES = {"impro": "improvised", "script": "scripted"}


@dataclass(frozen=True)
class Origin:
    """The store and manifest that cells were trained from, as far as they are still there."""

    store: Store | None
    manifest: Manifest | None
    lack: str = ""  # why they are not

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Manifest rows by id."""
        return {} if self.manifest is None else {id_: row for row, id_ in enumerate(self.manifest.ids)}

    @cached_property
    def _columns(self) -> dict[str, list[Any]]:
        names = ("text", "votes", "duration", "session", "gender")
        return {} if self.manifest is None else {name: self.manifest.column(name) for name in names}

    def column(self, name: str, ids: Iterable[str]) -> list[Any]:
        """One manifest column for each of the utterances; None for those, or of a manifest, that are not there."""
        return [self._columns[name][self.row_of[id_]] if id_ in self.row_of else None for id_ in ids]

    def of(self, utterance: str, name: str) -> Any:
        """One value of the manifest."""
        return self.column(name, [utterance])[0]

    def votes(self, utterance: str) -> str | None:
        """The raters' categories by frequency, such as "Neutral 2, Anger"."""
        counts = Counter(vote for rater in self.of(utterance, "votes") or () for vote in rater)
        return ", ".join(f"{name} {n}" if n > 1 else name for name, n in counts.most_common()) or None

    def agreement(self, cell: Cell) -> np.ndarray:
        """The share of the raters that stand behind the label, of each prediction [n]; NaN without votes.

        A rater who gave several categories counts in parts; votes outside the label policy count against the label.
        """
        described, truth = cell.config["labels"], cell.predictions.truth
        policy = Policy(described["policy"], tuple(described["classes"]), described["maps"])
        shares = np.full(len(truth), np.nan)
        for row, raters in enumerate(self.column("votes", cell.predictions.ids)):
            if raters:
                behind = [np.mean([policy.index(raw) == truth[row] for raw in rater]) for rater in raters if rater]
                shares[row] = sum(behind) / len(raters)
        return shares


def find_origins(cells: Iterable[Cell]) -> dict[str, Origin]:
    """The origin of each cell by its label; cells of one store and manifest share it."""
    found: dict[tuple[str, str, str], Origin] = {}
    by_label = {}
    for cell in cells:
        key = (cell.config["provenance"].get("store", ""), cell.config["corpus"], cell.config["manifest"])
        if key not in found:
            found[key] = _find(*key)
        by_label[cell.label] = found[key]
    return by_label


def _find(where: str, corpus: str, digest: str) -> Origin:
    try:
        store = open_store(Path(where))
        return Origin(store, store.manifest(corpus, digest))
    except (SerError, OSError) as fault:
        return Origin(None, None, str(fault))


def style(utterance: str) -> str | None:
    """Whether an utterance was improvised or scripted, by its id in IEMOCAP's way; None for other ids."""
    found = _STYLE.match(utterance)
    return STYLES[found[1]] if found else None
