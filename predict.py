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

import numpy as np
import torch

from ser.cache.spec import Spec, to_record
from ser.engines.machine import choose_device
from ser.errors import CorpusError, CorruptStore, SerError, WrongUse, unknown
from ser.extract.audio import locate
from ser.extract.corpora.scan import read_corpus
from ser.extract.corpora.table import read_manifest
from ser.extract.extractors import ResolvedFeature, UtteranceError
from ser.extract.online import OnlineExtractor, resolve_again
from ser.train.data.dataset import Dataset, Inputs
from ser.train.data.labels import Utterances
from ser.train.fit import predict as probabilities_of
from ser.train.run import load_model, one_thread
from ser.train.run_folder import CONFIG, Run, find_runs
from ser.train.settings import TrainConfig, TrainingSettings, recorded
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
    speaker: str | None = None  # for the models that tell the speakers of a dialogue apart


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
    if (table is None) == (not audio and text is None) or (text is not None and len(audio) > 1):
        raise WrongUse("give audio files (with --text one alone), or a table of turns with a column text, and not both")
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
        self._features = self._resolve(parse_models(models))
        self._extractor = OnlineExtractor(self.device)

    def _resolve(self, models: Mapping[str, str]) -> dict[str, ResolvedFeature]:
        """What to compute for each modality, by the very specs that the run records."""
        where, recorded = str(self.run.path / CONFIG), self.run.config["provenance"].get("specs", {})
        specs: dict[str, Spec] = {}
        for modality, feature in self.run.config["features"].items():
            if modality not in recorded:
                raise CorruptStore(f"{where}: does not say how {feature['feature']} was computed; train the run again")
            specs[modality] = to_record(recorded[modality], Spec, where)
            if specs[modality].fingerprint != feature["fingerprint"]:
                raise CorruptStore(f"{where}: its spec of {feature['feature']} was altered; train the run again")
        known = [spec.feature for spec in specs.values()]
        for name in sorted(models.keys() - known):
            raise unknown("feature of this run in --model", name, known)
        return {modality: resolve_again(spec, models) for modality, spec in specs.items()}

    def __call__(self, turns: Sequence[Turn]) -> Answer:
        """Classify the turns. Those that cannot be read stand in `unusable` with the reason, as in extraction.

        Raises `WrongUse` for a turn that lacks a modality which training never hid from the model.
        """
        turns = [replace(turn, text=turn.text if turn.text and turn.text.strip() else None) for turn in turns]
        without = [tuple(m for m in self.fusion.inputs if getattr(turn, m) is None) for turn in turns]
        hidden: dict[str, torch.Tensor] = {}  # in training, now and then
        if self.fusion.hide is not None:
            hidden = self.fusion.hide(self.settings, 4096, 0, torch.Generator().manual_seed(0))
        for turn, lacking in zip(turns, without, strict=True):
            if len(lacking) == len(self.fusion.inputs):
                missing = " and no ".join(lacking)
                raise WrongUse(f"{turn.id}: has no {missing}, and {self.fusion.name} takes nothing else")
            if never_hidden := [m for m in lacking if m not in hidden or not hidden[m].any()]:
                raise WrongUse(
                    f"{turn.id}: has no {never_hidden[0]}, and {self.fusion.name} was trained without random modality "
                    "masking, so it has never seen an utterance without it; give its audio file, and its transcript by "
                    "--text or a column text in the table"
                )
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
        if len(faulty := np.flatnonzero(~np.isfinite(probabilities).all(1))):
            raise SerError(f"{usable[faulty[0]][0].id}: the model's probabilities of it became nan; train another run")
        predictions = [
            Prediction(turn.id, self.classes[row.argmax()], dict(zip(self.classes, row.tolist(), strict=True)), lacking)
            for (turn, lacking, _), row in zip(usable, probabilities, strict=True)
        ]
        return Answer(predictions, unusable, notes)

    def _notes(self, turns: Sequence[Turn]) -> list[str]:
        notes = []
        name, inputs, result = self.fusion.name, self.fusion.inputs, self.run.result
        if result["synthetic"]:
            notes.append("trained on synthetic speech: shows that the pipeline works, and says nothing about people")
        if result["random_weights"]:
            notes.append(f"computed with random weights: {', '.join(result['random_weights'])}")
        if any(scale.mean.ndim > 1 for scale in self.scaling.values()):
            why = "in training each corpus was by its own statistics, and new speech has none that are known"
            notes.append(f"z-scored by the statistics of the whole training part: {why}")
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
        inputs: dict[str, Inputs] = {}
        for modality, feature in self._features.items():
            pieces = [found[modality] for found in rows]
            offsets = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
            inputs[modality] = Inputs(torch.from_numpy(np.concatenate(pieces)), offsets)
            if self.fusion.level == "vector" and feature.spec.level != "utterance":
                inputs[modality] = inputs[modality].pooled(self.run.config["features"][modality]["pool"])
        dialogues = [row if turn.dialogue is None else turn.dialogue for row, turn in enumerate(turns)]
        numbers = {dialogue: number for number, dialogue in enumerate(dict.fromkeys(dialogues))}
        utterances = Utterances(
            ids=[turn.id for turn in turns],
            labels=np.zeros(len(turns), np.int64),
            classes=self.classes,
            sessions=[None] * len(turns),
            speakers=[turn.speaker for turn in turns],
            dialogues=np.array([numbers[dialogue] for dialogue in dialogues], np.int64),
            turns=np.array([row if turn.turn is None else turn.turn for row, turn in enumerate(turns)], np.int64),
        )
        data = Dataset(utterances, self.run.config["dims"], lambda: inputs, {})
        training = recorded(TrainingSettings, self.run.config["training"], str(self.run.path / CONFIG))
        plan = TrainConfig(self.fusion, self.settings, training, device=self.device)
        found = np.empty((len(turns), len(self.classes)), np.float32)
        for lacking in sorted(set(without)):
            same = np.flatnonzero([other == lacking for other in without])
            hide = lacking[0] if lacking else None
            found[same] = probabilities_of(self.model, data, same, plan, self.scaling, hide)["logits"]
        return found


def read_turns(table: Path, audio: bool = True) -> list[Turn]:
    """The turns of a table (CSV, TSV, Parquet or JSONL) with the columns audio, text, dialogue, turn and
    speaker; id if no audio.

    Audio paths are relative to the table. Raises `CorpusError` naming the first row that is wrong.
    """
    if audio:
        scan = read_corpus(table, "table", name="new")
        if scan.refused:
            raise CorpusError(f"{scan.refused[0]}; correct the table and run again")
        manifest, root = scan.manifest, scan.root
    else:
        manifest, root = read_manifest(table, "new"), table.parent
    names = ("id", "audio", "text", "dialogue", "turn", "audio_sha256", "speaker")
    columns = [manifest.column(name) for name in names]
    return [
        Turn(id_, locate(root, audio) if audio is not None else None, *others)
        for id_, audio, *others in zip(*columns, strict=True)
    ]


def _finished(path: Path) -> Run:
    """The run in that folder, or the only one inside it."""
    runs = find_runs(path)
    runs = [run for run in runs if run.finished] or runs
    if len(runs) > 1:
        raise WrongUse(f"{path}: holds {len(runs)} runs; name one of them, such as {runs[0].path}")
    _ = runs[0].result  # raises if it is not finished
    return runs[0]
