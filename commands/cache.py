"""`ser cache`: what a store holds, and how it was made."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ser.errors import SerError

from .options import BACKENDS, FILE, corpus_option, decimal_option, json_option, store_option
from .output import answer, plural, progress, safe, say, table

if TYPE_CHECKING:
    from ser.cache.tools.listing import ListedFeature
    from ser.cache.tools.pull import Pull
    from ser.cache.tools.push import Push
    from ser.cache.tools.verify import Checked
    from ser.corpus.names import Modality
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
    from ser.cache.tools.listing import list_features

    features = list_features(open_store(store))
    if as_json:
        answer([asdict(feature) for feature in features])
        return

    columns = ["feature", "fingerprint", "corpus", "rows", "size", "values", "model", "state"]
    answer(table([list_row(feature) for feature in features], columns))


def list_row(feature: "ListedFeature") -> list[str]:
    """One line of the table of `ser cache list`."""
    rows = f"{feature.rows}" if feature.of is None else f"{feature.rows} of {feature.of}"
    values = f"{feature.level} × {feature.dim} {feature.dtype}" if feature.level else ""
    model = feature.model or "–"
    if feature.random_weights:
        model += " (random weights)"

    state = "complete" if feature.complete else "incomplete"
    if feature.quarantined:
        state += f", {feature.quarantined} quarantined"
    if feature.problem:
        state = feature.problem
    if feature.lent:
        state += f", {feature.lent} rows of its parent"

    return [
        feature.feature,
        feature.fingerprint,
        feature.corpus or "–",
        rows,
        f"{feature.bytes / 1e6:.1f} MB",
        values,
        model,
        state,
    ]


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
    from ser.cache.tools.listing import feature_info, latest_manifests

    opened = open_store(store)
    facts = feature_info(opened.feature(name, corpus), latest_manifests(opened))
    if as_json:
        answer(facts)
        return

    for entry in facts["computed_with"][1:]:
        packages = ", ".join(entry["differs"]) or "packages that are not recorded"
        say(f"{entry['rows']} rows were computed with other versions of {packages}", err=True)

    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=math.inf)
    answer(text.rstrip())


@cache.command()
@click.option(
    "--repair",
    is_flag=True,
    help="Move bad parts to bad/, so that `ser features` computes them again; mend bad logs.",
)
@store_option
@json_option
@click.pass_context
def verify(ctx: click.Context, repair: bool, store: Path, as_json: bool) -> None:
    """Check every file of the store against its sha256 and its record; exit 1 if a part cannot be
    trusted.

    Example: ser cache verify --repair
    """
    from ser.cache.store import open_store
    from ser.cache.tools.verify import verify as verify_store

    checks = []
    size = 0
    rate = 0.0
    start = time.perf_counter()
    with progress(None, "verify") as bar:
        for check in verify_store(open_store(store), repair):
            checks.append(check)
            size += check.bytes
            rate = size / 1e9 / (time.perf_counter() - start)

            bar.total = len(checks) + check.remaining
            bar.set_postfix_str(f"{rate:.2f} GB/s", refresh=False)
            bar.update()
            if not as_json and (check.problem or check.note):
                bar.write(safe(fault_line(check)), file=sys.stderr)

    bad = [check for check in checks if check.problem]
    if as_json:
        answer(
            {
                "checked": len(checks),
                "bytes": size,
                "bad": [asdict(check) for check in bad],
            }
        )
    else:
        measured = f", {size / 1e6:.1f} MB at {rate:.2f} GB/s" if checks else ""
        answer(f"{plural(len(checks), 'thing')} checked{measured}: {len(bad)} bad")

    ctx.exit(1 if any(not check.repaired for check in bad) else 0)


def fault_line(check: "Checked") -> str:
    """What is wrong with a manifest, spec or part, and what was done about it."""
    line = f"{check.path}: {check.problem or check.note}"
    if check.repaired:
        is_part = "/parts/" in check.path
        again = "; the `ser features` command that made it computes it again" if is_part else ""
        line += f" ({check.repaired}{again})"
    return line


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
@click.option("--no-header", is_flag=True, help="The first line of a CSV is a row, not names.")
@store_option
@json_option
def import_(
    name: str,
    file: Path,
    modality: "Modality",
    ids: Path | None,
    manifest: Path | None,
    corpus_name: str | None,
    backend: str,
    replace: bool,
    no_header: bool,
    store: Path,
    as_json: bool,
) -> None:
    """Bring your own features: FILE (npy, npz, HDF5, safetensors or CSV) becomes feature NAME of a
    corpus.

    Without ids the rows are in the manifest's order. Frame-level files carry `values` and
    `offsets`.

    \b
    Example: ser cache import gemaps gemaps.npy --modality audio --manifest utterances.csv
    """
    from ser.cache.store import open_store
    from ser.cache.tools.importing import import_feature, read_ids
    from ser.extract.corpora.table import read_manifest

    if manifest:
        listed = read_manifest(manifest, corpus_name or manifest.stem)
        utterances = listed.manifest
        for warning in listed.warnings:
            say(f"warning: {warning}", err=True)
    else:
        utterances = open_store(store).manifest(corpus_name)

    imported = import_feature(
        open_store(store, create=True),
        name,
        file,
        modality,
        utterances,
        read_ids(ids) if ids else None,
        backend,
        replace,
        has_header=not no_header,
    )
    if as_json:
        answer(asdict(imported))
        return

    rows = (
        f"{imported.rows} rows of {imported.dim} numbers, of {len(utterances)} utterances; "
        f"{imported.missing} missing; joined by {imported.joined_by}"
    )
    answer(f"{imported.feature}@{imported.fingerprint}: {rows}")


@cache.command()
@click.argument("name")
@click.argument("file", type=FILE)
@click.option(
    "--backend", type=BACKENDS, help="FILE is a store: copy the parts to it, bit for bit."
)
@click.option(
    "--with",
    "with_columns",
    metavar="A,B",
    help="Of the corpus beside the values of a .csv, such as speaker,label.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["audformat"]),
    help="A .csv by the index of audformat: file, or file, start and end.",
)
@decimal_option
@corpus_option
@store_option
def export(
    name: str,
    file: Path,
    backend: str | None,
    with_columns: str | None,
    format_: str | None,
    decimal: str,
    corpus: str | None,
    store: Path,
) -> None:
    """Write feature NAME to one FILE: .csv (also for R), .h5, .zarr, .npz or .safetensors (with an
    index beside it).

    A .csv of segments begins with file, start and end. Quarantined utterances are left out and
    named, and the exit code is 3 then.

    \b
    Examples:
      ser cache export egemaps egemaps.csv --with speaker,label
      ser cache export egemaps db.egemaps.csv --format audformat
      ser cache export hubert features-hdf5 --backend hdf5
    """
    from ser.cache.store import open_store
    from ser.cache.tools.exporting import copy_feature
    from ser.cache.tools.exporting import export as export_feature
    from ser.extract.feature_names import names_of_dimensions

    beside = with_columns.split(",") if with_columns else []
    if beside and backend:
        raise click.UsageError("--with is for a table (.csv); a store holds the manifest anyway")
    if decimal != "." and backend:
        raise click.UsageError("--decimal is for a table (.csv); leave it out")
    if format_ and backend:
        raise click.UsageError("--format is for a table (.csv); leave it out")

    opened = open_store(store)
    manifest = opened.manifest(corpus)
    feature = opened.feature(name, manifest.corpus)

    if backend:
        copied = copy_feature(feature, open_store(file, create=True), backend)
        there = len(feature.parts()) - copied
        already = f"; {there} are there already" if there else ""
        answer(f"copied {copied} parts to {file}{already}")
        return

    names = names_of_dimensions(feature)
    path = export_feature(
        feature, manifest, file, names, beside, decimal, audformat=format_ is not None
    )
    answer(f"wrote {path}")
    quarantined = feature.quarantined(manifest)
    for id_, reason in quarantined.items():
        say(f"left out: {id_}: {reason}", err=True)
    click.get_current_context().exit(3 if quarantined else 0)


def pulled(experiments: Sequence["Experiment"]) -> list["Experiment"]:
    """The experiments on the user's copy of each store at a URL.

    What they need is pulled into the copy first.
    """
    urls = sorted({str(one.store) for one in experiments if "://" in str(one.store)})
    copies = {}
    for url in urls:
        copies[url] = _pull_for([one for one in experiments if one.store == url], url)
    return [replace(one, store=copies.get(str(one.store), one.store)) for one in experiments]


def _pull_for(experiments: Sequence["Experiment"], url: str) -> Path:
    """Pull what the experiments on the store at a URL need; returns the copy's folder."""
    from ser.cache.tools.pull import Pull, cache_folder

    features = set()
    for experiment in experiments:
        features |= {name for name in (experiment.features, experiment.views) if name}

    # An experiment that names no corpus needs all.
    corpora = [experiment.corpus or "" for experiment in experiments]
    named = "+".join(corpora) if all(corpora) else None

    folder = cache_folder(url)
    pull = Pull(url, folder, "+".join(sorted(features)), named, replace=True)
    say(f"{_amount(pull, 'to pull')} to {folder}", err=True)
    with progress(pull.bytes, "pull", "B", unit_scale=True) as bar:
        pull.run(bar.update)
    return folder


