"""Fine-tuning of the text encoder, from any layer and from token ids.

The plain Hugging Face model is the truth.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from ser.cache.feature import Feature
from ser.cache.publish import publish_part
from ser.cache.rows import PartRows
from ser.cache.store import open_store
from ser.errors import MissingRows, UtteranceError, WrongUse
from ser.extract.resolve import load_extractors, resolve
from ser.predict import Prediction, Predictor, Turn
from ser.tests.command_line import printed
from ser.tests.small_models import without
from ser.tests.spoken_store import spoken_manifest
from ser.tests.tiny_store import add_feature, new_store
from ser.train.experiment import Experiment, Job, prepare, run_experiment
from ser.train.fit import fit
from ser.train.flops import count_flops
from ser.train.models import FUSIONS
from ser.train.models.batch import Batch
from ser.train.run_folder import Run
from ser.train.scores.calibration import tempered
from ser.train.settings import has_setting
from ser.weights.demo import write_random_checkpoint
from ser.weights.load import load_encoder

DEPTH = 3
ENCODERS = ("bert", "mpnet")
SMALL = ("frames=32", "channels=2", "hidden=4", "lr=1e-3", "dropout=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of three layers, and a store of their real features and of random log-mel."""
    folder = tmp_path_factory.mktemp("finetune")
    manifest = spoken_manifest(4)
    write_checkpoints(folder, manifest.column("text"))

    names = ["bert", "bert:layer=2,special=false", "text:layer=2"]
    for encoder in ENCODERS:
        names += [f"{encoder}:layer={layer}" for layer in range(DEPTH)]
    models = {encoder: str(folder / encoder) for encoder in (*ENCODERS, "text")}
    encoded, _ = resolve(names, models, "float32")
    [logmel], _ = resolve(["logmel"], {}, "float32")

    store = new_store(folder / "features", manifest)
    for extractor in load_extractors(encoded, "cpu"):
        outcomes = extractor.run(manifest.column("text"))
        extracted = [outcome for outcome in outcomes if not isinstance(outcome, UtteranceError)]
        for spec in extractor.specs:
            rows = [features[spec.fingerprint] for features in extracted]
            extras = {name: [row.extras[name] for row in rows] for name in rows[0].extras}
            add_feature(store, manifest, spec, [row.values for row in rows], extras=extras)

    frames = []
    for n in range(len(manifest)):
        random = np.random.default_rng(n)
        frames.append(random.normal(size=(20 + n, 80)).astype(np.float32))
    add_feature(store, manifest, logmel.spec, frames)
    return folder


def write_checkpoints(folder: Path, texts: Sequence[str]) -> None:
    """Write those of `ENCODERS`, another BERT as "other", and as "text" one without a top."""
    words = {word for text in texts for word in text.split()}
    for encoder in ENCODERS:
        write_random_checkpoint(folder / encoder, encoder, words=words, num_hidden_layers=DEPTH)
    write_random_checkpoint(folder / "other", "bert", num_hidden_layers=DEPTH, seed=7)

    config = json.loads((folder / "bert" / "config.json").read_text())
    sizes = {"vocab_size": config["vocab_size"], "num_attention_heads": 4}
    sizes |= {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": DEPTH}
    write_random_checkpoint(folder / "text", "albert", **sizes)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / "bert" / file, folder / "text" / file)


def prepared(
    folder: Path, features: str, layers: object, fusion: str = "bert", **options: Any
) -> Job:
    """The first run that trains so many `layers`, of one epoch at small sizes."""
    settings = (f"finetune_text={layers}", *options.pop("set", ()))
    store = folder / "features"
    experiment = Experiment(
        features, fusion, store=store, set=settings, also_set=SMALL, epochs=1, **options
    )
    return prepare(experiment)[0]


def build(job: Job) -> Any:
    torch.manual_seed(0)
    classes = len(job.data.utterances.classes)
    return job.config.fusion.build(job.config.settings, job.data.dims, classes)


def batch_of(job: Job, n: int = 7) -> Batch:
    return job.data.batch(list(np.arange(n)[:, None]), {})


