"""Runs grouped into cells: a cell is one configuration, its runs are that configuration's folds and
seeds.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec import structs

from ser.cache.store import Store, open_store
from ser.corpus.manifest import Manifest
from ser.corpus.schema import SCHEMA
from ser.errors import SerError, WrongUse, unknown
from ser.train.models import FUSIONS
from ser.train.records import RunConfig
from ser.train.run_folder import Run
from ser.train.sweep.search import choose
from ser.train.sweep.search_record import SearchRecord, cell_name

from .cell_scores import CellScores
from .tables import sentence

# What stands in a label without its name.
UNNAMED = (
    "features",
    "corpus",
    "target",
    "only",
    "labels",
    "protocol",
    "select",
    "loss",
    "precision",
)
OF_TARGET = ("select_score", "vad_scale")  # chosen by the target where nothing is said
KNOWN = ("id", "text", "votes", "duration", "session", "gender")  # columns of the manifest


class Origin(NamedTuple):
    """The store and manifest that a cell was trained from; `lack` says why they are not there."""

    store: Store | None = None
    manifest: Manifest | None = None
    lack: str = ""


class Cell(CellScores):
    """One configuration with its finished runs, by seed and fold. `label` tells it from the
    report's other cells.
    """

    def __init__(
        self,
        label: str,
        runs: Sequence[Run],
        search: SearchRecord | None = None,
        ours: bool = False,
    ) -> None:
        super().__init__(sorted(runs, key=lambda run: (run.config.seed, run.config.fold)))
        self.label, self.search, self.ours = (
            label,
            search,
            ours,
        )  # ours: tested against each of the others
        self.config = _config(self.runs[0], search)  # all but fold and seed is the same in all
        seeds_and_folds = dict.fromkeys((run.config.seed, run.config.fold) for run in self.runs)
        self.seeds, self.folds = (
            [*dict.fromkeys(values)] for values in zip(*seeds_and_folds, strict=True)
        )
        self.whole = len(seeds_and_folds) == len(self.folds) * len(
            self.seeds
        )  # each seed has a run of each fold
        self.recut = len(seeds_and_folds) < len(
            self.runs
        )  # such as after the file of folds was changed

    @property
    def settings(self) -> dict[str, Any]:
        """The fusion's settings, as far as it uses them, and the training's."""
        fusion = FUSIONS.get(self.config.fusion)
        unused = fusion.unused if fusion else ()
        settings = {**self.config.settings, **self.config.training}
        return {key: value for key, value in settings.items() if key not in unused}

    @cached_property
    def origin(self) -> Origin:
        """Where its features came from, as far as it is still there."""
        try:
            store = open_store(Path(self.config.provenance.store))
            return Origin(store, store.joined_manifest(self.config.corpus, self.config.manifest))
        except (SerError, OSError) as fault:
            return Origin(lack=str(fault))

    @cached_property
    def utterances(self) -> Any:
        """A data frame by id with the manifest's columns `KNOWN` of each utterance; empty without a
        manifest.
        """
        import pandas

        table = self.origin.manifest.table if self.origin.manifest else SCHEMA.empty_table()
        return pandas.DataFrame(table.select(KNOWN).to_pydict(), dtype=object).set_index("id")

    @cached_property
    def judged(self) -> Any:
        """The predictions of classes, and of each its `tested` name in its corpus, whether it is
        `right`, `confidence` and `given` (the highest probability and that of the true class, in
        percent), and the intervals' `group`.
        """
        percent = 100 * self.probabilities["both"]
        p = self.predictions[["id", "speaker", "truth", "predicted", "run", "seed"]]
        p = p.assign(
            tested=[name for name, _ in self.tested], group=self.group, right=p.truth == p.predicted
        )
        return p.assign(confidence=percent.max(1), given=percent[np.arange(len(p)), self.truth])


Cells = Sequence[Cell]


def grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """The items by their key, both in the order in which they first come."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def same_run(run: Run) -> tuple[Any, ...]:
    """What is the same in runs of two cells that test the same utterances, with the same seed."""
    return run.config.corpus, run.config.seed, run.config.fold, run.config.cut


def drawn(cells: Cells, most: int) -> str:
    """Which cells are in a plot, if not all."""
    return sentence("drawn", most < len(cells), most=most, n=len(cells))


