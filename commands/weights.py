"""`ser weights`: find and convert encoder checkpoints."""

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
    from ser.weights.find import list_checkpoints

    listed = list_checkpoints()
    rows = [
        [one["model"], one["architecture"], f"{one['bytes'] / 1e6:.0f} MB", one["fault"] or "ok"]
        for one in listed
    ]
    text = (
        table(rows, ["model", "architecture", "size", "state"])
        if rows
        else "Hugging Face's cache holds no model"
    )
    answer(listed if as_json else text)


@weights.command()
@click.argument("source", metavar="SRC")
@click.argument("folder", type=FILE, metavar="DIR")
def convert(source: str, folder: Path) -> None:
    """Write the pickled weights of SRC (a folder, a Hugging Face id, or torchaudio:HUBERT_BASE) to
    DIR as safetensors.

    The pickle is opened in a child process, and only its tensors are taken.

    \b
    Example: ser weights convert /downloads/hubert-base-ls960 /models/hubert-base-ls960
    """
    from ser.weights.convert import convert as convert_weights

    answer(f"wrote {convert_weights(source, folder)}")
