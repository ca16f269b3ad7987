"""A Whisper model of CTranslate2 is converted bit by bit, and what is damaged is refused.

The files are written here as `ctranslate2.specs.ModelSpec.save` and `WhisperSpec` describe them.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from ser.errors import WeightsError
from ser.weights import ctranslate2_whisper
from ser.weights.convert import convert
from ser.weights.find import find_checkpoint
from ser.weights.load import load_encoder

WORDS = ("a", "b", "Ġc")
TOKENS = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|de|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
VOCABULARY = len(WORDS) + len(TOKENS) + 1501
NUMBER_OF_TYPE = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def as_text(text: str) -> bytes:
    content = text.encode() + b"\0"
    return struct.pack("<H", len(content)) + content


def as_file(
    arrays: Mapping[str, np.ndarray], aliases: Mapping[str, str], spec: str = "WhisperSpec"
) -> bytes:
    content = struct.pack("<I", 6) + as_text(spec) + struct.pack("<II", 3, len(arrays))
    for name, array in arrays.items():
        content += as_text(name) + struct.pack("<B", array.ndim)
        content += struct.pack(f"<{array.ndim}I", *array.shape)
        content += struct.pack("<BI", NUMBER_OF_TYPE[str(array.dtype)], array.nbytes)
        content += array.tobytes()

    content += struct.pack("<I", len(aliases))
    for alias, name in aliases.items():
        content += as_text(alias) + as_text(name)
    return content


def whisper_arrays(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The weights of a Whisper of transformers under the names of `WhisperSpec`, in float16."""
    weights = {name: weight.half().numpy() for name, weight in state.items()}
    arrays: dict[str, np.ndarray] = {}

    def linear(target: str, *sources: str) -> None:
        of_weights = [weights[f"{source}.weight"] for source in sources]
        of_biases = []
        for source, weight in zip(sources, of_weights, strict=True):
            none = np.zeros(len(weight), np.float16)
            of_biases.append(weights.get(f"{source}.bias", none))
        arrays[f"{target}/weight"] = np.concatenate(of_weights)
        arrays[f"{target}/bias"] = np.concatenate(of_biases)

    def norm(target: str, source: str) -> None:
        arrays[f"{target}/gamma"] = weights[f"{source}.weight"]
        arrays[f"{target}/beta"] = weights[f"{source}.bias"]

    for side in ("encoder", "decoder"):
        for number in range(2):
            target = f"{side}/layer_{number}"
            source = f"model.{side}.layers.{number}"
            attention = f"{source}.self_attn"
            linear(
                f"{target}/self_attention/linear_0",
                *[f"{attention}.{part}_proj" for part in ("q", "k", "v")],
            )
            linear(f"{target}/self_attention/linear_1", f"{attention}.out_proj")
            norm(f"{target}/self_attention/layer_norm", f"{source}.self_attn_layer_norm")
            if side == "decoder":
                attention = f"{source}.encoder_attn"
                linear(f"{target}/attention/linear_0", f"{attention}.q_proj")
                linear(f"{target}/attention/linear_1", f"{attention}.k_proj", f"{attention}.v_proj")
                linear(f"{target}/attention/linear_2", f"{attention}.out_proj")
                norm(f"{target}/attention/layer_norm", f"{source}.encoder_attn_layer_norm")
            linear(f"{target}/ffn/linear_0", f"{source}.fc1")
            linear(f"{target}/ffn/linear_1", f"{source}.fc2")
            norm(f"{target}/ffn/layer_norm", f"{source}.final_layer_norm")

        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        positions = weights[f"model.{side}.embed_positions.weight"]
        arrays[f"{side}/position_encodings/encodings"] = positions
        arrays[f"{side}/num_heads"] = np.array(2, np.int16)

    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            arrays[f"encoder/{conv}/{part}"] = weights[f"model.encoder.{conv}.{part}"]
    arrays["decoder/embeddings/weight"] = weights["model.decoder.embed_tokens.weight"]
    arrays["decoder/scale_embeddings"] = np.array(0, np.int8)
    return arrays


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """The weights of a small random Whisper, as float16 can hold them."""
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=24,
        max_source_positions=1500,
        max_target_positions=12,
        init_std=0.5,
        pad_token_id=len(WORDS),
        bos_token_id=len(WORDS),
        eos_token_id=len(WORDS),
        decoder_start_token_id=len(WORDS) + 1,
    )
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(config)
    return {name: weight.half().float() for name, weight in model.state_dict().items()}