def group_runs(
    runs: Iterable[Run], searches: Sequence[SearchRecord] = (), ours: str = ""
) -> tuple[list[Cell], list[Run]]:
    """The cells of the finished runs, highest UA first, and the runs that are not finished.

    Cells without classes come after those with, highest mean CCC first. A search is one cell, of
    the runs that were chosen; its other runs are in none, nor is a search within a longer one.
    `ours` is the label of the user's own cell. Raises `WrongUse` if no run is finished, or no cell
    has that label.
    """
    searches = [
        one
        for one in searches
        if not any({*one.candidates} < {*other.candidates} for other in searches)
    ]
    every = sorted(runs, key=lambda run: run.path.name)
    done = [run for run in every if run.finished]
    if not done:
        raise WrongUse(
            f"none of these {len(every)} runs is finished; the same command with --resume goes on with them"
        )
    by_cell = grouped(every if searches else done, lambda run: cell_name(run.config))
    members: list[tuple[list[Run], SearchRecord | None]] = []
    for search in searches:
        tried = [run for name in search.candidates for run in by_cell.get(name, ())]
        columns = grouped(tried, same_run).values()
        members.append(
            (choose(runs for runs in columns if len(runs) == len(search.candidates)), search)
        )
    searched = {name for search in searches for name in search.candidates}
    members += [
        ([run for run in by_cell[name] if run.finished], None)
        for name in by_cell
        if name not in searched
    ]
    members = [(chosen, search) for chosen, search in members if chosen]
    if not members:
        raise WrongUse(
            "no fold has a run of every candidate of its search yet; run the same sweep again to go on"
        )
    labels = name_apart([_config(chosen[0], search) for chosen, search in members])
    if ours and ours not in labels:
        raise unknown("cell", ours, labels)
    cells = [
        Cell(label, *member, ours=label == ours)
        for label, member in zip(labels, members, strict=True)
    ]
    cells.sort(
        key=lambda cell: (
            not cell.classes,
            -cell.score("ua" if cell.classes else "ccc").pooled,
            cell.label,
        )
    )
    return cells, [run for run in every if not run.finished]


def _config(run: Run, search: SearchRecord | None) -> RunConfig:
    """A cell's config by that of one run: what was searched has no value, and may lack one, at its
    default.
    """
    searched = dict.fromkeys(search.over if search else (), "searched")
    # The training's settings go before the fusion's.
    return structs.replace(run.config, training={**run.config.training, **searched})


def name_apart(configs: Sequence[RunConfig]) -> list[str]:
    """A label for each cell: its fusion, its features if any cell has others, and what else tells
    it from rivals.
    """
    flat = [_flat(config) for config in configs]
    always = ["features"] * (len({options["features"] for options in flat}) > 1)
    labels, seen = list[str](), Counter[str]()
    for options in flat:
        rivals = [other for other in flat if other["fusion"] == options["fusion"]]
        fusion = FUSIONS.get(options["fusion"])
        defaults = (
            {field.name: field.default for field in fields(fusion.settings)} if fusion else {}
        )
        differing = [key for key in options if any(_tells(key, options, other) for other in rivals)]
        # A fusion's own default goes without saying, and so do digests where anything else differs.
        shown = [key for key in differing if not key.startswith("digest.")] or differing
        shown = [key for key in shown if key not in defaults or options[key] != defaults[key]]
        shown += [*always, "loss"] if options["loss"] != "single" else always
        label = options["fusion"]
        for key, value in options.items():
            if key in shown:
                name = "" if key in UNNAMED else f"{key.removeprefix('digest.')} "
                label += f" · {name}{value:g}" if isinstance(value, float) else f" · {name}{value}"
        seen[label] += 1
        labels.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return labels


def _tells(key: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether it tells two cells apart; what follows from their targets, such as that there are no
    labels, does not.
    """
    follows = key in OF_TARGET or (key == "labels" and "none" in (one[key], other[key]))
    return one[key] != other.get(key) and not (follows and one["target"] != other["target"])


def _flat(config: RunConfig) -> dict[str, Any]:
    """What can tell two cells apart, by the name it is set under."""
    features = config.features.values()
    hops = dict.fromkeys(
        part.hop for feature in features for part in feature.parts if part.hop is not None
    )
    return {
        "fusion": config.fusion,
        "features": "+".join(f.feature for f in features),
        "corpus": config.corpus,
        "target": config.target,
        "labels": config.labels.policy,
        "protocol": config.protocol,
        "select": config.select,
        "loss": config.loss,
        "precision": config.precision,
        "only": config.only or "all utterances",
        "limit": config.limit,
        "pool": "+".join(f.pool for f in features),
        "hop": "+".join(f"{hop} s" for hop in hops) or "as extracted",
        "views": "+".join(view.feature for view in config.views) or "none",
        **config.settings,
        **config.training,
        "code": (config.code or "none")[:8],
        "digest.features": "+".join(f.fingerprint[:8] for f in features),
        "digest.manifest": "+".join(digest[:8] for digest in config.manifest.split("+")),
    }
