"""The commands' options: those that several share, and those that the fields of a configuration declare."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import click

FILE = click.Path(path_type=Path)
COUNT = click.IntRange(1)
BACKENDS = click.Choice(["zarr", "hdf5"])

store_option = click.option("--store", type=FILE, default=Path("features"), show_default=True)
corpus_option = click.option("--corpus", metavar="N", help="The store's only corpus by default.")
open_option = click.option("--open", "open_", is_flag=True, help="Open the page in the browser.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")


def config_options(config: Any, *names: str, defaults: bool = True) -> Callable[[Any], Any]:
    """One option for each field of a dataclass that its `TEXTS` tell of, or for those of these names.

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
    default = field.default if field.default == () or (defaults and field.default is not MISSING) else None
    kinds = {kind for kind in get_args(field.type) if kind is not NoneType} or {field.type}
    choices, metavar = facts.get("choices"), facts.get("metavar")
    kind: Any = FILE if kinds == {Path} else float if float in kinds else COUNT if kinds == {int} else str
    kind = click.Choice(choices) if choices and not metavar else kind
    shown: dict[str, Any] = {"metavar": metavar, "help": facts["help"], "show_default": bool(default)}
    return click.option(name, field.name, type=kind, multiple=default == (), default=default, **shown)
