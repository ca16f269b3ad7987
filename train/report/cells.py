"""Runs grouped into cells: a cell is one configuration, its runs are that configuration's folds and seeds."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ser.cache.manifest import SCHEMA, Manifest
from ser.cache.store import Store, open_store
from ser.errors import SerError, WrongUse, unknown
from ser.train.models import FUSIONS
from ser.train.recipe import Record, cell_name, choose
from ser.train.run_folder import Run

from .cell_scores import CellScores
from .tables import sentence

# What stands in a label without its name.
UNNAMED = ("features", "corpus", "target", "only", "labels", "protocol", "select", "loss", "precision")
OF_TARGET = ("select_score", "vad_scale")  # chosen by the target where nothing is said
KNOWN = ("id", "text", "votes", "duration", "session", "gender")  # columns of the manifest


class Origin(NamedTuple):
    """The store and manifest that a cell was trained from; `lack` says why they are not there."""

    store: Store | None = None
    manifest: Manifest | None = None
    lack: str = ""


class Cell(CellScores):
    """One configuration with its finished runs, by seed and fold. `label` tells it from the report's other cells."""

    def __init__(self, label: str, runs: Sequence[Run], search: Record | None = None, ours: bool = False) -> None:
        super().__init__(sorted(runs, key=lambda run: (run.config["seed"], run.config["fold"])))
        self.label, self.search, self.ours = label, search, ours  # ours: tested against each of the others
        self.config = _config(self.runs[0], search)  # all but fold and seed is the same in all
        self.folds = list(dict.fromkeys(run.config["fold"] for run in self.runs))
        self.seeds = sorted({run.config["seed"] for run in self.runs})

    @property
    def whole(self) -> bool:
        """Whether each of its seeds has a run of each of its folds."""
        return len(self.runs) == len(self.folds) * len(self.seeds)

    @property
    def settings(self) -> dict[str, Any]:
        """The fusion's settings, as far as it uses them, and the training's."""
        name, every = self.config["fusion"], {**self.config["settings"], **self.config["training"]}
        return {key: every[key] for key in every if name not in FUSIONS or key not in FUSIONS[name].unused}

    @cached_property
    def origin(self) -> Origin:
        """Where its features came from, as far as it is still there."""
        try:
            store = open_store(Path(self.config["provenance"].get("store", "")))
            return Origin(store, store.joined_manifest(self.config["corpus"], self.config["manifest"]))
        except (SerError, OSError) as fault:
            return Origin(lack=str(fault))

    @cached_property
    def utterances(self) -> Any:
        """A data frame by id with what the manifest says of each utterance; empty without a manifest."""
        import pandas

        table = self.origin.manifest.table if self.origin.manifest else SCHEMA.empty_table()
        return pandas.DataFrame(table.select(KNOWN).to_pydict(), dtype=object).set_index("id")

    @cached_property
    def judged(self) -> Any:
        """The classes in each prediction: is it `right`, `confidence` and `given` (the highest probability and that of
        the true class, in percent), and its `group`, which intervals are over.
        """
        p, percent = self.predictions, 100 * self.probabilities["both"]
        given = percent[np.arange(len(p)), self.truth]
        known = p[["id", "speaker", "truth", "predicted", "run", "seed"]]
        return known.assign(right=p.truth == p.predicted, confidence=percent.max(1), given=given, group=self.group)


def grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """The items by their key, both in the order in which they first come."""
    found: dict[Any, list[Any]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def same_run(run: Run) -> tuple[Any, ...]:
    """What is the same in runs of two cells that test the same utterances, with the same seed."""
    return run.config["corpus"], run.config["seed"], run.config["fold"], run.config["cut"]


def drawn(cells: Sequence[Cell], most: int) -> str:
    """Which cells are in a plot, if not all."""
    return sentence("drawn", most < len(cells), most=most, n=len(cells))


def group_runs(runs: Iterable[Run], searches: Sequence[Record] = (), ours: str = "") -> tuple[list[Cell], list[Run]]:
    """The cells of the finished runs, highest UA first, and the runs that are not finished.

    Cells without classes come after those with, highest mean CCC first. A search is one cell, of the runs that were
    chosen; its other runs are in none, nor is a search within a longer one. `ours` is the label of the user's own cell.
    Raises `WrongUse` if no run is finished, or no cell has that label.
    """
    searches = [one for one in searches if not any({*one.candidates} < {*more.candidates} for more in searches)]
    every = sorted(runs, key=lambda run: run.path.name)
    done = [run for run in every if run.finished]
    if not done:
        raise WrongUse(f"none of these {len(every)} runs is finished; the same command with --resume goes on with them")
    members = grouped(every if searches else done, lambda run: cell_name(run.config))
    found: list[tuple[list[Run], Record | None]] = []
    for search in searches:
        tried = (run for name in search.candidates for run in members.get(name, ()))
        columns = grouped(tried, same_run).values()
        found.append((choose(one for one in columns if len(one) == len(search.candidates)), search))
    searched = {name for search in searches for name in search.candidates}
    found += [([run for run in same if run.finished], None) for name, same in members.items() if name not in searched]
    found = [(same, search) for same, search in found if same]
    if not found:
        raise WrongUse("no fold has a run of every candidate of its search yet; run the same sweep again to go on")
    labels = name_apart([_config(same[0], search) for same, search in found])
    if ours and ours not in labels:
        raise unknown("cell", ours, labels)
    cells = [Cell(label, *one, ours=label == ours) for label, one in zip(labels, found, strict=True)]
    cells.sort(key=lambda cell: (not cell.classes, -cell.score("ua" if cell.classes else "ccc").pooled, cell.label))
    return cells, [run for run in every if not run.finished]


def _config(run: Run, search: Record | None) -> dict[str, Any]:
    """A cell's config by that of one run: what was searched has no value, and may lack one, at its default."""
    searched = dict.fromkeys(search.over if search else (), "searched")
    return run.config | {"training": run.config["training"] | searched}  # which goes before the fusion's settings


def name_apart(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A label for each cell: its fusion, its features if any cell has others, and what else tells it from rivals."""
    flat = [_flat(config) for config in configs]
    labels: list[str] = []
    seen: Counter[str] = Counter()
    for one in flat:
        rivals = [other for other in flat if other["fusion"] == one["fusion"]]
        fusion = FUSIONS.get(one["fusion"])
        usual = {field.name: field.default for field in fields(fusion.settings)} if fusion else {}
        differing = [key for key in one if any(_tells(key, one, other) for other in rivals)]
        # A fusion's own default goes without saying, and so do digests where anything else differs.
        told = [key for key in differing if not key.startswith("digest.")] or differing
        told = [key for key in told if key not in usual or one[key] != usual[key]]
        told += ["features"] * (len({each["features"] for each in flat}) > 1) + ["loss"] * (one["loss"] != "single")
        label = one["fusion"]
        for key in (key for key in one if key in told):
            name = "" if key in UNNAMED else f"{key.removeprefix('digest.')} "
            label += f" · {name}{one[key]:g}" if isinstance(one[key], float) else f" · {name}{one[key]}"
        seen[label] += 1
        labels.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return labels


def _tells(key: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether it tells two cells apart; what follows from their targets, such as that there are no labels, does not."""
    follows = key in OF_TARGET or (key == "labels" and "none" in (one[key], other[key]))
    return one[key] != other.get(key) and not (follows and one["target"] != other["target"])


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """What can tell two cells apart, by the name it is set under."""
    features = config["features"].values()
    hops = dict.fromkeys(one["hop"] for f in features for one in f.get("joined", [f]) if "hop" in one)
    return {
        "fusion": config["fusion"],
        "features": "+".join(f["feature"] for f in features),
        "corpus": config["corpus"],
        "target": config.get("target", "class"),
        "labels": config["labels"]["policy"],
        **{key: config[key] for key in ("protocol", "select", "loss")},
        "precision": config.get("precision", "float32"),
        "only": config.get("only", "all utterances"),
        "limit": config["limit"],
        "pool": "+".join(f["pool"] for f in features),
        "hop": "+".join(f"{hop} s" for hop in hops) or "as extracted",
        "views": "+".join(view["feature"] for view in config.get("views", ())) or "none",
        **config["settings"],
        **config["training"],
        "code": config.get("code", "none")[:8],
        "digest.features": "+".join(f["fingerprint"][:8] for f in features),
        "digest.manifest": "+".join(digest[:8] for digest in config["manifest"].split("+")),
    }
