"""A trained run, opened once for many calls."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ser.cache.spec import Spec
from ser.corpus.manifest import Manifest
from ser.disk.records import to_record
from ser.engines.machine import choose_device
from ser.errors import CorpusError, CorruptStore, SerError, UtteranceError, WrongUse, unknown
from ser.extract.extractor import Extractor, FeatureRows, ResolvedFeature
from ser.extract.recording import Segment, Span
from ser.extract.resolve import resolve_again
from ser.extract.single import Source
from ser.train.data.dataset import Dataset
from ser.train.data.inputs import Inputs
from ser.train.data.labelling import apply_policy
from ser.train.data.labels import UNLABELLED
from ser.train.data.sources import as_read, with_column
from ser.train.data.utterances import DIMENSIONS
from ser.train.finetune import TOKENS, column_beside
from ser.train.model_file import load_model
from ser.train.models.encoder_front import FRONT
from ser.train.rating_scales import predicted_ratings
from ser.train.report.cell_scores import CellScores
from ser.train.report.certainty import abstaining
from ser.train.run_folder import CONFIG
from ser.train.scores.calibration import tempered
from ser.train.targets import TARGETS
from ser.train.train_jobs import one_thread
from ser.weights.find import parse_models

from .shared import FeatureSource
from .trained import ExportedRun, open_trained
from .turns import Answer, Prediction, Turn

# Modalities of a turn: the names of its fields.
MODALITIES = ("audio", "text")
# How many utterances are asked whether training would hide one of their modalities.
HIDDEN_SAMPLES = 4096
# Percentile of the training part's distances from which on new audio is said to be far from it.
FAR = 99.0


@dataclass(frozen=True)
class Usable:
    """A turn that can be read."""

    turn: Turn
    # The modalities that it lacks.
    without: tuple[str, ...]
    # By modality `[rows, dim]`, as the run takes them; no rows of one that the turn lacks.
    rows: dict[str, Tensor]


class Predictor:
    """A trained run, given by its folder, or one that holds it alone, or what `ser export` wrote.

    Raises `WrongUse` if this machine cannot compute its features, or it is an ensemble.
    """

    def __init__(
        self, run: str | Path, models: Mapping[str, str] | Iterable[str] = (), device: str = "auto"
    ) -> None:
        self.run = open_trained(run)
        if self.run.config.members is not None:
            raise WrongUse(
                f"{self.run.path}: is an ensemble, which has no model of its own; use its members, "
                "or `ser predict` on it"
            )
        calibration = self.run.result.calibration
        self.temperature = None if calibration is None else calibration.temperature
        sources = parse_models(models)
        self.fitted, self.config = load_model(self.run, choose_device(device), sources)
        self.fusion = self.config.fusion
        self.classes: tuple[str, ...] = tuple(self.run.config.labels.classes)

        # By modality, what the run records of each feature, and what computes it.
        self.records = {
            modality: record.parts for modality, record in self.run.config.features.items()
        }
        self.features = self._resolve(sources)
        self.source = FeatureSource(self.config.device)
        self.share(self.source)

    def _resolve(self, models: Mapping[str, str]) -> dict[str, list[ResolvedFeature]]:
        """What computes each modality, by the very specs that the run records."""
        file = str(self.run.path / CONFIG)
        specs: dict[str, list[Spec]] = {}
        for modality, records in self.records.items():
            written = self.run.config.provenance.feature_specs(modality)
            specs[modality] = [to_record(spec, Spec, file) for spec in written]

            recorded = [record.fingerprint for record in records]
            if [spec.fingerprint for spec in specs[modality]] != recorded:
                name = self.run.config.features[modality].feature
                raise CorruptStore(
                    f"{file}: its spec of {name} was altered, or is not there; train the run again"
                )

        known: list[str] = []
        for of_modality in specs.values():
            known += [spec.feature for spec in of_modality if spec.feature not in known]
        for name in sorted(models.keys() - known):
            raise unknown("feature of this run in --model", name, known)

        return {
            modality: resolve_again(of_modality, models) for modality, of_modality in specs.items()
        }

    def share(self, source: FeatureSource) -> None:
        """Take features from a source, which computes those of other runs too."""
        self.source = source
        for modality, features in self.features.items():
            source.add(modality, features)

    def extractors(self, modality: str) -> list[Extractor]:
        """What computes the features of a modality, loaded once."""
        return self.source.extractors(modality)

    @property
    def takes_audio(self) -> bool:
        """Whether the run does."""
        return "audio" in self.fusion.inputs

    @property
    def rated(self) -> bool:
        """Whether the run predicts valence, arousal and dominance."""
        return TARGETS[self.config.target].rated

    def may_lack(self) -> list[str]:
        """The modalities that training hid from the model at times, so that an utterance may lack
        one of them.
        """
        if self.fusion.hide is None:
            return []
        generator = torch.Generator().manual_seed(0)
        hidden = self.fusion.hide(self.config.settings, HIDDEN_SAMPLES, 0, generator)
        return [modality for modality, utterances in hidden.items() if utterances.any()]

    def __call__(self, turns: Sequence[Turn], abstain_below: float = 0.0) -> Answer:
        """Classify the turns. `unusable` has the reason for each turn that cannot be read, as in
        extraction.

        A prediction whose highest probability is below `abstain_below` is marked as `abstained`.
        Raises `WrongUse` for a turn that lacks a modality which training never hid from the model,
        and `CorpusError` if no turn can be used.
        """
        answer = self.answer(turns, abstain_below)
        if turns and not answer.predictions:
            reasons = [f"{id_}: {reason}" for id_, reason in answer.unusable.items()]
            raise CorpusError("; ".join(reasons))
        return answer

    def answer(self, turns: Sequence[Turn], abstain_below: float = 0.0) -> Answer:
        """As a call does, also where no turn can be used."""
        self.check(turns, abstain_below)
        turns = [self._without_blanks(turn) for turn in turns]

        notes = self._notes(turns)
        if abstain_below > 0:
            notes += self._abstaining(abstain_below)

        # One thread, as extraction and training compute.
        with one_thread():
            usable, unusable, warnings = self._read(turns)
            notes += warnings
            if not usable:
                return Answer([], unusable, notes)
            notes += self._far_from_training(usable)
            predicted = self.predict_rows(
                [each.turn for each in usable], [each.rows for each in usable]
            )

        is_finite = np.isfinite(predicted).all(1)
        if not is_finite.all():
            first = usable[int(is_finite.argmin())].turn
            raise SerError(
                f"{first.id}: the model's predictions of it became nan; train another run"
            )

        predictions: list[Prediction] = []
        for each, values in zip(usable, predicted, strict=True):
            predictions.append(self._prediction(each, values, abstain_below))
        return Answer(predictions, unusable, notes)

    def check(self, turns: Sequence[Turn], abstain_below: float = 0.0) -> None:
        """Raise `WrongUse` where a call would, before anything is computed."""
        self._check_bound(abstain_below)
        for turn in turns:
            if not isinstance(turn, Turn):
                raise WrongUse(f"{turn!r} is not a turn; give ser.Turn(audio=…, text=…)")
        self._check_modalities([self._without_blanks(turn) for turn in turns])

    def _check_bound(self, abstain_below: float) -> None:
        """Raise `WrongUse` for a bound that is no probability, or for a run without classes."""
        if not 0 <= abstain_below <= 1:
            raise WrongUse(f"--abstain-below {abstain_below:g}: must be a probability, from 0 to 1")
        if abstain_below > 0 and not self.classes:
            raise WrongUse(
                f"--abstain-below is for classes, and {self.run.path} learnt none; leave it out"
            )

    def _without_blanks(self, turn: Turn) -> Turn:
        """The turn with its audio as a path, and no text where there are only blanks."""
        audio = None if turn.audio is None else Path(turn.audio)
        text = turn.text if turn.text and turn.text.strip() else None
        return replace(turn, audio=audio, text=text)

    def _lacking(self, turn: Turn) -> tuple[str, ...]:
        """The modalities that the fusion takes and the turn does not have."""
        return tuple(m for m in self.fusion.inputs if getattr(turn, m) is None)

    def _check_modalities(self, turns: Sequence[Turn]) -> None:
        """Raise `WrongUse` for a turn without anything, or without what was never hidden."""
        may_lack = self.may_lack()
        for turn in turns:
            lacking = self._lacking(turn)
            if len(lacking) == len(self.fusion.inputs):
                missing = " and no ".join(lacking)
                raise WrongUse(
                    f"{turn.id}: has no {missing}, and {self.fusion.name} takes nothing else"
                )

            never_hidden = [modality for modality in lacking if modality not in may_lack]
            if never_hidden:
                raise WrongUse(
                    f"{turn.id}: has no {never_hidden[0]}, and {self.fusion.name} was trained "
                    "without random modality masking, so it has never seen an utterance without "
                    "it; give its audio file, and its transcript by --text or a column text in the "
                    "table"
                )

    def _notes(self, turns: Sequence[Turn]) -> list[str]:
        """What is to be known of the run, and of what the turns have in vain."""
        notes: list[str] = []
        result = self.run.result
        if result.synthetic:
            notes.append(
                "trained on synthetic speech: shows that the pipeline works, and says nothing "
                "about people"
            )
        if result.calibration is not None and result.calibration.unfitted:
            notes.append(
                f"its probabilities have no temperature, since {result.calibration.unfitted}: they "
                "may be too sure"
            )
        if result.random_weights:
            notes.append(f"computed with random weights: {', '.join(result.random_weights)}")

        by_corpus = [scale for scale in self.fitted.scaling.values() if scale.mean.ndim > 1]
        if by_corpus:
            notes.append(
                "z-scored by the statistics of the whole training part: in training each corpus "
                "was by its own statistics, and new speech has none that are known"
            )

        for modality in MODALITIES:
            is_given = any(getattr(turn, modality) for turn in turns)
            if is_given and modality not in self.fusion.inputs:
                taken = self.fusion.inputs[0]
                notes.append(f"{modality} not used: {self.fusion.name} takes {taken} alone")
        return notes

    def _abstaining(self, bound: float) -> list[str]:
        """What the bound meant on the run's test part; nothing of an exported run, which has no
        predictions.
        """
        if isinstance(self.run, ExportedRun):
            return []
        (answered, *_), right = abstaining(CellScores([self.run]), bound)
        rightly = f", and {right[0]:.1f} % of those rightly" if right else ""
        share = f"on its test part the run answered {answered:.1f} %{rightly}"
        return [f"below {bound:g} no answer: {share}"]

    def _read(self, turns: Sequence[Turn]) -> tuple[list[Usable], dict[str, str], list[str]]:
        """The turns that can be read, why each other cannot, by id, and what is odd about them."""
        usable: list[Usable] = []
        unusable: dict[str, str] = {}
        notes: list[str] = []
        for turn in turns:
            warnings: list[str] = []
            try:
                usable.append(Usable(turn, self._lacking(turn), self._rows(turn, warnings)))
            except UtteranceError as fault:
                unusable[turn.id] = str(fault)
            notes += [f"{turn.id}: {warning}" for warning in warnings]
        return usable, unusable, notes

    def _far_from_training(self, usable: Sequence[Usable]) -> list[str]:
        """A note of the turns whose audio lies farther from the training part than its own does."""
        feature_range = self.fitted.ranges.get("audio")
        if feature_range is None:
            return []

        far: list[str] = []
        for each in usable:
            rows = each.rows["audio"]
            if not len(rows):
                continue
            percentile = feature_range.percentile(rows)
            if percentile > FAR:
                far.append(f"{each.turn.id} than {percentile:.1f} %")
        if not far:
            return []

        shown = ", ".join(far[:3])
        if len(far) > 3:
            shown += ", …"
        return [
            f"{len(far)} of {len(usable)} lie farther from the training part's audio than nearly "
            f"all of that part does ({shown}): their probabilities say little"
        ]

    def _rows(self, turn: Turn, warnings: list[str]) -> dict[str, Tensor]:
        """The rows of each modality `[rows, dim]` as the run takes them.

        Adds what is odd about the turn to `warnings`. Raises `UtteranceError` if it cannot be used.
        """
        rows: dict[str, Tensor] = {}
        for modality, features in self.features.items():
            source = _audio_of(turn) if modality == "audio" else turn.text
            if source is None:
                rows[modality] = torch.empty(0, self._columns(modality))
                continue

            computed = self.source.rows(modality, source, warnings)
            stored: list[np.ndarray] = []
            for feature in features:
                of_feature = computed[feature.spec.fingerprint]
                stored.append(self._values(modality, feature.spec, of_feature))
            rows[modality] = self.rows_as_read(modality, stored)
        return rows

    def _columns(self, modality: str) -> int:
        """Of a row of the modality as the run takes it."""
        encoders: Any = getattr(self.fitted.model, FRONT, {})
        if modality in encoders:
            columns: int = encoders[modality].columns
            return columns
        return self.run.config.dims[modality]

    def _values(self, modality: str, spec: Spec, rows: FeatureRows) -> np.ndarray:
        """A feature's rows `[rows, dim]`, or what a run that trained its encoder takes of it."""
        if self.run.config.features[modality].extra is not None:
            return rows.extras[TOKENS][:, None]

        values = np.atleast_2d(rows.values)
        beside = column_beside(spec)
        if beside is not None:
            values = with_column(values, rows.extras[beside][:, None])
        return values

    def rows_as_read(self, modality: str, stored: Sequence[np.ndarray]) -> Tensor:
        """One utterance's rows of a modality, from those of each feature as a store holds them:
        averaged, pooled and side by side, as the run read them; `[rows, dim]`.
        """
        by_vectors = self.fusion.takes_vectors(modality)
        columns: list[Tensor] = []
        for feature, record, values in zip(
            self.features[modality], self.records[modality], stored, strict=True
        ):
            inputs = Inputs(torch.from_numpy(values), np.array([0, len(values)]))
            columns.append(as_read(inputs, record, feature.spec, by_vectors).values)
        return torch.cat(columns, 1)

    def predict_rows(
        self, turns: Sequence[Turn], rows: Sequence[Mapping[str, Tensor]]
    ) -> np.ndarray:
        """What the target predicts for the turns, `[n, …]`: probabilities before the temperature,
        and ratings from -1 to 1.

        A turn without a modality has no rows of it, as when it is hidden.
        """
        inputs: dict[str, Inputs] = {}
        for modality in self.features:
            pieces = [of_turn[modality] for of_turn in rows]
            lengths = [len(piece) for piece in pieces]
            offsets = np.cumsum([0, *lengths], dtype=np.int64)
            inputs[modality] = Inputs(torch.cat(pieces), offsets)

        table = [
            {
                "id": str(number),
                "dialogue": turn.dialogue,
                "turn": turn.turn,
                "speaker": turn.speaker,
            }
            for number, turn in enumerate(turns)
        ]
        utterances = apply_policy(UNLABELLED, Manifest.from_rows("new", table))
        data = Dataset(utterances, self.run.config.dims, lambda: inputs)
        return self.fitted.predict(data, np.arange(len(turns)), self.config)["logits"]

    def shares_and_ratings(self, values: np.ndarray) -> tuple[list[float], list[float]]:
        """What the target predicts for one turn, `[…]`, as a user sees it: the probabilities after
        the temperature, and ratings on the corpus's scale.
        """
        shares = values[None, : len(self.classes)]
        if self.temperature is not None:
            shares = tempered(shares, self.temperature)

        ratings: list[float] = []
        if TARGETS[self.config.target].rated:
            ratings = predicted_ratings(values[None], self.config.training)[0].tolist()
        return shares[0].tolist(), ratings

    def _prediction(self, each: Usable, values: np.ndarray, abstain_below: float) -> Prediction:
        """What the target predicts for a turn, `[…]`, by names."""
        shares, ratings = self.shares_and_ratings(values)
        label = None
        if self.classes:
            # Before the temperature, which may round to equals.
            label = self.classes[values[: len(self.classes)].argmax()]

        return Prediction(
            id=each.turn.id,
            label=label,
            probabilities=dict(zip(self.classes, shares, strict=True)),
            without=each.without,
            ratings=dict(zip(DIMENSIONS, ratings, strict=False)),
            abstained=bool(shares) and max(shares) < abstain_below,
        )


def _audio_of(turn: Turn) -> Source | None:
    """The audio of a turn as an extractor takes it."""
    if turn.audio is None or not turn.is_segment:
        return turn.audio
    return Segment(Path(turn.audio), Span(turn.start or 0.0, turn.end))
