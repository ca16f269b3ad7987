"""Options that several commands share."""

from pathlib import Path

import click

from ser.extract.corpora import FORMATS

FILE = click.Path(path_type=Path)
COUNT = click.IntRange(1)
BACKENDS = click.Choice(["zarr", "hdf5"])

store_option = click.option("--store", type=FILE, default=Path("features"), show_default=True, help="Folder of features.")
corpus_option = click.option("--corpus", metavar="N", help="The store's only corpus by default.")
format_option = click.option("--format", type=click.Choice(FORMATS), help="Layout of the corpus; detected by default.")
backend_option = click.option("--backend", type=BACKENDS, default="zarr", show_default=True)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 …")
scheduler_option = click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Run on dask: tcp://127.0.0.1:8786, a scheduler file, or local:4 for four processes here.",
)
insecure_option = click.option("--insecure", is_flag=True, help="Allow a plain --scheduler on another machine.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be computed, and stop.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")
