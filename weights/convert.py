"""Convert pickled weights to safetensors: the only place that opens a pickle.

`torch.load(weights_only=True)`, which refuses whatever could run code, opens it in a child process
without the environment's tokens. Run as a module, this file is that child.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ser.disk.write import move_into_place, sync_tree
from ser.errors import SerError, WrongUse, unknown

from .find import BESIDE, TABLE, check_config, find_checkpoint, find_folder, load_encoder

TORCHAUDIO = "torchaudio:"  # "torchaudio:HUBERT_BASE"
PICKLE = "pytorch_model.bin"


def convert(source: str, folder: Path) -> Path:
    """Write `source` to `folder` as safetensors with its config, tokenizer and preprocessor files.

    `source` is a folder, a Hugging Face id, or a torchaudio bundle such as
    `torchaudio:HUBERT_BASE`. The folder appears whole or not at all, and has been loaded once.
    Raises `WrongUse` for a source that is not a checkpoint or a folder that is not empty, and
    `SerError` for a pickle that would run code.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WrongUse(f"{folder} exists and is not empty; name a new folder")
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=folder.absolute().parent, prefix=f".{folder.name}."
    ) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        opened = source if source.startswith(TORCHAUDIO) else _copied(source, made)
        command = [sys.executable, "-m", "ser.weights.convert", str(made), opened]
        environment = {
            key: value for key, value in os.environ.items() if key in TABLE["child"]["environment"]
        }
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:  # the child's last line says why, unless it was killed
            lines = done.stderr.strip().splitlines() if done.returncode == 1 else []
            fault = (
                lines[-1]
                if lines
                else f"{opened}: the converting process ended with code {done.returncode}"
            )
            raise SerError(f"{fault}; nothing was written")
        load_encoder(find_checkpoint(made))
        sync_tree(made)
        if not move_into_place(made, folder):
            raise WrongUse(f"{folder}: another process has just made it; name a new folder")
    return folder


def _copied(name: str, made: Path) -> str:
    """The pickle of a folder or a Hugging Face id; its other files are copied. Raises `WrongUse` if
    it has none.
    """
    source = find_folder(name, [PICKLE], "and convert that")
    check_config(source, name)
    if not (source / PICKLE).exists():
        raise WrongUse(f"{name} holds no {PICKLE} to convert; safetensors are used as they are")
    for file in filter(Path.exists, map(source.joinpath, BESIDE)):
        shutil.copyfile(file, made / file.name)
    return str(source / PICKLE)


def _open_pickle(source: str) -> dict[str, Any]:
    """In the child: the tensors of one pickle."""
    import pickle

    import torch

    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as fault:
        raise SerError("refused: it holds more than tensors, and could run code") from fault
    if not isinstance(content, dict) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise SerError("it is not a dictionary of tensors")
    return content


def _open_bundle(name: str, made: Path) -> dict[str, Any]:
    """In the child: a torchaudio bundle's tensors under Hugging Face's names, and config.json
    beside them.
    """
    try:
        import torchaudio
    except (ImportError, OSError) as fault:  # OSError: a torchaudio built for another torch
        kind = type(fault).__name__
        raise SerError(
            f"torchaudio cannot be imported here ({kind}): pip install 'ser-fusion[torchaudio]'"
        ) from fault
    from transformers import Wav2Vec2FeatureExtractor

    bundles = [one for one in dir(torchaudio.pipelines) if one.startswith("HUBERT")]
    if name not in bundles:
        raise unknown("HuBERT bundle of torchaudio", name, bundles)
    bundle = getattr(torchaudio.pipelines, name)
    model = bundle.get_model(dl_kwargs={"weights_only": True})
    (made / "config.json").write_text(json.dumps(torchaudio_config(bundle._params), indent=2))
    Wav2Vec2FeatureExtractor(
        do_normalize=bool(bundle._normalize_waveform),
        return_attention_mask=True,
        sampling_rate=int(bundle.sample_rate),
    ).save_pretrained(made)
    return torchaudio_names(model.state_dict())


def torchaudio_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a `torchaudio.models.Wav2Vec2Model` under the names of
    `transformers.HubertModel`.
    """
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in TABLE["torchaudio"]["tensors"].items():
            name = name.replace(theirs, ours, 1)
        if not name.startswith("aux."):  # the head of an ASR bundle
            renamed[name] = tensor
    return renamed


def torchaudio_config(params: Mapping[str, Any]) -> dict[str, Any]:
    """config.json for the arguments of `torchaudio.models.wav2vec2_model`."""
    convolutions = params["extractor_conv_layer_config"] or TABLE["torchaudio"]["convolutions"]
    dims, kernels, strides = (list(column) for column in zip(*convolutions, strict=True))
    convolution = {"conv_dim": dims, "conv_kernel": kernels, "conv_stride": strides}
    return {
        **TABLE["torchaudio"]["fixed"],
        **{ours: params[theirs] for ours, theirs in TABLE["torchaudio"]["config"].items()},
        **convolution,
        "feat_extract_norm": params["extractor_mode"].removesuffix("_norm"),
        "num_feat_extract_layers": len(dims),
    }


def _main(made: Path, source: str) -> None:
    """In the child: write `source` to `made`, or exit with one sentence on standard error and code
    1.
    """
    from huggingface_hub import save_torch_state_dict

    bundle = source.startswith(TORCHAUDIO)
    try:
        tensors = (
            _open_bundle(source.removeprefix(TORCHAUDIO), made) if bundle else _open_pickle(source)
        )
    except SerError as fault:
        sys.exit(f"{source}: {fault}")
    except Exception as fault:
        sys.exit(
            f"{source}: cannot be read ({type(fault).__name__}: {(str(fault).splitlines() or [''])[0]})"
        )
    # Tied tensors share memory, which safetensors does not hold.
    save_torch_state_dict(
        {str(name): value.detach().contiguous().clone() for name, value in tensors.items()}, made
    )


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2])
