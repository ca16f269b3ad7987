"""`ser …` in this process."""

from click.testing import CliRunner, Result

from ser.cli import main


def ser(*words: object) -> Result:
    """Run one command."""
    return CliRunner().invoke(main, [str(word) for word in words])
