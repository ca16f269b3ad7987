"""`ser cache`: what a store holds, and how it was made."""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .options import BACKENDS, FILE, corpus_option, json_option, store_option
from .output import answer, progress, safe


@click.group()
def cache() -> None:
    """List, check, import, export and remove what a store holds."""


@cache.command("list")
@store_option
@json_option
def list_(store: Path, as_json: bool) -> None:
    """Every feature in the store: rows, size, fingerprint, and the model it comes from.

    \b
    Example: ser cache list --store features
    """
    from ser.cache.maintain import list_features
    from ser.cache.store import open_store

    found = list_features(open_store(store))
    if as_json:
        answer([asdict(one) for one in found])
        return
    rows = []
    for one in found:
        count = f"{one.rows} of {one.of}" if one.of is not None else one.rows
        values = f"{one.level} × {one.dim} {one.dtype}" if one.level else ""
        model = f"{one.model or '–'}{' (random weights)' if one.random_weights else ''}"
        state = "complete" if one.complete else "incomplete"
        state = one.problem or (f"{state}, {one.quarantined} quarantined" if one.quarantined else state)
        size = f"{one.bytes / 1e6:.1f} MB"
        rows.append([one.feature, one.fingerprint, one.corpus or "–", count, size, values, model, state])
    answer(rows, ["feature", "fingerprint", "corpus", "rows", "size", "values", "model", "state"])


@cache.command()
@click.argument("name")
@corpus_option
@store_option
@json_option
def info(name: str, corpus: str | None, store: Path, as_json: bool) -> None:
    """How feature NAME was made: everything that its fingerprint covers, and where it came from.

    \b
    Example: ser cache info hubert@3f2a
    """
    from ser.cache.maintain import feature_info
    from ser.cache.store import open_store

    opened = open_store(store)
    facts = feature_info(opened, opened.feature(name, corpus))
    answer(facts if as_json else "\n".join(_lines(facts)))


def _lines(facts: dict[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{key:<{max(24 - len(indent), 1)}} {value}"


@cache.command()
@click.option("--repair", is_flag=True, help="Drop untrusted parts, so that `ser features` computes them again.")
@store_option
@json_option
@click.pass_context
def verify(ctx: click.Context, repair: bool, store: Path, as_json: bool) -> None:
    """Check every file of the store against its sha256; exit 1 if a part cannot be trusted.

    \b
    Example: ser cache verify --repair
    """
    from ser.cache import maintain
    from ser.cache.store import open_store

    checked, size, start = [], 0, time.perf_counter()
    with progress(None, "verify") as bar:
        for one in maintain.verify(open_store(store), repair):
            checked.append(one)
            size += one.bytes
            rate = size / 1e9 / (time.perf_counter() - start)
            bar.total = len(checked) + one.remaining
            bar.set_postfix_str(f"{rate:.2f} GB/s", refresh=False)
            bar.update()
            if not as_json and (one.problem or one.note):
                dropped = " (dropped; `ser features` computes it again)" if one.repaired else ""
                bar.write(safe(f"{one.path}: {one.problem or one.note}{dropped}"), file=sys.stderr)
    bad = [one for one in checked if one.problem]
    measured = f", {size / 1e6:.1f} MB at {rate:.2f} GB/s" if checked else ""
    facts = {"checked": len(checked), "bytes": size, "bad": [asdict(one) for one in bad]}
    answer(facts if as_json else f"{len(checked)} things checked{measured}: {len(bad)} bad")
    ctx.exit(1 if any(not one.repaired for one in bad) else 0)


@cache.command("import")
@click.argument("name")
@click.argument("file", type=FILE)
@click.option("--modality", type=click.Choice(["audio", "text"]), required=True)
@click.option("--ids", type=FILE, metavar="FILE", help="Ids of the rows: one per line, or a JSON list.")
@click.option(
    "--manifest", type=FILE, metavar="TABLE", help="Table with the manifest's columns, where there is no audio at hand."
)
@click.option("--corpus-name", metavar="N", help="The store's only corpus by default, or the table's name.")
@click.option("--backend", type=BACKENDS, default="zarr", show_default=True)
@store_option
@json_option
def import_(name: str, file: Path, store: Path, as_json: bool, manifest: Path | None, **options: Any) -> None:
    """Bring your own features: FILE (npy, npz, HDF5, safetensors or CSV) becomes feature NAME of a corpus.

    Without ids the rows are in the manifest's order. Frame-level files carry `values` and `offsets`.

    \b
    Example: ser cache import gemaps gemaps.npy --modality audio --manifest utterances.csv
    """
    from ser.cache.store import open_store
    from ser.cache.transfer import import_feature, read_ids
    from ser.extract.corpora.table import read_manifest

    opened = open_store(store, create=manifest is not None)
    corpus = options["corpus_name"]
    rows = read_manifest(manifest, corpus or manifest.stem) if manifest else opened.manifest(corpus)
    ids = read_ids(options["ids"]) if options["ids"] else None
    done = import_feature(opened, name, file, options["modality"], rows, ids, options["backend"])
    text = f"{done.feature}@{done.fingerprint}: {done.rows} rows of {len(rows)}, {done.missing} missing"
    answer(asdict(done) if as_json else text)


@cache.command()
@click.argument("name")
@click.argument("file", type=FILE)
@click.option("--backend", type=BACKENDS, help="FILE is a store: copy the parts to it, bit for bit.")
@corpus_option
@store_option
def export(name: str, file: Path, backend: str | None, corpus: str | None, store: Path) -> None:
    """Write feature NAME to one FILE: .h5, .zarr, .npz or .safetensors (with an index beside it).

    \b
    Examples:
      ser cache export hubert hubert.h5
      ser cache export hubert features-hdf5 --backend hdf5
    """
    from ser.cache import transfer
    from ser.cache.store import open_store

    opened = open_store(store)
    manifest = opened.manifest(corpus)
    feature = opened.feature(name, manifest.corpus)
    if backend:
        copied = transfer.copy(feature, open_store(file, create=True), backend)
        there = len(feature.parts()) - len(copied)
        answer(f"copied {len(copied)} parts to {file}" + (f"; {there} are there already" if there else ""))
    else:
        answer(f"wrote {transfer.export(feature, manifest, file)}")


@cache.command()
@click.argument("name", required=False)
@click.option("--superseded", is_flag=True, help="Only rows that no latest manifest asks for, or that appear twice.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@store_option
def remove(name: str | None, superseded: bool, yes: bool, store: Path) -> None:
    """Remove feature NAME, or with --superseded the rows that nothing asks for any more.

    \b
    Examples:
      ser cache remove hubert@3f2a
      ser cache remove --superseded
    """
    from ser.cache.maintain import only_feature, remove_feature, remove_superseded
    from ser.cache.store import open_store

    opened = open_store(store)
    if name is None and not superseded:
        raise click.UsageError("name a feature, or say --superseded")
    features = [only_feature(opened, name)] if name else opened.features()
    what = f"superseded rows of {name or 'every feature'}" if superseded else str(features[0].path)
    if not yes:
        click.confirm(f"remove {what}?", abort=True)
    removed = list(remove_superseded(opened, features)) if superseded else [remove_feature(opened, features[0])]
    answer(f"removed {sum(r.rows for r in removed)} rows, {sum(r.bytes for r in removed) / 1e6:.1f} MB")
