"""An exported run gives what `ser predict` gives, in a process that cannot import ser."""

import dataclasses
import json
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ser.errors import CorruptStore, WrongUse
from ser.export import export, plain_layers
from ser.export.source import source_of
from ser.predict import Predictor, Turn
from ser.tests.newcomer import RUNS, run_of
from ser.tests.plain_layers import DIMS, LONG, TINY, build, make_batch, without
from ser.tests.test_predict import ser, turns_of
from ser.train.models import FUSIONS
from ser.train.run_folder import RESULT
from ser.weights.demo import write_random_checkpoint

# Runs exported scripts one after the other, where `import ser` fails, and prints what each exits with.
WITHOUT_SER = """
import json, runpy, sys
sys.modules["ser"], sys.path[0] = None, ""
for folder, *arguments in json.load(sys.stdin):
    sys.argv, sys.path[0], fault = ["run.py", *arguments], folder, None
    sys.modules.pop("model", None)
    try:
        runpy.run_path(f"{folder}/run.py", run_name="__main__")
    except SystemExit as exit:
        fault = exit.code
    print("\\0", json.dumps(fault), "\\0")
"""


def arguments_of(turns: list[Turn], inputs: tuple[str, ...], speakers: bool) -> list[str]:
    files = [str(turn.audio) for turn in turns if "audio" in inputs and turn.audio]
    texts = [word for turn in turns if "text" in inputs and turn.text for word in ("--text", turn.text)]
    return [*files, *texts, *(word for turn in turns if speakers for word in ("--speaker", str(turn.speaker)))]


def test_every_run_gives_what_predict_gives_without_ser(newcomer: Path, tmp_path: Path) -> None:
    calls, wanted = [], []
    for name in [*RUNS, "mit without text"]:
        predictor = Predictor(run_of(newcomer, name.split()[0]).path)
        turns = [
            Turn(t.id, t.audio, t.text, "a", i, None, t.speaker)
            for i, t in enumerate(turns_of(newcomer, predictor.run)[:2])
        ]
        if "without" in name:
            turns = [dataclasses.replace(turn, text=None) for turn in turns]
        else:
            said = export(predictor.run.path, tmp_path / name)
            assert "model.onnx" in said and said in (tmp_path / name / "README.md").read_text()
        spoken = predictor.fusion.unit == "dialogue"
        calls.append([str(tmp_path / name.split()[0]), *arguments_of(turns, predictor.fusion.inputs, spoken)])
        wanted.append([[*one.probabilities.values(), *one.ratings.values()] for one in predictor(turns).predictions])
    other = write_random_checkpoint(tmp_path / "other", "hubert", seed=7)
    calls += [[*calls[0], "--model", f"hubert={other}"], calls[0][:1], [calls[2][0], *calls[2][1:3]]]
    done = subprocess.run(
        [sys.executable, "-B", "-c", WITHOUT_SER], input=json.dumps(calls), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *answers, refused, none, lacking = zip(*[iter(done.stdout.split("\0"))] * 2, strict=False)
    for (found, fault), values in zip(answers, wanted, strict=True):
        assert json.loads(fault) is None
        told = [[*one["probabilities"].values(), *one.get("ratings", {}).values()] for one in json.loads(found)]
        assert np.abs(np.array(told) - values).max() < 1e-6
    assert "is not what the features were computed with; give --model hubert=FOLDER" in json.loads(refused[1])
    assert (
        json.loads(none[1]) == json.loads(lacking[1]) == 2 and "give each utterance its audio and text" in done.stderr
    )
    card = (tmp_path / "class+vad" / "README.md").read_text()
    assert "Trained on synthetic speech" in card and "random weights" in card and "| CCC of valence" in card
    assert "session-out, session 1: this is the model of one fold" in card


@pytest.mark.parametrize("name", FUSIONS)
def test_the_plain_source_of_every_fusion_gives_the_same_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fusion, plain = FUSIONS[name], types.ModuleType("exported")
    monkeypatch.setitem(sys.modules, "exported", plain)
    monkeypatch.setitem(sys.modules, "plain_layers", plain_layers)
    root = fusion.build.func if isinstance(fusion.build, partial) else fusion.build
    text = source_of([fusion.settings, root])
    assert "\nimport ser" not in text and "\nfrom ser" not in text
    exec(text, vars(plain))
    settings = {one.name: TINY[one.name] for one in dataclasses.fields(fusion.settings) if one.name in TINY}
    dims, keywords = {m: DIMS[m] for m in fusion.inputs}, getattr(fusion.build, "keywords", {})
    model = getattr(plain, root.__name__)(getattr(plain, fusion.settings.__name__)(**settings), dims, 4, **keywords)
    torch.manual_seed(0)
    fast = build(name).eval()
    model.load_state_dict(fast.state_dict())
    whole = make_batch(name, LONG)
    hidden = {"text": torch.tensor([False, True, False, True])}
    both = len(fusion.inputs) == 2 and fusion.level == "sequence"
    for batch in (whole, without(whole, hidden)) if both else (whole,):
        given = {field.name: getattr(batch, field.name) for field in dataclasses.fields(plain_layers.Batch)}
        for head, logits in model.eval()(plain_layers.Batch(**given)).items():
            torch.testing.assert_close(logits, fast(batch)[head], rtol=0, atol=1e-6)


def test_wrong_use_of_export(newcomer: Path, tmp_path: Path) -> None:
    run = run_of(newcomer, "text")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    done = ser("export", run.path, tmp_path / "full")
    assert done.exit_code == 2 and "is there already and not an empty folder" in done.stderr
    copies = {}
    for kind in ("open", "altered"):
        copies[kind] = tmp_path / kind / run.name
        copies[kind].mkdir(parents=True)
        for file in run.path.iterdir():
            (copies[kind] / file.name).write_bytes(file.read_bytes())
    (copies["open"] / RESULT).unlink()
    with pytest.raises(WrongUse, match="not finished"):
        export(copies["open"], tmp_path / "out")
    weights = bytearray((copies["altered"] / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copies["altered"] / "model.safetensors").write_bytes(weights)
    with pytest.raises(CorruptStore, match=r"model.safetensors: is not the file that result.json names"):
        export(copies["altered"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_onnx_gives_the_same_numbers_or_says_why_not(newcomer: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    assert "gives torch's numbers within" in export(run_of(newcomer, "mit").path, tmp_path / "mit")
    assert (tmp_path / "mit" / "model.onnx").is_file()
    assert "icon cannot be written as ONNX" in export(run_of(newcomer, "icon").path, tmp_path / "icon")
    assert not (tmp_path / "icon" / "model.onnx").exists()
