"""An exported run gives what `ser predict` gives, in a process that cannot import ser."""

import importlib
import json
import shutil
import subprocess
import sys
import types
from dataclasses import fields, replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

from ser.errors import CorpusError, CorruptStore, WrongUse
from ser.export import export, plain_layers, source_of
from ser.extract.run import ExtractionConfig, extract, plan
from ser.predict import Predictor, Turn, predict
from ser.tests.command_line import ser
from ser.tests.newcomer import RUNS, run_of
from ser.tests.plain_layers import DIMS, LONG, TINY, build, make_batch, without
from ser.tests.test_predict import turns_of
from ser.train.experiment import Experiment, run_experiment
from ser.train.models import FUSIONS
from ser.train.models.ragged import Batch
from ser.train.run_folder import RESULT
from ser.weights.demo import write_random_checkpoint

# Runs exported scripts where `import ser` fails: of each what it prints, its exit code, and its
# standard error.
WITHOUT_SER = """
import contextlib, io, json, runpy, sys
sys.modules["ser"], sys.path[0], done = None, "", []
for folder, *arguments in json.load(sys.stdin):
    sys.argv, sys.path[0], fault = ["run.py", *arguments], folder, None
    for name in ("model", "audio"):
        sys.modules.pop(name, None)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            runpy.run_path(f"{folder}/run.py", run_name="__main__")
        except SystemExit as exit:
            fault = exit.code
    done.append([json.loads(out.getvalue() or "null"), fault, errors.getvalue()])
print(json.dumps(done))
"""


def without_ser(calls: list[list[str]]) -> Any:
    """The answers of exported scripts if any, their exit codes, and their standard errors."""
    command = [sys.executable, "-B", "-c", WITHOUT_SER]
    done = subprocess.run(
        command, input=json.dumps(calls), stdout=subprocess.PIPE, text=True, check=True
    )
    return zip(*json.loads(done.stdout), strict=True)


def told(answers: Any) -> np.ndarray:
    return np.array(
        [[*one["probabilities"].values(), *one.get("ratings", {}).values()] for one in answers]
    )


def test_every_run_gives_what_predict_gives_without_ser(newcomer: Path, tmp_path: Path) -> None:
    calls, wanted = [], []
    for name in [*RUNS, "mit without text"]:
        predictor = Predictor(run_of(newcomer, name.split()[0]).path)
        turns = [
            replace(one, dialogue="a", turn=i)
            for i, one in enumerate(turns_of(newcomer, predictor.run)[:2])
        ]
        if "without" in name:
            turns = [replace(turn, text=None) for turn in turns]
        else:
            said = export(predictor.run.path, tmp_path / name)
            if find_spec("onnx") and find_spec("onnxruntime"):
                known = {
                    "mit": "gives torch's numbers within",
                    "icon": "icon cannot be written as ONNX (a graph of it",
                }
                assert known.get(name, "") in said
                assert (tmp_path / name / "model.onnx").is_file() == ("cannot" not in said)
            assert "model.onnx" in said and said in (tmp_path / name / "README.md").read_text()
            assert len((tmp_path / name / "run.py").read_text().splitlines()) < 70
        inputs, spoken = predictor.fusion.inputs, predictor.fusion.unit == "dialogue"
        words = [str(turn.audio) for turn in turns if "audio" in inputs]
        words += [
            word
            for turn in turns
            if "text" in inputs and turn.text
            for word in ("--text", turn.text)
        ]
        words += [word for turn in turns if spoken for word in ("--speaker", turn.speaker)]
        calls.append([str(tmp_path / name.split()[0]), *words])
        wanted.append(
            [
                [*one.probabilities.values(), *one.ratings.values()]
                for one in predictor(turns).predictions
            ]
        )
    other = write_random_checkpoint(tmp_path / "other", "hubert", seed=7)
    calls += [
        [*calls[0], "--model", f"hubert={other}"],
        calls[0][:1],
        [calls[2][0], *calls[2][1:3]],
    ]
    bad = {name: tmp_path / f"{name}.wav" for name in ("short", "cut", "nan", "page")}
    sf.write(bad["short"], np.zeros(160), 16000)
    sf.write(bad["cut"], np.zeros(16000), 16000)
    bad["cut"].write_bytes(bad["cut"].read_bytes()[:9000])
    sf.write(bad["nan"], np.full(16000, np.nan), 16000, subtype="FLOAT")
    bad["page"].write_text("<html>")
    for name, file in product(("mit", "lgf-add", "superb"), bad.values()):
        predictor = Predictor(run_of(newcomer, name).path)
        said = "Hello." if "text" in predictor.fusion.inputs else None
        calls.append([str(tmp_path / name), str(file), *(["--text", said] if said else [])])
        with pytest.raises(CorpusError):
            predictor([Turn("1", file, said)])
    found, faults, errors = without_ser(calls)
    assert set(faults[: len(wanted)]) == {None}
    for answers, values in zip(found, wanted, strict=False):
        assert np.abs(told(answers) - values).max() < 1e-6
    refused, none, lacking, *unusable = faults[len(wanted) :]
    assert "is not what the features were computed with; give --model hubert=FOLDER" in refused
    assert none == lacking == 2
    assert "give each utterance its audio and text" in "".join(
        errors
    ) and "required: --text" in "".join(errors)
    assert (
        "+" not in (tmp_path / "mit" / "requirements.txt").read_text()
    )  # a build of torch that no index has
    assert len(unusable) == 12 and all(
        fault.startswith("run.py: utterance 1: ") for fault in unusable
    )
    card = (tmp_path / "class+vad" / "README.md").read_text()
    assert (
        "Trained on synthetic speech" in card
        and "random weights" in card
        and "| CCC of valence" in card
    )
    assert "session-out, session 1: this is the model of one fold" in card


