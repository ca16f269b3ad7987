"""`ser explore`: which dimensions of a feature differ between groups, and by how much."""

from pathlib import Path

import click

from .options import FILE, corpus_option, decimal_option, open_option, store_option
from .output import answer, open_page, progress, say


@click.command()
@click.argument("name", metavar="FEATURE")
@click.option("--by", default="label", show_default=True, help="The column of the groups.")
@click.option(
    "--within",
    default="speaker",
    show_default=True,
    help="The column of those who are measured several times.",
)
@click.option(
    "--reference", metavar="GROUP", help="What the others are compared with; the largest group."
)
@click.option("--csv", type=FILE, metavar="FILE", help="Write every effect as a table.")
@click.option("--html", type=FILE, metavar="FILE", help="Write the largest as a page of dots.")
@decimal_option
@open_option
@corpus_option
@store_option
def explore(
    name: str,
    by: str,
    within: str,
    reference: str | None,
    csv: Path | None,
    html: Path | None,
    decimal: str,
    open_: bool,
    corpus: str | None,
    store: Path,
) -> None:
    """Compare groups of utterances in each dimension of FEATURE, which has one row an utterance.

    Prints effect sizes d with 95 % intervals, by a linear mixed model with a random intercept for
    each speaker, and p-values after Holm's method over all of them. Labels are as the corpus has
    them.

    \b
    Examples:
      ser explore egemaps --by label --csv effects.csv --html effects.html
      ser explore egemaps --by gender --reference F
    """
    from ser.cache.store import open_store
    from ser.errors import WrongUse, unknown
    from ser.explore.effects import all_effects, make_design
    from ser.explore.measured import measure
    from ser.explore.page import in_words, largest, write_page
    from ser.explore.table import write_effects
    from ser.extract.feature_names import names_of_dimensions

    if decimal != "." and csv is None:
        raise click.UsageError("--decimal is for --csv; add --csv FILE, or leave it out")
    if open_ and html is None:
        raise click.UsageError("--open is for --html; add --html FILE, or leave it out")
    for path in (csv, html):
        if path is not None and not path.parent.is_dir():
            raise WrongUse(f"{path.parent}: no such folder; make it first, or name another file")

    opened = open_store(store)
    manifest = opened.manifest(corpus)
    feature = opened.feature(name, manifest.corpus)
    numbers = [str(number) for number in range(feature.spec.dim)]
    dimensions = list(names_of_dimensions(feature) or numbers)

    measured = measure(feature, manifest, dimensions, by, within)
    if reference is not None and reference not in measured.groups:
        raise unknown("group", reference, sorted(set(measured.groups)))
    design = make_design(measured.groups, measured.speakers, reference)
    with progress(len(dimensions), "explore", "dim") as bar:
        effects = all_effects(measured.values, dimensions, design, bar.update)

    for effect in largest(effects):
        answer(f"{effect.dimension:<45} {in_words(effect, design.groups[0])}")
    for note in measured.notes:
        say(note, err=True)
    if csv is not None:
        write_effects(csv, effects, design.groups[0], decimal)
        answer(f"wrote {csv}: {len(effects)} effects")
    if html is not None:
        title = f"{feature.spec.name} by {by}, within {within}"
        write_page(html, title, effects, measured, design, within)
        answer(f"wrote {html}")
        open_page(html, open_)
