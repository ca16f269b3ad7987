"""A Whisper model of CTranslate2 (as faster-whisper takes it) as a checkpoint of transformers.

Tensors keep their bits: float16 stays float16, which float32 holds exactly. What is quantised
(int8) is refused, since it is no longer what was trained.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ser.errors import WeightsError

from .checkpoint import read_json
from .ctranslate2 import MODEL_FILE, read_ctranslate2

# Vocabularies from here on are of several languages; below, of English alone.
MULTILINGUAL_VOCABULARY = 51865

# The part of a layer in CTranslate2 → in transformers, and what is stacked in its rows.
LINEAR_LAYERS = {
    "self_attention/linear_0": ("self_attn", ("q_proj", "k_proj", "v_proj")),
    "self_attention/linear_1": ("self_attn", ("out_proj",)),
    "attention/linear_0": ("encoder_attn", ("q_proj",)),
    "attention/linear_1": ("encoder_attn", ("k_proj", "v_proj")),
    "attention/linear_2": ("encoder_attn", ("out_proj",)),
    "ffn/linear_0": ("", ("fc1",)),
    "ffn/linear_1": ("", ("fc2",)),
}
NORMS = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
}


@dataclass(frozen=True)
class SpecialTokens:
    """The numbers of Whisper's own tokens, which follow each other in every vocabulary."""

    end: int
    start: int
    translate: int
    transcribe: int
    previous: int
    """<|startofprev|>"""
    no_timestamps: int
    languages: dict[str, int]
    """By token, such as "<|en|>"; empty for a model of English alone."""


def convert_ctranslate2(source: Path, folder: Path) -> None:
    """Write the Whisper model of a CTranslate2 folder to `folder` as transformers reads it.

    Raises `WeightsError` for another model than Whisper, quantised weights, and a folder without
    the tokenizer.json that belongs to it.
    """
    from safetensors.numpy import save_file

    path = source / MODEL_FILE
    model = read_ctranslate2(path)
    if model.spec != "WhisperSpec":
        raise WeightsError(
            f"{source} is a CTranslate2 model of another kind ({model.spec[:40]}), and ser reads "
            "Whisper's; convert the original checkpoint"
        )
    for name, array in model.arrays.items():
        if array.ndim and array.dtype.kind != "f":
            raise WeightsError(
                f"{path}: its weights are quantised ({name} is {array.dtype}), so they are not "
                "those that were trained; take the float16 model, or the original checkpoint"
            )
    if not (source / "tokenizer.json").exists():
        raise WeightsError(
            f"{source} holds no tokenizer.json, without which there are no words; copy the one of "
            "the original checkpoint there"
        )

    try:
        tensors = _Renaming(model.arrays).tensors()
        tokens = _special_tokens(read_json(source / "tokenizer.json"), tensors)
        _write_files(source, folder, model.arrays, tensors, tokens)
    except (KeyError, ValueError, TypeError) as fault:
        raise WeightsError(
            f"{source} is not a whole Whisper model ({fault}); copy the folder again"
        ) from fault
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


