"""Fine-tuning of audio encoders: from waveforms by the extractor to a trained run, and back.

The plain Hugging Face model is the truth. That every architecture's top is exact stands in
test_encoder_tops.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
import transformers
from safetensors.torch import load

from ser.cache.spec import Spec
from ser.commands.train import _estimate_in_words
from ser.corpus.manifest import Manifest
from ser.errors import SerError, UtteranceError, WrongUse
from ser.extract.audio import Clip
from ser.extract.plan import estimate_bytes
from ser.extract.resolve import load_extractors, resolve
from ser.extract.tasks import Utterance
from ser.predict import Predictor, Turn
from ser.predict.from_store import predict_stored
from ser.tests.test_models_finetune import check_probabilities
from ser.tests.tiny_store import add_feature, base_rows, new_store
from ser.train.activations import kept_bytes, largest_batch_bytes
from ser.train.estimate import estimate
from ser.train.experiment import Experiment, Job, prepare, run_experiment
from ser.train.fit import encoder_rates, fit, is_frozen, make_optimiser, share_of_update
from ser.train.model_file import load_model
from ser.train.models.encoder_front import merge_all_adapters, state_of
from ser.train.models.encoders import lora
from ser.train.run_folder import Run
from ser.weights.demo import SIZES, write_random_checkpoint
from ser.weights.find import find_checkpoint

RATE = 16000
DEPTH = 2
# Seconds of a window of the small Whisper.
WINDOW = 1

SMALL = ("d_model=16", "heads=2", "queries=3", "hidden=8", "lstm_hidden=4", "channels=2")
SMALL += ("frames=32", "lr=1e-3", "dropout=0", "standardise_audio=false")

CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "hubert": ("hubert", {}),
    "wavlm": (
        "wavlm",
        {
            **SIZES["hubert"],
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
            "conv_bias": True,
        },
    ),
    "w2v-bert": (
        "wav2vec2-bert",
        {**SIZES["bert"], "left_max_position_embeddings": 8, "conv_depthwise_kernel_size": 9},
    ),
    "whisper": (
        "whisper",
        {
            "encoder_layers": DEPTH,
            "decoder_layers": 1,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "d_model": 64,
            "max_source_positions": 50 * WINDOW,
            "vocab_size": 8,
            "pad_token_id": 1,
        },
    ),
}
PREPROCESSORS = {
    "w2v-bert": transformers.SeamlessM4TFeatureExtractor(padding_value=1),
    "whisper": transformers.WhisperFeatureExtractor(chunk_length=WINDOW),
}
# The feature that the top layer starts from.
BELOW = {name: f"{name}:layer=1" for name in CHECKPOINTS} | {"whisper": "whisper:layer=1,pad=keep"}


@dataclass(frozen=True)
class Heard:
    """A folder with `checkpoints`, `features` and `audio`."""

    folder: Path
    waves: dict[str, np.ndarray]
    """By id, the samples of each utterance."""

    def turns(self, ids: list[str]) -> list[Turn]:
        """The utterances as somebody would bring them."""
        return [Turn(id_, self.folder / "audio" / f"{id_}.wav", None) for id_ in ids]


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Heard:
    """Utterances of 0.1 to 2.4 s, some longer than a window of Whisper."""
    folder = tmp_path_factory.mktemp("heard")
    rows = list(base_rows(("impro01",), 4))
    for number, row in enumerate(rows):
        row["label"] = ("ang", "hap", "neu", "sad")[number % 4]
        row["text"] = "well"
    manifest = Manifest.from_rows("heard", rows, synthetic=True)

    rng = np.random.default_rng(0)
    (folder / "audio").mkdir()
    waves = {}
    for number, id_ in enumerate(manifest.ids):
        samples = rng.normal(0.01, 0.1, int(RATE * (0.1 + 2.3 * (number % 7) / 6)))
        waves[id_] = samples.astype(np.float32)
        sf.write(folder / "audio" / f"{id_}.wav", waves[id_], RATE, "FLOAT")

    store = new_store(folder / "features", manifest)
    names = [
        f"{name}:layer={layer}" for name in ("hubert", "wavlm", "w2v-bert") for layer in (0, 1)
    ]
    names += ["hubert", "hubert:layer=1,pool=mean", "whisper:layer=1", BELOW["whisper"]]
    names += ["whisper:layer=0,pad=keep"]
    models = {}
    for name, (architecture, settings) in CHECKPOINTS.items():
        path = folder / "checkpoints" / name
        models[name] = str(write_random_checkpoint(path, architecture, **settings))
        if name in PREPROCESSORS:
            PREPROCESSORS[name].save_pretrained(path)

    [logmel], _ = resolve(["logmel"], {}, "float32")
    features, _ = resolve(names, models, "float32")
    clips = [Clip(waves[id_], RATE) for id_ in manifest.ids]
    for extractor in load_extractors([*features, logmel], "cpu", 60):
        outcomes = extractor.run(clips)
        for spec in extractor.specs:
            of_spec = []
            for outcome in outcomes:
                assert not isinstance(outcome, UtteranceError), outcome
                of_spec.append(outcome[spec.fingerprint])
            extras = {name: [rows.extras[name] for rows in of_spec] for name in of_spec[0].extras}
            add_feature(store, manifest, spec, [rows.values for rows in of_spec], extras=extras)
    return Heard(folder, waves)


def experiment(heard: Heard, features: str, fusion: str, layers: object, **more: Any) -> Experiment:
    setting = f"finetune_audio={layers}"
    return Experiment(
        features,
        fusion,
        store=heard.folder / "features",
        set=(setting, *more.pop("set", ())),
        also_set=SMALL,
        epochs=1,
        folds=1,
        labels="4class",
        **more,
    )


def prepared(heard: Heard, features: str, fusion: str, layers: object, **more: Any) -> Job:
    [job, *_] = prepare(experiment(heard, features, fusion, layers, **more))
    return job


def plain(heard: Heard, name: str, ids: list[str]) -> Iterator[torch.Tensor]:
    """The last hidden states `[rows, d]`, by Hugging Face alone, one by one."""
    path = heard.folder / "checkpoints" / name
    model = transformers.AutoModel.from_pretrained(path).eval()
    prepare_audio = transformers.AutoFeatureExtractor.from_pretrained(path)
    if name == "whisper":
        model = model.get_encoder()

    for id_ in ids:
        samples = heard.waves[id_]
        window = WINDOW * RATE if name == "whisper" else len(samples)
        states = []
        for start in range(0, len(samples), window):
            piece = samples[start : start + window]
            inputs = prepare_audio(piece, sampling_rate=RATE, return_tensors="pt")
            with torch.inference_mode():
                rows = model(**inputs).last_hidden_state[0]
            if name == "whisper":
                rows = rows[: -(-len(piece) // 320)]
            if name == "w2v-bert":
                rows = rows[: int(inputs.attention_mask.sum())]
            states.append(rows)
        yield torch.cat(states)


def opened(state: bytes) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    """The tensors and the metadata of a safetensors file."""
    size = int.from_bytes(state[:8], "little")
    return load(state), json.loads(state[8 : 8 + size])["__metadata__"]


def build(job: Job) -> Any:
    torch.manual_seed(0)
    classes = len(job.data.utterances.classes)
    return job.config.fusion.build(job.config.settings, job.data.dims, classes).eval()


@pytest.mark.parametrize("layers", [1, DEPTH])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_extractor_and_top_are_the_whole_encoder(heard: Heard, name: str, layers: int) -> None:
    job = prepared(
        heard, BELOW[name].replace("layer=1", f"layer={DEPTH - layers}"), "audio", layers
    )
    ids = job.data.utterances.ids[:7]
    expected = list(plain(heard, name, ids))
    model = build(job)
    batch = job.data.batch(list(np.arange(7)[:, None]), {})

    with torch.inference_mode():
        encoded = model.encoders(batch).inputs["audio"]
    assert encoded.lengths.tolist() == [len(rows) for rows in expected]
    whole = torch.cat(expected)
    assert (encoded.values - whole).abs().max() <= 1e-6 * whole.abs().max()


@pytest.mark.parametrize(
    ("features", "fusion"),
    [
        pytest.param("{}", "audio", id="audio"),
        pytest.param("{}", "superb", id="a fusion of vectors"),
        pytest.param("{}:pool=meanstd", "superb", id="mean and deviation"),
    ],
)
@pytest.mark.parametrize("name", ["hubert", "whisper"])
def test_a_run_predicts_as_it_was_tested(
    heard: Heard, tmp_path: Path, name: str, features: str, fusion: str
) -> None:
    feature = BELOW[name]
    if "pool" in features:
        feature += ",pool=meanstd"
    [run] = run_experiment(experiment(heard, feature, fusion, 1, out=tmp_path))
    assert run.config.training["finetune_audio"] == 1

    ids = run.predictions().column("id").to_pylist()
    check_probabilities(run, Predictor(run.path)(heard.turns(ids)).predictions)

    stored = predict_stored([run.path], heard.folder / "features")
    probabilities = stored.mean().probabilities[[stored.ids.index(id_) for id_ in ids]]
    tested = np.array(run.predictions().column("probabilities").to_pylist())
    assert np.abs(probabilities - tested).max() < 2e-6


@pytest.mark.parametrize(
    ("features", "fusion", "layers", "says"),
    [
        pytest.param(
            "hubert",
            "audio",
            1,
            "starts from layer 1 of hubert's 2, and hubert is layer 2; run `ser features CORPUS "
            "--features hubert:layer=1 .*6.4 kB a second in float16.*train on hubert:layer=1",
            id="the last layer",
        ),
        pytest.param(
            "hubert:layer=1,pool=mean",
            "superb",
            1,
            "hubert:layer=1,pool=mean is the mean of its frames; .* train on hubert:layer=1$",
            id="stored means",
        ),
        pytest.param(
            "whisper:layer=1",
            "audio",
            1,
            "lacks the states of each window's padding; .*whisper:layer=1,pad=keep .*"
            "0.0064 MB for each 1 s or less",
            id="states that were cut",
        ),
        pytest.param(
            "whisper:layer=1,pad=keep",
            "audio",
            0,
            "for finetune_audio alone; train on whisper:layer=1, or set finetune_audio",
            id="padding without a trained encoder",
        ),
        pytest.param("logmel", "audio", 1, "logmel comes from no encoder", id="no encoder"),
        pytest.param("hubert:layer=1", "audio", 3, "has layers 1 to 2$", id="too many layers"),
        pytest.param("hubert:layer=1,hop=0.1", "audio", 1, "leave hop=… out", id="averaged frames"),
        pytest.param(
            "hubert:layers=0-1", "audio", 1, "name one, and no layers=…", id="several layers"
        ),
        pytest.param(
            "hubert:layer=1", "linear", 1, "linear:audio has no use for it", id="no training loop"
        ),
    ],
)
def test_what_does_not_go_together(
    heard: Heard, features: str, fusion: str, layers: int, says: str
) -> None:
    with pytest.raises(WrongUse, match=says):
        prepared(heard, features, fusion, layers)


def test_standardised_frames_are_refused(heard: Heard) -> None:
    asked = experiment(heard, "hubert:layer=1", "audio", 1, set=("standardise_audio=true",))
    with pytest.raises(WrongUse, match="use --set standardise_audio=false"):
        prepare(replace(asked, also_set=()))


def test_what_has_no_encoder_is_not_sent_to_another_refusal(heard: Heard) -> None:
    asked = experiment(heard, "logmel", "audio", 1, set=("standardise_audio=true",))
    with pytest.raises(WrongUse, match="logmel comes from no encoder"):
        prepare(replace(asked, also_set=()))


def test_every_state_of_a_window_is_counted_before_it_is_extracted() -> None:
    """1,500 rows for each 30 s or less, of 512 values in float16."""
    spec = Spec(
        "whisper", "audio", "frame", 512, "float16", "whisper", 1, hop=0.02, config={"pad": "keep"}
    )
    utterances = [Utterance(f"u{n}", None, "", seconds) for n, seconds in enumerate((3.0, 31.0))]
    assert estimate_bytes(spec, utterances) == 3 * 1500 * 1024


def rates_of(job: Job, stage: int = -1) -> dict[str, float]:
    """The learning rate of each weight in a stage, by name."""
    model = build(job)
    fusion = job.config.fusion
    lr = getattr(job.config.settings, fusion.stages[stage].lr)
    factors = encoder_rates(model, lr, job.config.training)
    weights = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad and not is_frozen(model, name, fusion.stages[stage]):
            weights[name] = weight
    adam = make_optimiser(weights, fusion.stages[stage], job.config.settings, factors)

    names = {weight: name for name, weight in weights.items()}
    rates = {}
    for group in adam.param_groups:
        for weight in group["params"]:
            rates[names[weight]] = group["lr"] * group["factor"]
    return rates


def test_an_encoder_learns_at_rates_of_its_own(heard: Heard) -> None:
    settings = ("encoder_lr=1e-4", "encoder_lr_decay=0.5")
    rates = rates_of(prepared(heard, "hubert:layer=0", "audio", 2, set=settings))
    layers = "encoders.audio.encoder.layers"
    assert rates[f"{layers}.1.final_layer_norm.weight"] == pytest.approx(1e-4)
    assert rates[f"{layers}.0.final_layer_norm.weight"] == pytest.approx(5e-5)
    own = {rate for name, rate in rates.items() if not name.startswith("encoders.")}
    assert own == {1e-3}


def test_layers_are_unfrozen_one_by_one(heard: Heard, tmp_path: Path) -> None:
    job = prepared(heard, "hubert:layer=0", "audio", 2, set=("unfreeze=true",))
    trained = []
    for stage in range(3):
        names = {name for name in rates_of(job, stage) if name.startswith("encoders.")}
        trained.append({name.split(".")[4] for name in names})
    assert trained == [set(), {"1"}, {"0", "1"}]

    asked = experiment(heard, "hubert:layer=0", "audio", 2, set=("unfreeze=true",), out=tmp_path)
    [run] = run_experiment(asked)
    assert [epoch.stage for epoch in run.result.history][-1] == job.config.fusion.stages[-1].name


def test_masked_and_recomputed_it_trains(heard: Heard) -> None:
    job = prepared(heard, "hubert:layer=1", "superb", 1, set=("encoder_mask=0.3", "recompute=true"))
    fitted = fit(job.data, job.fold, job.config)
    assert fitted.fault is None


@pytest.mark.parametrize(
    ("setting", "changes"),
    [
        pytest.param("finetune_audio=0", True, id="frozen"),
        pytest.param("encoder_lr=1e-4", True, id="another rate"),
        pytest.param("encoder_lr=1e-3", False, id="the rate of the rest"),
        pytest.param("encoder_mask=0.3", True, id="masked rows"),
        pytest.param("unfreeze=true", True, id="unfrozen in stages"),
        pytest.param("recompute=true", False, id="activations computed again"),
    ],
)
def test_how_an_encoder_learns_changes_the_name_of_a_run_and_its_bytes_or_neither(
    heard: Heard, setting: str, changes: bool
) -> None:
    names = []
    contents = []
    for settings in ((), (setting,)):
        settings = ("batch_size=8", *settings)
        job = prepared(heard, "hubert:layer=1", "superb", 1, set=settings, select="last")
        fitted = fit(job.data, job.fold, job.config)
        names.append(job.name)
        contents.append(fitted.predict(job.data, job.fold.test, job.config)["logits"].tobytes())
    assert (names[0] != names[1]) == changes
    assert (contents[0] != contents[1]) == changes


ADAPTED = ("lora_rank=2", "lora_alpha=4", "lora_dropout=0.1", "encoder_lr=0.1", "batch_size=2")


@pytest.fixture(scope="module", params=["hubert", "wavlm"])
def adapted(request: pytest.FixtureRequest, heard: Heard, tmp_path_factory: Any) -> Run:
    """A run that trained adapters of both layers."""
    pytest.importorskip("peft")
    out = tmp_path_factory.mktemp(request.param)
    asked = experiment(heard, f"{request.param}:layer=0", "audio", 2, set=ADAPTED, out=out)
    [run] = run_experiment(asked)
    return run


def encoder_of(run: Run) -> str:
    """Its name, such as "hubert"."""
    return run.config.features["audio"].feature.partition(":")[0]


def test_a_run_holds_the_adapters_and_not_the_encoder(heard: Heard, adapted: Run) -> None:
    tensors, _ = adapted.tensors("model.safetensors")
    of_encoder = {name: x for name, x in tensors.items() if name.startswith("model.encoders.")}
    # A and B of six projections of each layer.
    assert len(of_encoder) == 2 * 6 * DEPTH
    assert all(".lora_" in name and 2 in x.shape for name, x in of_encoder.items())
    assert any(x.any() for name, x in of_encoder.items() if ".lora_B." in name)

    checkpoint = find_checkpoint(heard.folder / "checkpoints" / encoder_of(adapted))
    spec = adapted.config.provenance.specs["audio"]
    assert spec["checkpoint"]["digest"] in (checkpoint.digest, checkpoint.speech_digest)


def test_adapters_predict_as_they_were_tested(heard: Heard, adapted: Run) -> None:
    ids = adapted.predictions().column("id").to_pylist()
    check_probabilities(adapted, Predictor(adapted.path)(heard.turns(ids)).predictions)

    stored = predict_stored([adapted.path], heard.folder / "features")
    probabilities = stored.mean().probabilities[[stored.ids.index(id_) for id_ in ids]]
    tested = np.array(adapted.predictions().column("probabilities").to_pylist())
    assert np.array_equal(probabilities, tested.astype(np.float32))


def test_adapters_need_their_checkpoint(heard: Heard, adapted: Run, tmp_path: Path) -> None:
    """It may lie elsewhere; another one is refused."""
    name = encoder_of(adapted)
    moved = shutil.copytree(heard.folder / "checkpoints" / name, tmp_path / "moved")
    other = heard.folder / "checkpoints" / ("wavlm" if name == "hubert" else "hubert")
    store = heard.folder / "features"

    here = predict_stored([adapted.path], store).mean()
    there = predict_stored([adapted.path], store, models={name: str(moved)}).mean()
    assert np.array_equal(here.probabilities, there.probabilities)
    for open_run in (Predictor, partial(predict_stored, store=store)):
        with pytest.raises(WrongUse, match=f"is not the checkpoint that {name}:layer=0"):
            run = adapted.path if open_run is Predictor else [adapted.path]
            open_run(run, models={name: str(other)})
    with pytest.raises(WrongUse, match="no run here has adapters of bert"):
        predict_stored([adapted.path], store, models={"bert": str(moved)})


def test_merged_adapters_give_the_same(heard: Heard, adapted: Run) -> None:
    fitted, config = load_model(adapted)
    merged, _ = load_model(adapted)
    merge_all_adapters(merged.model)
    assert not any("lora" in name for name in merged.model.state_dict())

    job = prepared(heard, adapted.config.features["audio"].feature, "audio", 2, set=ADAPTED)
    rows = job.fold.test
    expected = fitted.predict(job.data, rows, config)["logits"]
    assert np.abs(merged.predict(job.data, rows, config)["logits"] - expected).max() < 2e-6


def test_adapters_within_a_budget_of_memory_train_to_the_same_bytes(
    heard: Heard, adapted: Run, tmp_path: Path
) -> None:
    feature = adapted.config.features["audio"].feature
    asked = experiment(heard, feature, "audio", 2, set=ADAPTED, out=tmp_path, memory="0.3MB")
    [job] = prepare(asked)
    assert job.data.inputs["audio"].streamed
    [streamed] = run_experiment(asked)
    assert streamed.name == adapted.name
    whole = (adapted.path / "model.safetensors").read_bytes()
    assert (streamed.path / "model.safetensors").read_bytes() == whole


def test_adapters_go_on_where_they_were_stopped(heard: Heard) -> None:
    """With averaged weights, gradual unfreezing and a refit, which the state holds too."""
    pytest.importorskip("peft")
    more = ("ema=0.5", "unfreeze=true", "refit=true")
    job = prepared(heard, "hubert:layer=0", "superb", 2, set=(*ADAPTED[:3], *more), limit=10)
    states = []
    whole = fit(job.data, job.fold, job.config, lambda _, state: states.append(state()))
    assert len(states) == 6
    for state in (states[1], states[4]):
        file = opened(state)
        resumed = fit(job.data, job.fold, job.config, resume=file)
        for name, weight in state_of(whole.model).items():
            assert torch.equal(weight, state_of(resumed.model)[name])
    assert not any("base_layer" in name for name in file[0])


def test_adapters_in_bfloat16_are_close(heard: Heard) -> None:
    pytest.importorskip("peft")
    job = prepared(heard, "hubert:layer=0", "audio", 2, set=ADAPTED, precision="bf16")
    model = build(job)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.05)
    batch = job.data.batch(list(np.arange(7)[:, None]), {})
    with torch.inference_mode():
        exact = model(batch)["logits"]
        with job.config.autocast():
            rough = model(batch)["logits"].float()
    assert 0 < (rough - exact).abs().max() < 0.05 * exact.abs().max()


def test_kept_activations_are_counted_once() -> None:
    """By hand: the input `[3, 4]`, and the result `[3, 5]` of ReLU, which both sides of it need."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    x = torch.randn(3, 4)
    assert kept_bytes(model, lambda: model(x)) == 4 * (3 * 4 + 3 * 5)


