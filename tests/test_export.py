"""An exported run gives what `ser predict` gives, in a process that does not import ser."""

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
import soundfile as sf
import torch
import transformers
from torch.onnx._internal.exporter._registration import ONNXRegistry

from ser import export as export_room
from ser.cache.store import open_store
from ser.cache.tools.tables import pooled
from ser.errors import CorruptStore, SerError, WrongUse
from ser.export import export
from ser.export.compare import OnnxModel
from ser.export.graph import Outputs
from ser.export.inputs import GraphInput, feature_inputs
from ser.export.trace import write_graph
from ser.extract.run import ExtractionConfig, extract, plan
from ser.predict import Predictor, Turn
from ser.tests.command_line import printed, ser
from ser.tests.newcomer import once, run_of, turns_of_test_part
from ser.tests.small_models import DIMS, TRAINED, build
from ser.tests.test_extract_encoders import SPEECH
from ser.train.experiment import Experiment, run_experiment
from ser.train.models import FUSIONS, Fusion, with_layers
from ser.train.models.batch import Batch, Sequences
from ser.train.models.encoder_front import with_encoders
from ser.train.models.encoders import TopLayers, untrained_top
from ser.train.models.solved import Truth
from ser.train.run_folder import RESULT, Run
from ser.weights.demo import write_random_checkpoint

TOLERANCE = 1e-4
# Reads model.onnx of a folder, and of each file of inputs in it prints the outputs by name.
CHILD = """
import json, sys
from pathlib import Path
import numpy, onnxruntime, soundfile

folder = Path(sys.argv[1])
session = onnxruntime.InferenceSession(folder / "model.onnx")
names = [output.name for output in session.get_outputs()]
answers = []
for path in sys.argv[2:]:
    if path.endswith(".wav"):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        assert rate == 16000
        inputs = {"waveform": samples.mean(1)[None]}
    else:
        inputs = dict(numpy.load(path))
    outputs = session.run(None, inputs)
    answers.append({name: values.tolist() for name, values in zip(names, outputs)})
assert not {"ser", "torch", "transformers"} & set(sys.modules)
print(json.dumps(answers))
"""


def outputs_in_a_child(folder: Path, inputs: list[Path]) -> list[dict[str, np.ndarray]]:
    """What model.onnx says of each file, computed where ser is not imported."""
    command = [sys.executable, "-c", CHILD, str(folder), *map(str, inputs)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, np.ndarray]] = []
    for outputs in json.loads(done.stdout):
        answers.append({name: np.array(values) for name, values in outputs.items()})
    return answers


def predicted(prediction: Any) -> np.ndarray:
    """Probabilities and ratings in one row."""
    return np.array([*prediction.probabilities.values(), *prediction.ratings.values()])


def answered(outputs: dict[str, np.ndarray]) -> np.ndarray:
    """The same of a graph's outputs, `[n, …]`."""
    parts = [outputs[name] for name in ("probabilities", "ratings") if name in outputs]
    return np.concatenate(parts, 1)


SMALL = ("d_model=16", "heads=2", "lr=1e-3")
# By what it shows: the checkpoint, what `--features` names behind the encoder's name, and how it is
# trained.
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "hubert's frames": ("hubert", "", {"fusion": "audio", "set": SMALL}),
    "layers of a large hubert": ("hubert-large", ":layers=all,pool=mean", {"fusion": "superb"}),
    "averaged frames of wav2vec2": (
        "wav2vec2",
        ":hop=0.1",
        {"fusion": "audio", "set": (*SMALL, "standardise_audio=true")},
    ),
    "mean and deviation of wavlm": ("wavlm", ":pool=meanstd", {"fusion": "audio:utterance"}),
    "data2vec as an image": (
        "data2vec",
        "",
        {"fusion": "cnn", "set": ("channels=2", "frames=40", "hidden=8")},
    ),
    "ratings by unispeech-sat": (
        "unispeech-sat",
        "",
        {"fusion": "audio", "set": SMALL, "target": "class+vad"},
    ),
    "whisper in windows": ("whisper", "", {"fusion": "audio", "set": SMALL}),
}
# Whisper's windows are of 10 s here.
SECONDS = (0.03, 0.5, 1.7, 4.2, 23.0)