def plain(checkpoint: Path, texts: list[str]) -> list[torch.Tensor]:
    """The last hidden states `[t, d]`, by Hugging Face alone, one text at a time."""
    model = transformers.AutoModel.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    states = []
    with torch.inference_mode():
        for text in texts:
            output = model(**tokenizer(text, return_tensors="pt"))
            states.append(output.last_hidden_state[0])
    return states


def texts_of(folder: Path, ids: Any) -> list[str]:
    manifest = open_store(folder / "features").manifest()
    texts = dict(zip(manifest.ids, manifest.column("text"), strict=True))
    return [texts[i] for i in ids]


@pytest.mark.parametrize(
    ("encoder", "layers", "below"),
    [
        pytest.param("bert", 1, DEPTH - 1, id="bert's last layer"),
        pytest.param("bert", DEPTH, 0, id="bert's layers"),
        pytest.param("mpnet", 2, DEPTH - 2, id="mpnet's last two layers"),
        # Token ids stand beside any layer.
        pytest.param("mpnet", "all", 1, id="all of mpnet"),
    ],
)
def test_the_last_hidden_state_is_the_plain_models(
    folder: Path, encoder: str, layers: Any, below: int
) -> None:
    job = prepared(folder, f"{encoder}:layer={below}", layers)
    model = build(job).eval()
    batch = batch_of(job)
    expected = plain(folder / encoder, texts_of(folder, job.data.utterances.ids[:7]))

    lengths = batch.inputs["text"].lengths.tolist()
    assert lengths == [len(rows) for rows in expected]
    assert len(set(lengths)) > 2, "there is padding to go wrong"

    states: list[torch.Tensor] = []
    model.encoders["text"].register_forward_hook(
        lambda _module, _args, rows: states.append(rows[0])
    )
    with torch.inference_mode():
        logits = model(batch)["logits"]
        classified = model.linear(torch.stack([rows[0] for rows in expected]))
    torch.testing.assert_close(states[0], torch.cat(expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, classified, rtol=0, atol=1e-5)


def trained_weights(job: Job) -> set[str]:
    """The weights of the encoder that one epoch of training moves, by the checkpoint's names."""
    before = {name: value.clone() for name, value in build(job).state_dict().items()}
    torch.manual_seed(0)
    after = fit(job.data, job.fold, job.config).model.state_dict()

    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert "linear.1.weight" in moved
    prefix = "encoders.text.model."
    return {name.removeprefix(prefix) for name in moved if name.startswith(prefix)}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_only_the_top_layers_train(folder: Path, encoder: str) -> None:
    job = prepared(folder, f"{encoder}:layer=1", 2, select="last")
    names = {name for name, _ in build(job).named_parameters()}
    assert not any("embeddings" in name for name in names)

    moved = trained_weights(job)
    assert all(name.startswith("encoder.layer.") for name in moved)
    assert {name.split(".")[2] for name in moved} == {"0", "1"}

    # A softmax does not change with the bias of the keys, so it may stay where it is.
    [feature], _ = resolve([encoder], {encoder: str(folder / encoder)}, "float32")
    top_layers = load_encoder(feature.checkpoint).encoder.layer[-2:]
    top_names = [name for name, _ in top_layers.named_parameters()]
    assert len(moved) >= sum(not name.endswith(("key.bias", "k.bias")) for name in top_names)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_all_layers_train_with_the_embeddings(folder: Path, encoder: str) -> None:
    moved = trained_weights(prepared(folder, f"{encoder}:layer=2", "all", select="last"))
    assert "embeddings.word_embeddings.weight" in moved
    assert "embeddings.LayerNorm.weight" in moved

    layers = {name.split(".")[2] for name in moved if name.startswith("encoder.layer.")}
    assert layers == {"0", "1", "2"}
    assert ("encoder.relative_attention_bias.weight" in moved) == (encoder == "mpnet")


def test_only_its_own_stage_and_the_last_train_the_encoder_of_both(folder: Path) -> None:
    job = prepared(folder, "logmel+bert:layer=2", 1, fusion="cnn+bert", select="last")
    model = build(job).train()
    batch = batch_of(job)

    for stage, reached in zip(job.config.fusion.stages, (False, True, True), strict=True):
        model.zero_grad()
        model(batch)[stage.output].square().sum().backward()
        weight = model.encoders["text"].model.encoder.layer[0].output.dense.weight
        assert (weight.grad is not None) == reached


@pytest.mark.parametrize(
    ("features", "layers"),
    [
        pytest.param("bert:layer=2", 1, id="top layer"),
        pytest.param("bert", "all", id="all layers"),
    ],
)
def test_hidden_text_has_no_influence(folder: Path, features: str, layers: object) -> None:
    job = prepared(folder, features, layers)
    model = build(job).eval()
    batch = batch_of(job)

    whole = model(batch)["logits"]
    some_hidden = torch.tensor([False, True, False, True, False, False, False])
    part = model(without(batch, {"text": some_hidden}))["logits"]
    torch.testing.assert_close(part[0], whole[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(part[1], model.linear[1].bias, rtol=0, atol=0)

    all_hidden = torch.ones(7, dtype=torch.bool)
    logits = model(without(batch, {"text": all_hidden}))["logits"]
    logits.square().sum().backward()
    assert logits.isfinite().all()
    for parameter in model.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


@pytest.mark.parametrize(
    ("features", "layers", "options", "says"),
    [
        pytest.param(
            "bert",
            1,
            {},
            r"starts from layer 2 of bert's 3, and bert is layer 3.*--features bert:layer=2 ",
            id="last layer",
        ),
        pytest.param(
            "bert:layer=1",
            1,
            {},
            r"bert:layer=1 is layer 1; run `ser features CORPUS --features bert:layer=2 ",
            id="too low a layer",
        ),
        pytest.param("bert:layer=2", 4, {}, "has layers 1 to 3, or all", id="more than there are"),
        pytest.param("bert:layer=2", -1, {}, "has layers 1 to 3, or all", id="negative"),
        pytest.param("bert:layer=2", "some", {}, "must be int.all", id="a word"),
        pytest.param(
            "bert:layer=2,special=false",
            1,
            {},
            "has no rows of the special tokens, .* extract it without special=false",
            id="without special tokens",
        ),
        pytest.param(
            "text:layer=2",
            1,
            {},
            "text:layer=2 is of a albert encoder; proven to be exact are bert, .*mpnet",
            id="another architecture",
        ),
        pytest.param(
            "logmel",
            1,
            {"fusion": "cnn"},
            "finetune_text=1: fusion cnn has no use for it",
            id="fusion of audio",
        ),
        pytest.param(
            "bert:layer=2",
            1,
            {"set": ("standardise_text=true",)},
            "standardise_text=false",
            id="standardised text",
        ),
        pytest.param(
            "bert:layer=2",
            1,
            {"model": ("bert=other",)},
            "not the checkpoint that bert:layer=2 .*--model bert=PATH",
            id="another checkpoint",
        ),
        pytest.param(
            "bert:layer=2",
            1,
            {"model": ("bert",)},
            "write --model NAME=ID_OR_PATH",
            id="model without a path",
        ),
    ],
)
def test_what_does_not_go_together(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    features: str,
    layers: object,
    options: dict[str, Any],
    says: str,
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(WrongUse, match=says):
        prepared(folder, features, layers, **options)


def test_rows_of_an_earlier_version_without_token_ids_are_named(
    folder: Path, tmp_path: Path
) -> None:
    whole = open_store(folder / "features")
    manifest = whole.manifest()
    feature = whole.feature("bert")
    packed = feature.load(manifest)
    del packed.extras["token"]

    store = new_store(tmp_path / "features", manifest)
    rows = PartRows.from_packed(manifest.corpus, manifest.inputs("text"), packed)
    publish_part(store.add(feature.spec), rows)

    job = prepared(tmp_path, "bert", "all")
    with pytest.raises(MissingRows, match=r"without 'token'; run `ser cache remove bert@"):
        _ = job.data.inputs


@pytest.mark.parametrize(
    ("audio", "text", "fusion", "layers"),
    [
        pytest.param("", "bert:layer=2", "bert", 1, id="bert"),
        pytest.param("logmel+", "mpnet:layer=1", "cnn+bert", 2, id="cnn+bert"),
    ],
)
def test_from_the_command_line_and_back(
    folder: Path, tmp_path: Path, audio: str, text: str, fusion: str, layers: object
) -> None:
    # A checkpoint may lie elsewhere than when its features were extracted.
    encoder = text.partition(":")[0]
    moved = shutil.copytree(folder / encoder, tmp_path / "elsewhere")

    command = ["train", "--features", audio + text, "--fusion", fusion, "--json"]
    command += ["--store", str(folder / "features"), "--out", str(tmp_path / "runs")]
    command += ["--model", f"{encoder}={moved}", "--folds", "1", "--epochs", "2"]
    for setting in SMALL:
        if has_setting(FUSIONS[fusion], setting):
            command += ["--set", setting]
    command += ["--set", f"finetune_text={layers}"]

    [result] = json.loads(printed(*command))["runs"]
    run = Run(Path(result["path"]))
    spec = open_store(folder / "features").feature(text).spec
    assert run.config.provenance.specs["text"]["checkpoint"]["digest"] == spec.checkpoint["digest"]
    assert run.config.training["finetune_text"] == layers

    if fusion == "bert":
        check_predictor(run, folder)


def check_predictor(run: Run, folder: Path) -> None:
    """The predictor gives the calibrated probabilities of the run's own test."""
    tested = run.predictions()
    ids = tested.column("id").to_pylist()
    turns = []
    for utterance_id, text in zip(ids, texts_of(folder, ids), strict=True):
        turns.append(Turn(utterance_id, None, text))

    check_probabilities(run, Predictor(run.path)(turns).predictions)


def check_probabilities(run: Run, predictions: list[Prediction]) -> None:
    """They are the calibrated ones of the run's own test, whose utterances are in its order."""
    tested = run.predictions()
    predicted = np.array([list(prediction.probabilities.values()) for prediction in predictions])
    uncalibrated = np.array(tested.column("probabilities").to_pylist())
    expected = tempered(uncalibrated, run.result.calibration.temperature)
    assert np.abs(predicted - expected).max() < 2e-6


@pytest.mark.parametrize(
    ("layers", "memory", "is_streamed"),
    [
        pytest.param(1, "0.25MB", True, id="top layer"),
        pytest.param("all", "0.2MB", False, id="all layers"),
    ],
)
def test_the_same_seed_gives_the_same_bytes(
    folder: Path,
    tmp_path: Path,
    layers: object,
    memory: str,
    is_streamed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the encoder's input is read from the store when a batch needs it.

    Reading keeps within the budget. Token ids take little, so they stay in memory.
    """
    in_memory = Experiment(
        "bert:layer=2",
        "bert",
        store=folder / "features",
        out=tmp_path / "a",
        folds=1,
        epochs=2,
        set=(f"finetune_text={layers}", "batch_size=2"),
    )
    within_budget = replace(in_memory, out=tmp_path / "b", memory=memory)
    [first] = run_experiment(in_memory)

    bytes_read: list[int] = []
    gather = Feature.gather

    def gather_and_count(feature: Feature, *arguments: Any) -> Any:
        packed = gather(feature, *arguments)
        bytes_read.append(packed.values.nbytes)
        return packed

    monkeypatch.setattr(Feature, "gather", gather_and_count)
    [job] = prepare(within_budget)
    assert any(values.streamed for values in job.data.inputs.values()) == is_streamed
    assert count_flops([job], 2) > 0

    [second] = run_experiment(within_budget)
    assert first.path.name == second.path.name
    first_weights = (first.path / "model.safetensors").read_bytes()
    assert first_weights == (second.path / "model.safetensors").read_bytes()
    assert max(bytes_read) < 100_000 < sum(bytes_read), "the rows beside token ids are read too"


@pytest.mark.parametrize(
    ("features", "layers"),
    [
        pytest.param("bert:layer=2", 1, id="bert's last layer"),
        pytest.param("mpnet:layer=0", "all", id="all of mpnet"),
    ],
)
def test_bfloat16_is_close(folder: Path, features: str, layers: object) -> None:
    job = prepared(folder, features, layers, precision="bf16")
    model = build(job).eval()
    batch = batch_of(job)
    with torch.inference_mode():
        exact = model(batch)["logits"]
        with job.config.autocast():
            rough = model(batch)["logits"].float()
    assert 0 < (rough - exact).abs().max() < 0.05 * exact.abs().max()