def test_what_trains_and_what_it_keeps_is_said_before(heard: Heard) -> None:
    """Of the batch that is made of the longest utterance alone."""
    pytest.importorskip("peft")
    settings = ("lora_rank=2", "batch_size=3")
    job = prepared(heard, "hubert:layer=0", "superb", 2, set=settings, limit=10)
    ahead = estimate([job])
    sizes = SIZES["hubert"]
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    adapters = 2 * 2 * (4 * 2 * width + 2 * (width + inner))
    frozen = {name for name, weight in build(job).named_parameters() if not weight.requires_grad}
    state = build(job).state_dict()
    assert ahead.trained == ahead.parameters - sum(state[name].numel() for name in frozen)
    of_encoder = [x.numel() for name, x in state.items() if ".lora_" in name]
    assert sum(of_encoder) == adapters

    longest = int(np.argmax(np.diff(job.data.inputs["audio"].offsets)))
    batch = job.data.batch([np.array([longest])] * 3, {})
    model = build(job).train()
    assert ahead.activations == pytest.approx(kept_bytes(model, lambda: model(batch)), rel=0.02)

    recomputing = (*settings, "recompute=true")
    recomputed = prepared(heard, "hubert:layer=0", "superb", 2, set=recomputing, limit=10)
    assert largest_batch_bytes(recomputed, build(recomputed)) < ahead.activations / 2
    words = _estimate_in_words(experiment(heard, "hubert:layer=0", "superb", 2), job, ahead)
    assert f"({ahead.trained:,} of them train)" in words and "recompute=true keeps fewer" in words


