"""The commands: thin, and the only place where an error becomes a message."""

import click


@click.group()
def main() -> None:
    """Speech emotion recognition: extract features once, train every fusion model in minutes."""
