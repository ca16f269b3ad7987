"""Several trained runs on the same speech: each one's predictions, and their mean."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ser.errors import CorpusError, WrongUse, unknown
from ser.train.run_folder import Run
from ser.weights.find import parse_models

from .ensemble_predictor import EnsemblePredictor, open_predictor
from .ensembles import open_ensemble
from .predictor import Predictor
from .shared import FeatureSource
from .trained import open_trained
from .turns import Answer, Prediction, Turn

# Utterances whose features are in memory at once, beside those of a longer dialogue.
AT_ONCE = 64

# Called with how many utterances are done, and how many there are.
OnUtterances = Callable[[int, int], None]


@dataclass(frozen=True)
class SeveralAnswers:
    """What several runs say of the same turns."""

    by_run: dict[str, Answer]
    """By the run's name."""
    mean: list[Prediction]
    """The means of probabilities and ratings over the runs that can use the utterance."""
    unusable: dict[str, str] = field(default_factory=dict)
    """By id, why no run can use a turn."""


class Predictors:
    """Several trained runs, which compute each feature of an utterance once.

    Raises `WrongUse` where two of them have other classes, or are one run.
    """

    def __init__(
        self,
        runs: Sequence[str | Path],
        models: Mapping[str, str] | Iterable[str] = (),
        device: str = "auto",
    ) -> None:
        folders = parse_models(models)
        of_run = {path: _encoders(path) for path in runs}
        known = sorted(set().union(*of_run.values()))
        for name in sorted(folders.keys() - set(known)):
            raise unknown("feature of these runs in --model", name, known)

        self.predictors: dict[str, Predictor | EnsemblePredictor] = {}
        for path in runs:
            models_of_run = {name: folders[name] for name in folders if name in of_run[path]}
            predictor = open_predictor(path, models_of_run, device)
            if predictor.run.name in self.predictors:
                raise WrongUse(f"{path}: is run {predictor.run.name} again; name each run once")
            self.predictors[predictor.run.name] = predictor

        first, *others = self.predictors.values()
        self.source = FeatureSource(first.source.device, remembers=True)
        for predictor in self.predictors.values():
            predictor.share(self.source)
        for other in others:
            check_same_outputs(first, other)

    @property
    def takes_audio(self) -> bool:
        """Whether any of the runs does."""
        return any(each.takes_audio for each in self.predictors.values())

    def __call__(
        self,
        turns: Sequence[Turn],
        abstain_below: float = 0.0,
        on_progress: OnUtterances | None = None,
    ) -> SeveralAnswers:
        """Classify the turns by each run.

        Raises `CorpusError` if none of them can be used, and before anything is computed `WrongUse`
        for a turn that a run cannot take, or two unlike turns of one id.
        """
        _check_ids(turns)
        for predictor in self.predictors.values():
            predictor.check(turns, abstain_below)

        answers = {name: Answer([]) for name in self.predictors}
        done = 0
        for chunk in whole_dialogues(turns):
            for name, predictor in self.predictors.items():
                _add(answers[name], predictor.answer(chunk, abstain_below))
            self.source.forget()

            done += len(chunk)
            if on_progress is not None:
                on_progress(done, len(turns))

        order = {turn.id: number for number, turn in enumerate(turns)}
        for answer in answers.values():
            answer.predictions.sort(key=lambda prediction: order[prediction.id])

        mean = _mean(turns, answers, abstain_below)
        unusable: dict[str, str] = {}
        for answer in answers.values():
            for id_, reason in answer.unusable.items():
                if all(id_ in other.unusable for other in answers.values()):
                    unusable.setdefault(id_, reason)
        if not mean:
            raise CorpusError("; ".join(f"{id_}: {reason}" for id_, reason in unusable.items()))
        return SeveralAnswers(answers, mean, unusable)


def _encoders(path: str | Path) -> set[str]:
    """The features that a run was trained on, as `--model` names them; of an ensemble all."""
    run = open_trained(path)
    ensemble = open_ensemble(run)
    names: set[str] = set()
    if ensemble is not None:
        for member in ensemble.members:
            names |= _encoders(member.path)
        return names

    config = run.config
    for modality in config.features:
        for spec in config.provenance.feature_specs(modality):
            names.add(str(spec["feature"]))
    return names


class Predicts(Protocol):
    """A trained run that is open: a `Predictor`, or one that reads a store."""

    @property
    def run(self) -> Run:
        """Its folder."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that it predicts; none where it predicts ratings alone."""

    @property
    def rated(self) -> bool:
        """Whether it predicts valence, arousal and dominance."""


def check_same_outputs(first: Predicts, other: Predicts) -> None:
    """Raise `WrongUse` unless both predict the same classes, and ratings or none."""
    if set(first.classes) != set(other.classes) or first.rated != other.rated:
        raise WrongUse(
            f"{other.run.path}: predicts {_outputs(other)}, and {first.run.path} "
            f"{_outputs(first)}; give runs that predict the same"
        )


def _check_ids(turns: Sequence[Turn]) -> None:
    """Raise `WrongUse` where an id stands for two unlike turns: answers are found by it."""
    by_id: dict[str, Turn] = {}
    for turn in turns:
        if by_id.setdefault(turn.id, turn) != turn:
            raise WrongUse(f"{turn.id}: stands for two utterances; give each an id of its own")


def _outputs(predictor: Predicts) -> str:
    outputs = [*predictor.classes]
    if predictor.rated:
        outputs.append("ratings")
    return ", ".join(outputs)


def whole_dialogues(turns: Sequence[Turn]) -> Iterator[list[Turn]]:
    """The turns in chunks of `AT_ONCE` or a few more, each dialogue within one."""
    dialogues: dict[tuple[str, str | int], list[Turn]] = {}
    for number, turn in enumerate(turns):
        key: tuple[str, str | int] = ("alone", number)
        if turn.dialogue is not None:
            key = ("dialogue", turn.dialogue)
        dialogues.setdefault(key, []).append(turn)

    chunk: list[Turn] = []
    for dialogue in dialogues.values():
        chunk += dialogue
        if len(chunk) >= AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _add(answer: Answer, more: Answer) -> None:
    answer.predictions.extend(more.predictions)
    answer.unusable.update(more.unusable)
    for note in more.notes:
        if note not in answer.notes:
            answer.notes.append(note)


def _mean(
    turns: Sequence[Turn], answers: Mapping[str, Answer], abstain_below: float
) -> list[Prediction]:
    """The mean prediction of each turn that a run can use."""
    by_run = []
    for answer in answers.values():
        by_run.append({prediction.id: prediction for prediction in answer.predictions})

    means = []
    for turn in turns:
        predictions = [of_run[turn.id] for of_run in by_run if turn.id in of_run]
        if predictions:
            means.append(_mean_of(predictions, abstain_below))
    return means


def _mean_of(predictions: Sequence[Prediction], abstain_below: float) -> Prediction:
    first = predictions[0]
    if len(predictions) == 1:
        return first

    count = len(predictions)
    probabilities = {}
    for name in first.probabilities:
        probabilities[name] = sum(each.probabilities[name] for each in predictions) / count
    ratings = {}
    for name in first.ratings:
        ratings[name] = sum(each.ratings[name] for each in predictions) / count

    label = None
    if probabilities:
        label = max(probabilities, key=lambda name: probabilities[name])
    return Prediction(
        id=first.id,
        label=label,
        probabilities=probabilities,
        without=first.without,
        ratings=ratings,
        abstained=bool(probabilities) and max(probabilities.values()) < abstain_below,
    )
