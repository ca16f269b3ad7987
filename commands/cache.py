"""`ser cache`: what a store holds, and how it was made."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import BACKENDS, FILE, corpus_option, json_option, store_option
from .output import answer, plural, progress, safe, say, table

if TYPE_CHECKING:
    from ser.train.options import Experiment


@click.group()
def cache() -> None:
    """List, check, share (push, pull), import, export and remove what a store holds."""


@cache.command("list")
@store_option
@json_option
def list_(store: Path, as_json: bool) -> None:
    """Every feature in the store: rows, size, fingerprint, and the model it comes from.

    Example: ser cache list --store features
    """
    from ser.cache.store import open_store
    from ser.cache.tools.maintain import list_features

    features = list_features(open_store(store))
    rows = []
    for one in features:
        count = one["rows"] if one["of"] is None else f"{one['rows']} of {one['of']}"
        values = f"{one['level']} × {one['dim']} {one['dtype']}" if one["level"] else ""
        model = f"{one['model'] or '–'}{' (random weights)' if one['random_weights'] else ''}"
        state = "complete" if one["complete"] else "incomplete"
        state += f", {one['quarantined']} quarantined" if one["quarantined"] else ""
        lent = f", {one['lent']} rows of its parent" if one["lent"] else ""
        size, corpus = f"{one['bytes'] / 1e6:.1f} MB", one["corpus"] or "–"
        state = f"{one['problem'] or state}{lent}"
        rows.append([one["feature"], one["fingerprint"], corpus, count, size, values, model, state])
    columns = ["feature", "fingerprint", "corpus", "rows", "size", "values", "model", "state"]
    answer(features if as_json else table(rows, columns))


@cache.command()
@click.argument("name")
@corpus_option
@store_option
@json_option
def info(name: str, corpus: str | None, store: Path, as_json: bool) -> None:
    """How feature NAME was made: everything that its fingerprint covers, and where it came from.

    Example: ser cache info hubert@3f2a
    """
    import yaml

    from ser.cache.store import open_store
    from ser.cache.tools.maintain import feature_info, latest_manifests

    opened = open_store(store)
    facts = feature_info(opened.feature(name, corpus), latest_manifests(opened))
    answer(
        facts
        if as_json
        else yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=math.inf).rstrip()
    )


@cache.command()
@click.option(
    "--repair",
    is_flag=True,
    help="Move bad parts to bad/, so that `ser features` computes them again.",
)
@click.option(
    "--fresh",
    is_flag=True,
    help="Check again what an interrupted pass found good less than a day ago.",
)
@store_option
@json_option
@click.pass_context
def verify(ctx: click.Context, repair: bool, fresh: bool, store: Path, as_json: bool) -> None:
    """Check every file of the store against its sha256 and its record; exit 1 if a part cannot be
    trusted.

    Example: ser cache verify --repair
    """
    from ser.cache.store import open_store
    from ser.cache.tools.maintain import verify as verify_store

    checks, size, start = [], 0, time.perf_counter()
    with progress(None, "verify") as bar:
        for check in verify_store(open_store(store), repair, fresh):
            checks.append(check)
            size += check.bytes
            rate = size / 1e9 / (time.perf_counter() - start)
            bar.total = len(checks) + check.remaining
            bar.set_postfix_str(f"{rate:.2f} GB/s", refresh=False)
            bar.update()
            if not as_json and (check.problem or check.note):
                again = (
                    f" ({check.repaired}; `ser features` computes it again)"
                    if check.repaired
                    else ""
                )
                bar.write(
                    safe(f"{check.path}: {check.problem or check.note}{again}"), file=sys.stderr
                )
    bad = [check for check in checks if check.problem]
    skipped = sum(check.skipped for check in checks)
    checked = len(checks) - skipped
    measured = f", {size / 1e6:.1f} MB at {rate:.2f} GB/s" if checks else ""
    facts = {
        "checked": checked,
        "skipped": skipped,
        "bytes": size,
        "bad": [asdict(check) for check in bad],
    }
    answer(facts if as_json else f"{plural(checked, 'thing')} checked{measured}: {len(bad)} bad")
    if skipped and not as_json:
        answer(
            f"{plural(skipped, 'part')} unchanged since a check less than a day ago; --fresh checks all again"
        )
    ctx.exit(1 if any(not check.repaired for check in bad) else 0)


@cache.command("import")
@click.argument("name")
@click.argument("file", type=FILE)
@click.option("--modality", type=click.Choice(["audio", "text"]), required=True)
@click.option("--ids", type=FILE, metavar="FILE", help="Ids of the rows, one per line.")
@click.option(
    "--manifest",
    type=FILE,
    metavar="TABLE",
    help="Table with the manifest's columns, where there is no audio at hand.",
)
@click.option(
    "--corpus-name", metavar="N", help="The store's only corpus by default, or the table's name."
)
@click.option("--backend", type=BACKENDS, default="zarr", show_default=True)
@click.option(
    "--replace",
    is_flag=True,
    help="Let the table take the place of another manifest of the corpus.",
)
@store_option
@json_option
def import_(
    name: str, file: Path, store: Path, as_json: bool, manifest: Path | None, **options: Any
) -> None:
    """Bring your own features: FILE (npy, npz, HDF5, safetensors or CSV) becomes feature NAME of a
    corpus.

    Without ids the rows are in the manifest's order. Frame-level files carry `values` and
    `offsets`.

    \b
    Example: ser cache import gemaps gemaps.npy --modality audio --manifest utterances.csv
    """
    from ser.cache.store import open_store
    from ser.cache.tools.transfer import import_feature, read_ids
    from ser.extract.corpora.table import read_manifest

    corpus = options["corpus_name"]
    rows = (
        read_manifest(manifest, corpus or manifest.stem)
        if manifest
        else open_store(store).manifest(corpus)
    )
    ids, opened = (
        read_ids(options["ids"]) if options["ids"] else None,
        open_store(store, create=True),
    )
    done = import_feature(
        opened, name, file, options["modality"], rows, ids, options["backend"], options["replace"]
    )
    text = "{feature}@{fingerprint}: {rows} rows of {of}, {missing} missing".format(
        of=len(rows), **done
    )
    answer(done if as_json else text)


@cache.command()
@click.argument("name")
@click.argument("file", type=FILE)
@click.option(
    "--backend", type=BACKENDS, help="FILE is a store: copy the parts to it, bit for bit."
)
@corpus_option
@store_option
def export(name: str, file: Path, backend: str | None, corpus: str | None, store: Path) -> None:
    """Write feature NAME to one FILE: .csv (also for R), .h5, .zarr, .npz or .safetensors (with an
    index beside it).

    Quarantined utterances are left out and named, and the exit code is 3 then.

    \b
    Examples:
      ser cache export egemaps egemaps.csv
      ser cache export hubert features-hdf5 --backend hdf5
    """
    from ser.cache.store import open_store
    from ser.cache.tools import transfer

    opened = open_store(store)
    manifest = opened.manifest(corpus)
    feature = opened.feature(name, manifest.corpus)
    if backend:
        copied = transfer.copy(feature, open_store(file, create=True), backend)
        there = len(feature.parts()) - copied
        answer(
            f"copied {copied} parts to {file}" + (f"; {there} are there already" if there else "")
        )
    else:
        columns, made = None, feature.spec.config
        if feature.spec.extractor == "smile":
            from ser.extract.smile import SmileConfig, open_smile

            columns = open_smile(SmileConfig(made["feature_set"], made["level"])).feature_names
        answer(f"wrote {transfer.export(feature, manifest, file, columns)}")
        quarantined = feature.quarantined(manifest)
        for id_, reason in quarantined.items():
            say(f"left out: {id_}: {reason}", err=True)
        click.get_current_context().exit(3 if quarantined else 0)


def pulled(experiments: Sequence["Experiment"]) -> list["Experiment"]:
    """The experiments on the user's copy of each store at a URL; what they need is pulled into the
    copy first.
    """
    copies: dict[str, Path] = {}
    for url in sorted({str(one.store) for one in experiments if "://" in str(one.store)}):
        from ser.cache.tools.copies import Pull, cache_folder

        on_it = [one for one in experiments if one.store == url]
        features = {name for one in on_it for name in (one.features, one.views) if name}
        corpora = [one.corpus or "" for one in on_it]  # one that names none needs all
        copies[url] = cache_folder(url)
        named = "+".join(corpora) if all(corpora) else None
        pull = Pull(url, copies[url], "+".join(sorted(features)), named, replace=True)
        say(f"{_amount(pull, 'to pull')} to {copies[url]}", err=True)
        with progress(pull.bytes, "pull", "B", unit_scale=True) as bar:
            pull.run(bar.update)
    return [replace(one, store=copies.get(str(one.store), one.store)) for one in experiments]


def _amount(copy: Any, verb: str) -> str:
    return f"{plural(len(copy.parts), 'part')}, {copy.bytes / 1e6:.1f} MB {verb}, {copy.there} there already"


copied_features = click.option("--features", metavar="A+B", help="Only these; all by default.")
copied_corpora = click.option("--corpus", metavar="A[+B]", help="Only these; all by default.")
dry_option = click.option("--dry-run", is_flag=True, help="Say how much it would take, and stop.")


@cache.command()
@click.argument("url")
@copied_features
@copied_corpora
@click.option("--with-text", is_flag=True, help="Publish transcripts and token ids too.")
@click.option(
    "--replace",
    is_flag=True,
    help="Let manifests and parts take the place of other ones that are there.",
)
@dry_option
@store_option
@json_option
def push(url: str, store: Path, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Publish the store at URL (s3://, gs://, hf://datasets/, sftp://, file:// or a path), with a
    card, README.md.

    What is there is not sent again. The answer is the URL with the root digest of what is published
    there now.

    \b
    Example: ser cache push s3://bucket/iemocap --features hubert+mpnet
    """
    from ser.cache.store import open_store
    from ser.cache.tools.copies import Push

    _copy("push", Push(open_store(store), url, **options), dry_run, as_json)