# What is batched with others, and Whisper's windows; tracing one takes time, and the others are
# traced by `make test-slow`.
TRACED_ENCODERS = ("hubert's frames", "whisper in windows")
ENCODERS_TO_TRACE = [
    pytest.param(case, marks=() if case in TRACED_ENCODERS else pytest.mark.slow)
    for case in ENCODERS
]


@pytest.mark.parametrize("case", ENCODERS_TO_TRACE)
def test_a_run_on_one_encoder_takes_the_waveform(case: str, newcomer: Path, tmp_path: Path) -> None:
    checkpoint, variant, options = ENCODERS[case]
    architecture, settings = SPEECH[checkpoint]
    weights = write_random_checkpoint(tmp_path / "weights", architecture, **settings)
    if architecture == "whisper":
        transformers.WhisperFeatureExtractor(chunk_length=10).save_pretrained(weights)

    feature = checkpoint.removesuffix("-large")
    read_by_training = ("hop", "pool=meanstd")
    stored = feature if variant.strip(":").startswith(read_by_training) else feature + variant
    corpus = newcomer / "corpus"
    store = tmp_path / "features"
    models = {feature: str(weights)}
    extract(plan(ExtractionConfig(corpus, stored, store=store, models=models)))
    experiment = Experiment(
        feature + variant, store=store, out=tmp_path / "runs", epochs=1, folds=1, **options
    )
    [run] = run_experiment(experiment)

    sentence = export(run.path, tmp_path / "out")
    assert "model.onnx takes a waveform at 16 kHz" in sentence
    if options["fusion"] != "cnn":
        # The encoder runs once, whatever number of its layers is used.
        encoder = transformers.AutoModel.from_pretrained(weights)
        layers = [layer for layer in encoder.modules() if isinstance(layer, torch.nn.Conv1d)]
        nodes = onnx.load(tmp_path / "out" / "model.onnx").graph.node
        assert [node.op_type for node in nodes].count("Conv") == len(layers)

    generator = np.random.default_rng(1)
    recordings = [next(corpus.rglob("wav/*/*.wav"))]
    for seconds in SECONDS:
        path = tmp_path / f"{seconds}.wav"
        sf.write(path, generator.uniform(-0.3, 0.3, int(16000 * seconds)), 16000)
        recordings.append(path)

    answer = Predictor(run.path)([Turn(str(path), path) for path in recordings])
    outputs = outputs_in_a_child(tmp_path / "out", recordings)
    for prediction, output in zip(answer.predictions, outputs, strict=True):
        assert output["logits"].shape == (1, 4)
        assert np.abs(answered(output) - predicted(prediction)).max() < TOLERANCE, prediction.id


@pytest.fixture(scope="module", autouse=True)
def parse_torchlib_once() -> Iterator[None]:
    """Torch's exporter parses all its functions of ONNX anew for each graph.

    That takes longer than a small graph does.
    """
    parse = functools.cache(ONNXRegistry.from_torchlib)
    with mock.patch.object(ONNXRegistry, "from_torchlib", staticmethod(parse)):
        yield


