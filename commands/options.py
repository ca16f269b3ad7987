"""The commands' options: those that several share, and those that the fields of a configuration declare."""

from collections.abc import Callable
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
backend_option = click.option("--backend", type=BACKENDS, default="zarr", show_default=True)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
scheduler_option = click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Run on dask: tcp://127.0.0.1:8786, a scheduler file, or local:4 for four processes here.",
)
insecure_option = click.option("--insecure", is_flag=True, help="Allow a plain --scheduler on another machine.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")


def config_options(config: type, *left_out: str, show_defaults: bool = True) -> Callable[[Any], Any]:
    """One option for each field of a dataclass whose metadata has a help text, but for those left out."""

    def decorate(command: Any) -> Any:
        for field in reversed(fields(config)):
            if field.metadata and field.name not in left_out:
                command = _option(field, show_defaults)(command)
        return command

    return decorate


def _option(field: Field[Any], show_default: bool) -> Callable[[Any], Any]:
    facts = field.metadata
    name = f"--{facts.get('name') or field.name.replace('_', '-')}"
    if field.type is bool:
        return click.option(name, is_flag=True, help=facts["help"])
    default = None if field.default is MISSING else field.default
    kinds = {kind for kind in get_args(field.type) if kind is not NoneType} or {field.type}
    choices, metavar = facts.get("choices"), facts.get("metavar")
    kind: Any = FILE if Path in kinds else float if float in kinds else COUNT if kinds == {int} else str
    return click.option(
        name,
        field.name,
        type=click.Choice(choices) if choices and not metavar else kind,
        multiple=default == (),
        default=default,
        show_default=show_default and bool(default),
        metavar=metavar,
        help=facts["help"],
    )