@cache.command()
@click.argument("url")
@copied_features
@copied_corpora
@click.option("--replace", is_flag=True, help="Let a manifest take the place of one that has more.")
@dry_option
@store_option
@json_option
def pull(url: str, store: Path, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Copy what is published at URL into the store; with URL@DIGEST that and nothing else. Every
    byte is checked.

    \b
    Example: ser cache pull s3://bucket/iemocap --features hubert --store features
    """
    from ser.cache.tools.copies import Pull

    _copy("pull", Pull(url, store, **options), dry_run, as_json)


def _copy(verb: str, copy: Any, dry_run: bool, as_json: bool) -> None:
    """Run a push or a pull with a progress bar, and print how much it copied."""
    facts = {"parts": len(copy.parts), "bytes": copy.bytes, "there": copy.there}
    if dry_run:
        answer(facts if as_json else _amount(copy, f"to {verb}"))
        return
    with progress(copy.bytes, verb, "B", unit_scale=True) as bar:
        url = copy.run(bar.update)
    answer({"url": url, **facts} if as_json else f"{url}\n{_amount(copy, f'{verb}ed')}")


@cache.command()
@click.argument("corpus")
@click.argument("digest", required=False)
@click.option(
    "--list", "listing", is_flag=True, help="Only name the manifests that the corpus has had."
)
@store_option
def rollback(corpus: str, digest: str | None, listing: bool, store: Path) -> None:
    """Make an earlier manifest of CORPUS the latest again: the one before, or the one with this
    DIGEST.

    \b
    Examples:
      ser cache rollback iemocap --list
      ser cache rollback iemocap 3f2a
    """
    from ser.cache.manifests import generations
    from ser.cache.store import open_store

    opened = open_store(store)
    if listing:
        listed = generations(store / "manifests" / opened.only_corpus(corpus))
        rows = [[one.time, one.digest, one.utterances, one.command] for one in listed]
        answer(table(rows, ["time", "digest", "utterances", "command"], missingval="–"))
        return
    manifest = opened.rollback(corpus, digest)
    answer(
        f"the latest manifest of {corpus} is {manifest.digest[:12]} now: {len(manifest)} utterances"
    )


@cache.command()
@click.argument("name", required=False)
@click.option(
    "--superseded",
    is_flag=True,
    help="Only rows that no latest manifest asks for, or that appear twice.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and stop.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@store_option
def remove(name: str | None, superseded: bool, dry_run: bool, yes: bool, store: Path) -> None:
    """Remove feature NAME, or with --superseded the rows that nothing asks for any more.

    NAME@FINGERPRINT may also be a feature that cannot be read.

    \b
    Examples:
      ser cache remove hubert@3f2a
      ser cache remove --superseded --dry-run
    """
    from ser.cache.store import open_store
    from ser.cache.tools.maintain import only_feature, remove_feature, remove_superseded

    opened = open_store(store)
    if name is None and not superseded:
        raise click.UsageError("name a feature, or say --superseded")
    if dry_run and not superseded:
        raise click.UsageError(
            "--dry-run is for --superseded; `ser cache info NAME` says what a feature holds"
        )
    folders = [only_feature(opened, name)] if name else []
    what = f"superseded rows of {name or 'every feature'}" if superseded else str(folders[0])
    if not yes and not dry_run:
        click.confirm(f"remove {what}?", abort=True)
    if not superseded:
        answer(f"removed {remove_feature(opened, folders[0]) / 1e6:.1f} MB")
        return
    dropped = size = 0
    for part, rows in remove_superseded(opened, folders, dry_run):
        dropped += rows
        size += part.bytes
        if dry_run:
            say(f"{part.folder.relative_to(opened.path)}: {rows} rows, {part.bytes / 1e6:.1f} MB")
    answer(f"{'would remove' if dry_run else 'removed'} {dropped} rows, {size / 1e6:.1f} MB")
