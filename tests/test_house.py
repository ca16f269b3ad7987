"""The rules of the house that no single module can keep: who imports whom, what is light, what the
wheel holds.
"""

import ast
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from ser.extract.registry import FEATURES

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "audit",
    "cache",
    "commands",
    "corpus",
    "disk",
    "engines",
    "explore",
    "export",
    "extract",
    "predict",
    "train",
    "weights",
)
# Each room and the rooms below it that it may import; errors, options, plugins and children lie
# below all.
BELOW_CACHE = {"disk", "corpus"}
STAGES = {*BELOW_CACHE, "cache", "engines", "weights"}
MAY_IMPORT = {
    "errors": set(),
    "options": set(),
    "plugins": set(),
    "children": set(),
    "disk": {"disk"},
    "corpus": {"corpus", "disk"},
    "cache": {"cache", *BELOW_CACHE},
    "engines": {"engines", "cache", *BELOW_CACHE},
    "weights": {"weights", "cache", *BELOW_CACHE},
    "extract": {"extract", *STAGES},
    "train": {"train", *STAGES},
    "predict": {"extract", "predict", "train", *STAGES},
    "export": {"export", "extract", "predict", "train", *STAGES},
    "audit": {"audit", "extract", "train", *STAGES},
    "explore": {"explore", "train", *STAGES},
    "doctor": {"extract", "train", *STAGES},
    "commands": {
        *("audit", "commands", "doctor", "explore", "export", "extract", "predict", "train"),
        *STAGES,
    },
    "cli": {"commands"},
    "__main__": {"cli"},
}
# What reads corpora, or recognises them: only the table of the formats imports these.
READERS = (
    "ser.extract.corpora.iemocap:read_iemocap",
    "ser.extract.corpora.audformat:read_audformat",
    "ser.extract.corpora.table:read_table",
    "ser.extract.corpora.folder:read_folder",
    "ser.extract.corpora.described:read_described",
    "ser.extract.corpora.described:fits",
)
HEAVY = {"torch", "transformers", "librosa", "opensmile", "sklearn", "scipy", "zarr", "h5py"}


def module(path: Path) -> str:
    """The dotted name below `ser`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


# Every module of the package, but not tests, benchmarks and docs. The root's `__init__.py` is left
# out: it is a door, which alone may import any room; see `test_no_room_imports_from_the_door`.
DOOR = ROOT / "__init__.py"
PATHS = [path for path in ROOT.glob("*.py") if path != DOOR]
for _room in ROOMS:
    PATHS += (ROOT / _room).rglob("*.py")
MODULES = {module(path): path for path in PATHS}


@cache
def imports(name: str) -> list[tuple[str, list[str]]]:
    """Each import of ours, at the top, in a function or for a type checker: the module below `ser`,
    the names taken.
    """
    path = MODULES[name]
    package = ["ser", *(name if path.name == "__init__.py" else name.rpartition(".")[0]).split(".")]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found.append((base, [alias.name for alias in node.names]))
    return [(base[4:], names) for base, names in found if f"{base}.".startswith("ser.")]


def needs(name: str) -> Iterator[str]:
    """The modules of ours that a module imports."""
    for base, names in imports(name):
        inside = {f"{base}.{one}".strip(".") for one in names} & MODULES.keys()
        yield from (inside or {base}) - {name}


def test_imports_follow_the_direction() -> None:
    for name in MODULES:
        room = name.partition(".")[0]
        allowed = MAY_IMPORT[room] | {"errors", "options", "plugins", "children"}
        wrong = [other for other in needs(name) if other.partition(".")[0] not in allowed]
        assert not wrong, f"{name} imports {wrong}"


def test_no_module_imports_what_is_under_the_gpl() -> None:
    """Praat's measures are a package of their own, `plugins/ser-praat`."""
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            imported = {taken.partition(".")[0] for taken in modules}
            assert not imported & {"parselmouth", "ser_praat"}, name


def test_no_circle_of_imports() -> None:
    """At any level; the error names the files of a circle."""
    TopologicalSorter({name: needs(name) for name in MODULES}).prepare()


