"""`ser weights`: find and convert encoder checkpoints."""

from pathlib import Path

import click


@click.group()
def weights() -> None:
    """Find encoder checkpoints on this machine, convert one to safetensors, or write small random ones."""


@weights.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
def demo(folder: Path) -> None:
    """Write small HuBERT, MPNet and BERT checkpoints with RANDOM weights to DIR, to try the pipeline without a network.

    \b
    Example: ser weights demo demo/checkpoints
    """
    from ser.weights import write_demo_checkpoints

    for name, path in write_demo_checkpoints(folder).items():
        click.echo(f"{name}: {path} (random weights: shows that the pipeline works, no more)")
