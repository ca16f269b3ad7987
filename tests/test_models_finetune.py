"""Fine-tuning of the text encoder: the plain Hugging Face model is the truth, from any layer and
from token ids.
"""

import json
import shutil
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
from ser.predict import Predictor, Turn
from ser.tests.command_line import printed
from ser.tests.plain_layers import without
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
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of three layers and a store of their real features, and of made-up log-mel
    frames.
    """
    folder = tmp_path_factory.mktemp("finetune")
    manifest = spoken_manifest(4)
    texts = manifest.column("text")
    words = {word for text in texts for word in text.split()}
    for name in ENCODERS:
        write_random_checkpoint(folder / name, name, words=words, num_hidden_layers=DEPTH)
    write_random_checkpoint(folder / "other", "bert", num_hidden_layers=DEPTH, seed=7)
    unknown = shutil.copytree(folder / "bert", folder / "text") / "config.json"
    unknown.write_text(unknown.read_text().replace('"model_type": "bert"', '"model_type": "ernie"'))
    store = new_store(folder / "features", manifest)
    asked = [f"{name}:layer={layer}" for name in ENCODERS for layer in range(DEPTH)]
    asked += ["bert", "bert:layer=2,special=false", "text:layer=2", "logmel"]
    wanted = resolve(asked, {name: str(folder / name) for name in (*ENCODERS, "text")}, "float32")[
        0
    ]
    for one in load_extractors([one for one in wanted if one.checkpoint], "cpu"):
        outcomes = one.run(texts)
        for spec in one.specs:
            rows = [
                outcome[spec.fingerprint]
                for outcome in outcomes
                if not isinstance(outcome, UtteranceError)
            ]
            extras = {name: [row.extras[name] for row in rows] for name in rows[0].extras}
            add_feature(store, manifest, spec, [row.values for row in rows], extras=extras)
    frames = [
        np.random.default_rng(n).normal(size=(20 + n, 80)).astype(np.float32)
        for n in range(len(manifest))
    ]
    add_feature(store, manifest, wanted[-1].spec, frames)
    return folder


def prepared(folder: Path, features: str, layers: object, fusion: str = "bert", **more: Any) -> Job:
    more["set"] = (f"finetune_layers={layers}", *more.pop("set", ()))
    return prepare(
        Experiment(features, fusion, store=folder / "features", also_set=SMALL, epochs=1, **more)
    )[0]


def build(job: Job) -> Any:
    torch.manual_seed(0)
    return job.config.fusion.build(
        job.config.settings, job.data.dims, len(job.data.utterances.classes)
    )


def batch_of(job: Job, n: int = 7) -> Batch:
    return job.data.batch(list(np.arange(n)[:, None]), {})


def plain(folder: Path, texts: list[str]) -> list[torch.Tensor]:
    """The last hidden states, by Hugging Face alone, one text at a time."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return [
            model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in texts
        ]


def texts_of(folder: Path, ids: Any) -> list[str]:
    manifest = open_store(folder / "features").manifest()
    texts = dict(zip(manifest.ids, manifest.column("text"), strict=True))
    return [texts[i] for i in ids]


