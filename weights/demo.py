"""Checkpoints with random weights: real architectures and real tokenizer files, at a size for tests
and the demo.

Features of theirs show that the pipeline works, and nothing about accuracy: config.json marks them
as random.
"""

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ser.disk.write import move_into_place, sync_tree
from ser.errors import WrongUse

from .find import MARK, TABLE

SIZES: dict[str, dict[str, Any]] = {
    name: {**TABLE["small"], **own} for name, own in TABLE["random"].items()
}


def write_random_checkpoint(
    folder: Path, architecture: str, words: Iterable[str] = (), seed: int = 0, **settings: Any
) -> Path:
    """Write one checkpoint with `save_pretrained`, of any architecture of transformers; `settings`
    go to its config.

    Norm weights and biases are random too, so that no test passes on ones and zeros. The same
    arguments give the same bytes.
    """
    import torch
    import transformers

    special = TABLE["special"].get(architecture)
    vocabulary = (
        {token: number for number, token in enumerate(_tokens(special, words))} if special else {}
    )
    size = {"vocab_size": len(vocabulary)} if special else {}
    own = {**SIZES.get(architecture, {}), **size, **settings, MARK: True}
    config = transformers.AutoConfig.for_model(architecture, **own)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModel.from_config(config)
        for module in model.modules():
            norm = isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm)
            if norm and module.weight is not None:
                torch.nn.init.normal_(module.weight, 1.0, 0.2)
            if getattr(module, "bias", None) is not None:
                torch.nn.init.normal_(module.bias, 0.0, 0.2 if norm else 0.05)
    if special:
        tokenizer = getattr(transformers, type(config).__name__.replace("Config", "Tokenizer"))
        processor = tokenizer(vocab=vocabulary, model_max_length=512)
    else:
        processor = transformers.Wav2Vec2FeatureExtractor(
            do_normalize=bool(settings.get("do_normalize", True))
        )
    transformers.utils.logging.disable_progress_bar()
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=folder.absolute().parent, prefix=f".{folder.name}."
    ) as temporary:
        made = Path(temporary) / "made"
        model.save_pretrained(made)
        processor.save_pretrained(made)
        sync_tree(made)
        shutil.rmtree(folder, ignore_errors=True)
        move_into_place(made, folder)
    return folder


def _tokens(special: list[str], words: Iterable[str]) -> list[str]:
    """A WordPiece vocabulary: the special tokens, every letter alone and within a word, and the
    words.
    """
    known = {word.lower() for word in words if word.strip()}
    letters = set("abcdefghijklmnopqrstuvwxyz0123456789'.,?!-;:\"[]()").union(*known)
    pieces = letters | {f"##{letter}" for letter in letters}
    return [*special, *sorted((pieces | known) - set(special))]


def write_demo_checkpoints(directory: Path, words: Sequence[str]) -> dict[str, Path]:
    """Small hubert, mpnet and bert checkpoints with random weights, whose tokenizers know the given
    words.

    Returns feature → folder. Deterministic; a folder that is there is kept. Raises `WrongUse` for a
    file.
    """
    if directory.exists() and not directory.is_dir():
        raise WrongUse(f"{directory} is a file; name a folder for the demo checkpoints")
    folders = {feature: directory / f"{feature}-random" for feature in SIZES}
    for feature, folder in folders.items():
        if not (folder / "model.safetensors").exists():
            write_random_checkpoint(folder, feature, words=words)
    return folders
