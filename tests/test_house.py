"""The rules of the house that no single module can keep: who imports whom, what is light, what the wheel holds."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from ser.tests.tiny_store import make_store

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "errors": set(),
    "cache": {"cache"},
    "engines": {"cache", "engines"},
    "weights": {"cache", "weights"},
    "extract": {"cache", "engines", "weights", "extract"},
    "train": {"cache", "engines", "train", "weights"},
    "predict": {"cache", "engines", "weights", "extract", "train"},
    "doctor": {"cache", "engines", "weights", "extract", "train"},
    "commands": {"cache", "commands", "doctor", "engines", "extract", "predict", "train", "weights"},
    "cli": {"cache", "commands"},
    "__main__": {"cli"},
    "docs": {"cli"},
}


def sources() -> list[Path]:
    """Every module of the package, but not tests and benchmarks."""
    folders = ("cache", "commands", "engines", "extract", "train", "weights")
    return [*ROOT.glob("*.py"), *(p for folder in folders for p in (ROOT / folder).rglob("*.py"))]


def room(path: Path) -> str:
    """The part of the house that a module stands in: `cache`, `extract`, `engines`, …"""
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> set[str]:
    """The dotted names under `ser.` that a module imports absolutely."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
    return {name.removeprefix("ser.") for name in found if name.startswith("ser.")}


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_direction(path: Path) -> None:
    allowed = MAY_IMPORT[room(path)] | {"errors"}
    for name in imports(path):
        assert any(name == a or name.startswith(a + ".") for a in allowed), f"{path.name} imports ser.{name}"


def module(path: Path) -> str:
    """The dotted name below `ser`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_circle_of_imports() -> None:
    """Between modules, whether a name is imported at the top of a file, in a function, or for a type checker alone."""
    modules = {module(path): path for path in sources()}
    edges: dict[str, set[str]] = {}
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.removeprefix("ser.") for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])]).removeprefix("ser.")
                inside = {f"{base}.{alias.name}" for alias in node.names} & modules.keys()
                found |= inside or {base}
        edges[name] = (found & modules.keys()) - {name}
    left = dict(edges)
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    while bound := [name for name in left if not any(name in needs for needs in left.values())]:
        for name in bound:
            del left[name]
    assert not left, f"circles among {sorted(left)}"


def test_cache_needs_no_torch() -> None:
    code = "import sys, ser.cache.store; sys.exit('torch' in sys.modules or 'zarr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd="/").returncode == 0


def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "librosa", "opensmile", "sklearn", "scipy", "zarr", "h5py", "numpy", "pyarrow"}
    code = (
        "import sys\nfrom ser.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        f"sys.exit(','.join({heavy!r} & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_cache_list_imports_nothing_slow(tmp_path: Path) -> None:
    """It has half a second of CPU for IEMOCAP times five features; imports take most of it."""
    make_store(tmp_path / "store")
    slow = {"torch", "transformers", "librosa", "opensmile", "sklearn", "scipy", "zarr", "h5py", "pyarrow.compute"}
    code = (
        "import sys\nfrom ser.cli import main\n"
        f"try: main(['cache', 'list', '--store', {str(tmp_path / 'store')!r}])\nexcept SystemExit: pass\n"
        f"sys.exit(','.join({slow!r} & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert run.returncode == 0 and "is13" in run.stdout, run.stderr


def test_training_starts_without_importing_anything_slow_but_torch(tmp_path: Path) -> None:
    """Each would take a third of a second or more of CPU; the final scores are scikit-learn's, and pay for it."""
    make_store(tmp_path / "store")
    slow = {"torch._dynamo", "sklearn", "scipy", "sympy", "transformers", "librosa", "soundfile", "zarr", "distributed"}
    places = f"'--store', {str(tmp_path / 'store')!r}, '--out', {str(tmp_path / 'runs')!r}"
    asked = f"'--features', 'is13+bert', '--fusion', 'lgf-add', '--dry-run', '--device', 'cpu', {places}"
    code = (
        "import sys\nfrom ser.cli import main\n"
        f"try: main(['train', {asked}])\nexcept SystemExit: pass\n"
        f"sys.exit(','.join({slow!r} & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert run.returncode == 0 and "updates, about" in run.stdout, run.stderr


def test_every_package_is_named_in_pyproject() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    named = set(settings["packages"])
    found = {".".join(["ser", *p.parent.relative_to(ROOT).parts]) for p in sources() if p.parent != ROOT}
    assert named == found | {"ser"}


def test_wheel_alone_runs(tmp_path: Path) -> None:
    """The built wheel, unpacked away from the checkout, has every package, recipe and the command."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."]
    copy = tmp_path / "checkout"
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, names):
        if not (ROOT / name).is_file():
            continue
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(build, cwd=copy, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("ser-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    recipes = {p.name for p in (ROOT / "train" / "recipes").glob("*.toml")}
    assert {p.name for p in (site / "ser" / "train" / "recipes").glob("*.toml")} == recipes
    assert not (site / "ser" / "tests").exists()
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "names = lambda f: type(f).__module__ + getattr(f, '__module__', '')\n"
        "sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in names(finder)]\n"
        "import ser.cli, ser.train.models, ser.extract.corpora, ser.commands.corpus\n"
        f"assert ser.cli.__file__.startswith({str(site)!r}), ser.cli.__file__\n"
        "ser.cli.main(['--help'])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0 and "features" in run.stdout, run.stderr
