"""What mkdocs adds to the pages of docs/.

Files that lie elsewhere in the project, and tables made from the code.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# Pages of the site by the same paths as in the project, so that one link serves both.
OUTSIDE = (
    "cache/FORMAT.md",
    "benchmarks/RESULTS.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
)


def on_startup(**_: Any) -> None:
    """Give mkdocstrings the package as links to its rooms.

    In the root it would read all of .venv, for a minute.
    """
    package = ROOT / ".links" / "docs" / "ser"
    package.mkdir(parents=True, exist_ok=True)
    modules = list(ROOT.glob("*.py"))
    rooms = [init.parent for init in ROOT.glob("*/__init__.py")]

    for path in [*modules, *rooms]:
        link = package / path.name
        if not link.is_symlink():
            link.symlink_to(Path("../../..", path.name), target_is_directory=path.is_dir())


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that do not lie in docs/."""
    pages = {name: (ROOT / name).read_text(encoding="utf-8") for name in OUTSIDE}
    pages["settings.md"] = "\n".join(settings_page())
    pages["recipes.md"] = "\n".join(recipes_page())

    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))

    return files


def on_page_read_source(page: Any, config: Any) -> str | None:
    """The site begins with the project's README.

    Its menu lists the pages that docs/README.md lists.
    """
    if page.file.src_uri == "README.md":
        return (ROOT / "README.md").read_text(encoding="utf-8")
    return None


def on_page_markdown(text: str, page: Any, config: Any, files: Files) -> str:
    """Links to other files of the project lead to their pages, or to the repository."""
    here = page.file.src_uri
    folder = posixpath.dirname(here if here in (*OUTSIDE, "README.md") else f"docs/{here}")

    def moved(found: re.Match[str]) -> str:
        target, hash_, anchor = found[1].partition("#")
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in OUTSIDE or path.startswith("docs/"):
            inside = path.removeprefix("docs/")
            return f"]({posixpath.relpath(inside, posixpath.dirname(here) or '.')}{hash_}{anchor})"

        if (ROOT / path).exists():
            return f"]({config['repo_url']}/blob/main/{path}{hash_}{anchor})"
        return found[0]

    return re.sub(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)", moved, text)


def settings_page() -> Iterator[str]:
    """Every setting of every fusion, as `ser train --fusion NAME --settings` prints them."""
    from ser.train.listed_settings import list_settings
    from ser.train.models import FUSIONS

    yield "# Settings\n"
    yield "What `--set` takes, by fusion; written from the code when this site is built.\n"
    for name, fusion in FUSIONS.items():
        yield f"## `{name}`\n\n{fusion.source}\n"
        yield "| setting | default | source | what |\n|---|---|---|---|"
        for setting in list_settings(fusion):
            help_ = f"{setting.help} ({setting.range})" if setting.range else setting.help
            cells = [f"`{setting.name}`", f"`{setting.default}`", setting.source, help_]
            yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
        yield ""


def recipes_page() -> Iterator[str]:
    """Every recipe with the numbers that its paper prints."""
    from ser.train.sweep.recipe import list_recipes

    yield "# Recipes\n\nWhat `ser sweep` knows by name, with the papers' numbers in percent; see "
    yield "[reproduce a table](reproduce-a-table.md).\n"
    for name, facts in list_recipes().items():
        metrics = list(
            dict.fromkeys(metric for paper in facts["paper"].values() for metric in paper)
        )
        yield f"## `{name}`\n\n{facts['title']}\n"
        yield f"| cell | {' | '.join(metrics)} |\n|---|{'---|' * len(metrics)}"
        for cell, paper in facts["paper"].items():
            yield f"| {cell} | {' | '.join(str(paper.get(metric, '')) for metric in metrics)} |"
        yield ""