class _Renaming:
    """Whisper's tensors under transformers' names; each array has to be used once."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.renamed: dict[str, np.ndarray] = {}
        self.used: set[str] = set()

    def tensors(self) -> dict[str, np.ndarray]:
        """All of them, by name. Raises `KeyError` or `ValueError` for what does not fit."""
        for side in ("encoder", "decoder"):
            for layer in range(layer_count(self.arrays, side)):
                self._take_layer(side, layer)
            self._take_norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
            self._take(
                f"{side}/position_encodings/encodings", f"model.{side}.embed_positions.weight"
            )
        for conv in ("conv1", "conv2"):
            for part in ("weight", "bias"):
                self._take(f"encoder/{conv}/{part}", f"model.encoder.{conv}.{part}")
        self._take("decoder/embeddings/weight", "model.decoder.embed_tokens.weight")

        # The output projection is the embedding.
        projection = self.arrays["decoder/projection/weight"]
        if not np.array_equal(projection, self.arrays["decoder/embeddings/weight"]):
            raise ValueError("its output projection is not its embedding")
        self.used.add("decoder/projection/weight")

        for name, array in self.arrays.items():
            if array.ndim and name not in self.used:
                raise ValueError(f"it holds {name}, which Whisper does not have")
        return self.renamed

    def _take_layer(self, side: str, layer: int) -> None:
        source = f"{side}/layer_{layer}"
        target = f"model.{side}.layers.{layer}"
        for part, (module, stacked) in LINEAR_LAYERS.items():
            if side == "encoder" and part.startswith("attention/"):
                continue
            prefix = f"{target}.{module}" if module else target
            self._take_linear(f"{source}/{part}", prefix, stacked)
        for part, norm in NORMS.items():
            if side == "encoder" and part.startswith("attention/"):
                continue
            self._take_norm(f"{source}/{part}", f"{target}.{norm}")

    def _take_linear(self, source: str, prefix: str, stacked: tuple[str, ...]) -> None:
        """A linear layer whose rows hold those of several."""
        weights = np.split(self._array(f"{source}/weight"), len(stacked))
        biases = np.split(self._array(f"{source}/bias"), len(stacked))
        for name, weight, bias in zip(stacked, weights, biases, strict=True):
            self.renamed[f"{prefix}.{name}.weight"] = np.ascontiguousarray(weight)
            if name != "k_proj":
                self.renamed[f"{prefix}.{name}.bias"] = np.ascontiguousarray(bias)
            elif bias.any():
                raise ValueError(f"{source} has a bias of its keys, which Whisper does not have")

    def _take_norm(self, source: str, target: str) -> None:
        self._take(f"{source}/gamma", f"{target}.weight")
        self._take(f"{source}/beta", f"{target}.bias")

    def _take(self, source: str, target: str) -> None:
        self.renamed[target] = np.ascontiguousarray(self._array(source))

    def _array(self, name: str) -> np.ndarray:
        self.used.add(name)
        return self.arrays[name]


def layer_count(arrays: Mapping[str, np.ndarray], side: str) -> int:
    """The layers of the encoder or the decoder."""
    count = 0
    while f"{side}/layer_{count}/ffn/linear_0/weight" in arrays:
        count += 1
    return count


def _special_tokens(tokenizer: Mapping[str, Any], tensors: Mapping[str, Any]) -> SpecialTokens:
    """Whisper's own tokens, as the tokenizer numbers them.

    Raises `ValueError` for a tokenizer of another vocabulary.
    """
    numbers = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    vocabulary = len(tensors["model.decoder.embed_tokens.weight"])
    start = numbers["<|startoftranscript|>"]
    translate = numbers["<|translate|>"]
    no_timestamps = numbers["<|notimestamps|>"]
    # 1,501 timestamps are the last tokens.
    if no_timestamps + 1 + 1501 != vocabulary:
        raise ValueError(f"its tokenizer.json is not that of its {vocabulary:,} tokens")

    languages = {}
    if vocabulary >= MULTILINGUAL_VOCABULARY:
        for token, number in numbers.items():
            if start < number < translate:
                languages[token] = number
    return SpecialTokens(
        end=numbers["<|endoftext|>"],
        start=start,
        translate=translate,
        transcribe=numbers["<|transcribe|>"],
        previous=numbers["<|startofprev|>"],
        no_timestamps=no_timestamps,
        languages=languages,
    )


def _write_files(
    source: Path,
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    tensors: Mapping[str, np.ndarray],
    tokens: SpecialTokens,
) -> None:
    """Write the JSON files beside the tensors, as OpenAI's checkpoints have them."""
    config = _config(arrays, tensors, tokens)
    ids = {name: config[name] for name in config if name.endswith("_token_id")}
    bands = config["num_mel_bins"]
    files = {
        "config.json": config,
        "generation_config.json": {
            **ids,
            **_generation(read_json(source / "config.json"), tokens),
            "max_length": config["max_target_positions"],
        },
        "preprocessor_config.json": {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "processor_class": "WhisperProcessor",
            "chunk_length": 30,
            "feature_size": bands,
            "hop_length": 160,
            "n_fft": 400,
            "n_samples": 480000,
            "nb_max_frames": 3000,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
            "sampling_rate": 16000,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "WhisperTokenizer",
            "processor_class": "WhisperProcessor",
            "add_prefix_space": False,
            "errors": "replace",
            "model_max_length": 1024,
            "return_attention_mask": False,
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
        },
    }
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(f"{text}\n", encoding="utf-8")


def _config(
    arrays: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray], tokens: SpecialTokens
) -> dict[str, Any]:
    vocabulary, width = tensors["model.decoder.embed_tokens.weight"].shape
    encoder_width = len(tensors["model.encoder.layers.0.fc1.weight"])
    decoder_width = len(tensors["model.decoder.layers.0.fc1.weight"])
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "d_model": width,
        "vocab_size": vocabulary,
        "num_mel_bins": tensors["model.encoder.conv1.weight"].shape[1],
        "encoder_layers": layer_count(arrays, "encoder"),
        "encoder_attention_heads": int(arrays["encoder/num_heads"]),
        "encoder_ffn_dim": encoder_width,
        "decoder_layers": layer_count(arrays, "decoder"),
        "decoder_attention_heads": int(arrays["decoder/num_heads"]),
        "decoder_ffn_dim": decoder_width,
        "max_source_positions": len(tensors["model.encoder.embed_positions.weight"]),
        "max_target_positions": len(tensors["model.decoder.embed_positions.weight"]),
        "activation_function": "gelu",
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "scale_embedding": bool(arrays["decoder/scale_embeddings"]),
        "is_encoder_decoder": True,
        "use_cache": True,
        "dtype": str(tensors["model.encoder.conv1.weight"].dtype),
        "bos_token_id": tokens.end,
        "eos_token_id": tokens.end,
        "pad_token_id": tokens.end,
        "decoder_start_token_id": tokens.start,
    }


def _generation(config: Mapping[str, Any], tokens: SpecialTokens) -> dict[str, Any]:
    """How it transcribes, from CTranslate2's own config.json."""
    generation: dict[str, Any] = {
        "alignment_heads": config.get("alignment_heads"),
        "begin_suppress_tokens": config["suppress_ids_begin"],
        "suppress_tokens": config["suppress_ids"],
        "max_initial_timestamp_index": 50,
        "no_timestamps_token_id": tokens.no_timestamps,
        "prev_sot_token_id": tokens.previous,
        "return_timestamps": False,
        "is_multilingual": bool(tokens.languages),
    }
    if not tokens.languages:
        generation["forced_decoder_ids"] = [[1, tokens.no_timestamps]]
        return generation

    generation["lang_to_id"] = tokens.languages
    generation["task_to_id"] = {"transcribe": tokens.transcribe, "translate": tokens.translate}
    # The language is heard, the task is to transcribe.
    generation["forced_decoder_ids"] = [[1, None], [2, tokens.transcribe]]
    return generation
