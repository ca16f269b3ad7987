"""A checkpoint as a module of torch."""

from typing import Any

from .files import NoWeights
from .find import Checkpoint


def load_encoder(checkpoint: Checkpoint) -> Any:
    """The encoder as a `torch.nn.Module` in float32 and eval mode, without any head.

    Raises `NoWeights` if the checkpoint lacks a weight: Hugging Face would fill it in at random.
    """
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    extra = {"add_pooling_layer": False} if checkpoint.architecture in {"bert", "mpnet"} else {}
    try:
        model, info = transformers.AutoModel.from_pretrained(
            checkpoint.path,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **extra,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as fault:
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise NoWeights(f"{checkpoint.path} cannot be loaded as {checkpoint.architecture}: {reason}") from fault
    # SpecAugment's mask vector serves training alone.
    lacking = sorted(set(info["missing_keys"]) - {"masked_spec_embed"})
    lacking += [str(entry[0]) for entry in info.get("mismatched_keys", [])]
    if lacking:
        raise NoWeights(f"{checkpoint.path} lacks {len(lacking)} of its encoder's weights, such as {lacking[0]}")
    return model.eval().requires_grad_(False)
