"""What the runs of a cell predicted, in columns: an utterance is there once for each seed."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ser.train.data.utterances import DIMENSIONS
from ser.train.run_folder import Run, column
from ser.train.scores.classes import predicted_classes
from ser.train.scores.groups import groupings
from ser.train.scores.tests import ClassPredictions

if TYPE_CHECKING:
    import pandas


class CellPredictions:
    """The predictions.parquet of a cell's finished runs, read when first asked for.

    Everything is in one order, run by run: n predictions, K classes, D dimensions.
    """

    def __init__(self, runs: Sequence[Run], classes: Sequence[str], tests: Sequence[str]) -> None:
        self.runs = runs
        self.classes = classes
        self.tests = tests

    @cached_property
    def table(self) -> "pandas.DataFrame":
        """The files' columns, `run` (its place in `runs`) and `seed`.

        None where a run lacks a column.
        """
        import pandas

        frames = [run.predictions().to_pandas(use_threads=False) for run in self.runs]
        sizes = [len(frame) for frame in frames]
        run = np.repeat(range(len(frames)), sizes)
        seeds = np.array([run.result.seed for run in self.runs])
        table = pandas.concat(frames, ignore_index=True).assign(run=run, seed=seeds[run])

        # Not every run names dialogues, nor, without classes, a true one.
        columns = dict.fromkeys([*table.columns, "dialogue", "truth"])
        return table.reindex(columns=list(columns))

    @cached_property
    def truth(self) -> np.ndarray:
        """The number of the true class of each prediction `[n]`."""
        return self.table.truth.map(self.classes.index).to_numpy()

    @cached_property
    def probabilities(self) -> dict[str, np.ndarray]:
        """Those of the classes in each prediction `[n, K]`, by the way of testing."""
        by_test = {}
        for test in self.tests:
            values = self.table[column("probabilities", test)]
            by_test[test] = np.stack(values).astype(np.float64)
        return by_test

    def predicted(self, test: str = "both") -> np.ndarray:
        """The number of the predicted class of each prediction `[n]`, tested in that way."""
        return predicted_classes(self.probabilities[test])

    def ratings(self, test: str = "both") -> tuple[np.ndarray, np.ndarray]:
        """Truth and prediction of valence, arousal and dominance, `[n, D]` each.

        They are on the corpus's scale.
        """
        truth = [f"truth {name}" for name in DIMENSIONS]
        predicted = [column(f"predicted {name}", test) for name in DIMENSIONS]
        return self.table[truth].to_numpy(), self.table[predicted].to_numpy()

    @cached_property
    def utterances(self) -> list[tuple[str, str]]:
        """The "corpus/id" and the true class of each prediction."""
        result = self.runs[0].result
        # Ids of several corpora begin with theirs.
        corpus = "" if result.corpora else f"{result.corpus}/"
        return list(zip(corpus + self.table.id, self.table.truth, strict=True))

    @cached_property
    def groupings(self) -> "dict[str, pandas.Series]":
        """The group of each prediction by what groups can be, the default first.

        Intervals and tests are over groups. Utterances where nothing else is known.
        """
        return groupings(self.table.speaker, self.table.dialogue, self.table.id)

    @property
    def over(self) -> str:
        """What the groups of the intervals are."""
        return next(iter(self.groupings))

    @property
    def group(self) -> "pandas.Series":
        """That of each prediction, for intervals."""
        return self.groupings[self.over]

    def for_tests(self, test: str = "both") -> ClassPredictions:
        """What the tests between cells are given, with the model tested in that way."""
        return ClassPredictions(
            classes=self.classes,
            utterances=self.utterances,
            truth=self.truth,
            predicted=self.predicted(test),
            seeds=self.table.seed.to_numpy(),
            groupings=self.groupings,
        )
