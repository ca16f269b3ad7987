"""A trained run as a folder that needs no ser: the model's code as one file, its weights, and a
script that calls it.

`model.py` is the model's own source on `plain_layers.py`, and `audio.py` that of the decoder;
`run.py` computes the features by the libraries that ser calls, one utterance at a time. Their
templates lie here. What a run's features do not need is not written.
"""

import ast
import copy
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec, resolve_name
from inspect import getmodule, getsource
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import jinja2
from safetensors.torch import save

from ser.cache.part import file_record
from ser.cache.tools.importing import file_digest
from ser.disk.faults import explain_disk_errors
from ser.disk.write import make_folder, move_into_place, write_folder
from ser.errors import DISTRIBUTION, WrongUse
from ser.extract.audio import decode
from ser.extract.extractor import ResolvedFeature
from ser.extract.registry import FEATURES
from ser.predict import Predictor
from ser.train.models import FUSIONS, superb, usc
from ser.train.models.ragged import Batch
from ser.train.records import FeatureRecord
from ser.train.report.markdown import ESCAPES
from ser.train.targets import TARGETS, scale_of
from ser.weights.checkpoint import Size
from ser.weights.folder import FILES_BESIDE_WEIGHTS

from . import plain_layers

EXTRACTORS = ("speech", "w2v-bert", "whisper", "text", "mel", "smile")  # that `run.py` can call
FAST = (
    "ser.train.models.ragged",
    "ser.train.models.layers",
)  # whose names `plain_layers` may have too


def export(
    run: str | Path, folder: str | Path, models: Mapping[str, str] | Iterable[str] = ()
) -> str:
    """Write the run to a new or empty `folder`, whole or not at all. Returns what came of
    `model.onnx`, a sentence.

    `models` says where encoder weights lie now, as for `predict`. Raises `WrongUse` if the run is
    not finished, the folder holds something, or `run.py` could not compute a feature.
    """
    path = Path(os.path.realpath(folder))  # also of a link to itself
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise WrongUse(f"{folder}: is there already and not an empty folder; name another one")
    predictor = Predictor(run, models, "cpu")
    functions = _functions(predictor)
    about = _about(predictor, functions)
    packages = {"numpy", "safetensors", "torch"}.union(
        *(FEATURES[one["feature"]].extractor_class.packages for one in functions)
    )
    tensors = {
        name: value.contiguous() for name, value in predictor.fitted.model.state_dict().items()
    }
    for (
        modality,
        scale,
    ) in predictor.fitted.scaling.items():  # row 0 is that of speech of no corpus in training
        for name, value in (("mean", scale.mean), ("std", scale.std)):
            tensors[f"scaling.{modality}.{name}"] = value.view(-1, value.shape[-1])[0].clone()
    fusion = FUSIONS[about["fusion"]]
    root: Any = fusion.build.func if isinstance(fusion.build, partial) else fusion.build
    used = [superb.LayerSums] * bool(about["sums"]) + [usc.untrained] * bool(about["encoder"])
    files = {"config.json": [json.dumps(about, indent=1, ensure_ascii=False).encode() + b"\n"]}
    files["model.safetensors"] = [save(tensors)]
    given = {
        "about": about,
        "sealed": {name: file_record(content).sha256 for name, [content] in files.items()},
        "functions": functions,
        "extractors": {one["extractor"] for one in functions},
        "run": predictor.run,
        "fusion": fusion,
        "ser": f"{DISTRIBUTION} {version(DISTRIBUTION)}",
        "title": getattr(getmodule(root), "__doc__", None) or fusion.source,
        "source": source_of([Batch, *used, fusion.settings, root]),
        "decoder": source_of([decode]),
        "build": root.__name__,
        "keywords": getattr(fusion.build, "keywords", {}),
    }
    scripts = [
        "model.py",
        "run.py",
        "to_onnx.py",
        *(["audio.py"] if "audio" in about["columns"] else []),
    ]
    files |= {name: [_written(name, given)] for name in scripts}
    files["plain_layers.py"] = [Path(plain_layers.__file__).read_bytes()]
    files["requirements.txt"] = [
        "".join(f"{p}=={version(p).split('+')[0]}\n" for p in sorted(packages)).encode()
    ]
    make_folder(path.parent)
    with (
        explain_disk_errors(f"exporting to {folder}", path.parent),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as parent,
    ):
        begun = Path(parent) / path.name
        write_folder(begun, files)
        said = "no model.onnx: install ser-fusion[onnx], and run to_onnx.py"
        if find_spec("onnx") and find_spec("onnxruntime"):
            done = subprocess.run(
                [sys.executable, "-B", "to_onnx.py"], cwd=begun, capture_output=True, text=True
            )
            said = (done.stdout if done.returncode == 0 else done.stderr).strip().split("\n")[-1]
        write_folder(begun, {"README.md": [_written("README.md", {**given, "onnx": said})]})
        if not move_into_place(begun, path):
            raise WrongUse(f"{folder}: another process has written to it; name another folder")
    return said


