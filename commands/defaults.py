"""Defaults of one's own for the options: `ser.toml`, or `[tool.ser]` of `pyproject.toml`, in the working folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ser.cache.atomic_io import read_toml
from ser.errors import WrongUse, unknown

# What the top of the file may hold, for every command that has it: where things lie and what computes them. The rest
# describes an experiment, and stands under its command, so that no recipe is changed by it.
ANYWHERE = ("store", "corpus", "out", "device")
EXAMPLE = 'store = "/data/features"'


def read_defaults(ser: click.Group, path: Path) -> dict[str, Any]:
    """The file's defaults by command and parameter, as click's `default_map`.

    Raises `WrongUse` for a file that is not TOML, an unknown command or option, or a value of another type.
    """
    table: Any = read_toml(path, EXAMPLE)
    for key in ("tool", "ser") if path.name == "pyproject.toml" else ():
        if not isinstance(table := table.get(key, {}), dict):
            raise WrongUse(f"{path}: {key} must be a table; write lines such as `{EXAMPLE}` under [tool.ser]")
    common = {key: value for key, value in table.items() if key in ANYWHERE and not isinstance(value, dict)}
    return _of_group(ser, common, {key: table[key] for key in table.keys() - common.keys()}, path)


def _of_group(group: click.Group, common: Mapping[str, Any], tables: Mapping[str, Any], path: Path) -> dict[str, Any]:
    if strange := tables.keys() - group.commands.keys():
        kind = f"command in {path} (options stand under theirs, such as [train])"
        raise unknown(kind, min(strange), group.commands)
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        if not isinstance(own := tables.get(name, {}), dict):
            raise WrongUse(f"{path}: {name} must be a table of its options")
        if isinstance(command, click.Group):
            found[name] = _of_group(command, common, own, path)
            continue
        options = {one.opts[-1].lstrip("-"): one for one in command.params if isinstance(one, click.Option)}
        if strange := own.keys() - options.keys():
            raise unknown(f"option in [{name}] of {path}", min(strange), options)
        found[name] = {
            options[key].name: _checked(options[key], value, f"{path}: {key}")
            for key, value in {**common, **own}.items()
            if key in options
        }
    return found


def _checked(option: click.Option, value: Any, where: str) -> Any:
    """The value as the command line would give it: text, a flag, or a list of text where an option is repeatable."""
    values = value if isinstance(value, list) else [value]
    listed = isinstance(value, list) == option.multiple
    if not listed or any(isinstance(one, bool) != option.is_flag or isinstance(one, dict | list) for one in values):
        kind = "a list" if option.multiple else "true or false" if option.is_flag else "a text or a number"
        raise WrongUse(f"{where} must be {kind}")
    return value if option.is_flag else [*map(str, value)] if option.multiple else str(value)