def test_adapters_without_peft_say_how_to_get_it(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(SerError, match=r"pip install 'ser-fusion\[lora\]'"):
        prepared(heard, "hubert:layer=1", "audio", 1, set=("lora_rank=2",))


def test_settings_of_adapters_need_some(heard: Heard) -> None:
    with pytest.raises(WrongUse, match="lora_alpha: is for adapters of an encoder; set lora_rank"):
        prepared(heard, "hubert:layer=1", "audio", 1, set=("lora_alpha=2",))


@pytest.mark.parametrize(
    "setting", ["encoder_lr=1e-4", "unfreeze=true", "recompute=true", "lora_rank=2"]
)
def test_settings_of_encoders_need_one(heard: Heard, setting: str) -> None:
    with pytest.raises(WrongUse, match="set finetune_audio or finetune_text, or leave it out"):
        prepared(heard, "hubert:layer=1", "audio", 0, set=(setting,))


def test_accumulated_batches_are_one_large_batch(heard: Heard) -> None:
    """The last update of an epoch has fewer."""
    weights = []
    # The L2 term tells gradients of another size.
    shared = ("lr=1e-3", "weight_decay=0.1")
    for sizes in (("batch_size=2", "accumulate=3"), ("batch_size=6",)):
        job = prepared(heard, "hubert:layer=1", "superb", 0, set=(*sizes, *shared), select="last")
        weights.append(fit(job.data, job.fold, job.config).model.state_dict())
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=0, atol=1e-5)

    training = replace(job.config.training, accumulate=3)
    config = replace(job.config, training=training)
    shares = [share_of_update(number, [2, 2, 2, 2, 1], config) for number in range(5)]
    assert shares == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 3, 1 / 3])
