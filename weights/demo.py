"""Checkpoints with random weights: real architectures and real tokenizer files, at a size for tests and the demo.

What comes from them shows that the pipeline works, and says nothing about accuracy: config.json carries the mark.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ser.cache.atomic_io import move_into_place, sync_tree
from ser.errors import WrongUse

from .find import MARK, TABLE

SPECIAL: dict[str, list[str]] = TABLE["special"]
# architecture → (class prefix, settings)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    name: (prefix, {**TABLE["random"]["small"], **TABLE["random"][name]})
    for name, prefix in {"hubert": "Hubert", "bert": "Bert", "mpnet": "MPNet"}.items()
}


def write_random_checkpoint(
    folder: Path, architecture: str, words: Iterable[str] = (), seed: int = 0, **settings: Any
) -> Path:
    """Write one checkpoint with `save_pretrained`; `settings` go to its config.

    Norm weights and biases are random too, so that no test passes on ones and zeros. The same arguments give the
    same bytes. The architecture is one of `ARCHITECTURES`.
    """
    import torch
    import transformers

    prefix, small = ARCHITECTURES[architecture]
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    tokens = _tokens(SPECIAL[prefix], words) if prefix in SPECIAL else []
    size = {"vocab_size": len(tokens)} if tokens else {}
    config = getattr(transformers, f"{prefix}Config")(**{**small, **size, **settings, MARK: True})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{prefix}Model")(config)
        for module in model.modules():
            norm = isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm)
            if norm and module.weight is not None:
                torch.nn.init.normal_(module.weight, 1.0, 0.2)
            if getattr(module, "bias", None) is not None:
                torch.nn.init.normal_(module.bias, 0.0, 0.2 if norm else 0.05)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(temporary)
    if tokens:
        vocabulary = {token: number for number, token in enumerate(tokens)}
        beside = getattr(transformers, f"{prefix}Tokenizer")(vocab=vocabulary, model_max_length=512)
    else:
        beside = transformers.Wav2Vec2FeatureExtractor(do_normalize=bool(settings.get("do_normalize", True)))
    beside.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    sync_tree(temporary)
    move_into_place(temporary, folder)
    return folder


def _tokens(special: list[str], words: Iterable[str]) -> list[str]:
    """A WordPiece vocabulary: the special tokens, every letter alone and within a word, and the words."""
    known = {word.lower() for word in words if word.strip()}
    letters = set("abcdefghijklmnopqrstuvwxyz0123456789'.,?!-;:\"[]()").union(*known)
    pieces = letters | {f"##{letter}" for letter in letters}
    return [*special, *sorted((pieces | known) - set(special))]


def write_demo_checkpoints(directory: Path, words: Iterable[str]) -> dict[str, Path]:
    """Small hubert, mpnet and bert checkpoints with random weights, whose tokenizers know the given words.

    Returns feature → folder. Deterministic; a folder that is there is kept. Raises `WrongUse` for a file.
    """
    if directory.exists() and not directory.is_dir():
        raise WrongUse(f"{directory} is a file; name a folder for the demo checkpoints")
    words = list(words)
    folders = {feature: directory / f"{feature}-random" for feature in ARCHITECTURES}
    for feature, folder in folders.items():
        if not (folder / "model.safetensors").exists():
            write_random_checkpoint(folder, feature, words=words)
    return folders
