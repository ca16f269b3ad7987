"""`import ser`: a door with all public names, light to open."""

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import ser
from ser.errors import WrongUse
from ser.tests.api_signatures import documented
from ser.tests.test_house import DOOR

HEAVY = ("torch", "numpy", "pyarrow", "transformers", "click", "msgspec", "pandas")


def names_for_type_checkers() -> set[str]:
    """What the door imports, or declares, where only type checkers read it."""
    names = set[str]()
    for node in ast.parse(DOOR.read_text(encoding="utf-8")).body:
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            continue
        for statement in node.body:
            if isinstance(statement, ast.ImportFrom):
                names |= {alias.asname or alias.name for alias in statement.names}
            elif isinstance(statement, ast.AnnAssign):
                names.add(ast.unparse(statement.target))
    return names


def test_import_ser_imports_no_room_and_nothing_heavy() -> None:
    code = (
        "import sys, ser; from_rooms = [name for name in sys.modules if name.startswith('ser.')]\n"
        f"sys.exit(' '.join([*from_rooms, *({set(HEAVY)!r} & set(sys.modules))]) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_name_opens_and_is_shown_to_completion_and_type_checkers() -> None:
    assert names_for_type_checkers() == set(ser.__all__)
    assert set(ser.__all__) <= set(dir(ser))
    for name in ser.__all__:
        value = getattr(ser, name)
        assert name == "__version__" or value.__doc__, f"ser.{name} says nothing"


def test_the_documented_names_are_on_the_door() -> None:
    assert set(documented()["ser"]) == set(ser.__all__) - {"SerError", "__version__"}


def test_the_version_is_that_of_the_distribution() -> None:
    assert ser.__version__ == version("ser-fusion")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'ser' has no attribute 'opne_store'"):
        ser.opne_store  # noqa: B018


@pytest.mark.parametrize("name", ["extract", "train", "predict"])
def test_rooms_stay_packages_and_modules(name: str) -> None:
    __import__(f"ser.{name}")
    assert getattr(ser, name) is sys.modules[f"ser.{name}"]


def test_features_in_one_call_reuse_what_the_store_has(newcomer: Path, tmp_path: Path) -> None:
    options = {"corpus": newcomer / "corpus", "features": "logmel", "store": tmp_path / "features"}
    stages = set[str]()
    first = ser.extract_features(**options, on_progress=lambda stage, *_: stages.add(stage))
    again = ser.extract_features(ser.ExtractionConfig(**options))
    assert stages >= {"decode", "logmel"}
    assert first.features["logmel"]["computed"] == again.features["logmel"]["reused"] > 0

    manifest = ser.read_corpus(newcomer / "corpus")
    assert manifest.ids == ser.open_store(tmp_path / "features").manifest().ids


def test_a_config_and_its_fields_contradict_each_other() -> None:
    with pytest.raises(WrongUse, match="an ExtractionConfig, or its fields by name, and not both"):
        ser.extract_features(ser.ExtractionConfig(Path("corpus")), features="logmel")