def _amount(copy: "Push | Pull", verb: str) -> str:
    """How much a copy takes: "3 parts, 1.2 MB to push, 4 there already"."""
    parts = plural(len(copy.parts), "part")
    return f"{parts}, {copy.bytes / 1e6:.1f} MB {verb}, {copy.already_there} there already"


copied_features = click.option("--features", metavar="A+B", help="Only these; all by default.")
copied_corpora = click.option("--corpus", metavar="A[+B]", help="Only these; all by default.")
timeout_option = click.option(
    "--timeout",
    type=float,
    metavar="S",
    help="Give up when nothing comes from there for S seconds (60 by default).",
)
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
@timeout_option
@dry_option
@store_option
@json_option
def push(
    url: str,
    features: str | None,
    corpus: str | None,
    with_text: bool,
    replace: bool,
    timeout: float | None,
    dry_run: bool,
    store: Path,
    as_json: bool,
) -> None:
    """Publish the store at URL (s3://, gs://, hf://datasets/, sftp://, file:// or a path), with a
    card, README.md.

    What is there is not sent again. The answer is the URL with the root digest of what is published
    there now.

    \b
    Example: ser cache push s3://bucket/iemocap --features hubert+mpnet
    """
    from ser.cache.store import open_store
    from ser.cache.tools.push import Push

    copy = Push(open_store(store), url, features, corpus, with_text, replace, timeout)
    _copy("push", copy, dry_run, as_json)


