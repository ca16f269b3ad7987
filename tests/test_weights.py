"""Checkpoints: found, refused, hashed, converted; pickles never run."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

from ser.errors import SerError, WeightsError, WrongUse
from ser.extract.resolve import resolve, resolve_again
from ser.tests.command_line import ser
from ser.weights.convert import convert
from ser.weights.demo import write_random_checkpoint
from ser.weights.find import find_checkpoint
from ser.weights.load import load_encoder


@pytest.fixture(scope="module")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("weights") / "hubert", "hubert")


@pytest.fixture
def copy(hubert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hubert, tmp_path / "copy"))


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def as_pickle(folder: Path, content: Any = None) -> Path:
    """Turn a checkpoint into what a pickle-only repository holds."""
    weights = folder / "model.safetensors"
    torch.save(load_file(weights) if content is None else content, folder / "pytorch_model.bin")
    weights.unlink()
    return folder


@dataclass
class Canary:
    """Touches a file when unpickled."""

    path: Path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_random_weights_are_marked_and_deterministic(hubert: Path, tmp_path: Path) -> None:
    again = write_random_checkpoint(tmp_path / "hubert", "hubert")
    other = write_random_checkpoint(tmp_path / "other", "hubert", seed=1)
    checkpoint = find_checkpoint(hubert)

    assert checkpoint.random
    assert checkpoint.architecture == "hubert"
    assert find_checkpoint(again).digest == checkpoint.digest
    assert (hubert / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert find_checkpoint(other).digest != checkpoint.digest


def test_random_norms_are_not_ones(hubert: Path) -> None:
    """Else a test would pass on an encoder that leaves one out."""
    for module in load_encoder(find_checkpoint(hubert)).modules():
        if isinstance(module, torch.nn.LayerNorm):
            assert module.weight.std() > 0.05


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("notes.txt", id="notes"),
        pytest.param("model-00001-of-00002.safetensors", id="somebody's weights"),
    ],
)
def test_a_folder_that_ser_did_not_write_stays(tmp_path: Path, name: str) -> None:
    theirs = tmp_path / "hubert-random" / name
    theirs.parent.mkdir()
    theirs.write_text("precious")

    done = ser("weights", "demo", tmp_path)

    assert done.exit_code == 2
    assert f"holds what ser did not write ({name})" in done.stderr
    assert theirs.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["hubert-random"]


def test_a_file_beside_random_weights_stays(hubert: Path, tmp_path: Path) -> None:
    """A random checkpoint is replaced, but never what somebody has put into its folder."""
    folder = Path(shutil.copytree(hubert, tmp_path / "hubert"))
    write_random_checkpoint(folder, "hubert", seed=1)
    (folder / "notes.txt").write_text("precious")

    with pytest.raises(WrongUse, match=r"did not write \(notes\.txt\)"):
        write_random_checkpoint(folder, "hubert")

    assert (folder / "notes.txt").read_text() == "precious"


def test_weights_that_are_not_random_stay(copy: Path) -> None:
    edit(copy / "config.json", ser_random_weights=False)
    before = (copy / "model.safetensors").read_bytes()

    with pytest.raises(WrongUse, match="did not write"):
        write_random_checkpoint(copy, "hubert", seed=1)

    assert (copy / "model.safetensors").read_bytes() == before


def test_the_digest_is_of_the_tensors_not_of_the_file(copy: Path) -> None:
    before = find_checkpoint(copy).digest
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    save_torch_state_dict(tensors, copy, max_shard_size="100KB")
    edit(copy / "config.json", transformers_version="0.0", _name_or_path="elsewhere")
    assert find_checkpoint(copy).digest == before
    load_encoder(find_checkpoint(copy))
    next(copy.glob("model-*.safetensors")).unlink()
    with pytest.raises(WeightsError, match="missing"):
        find_checkpoint(copy)


def test_what_is_no_checkpoint_is_refused(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(WrongUse, match="no such folder"):
        find_checkpoint(tmp_path / "a b" / "c")
    with pytest.raises(WeightsError, match=r"no config\.json"):
        find_checkpoint(tmp_path / "empty")
    with pytest.raises(WeightsError, match="no such folder"):
        find_checkpoint(copy / "config.json")


def test_a_pickle_alone_is_refused(copy: Path) -> None:
    """Beside safetensors it is not looked at."""
    (copy / "model.safetensors").rename(copy / "kept")
    (copy / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"no model\.safetensors.* `ser weights convert .* DIR`"):
        find_checkpoint(copy)
    (copy / "kept").rename(copy / "model.safetensors")
    assert find_checkpoint(copy)


def test_code_of_a_repository_is_refused(copy: Path) -> None:
    edit(copy / "config.json", auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(WeightsError, match="auto_map"):
        find_checkpoint(copy)


REDIRECTS = [
    pytest.param({"transformers_weights": "other.safetensors"}, id="weights"),
    pytest.param({"text_config": {"transformers_weights": "x"}}, id="weights of a part"),
    pytest.param({"adapter_weights": "x"}, id="weights by an unknown key"),
    pytest.param({"model_file": "evil.py"}, id="a file"),
    pytest.param({"code_revision": "main"}, id="a revision"),
    pytest.param({"remote_code": "someone/model"}, id="code"),
    pytest.param({"custom_pipelines": {"x": {"impl": "evil.P"}}}, id="a pipeline"),
    pytest.param({"sub": [{"auto_map": {"AutoModel": "evil.Model"}}]}, id="code of a part"),
    pytest.param({"_attn_implementation": "someone/kernels"}, id="a kernel"),
    pytest.param({"attn_implementation": {"text": "someone/kernels@v1"}}, id="a part's kernel"),
    pytest.param({"_experts_implementation": "hub:kernel"}, id="experts"),
]


@pytest.mark.parametrize("entry", REDIRECTS)
def test_a_config_that_names_other_weights_or_code_is_refused(
    copy: Path, entry: dict[str, object]
) -> None:
    edit(copy / "config.json", **entry)
    key = "transformers_weights" if "text_config" in entry else next(iter(entry))
    with pytest.raises(WeightsError, match="auto_map" if key == "sub" else key):
        find_checkpoint(copy)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "processor_config.json"])
@pytest.mark.parametrize("key", ["gguf_file", "audio_tokenizer"])
def test_a_tokenizer_of_another_file_is_refused(copy: Path, file: str, key: str) -> None:
    """Transformers would read that file, which nobody has hashed."""
    (copy / file).write_text(json.dumps({key: "../other/model.gguf"}))
    with pytest.raises(WeightsError, match=f"{file} names other weights or code .{key}"):
        find_checkpoint(copy)


def test_what_a_config_harmlessly_says_is_not_refused(copy: Path) -> None:
    harmless = {
        "_name_or_path": "/home/someone/hubert",
        "_attn_implementation": "eager",
        "tie_weights": True,
        "label_file": None,
    }
    edit(copy / "config.json", **harmless)
    assert load_encoder(find_checkpoint(copy))


def test_the_tensors_that_are_hashed_are_those_that_are_loaded(copy: Path) -> None:
    """Whatever else lies in the folder: other safetensors, an adapter, an index of shards."""
    plain = load_encoder(find_checkpoint(copy)).state_dict()
    digest = find_checkpoint(copy).digest

    tensors = load_file(copy / "model.safetensors")
    others = {name: tensor + 1 for name, tensor in tensors.items()}
    for name in ("other.safetensors", "adapter_model.safetensors", "model-1-of-1.safetensors"):
        save_file(others, copy / name, {"format": "pt"})
    weight_map = dict.fromkeys(tensors, "model-1-of-1.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(copy), "r": 1}
    (copy / "adapter_config.json").write_text(json.dumps(adapter))

    again = find_checkpoint(copy)
    assert again.digest == digest
    for name, tensor in load_encoder(again).state_dict().items():
        assert torch.equal(tensor, plain[name]), name


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_adapter_layers"])
def test_more_layers_than_tensors_are_refused_before_they_are_built(copy: Path, key: str) -> None:
    edit(copy / "config.json", **{key: 1_000_000})
    with pytest.raises(WeightsError, match=f"{key} is 1000000, and the weights"):
        find_checkpoint(copy)


def test_a_model_of_another_kind_is_refused(copy: Path) -> None:
    """T5, say, has a d_model where the encoders that ser knows have a hidden_size."""
    path = copy / "config.json"
    path.write_text(path.read_text().replace('"hidden_size"', '"d_model"'))

    with pytest.raises(WeightsError, match=r"config\.json names no hidden_size"):
        resolve(["hubert"], {"hubert": str(copy)}, "float16")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("conv_stride", [5, 0], id="a stride of 0"),
        pytest.param("hidden_size", -64, id="a negative size"),
        pytest.param("num_hidden_layers", "two", id="a number in words"),
    ],
)
def test_an_impossible_number_in_a_config_is_refused(copy: Path, name: str, value: object) -> None:
    edit(copy / "config.json", **{name: value})

    with pytest.raises(WeightsError, match=rf"config\.json: {name} is wrong .*copy it again"):
        resolve(["hubert"], {"hubert": str(copy)}, "float16")


def test_damaged_files_are_refused(copy: Path) -> None:
    file = copy / "model.safetensors"
    data = file.read_bytes()
    endless_header = (1 << 60).to_bytes(8, "little") + data[8:]
    for damaged in (data[:-10], endless_header, b""):
        file.write_bytes(damaged)
        with pytest.raises(WeightsError, match="not a readable safetensors"):
            find_checkpoint(copy)


@pytest.mark.parametrize(
    "index",
    [
        pytest.param("[]", id="a list"),
        pytest.param("{}", id="no map"),
        pytest.param('{"weight_map": ["a"]}', id="a map that is a list"),
        pytest.param('{"weight_map": {"a": "gone.safetensors"}}', id="a file that is gone"),
    ],
)
def test_a_damaged_index_is_refused(copy: Path, index: str) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(index)

    with pytest.raises(WrongUse, match=r"as a JSON object|copy the whole folder"):
        find_checkpoint(copy)


def test_a_missing_weight_is_never_filled_in_at_random(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["encoder.layers.1.feed_forward.output_dense.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"lacks 1 .*encoder\.layers\.1"):
        load_encoder(find_checkpoint(copy))


FIND_WITHOUT_A_NETWORK = """
import socket
from ser.errors import WeightsError
from ser.weights.find import find_checkpoint
from ser.weights.hub_cache import list_checkpoints