@pytest.mark.parametrize(
    ("encoder", "layers"), [("bert", 1), ("bert", DEPTH), ("mpnet", 2), ("mpnet", "all")]
)
def test_the_last_hidden_state_is_the_plain_models(made: Path, encoder: str, layers: Any) -> None:
    below = 1 if layers == "all" else DEPTH - layers  # token ids stand beside any layer
    job = prepared(made, f"{encoder}:layer={below}", layers)
    model, batch = build(job).eval(), batch_of(job)
    expected = plain(made / encoder, texts_of(made, job.data.utterances.ids[:7]))
    assert batch.inputs["text"].lengths.tolist() == [len(rows) for rows in expected]
    assert len(set(batch.inputs["text"].lengths.tolist())) > 2  # there is padding to go wrong
    seen: list[torch.Tensor] = []
    model.encoder.register_forward_hook(lambda _module, _args, rows: seen.append(rows))
    with torch.inference_mode():
        logits = model(batch)["logits"]
        classified = model.linear(torch.stack([rows[0] for rows in expected]))
    torch.testing.assert_close(seen[0], torch.cat(expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, classified, rtol=0, atol=1e-5)


def changed(job: Job) -> set[str]:
    """The weights of the encoder that one epoch of training moves, under the checkpoint's names."""
    before = {name: value.clone() for name, value in build(job).state_dict().items()}
    torch.manual_seed(0)
    after = fit(job.data, job.fold, job.config).model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert "linear.1.weight" in moved
    return {name.removeprefix("encoder.model.") for name in moved if name.startswith("encoder.")}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_only_the_top_layers_train_or_all_with_the_embeddings(made: Path, encoder: str) -> None:
    job = prepared(made, f"{encoder}:layer=1", 2, select="last")
    names = {name for name, _ in build(job).named_parameters()}
    assert not any("embeddings" in name for name in names)
    moved = changed(job)
    assert {name.split(".")[2] for name in moved} == {"0", "1"}
    assert all(name.startswith("encoder.layer.") for name in moved)
    top = load_encoder(
        resolve([encoder], {encoder: str(made / encoder)}, "float32")[0][0].checkpoint
    ).encoder.layer
    assert len(moved) >= sum(
        not name.endswith(("key.bias", "k.bias")) for name, _ in top[-2:].named_parameters()
    )
    moved = changed(prepared(made, f"{encoder}:layer=2", "all", select="last"))
    assert "embeddings.word_embeddings.weight" in moved and "embeddings.LayerNorm.weight" in moved
    assert {name.split(".")[2] for name in moved if name.startswith("encoder.layer.")} == {
        "0",
        "1",
        "2",
    }
    assert ("encoder.relative_attention_bias.weight" in moved) == (encoder == "mpnet")


def test_only_its_own_stage_and_the_last_train_the_encoder_of_both(made: Path) -> None:
    job = prepared(made, "logmel+bert:layer=2", 1, fusion="cnn+bert", select="last")
    model, batch = build(job).train(), batch_of(job)
    for stage, reached in zip(job.config.fusion.stages, (False, True, True), strict=True):
        model.zero_grad()
        model(batch)[stage.output].square().sum().backward()
        weight = model.text.encoder.model.encoder.layer[0].output.dense.weight
        assert (weight.grad is not None) == reached


def test_hidden_text_has_no_influence(made: Path) -> None:
    for features, layers in (("bert:layer=2", 1), ("bert", "all")):
        job = prepared(made, features, layers)
        model, batch = build(job).eval(), batch_of(job)
        whole = model(batch)["logits"]
        hidden = torch.tensor([False, True, False, True, False, False, False])
        part = model(without(batch, {"text": hidden}))["logits"]
        torch.testing.assert_close(part[0], whole[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(part[1], model.linear[1].bias, rtol=0, atol=0)
        out = model(without(batch, {"text": torch.ones(7, dtype=torch.bool)}))["logits"]
        out.square().sum().backward()
        assert out.isfinite().all() and all(
            p.grad.isfinite().all() for p in model.parameters() if p.grad is not None
        )


@pytest.mark.parametrize(
    ("features", "layers", "more", "says"),
    [
        (
            "bert@",
            1,
            {},
            r"starts from layer 2 of bert's 3, and bert is layer 3.*--features bert:layer=2`",
        ),
        (
            "bert:layer=1",
            1,
            {},
            r"bert:layer=1 is layer 1; run `ser features CORPUS --features bert:layer=2`",
        ),
        ("bert:layer=2", 4, {}, "has layers 1 to 3, or all"),
        ("bert:layer=2", -1, {}, "has layers 1 to 3, or all"),
        ("bert:layer=2", "some", {}, "must be int.all"),
        (
            "bert:layer=2,special=false",
            1,
            {},
            "bert or mpnet, on special tokens too, and bert:layer=2,special=false",
        ),
        ("text:layer=2", 1, {}, "bert or mpnet, .* and text:layer=2 is none of these"),
        ("logmel", 1, {"fusion": "cnn"}, "finetune_layers=1: fusion cnn has no use for it"),
        ("bert:layer=2", 1, {"set": ("standardise_text=true",)}, "standardise_text=false"),
        (
            "bert:layer=2",
            1,
            {"model": ("bert=other",)},
            "not the checkpoint that bert:layer=2 .*--model bert=PATH",
        ),
        ("bert:layer=2", 1, {"model": ("bert",)}, "write --model NAME=ID_OR_PATH"),
    ],
)
def test_what_does_not_go_together(
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    features: str,
    layers: object,
    more: dict[str, Any],
    says: str,
) -> None:
    monkeypatch.chdir(made)
    with pytest.raises(WrongUse, match=says):
        prepared(made, features.rstrip("@"), layers, **more)


def test_rows_of_an_earlier_version_without_token_ids_are_named(made: Path, tmp_path: Path) -> None:
    old = open_store(made / "features")
    manifest, feature = old.manifest(), old.feature("bert")
    store = new_store(tmp_path / "features", manifest)
    packed = feature.load(manifest)
    del packed.extras["token"]
    publish_part(
        store.add(feature.spec),
        PartRows.from_packed(manifest.corpus, manifest.inputs("text"), packed),
    )
    job = prepared(tmp_path, "bert", "all")
    with pytest.raises(MissingRows, match=r"without 'token'; run `ser cache remove bert@"):
        _ = job.data.inputs


@pytest.mark.parametrize(
    ("features", "fusion", "layers"),
    [("bert:layer=2", "bert", 1), ("logmel+mpnet:layer=1", "cnn+bert", 2)],
)
def test_from_the_command_line_and_back(
    made: Path, tmp_path: Path, features: str, fusion: str, layers: object
) -> None:
    used = [one for one in SMALL if has_setting(FUSIONS[fusion], one)]
    settings = [part for one in (*used, f"finetune_layers={layers}") for part in ("--set", one)]
    where = ["--store", str(made / "features"), "--out", str(tmp_path / "runs")]
    encoder = features.rpartition("+")[2].partition(":")[0]
    moved = shutil.copytree(
        made / encoder, tmp_path / "elsewhere"
    )  # where a checkpoint may lie too
    where += ["--model", f"{encoder}={moved}"]
    asked = [
        "train",
        "--features",
        features,
        "--fusion",
        fusion,
        "--folds",
        "1",
        "--epochs",
        "2",
        "--json",
    ]
    [result] = json.loads(printed(*asked, *where, *settings))["runs"]
    run = Run(Path(result["path"]))
    spec = open_store(made / "features").feature(features.rpartition("+")[2]).spec
    assert run.config.provenance.specs["text"]["checkpoint"]["digest"] == spec.checkpoint["digest"]
    assert run.config.settings["finetune_layers"] == layers
    if fusion == "bert":
        tested = run.predictions()
        ids = tested.column("id").to_pylist()
        turns = [Turn(i, None, text) for i, text in zip(ids, texts_of(made, ids), strict=True)]
        found = [list(one.probabilities.values()) for one in Predictor(run.path)(turns).predictions]
        told = tempered(
            np.array(tested.column("probabilities").to_pylist()),
            run.result.calibration.temperature,
        )
        assert np.abs(np.array(found) - told).max() < 2e-6


@pytest.mark.parametrize(("layers", "memory"), [(1, "0.25MB"), ("all", "0.2MB")])
def test_the_same_seed_gives_the_same_bytes(
    made: Path, tmp_path: Path, layers: object, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where what the encoder starts from is read from the store when a batch needs it, and
    within the budget.
    """
    asked = {"folds": 1, "epochs": 2, "set": (f"finetune_layers={layers}", "batch_size=2")}
    plain = Experiment("bert:layer=2", "bert", store=made / "features", out=tmp_path / "a", **asked)
    small, read, load = (
        replace(plain, out=tmp_path / "b", memory=memory),
        list[int](),
        Feature.gather,
    )

    def watched(feature: Feature, *asked: Any) -> Any:
        packed = load(feature, *asked)
        read.append(packed.values.nbytes)
        return packed

    [first] = run_experiment(plain)
    monkeypatch.setattr(Feature, "gather", watched)
    [job] = prepare(small)
    assert (
        any(one.streamed for one in job.data.inputs.values()) == (layers == 1)
        and count_flops([job], 2) > 0
    )
    [second] = run_experiment(small)
    assert first.path.name == second.path.name
    assert (first.path / "model.safetensors").read_bytes() == (
        second.path / "model.safetensors"
    ).read_bytes()
    assert max(read) < 100_000 < sum(read), (
        "token ids take little, but the rows beside them are read too"
    )


@pytest.mark.parametrize(("features", "layers"), [("bert:layer=2", 1), ("mpnet:layer=0", "all")])
def test_bfloat16_is_close(made: Path, features: str, layers: object) -> None:
    job = prepared(made, features, layers, precision="bf16")
    model, batch = build(job).eval(), batch_of(job)
    with torch.inference_mode():
        exact = model(batch)["logits"]
        with job.config.autocast():
            rough = model(batch)["logits"].float()
    assert 0 < (rough - exact).abs().max() < 0.05 * exact.abs().max()
