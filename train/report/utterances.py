"""What the store's manifest says about the utterances that a cell was tested on."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ser.cache.manifest import SCHEMA, Manifest
from ser.cache.store import Store, open_store
from ser.errors import SerError
from ser.train.labels import Policy

from .cells import Cell

# Dialogue names of the IEMOCAP release: Ses01F_impro01_F000, Ses05M_script01_1b_M012.
_STYLE = re.compile(r"Ses\d\d[FM]_(impro|script)")


@dataclass(frozen=True)
class Origin:
    """The store and manifest that cells were trained from, as far as they are still there."""

    store: Store | None
    manifest: Manifest | None
    lack: str = ""  # why they are not

    @cached_property
    def rows(self) -> Any:
        """A data frame by id with what is known of each utterance; empty without a manifest."""
        import pandas

        names = ["id", "text", "votes", "duration", "session", "gender"]
        table = SCHEMA.empty_table() if self.manifest is None else self.manifest.table
        columns = {name: table.column(name).to_pylist() for name in names}
        return pandas.DataFrame(columns, dtype=object).set_index("id")

    def agreement(self, cell: Cell) -> np.ndarray:
        """The share of the raters that stand behind the label, in percent, of each prediction; NaN without votes.

        A rater who gave several categories counts in parts; votes outside the label policy count against the label.
        """
        described, p = cell.config["labels"], cell.predictions
        policy = Policy(described["policy"], tuple(described["classes"]), described["maps"])
        shares = np.full(len(p), np.nan)
        for row, (truth, raters) in enumerate(zip(p.truth, self.rows.votes.reindex(p.id), strict=True)):
            if isinstance(raters, list) and raters:
                k = cell.classes.index(truth)
                behind = [np.mean([policy.index(raw) == k for raw in rater]) for rater in raters if rater]
                shares[row] = 100 * sum(behind) / len(raters)
        return shares


def find_origins(cells: Iterable[Cell]) -> dict[str, Origin]:
    """The origin of each cell by its label; cells of one store and manifest share it."""
    found: dict[tuple[str, str, str], Origin] = {}
    by_label = {}
    for cell in cells:
        where, corpus, digest = (
            cell.config["provenance"].get("store", ""),
            cell.config["corpus"],
            cell.config["manifest"],
        )
        if (where, corpus, digest) not in found:
            try:
                store = open_store(Path(where))
                found[where, corpus, digest] = Origin(store, store.manifest(corpus, digest))
            except (SerError, OSError) as fault:
                found[where, corpus, digest] = Origin(None, None, str(fault))
        by_label[cell.label] = found[where, corpus, digest]
    return by_label


def style(utterance: str) -> str | None:
    """Whether an utterance was improvised or scripted, by its id in IEMOCAP's way; None for other ids."""
    found = _STYLE.match(utterance)
    return {"impro": "improvised", "script": "scripted"}[found[1]] if found else None
