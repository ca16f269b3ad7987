"""The child process of `ser weights convert`: the only place that opens a pickle.

    python -m ser.weights.open_pickle FOLDER SOURCE

writes the tensors of SOURCE to FOLDER as safetensors. `torch.load(weights_only=True)`, which
refuses whatever could run code, opens it.
"""

import sys
from pathlib import Path
from typing import Any

from ser.errors import SerError

# In front of a bundle's name: "torchaudio:HUBERT_BASE".
TORCHAUDIO = "torchaudio:"


def main(folder: Path, source: str) -> None:
    """Write `source` to `folder`, or exit with code 1 and one sentence on standard error."""
    from huggingface_hub import save_torch_state_dict

    try:
        tensors = _read_tensors(source, folder)
    except SerError as fault:
        sys.exit(f"{source}: {fault}")
    except Exception as fault:
        lines = str(fault).splitlines()
        reason = lines[0] if lines else ""
        sys.exit(f"{source}: cannot be read ({type(fault).__name__}: {reason})")

    # Tied tensors share memory, which safetensors does not hold.
    untied = {}
    for name, tensor in tensors.items():
        untied[str(name)] = tensor.detach().contiguous().clone()
    save_torch_state_dict(untied, folder)


def _read_tensors(source: str, folder: Path) -> dict[str, Any]:
    """The tensors of a pickle, or of a bundle of torchaudio, whose config goes to `folder`."""
    if source.startswith(TORCHAUDIO):
        from .torchaudio_hubert import open_bundle

        return open_bundle(source.removeprefix(TORCHAUDIO), folder)
    return _open_pickle(source)


def _open_pickle(path: str) -> dict[str, Any]:
    """The tensors of one pickle. Raises `SerError` if it holds anything else."""
    import pickle

    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as fault:
        raise SerError("refused: it holds more than tensors, and could run code") from fault

    if not isinstance(content, dict):
        raise SerError("it is not a dictionary of tensors")
    for value in content.values():
        if not isinstance(value, torch.Tensor):
            raise SerError("it is not a dictionary of tensors")
    return content


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
