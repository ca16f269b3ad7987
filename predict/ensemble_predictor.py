"""An ensemble on new speech: each member predicts, and their answers become one."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ser.errors import WrongUse
from ser.train.data.utterances import DIMENSIONS
from ser.train.records import RunConfig
from ser.train.scores.calibration import tempered
from ser.train.targets import TARGETS
from ser.weights.find import parse_models

from .ensembles import OpenedEnsemble, open_ensemble
from .predictor import Predictor
from .shared import FeatureSource
from .trained import open_trained
from .turns import Answer, Prediction, Turn


class EnsemblePredictor:
    """The members of an ensemble, which compute each feature of an utterance once."""

    def __init__(
        self, ensemble: OpenedEnsemble, models: Mapping[str, str], device: str = "auto"
    ) -> None:
        self.ensemble = ensemble
        self.run = ensemble.run
        self.classes = ensemble.classes
        calibration = self.run.result.calibration
        self.temperature = None if calibration is None else calibration.temperature

        self.members: list[Predictor] = []
        for member in ensemble.members:
            known = _encoders_of(member.config)
            of_member = {name: path for name, path in models.items() if name in known}
            predictor = Predictor(member.path, of_member, device)
            # What is combined is what each said before its own temperature, as in training.
            predictor.temperature = None
            self.members.append(predictor)
        self.source = FeatureSource(self.members[0].config.device, remembers=True)
        self.share(self.source)

    @property
    def rated(self) -> bool:
        """Whether it predicts valence, arousal and dominance."""
        return TARGETS[self.run.config.target].rated

    @property
    def takes_audio(self) -> bool:
        """Whether any of the members does."""
        return any(member.takes_audio for member in self.members)

    def share(self, source: FeatureSource) -> None:
        """Take features from a source, which computes those of other runs too."""
        self.source = source
        for member in self.members:
            member.share(source)

    def check(self, turns: Sequence[Turn], abstain_below: float = 0.0) -> None:
        """Raise `WrongUse` where an answer would, before anything is computed."""
        if abstain_below > 0 and not self.classes:
            raise WrongUse(
                f"--abstain-below is for classes, and {self.run.path} learnt none; leave it out"
            )
        for member in self.members:
            member.check(turns)

    def answer(self, turns: Sequence[Turn], abstain_below: float = 0.0) -> Answer:
        """Classify the turns that every member can use."""
        self.check(turns, abstain_below)
        answers = [member.answer(turns) for member in self.members]
        unusable: dict[str, str] = {}
        notes: list[str] = []
        for answer in answers:
            unusable = {**answer.unusable, **unusable}
            notes += [note for note in answer.notes if note not in notes]

        by_member = []
        for answer in answers:
            by_member.append({each.id: each for each in answer.predictions})
        ids = [turn.id for turn in turns if all(turn.id in of_one for of_one in by_member)]
        if not ids:
            return Answer([], unusable, notes)

        probabilities, ratings = self.ensemble.combine(
            [member.classes for member in self.members],
            [_probabilities(of_one, ids) for of_one in by_member],
            [_ratings(of_one, ids) for of_one in by_member],
        )
        predictions = []
        for row, id_ in enumerate(ids):
            without: set[str] = set()
            for of_one in by_member:
                without.update(of_one[id_].without)
            predictions.append(
                self._prediction(id_, probabilities[row], ratings[row], without, abstain_below)
            )
        return Answer(predictions, unusable, notes)

    def _prediction(
        self,
        id_: str,
        probabilities: np.ndarray,
        ratings: np.ndarray,
        without: Iterable[str],
        abstain_below: float,
    ) -> Prediction:
        label = self.classes[int(probabilities.argmax())] if self.classes else None
        shares = probabilities[None]
        if self.temperature is not None:
            shares = tempered(shares, self.temperature)
        return Prediction(
            id=id_,
            label=label,
            probabilities=dict(zip(self.classes, shares[0].tolist(), strict=True)),
            without=tuple(sorted(without)),
            ratings=dict(zip(DIMENSIONS, ratings.tolist(), strict=False)),
            abstained=bool(self.classes) and float(shares.max()) < abstain_below,
        )


def open_predictor(
    path: str | Path, models: Mapping[str, str] | Iterable[str] = (), device: str = "auto"
) -> Predictor | EnsemblePredictor:
    """What predicts by the run in that folder: its model, or those of an ensemble's members."""
    ensemble = open_ensemble(open_trained(path))
    if ensemble is None:
        return Predictor(path, models, device)
    return EnsemblePredictor(ensemble, parse_models(models), device)


def _encoders_of(config: RunConfig) -> set[str]:
    """The features that a run was trained on, as `--model` names them."""
    names = set()
    for modality in config.features:
        for spec in config.provenance.feature_specs(modality):
            names.add(str(spec["feature"]))
    return names


def _probabilities(predictions: Mapping[str, Prediction], ids: Sequence[str]) -> np.ndarray:
    """[n, K], in the order of the member's own classes."""
    return np.array([list(predictions[id_].probabilities.values()) for id_ in ids])


def _ratings(predictions: Mapping[str, Prediction], ids: Sequence[str]) -> np.ndarray:
    """[n, D]; D is 0 where the member learnt none."""
    return np.array([list(predictions[id_].ratings.values()) for id_ in ids])
