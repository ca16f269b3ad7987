"""Load an encoder from a checkpoint that was found and checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ser.errors import WeightsError

from .checkpoint import Checkpoint

# Their classes in transformers add a pooler, from which no feature comes, unless told not to.
WITH_POOLER = {"bert", "mpnet"}

# What a checkpoint may lack: SpecAugment's mask vector is for training only, and no feature comes
# from a pooler.
NOT_NEEDED = ("masked_spec_embed", "pooler.")


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn any exception into a `WeightsError` that begins with `what`.

    transformers raises nearly every kind.
    """
    try:
        yield
    except Exception as error:
        lines = str(error).splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise WeightsError(f"{what}: {reason}") from error


def load_encoder(checkpoint: Checkpoint, kind: str = "AutoModel") -> Any:
    """The encoder as a `torch.nn.Module` in float32 and eval mode, without any head.

    `kind` is the class of transformers that loads it: another one may give a model with its head.
    Raises `WeightsError` if the checkpoint lacks a weight: Hugging Face would fill it in at random.
    """
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    options: dict[str, Any] = {}
    if checkpoint.architecture in WITH_POOLER:
        options["add_pooling_layer"] = False

    with loading(f"{checkpoint.path} cannot be loaded as {checkpoint.architecture}"):
        model, info = getattr(transformers, kind).from_pretrained(
            checkpoint.path,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    _check_complete(checkpoint, info)

    # Whisper's encoder alone makes features; its decoder is for transcripts.
    if checkpoint.architecture == "whisper" and kind == "AutoModel":
        model = model.encoder
    return model.eval().requires_grad_(False)


def _check_complete(checkpoint: Checkpoint, info: dict[str, Any]) -> None:
    """Raise `WeightsError` if transformers says that weights are missing or of another shape."""
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(NOT_NEEDED))
    for entry in info.get("mismatched_keys", []):
        missing.append(str(entry[0]))

    if missing:
        raise WeightsError(
            f"{checkpoint.path} lacks {len(missing)} of its encoder's weights, such as {missing[0]}"
        )
