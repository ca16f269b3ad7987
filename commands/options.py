"""The options of the commands: those that several share, and those that a config declares.

A user's defaults stand in `ser.toml`, or in `[tool.ser]` of `pyproject.toml`, in the working
folder.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import click

from ser.disk.read import read_toml
from ser.errors import WrongUse, unknown
from ser.options import Option, options_of

FILE = click.Path(path_type=Path)
COUNT = click.IntRange(1)
BACKENDS = click.Choice(["zarr", "hdf5"])

# Options that the top of the file may set for every command that has them: where things are and
# what computes them. The others describe an experiment, and are set under their command, so that
# they change no recipe.
ANYWHERE = ("store", "corpus", "out", "device")

# Options that the file may never set, since a working folder may come from somebody else: whom to
# trust, what to publish, and what to remove or replace without a question.
COMMAND_LINE_ONLY = ("insecure", "repair", "replace", "scheduler", "with-text", "yes")

EXAMPLE = 'store = "/data/features"'

store_option = click.option("--store", type=FILE, default=Path("features"), show_default=True)
corpus_option = click.option("--corpus", metavar="N", help="The store's only corpus by default.")
open_option = click.option("--open", "open_", is_flag=True, help="Open the page in the browser.")
decimal_option = click.option(
    "--decimal",
    type=click.Choice([".", ","]),
    default=".",
    help="Mark in the numbers of the CSV; with a comma ; parts its cells, as Excel reads it.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")


def config_options(config: Any, *names: str, defaults: bool = True) -> Callable[[Any], Any]:
    """Decorate a command with the options of a config: all of them, or those of the fields `names`.

    Without `defaults` an option that is not given is None, (), or False.
    """
    options = options_of(config)
    chosen = [field for field in fields(config) if field.name in (names or options)]

    def decorate(command: Any) -> Any:
        # click lists the options of a command from the last decorator to the first.
        for field in reversed(chosen):
            add_option = _click_option(field, options[field.name], defaults)
            command = add_option(command)
        return command

    return decorate


def _click_option(field: Field[Any], option: Option, defaults: bool) -> Callable[[Any], Any]:
    """The click option of one field, as its type says: a flag, a path, a number or a text.

    A field whose default is `()` is an option that may be repeated.
    """
    name = f"--{option.name or field.name.replace('_', '-')}"
    if field.type is bool:
        return click.option(name, field.name, is_flag=True, help=option.help)

    repeatable = field.default == ()
    default = None
    if repeatable or (defaults and field.default is not MISSING):
        default = field.default

    return click.option(
        name,
        field.name,
        type=_click_type(field.type, option),
        multiple=repeatable,
        default=default,
        metavar=option.metavar,
        help=option.help,
        show_default=bool(default),
    )


def _click_type(annotation: Any, option: Option) -> Any:
    """The type that click converts the text of an option to."""
    # An option with a metavar shows that instead of its choices, and is checked by its command.
    if option.choices and not option.metavar:
        return click.Choice(list(option.choices))

    alternatives = set(get_args(annotation)) - {NoneType}
    types = alternatives or {annotation}

    if types == {Path}:
        return FILE
    if float in types:
        return float
    if types == {int}:
        return COUNT
    return str


def read_defaults(ser: click.Group, path: Path) -> dict[str, Any]:
    """The file's defaults by command and parameter, as click's `default_map`.

    Raises `WrongUse` for a file that is not TOML, an unknown command or option, or a value of
    another type.
    """
    table: Any = read_toml(path, EXAMPLE)
    if path.name == "pyproject.toml":
        for key in ("tool", "ser"):
            table = table.get(key, {})
            if not isinstance(table, dict):
                raise WrongUse(
                    f"{path}: {key} must be a table; "
                    f"write lines such as `{EXAMPLE}` under [tool.ser]"
                )

    common = {}
    by_command = {}
    for key, value in table.items():
        if key in ANYWHERE and not isinstance(value, dict):
            common[key] = value
        else:
            by_command[key] = value

    return _group_defaults(ser, common, by_command, path)


def _group_defaults(
    group: click.Group, common: Mapping[str, Any], tables: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """The defaults of each command of a group: its own table, and what is `common` to all."""
    for name in sorted(tables.keys() - group.commands.keys()):
        kind = f"command in {path} (options stand under theirs, such as [train])"
        raise unknown(kind, name, group.commands)

    defaults: dict[str, Any] = {}
    for name, command in group.commands.items():
        table = tables.get(name, {})
        if not isinstance(table, dict):
            raise WrongUse(f"{path}: {name} must be a table of its options")

        if isinstance(command, click.Group):
            defaults[name] = _group_defaults(command, common, table, path)
        else:
            defaults[name] = _command_defaults(command, common, table, f"[{name}] of {path}", path)
    return defaults


def _command_defaults(
    command: click.Command,
    common: Mapping[str, Any],
    table: Mapping[str, Any],
    table_name: str,
    path: Path,
) -> dict[str, Any]:
    """The defaults of one command, by parameter. Its own table wins over what is `common`."""
    options = {}
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            options[parameter.opts[-1].lstrip("-")] = parameter

    for key in sorted(table.keys() - options.keys()):
        raise unknown(f"option in {table_name}", key, options)

    defaults: dict[str, Any] = {}
    for key, value in {**common, **table}.items():
        if key in options:
            option = options[key]
            _check_may_be_set(key, value, path)
            defaults[option.name] = _as_given(option, value, f"{path}: {key}")
    return defaults


def _check_may_be_set(key: str, value: Any, path: Path) -> None:
    """Raise `WrongUse` for an option that would widen trust: it is taken from the command line."""
    values = value if isinstance(value, list) else [value]
    is_url = any("://" in text for text in values if isinstance(text, str))

    if key in COMMAND_LINE_ONLY or is_url:
        name = f"{key} on a URL" if is_url and key not in COMMAND_LINE_ONLY else key
        raise WrongUse(
            f"{path}: {name} is taken from the command line alone, since a file in the working "
            f"folder may be somebody else's; remove it there, and say --{key}"
        )


def sets_any(defaults: Mapping[str, Any]) -> bool:
    """Whether a table of defaults, or one below it, sets an option."""
    tables = [value for value in defaults.values() if isinstance(value, dict)]
    return len(tables) < len(defaults) or any(sets_any(table) for table in tables)


def _as_given(option: click.Option, value: Any, place: str) -> Any:
    """The value as the command line would give it.

    That is a text, a flag, or a list of texts where an option is repeatable. Raises `WrongUse` for
    a value of another type.
    """
    if not _fits(option, value):
        raise WrongUse(f"{place} must be {_kind(option)}")

    if option.is_flag:
        return value
    if option.multiple:
        return [str(text) for text in value]
    return str(value)


def _fits(option: click.Option, value: Any) -> bool:
    """Whether a value of TOML is of the option's type."""
    if isinstance(value, list) != option.multiple:
        return False

    values = value if option.multiple else [value]
    for single in values:
        if isinstance(single, dict | list):
            return False
        if isinstance(single, bool) != option.is_flag:
            return False
    return True


def _kind(option: click.Option) -> str:
    """What a value of this option must be, in words."""
    if option.multiple:
        return "a list"
    if option.is_flag:
        return "true or false"
    return "a text or a number"
