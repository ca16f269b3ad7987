"""Runs grouped into cells: a cell is one configuration, its runs are that configuration's folds and seeds."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from ser.cache.spec import canonical_json
from ser.errors import WrongUse
from ser.train.models import FUSIONS
from ser.train.run_folder import Run
from ser.train.scores import Interval, bootstrap, caveat, mean_std, pooled

# What tells the runs of one cell apart.
OF_THE_RUN = ("fold", "seed", "cut", "provenance")
# Fewer speakers than this say too little about speakers in general: utterances are drawn instead.
SPEAKERS = 8


@dataclass(frozen=True)
class Predictions:
    """The predictions of all runs of a cell, one after the other; an utterance stands there once per seed."""

    ids: np.ndarray  # [n] of str
    speakers: np.ndarray  # [n] of str or None
    truth: np.ndarray  # int [n]
    probabilities: np.ndarray  # [n, K]
    run: np.ndarray  # int [n]: which of the cell's runs

    @property
    def predicted(self) -> np.ndarray:
        """The class with the highest probability; int [n]."""
        return self.probabilities.argmax(1)

    @property
    def right(self) -> np.ndarray:
        """Bool [n]."""
        return self.predicted == self.truth

    @property
    def of_truth(self) -> np.ndarray:
        """The probability that the true class was given [n]."""
        return self.probabilities[np.arange(len(self.truth)), self.truth]


@dataclass(frozen=True)
class Cell:
    """One configuration with its finished runs, by seed and fold. `label` tells it from the report's other cells."""

    label: str
    runs: Sequence[Run]

    @property
    def config(self) -> dict[str, Any]:
        """The config of its first run: all but fold and seed is the same in all."""
        return self.runs[0].config

    @property
    def results(self) -> list[dict[str, Any]]:
        """The result of each run."""
        return [run.result for run in self.runs]

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the class numbers."""
        return self.config["labels"]["classes"]

    @property
    def seeds(self) -> list[int]:
        """The seeds of its runs."""
        return sorted({run.config["seed"] for run in self.runs})

    @property
    def folds(self) -> list[str]:
        """The folds of its runs."""
        return list(dict.fromkeys(run.config["fold"] for run in self.runs))

    @property
    def features(self) -> str:
        """Such as `hubert+mpnet`."""
        return "+".join(feature["feature"] for feature in self.config["features"].values())

    @property
    def real(self) -> bool:
        """Whether its scores say something about people: no synthetic corpus, no random weights."""
        return caveat(self.results) is None

    @cached_property
    def pooled(self) -> dict[str, Any]:
        """Scores of the utterances of all its runs taken together."""
        return pooled(self.results, self.classes)

    @cached_property
    def tests(self) -> dict[str, dict[str, Any]]:
        """The pooled scores of each way of testing that all its runs know, such as "only audio"."""
        shared = [name for name in self.results[0]["tests"] if all(name in result["tests"] for result in self.results)]
        return {name: pooled([result["tests"][name] for result in self.results], self.classes) for name in shared}

    def spread(self, score: str) -> tuple[float, float | None]:
        """Mean and standard deviation of a score over its runs."""
        return mean_std([result[score] for result in self.results])

    @cached_property
    def predictions(self) -> Predictions:
        """Read from the run folders."""
        tables = [run.predictions() for run in self.runs]
        number = {name: k for k, name in enumerate(self.classes)}

        def joined(name: str) -> np.ndarray:
            return np.concatenate([np.array(t.column(name).to_pylist(), dtype=object) for t in tables])

        return Predictions(
            ids=joined("id"),
            speakers=joined("speaker"),
            truth=np.array([number[name] for name in joined("truth")], dtype=np.int64),
            probabilities=np.concatenate([_matrix(table.column("probabilities")) for table in tables]),
            run=np.repeat(np.arange(len(tables)), [table.num_rows for table in tables]),
        )

    @cached_property
    def drawn(self) -> str:
        """What the bootstrap draws: "speakers" where the cell tests enough of them, else "utterances"."""
        speakers = set(self.predictions.speakers)
        return "speakers" if None not in speakers and len(speakers) >= SPEAKERS else "utterances"

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """UA and WA with their 95 % intervals; all seeds' predictions of what is drawn are drawn together."""
        p = self.predictions
        names = (p.speakers if self.drawn == "speakers" else p.ids).astype(str)
        groups = np.unique(names, return_inverse=True)[1].tolist()
        truth, predicted = p.truth.tolist(), p.predicted.tolist()
        return {s: bootstrap(truth, predicted, len(self.classes), s, groups) for s in ("ua", "wa")}