@pytest.fixture
def folder(state: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    """That model in CTranslate2's format."""
    path = tmp_path / "faster-whisper"
    path.mkdir()
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"}
    (path / "model.bin").write_bytes(as_file(whisper_arrays(state), aliases))
    settings = {"suppress_ids": [1], "suppress_ids_begin": [2], "alignment_heads": [[0, 1]]}
    (path / "config.json").write_text(json.dumps(settings))

    timestamps = [f"<|{20 * number / 1000:.2f}|>" for number in range(1501)]
    added = []
    for number, token in enumerate([*TOKENS, *timestamps], len(WORDS)):
        added.append({"id": number, "content": token, "special": True})
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": []}
    tokenizer = {"version": "1.0", "added_tokens": added, "model": model}
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return path


def test_a_whisper_of_ctranslate2_keeps_every_bit(
    folder: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    converted = convert(str(folder), tmp_path / "converted")

    tensors = load_file(converted / "model.safetensors")
    assert tensors.keys() | {"proj_out.weight"} == state.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float16, name
        assert torch.equal(tensor.float(), state[name]), name

    checkpoint = find_checkpoint(converted)
    model = load_encoder(checkpoint, "WhisperForConditionalGeneration")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, state[name]), name
    assert model.config.encoder_ffn_dim == 32
    assert model.config.decoder_ffn_dim == 24
    assert model.generation_config.forced_decoder_ids is not None


@pytest.mark.parametrize("languages", ["English alone", "several languages"])
def test_how_it_transcribes_stands_beside_the_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, languages: str
) -> None:
    if languages == "several languages":
        monkeypatch.setattr(ctranslate2_whisper, "MULTILINGUAL_VOCABULARY", VOCABULARY)

    converted = convert(str(folder), tmp_path / "converted")
    generation = json.loads((converted / "generation_config.json").read_text())

    numbers = {token: number for number, token in enumerate(TOKENS, len(WORDS))}
    assert generation["suppress_tokens"] == [1]
    assert generation["begin_suppress_tokens"] == [2]
    assert generation["decoder_start_token_id"] == numbers["<|startoftranscript|>"]
    if languages == "English alone":
        assert not generation["is_multilingual"]
        assert generation["forced_decoder_ids"] == [[1, numbers["<|notimestamps|>"]]]
        return

    assert generation["lang_to_id"] == {name: numbers[name] for name in ("<|en|>", "<|de|>")}
    assert generation["task_to_id"]["transcribe"] == numbers["<|transcribe|>"]
    assert generation["forced_decoder_ids"] == [[1, None], [2, numbers["<|transcribe|>"]]]


DAMAGES = {
    "cut short": "within a field",
    "longer than it says": "1 bytes are left over",
    "another version": "version 9",
    "another model": "of another kind (TransformerSpec)",
    "quantised": "quantised (encoder/conv1/weight is int8)",
    "bfloat16": "values of type 5",
    "a layer lacks a weight": "not a whole Whisper model",
    "an unknown array": "encoder/strange",
    "no tokenizer": "holds no tokenizer.json",
    "another tokenizer": "not that of its",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_whole_whisper_is_refused(
    folder: Path, state: dict[str, torch.Tensor], tmp_path: Path, damage: str
) -> None:
    path = folder / "model.bin"
    content = path.read_bytes()
    arrays = whisper_arrays(state)
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"}

    match damage:
        case "cut short":
            path.write_bytes(content[:-1000])
        case "longer than it says":
            path.write_bytes(content + b"x")
        case "another version":
            path.write_bytes(struct.pack("<I", 9) + content[4:])
        case "another model":
            path.write_bytes(as_file(arrays, aliases, "TransformerSpec"))
        case "quantised":
            arrays["encoder/conv1/weight"] = arrays["encoder/conv1/weight"].astype(np.int8)
            path.write_bytes(as_file(arrays, aliases))
        case "bfloat16":
            name = as_text("encoder/conv1/bias")
            place = content.index(name) + len(name) + 1 + 4
            path.write_bytes(content[:place] + b"\5" + content[place + 1 :])
        case "a layer lacks a weight":
            del arrays["decoder/layer_1/ffn/linear_1/weight"]
            path.write_bytes(as_file(arrays, aliases))
        case "an unknown array":
            arrays["encoder/strange"] = np.zeros(3, np.float16)
            path.write_bytes(as_file(arrays, aliases))
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "another tokenizer":
            tokenizer = json.loads((folder / "tokenizer.json").read_text())
            for token in tokenizer["added_tokens"]:
                token["id"] += 1
            (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    with pytest.raises(WeightsError) as fault:
        convert(str(folder), tmp_path / "converted")
    assert DAMAGES[damage] in str(fault.value)
    assert not (tmp_path / "converted").exists()


def test_a_folder_of_ctranslate2_is_named_as_such(folder: Path) -> None:
    with pytest.raises(WeightsError, match="a model of CTranslate2") as fault:
        find_checkpoint(folder)
    assert f"`ser weights convert {folder} DIR`" in str(fault.value)
