"""What an ensemble predicts: its members are opened where they lie, and their answers combined."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ser.errors import WrongUse
from ser.train.ensemble.combination import Combination, combination_of
from ser.train.records import ENSEMBLE, EnsembleRecord
from ser.train.run_folder import MODEL, PREDICTIONS, Run, load_run


@dataclass(frozen=True)
class OpenedEnsemble:
    """An ensemble's run folder, its members' folders, and how their predictions become one."""

    run: Run
    members: list[Run]
    combination: Combination

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order of its columns."""
        return tuple(self.run.config.labels.classes)

    def combine(
        self,
        classes_of_members: Sequence[Sequence[str]],
        probabilities: Sequence[np.ndarray],
        ratings: Sequence[np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities [n, K] and ratings [n, D] from those of each member, or NaN.

        An utterance that a member cannot use has none: the others were never weighed without it.
        """
        in_order = []
        for classes, values in zip(classes_of_members, probabilities, strict=True):
            columns = [list(classes).index(name) for name in self.classes]
            in_order.append(values[:, columns])
        of_members = np.stack(in_order).astype(np.float64)
        rated = np.stack(ratings)

        is_usable = np.isfinite(of_members).all((0, 2)) & np.isfinite(rated).all((0, 2))
        combined = np.full(of_members.shape[1:], np.nan)
        combined_ratings = np.full(rated.shape[1:], np.nan)
        if self.classes:
            combined[is_usable] = self.combination.probabilities(of_members[:, is_usable])
        combined_ratings[is_usable] = self.combination.ratings(rated[:, is_usable])
        return combined, combined_ratings


def open_ensemble(run: Run) -> OpenedEnsemble | None:
    """The ensemble in that folder with its members; None of any other run.

    Raises `WrongUse`, naming it, for a member that is not where it was, or predicts other things
    now.
    """
    if run.config.members is None:
        return None
    record = run.result.ensemble or EnsembleRecord(members=[])

    members = []
    for member in record.members:
        opened = _open_member(run, member.path, member.run)
        if opened.result.files[PREDICTIONS].sha256 != member.predictions:
            raise WrongUse(
                f"{opened.path}: predicts other things than when {run.path} was made of it; make "
                "the ensemble again"
            )
        members.append(opened)

    weights = None
    if record.members and record.members[0].weight is not None:
        weights = [member.weight or 0.0 for member in record.members]
    tensors = run.tensors(MODEL)[0] if MODEL in run.result.files else None
    by = run.config.fusion.removeprefix(ENSEMBLE)
    return OpenedEnsemble(run, members, combination_of(by, weights, tensors))


def _open_member(run: Run, path: str, name: str) -> Run:
    """The member where it was, or beside the ensemble, or beside that one's folder."""
    beside = run.path.parent
    for folder in (Path(path), beside / name, beside.parent / Path(path).parent.name / name):
        if (folder / "config.json").is_file():
            return load_run(folder)
    raise WrongUse(
        f"{run.path}: its member {name} is no longer at {path}; bring it back, or lay it beside "
        "the ensemble"
    )
