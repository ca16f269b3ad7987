"""`ser …` in this process."""

from click.testing import CliRunner, Result

from ser.cli import main


def ser(*words: object) -> Result:
    """Run one command."""
    return CliRunner().invoke(main, [str(word) for word in words])


def printed(*words: object) -> str:
    """What a command that works prints."""
    done = ser(*words)
    assert done.exit_code == 0, (done.output, done.exception)
    return str(done.stdout)
