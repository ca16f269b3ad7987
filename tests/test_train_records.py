"""What config.json and result.json hold: the same bytes back, and keys that this ser does not know.

That real runs of every target give their bytes back is tested in test_targets.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ser.errors import CorruptStore
from ser.tests.made_run import made_config, made_result, write_run
from ser.train.records import (
    CorpusRecord,
    FeatureRecord,
    RunConfig,
    RunResult,
    SplitCorpus,
    UndecidedScores,
    from_json,
    to_json,
)
from ser.train.run_folder import CONFIG, Run, run_name

LAYER = FeatureRecord(feature="hubert:layer=6", fingerprint="1" * 16, pool="mean", hop=0.1)
JOINED = FeatureRecord(
    feature="hubert:layers=6-7",
    fingerprint="2" * 16,
    pool="mean",
    sums=[(2, 768)],
    joined=[LAYER, LAYER],
)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        pytest.param({}, [], id="plain"),
        pytest.param({"only": "scripted", "code": "f" * 64}, ["only", "code"], id="optional"),
        pytest.param({"features": {"audio": JOINED}}, [], id="joined"),
    ],
)
def test_a_config_is_the_same_after_its_json(changes: dict[str, Any], keys: list[str]) -> None:
    config = made_config(**changes)
    values = json.loads(json.dumps(to_json(config)))
    assert from_json(RunConfig, values) == config
    assert [key for key in ("only", "target", "code", "others") if key in values] == keys
    assert list(values)[-1] == "provenance" and list(values)[:2] == ["version", "corpus"]


def test_a_result_is_the_same_after_its_json() -> None:
    corpus = SplitCorpus(synthetic=True, classes={"ang": 3}, train=1, dev=1, test=1)
    result = made_result(
        made_config(),
        no_majority=UndecidedScores(n=2, kl=0.5, js=0.25, multilabel_f1=0.75),
        corpora={"acted": corpus},
        standardise_by="all",
        layers={"hubert:layer=6": 0.5},
    )
    values = json.loads(json.dumps(to_json(result)))
    assert from_json(RunResult, values) == result
    assert list(values)[:7] == list(values["tests"]["both"])
    assert list(values["corpora"]["acted"]) == ["synthetic", "classes", "train", "dev", "test"]


def test_a_key_of_a_later_ser_stays_part_of_the_name(tmp_path: Path) -> None:
    known = made_config()
    values = {**to_json(known), "later": 3}
    config = from_json(RunConfig, values)
    assert config.others == {"later": 3} and to_json(config) == values
    assert run_name(config) != run_name(known)

    run = Run(tmp_path / run_name(config))
    run.path.mkdir()
    run.write_json(CONFIG, values)
    assert Run(run.path).config == config


def test_what_is_no_record_is_refused_in_one_sentence(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    run.write_json(CONFIG, {**to_json(run.config), "seed": "none"})
    (run.path / "result.json").unlink()
    with pytest.raises(CorruptStore, match=r"config.json: cannot be read .*`\$.seed`"):
        _ = Run(run.path).config


@pytest.mark.parametrize("kind", [RunConfig, RunResult, FeatureRecord, CorpusRecord])
def test_every_field_says_what_it_holds(kind: type[msgspec.Struct]) -> None:
    """By a text below it, as `help` and the docs show it."""
    import ast
    import inspect

    [node] = ast.parse(inspect.getsource(kind)).body
    assert isinstance(node, ast.ClassDef)
    for field, text in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(text, ast.Expr), ast.unparse(field)
