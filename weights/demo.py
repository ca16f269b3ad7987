"""Checkpoints with random weights: real architectures and tokenizer files, at a size for tests.

The demo uses them too. Features of theirs show that the pipeline works, and nothing about accuracy:
config.json marks them as random.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ser.disk.faults import explain_disk_errors
from ser.disk.workspace import workspace_beside
from ser.disk.write import move_into_place, sync_tree
from ser.errors import WrongUse

from .checkpoint import RANDOM_MARK

# Of every architecture of the demo.
SHARED_SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}

# The demo's checkpoints: entries of config.json, by architecture. HuBERT's strides and kernels are
# the real ones: 20 ms frames from 25 ms of samples.
SIZES: dict[str, dict[str, Any]] = {
    "hubert": {
        **SHARED_SIZES,
        "conv_dim": [32, 32, 32, 32, 32, 32, 32],
        "num_conv_pos_embeddings": 32,
        "num_conv_pos_embedding_groups": 4,
    },
    "bert": SHARED_SIZES,
    "mpnet": {**SHARED_SIZES, "max_position_embeddings": 514},
}

# The special tokens of the text encoders that get a tokenizer, in the order of their numbers.
SPECIAL_TOKENS = {
    "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    # The model takes <pad> to be 1.
    "mpnet": ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"],
}

# What `save_pretrained` writes: the weights in one file, and a tokenizer or a preprocessor.
WRITTEN = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789'.,?!-;:\"[]()"


def write_demo_checkpoints(directory: Path, words: Sequence[str]) -> dict[str, Path]:
    """Small hubert, mpnet and bert checkpoints with random weights; returns feature → folder.

    Their tokenizers know the given words. Deterministic; a folder that is there is kept. Raises
    `WrongUse` for a file.
    """
    if directory.exists() and not directory.is_dir():
        raise WrongUse(f"{directory} is a file; name a folder for the demo checkpoints")

    folders = {feature: directory / f"{feature}-random" for feature in SIZES}
    for folder in folders.values():
        _check_replaceable(folder)
    for feature, folder in folders.items():
        if not (folder / "model.safetensors").exists():
            write_random_checkpoint(folder, feature, words=words)
    return folders


def write_random_checkpoint(
    folder: Path, architecture: str, words: Iterable[str] = (), seed: int = 0, **settings: Any
) -> Path:
    """Write one checkpoint with `save_pretrained`, of any architecture of transformers.

    `settings` go to its config. The same arguments give the same bytes. A random checkpoint that is
    there is replaced. Raises `WrongUse` if the folder holds anything else.
    """
    import torch
    import transformers

    _check_replaceable(folder)

    entries = dict(SIZES.get(architecture, {}))
    vocabulary: dict[str, int] = {}
    if architecture in SPECIAL_TOKENS:
        tokens = _wordpieces(SPECIAL_TOKENS[architecture], words)
        vocabulary = {token: number for number, token in enumerate(tokens)}
        entries["vocab_size"] = len(vocabulary)
    entries.update(settings)
    entries[RANDOM_MARK] = True
    config = transformers.AutoConfig.for_model(architecture, **entries)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModel.from_config(config)
        randomise_norms_and_biases(model)

    processor: Any
    if vocabulary:
        name = type(config).__name__.replace("Config", "Tokenizer")
        processor = getattr(transformers, name)(vocab=vocabulary, model_max_length=512)
    else:
        processor = transformers.Wav2Vec2FeatureExtractor(
            do_normalize=bool(settings.get("do_normalize", True))
        )

    transformers.utils.logging.disable_progress_bar()
    parent = folder.absolute().parent
    with explain_disk_errors(f"writing {folder.name}", parent):
        parent.mkdir(parents=True, exist_ok=True)
        with workspace_beside(folder) as temporary:
            written = temporary / "made"
            model.save_pretrained(written)
            processor.save_pretrained(written)
            sync_tree(written)
            if folder.exists():
                folder.rename(temporary / "before")
            move_into_place(written, folder)
    return folder


def _check_replaceable(folder: Path) -> None:
    """Raise `WrongUse` for a folder that holds what ser has not written there.

    A random checkpoint says so in its config, and has none but known files.
    """
    if not os.path.lexists(folder):
        return

    strange = []
    if folder.is_dir() and not folder.is_symlink():
        strange = [entry.name for entry in folder.iterdir() if entry.name not in WRITTEN]
        if not any(folder.iterdir()) or (not strange and _is_random(folder)):
            return

    reason = f" ({', '.join(sorted(strange)[:3])})" if strange else ""
    raise WrongUse(
        f"{folder}: is there already and holds what ser did not write{reason}; name another folder"
    )


def _is_random(folder: Path) -> bool:
    """Whether its config marks a checkpoint as one of random weights."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get(RANDOM_MARK) is True


def randomise_norms_and_biases(model: Any) -> None:
    """Draw the norms' weights and all biases, so that no test passes on ones and zeros."""
    import torch

    for module in model.modules():
        is_norm = isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm)
        if is_norm and module.weight is not None:
            torch.nn.init.normal_(module.weight, 1.0, 0.2)
        if getattr(module, "bias", None) is not None:
            torch.nn.init.normal_(module.bias, 0.0, 0.2 if is_norm else 0.05)


def _wordpieces(special: list[str], words: Iterable[str]) -> list[str]:
    """A WordPiece vocabulary: special tokens, every letter alone and within a word, the words."""
    known = {word.lower() for word in words if word.strip()}
    letters = set(CHARACTERS).union(*known)
    within = {f"##{letter}" for letter in letters}
    return [*special, *sorted((letters | within | known) - set(special))]
