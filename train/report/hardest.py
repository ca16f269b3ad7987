"""Where the errors are: the hardest utterances, errors by group, and the raters' agreement against confidence."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from .agreement import agreement_plot
from .cells import Cell
from .groups import groups_plot
from .markup import Block, Section, Side
from .tables import Column, Table
from .utterances import Origin

HARDEST = 12  # utterances


def section(cells: Sequence[Cell], cell: Cell, origins: Mapping[str, Origin]) -> Section:
    """The section: the hardest utterances of all cells, the groups of one."""
    origin = origins[cell.label]
    blocks: list[Block] = []
    if len(cells) > 1:
        blocks.append(f"Errors by group and agreement are those of the cell with the highest UA, {cell.label}.")
    if origin.manifest is None:
        blocks.append(f"Texts, durations and votes are not at hand: {origin.lack}")
    agreement = agreement_plot(cell, origin)
    blocks.append(Side([groups_plot(cell, origin), *([agreement] if agreement else [])]))
    blocks.append(_hardest(cells, cell, origin))
    return Section("errors", "Where the errors are", blocks)


def _hardest(cells: Sequence[Cell], cell: Cell, origin: Origin) -> Table:
    """Wrong in the largest share of all runs on this corpus; of equals, where the truth was given least."""
    alike = [c for c in cells if c.config["corpus"] == cell.config["corpus"] and c.classes == cell.classes]
    wrong: dict[str, list[float]] = {}
    given: dict[str, list[float]] = {}
    taken: dict[str, Counter[str]] = {}
    truth: dict[str, str] = {}
    for one in alike:
        p = one.predictions
        for id_, right, share, t, k in zip(
            p.ids, p.right.tolist(), p.of_truth.tolist(), p.truth.tolist(), p.predicted.tolist(), strict=True
        ):
            wrong.setdefault(id_, []).append(not right)
            given.setdefault(id_, []).append(share)
            truth[id_] = one.classes[t]
            if not right:
                taken.setdefault(id_, Counter())[one.classes[k]] += 1
    order = sorted(taken, key=lambda i: (-np.mean(wrong[i]), np.mean(given[i]), i))[:HARDEST]
    rows = []
    for id_ in order:
        text, votes, seconds = (origin.of(id_, name) for name in ("text", "votes", "duration"))
        rows.append(
            [
                id_,
                text,
                truth[id_],
                ", ".join(name for name, _ in taken[id_].most_common(2)),
                float(np.mean(wrong[id_])),
                len(wrong[id_]),
                float(np.mean(given[id_])),
                _votes(votes),
                seconds,
            ]
        )
    columns = [
        Column("utterance"),
        Column("text"),
        Column("label"),
        Column("taken for"),
        Column("wrong %", "percent"),
        Column("runs", "count"),
    ]
    columns += [Column("given to the truth %", "percent"), Column("votes"), Column("seconds", "number")]
    note = "Wrong in the largest share of the runs that tested it, "
    note += "of all cells; " if len(alike) > 1 else ""
    note += "of equals, the one whose truth got least."
    return Table("hardest", f"The {len(rows)} hardest utterances", columns, rows, note)


def _votes(votes: Sequence[Sequence[str]] | None) -> str | None:
    if not votes:
        return None
    return ", ".join(
        f"{name} {n}" if n > 1 else name for name, n in Counter(v for rater in votes for v in rater).most_common()
    )
