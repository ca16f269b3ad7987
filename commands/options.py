"""The commands' options: those that several share, and those that the fields of a configuration declare."""

from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from types import NoneType
from typing import Any, get_args

import click
from click.shell_completion import CompletionItem

FILE = click.Path(path_type=Path)
COUNT = click.IntRange(1)
BACKENDS = click.Choice(["zarr", "hdf5"])
# Options whose values a shell completes: the table that has them, and what stands in none.
NAMED = {
    "fusion": ("ser.train.models:FUSIONS", "audio", "text"),
    "labels": ("ser.cache.manifest:LABEL_POLICIES", "all"),
    "protocol": ("ser.train.data.splits:PROTOCOLS",),
}

store_option = click.option("--store", type=FILE, default=Path("features"), show_default=True)
corpus_option = click.option("--corpus", metavar="N", help="The store's only corpus by default.")
open_option = click.option("--open", "open_", is_flag=True, help="Open the page in the browser.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")


def config_options(config: type, *names: str, defaults: bool = True) -> Callable[[Any], Any]:
    """One option for each field of a dataclass whose metadata has a help text, or for those of these names.

    Without `defaults` an option that is not given is None, (), or False.
    """
    chosen = [field for field in fields(config) if (field.name in names if names else field.metadata)]

    def decorate(command: Any) -> Any:
        for field in reversed(chosen):
            command = _option(field, defaults)(command)
        return command

    return decorate


def _option(field: Field[Any], defaults: bool) -> Callable[[Any], Any]:
    facts = field.metadata
    name = f"--{facts.get('name') or field.name.replace('_', '-')}"
    if field.type is bool:
        return click.option(name, is_flag=True, help=facts["help"])
    default = field.default if field.default == () or (defaults and field.default is not MISSING) else None
    kinds = {kind for kind in get_args(field.type) if kind is not NoneType} or {field.type}
    choices, metavar = facts.get("choices"), facts.get("metavar")
    path = str if field.name == "store" and str in kinds else FILE  # it may be a URL
    kind: Any = path if Path in kinds else float if float in kinds else COUNT if kinds == {int} else str
    kind = click.Choice(choices) if choices and not metavar else kind
    shown: dict[str, Any] = {"metavar": metavar, "help": facts["help"], "show_default": bool(default)}
    completed = partial(_completed, choices or ()) if kind is str or choices else None
    return click.option(
        name, field.name, type=kind, multiple=default == (), default=default, shell_complete=completed, **shown
    )


def _completed(choices: Sequence[str], ctx: click.Context, option: click.Parameter, begun: str) -> list[CompletionItem]:
    """The values that a shell may complete `begun` to; a file where no name of the option's begins so."""
    table, *also = NAMED.get(option.name or "", ("",))
    known = [*(resolve_name(table) if table else choices), *also]
    found = [CompletionItem(value) for value in known if value.startswith(begun)]
    return found or [CompletionItem(begun, type="file")]