def _about(predictor: Predictor, functions: list[dict[str, Any]]) -> dict[str, Any]:
    """What the exported `config.json` says, all that `model.py` has to know, and which encoders
    `run.py` opens.
    """
    config, fusion, settings = predictor.run.config, predictor.fusion, predictor.plan.settings
    target, sums = (
        TARGETS[predictor.plan.target],
        {m: one.sums or [] for m, one in config.features.items()},
    )
    sums = {m: of for m, of in sums.items() if any(layers > 1 for layers, _ in of)}
    tuned = (
        (config.provenance.encoders or {}).get("text")
        if getattr(settings, "finetune_layers", 0)
        else None
    )
    return {
        "fusion": fusion.name,
        "unit": fusion.unit,
        "level": fusion.level,
        "classes": predictor.classes,
        "outputs": target.width(len(predictor.classes)),
        "settings": asdict(settings),
        "features": {m: [one.spec.name for one in of] for m, of in predictor.features.items()},
        "dims": {
            m: sum(dim for _, dim in sums[m]) if m in sums else dim
            for m, dim in config.dims.items()
        },
        "columns": {m: 1 if config.features[m].extra else dim for m, dim in config.dims.items()},
        "sums": sums,
        "encoder": tuned,
        "encoders": {one["name"]: one["encoder"] for one in functions if "encoder" in one},
        "may_lack": predictor.may_lack(),
        "temperature": predictor.temperature,
        "vad_scale": scale_of(predictor.plan.training) if target.rated else None,
    }


def _functions(predictor: Predictor) -> list[dict[str, Any]]:
    """The functions of `run.py`: one for each feature, or for the layers that one pass of an
    encoder gives.
    """
    every = [
        {"modality": modality, **_function(feature, record, predictor.fusion.level)}
        for modality, features in predictor.features.items()
        for feature, record in zip(features, predictor.records[modality], strict=True)
    ]
    found: list[dict[str, Any]] = []
    for one, same in groupby(
        every, lambda one: one | {"layers": one["pool"] == "meanstd" and one["layers"]}
    ):
        name = re.sub(r"\W", "_", one["feature"])
        again = sum(other["feature"] == one["feature"] for other in found)
        layers = [layer for each in same for layer in each["layers"]]
        found.append(one | {"layers": layers, "name": f"{name}_{again + 1}" if again else name})
    return found


def _function(feature: ResolvedFeature, record: FeatureRecord, level: str) -> dict[str, Any]:
    """What `run.py` has to know to compute a feature, and how the run reads it."""
    spec, checkpoint = feature.spec, feature.checkpoint
    if spec.extractor not in EXTRACTORS or getattr(feature.config, "view", None):
        raise WrongUse(
            f"{spec.name}: run.py cannot compute it; export runs of unchanged speech and ser's own features"
        )
    config = asdict(feature.config)
    found: dict[str, Any] = {
        "feature": spec.feature,
        "extractor": spec.extractor,
        "dim": spec.dim,
        "dtype": spec.dtype,
    }
    found["layers"], found["config"] = [config.pop("layer")] if "layer" in config else [], config
    found["average"] = round(record.hop / spec.hop) if record.hop and spec.hop else None
    found["pool"] = record.pool if level == "vector" and spec.level != "utterance" else None
    found["tokens"] = record.extra is not None
    if spec.extractor == "smile":
        from ser.extract.smile import SETS

        found["set"] = SETS[feature.config.feature_set].name
    if spec.extractor == "mel":
        found["size"], found["shift"] = feature.config.window_samples, feature.config.hop_samples
    if (
        spec.extractor == "speech" and checkpoint
    ):  # the samples that its convolutions make one frame of
        kernels, strides = (
            checkpoint.setting(name, list[Size]) for name in ("conv_kernel", "conv_stride")
        )
        found["least"] = 1 + sum((k - 1) * math.prod(strides[:i]) for i, k in enumerate(kernels))
    if checkpoint:  # which of the states are taken after the norm behind the last layer
        last = found["layers"] == [checkpoint.setting("num_hidden_layers")]
        found["normed"] = config.get("norm") == "after" or (spec.extractor == "whisper" and last)
        kept = (".safetensors", ".index.json")
        held = [
            file
            for file in checkpoint.path.iterdir()
            if file.name in FILES_BESIDE_WEIGHTS or file.name.endswith(kept)
        ]
        model = (
            str(checkpoint.path.resolve()) if spec.provenance.get("folder") else checkpoint.model
        )
        found["encoder"] = {
            "model": model,
            "files": {one.name: file_digest(one) for one in sorted(held)},
        }
    return found