def _matrix(column: Any) -> np.ndarray:
    """A column of lists of equal length as an array [n, K]."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1)


def group(runs: Iterable[Run]) -> tuple[list[Cell], list[Run]]:
    """The cells of the finished runs, and the runs that are not finished."""
    members: dict[bytes, list[Run]] = {}
    unfinished = []
    for run in runs:
        if not run.finished:
            unfinished.append(run)
            continue
        config = {key: value for key, value in run.config.items() if key not in OF_THE_RUN}
        members.setdefault(canonical_json(config), []).append(run)
    labels = name_apart([runs[0].config for runs in members.values()])
    cells = [
        Cell(label, sorted(runs, key=lambda run: (run.config["seed"], run.config["fold"])))
        for label, runs in zip(labels, members.values(), strict=True)
    ]
    return sorted(cells, key=lambda cell: cell.label), unfinished


def finished_cells(runs: Sequence[Run]) -> tuple[list[Cell], list[Run]]:
    """`group`, highest UA first. Raises `WrongUse` if not one run is finished."""
    cells, unfinished = group(runs)
    if not cells:
        raise WrongUse(f"none of these {len(runs)} runs is finished; the same command with --resume goes on with them")
    return sorted(cells, key=lambda cell: -cell.pooled["ua"]), unfinished


def name_apart(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A label for each cell: its fusion and whatever else tells it from the others."""
    flat = [_flat(config) for config in configs]
    labels = []
    for one in flat:
        rivals = [other for other in flat if other["fusion"] == one["fusion"]]
        fusion = FUSIONS.get(one["fusion"])
        usual = {field.name: field.default for field in fields(fusion.settings)} if fusion else {}
        differing = [key for key in one if any(other.get(key) != one[key] for other in rivals)]
        # A fusion's own default goes without saying, and so do digests where anything else differs.
        kept = [key for key in differing if not key.startswith("digest.")] or differing
        kept = [key for key in kept if key not in usual or one[key] != usual[key]]
        kept = [*(["loss"] if one["loss"] != "single" and "loss" not in kept else []), *kept]
        labels.append(" · ".join([one["fusion"], *(_words(key, one[key]) for key in kept)]))
    seen: Counter[str] = Counter()
    for place, label in enumerate(labels):
        seen[label] += 1
        labels[place] = label if seen[label] == 1 else f"{label} ({seen[label]})"
    return labels


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """What can tell two cells apart, by the name it is set under."""
    features = config["features"].values()
    return {
        "fusion": config["fusion"],
        "features": "+".join(f["feature"] for f in features),
        "corpus": config["corpus"],
        "labels": config["labels"]["policy"],
        "protocol": config["protocol"],
        "select": config["select"],
        "loss": config["loss"],
        "precision": config.get("precision", "float32"),
        "limit": config["limit"],
        "pool": "+".join(f["pool"] for f in features),
        **config["settings"],
        **config["training"],
        "digest.features": "+".join(f["fingerprint"][:8] for f in features),
        "digest.manifest": config["manifest"][:8],
    }


def _words(key: str, value: Any) -> str:
    named = ("features", "corpus", "labels", "protocol", "select", "loss", "precision")
    told = f"{value:g}" if isinstance(value, float) else str(value)
    return told if key in named else f"{key.removeprefix('digest.')} {told}"
