"""A trained run as a folder that needs no ser: the model's code as one file, its weights, and a script that calls it.

`model.py` is the model's own source on `plain_layers.py`, which is copied as it is. `run.py` computes the features by
the libraries that ser calls, one utterance at a time. These, `to_onnx.py` and the model card have templates here.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from inspect import getmodule
from pathlib import Path
from typing import Any

from safetensors.torch import save

from ser.cache.atomic_io import explain_disk_errors, make_folder, move_into_place, write_folder
from ser.cache.transfer import file_digest
from ser.errors import DISTRIBUTION, WrongUse
from ser.extract.extractors import ResolvedFeature
from ser.predict import Predictor
from ser.train.models import FUSIONS, encoder, superb
from ser.train.targets import TARGETS, scale_of
from ser.weights.find import BESIDE

from . import plain_layers
from .source import source_of

__all__ = ["export"]

AUDIO, ENCODER = ("soundfile", "soxr"), ("huggingface_hub", "transformers")
# The extractors that `run.py` can call, and what they need beside numpy, torch and safetensors.
PACKAGES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("speech", "w2v-bert", "whisper"), (*AUDIO, *ENCODER)),
    "text": ENCODER,
    "mel": (*AUDIO, "librosa", "scipy"),
    "smile": (*AUDIO, "opensmile"),
}


def export(run: str | Path, folder: str | Path, models: Mapping[str, str] | Iterable[str] = ()) -> str:
    """Write the run to a new or empty `folder`, whole or not at all. Returns what came of `model.onnx`, a sentence.

    `models` says where encoder weights lie now, as for `predict`. Raises `WrongUse` if the run is not finished, the
    folder holds something, or `run.py` could not compute a feature.
    """
    path = Path(folder).resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise WrongUse(f"{folder}: is there already and not an empty folder; name another one")
    predictor = Predictor(run, models, "cpu")
    about, packages = _about(predictor), {"numpy", "safetensors", "torch"}
    extractors = {one["extractor"] for of in about["features"].values() for one in of}
    packages = packages.union(*(PACKAGES[one] for one in extractors), ["transformers"] * bool(about["encoder"]))
    tensors = {name: value.contiguous() for name, value in predictor.model.state_dict().items()}
    for modality, scale in predictor.scaling.items():  # row 0 is that of speech of no corpus of the training part
        for name, value in (("mean", scale.mean), ("std", scale.std)):
            tensors[f"scaling.{modality}.{name}"] = value.view(-1, value.shape[-1])[0].clone()
    fusion = FUSIONS[about["fusion"]]
    build: Any = fusion.tune if about["encoder"] else fusion.build
    root = build.func if isinstance(build, partial) else build
    used = [superb.LayerSums] * bool(about["sums"]) + [encoder.untrained] * bool(about["encoder"])
    given = {
        "about": about,
        "extractors": extractors,
        "config": predictor.run.config,
        "result": predictor.run.result,
        "paper": fusion.source,
        "ser": f"{DISTRIBUTION} {version(DISTRIBUTION)}",
        "title": getattr(getmodule(root), "__doc__", None) or fusion.source,
        "source": source_of([*used, fusion.settings, root]),
        "settings": fusion.settings.__name__,
        "build": root.__name__,
        "keywords": getattr(build, "keywords", {}),
    }
    files = {name: [_written(name, given)] for name in ("model.py", "run.py", "to_onnx.py")}
    files["plain_layers.py"] = [Path(plain_layers.__file__).read_bytes()]
    files["config.json"] = [json.dumps(about, indent=1, ensure_ascii=False).encode() + b"\n"]
    files["model.safetensors"] = [save(tensors)]
    files["requirements.txt"] = ["".join(f"{name}=={version(name)}\n" for name in sorted(packages)).encode()]
    make_folder(path.parent)
    with (
        explain_disk_errors(f"exporting to {folder}", path.parent),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as parent,
    ):
        begun = Path(parent) / path.name
        write_folder(begun, files)
        said = "no model.onnx: install ser-fusion[onnx], and run to_onnx.py"
        if find_spec("onnx") and find_spec("onnxruntime"):
            done = subprocess.run([sys.executable, "-B", "to_onnx.py"], cwd=begun, capture_output=True, text=True)
            said = (done.stdout if done.returncode == 0 else done.stderr).strip().split("\n")[-1]
        write_folder(begun, {"README.md": [_written("README.md", {**given, "onnx": said})]})
        if not move_into_place(begun, path):
            raise WrongUse(f"{folder}: another process has written to it; name another folder")
    return said


def _about(predictor: Predictor) -> dict[str, Any]:
    """What the exported `config.json` says, all that `model.py` and `run.py` have to know."""
    config, fusion, settings = predictor.run.config, predictor.fusion, predictor.settings
    target, sums = TARGETS[predictor.plan.target], {m: one.get("sums", []) for m, one in config["features"].items()}
    sums = {m: of for m, of in sums.items() if any(layers > 1 for layers, _ in of)}
    tuned = config["provenance"].get("encoders", {}).get("text") if getattr(settings, "finetune_layers", 0) else None
    return {
        "fusion": fusion.name,
        "unit": fusion.unit,
        "level": fusion.level,
        "classes": predictor.classes,
        "outputs": target.width(len(predictor.classes)),
        "settings": asdict(settings),
        "dims": {m: sum(dim for _, dim in sums[m]) if m in sums else dim for m, dim in config["dims"].items()},
        "columns": {m: 1 if config["features"][m].get("extra") else dim for m, dim in config["dims"].items()},
        "sums": sums,
        "encoder": tuned,
        "may_lack": predictor.may_lack(),
        "temperature": predictor.temperature,
        "vad_scale": scale_of(predictor.plan.training) if target.rated else None,
        "features": {
            m: [_described(one, how, fusion.level) for one, how in zip(of, predictor.described[m], strict=True)]
            for m, of in predictor.features.items()
        },
    }


def _described(feature: ResolvedFeature, how: Mapping[str, Any], level: str) -> dict[str, Any]:
    """What `run.py` has to know to compute a feature, and how the run reads it."""
    spec = feature.spec
    if spec.extractor not in PACKAGES or getattr(feature.config, "view", None):
        raise WrongUse(f"{spec.name}: run.py cannot compute it; export runs of unchanged speech and ser's own features")
    found: dict[str, Any] = {"name": spec.name, "feature": spec.feature, "extractor": spec.extractor}
    found |= {"config": asdict(feature.config), "dtype": spec.dtype}
    if spec.extractor == "smile":
        from ser.extract.smile import SETS

        found["set"] = SETS[feature.config.feature_set].name
    if "hop" in how and spec.hop:
        found["average"] = round(how["hop"] / spec.hop)
    if level == "vector" and spec.level != "utterance":
        found["pool"] = how["pool"]
    if "extra" in how:
        found["tokens"] = True
    if feature.checkpoint:
        folder, kept = feature.checkpoint.path, (".safetensors", ".index.json")
        held = [file for file in folder.iterdir() if file.name in BESIDE or file.name.endswith(kept)]
        found["model"] = str(folder.resolve()) if spec.provenance.get("folder") else feature.checkpoint.model
        found["files"] = {one.name: file_digest(one) for one in sorted(held)}
    return found


def _written(name: str, given: Mapping[str, Any]) -> bytes:
    """A file by its template."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    made = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return made.get_template(f"{name}.jinja").render(given).encode()
