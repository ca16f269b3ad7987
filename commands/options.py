"""The commands' options: those that several share, and those that the fields of a configuration
declare.

Defaults of one's own stand in `ser.toml`, or in `[tool.ser]` of `pyproject.toml`, in the working
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

FILE = click.Path(path_type=Path)
COUNT = click.IntRange(1)
BACKENDS = click.Choice(["zarr", "hdf5"])
# Options that the top of the file may set for every command that has them: where things are and
# what computes them. The others describe an experiment, and are set under their command, so that
# they change no recipe.
ANYWHERE = ("store", "corpus", "out", "device")
EXAMPLE = 'store = "/data/features"'

store_option = click.option("--store", type=FILE, default=Path("features"), show_default=True)
corpus_option = click.option("--corpus", metavar="N", help="The store's only corpus by default.")
open_option = click.option("--open", "open_", is_flag=True, help="Open the page in the browser.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")


def config_options(config: Any, *names: str, defaults: bool = True) -> Callable[[Any], Any]:
    """One option for each field of a dataclass that its `TEXTS` describe, or for the fields
    `names`.

    Without `defaults` an option that is not given is None, (), or False.
    """
    chosen = [field for field in fields(config) if field.name in (names or config.TEXTS)]

    def decorate(command: Any) -> Any:
        for field in reversed(chosen):
            command = _option(field, config.TEXTS[field.name], defaults)(command)
        return command

    return decorate


def _option(field: Field[Any], facts: Mapping[str, Any], defaults: bool) -> Callable[[Any], Any]:
    name = f"--{facts.get('name') or field.name.replace('_', '-')}"
    if field.type is bool:
        return click.option(name, is_flag=True, help=facts["help"])
    default = (
        field.default
        if field.default == () or (defaults and field.default is not MISSING)
        else None
    )
    types = {kind for kind in get_args(field.type) if kind is not NoneType} or {field.type}
    choices, metavar = facts.get("choices"), facts.get("metavar")
    kind: Any = (
        FILE if types == {Path} else float if float in types else COUNT if types == {int} else str
    )
    if choices and not metavar:
        kind = click.Choice(choices)
    shown: dict[str, Any] = {
        "metavar": metavar,
        "help": facts["help"],
        "show_default": bool(default),
    }
    return click.option(
        name, field.name, type=kind, multiple=default == (), default=default, **shown
    )


def read_defaults(ser: click.Group, path: Path) -> dict[str, Any]:
    """The file's defaults by command and parameter, as click's `default_map`.

    Raises `WrongUse` for a file that is not TOML, an unknown command or option, or a value of
    another type.
    """
    table: Any = read_toml(path, EXAMPLE)
    for key in ("tool", "ser") if path.name == "pyproject.toml" else ():
        table = table.get(key, {})
        if not isinstance(table, dict):
            raise WrongUse(
                f"{path}: {key} must be a table; write lines such as `{EXAMPLE}` under [tool.ser]"
            )
    common = {
        key: value
        for key, value in table.items()
        if key in ANYWHERE and not isinstance(value, dict)
    }
    return _defaults(ser, common, {key: table[key] for key in table.keys() - common.keys()}, path)


def _defaults(
    group: click.Group, common: Mapping[str, Any], tables: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    for name in sorted(tables.keys() - group.commands.keys()):
        raise unknown(
            f"command in {path} (options stand under theirs, such as [train])", name, group.commands
        )
    defaults: dict[str, Any] = {}
    for name, command in group.commands.items():
        own = tables.get(name, {})
        if not isinstance(own, dict):
            raise WrongUse(f"{path}: {name} must be a table of its options")
        if isinstance(command, click.Group):
            defaults[name] = _defaults(command, common, own, path)
            continue
        options = {
            option.opts[-1].lstrip("-"): option
            for option in command.params
            if isinstance(option, click.Option)
        }
        for key in sorted(own.keys() - options.keys()):
            raise unknown(f"option in [{name}] of {path}", key, options)
        values = {key: value for key, value in {**common, **own}.items() if key in options}
        defaults[name] = {
            options[key].name: _checked(options[key], values[key], f"{path}: {key}")
            for key in values
        }
    return defaults


def _checked(option: click.Option, value: Any, where: str) -> Any:
    """The value as the command line would give it: text, a flag, or a list of text where an option
    is repeatable.
    """
    values = value if isinstance(value, list) else [value]
    listed = isinstance(value, list) == option.multiple
    if not listed or any(
        isinstance(one, bool) != option.is_flag or isinstance(one, dict | list) for one in values
    ):
        kind = (
            "a list"
            if option.multiple
            else "true or false"
            if option.is_flag
            else "a text or a number"
        )
        raise WrongUse(f"{where} must be {kind}")
    return value if option.is_flag else [*map(str, value)] if option.multiple else str(value)