def _written(name: str, given: Mapping[str, Any]) -> bytes:
    """A file by its template."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    made = jinja2.Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    made.filters["plain"] = lambda text: str(text).translate(ESCAPES)
    return made.get_template(f"{name}.jinja").render(given).encode()


def source_of(roots: Iterable[Any]) -> str:
    """The classes and functions `roots` with all of ser, or of their own package, that they use, in
    an order that runs.

    What `plain_layers` defines is imported from there in place of the fast form. A constant whose
    name another one has gets a new name; raises `WrongUse` for two classes or functions of one
    name.
    """
    imports, pieces = dict[str, set[str]](), list[str]()
    names = dict[tuple[str, str], str]()  # by module and name there, the name in the file

    def add(module: str, name: str) -> str:
        """Add what a module calls by a name, after all that it uses. Returns its name in the file."""
        node = _statements(module).get(name)
        if node is None or (module, name) in names:
            return names.get((module, name), name)
        if isinstance(node, ast.Import):
            imports.setdefault(f"import {ast.unparse(node.names[0])}", set())
            return name
        if isinstance(node, ast.ImportFrom):
            origin = resolve_name(
                "." * node.level + (node.module or ""), import_module(module).__package__
            )
            if origin.partition(".")[0] in ("ser", module.partition(".")[0]):
                return add(origin, node.names[0].name)
            imports.setdefault(f"from {origin} import", set()).add(ast.unparse(node.names[0]))
            return name
        if module in FAST and name in vars(plain_layers):
            imports.setdefault("from plain_layers import", set()).add(name)
            return name
        for other in [
            other for other, statement in _statements(module).items() if statement is node
        ]:
            new = other
            while new in names.values():
                if isinstance(node, ast.ClassDef | ast.FunctionDef):
                    raise WrongUse(
                        f"{module}.{name}: another {name} would stand beside it in one file; rename one of them"
                    )
                new += "_"
            names[module, other] = new
        value, source = getattr(import_module(module), name), getsource(import_module(module))
        if get_origin(value) is Annotated:  # what a setting may be is checked by ser alone
            pieces.append(f"{names[module, name]} = {get_args(value)[0].__name__}")
            return names[module, name]
        new_names = {
            one.id: add(module, one.id) for one in ast.walk(node) if isinstance(one, ast.Name)
        }
        if renamed := {old for old, new in new_names.items() if new != old}:
            if hidden := renamed & {one.arg for one in ast.walk(node) if isinstance(one, ast.arg)}:
                fault = f"a parameter is called {min(hidden)}, as two constants are"
                raise WrongUse(f"{module}.{name}: {fault}; rename it")
            node = copy.deepcopy(node)
            for one in ast.walk(node):
                if isinstance(one, ast.Name):
                    one.id = new_names[one.id]
            text = ast.unparse(node)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            text = getsource(value)
        else:
            text = str(ast.get_source_segment(source, node))
        pieces.append(f"\n{text}" if isinstance(node, ast.ClassDef | ast.FunctionDef) else text)
        return names[module, name]

    for root in roots:
        add(root.__module__, root.__name__)
    lines = [
        f"{line} {', '.join(sorted(names))}".rstrip() for line, names in sorted(imports.items())
    ]
    return "\n".join([*lines, "", *pieces])


@cache
def _statements(module: str) -> dict[str, ast.stmt]:
    """Where a module defines or imports its names; an import stands once for each name."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(getsource(import_module(module))).body:
        if isinstance(node, ast.Import):
            found |= {
                one.asname or one.name.partition(".")[0]: ast.Import([one]) for one in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            found |= {
                one.asname or one.name: ast.ImportFrom(node.module, [one], node.level)
                for one in node.names
            }
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {
                one.id: node
                for target in targets
                for one in ast.walk(target)
                if isinstance(one, ast.Name)
            }
    return found