def test_no_room_imports_from_the_door() -> None:
    """`from ser import engines` takes a room; all else that `ser` has is for users."""
    for name in MODULES:
        for base, taken in imports(name):
            if base == "":
                assert taken and MODULES.keys() >= set(taken), f"{name} imports {taken} from ser"


def test_nothing_private_is_imported() -> None:
    taken = {
        f"{name}: {base}.{one}"
        for name in MODULES
        for base, names in imports(name)
        for one in names
    }
    assert not {line for line in taken if line.rpartition(".")[2].startswith("_")}


def test_extractors_and_corpora_are_reached_through_their_registries() -> None:
    """As those are that users add: no other file imports one, but for a class derived from it."""
    registered = {
        (kind.extractor_class.__module__, kind.extractor_class.__name__)
        for kind in FEATURES.values()
    }
    derived = {module.removeprefix("ser.") for module, _ in registered}
    for reader in READERS:
        registered.add(tuple(reader.split(":")))
    assert len(registered) > 7
    for name in MODULES.keys() - derived - {"extract.registry", "extract.corpora.formats"}:
        taken = {(f"ser.{base}", one) for base, names in imports(name) for one in names}
        assert not taken & registered, name


@pytest.mark.parametrize(
    ("code", "heavy", "says"),
    [
        ("import ser; print(dir(ser))", HEAVY | {"numpy", "pyarrow", "msgspec"}, "open_store"),
        ("import ser.cache.store, ser.cache.tools.exporting", {"torch", "zarr", "pandas"}, ""),
        (
            "main(['--help'], standalone_mode=0); main(['train', '--help'])",
            HEAVY | {"numpy", "pyarrow"},
            "--fusion",
        ),
        # Half a second of CPU for IEMOCAP times five features; imports take most of it.
        ("main(['cache', 'list', '--store', 'store'])", HEAVY | {"pyarrow.compute"}, "is13"),
        # Each would take a third of a second or more of CPU.
        (
            "import torch; from ser.train.fit import Adam; "
            "from ser.train.estimate import estimate; "
            "from ser.train.experiment import Experiment, prepare; "
            "from ser.train.flops import count_flops; "
            "jobs = prepare(Experiment('is13+bert', 'lgf-add', store='store')); "
            "print(estimate(jobs)); count_flops(jobs, 1); "
            "adam = Adam([torch.nn.Parameter(torch.ones(3))], fused=True); "
            "adam.load_state_dict(adam.state_dict())",
            HEAVY - {"torch"} | {"torch._dynamo", "sympy", "soundfile", "distributed"},
            "updates=",
        ),
    ],
)
def test_nothing_heavy_is_imported(
    code: str, heavy: set[str], says: str, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "store").symlink_to(store)
    code = f"import sys\nfrom ser.cli import main\ntry: {code}\nexcept SystemExit: pass\n"
    code += f"sys.exit(','.join({heavy!r} & set(sys.modules)) or 0)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0 and says in run.stdout, run.stderr


def test_wheel_alone_runs(tmp_path: Path) -> None:
    """The built wheel, unpacked away from the checkout, has every file of the package and the
    command.
    """
    # As pip calls it.
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    copy = tmp_path / "checkout"
    site = tmp_path / "site"
    names = subprocess.run(
        # Also what is new and not yet added.
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    names = [name for name in names if (ROOT / name).is_file()]
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    [wheel] = tmp_path.glob("ser_fusion-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    ours = {name for name in names if name.split("/")[0] in ROOMS or name == "py.typed"}
    ours |= {path.name for path in ROOT.glob("*.py")}
    assert {str(path.relative_to(site / "ser")) for path in (site / "ser").rglob("*.*")} == ours
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "names = lambda f: type(f).__module__ + getattr(f, '__module__', '')\n"
        "others = [finder for finder in sys.meta_path if 'editable' not in names(finder)]\n"
        "sys.meta_path[:] = others\n"
        "import ser.cli, ser.train.models, ser.train.report.page\n"
        "from ser.extract.corpora import counts, demo, described\n"
        f"assert ser.cli.__file__.startswith({str(site)!r}), ser.cli.__file__\n"
        "ser.cli.main(['--help'])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0 and "features" in run.stdout, run.stderr