@cache.command()
@click.argument("url")
@copied_features
@copied_corpora
@click.option("--replace", is_flag=True, help="Let a manifest take the place of one that has more.")
@timeout_option
@dry_option
@store_option
@json_option
def pull(
    url: str,
    features: str | None,
    corpus: str | None,
    replace: bool,
    timeout: float | None,
    dry_run: bool,
    store: Path,
    as_json: bool,
) -> None:
    """Copy what is published at URL into the store; with URL@DIGEST that and nothing else. Every
    byte is checked.

    \b
    Example: ser cache pull s3://bucket/iemocap --features hubert --store features
    """
    from ser.cache.tools.pull import Pull

    copy = Pull(url, store, features, corpus, replace, timeout)
    _copy("pull", copy, dry_run, as_json)


def _copy(verb: str, copy: "Push | Pull", dry_run: bool, as_json: bool) -> None:
    """Run a push or a pull with a progress bar, and print how much it copied."""
    amount = {"parts": len(copy.parts), "bytes": copy.bytes, "there": copy.already_there}
    if dry_run:
        answer(amount if as_json else _amount(copy, f"to {verb}"))
        return

    with progress(copy.bytes, verb, "B", unit_scale=True) as bar:
        url = copy.run(bar.update)

    answer({"url": url, **amount} if as_json else f"{url}\n{_amount(copy, f'{verb}ed')}")


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
    from ser.cache.manifest_log import generations
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
    from ser.cache.tools.remove import only_feature, remove_feature, remove_superseded

    opened = open_store(store)
    if name is None and not superseded:
        raise click.UsageError("name a feature, or say --superseded")
    if dry_run and not superseded:
        remedy = "`ser cache info NAME` says what a feature holds"
        raise click.UsageError(f"--dry-run is for --superseded; {remedy}")

    folders = [only_feature(opened, name)] if name else []
    subject = f"superseded rows of {name or 'every feature'}" if superseded else str(folders[0])
    if not yes and not dry_run:
        _confirm(f"remove {subject}?")

    if not superseded:
        freed = remove_feature(opened, folders[0])
        answer(f"removed {freed / 1e6:.1f} MB")
        return

    dropped = 0
    size = 0
    for part, rows in remove_superseded(opened, folders, dry_run):
        dropped += rows
        size += part.bytes
        if dry_run:
            say(f"{part.folder.relative_to(opened.path)}: {rows} rows, {part.bytes / 1e6:.1f} MB")

    done = "would remove" if dry_run else "removed"
    answer(f"{done} {dropped} rows, {size / 1e6:.1f} MB")


def _confirm(question: str) -> None:
    """Ask, and end the command at a no.

    Raises `SerError` where nobody can answer, as in a job without a terminal.
    """
    try:
        confirmed = click.confirm(question)
    except click.Abort:
        raise SerError("nobody answers here; nothing was removed: say --yes to remove it") from None
    if not confirmed:
        raise click.Abort
