"""Runs grouped into cells: a cell is one configuration, its runs are that configuration's folds and seeds."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ser.cache.manifest import SCHEMA, Manifest
from ser.cache.spec import canonical_json
from ser.cache.store import Store, open_store
from ser.errors import SerError
from ser.train.models import FUSIONS
from ser.train.run_folder import Run
from ser.train.scores import CellScores, finished

# What tells the runs of one cell apart.
OF_THE_RUN = ("fold", "seed", "cut", "provenance")
# What stands in a label without its name.
UNNAMED = ("features", "corpus", "target", "only", "labels", "protocol", "select", "loss", "precision")
KNOWN = ("id", "text", "votes", "duration", "session", "gender")  # columns of the manifest


class Origin(NamedTuple):
    """The store and manifest that a cell was trained from; `lack` says why they are not there."""

    store: Store | None = None
    manifest: Manifest | None = None
    lack: str = ""


class Cell(CellScores):
    """One configuration with its finished runs, by seed and fold. `label` tells it from the report's other cells."""

    def __init__(self, label: str, runs: Sequence[Run]) -> None:
        super().__init__(sorted(runs, key=lambda run: (run.config["seed"], run.config["fold"])))
        self.label = label
        self.config = self.runs[0].config  # all but fold and seed is the same in all
        self.folds = list(dict.fromkeys(run.config["fold"] for run in self.runs))
        self.seeds = sorted({run.config["seed"] for run in self.runs})

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
            return Origin(store, store.manifest(self.config["corpus"], self.config["manifest"]))
        except (SerError, OSError) as fault:
            return Origin(lack=str(fault))

    @cached_property
    def utterances(self) -> Any:
        """A data frame by id with what the manifest says of each utterance; empty without a manifest."""
        import pandas

        table = self.origin.manifest.table if self.origin.manifest else SCHEMA.empty_table()
        columns = {name: table.column(name).to_pylist() for name in KNOWN}
        return pandas.DataFrame(columns, dtype=object).set_index("id")

    @cached_property
    def predictions(self) -> Any:
        """A data frame with one row per prediction: an utterance is there once per seed.

        Columns: `id`, `speaker`, the classes `truth` and `predicted`, `right`, `confidence` and `given` (the highest
        probability and that of the true class, in percent), `run` (its place in `runs`), `seed` and its `group`, which
        intervals are over.
        """
        import pandas

        frames = []
        for number, (run, table) in enumerate(zip(self.runs, self.tables, strict=True)):
            frame = table.select(["id", "speaker", "truth", "predicted"]).to_pandas()
            flat = table.column("probabilities").combine_chunks().flatten().to_numpy()
            percent = 100 * flat.astype(np.float64).reshape(len(frame), -1)
            frame["right"] = frame.truth == frame.predicted
            frame["confidence"] = percent.max(1)
            frame["given"] = percent[np.arange(len(frame)), pandas.Index(self.classes).get_indexer(frame.truth)]
            frames.append(frame.assign(run=number, seed=run.config["seed"]))
        return pandas.concat(frames, ignore_index=True).assign(group=self.groups(self.over))


def group_runs(runs: Iterable[Run]) -> tuple[list[Cell], list[Run]]:
    """The cells of the finished runs, highest UA first, and the runs that are not finished.

    Cells without classes come after those with, highest mean CCC first.

    Raises `WrongUse` if no run is finished.
    """
    members: dict[bytes, list[Run]] = {}
    every = sorted(runs, key=lambda run: run.path.name)
    for run in finished(every):
        members.setdefault(configuration(run.config), []).append(run)
    labels = name_apart([runs[0].config for runs in members.values()])
    cells = [Cell(label, runs) for label, runs in zip(labels, members.values(), strict=True)]
    best = {cell.label: -cell.score("ua" if cell.classes else "ccc").pooled for cell in cells}
    ranked = sorted(cells, key=lambda cell: (not cell.classes, best[cell.label], cell.label))
    return ranked, [run for run in every if not run.finished]


def configuration(config: Mapping[str, Any], but: str | None = None) -> bytes:
    """What all runs of a cell share, but for one setting of the fusion."""
    shared = {key: value for key, value in config.items() if key not in OF_THE_RUN}
    shared["settings"] = {key: value for key, value in config["settings"].items() if key != but}
    return canonical_json(shared)


def name_apart(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A label for each cell: its fusion and whatever else tells it from the others."""
    flat = [_flat(config) for config in configs]
    labels: list[str] = []
    seen: Counter[str] = Counter()
    for one in flat:
        rivals = [other for other in flat if other["fusion"] == one["fusion"]]
        fusion = FUSIONS.get(one["fusion"])
        usual = {field.name: field.default for field in fields(fusion.settings)} if fusion else {}
        differing = [key for key in one if any(other.get(key) != one[key] for other in rivals)]
        # A fusion's own default goes without saying, and so do digests where anything else differs.
        kept = [key for key in differing if not key.startswith("digest.")] or differing
        kept = [key for key in kept if key not in usual or one[key] != usual[key]]
        kept = [*(["loss"] if one["loss"] != "single" and "loss" not in kept else []), *kept]
        label = one["fusion"]
        for key in kept:
            name = "" if key in UNNAMED else f"{key.removeprefix('digest.')} "
            label += f" · {name}{one[key]:g}" if isinstance(one[key], float) else f" · {name}{one[key]}"
        seen[label] += 1
        labels.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return labels


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """What can tell two cells apart, by the name it is set under."""
    features = config["features"].values()
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
        **config["settings"],
        **config["training"],
        "digest.features": "+".join(f["fingerprint"][:8] for f in features),
        "digest.manifest": config["manifest"][:8],
    }