@pytest.fixture(scope="module")
def exported(newcomer: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a newcomer's run, exported when it is first asked for."""

    def export_once(name: str) -> Path:
        def write(folder: Path) -> None:
            export(run_of(newcomer, name).path, folder / name)

        return once(tmp_path_factory, f"exported-{name}", write) / name

    return export_once


def test_others_take_one_input_per_feature(
    exported: Callable[[str], Path], newcomer: Path, tmp_path: Path
) -> None:
    """As the store holds them."""
    run = run_of(newcomer, "class+vad")
    store = open_store(newcomer / "features")
    turns = turns_of_test_part(newcomer, run)[:3]

    files: list[Path] = []
    for turn in turns:
        path = tmp_path / f"{turn.id}.npz"
        rows = {name: store[name][turn.id].astype(np.float32) for name in ("hubert", "mpnet")}
        np.savez(path, **rows)
        files.append(path)

    outputs = outputs_in_a_child(exported("class+vad"), files)
    answer = Predictor(run.path)(turns)
    for prediction, output in zip(answer.predictions, outputs, strict=True):
        assert output["ratings"].shape == (1, 3)
        assert np.abs(answered(output) - predicted(prediction)).max() < TOLERANCE


@pytest.mark.parametrize("name", ["lgf-add", "icon"])
def test_a_model_of_dialogues_takes_their_turns(
    name: str, exported: Callable[[str], Path], newcomer: Path, tmp_path: Path
) -> None:
    """And icon who speaks, by whatever numbers."""
    run = run_of(newcomer, name)
    store = open_store(newcomer / "features")
    turns = turns_of_test_part(newcomer, run)[:5]

    tables = {name: pooled(store[name], store.manifest()) for name in ("logmel", "bert")}
    ids = [turn.id for turn in turns]
    rows = {name: table.loc[ids].to_numpy(np.float32) for name, table in tables.items()}
    if name == "icon":
        speakers = sorted({str(turn.speaker) for turn in turns})
        assert len(speakers) > 1
        rows["speakers"] = np.array([7 + speakers.index(str(turn.speaker)) for turn in turns])
    np.savez(tmp_path / "dialogue.npz", **rows)
    np.savez(tmp_path / "turn.npz", **{name: values[:1] for name, values in rows.items()})

    files = [tmp_path / "dialogue.npz", tmp_path / "turn.npz"]
    dialogue, alone = outputs_in_a_child(exported(name), files)
    predictor = Predictor(run.path)
    for outputs, predicted_turns in ((dialogue, turns), (alone, turns[:1])):
        predictions = predictor(predicted_turns).predictions
        expected = [predicted(prediction) for prediction in predictions]
        assert np.abs(answered(outputs) - expected).max() < TOLERANCE


def test_a_model_that_trained_its_text_encoder_takes_tokens(
    exported: Callable[[str], Path], newcomer: Path, tmp_path: Path
) -> None:
    """As the encoder's own tokenizer makes them."""
    run = run_of(newcomer, "finetuned")
    turns = turns_of_test_part(newcomer, run)[:3]
    tokenizer = transformers.AutoTokenizer.from_pretrained(newcomer / "checkpoints" / "bert-random")

    files: list[Path] = []
    for turn in turns:
        path = tmp_path / f"{turn.id}.npz"
        np.savez(path, bert=np.array(tokenizer(turn.text).input_ids))
        files.append(path)

    outputs = outputs_in_a_child(exported("finetuned"), files)
    predictions = Predictor(run.path)(turns).predictions
    for prediction, output in zip(predictions, outputs, strict=True):
        assert np.abs(answered(output) - predicted(prediction)).max() < TOLERANCE


@pytest.fixture
def adapted(newcomer: Path, tmp_path: Path) -> Run:
    """A run that trained adapters of its text encoder."""
    pytest.importorskip("peft")
    options = {"store": newcomer / "features", "out": tmp_path / "runs", "folds": 1, "epochs": 1}
    settings = ("finetune_text=all", "lora_rank=2", "encoder_lr=0.05")
    [run] = run_experiment(Experiment("bert", "bert", set=settings, **options))
    return run


def test_a_graph_is_made_of_merged_adapters(
    newcomer: Path, adapted: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the file beside it holds the adapters, for `ser predict`."""
    turns = turns_of_test_part(newcomer, adapted)[:2]
    expected = [predicted(each) for each in Predictor(adapted.path)(turns).predictions]

    def without_a_graph(predictor: Predictor, folder: Path) -> Any:
        assert not any("lora" in name for name in predictor.fitted.model.state_dict())
        of_merged = [predicted(each) for each in predictor(turns).predictions]
        assert np.abs(np.subtract(of_merged, expected)).max() < 2e-6
        return export_room.WrittenModel(feature_inputs(predictor), [], "none", "not now")

    monkeypatch.setattr(export_room, "_write_model", without_a_graph)
    export(adapted.path, tmp_path / "exported")
    for_others = Predictor(tmp_path / "exported")(turns).predictions
    assert np.array_equal([predicted(each) for each in for_others], expected)


@pytest.mark.slow
def test_a_graph_of_merged_adapters_gives_what_the_run_predicts(
    newcomer: Path, adapted: Run, tmp_path: Path
) -> None:
    export(adapted.path, tmp_path / "exported")
    turns = turns_of_test_part(newcomer, adapted)[:2]
    tokenizer = transformers.AutoTokenizer.from_pretrained(newcomer / "checkpoints" / "bert-random")
    model = OnnxModel(tmp_path / "exported" / "model.onnx")
    for turn, prediction in zip(turns, Predictor(adapted.path)(turns).predictions, strict=True):
        outputs = model({"bert": np.array(tokenizer(turn.text).input_ids)})
        assert np.abs(answered(outputs) - predicted(prediction)).max() < TOLERANCE


def test_the_card_says_what_it_is_and_how_inputs_are_made(exported: Callable[[str], Path]) -> None:
    folder = exported("class+vad")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Trained on synthetic speech" in card and "random weights" in card
    assert "| CCC of valence" in card and "| UA of the test part |" in card
    assert "session-out, session 1: this is the model of one fold" in card
    assert "- input `hubert`: float32 [audio_rows, 64]" in card
    assert "layer 2 of 2" in card and "mono at 16000 Hz" in card and "rounded to float16" in card
    run_example(folder, "assert probabilities.shape == (1, 4)")


def test_the_card_says_who_speaks_and_which_tokens(exported: Callable[[str], Path]) -> None:
    card = (exported("icon") / "README.md").read_text(encoding="utf-8")
    assert "- input `speakers`: int64 [turns]" in card
    assert "the rows are the turns of one dialogue" in card
    assert "the same for all turns of one speaker" in card
    run_example(exported("icon"), "assert probabilities.shape == (10, 4)")

    card = (exported("finetuned") / "README.md").read_text(encoding="utf-8")
    assert "- input `bert`: int64 [text_rows]" in card
    assert "token ids, with the special tokens; by the tokenizer of encoder" in card
    run_example(exported("finetuned"), "assert probabilities.shape == (1, 4)")


def run_example(folder: Path, check: str) -> None:
    """Run the card's code, and a line behind it."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    code = card.partition("```python\n")[2].partition("```")[0]
    command = [sys.executable, "-c", f"{code}\n{check}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_predict_takes_the_folder_as_it_takes_a_run(
    exported: Callable[[str], Path], newcomer: Path
) -> None:
    run = run_of(newcomer, "class+vad")
    turns = turns_of_test_part(newcomer, run)[:2]
    assert Predictor(exported("class+vad"))(turns) == Predictor(run.path)(turns)

    words = (turns[0].audio, "--text", turns[0].text, "--abstain-below", "0.9", "--json")
    answer = json.loads(printed("predict", exported("class+vad"), *words))
    [prediction] = answer["predictions"]
    assert prediction["abstained"]


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        ("config.json", b'"seed": 0', b'"seed": 1', "altered or cut short; export the run again"),
        ("config.json", b'"sha256"', b'"sha257"', "export the run again"),
        ("model.safetensors", b"model.", b"modem.", "is not the file that config.json names"),
    ],
    ids=["a number of the config", "a key of the seal", "a name of the weights"],
)
def test_an_altered_folder_is_refused(
    name: str,
    old: bytes,
    new: bytes,
    says: str,
    exported: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exported("class+vad"), copy)
    content = (copy / name).read_bytes()
    assert old in content
    (copy / name).write_bytes(content.replace(old, new, 1))
    with pytest.raises(CorruptStore, match=says):
        Predictor(copy)


