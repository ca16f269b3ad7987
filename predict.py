"""A trained run on new speech: the one place that uses extraction and training together.

answer = predict("runs/3f2a…", ["hello.wav"], text="hello there")
answer.predictions[0].label, answer.predictions[0].probabilities

The run folder holds the model, its scaling, and for each feature the complete spec that was hashed
when it was extracted. A feature is computed in exactly that way or not at all; only the encoders'
weights are elsewhere, and their digest must be the recorded one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch

from ser.cache.spec import Spec
from ser.corpus.manifest import Manifest
from ser.disk.records import to_record
from ser.engines.machine import choose_device
from ser.errors import CorpusError, CorruptStore, SerError, UtteranceError, WrongUse, unknown
from ser.extract.corpora.table import read_manifest
from ser.extract.extractor import Extractor, ResolvedFeature
from ser.extract.resolve import load_extractors, resolve_again
from ser.extract.single import extract_utterance
from ser.train.data.dataset import Dataset
from ser.train.data.inputs import Inputs
from ser.train.data.labelling import apply_policy
from ser.train.data.labels import UNLABELLED
from ser.train.data.sources import as_read
from ser.train.data.utterances import DIMENSIONS
from ser.train.report.cell_scores import CellScores
from ser.train.report.certainty import abstaining
from ser.train.run import load_model, one_thread
from ser.train.run_folder import CONFIG, find_runs
from ser.train.scores.calibration import tempered
from ser.train.targets import TARGETS, rated_as
from ser.weights.find import parse_models

__all__ = ["Answer", "Prediction", "Predictor", "Turn", "predict"]


@dataclass(frozen=True)
class Turn:
    """One utterance to classify. Without a `dialogue` it stands alone; `turn` is its rank within
    the dialogue.
    """

    id: str
    audio: Path | None = None
    text: str | None = None
    dialogue: str | None = None
    turn: int | None = None  # by default, its position among the turns given
    speaker: str | None = None  # for models that distinguish the speakers of a dialogue


@dataclass(frozen=True)
class Prediction:
    """The model's prediction for one utterance. `without` names the modalities that the utterance
    lacks.

    The probabilities are those after the run's temperature, if it has one. `abstained`: the highest
    is below the requested bound, so the label does not count as an answer. `ratings` are valence,
    arousal and dominance on the scale of the corpus that the run trained on, if it learnt them. A
    run that learnt nothing else gives no `label` and no `probabilities`.
    """

    id: str
    label: str | None
    probabilities: dict[str, float]
    without: tuple[str, ...] = ()
    ratings: dict[str, float] = field(default_factory=dict)
    abstained: bool = False


@dataclass(frozen=True)
class Answer:
    """Predictions in the order of the turns; by id, why an `unusable` one has none; `notes` on the
    others.
    """

    predictions: list[Prediction]
    unusable: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def predict(
    run: str | Path,
    audio: Sequence[str | Path] = (),
    text: str | None = None,
    table: str | Path | None = None,
    models: Mapping[str, str] | Iterable[str] = (),
    device: str = "auto",
    abstain_below: float = 0.0,
) -> Answer:
    """Classify audio files, one of them with its transcript `text`, or the turns of a table.

    The table is a CSV, TSV, Parquet or JSONL with the columns audio (relative to the table), text,
    dialogue, turn and speaker; id if the run takes no audio. The model abstains if the highest
    probability is below `abstain_below`.

    `models` says where encoder weights are now ({"hubert": folder}, or "hubert=FOLDER" entries); by
    default where the run's features found them. Raises `WrongUse` for input that the run cannot
    take, with the reason, and `CorpusError` for a table, naming its first wrong row.
    """
    if (table is None) == (not audio and text is None) or (text is not None and len(audio) > 1):
        raise WrongUse(
            "give audio files (with --text one alone), or a table of turns with a column text, and not both"
        )
    if text is not None and text != text.encode(errors="replace").decode():
        raise WrongUse("--text: is not valid Unicode; write it in UTF-8")
    predictor = Predictor(run, models, device)
    turns = [Turn(str(path), Path(path), text) for path in audio] or [Turn("text", None, text)]
    if table is not None:
        manifest = read_manifest(
            Path(table), "new", "audio" if "audio" in predictor.fusion.inputs else "id"
        )
        rows = manifest.table.select([column.name for column in fields(Turn)]).to_pylist()
        turns = [
            Turn(**{**row, "audio": row["audio"] and Path(table).parent / row["audio"]})
            for row in rows
        ]
    return predictor(turns, abstain_below)


class Predictor:
    """A trained run, given by its folder or one that holds it alone; opened once for many calls.

    Raises `WrongUse` if this machine cannot compute its features.
    """

    def __init__(
        self, run: str | Path, models: Mapping[str, str] | Iterable[str] = (), device: str = "auto"
    ) -> None:
        runs = find_runs(run)
        self.run, *others = [each for each in runs if each.finished] or runs
        if others:
            raise WrongUse(
                f"{run}: holds {1 + len(others)} runs; name one of them, such as {self.run.path}"
            )
        calibration = self.run.result.calibration
        self.temperature = None if calibration is None else calibration.temperature
        self.fitted, self.plan = load_model(self.run, choose_device(device))
        self.fusion = self.plan.fusion
        self.classes: tuple[str, ...] = tuple(self.run.config.labels.classes)
        self.records = {
            modality: feature.parts for modality, feature in self.run.config.features.items()
        }
        self.features = self._resolve(parse_models(models))
        self._extractors: dict[
            str, list[Extractor]
        ] = {}  # by modality, loaded when a turn first has it

    def _resolve(self, models: Mapping[str, str]) -> dict[str, list[ResolvedFeature]]:
        """What to compute for each modality, by the very specs that the run records."""
        where = str(self.run.path / CONFIG)
        provenance = self.run.config.provenance
        specs: dict[str, list[Spec]] = {}
        for modality, features in self.records.items():
            specs[modality] = [
                to_record(record, Spec, where) for record in provenance.feature_specs(modality)
            ]
            if [spec.fingerprint for spec in specs[modality]] != [
                feature.fingerprint for feature in features
            ]:
                name = self.run.config.features[modality].feature
                raise CorruptStore(
                    f"{where}: its spec of {name} was altered, or is not there; train the run again"
                )
        known = list(dict.fromkeys(spec.feature for of in specs.values() for spec in of))
        for name in sorted(models.keys() - known):
            raise unknown("feature of this run in --model", name, known)
        return {modality: resolve_again(of, models) for modality, of in specs.items()}

    def may_lack(self) -> list[str]:
        """The modalities that training hid from the model at times, so that an utterance may lack
        one of them.
        """
        if self.fusion.hide is None:
            return []
        hidden = self.fusion.hide(self.plan.settings, 4096, 0, torch.Generator().manual_seed(0))
        return [modality for modality, rows in hidden.items() if rows.any()]

    def __call__(self, turns: Sequence[Turn], abstain_below: float = 0.0) -> Answer:
        """Classify the turns. `unusable` has the reason for each turn that cannot be read, as in
        extraction.

        A prediction whose highest probability is below `abstain_below` is marked as `abstained`.
        Raises `WrongUse` for a turn that lacks a modality which training never hid from the model.
        """
        if not 0 <= abstain_below <= 1:
            raise WrongUse(f"--abstain-below {abstain_below:g}: must be a probability, from 0 to 1")
        if abstain_below > 0 and not self.classes:
            raise WrongUse(
                f"--abstain-below is for classes, and {self.run.path} learnt none; leave it out"
            )
        turns = [
            replace(turn, text=turn.text if turn.text and turn.text.strip() else None)
            for turn in turns
        ]
        without = [
            tuple(m for m in self.fusion.inputs if getattr(turn, m) is None) for turn in turns
        ]
        may_lack = self.may_lack()
        for turn, lacking in zip(turns, without, strict=True):
            if len(lacking) == len(self.fusion.inputs):
                missing = " and no ".join(lacking)
                raise WrongUse(
                    f"{turn.id}: has no {missing}, and {self.fusion.name} takes nothing else"
                )
            if never_hidden := [m for m in lacking if m not in may_lack]:
                raise WrongUse(
                    f"{turn.id}: has no {never_hidden[0]}, and {self.fusion.name} was trained without random modality "
                    "masking, so it has never seen an utterance without it; give its audio file, and its transcript by "
                    "--text or a column text in the table"
                )
        notes, unusable = self._notes(turns), dict[str, str]()
        if abstain_below > 0:
            (answered, *_), right = abstaining(CellScores([self.run]), abstain_below)
            rightly = f", and {right[0]:.1f} % of those rightly" if right else ""
            share = f"on its test part the run answered {answered:.1f} %{rightly}"
            notes.append(f"below {abstain_below:g} no answer: {share}")
        usable: list[tuple[Turn, tuple[str, ...], dict[str, torch.Tensor]]] = []
        with one_thread():  # as extraction and training compute
            for turn, lacking in zip(turns, without, strict=True):
                warnings = list[str]()
                try:
                    usable.append((turn, lacking, self._rows(turn, warnings)))
                except UtteranceError as fault:
                    unusable[turn.id] = str(fault)
                notes += [f"{turn.id}: {warning}" for warning in warnings]
            if not usable:
                raise CorpusError(
                    "; ".join(f"{name}: {reason}" for name, reason in unusable.items())
                )
            predicted = self._predicted(
                [turn for turn, *_ in usable], [rows for *_, rows in usable]
            )
        if len(faulty := np.flatnonzero(~np.isfinite(predicted).all(1))):
            raise SerError(
                f"{usable[faulty[0]][0].id}: the model's predictions of it became nan; train another run"
            )
        predictions, k = [], len(self.classes)
        for (turn, lacking, _), row in zip(usable, predicted[:, None], strict=True):
            label = (
                self.classes[row[0, :k].argmax()] if k else None
            )  # the temperature may round to equals
            shares = (
                row[:, :k] if self.temperature is None else tempered(row[:, :k], self.temperature)
            )
            probabilities = dict(zip(self.classes, shares[0].tolist(), strict=True))
            ratings = {}
            if TARGETS[self.plan.target].rated:
                ratings = dict(
                    zip(DIMENSIONS, rated_as(row, self.plan.training)[0].tolist(), strict=True)
                )
            abstained = bool(k and shares.max() < abstain_below)
            predictions.append(
                Prediction(turn.id, label, probabilities, lacking, ratings, abstained)
            )
        return Answer(predictions, unusable, notes)

    def _notes(self, turns: Sequence[Turn]) -> list[str]:
        notes, inputs, result = [], self.fusion.inputs, self.run.result
        if result.synthetic:
            notes.append(
                "trained on synthetic speech: shows that the pipeline works, and says nothing about people"
            )
        if result.random_weights:
            notes.append(f"computed with random weights: {', '.join(result.random_weights)}")
        if any(scale.mean.ndim > 1 for scale in self.fitted.scaling.values()):
            why = "in training each corpus was by its own statistics, and new speech has none that are known"
            notes.append(f"z-scored by the statistics of the whole training part: {why}")
        for unused in ("audio", "text"):
            if unused not in inputs and any(getattr(turn, unused) for turn in turns):
                notes.append(f"{unused} not used: {self.fusion.name} takes {inputs[0]} alone")
        return notes

    def _rows(self, turn: Turn, warnings: list[str]) -> dict[str, torch.Tensor]:
        """The rows of each modality `[n, dim]` as the run read them from a store; n is 0 for one
        that is missing.
        """
        inputs = {}
        for modality, features in self.features.items():
            source = turn.audio if modality == "audio" else turn.text
            # Token ids, if the run trained the encoder.
            extra = self.run.config.features[modality].extra
            if source is None:
                inputs[modality] = torch.empty(
                    0, self.run.config.dims[modality] if extra is None else 1
                )
                continue
            if modality not in self._extractors:
                self._extractors[modality] = load_extractors(features, self.plan.device)
            computed = extract_utterance(self._extractors[modality], source, warnings)
            columns = []
            for feature, record in zip(features, self.records[modality], strict=True):
                rows = computed[feature.spec.fingerprint]
                values = (
                    np.atleast_2d(rows.values) if extra is None else rows.extras[extra][:, None]
                )
                stored = Inputs(torch.from_numpy(values), np.array([0, len(values)]))
                columns.append(
                    as_read(stored, record, feature.spec, self.fusion.level == "vector").values
                )
            inputs[modality] = torch.cat(columns, 1)
        return inputs

    def _predicted(
        self, turns: Sequence[Turn], rows: Sequence[Mapping[str, torch.Tensor]]
    ) -> np.ndarray:
        """What the target predicts, `[n, …]`. A turn without a modality has no rows of it, as when
        it is hidden.
        """
        inputs = {}
        for modality in self.features:
            pieces = [turn_rows[modality] for turn_rows in rows]
            inputs[modality] = Inputs(
                torch.cat(pieces), np.cumsum([0, *map(len, pieces)], dtype=np.int64)
            )
        columns = [
            {"dialogue": turn.dialogue, "turn": turn.turn, "speaker": turn.speaker}
            for turn in turns
        ]
        manifest = Manifest.from_rows(
            "new", ({"id": str(number), **row} for number, row in enumerate(columns))
        )
        data = Dataset(apply_policy(UNLABELLED, manifest), self.run.config.dims, lambda: inputs, {})
        return self.fitted.predict(data, np.arange(len(turns)), self.plan)["logits"]