@pytest.mark.parametrize("name", FUSIONS)
def test_the_plain_source_of_every_fusion_gives_the_same_numbers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fusion, plain = FUSIONS[name], types.ModuleType("exported")
    monkeypatch.setitem(sys.modules, "exported", plain)
    monkeypatch.setitem(sys.modules, "plain_layers", plain_layers)
    root = fusion.build.func if isinstance(fusion.build, partial) else fusion.build
    text = source_of([Batch, fusion.settings, root])
    assert "\nimport ser" not in text and "\nfrom ser" not in text
    exec(text, vars(plain))
    settings = {one.name: TINY[one.name] for one in fields(fusion.settings) if one.name in TINY}
    dims, keywords = {m: DIMS[m] for m in fusion.inputs}, getattr(fusion.build, "keywords", {})
    model = getattr(plain, root.__name__)(
        getattr(plain, fusion.settings.__name__)(**settings), dims, 4, **keywords
    )
    torch.manual_seed(0)
    fast = build(name).eval()
    model.load_state_dict(fast.state_dict())
    whole = make_batch(name, LONG)
    hidden = {"text": torch.tensor([False, True, False, True])}
    both = len(fusion.inputs) == 2 and fusion.level == "sequence"
    for batch in (whole, without(whole, hidden)) if both else (whole,):
        given = plain.Batch(batch.inputs, batch.dialogues, batch.speakers)
        for head, logits in model.eval()(given).items():
            torch.testing.assert_close(logits, fast(batch)[head], rtol=0, atol=1e-6)


def test_constants_of_one_name_stand_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_model.py").write_text(
        "from ser.train.models.usc import CnnBert\nBOTH = ['mine']\nSTAGES: int = 3\n\n\n"
        "class Own(CnnBert):\n    def inputs(self):\n        return BOTH\n\n\nclass Cnn(Own):\n    pass\n\n\n"
        "class Hiding(CnnBert):\n    def inputs(self, BOTH=BOTH):\n        return BOTH\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own, exported = importlib.import_module("own_model"), types.ModuleType("exported")
    monkeypatch.setitem(sys.modules, "exported", exported)
    monkeypatch.setitem(sys.modules, "plain_layers", plain_layers)
    exec(source_of([Batch, own.Own]), vars(exported))
    assert exported.BOTH == ("audio", "text") and exported.Own.inputs(None) == ["mine"]
    with pytest.raises(
        WrongUse, match=r"Cnn: another Cnn would stand beside it in one file; rename one of them"
    ):
        source_of([own.Cnn])
    with pytest.raises(
        WrongUse, match=r"own_model.Hiding: a parameter is called BOTH, as two constants are"
    ):
        source_of([Batch, own.Hiding])


def test_a_large_encoder_opensmile_and_classes_of_any_name(newcomer: Path, tmp_path: Path) -> None:
    """The encoder ends in a LayerNorm, before which transformers takes the last of its hidden
    states.
    """
    large = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
    models = {"hubert": str(write_random_checkpoint(tmp_path / "large", "hubert", **large))}
    extract(
        plan(
            ExtractionConfig(
                newcomer / "corpus", "hubert,is13", store=tmp_path / "features", models=models
            )
        )
    )
    (tmp_path / "labels.toml").write_text('"a|*b*" = ["ang", "sad"]\n"<i>c" = ["hap", "neu"]\n')
    options = {
        "store": tmp_path / "features",
        "out": tmp_path / "runs",
        "labels": str(tmp_path / "labels.toml"),
    }
    [run] = run_experiment(
        Experiment("hubert+is13", "audio:utterance", epochs=1, folds=1, **options)
    )
    export(run.path, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert r"a\|\*b\*, &lt;i&gt;c" in card and "<i>" not in card
    wav = next((newcomer / "corpus").rglob("wav/*/*.wav"))
    [one] = predict(run.path, [wav]).predictions
    sf.write(tmp_path / "short.wav", np.zeros(450), 16000)  # long enough for HuBERT
    altered = {"config.json": b"1", "model.safetensors": b"\0"}
    calls = [[str(tmp_path / "out"), str(file)] for file in (wav, tmp_path / "short.wav")]
    for name, old in altered.items():
        folder = shutil.copytree(tmp_path / "out", tmp_path / f"out of another {name}")
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(kept[: (at := kept.rindex(old))] + b"2" + kept[at + 1 :])
        calls.append([str(folder), str(wav)])
    (found, *_), (_, short, *refused), _ = without_ser(calls)
    assert np.abs(told(found) - [*one.probabilities.values()]).max() < 1e-6
    assert (
        "utterance 1: its audio gives no rows, or values that cannot be; it may be too short"
        in short
    )
    for name, said in zip(altered, refused, strict=True):
        assert f"{name} was altered or cut short; export the run again" in said


def test_wrong_use_of_export(newcomer: Path, tmp_path: Path) -> None:
    run = run_of(newcomer, "text")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    done = ser("export", run.path, tmp_path / "full")
    assert done.exit_code == 2 and "is there already and not an empty folder" in done.stderr
    (tmp_path / "loop").symlink_to("loop")
    assert "Not a directory" in ser("export", run.path, tmp_path / "loop").stderr
    copies = {
        kind: Path(shutil.copytree(run.path, tmp_path / kind / run.name))
        for kind in ("open", "altered")
    }
    (copies["open"] / RESULT).unlink()
    with pytest.raises(WrongUse, match="not finished"):
        export(copies["open"], tmp_path / "out")
    weights = bytearray((copies["altered"] / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copies["altered"] / "model.safetensors").write_bytes(weights)
    with pytest.raises(
        CorruptStore, match=r"model.safetensors: is not the file that result.json names"
    ):
        export(copies["altered"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