def listens_to_speakers(fusion: Fusion) -> Fusion:
    """One that does not say that it takes them."""
    return replace(fusion, takes_speakers=False)


def reads_lengths(fusion: Fusion) -> Fusion:
    """One whose model decides by a number of rows, which a graph does not have."""

    def check_length(model: torch.nn.Module, arguments: tuple[Batch]) -> None:
        if arguments[0].inputs["text"].lengths.sum() > 1000:
            raise ValueError("too long")

    def build(*arguments: Any) -> torch.nn.Module:
        model = fusion.build(*arguments)
        model.register_forward_pre_hook(check_length)
        return model

    return replace(fusion, build=build)


@pytest.mark.parametrize(
    ("name", "fusion", "change", "says"),
    [
        pytest.param(
            "icon",
            "icon",
            listens_to_speakers,
            "icon cannot be written as ONNX: its numbers would be",
            id="speakers that it does not ask for",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "text",
            "text:token",
            reads_lengths,
            "text:token cannot be written as ONNX: ",
            id="a decision by a number",
        ),
    ],
)
def test_what_is_no_graph_is_written_without_one(
    name: str,
    fusion: str,
    change: Callable[[Fusion], Fusion],
    says: str,
    newcomer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a fusion of another package may be."""
    monkeypatch.setitem(FUSIONS, fusion, change(FUSIONS[fusion]))
    run = run_of(newcomer, name)
    folder = tmp_path / "out"
    done = ser("export", run.path, folder)
    assert done.exit_code == 0
    assert f"without model.onnx: {says}" in " ".join(done.stderr.split())

    names = {path.name for path in folder.iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md"}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert says in card.replace("\\", "")
    assert "onnxruntime" not in card and "ser predict FOLDER" in card

    turns = turns_of_test_part(newcomer, run)[:2]
    assert Predictor(folder)(turns) == Predictor(run.path)(turns)


def test_a_graph_is_compared_on_features_as_they_are_in_training(newcomer: Path) -> None:
    """Far from there float32 has no digits left for either side."""
    predictor = Predictor(run_of(newcomer, "lgf-add").path)
    logmel, bert = feature_inputs(predictor)
    generator = np.random.default_rng(0)
    counts = {"turns": 2000}

    mean, std = predictor.fitted.scaling["audio"].of_new_speech
    scores = (logmel.random(counts, generator) - mean.numpy()) / std.numpy()
    assert scores.mean(0) == pytest.approx(0, abs=0.15)
    assert scores.std(0) == pytest.approx(1, abs=0.15)

    # The text is not z-scored.
    values = bert.random(counts, generator)
    assert values.mean(0) == pytest.approx(0, abs=0.15)
    assert values.std(0) == pytest.approx(1, abs=0.15)


def test_a_graph_that_is_not_right_is_not_kept(
    exported: Callable[[str], Path],
    newcomer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Tracing takes time; this graph is that of the run.
    written = exported("class+vad") / "model.onnx"
    monkeypatch.setattr(export_room, "write_graph", lambda *words: shutil.copy(written, words[-1]))
    monkeypatch.setattr("ser.export.compare.TOLERANCE", -1.0)
    sentence = export(run_of(newcomer, "class+vad").path, tmp_path / "out")
    assert "cannot be written as ONNX: its numbers would be" in sentence
    assert not list((tmp_path / "out").glob("model.onnx*"))


def test_without_the_packages_it_says_what_to_install(
    newcomer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_room, "find_spec", lambda name: None)
    with pytest.raises(SerError, match=r"needs onnx, .*: run `pip install 'ser-fusion\[onnx\]'"):
        export(run_of(newcomer, "text").path, tmp_path / "out")


def test_wrong_use_of_export(newcomer: Path, tmp_path: Path) -> None:
    run = run_of(newcomer, "text")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    done = ser("export", run.path, tmp_path / "full")
    assert done.exit_code == 2 and "is there already and not an empty folder" in done.stderr
    (tmp_path / "loop").symlink_to("loop")
    assert "Not a directory" in ser("export", run.path, tmp_path / "loop").stderr

    unfinished = Path(shutil.copytree(run.path, tmp_path / "open" / run.name))
    (unfinished / RESULT).unlink()
    with pytest.raises(WrongUse, match="not finished"):
        export(unfinished, tmp_path / "out")

    altered = Path(shutil.copytree(run.path, tmp_path / "altered" / run.name))
    weights = bytearray((altered / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (altered / "model.safetensors").write_bytes(weights)
    with pytest.raises(CorruptStore, match=r"model.safetensors: is not the file that result.json"):
        export(altered, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# One layer is traced as several are, and the time that it takes grows faster than their number.
ONE_LAYER_EACH = {"encoder_depth": 1, "decoder_depth": 1, "cross_depth": 1, "last_depth": 1}
# With layers of a kind that no other has: convolutions, LSTMs and pooled windows, frames of tokens.
# The others are traced by `make test-slow`. Runs of icon, lgf-add and mit are exported above.
TRACED = ("cnn+bert", "gban", "cme")
FUSIONS_TO_TRACE = [
    pytest.param(name, marks=() if name in TRACED else pytest.mark.slow) for name in TRAINED
]

# Rows of audio, or turns, and rows of text.
COUNTS = ((30, 23), (57, 5), (3, 60), (1, 1))


class GraphOfModel(torch.nn.Module):
    """From the rows of each modality, and the speakers of a fusion that takes them, to outputs."""

    def __init__(self, fusion: Fusion, model: torch.nn.Module) -> None:
        super().__init__()
        self.fusion = fusion
        predictor: Any = SimpleNamespace(
            fusion=fusion,
            fitted=SimpleNamespace(model=model, scaling={}),
            classes=("a", "b", "c", "d"),
            temperature=None,
            config=SimpleNamespace(target="class"),
        )
        self.outputs = Outputs(predictor)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        columns = dict(zip(self.fusion.inputs, inputs, strict=False))
        speakers = inputs[-1] if self.fusion.takes_speakers else None
        return self.outputs(columns, speakers)


def check_graph(
    fusion: Fusion, model: torch.nn.Module, inputs: list[GraphInput], folder: Path
) -> None:
    """Write the graph of a model, and hold it to the model at several counts of rows."""
    model.eval().requires_grad_(False)
    axes = {axis for graph_input in inputs for axis in graph_input.shape}
    counts = {"rows": 30, "audio_rows": 30, "text_rows": 23}
    traced = {axis: count for axis, count in counts.items() if axis in axes}
    path = folder / "model.onnx"
    write_graph(GraphOfModel(fusion, model), inputs, ["logits", "probabilities"], traced, path)

    graph = OnnxModel(path)
    generator = np.random.default_rng(0)
    for rows, text_rows in COUNTS:
        counts = {"rows": rows, "audio_rows": rows, "text_rows": text_rows}
        values = {x.name: x.random(counts, generator) for x in inputs}
        answer = graph(values)["logits"]

        expected = model(one_sequence(fusion, values))["logits"]
        assert np.abs(answer - expected.numpy()).max() < TOLERANCE


def one_sequence(fusion: Fusion, values: dict[str, np.ndarray]) -> Batch:
    """The batch of one utterance, or of one dialogue."""
    sequences: dict[str, Sequences] = {}
    turns = 1
    for modality in fusion.inputs:
        rows = torch.from_numpy(values[modality]).float()
        lengths = torch.tensor([len(rows)])
        if fusion.takes_vectors(modality):
            turns = len(rows)
            lengths = torch.ones(turns, dtype=torch.int64)
        sequences[modality] = Sequences(rows, lengths)

    speakers = torch.from_numpy(values["speakers"]) if fusion.takes_speakers else None
    return Batch(sequences, torch.tensor([turns]), speakers)


@pytest.mark.parametrize("name", FUSIONS_TO_TRACE)
def test_every_fusion_is_traced_for_any_length(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    fusion = FUSIONS[name]
    check_graph(fusion, build(name, **ONE_LAYER_EACH), graph_inputs(fusion), tmp_path)


@pytest.mark.parametrize("name", ["linear", "svm"])
def test_what_a_solver_fits_is_a_graph(name: str, tmp_path: Path) -> None:
    """On one of three layers of the audio, beside the text."""
    layers = {"audio": [(3, DIMS["audio"] // 3)]}
    fusion = with_layers(FUSIONS[name], layers)
    model = fusion.build(fusion.settings(), DIMS, 4)
    model.choose_layer(2)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, model.width))
    labels = rng.integers(0, 4, 60)
    model.solver(x, Truth(np.eye(4)[labels]))(1.0)
    model.calibrate(torch.from_numpy(x).float(), labels)
    check_graph(fusion, model, graph_inputs(fusion), tmp_path)


def graph_inputs(fusion: Fusion) -> list[GraphInput]:
    """The inputs of a graph of this fusion alone."""
    inputs: list[GraphInput] = []
    for modality in fusion.inputs:
        axis = "rows" if fusion.level == "vector" else f"{modality}_rows"
        inputs.append(GraphInput(modality, (axis, DIMS[modality]), ""))
    if fusion.takes_speakers:
        inputs.append(GraphInput("speakers", ("rows",), "", 3))
    return inputs


@pytest.mark.parametrize(
    ("encoder", "layers"),
    [
        # As is that of an audio encoder, below.
        pytest.param("bert", 1, id="the top layer of bert", marks=pytest.mark.slow),
        pytest.param("bert", "all", id="all of bert", marks=pytest.mark.slow),
        pytest.param("mpnet", 1, id="the top layer of mpnet", marks=pytest.mark.slow),
        pytest.param("mpnet", "all", id="all of mpnet"),
    ],
)
def test_a_text_encoder_that_was_trained_is_in_the_graph(
    encoder: str, layers: TopLayers, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = {
        "model_type": encoder,
        "vocab_size": 50,
        "hidden_size": DIMS["text"] + 1,
        # As many as are trained; time grows faster than their number.
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    tops = {"text": lambda: untrained_top(config, layers)}
    fusion = with_encoders(FUSIONS["bert"], tops, {})
    dims = {"text": config["hidden_size"]}
    model = fusion.build(fusion.settings(), dims, 4)

    graph_input = GraphInput("text", ("text_rows", config["hidden_size"]), "")
    if layers == "all":
        graph_input = GraphInput("text", ("text_rows", 1), "", config["vocab_size"])
    check_graph(fusion, model, [graph_input], tmp_path)


@pytest.mark.parametrize("name", ["audio:frame", pytest.param("superb", marks=pytest.mark.slow)])
def test_an_audio_encoder_that_was_trained_is_in_the_graph(name: str, tmp_path: Path) -> None:
    """For a fusion of frames, and for one of vectors, whose mean is in the graph."""
    torch.manual_seed(0)
    dim = DIMS["audio"] + 1
    config = {
        "model_type": "wavlm",
        "hidden_size": dim,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "num_conv_pos_embedding_groups": 2,
        "conv_dim": [8] * 7,
    }
    tops = {"audio": lambda: untrained_top(config, 1)}
    fusion = with_encoders(FUSIONS[name], tops, {"audio": "mean"})
    model = fusion.build(fusion.settings(), {"audio": dim}, 4)
    check_graph(fusion, model, [GraphInput("audio", ("audio_rows", dim), "")], tmp_path)
