"""`ser weights`: find and convert encoder checkpoints."""

from dataclasses import asdict
from pathlib import Path

import click

from .options import FILE, json_option
from .output import answer, table


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
    """The checkpoints in Hugging Face's cache, and what keeps ser from using them.

    Example: ser weights list
    """
    from ser.weights.hub_cache import list_checkpoints

    checkpoints = list_checkpoints()
    if as_json:
        answer([asdict(checkpoint) for checkpoint in checkpoints])
        return
    if not checkpoints:
        answer("Hugging Face's cache holds no model")
        return

    rows = []
    for checkpoint in checkpoints:
        size = f"{checkpoint.bytes / 1e6:.0f} MB"
        state = checkpoint.fault or "ok"
        rows.append([checkpoint.model, checkpoint.architecture, size, state])
    answer(table(rows, ["model", "architecture", "size", "state"]))


@weights.command()
@click.argument("source", metavar="SRC")
@click.argument("folder", type=FILE, metavar="DIR")
def convert(source: str, folder: Path) -> None:
    """Write the weights of SRC (a folder, a Hugging Face id, or torchaudio:HUBERT_BASE) to DIR as
    safetensors.

    SRC holds a pickle, which is opened in a child process and of which only tensors are taken, or
    a Whisper model of CTranslate2, as faster-whisper takes it.

    \b
    Examples:
      ser weights convert /downloads/hubert-base-ls960 /models/hubert-base-ls960
      ser weights convert /downloads/faster-whisper-base /models/whisper-base
    """
    from ser.weights.convert import convert as convert_weights

    answer(f"wrote {convert_weights(source, folder)}")
