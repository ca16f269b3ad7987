"""Weights and training states of runs as safetensors: never unpickled."""

import json
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ser.cache.errors import CorruptStore, WrongUse

from .finetune import reopened
from .fit import Fitted
from .inputs import Scaling
from .models import FUSIONS, Fusion
from .runs import MODEL, STATE, Run, write
from .state import State, snapshot


def write_model(run: Run, weights: Mapping[str, Tensor], scaling: Mapping[str, Scaling]) -> None:
    """Write `model.safetensors`."""
    tensors = {f"model.{name}": value.contiguous() for name, value in weights.items()}
    for modality, scale in scaling.items():
        tensors |= {f"scaling.{modality}.mean": scale.mean, f"scaling.{modality}.std": scale.std}
    write(run, MODEL, save(tensors))


def write_state(run: Run, state: State) -> None:
    """Write `state.safetensors`, from which `read_state` goes on."""
    about = {"stage": state.stage, "epoch": state.epoch, "best_score": repr(state.best_score), "history": state.history}
    write(run, STATE, save({n: t.contiguous() for n, t in state.tensors.items()}, {"state": json.dumps(about)}))


def read_state(run: Run) -> State | None:
    """Where an unfinished run stands, if it got that far."""
    if not (run.path / STATE).exists():
        return None
    tensors, metadata = _read(run, STATE)
    about = json.loads(metadata["state"])
    return State(about["stage"], about["epoch"], float(about["best_score"]), about["history"], tensors)


def load_model(run: Run) -> tuple[Fitted, Fusion, Any]:
    """The trained model of a run with its scaling, the fusion and the fusion's settings.

    Raises `WrongUse` if the run has no model or its fusion is unknown here.
    """
    if not (run.path / MODEL).exists():
        raise WrongUse(f"{run.path}: holds no trained model yet; finish the run with `ser train --resume {run.path}`")
    config = run.config
    if config["fusion"] not in FUSIONS:
        raise WrongUse(f"{run.path}: was trained with fusion '{config['fusion']}', which this ser does not know")
    fusion = FUSIONS[config["fusion"]]
    settings = fusion.settings(**config["settings"])
    model = reopened(fusion, settings, config).build(settings, config["dims"], len(config["labels"]["classes"]))
    tensors, _ = _read(run, MODEL)
    weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    if snapshot(model).keys() != weights.keys():
        raise CorruptStore(f"{run.path / MODEL}: does not hold the weights of fusion '{fusion.name}'")
    model.load_state_dict(weights)
    modalities = {n.split(".")[1] for n in tensors if n.startswith("scaling.")}
    scaling = {m: Scaling(tensors[f"scaling.{m}.mean"], tensors[f"scaling.{m}.std"]) for m in sorted(modalities)}
    return Fitted(model.eval(), scaling), fusion, settings


def _read(run: Run, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(run.path / name, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CorruptStore(f"{run.path / name}: cannot be read ({error}); remove the run folder") from None
