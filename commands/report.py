"""`ser report`: runs as tables and as a page."""

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
def report(runs: tuple[Path, ...]) -> None:
    """Tables of RUNS (run folders, or folders of them), one line per configuration.

    \b
    Example: ser report runs
    """
