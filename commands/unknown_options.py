"""What to say of an option that `ser train` and `ser sweep` do not have, and a model does."""

from dataclasses import fields
from typing import Any

import click


class CommandWithSettings(click.Command):
    """A command whose `--set` takes what users look for as an option: `--lr 1e-3`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words of the command line; click empties the list."""
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            setting = setting_of(error.option_name)
            if setting is None:
                raise
            value = _value_of(error.option_name, words)
            raise click.UsageError(
                f"No such option: {error.option_name}; {setting} is a setting: "
                f"--set {setting}={value}",
                ctx,
            ) from None


def setting_of(option: str) -> str | None:
    """The setting that an option such as --batch-size is called by; None where no fusion has it."""
    from ser.train.models import FUSIONS
    from ser.train.settings import TrainingSettings

    name = option.lstrip("-").replace("-", "_")
    records: list[Any] = [TrainingSettings]
    records += [fusion.settings for fusion in FUSIONS.values()]
    for record in records:
        if any(field.name == name for field in fields(record)):
            return name
    return None


def _value_of(option: str, words: list[str]) -> str:
    """What stands behind an option, after = or a blank."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
        if word == option and following and not following.startswith("--"):
            return following
    return "VALUE"
