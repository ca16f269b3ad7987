"""`ser weights`: find and convert encoder checkpoints."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import FILE, json_option
from .output import answer, stage_bars, table

if TYPE_CHECKING:
    from ser.weights.hub_cache import CachedModel


@click.group()
def weights() -> None:
    """Find encoder checkpoints on this machine, convert one to safetensors, or write small random
    ones.
    """


@weights.command()
@click.argument("folder", type=FILE, metavar="DIR")
def demo(folder: Path) -> None:
    """Write small HuBERT, MPNet and BERT checkpoints with RANDOM weights to DIR, to try the
    pipeline without a network.

    Example: ser weights demo demo/checkpoints
    """
    from ser.extract.corpora.demo import demo_vocabulary
    from ser.weights.demo import write_demo_checkpoints

    for name, path in write_demo_checkpoints(folder, demo_vocabulary()).items():
        answer(f"{name}: {path} (random weights: shows that the pipeline works, no more)")


@weights.command("list")
@json_option
def list_(as_json: bool) -> None:
    """The checkpoints in Hugging Face's cache and those that ser has converted (in the folder that
    SER_CACHE names, by default ~/.cache/ser), and what keeps ser from using them.

    Example: ser weights list
    """
    from ser.weights.hub_cache import list_checkpoints

    checkpoints = list_checkpoints()
    if as_json:
        answer([asdict(checkpoint) for checkpoint in checkpoints])
        return
    if not checkpoints:
        answer("no model is in Hugging Face's cache, and none has been converted")
        return

    rows = []
    for checkpoint in checkpoints:
        size = f"{checkpoint.bytes / 1e6:.0f} MB"
        rows.append([checkpoint.model, checkpoint.architecture, size, _state(checkpoint)])
    answer(table(rows, ["model", "architecture", "size", "state"]))


def _state(checkpoint: "CachedModel") -> str:
    """Whether ser can use a checkpoint, and how."""
    if checkpoint.fault is not None:
        return checkpoint.fault
    if checkpoint.is_pickle:
        return "a pickle: converted when it is first used"
    if checkpoint.is_converted:
        return f"ok, converted: {checkpoint.path}"
    return "ok"


@weights.command()
@click.argument("source", metavar="SRC")
@click.argument("folder", type=FILE, metavar="DIR")
def convert(source: str, folder: Path) -> None:
    """Write the weights of SRC (a folder, a Hugging Face id, or torchaudio:HUBERT_BASE) to DIR as
    safetensors.

    SRC holds a pickle, which is opened in a child process and of which only tensors are taken, or
    a Whisper model of CTranslate2, as faster-whisper takes it. `ser features` converts by itself,
    once, what a repository publishes as a pickle alone.

    \b
    Examples:
      ser weights convert /downloads/hubert-base-ls960 /models/hubert-base-ls960
      ser weights convert /downloads/faster-whisper-base /models/whisper-base
    """
    from ser.weights.convert import convert as convert_weights

    with stage_bars("B", unit_scale=True) as update:
        converted = convert_weights(source, folder, update)
    answer(f"wrote {converted}")
