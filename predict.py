"""A trained run on new speech: the one place that uses extraction and training together.

answer = predict("runs/3f2a…", ["hello.wav"], text="hello there")
answer.predictions[0].label, answer.predictions[0].probabilities

The run folder says all: the model, its scaling, and for each feature the complete spec that was hashed when it was
extracted. A feature is computed in exactly that way or not at all; only the encoders' weights lie elsewhere, and their
digest must be the recorded one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ser.cache.spec import Spec
from ser.engines.machine import choose_device
from ser.errors import CorpusError, CorruptStore, WrongUse, unknown
from ser.extract.audio import locate
from ser.extract.corpora.scan import read_corpus
from ser.extract.corpora.table import read_manifest
from ser.extract.extractors import ResolvedFeature, UtteranceError
from ser.extract.online import OnlineExtractor, resolve_again
from ser.train.data import Dataset, Inputs
from ser.train.fit import predict as probabilities_of
from ser.train.labels import Utterances
from ser.train.models import Fusion
from ser.train.run import load_model, one_thread
from ser.train.run_folder import CONFIG, Run, open_run
from ser.train.settings import TrainConfig, TrainingSettings
from ser.weights.find import parse_models


@dataclass(frozen=True)
class Turn:
    """One utterance to classify. Without a `dialogue` it stands alone; `turn` is its rank within the dialogue."""

    id: str
    audio: Path | None = None
    text: str | None = None
    dialogue: str | None = None
    turn: int | None = None  # the order given, by default
    sha256: str | None = None  # of the audio file, where it must be that very one


@dataclass(frozen=True)
class Prediction:
    """What the model says of one utterance. `without` names the modalities that it had to do without."""

    id: str
    label: str
    probabilities: dict[str, float]
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """Predictions in the order asked; `unusable` says why an utterance has none, `notes` what to know of the rest."""

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
) -> Answer:
    """Classify audio files, one of them with its transcript `text`, or the turns of a table.

    `models` says where encoder weights lie now ({"hubert": folder}, or "hubert=FOLDER" entries); by default where the
    run's features found them. Raises `WrongUse` for what the run cannot take, naming the reason.
    """
    if table is not None and text is not None:
        raise WrongUse("--text is the transcript of one audio file; in a table transcripts stand in the column text")
    if (table is None) == (not audio and text is None):
        raise WrongUse("give audio files (and the transcript of one), or a table of turns, and not both")
    if text is not None and len(audio) > 1:
        raise WrongUse(f"--text is the transcript of one audio file, and here are {len(audio)}; give a table of turns")
    predictor = Predictor(run, models, device)
    if table is not None:
        return predictor(read_turns(Path(table), "audio" in predictor.fusion.inputs))
    files = [Turn(str(path), Path(path), text) for path in audio]
    return predictor(files or [Turn("text", None, text)])


class Predictor:
    """A trained run, opened once for many calls. Raises `WrongUse` if this machine cannot compute its features."""

    def __init__(self, run: str | Path, models: Mapping[str, str] | Iterable[str] = (), device: str = "auto") -> None:
        self.device = choose_device(device)
        self.run = _finished(Path(run))
        fitted, self.fusion, self.settings = load_model(self.run)
        self.model, self.scaling = fitted.model.to(self.device), fitted.scaling
        self.classes: tuple[str, ...] = tuple(self.run.config["labels"]["classes"])
        self._features = _features_of(self.run, parse_models(models))
        self._extractor = OnlineExtractor(self.device)
        self._can_hide = hidden_in_training(self.fusion, self.settings)

    def __call__(self, turns: Sequence[Turn]) -> Answer:
        """Classify the turns. Those that cannot be read stand in `unusable` with the reason, as in extraction."""
        turns = [replace(turn, text=turn.text if turn.text and turn.text.strip() else None) for turn in turns]
        without = [tuple(m for m in self.fusion.inputs if getattr(turn, m) is None) for turn in turns]
        for turn, lacking in zip(turns, without, strict=True):
            self._check_inputs(turn.id, lacking)
        notes = self._notes(turns)
        unusable: dict[str, str] = {}
        usable: list[tuple[Turn, tuple[str, ...], dict[str, np.ndarray]]] = []
        with one_thread():  # as extraction and training compute
            for turn, lacking in zip(turns, without, strict=True):
                rows = self._rows(turn, notes)
                if isinstance(rows, UtteranceError):
                    unusable[turn.id] = str(rows)
                else:
                    usable.append((turn, lacking, rows))
            if not usable:
                raise CorpusError("; ".join(f"{name}: {reason}" for name, reason in unusable.items()))
            if unusable and self.fusion.unit == "dialogue":
                notes.append("the turns that cannot be used are missing from the context of their dialogues")
            probabilities = self._probabilities(*zip(*usable, strict=True))
        predictions = []
        for (turn, lacking, _), row in zip(usable, probabilities, strict=True):
            of_class = dict(zip(self.classes, map(float, row), strict=True))
            predictions.append(Prediction(turn.id, self.classes[int(row.argmax())], of_class, lacking))
        return Answer(predictions, unusable, notes)

    def _check_inputs(self, id_: str, without: tuple[str, ...]) -> None:
        if len(without) == len(self.fusion.inputs):
            raise WrongUse(f"{id_}: has no {' and no '.join(without)}, and {self.fusion.name} takes nothing else")
        for modality in without:
            if modality not in self._can_hide:
                how = "--text, or a column text in the table" if modality == "text" else "its audio"
                raise WrongUse(
                    f"{id_}: has no {modality}, and {self.fusion.name} was trained without random modality masking, so "
                    f"it has never seen an utterance without {modality}; give {how}"
                )

    def _notes(self, turns: Sequence[Turn]) -> list[str]:
        notes = []
        name, inputs, result = self.fusion.name, self.fusion.inputs, self.run.result
        if result["synthetic"]:
            notes.append("trained on synthetic speech: shows that the pipeline works, and says nothing about people")
        if result["random_weights"]:
            notes.append(f"computed with random weights: {', '.join(result['random_weights'])}")
        if unused := [m for m in ("audio", "text") if m not in inputs and any(getattr(t, m) for t in turns)]:
            notes.append(f"{' and '.join(unused)} not used: {name} takes {inputs[0]} alone")
        if self.fusion.unit == "dialogue" and all(turn.dialogue in (None, turn.id) for turn in turns):
            notes.append(
                f"{name} reads whole dialogues, and here each utterance is one by itself; "
                "if they belong together, give the turns in a table with a column dialogue"
            )
        return notes

    def _rows(self, turn: Turn, notes: list[str]) -> dict[str, np.ndarray] | UtteranceError:
        """The rows of each modality `[n, dim]` as the store would hold them; a missing one has none."""
        found: dict[str, np.ndarray] = {}
        for modality, feature in self._features.items():
            given = turn.audio if modality == "audio" else turn.text
            extra = self.run.config["features"][modality].get("extra")  # token ids, if the run trained the encoder
            if given is None:
                found[modality] = np.empty((0, feature.spec.dim if extra is None else 1), np.float32)
                continue
            rows, warnings = self._extractor.rows(feature, given, turn.sha256)
            notes += [f"{turn.id}: {warning}" for warning in warnings]
            if isinstance(rows, UtteranceError):
                return rows
            found[modality] = np.atleast_2d(rows.values) if extra is None else rows.extras[extra][:, None]
        return found

    def _probabilities(
        self, turns: Sequence[Turn], without: Sequence[tuple[str, ...]], rows: Sequence[Mapping[str, np.ndarray]]
    ) -> np.ndarray:
        """Probabilities `[n, K]`."""
        inputs = {modality: self._inputs(modality, [found[modality] for found in rows]) for modality in self._features}
        data = Dataset(_utterances(turns, self.classes), self.run.config["dims"], lambda: inputs, {})
        training = TrainingSettings(**self.run.config["training"])
        plan = TrainConfig(self.fusion, self.settings, training, device=self.device)
        found = np.empty((len(turns), len(self.classes)), np.float32)
        for lacking in sorted(set(without)):
            same = np.flatnonzero([other == lacking for other in without])
            hide = lacking[0] if lacking else None
            found[same] = probabilities_of(self.model, data, same, plan, self.scaling, hide)["logits"]
        return found

    def _inputs(self, modality: str, pieces: Sequence[np.ndarray]) -> Inputs:
        offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
        inputs = Inputs(torch.from_numpy(np.concatenate(pieces)), offsets)
        if self.fusion.level == "vector" and self._features[modality].spec.level != "utterance":
            return inputs.pooled(self.run.config["features"][modality]["pool"])
        return inputs


def read_turns(table: Path, audio: bool = True) -> list[Turn]:
    """The turns of a table (CSV, TSV, Parquet or JSONL) with the columns audio, text, dialogue, turn; id if no audio.

    Audio paths are relative to the table. Raises `CorpusError` naming the first row that is wrong.
    """
    if audio:
        scan = read_corpus(table, "table", name="new")
        if scan.refused:
            raise CorpusError(f"{scan.refused[0]}; mend the table and run again")
        manifest, root = scan.manifest, scan.root
    else:
        manifest, root = read_manifest(table, "new"), table.parent
    columns = [manifest.column(name) for name in ("id", "audio", "text", "dialogue", "turn", "audio_sha256")]
    return [
        Turn(id_, locate(root, audio) if audio is not None else None, text, dialogue, turn, sha256)
        for id_, audio, text, dialogue, turn, sha256 in zip(*columns, strict=True)
    ]


def hidden_in_training(fusion: Fusion, settings: Any) -> set[str]:
    """The modalities that training hid from the model now and then, so that it can do without."""
    if fusion.hide is None:
        return set()
    first = fusion.hide(settings, 4096, 0, torch.Generator().manual_seed(0))
    return {modality for modality, rows in first.items() if rows.any()}


def _finished(path: Path) -> Run:
    """The run in that folder, or the only one inside it."""
    inside = [] if (path / CONFIG).is_file() else sorted(config.parent for config in path.glob(f"*/{CONFIG}"))
    inside = [folder for folder in inside if open_run(folder).finished] or inside
    if len(inside) > 1:
        raise WrongUse(f"{path}: holds {len(inside)} runs; name one of them, such as {inside[0]}")
    run = open_run(*inside or [path])
    _ = run.result  # raises if it is not finished
    return run


def _features_of(run: Run, models: Mapping[str, str]) -> dict[str, ResolvedFeature]:
    """What to compute for each modality, by the very specs that the run records."""
    where = str(run.path / CONFIG)
    recorded = run.config["provenance"].get("specs", {})
    specs: dict[str, Spec] = {}
    for modality, feature in run.config["features"].items():
        if modality not in recorded:
            raise CorruptStore(f"{where}: does not say how {feature['feature']} was computed; train the run again")
        specs[modality] = Spec.from_json(recorded[modality], where)
        if specs[modality].fingerprint != feature["fingerprint"]:
            raise CorruptStore(f"{where}: its spec of {feature['feature']} was altered; train the run again")
    for name in models:
        if name not in (known := [spec.feature for spec in specs.values()]):
            raise unknown("feature of this run in --model", name, known)
    return {modality: resolve_again(spec, models) for modality, spec in specs.items()}


def _utterances(turns: Sequence[Turn], classes: tuple[str, ...]) -> Utterances:
    keys = [(turn.dialogue,) if turn.dialogue is not None else (None, row) for row, turn in enumerate(turns)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    nobody = [None] * len(turns)
    return Utterances(
        ids=[turn.id for turn in turns],
        labels=np.zeros(len(turns), np.int64),
        classes=classes,
        sessions=nobody,
        speakers=nobody,
        dialogues=np.array([numbers[key] for key in keys], np.int64),
        turns=np.array([row if turn.turn is None else turn.turn for row, turn in enumerate(turns)], np.int64),
    )
