"""A cell of a report: one configuration, with its finished runs and where they came from."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from msgspec import structs

from ser.cache.store import Store, open_store
from ser.corpus.manifest import Manifest
from ser.corpus.schema import SCHEMA
from ser.errors import SerError
from ser.train.models import FUSIONS
from ser.train.records import RunConfig
from ser.train.run_folder import Run
from ser.train.scores.calibration import confidences, given_to_the_truth
from ser.train.sweep.search_record import SearchRecord

from .cell_scores import CellScores

if TYPE_CHECKING:
    import pandas

Member = TypeVar("Member")
GroupKey = TypeVar("GroupKey")

# Columns of the manifest that a report shows.
MANIFEST_COLUMNS = ("id", "text", "votes", "duration", "session", "gender")


class Origin(NamedTuple):
    """The store and manifest that a cell was trained from; `lack` says why they are not there."""

    store: Store | None = None
    manifest: Manifest | None = None
    lack: str = ""


class Cell:
    """One configuration with its finished runs, by seed and fold.

    `label` tells it from the report's other cells. `search`: the runs are what it chose. `ours`: it
    is the user's own, to be tested against each of the others. `with_text`: transcripts are shown,
    whoever's they are. Raises as `CellScores`.
    """

    def __init__(
        self,
        label: str,
        runs: Sequence[Run],
        search: SearchRecord | None = None,
        ours: bool = False,
        with_text: bool = False,
    ) -> None:
        self.label = label
        self.with_text = with_text
        self.search = search
        self.ours = ours
        self.runs = sorted(runs, key=lambda run: (run.config.seed, run.config.fold))
        self.results = [run.result for run in self.runs]
        self.config = cell_config(self.runs[0], search)  # all but fold and seed is the same in all
        self.scores = CellScores(self.runs)

        self.seeds: list[int] = []
        self.folds: list[str] = []
        for run in self.runs:
            if run.config.seed not in self.seeds:
                self.seeds.append(run.config.seed)
            if run.config.fold not in self.folds:
                self.folds.append(run.config.fold)

        places = {(run.config.seed, run.config.fold) for run in self.runs}
        # Each seed has a run of each fold.
        self.whole = len(places) == len(self.folds) * len(self.seeds)
        # A fold was cut in several ways, such as after the file of folds was changed.
        self.recut = len(places) < len(self.runs)

    @property
    def settings(self) -> dict[str, Any]:
        """The fusion's settings, as far as it uses them, and the training's."""
        fusion = FUSIONS.get(self.config.fusion)
        unused = fusion.unused if fusion else ()
        settings = {**self.config.settings, **self.config.training}
        return {key: value for key, value in settings.items() if key not in unused}

    @property
    def folds_and_seeds(self) -> str:
        """How many runs: "5 × 2", folds × seeds, or "9 in 5 × 2" where some are missing."""
        product = f"{len(self.folds)} × {len(self.seeds)}"
        return product if self.whole else f"{len(self.runs)} in {product}"

    @property
    def shows_text(self) -> bool:
        """Whether its transcripts may be shown: the user asks for them, or all are generated."""
        manifest = self.origin.manifest
        if self.with_text or manifest is None:
            return self.with_text
        return all(part.synthetic for part in manifest.parts or [manifest])

    @cached_property
    def origin(self) -> Origin:
        """Where its features came from, as far as it is still there."""
        path = Path(self.config.provenance.store)
        try:
            store = open_store(path)
            manifest = store.joined_manifest(self.config.corpus, self.config.manifest)
        except (SerError, OSError) as fault:
            return Origin(lack=str(fault))
        return Origin(store, manifest)

    @cached_property
    def utterances(self) -> "pandas.DataFrame":
        """By id, the `MANIFEST_COLUMNS` of each utterance; empty without a manifest."""
        import pandas

        manifest = self.origin.manifest
        table = manifest.table if manifest else SCHEMA.empty_table()
        columns = table.select(MANIFEST_COLUMNS).to_pydict()
        return pandas.DataFrame(columns, dtype=object).set_index("id")

    @cached_property
    def judged(self) -> "pandas.DataFrame":
        """The predictions of classes: id, speaker, truth, predicted, run and seed, and of each

        tested      its "corpus/id"
        group       that of the intervals
        right       whether it is
        confidence  the highest probability, in percent
        given       the probability of the true class, in percent
        """
        predictions = self.scores.predictions
        columns = ["id", "speaker", "truth", "predicted", "run", "seed"]
        judged = predictions.table[columns]

        percent = 100 * predictions.probabilities["both"]
        return judged.assign(
            tested=[name for name, _ in predictions.utterances],
            group=predictions.group,
            right=judged.truth == judged.predicted,
            confidence=confidences(percent),
            given=given_to_the_truth(predictions.truth, percent),
        )


Cells = Sequence[Cell]


def cell_config(run: Run, search: SearchRecord | None) -> RunConfig:
    """A cell's config by that of one run.

    A setting that was searched has no value, and may stand in no config where it is at its default:
    it is said to be among the training's, which go before the fusion's.
    """
    training = dict(run.config.training)
    if search is not None:
        for setting in search.searched:
            training[setting] = "searched"
    return structs.replace(run.config, training=training)


def grouped(
    members: Iterable[Member], key: Callable[[Member], GroupKey]
) -> dict[GroupKey, list[Member]]:
    """The members by their key, both in the order in which they first come."""
    groups: dict[GroupKey, list[Member]] = {}
    for member in members:
        groups.setdefault(key(member), []).append(member)
    return groups


def same_run(run: Run) -> tuple[Any, ...]:
    """What is the same in runs of two cells that test the same utterances, with the same seed."""
    return run.config.corpus, run.config.seed, run.config.fold, run.config.cut
