"""The options of a command, declared at the fields of its config.

    @dataclass(frozen=True)
    class TrainOptions:
        seeds: int = option(1, help="How many seeds: 0, 1, … N-1.", metavar="N", maximum=10_000)

The field's name, type and default are those of the option; `Option` holds the words and bounds. The
command line makes one click option of each such field (`commands/options.py`). In Python the config
is an ordinary frozen dataclass. Imports nothing heavy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

KEY = "option"  # of a field's metadata


@dataclass(frozen=True)
class Option:
    """What `--help` says of one option, and the values that it takes."""

    help: str
    # Shown in place of the type, such as FILE.
    metavar: str | None = None
    # The only values that the option takes. A mapping also says what each of them means.
    choices: Sequence[str] | Mapping[str, str] = ()
    # On the command line, where that is not the field's name with - for _.
    name: str | None = None
    # The largest whole number that the option takes.
    maximum: int | None = None


def option(
    default: Any = MISSING,
    *,
    help: str,
    metavar: str | None = None,
    choices: Sequence[str] | Mapping[str, str] = (),
    name: str | None = None,
    maximum: int | None = None,
) -> Any:
    """A field of a dataclass that is an option too. Without a default, it must be given."""
    metadata = {KEY: Option(help, metavar, choices, name, maximum)}
    return field(default=default, metadata=metadata)


def options_of(config: Any) -> dict[str, Option]:
    """The options of a dataclass or of an instance, by the names of their fields, in order."""
    return {entry.name: entry.metadata[KEY] for entry in fields(config) if KEY in entry.metadata}