def refuse(*a, **k):
    print('NETWORK')
    raise OSError('no network')

socket.socket.connect = refuse
socket.getaddrinfo = refuse
checkpoint = find_checkpoint('some/hubert')
print(checkpoint.model, checkpoint.digest)
[cached] = list_checkpoints()
print(cached.model, cached.architecture, cached.fault)
try:
    find_checkpoint('facebook/hubert-base-ls960', '--model hubert=PATH')
except WeightsError as fault:
    print(fault)
"""


@pytest.mark.parametrize(
    ("offline", "is_tried"),
    [pytest.param("1", False, id="offline"), pytest.param("0", True, id="without a network")],
)
def test_what_is_cached_is_found_without_a_network(
    hubert: Path, tmp_path: Path, offline: str, is_tried: bool
) -> None:
    """For another a sentence says how to point at a copy. HF_HUB_OFFLINE: nothing is tried.

    In a fresh interpreter: Hugging Face reads its variables when it is imported.
    """
    cache = tmp_path / "hub" / "models--some--hubert"
    shutil.copytree(hubert, cache / "snapshots" / ("a" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    environment = {
        **os.environ,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": offline,
    }
    done = subprocess.run(
        [sys.executable, "-c", FIND_WITHOUT_A_NETWORK],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    lines = done.stdout.splitlines()
    assert ("NETWORK" in lines) == is_tried
    found, listed, message = [line for line in lines if line != "NETWORK"]
    assert found == f"some/hubert {find_checkpoint(hubert).digest}"
    assert listed == "some/hubert hubert None"
    assert "--model hubert=PATH" in message
    assert "facebook/hubert-base-ls960" in message


def test_a_feature_of_speech_does_not_hang_on_a_tokenizer(copy: Path) -> None:
    """Its digest is that of the same encoder without one; the digest of all files is another."""
    bare = find_checkpoint(copy)
    (copy / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    (copy / "vocab.json").write_text('{"a": 0}')
    with_tokenizer = find_checkpoint(copy)

    assert bare.speech_digest == bare.digest
    assert with_tokenizer.speech_digest == bare.digest
    assert with_tokenizer.digest != bare.digest

    [feature], _ = resolve(["hubert:pool=mean"], {"hubert": str(copy)}, "float16")
    assert feature.spec.checkpoint["digest"] == bare.digest
    assert sorted(feature.spec.provenance["files"]) == [
        "config.json",
        "preprocessor_config.json",
        "weights",
    ]

    # What an earlier ser stored hangs on all files, and is computed again as it was.
    earlier = replace(feature.spec, checkpoint={"digest": with_tokenizer.digest, "random": True})
    [again] = resolve_again([earlier], {"hubert": str(copy)})
    assert again.spec.fingerprint == earlier.fingerprint


@pytest.mark.parametrize("changed", ["preprocessor_config.json", "weights"])
def test_the_refusal_of_another_checkpoint_names_the_file(copy: Path, changed: str) -> None:
    [feature], _ = resolve(["hubert"], {"hubert": str(copy)}, "float16")
    if changed == "weights":
        tensors = load_file(copy / "model.safetensors")
        name = next(iter(tensors))
        tensors[name] = tensors[name] + 1
        save_file(tensors, copy / "model.safetensors")
    else:
        edit(copy / changed, do_normalize=False)

    with pytest.raises(WrongUse, match=rf"digest [0-9a-f]{{12}}…; its {changed} differs\)"):
        resolve_again([feature.spec], {"hubert": str(copy)})


def test_convert_keeps_the_digest_and_all_that_is_read(copy: Path, tmp_path: Path) -> None:
    """As published: with the names that weight norm had before torch 2."""
    # `ser features --transcribe` reads Whisper's.
    (copy / "generation_config.json").write_text("{}")
    plain = load_encoder(find_checkpoint(copy))
    tensors = load_file(copy / "model.safetensors")
    old = {}
    for name, tensor in tensors.items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        old[name] = tensor
    assert old.keys() != tensors.keys()
    save_file(old, copy / "model.safetensors")
    digest = find_checkpoint(copy).digest
    files = {path.name for path in copy.iterdir()}

    folder = convert(str(as_pickle(copy)), tmp_path / "converted")

    assert find_checkpoint(folder).digest == digest
    assert {path.name for path in folder.iterdir()} == files
    with pytest.raises(WrongUse, match="not empty"):
        convert(str(copy), folder)
    converted = load_encoder(find_checkpoint(folder))
    samples = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (1, 8000)).astype(np.float32))
    with torch.inference_mode():
        assert torch.equal(plain(samples).last_hidden_state, converted(samples).last_hidden_state)


@pytest.mark.parametrize("how", ["pickle", pytest.param("nested", marks=pytest.mark.slow)])
def test_the_canary_does_not_run(copy: Path, tmp_path: Path, how: str) -> None:
    canary = tmp_path / "ran"
    evil = Canary(canary)
    as_pickle(copy, {"a": torch.zeros(1), "b": evil})
    if how == "pickle":
        (copy / "pytorch_model.bin").write_bytes(pickle.dumps(evil))

    with pytest.raises(WeightsError, match="ser weights convert"):
        find_checkpoint(copy)
    with pytest.raises(SerError, match="nothing was written") as fault:
        convert(str(copy), tmp_path / "converted")
    assert "refused" in str(fault.value)
    assert "\n" not in str(fault.value)
    assert not canary.exists()
    assert not (tmp_path / "converted").exists()

    # The canary works.
    pickle.loads(pickle.dumps(evil))
    assert canary.exists()


def test_convert_needs_a_complete_checkpoint(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="safetensors are used as they are"):
        convert(str(copy), tmp_path / "converted")
    (copy / "model.safetensors").rename(copy / "kept")
    (copy / "pytorch_model.bin").write_bytes(b"garbage")
    with pytest.raises(SerError, match="nothing was written"):
        convert(str(copy), tmp_path / "converted")
    (copy / "kept").rename(copy / "model.safetensors")
    as_pickle(copy, {"encoder.layer_norm.weight": torch.ones(64)})
    with pytest.raises(WeightsError, match="lacks"):
        convert(str(copy), tmp_path / "converted")
    (copy / "config.json").unlink()
    with pytest.raises(WrongUse, match=r"no config\.json"):
        convert(str(copy), tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_torchaudio_is_missing_in_one_sentence(tmp_path: Path) -> None:
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        with pytest.raises(SerError, match="torchaudio cannot be imported"):
            convert("torchaudio:HUBERT_BASE", tmp_path / "converted")
    else:
        with pytest.raises(SerError, match="unknown HuBERT bundle"):
            convert("torchaudio:HUBERT_TINY", tmp_path / "converted")


@pytest.mark.parametrize("mode", ["group_norm", "layer_norm"])
def test_torchaudios_layout_equals_ours(tmp_path: Path, mode: str) -> None:
    try:
        import torchaudio
    except (ImportError, OSError) as fault:
        pytest.skip(f"torchaudio cannot be imported beside this torch ({type(fault).__name__})")
    from ser.weights.torchaudio_hubert import torchaudio_config, torchaudio_names

    params = {
        "extractor_mode": mode,
        "extractor_conv_layer_config": [(32, 10, 5)] + [(32, 3, 2)] * 4 + [(32, 2, 2)] * 2,
        "extractor_conv_bias": mode == "layer_norm",
        "encoder_embed_dim": 64,
        "encoder_pos_conv_kernel": 32,
        "encoder_pos_conv_groups": 4,
        "encoder_num_layers": 2,
        "encoder_num_heads": 4,
        "encoder_ff_interm_features": 128,
        "encoder_layer_norm_first": mode == "layer_norm",
        "aux_num_out": None,
        "encoder_projection_dropout": 0.0,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_drop": 0.0,
    }
    model = torchaudio.models.wav2vec2_model(**params).eval()
    config = transformers.HubertConfig.from_dict(torchaudio_config(params))
    ours = transformers.HubertModel(config).eval()
    missing, unexpected = ours.load_state_dict(torchaudio_names(model.state_dict()), strict=False)
    assert set(missing) <= {"masked_spec_embed"}
    assert not unexpected

    samples = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        theirs = model(samples)[0]
        mine = ours(samples).last_hidden_state
    assert (theirs - mine).abs().max() / theirs.abs().max() <= 1e-6
