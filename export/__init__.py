"""A trained run as a folder that needs no ser: the model's code as one file, its weights, and a script that calls it.

`model.py` is the model's own source on the plain layers of `plain_layers.py`. `run.py` computes the features by the
libraries that ser calls, one utterance at a time. Both, and the model card, are written from the templates beside this
file.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from inspect import getdoc, getmodule
from pathlib import Path
from typing import Any

from safetensors.torch import save

from ser.cache.atomic_io import explain_disk_errors, make_folder, move_into_place, write_folder
from ser.errors import DISTRIBUTION, WrongUse
from ser.extract.extractors import ResolvedFeature
from ser.extract.smile import SETS
from ser.predict import Predictor
from ser.train.models import FUSIONS, encoder, ragged, superb
from ser.train.targets import TARGETS, scale_of
from ser.weights.find import BESIDE

from .source import source_of

__all__ = ["export"]

AUDIO, ENCODER = ("soundfile", "soxr"), ("huggingface_hub", "transformers")
# The extractors that `run.py` can call, and what they need beside numpy, torch and safetensors.
PACKAGES = {
    **dict.fromkeys(("speech", "w2v-bert", "whisper"), (*AUDIO, *ENCODER)),
    "text": ENCODER,
    "mel": (*AUDIO, "librosa", "scipy"),
    "smile": (*AUDIO, "opensmile"),
}


def export(run: str | Path, folder: str | Path, models: Mapping[str, str] | Iterable[str] = ()) -> None:
    """Write the run to a new or empty `folder`, whole or not at all.

    `models` says where encoder weights lie now, as for `predict`. Raises `WrongUse` if the run is not finished, the
    folder holds something, or `run.py` could not compute a feature.
    """
    path = Path(folder).resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise WrongUse(f"{folder}: is there already and not an empty folder; name another one")
    predictor = Predictor(run, models, "cpu")
    config, result = predictor.run.config, predictor.run.result
    fusion, settings = FUSIONS[config["fusion"]], predictor.settings
    sums = {m: one.get("sums", []) for m, one in config["features"].items()}
    sums = {m: of for m, of in sums.items() if any(layers > 1 for layers, _ in of)}
    tuned = config["provenance"].get("encoders", {}).get("text") if getattr(settings, "finetune_layers", 0) else None
    build: Any = fusion.tune if tuned else fusion.build
    root = build.func if isinstance(build, partial) else build
    target = TARGETS[predictor.plan.target]
    features = {
        m: [_described(one, how, fusion.level) for one, how in zip(of, predictor.described[m], strict=True)]
        for m, of in predictor.features.items()
    }
    about = {
        "fusion": fusion.name,
        "unit": fusion.unit,
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
        "features": features,
    }
    tensors = {name: value.contiguous() for name, value in predictor.model.state_dict().items()}
    for modality, scale in predictor.scaling.items():  # row 0 is that of speech of no corpus of the training part
        for name, value in (("mean", scale.mean), ("std", scale.std)):
            tensors[f"scaling.{modality}.{name}"] = value.view(-1, value.shape[-1])[0].clone()
    extractors = {one["extractor"] for of in features.values() for one in of}
    packages = {"numpy", "safetensors", "torch"}.union(*(PACKAGES[one] for one in extractors))
    if tuned:
        packages.add("transformers")
    used = [ragged.Batch, *([superb.LayerSums] if sums else []), *([encoder.untrained] if tuned else [])]
    given = {
        "about": about,
        "extractors": extractors,
        "run": predictor.run.name,
        "config": config,
        "result": result,
        "source": source_of([*used, fusion.settings, root]),
        "paper": getattr(getmodule(root), "__doc__", None) or fusion.source,
        "build": root.__name__,
        "keywords": getattr(build, "keywords", {}),
        "settings": fusion.settings.__name__,
        "ser": f"{DISTRIBUTION} {version(DISTRIBUTION)}",
    }
    files = {name: [_written(name, given).encode()] for name in ("model.py", "run.py", "README.md")}
    files["config.json"] = [json.dumps(about, indent=1, ensure_ascii=False).encode() + b"\n"]
    files["model.safetensors"] = [save(tensors)]
    files["requirements.txt"] = ["".join(f"{name}=={version(name)}\n" for name in sorted(packages)).encode()]
    make_folder(path.parent)
    with (
        explain_disk_errors(f"exporting to {folder}", path.parent),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as begun,
    ):
        write_folder(Path(begun) / path.name, files)
        if not move_into_place(Path(begun) / path.name, path):
            raise WrongUse(f"{folder}: another process has written to it; name another folder")


def _described(feature: ResolvedFeature, how: Mapping[str, Any], level: str) -> dict[str, Any]:
    """What `run.py` has to know to compute a feature, and how the run reads it."""
    spec = feature.spec
    if spec.extractor not in PACKAGES or getattr(feature.config, "view", ""):
        raise WrongUse(f"{spec.name}: its extractor is no plain call of a library, and cannot be exported")
    found: dict[str, Any] = {"feature": spec.feature, "extractor": spec.extractor, "dtype": spec.dtype}
    found["config"] = asdict(feature.config)
    if spec.extractor == "smile":
        found["set"] = SETS[feature.config.feature_set][0]
    if "hop" in how and spec.hop:
        found["average"] = round(how["hop"] / spec.hop)
    if level == "vector" and spec.level != "utterance":
        found["pool"] = how["pool"]
    if "extra" in how:
        found["tokens"] = True
    if feature.checkpoint:
        folder, kept = feature.checkpoint.path, (".safetensors", ".index.json")
        held = [file for file in folder.iterdir() if file.name in BESIDE or file.name.endswith(kept)]
        found["model"] = spec.provenance.get("folder") and str(folder.resolve()) or feature.checkpoint.model
        found["files"] = {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in sorted(held)}
    return found


def _written(name: str, given: Mapping[str, Any]) -> str:
    """A file by its template."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    made = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return made.get_template(f"{name}.jinja").render(given)
