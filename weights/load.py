"""Load an encoder from a checkpoint that was found and checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ser.disk.memory import is_out_of_memory
from ser.errors import FREE_MEMORY, WeightsError

from .checkpoint import Checkpoint
from .folder import weight_files

# Their classes in transformers add a pooler, from which no feature comes, unless told not to.
WITH_POOLER = {"bert", "mpnet"}

# What a checkpoint may lack: SpecAugment's mask vector is for training only, and no feature comes
# from a pooler.
NOT_NEEDED = ("masked_spec_embed", "pooler.")


@contextmanager
def loading(fault: str) -> Iterator[None]:
    """Turn any exception into a `WeightsError` that begins with `fault`.

    transformers raises nearly every kind.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise WeightsError(f"{fault}: the memory left is not enough; {FREE_MEMORY}") from error
        lines = str(error).splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise WeightsError(f"{fault}: {reason}") from error


def load_encoder(checkpoint: Checkpoint, kind: str = "AutoModel") -> Any:
    """The encoder as a `torch.nn.Module` in float32 and eval mode, without any head.

    It is built from config.json and given the tensors of the files that were hashed: what else lies
    in the folder, or is named in its config, is not looked for. `kind` is the class of transformers
    that loads it: another one may give a model with its head. Raises `WeightsError` if the
    checkpoint lacks a weight: Hugging Face would fill it in at random.
    """
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    options: dict[str, Any] = {}
    if checkpoint.architecture in WITH_POOLER:
        options["add_pooling_layer"] = False

    with loading(f"{checkpoint.path} cannot be loaded as {checkpoint.architecture}"):
        config = transformers.AutoConfig.from_pretrained(
            checkpoint.path, trust_remote_code=False, local_files_only=True
        )
        model, info = _model_class(kind, config).from_pretrained(
            None,
            config=config,
            state_dict=_read_tensors(checkpoint),
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
        if (checkpoint.path / "generation_config.json").exists() and model.can_generate():
            model.generation_config = transformers.GenerationConfig.from_pretrained(
                checkpoint.path, local_files_only=True
            )
    _check_complete(checkpoint, info)

    # Whisper's encoder alone makes features; its decoder is for transcripts.
    if checkpoint.architecture == "whisper" and kind == "AutoModel":
        model = model.encoder
    return model.eval().requires_grad_(False)


def _model_class(kind: str, config: Any) -> Any:
    """The class of transformers that a model of this config has."""
    import torch
    import transformers

    named = getattr(transformers, kind)
    if not kind.startswith("Auto"):
        return named
    # On this device nothing takes memory.
    with torch.device("meta"):
        return type(named.from_config(config, trust_remote_code=False))


def _read_tensors(checkpoint: Checkpoint) -> dict[str, Any]:
    """Every tensor of the files that the checkpoint's digest covers, by name."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for file in weight_files(checkpoint.path, checkpoint.model):
        tensors.update(load_file(file))
    return tensors


def _check_complete(checkpoint: Checkpoint, info: dict[str, Any]) -> None:
    """Raise `WeightsError` if transformers says that weights are missing or of another shape."""
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(NOT_NEEDED))
    for entry in info.get("mismatched_keys", []):
        missing.append(str(entry[0]))

    if missing:
        raise WeightsError(
            f"{checkpoint.path} lacks {len(missing)} of its encoder's weights, such as {missing[0]}"
        )
