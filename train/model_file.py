"""model.safetensors of a run: the trained weights and the scaling, written and opened again."""

from collections.abc import Mapping

import torch
from safetensors.torch import save

from ser.errors import CorruptStore, SerError, WrongUse, ser_command
from ser.plugins import not_installed

from .config import TrainConfig
from .data.feature_range import PERCENTILES, FeatureRange
from .data.standardizer import Standardizer
from .finetune import with_recorded_encoders
from .fit import Fitted
from .models import FUSIONS, Fusion, with_layers
from .models.encoder_front import load_state
from .records import RunConfig
from .run_folder import CONFIG, MODEL, Run, RunFiles
from .seal import AGAIN
from .settings import TrainingSettings, settings_from_record
from .targets import TARGETS


def write_model(
    run: Run,
    weights: Mapping[str, torch.Tensor],
    scaling: Mapping[str, Standardizer],
    ranges: Mapping[str, FeatureRange] | None = None,
) -> RunFiles:
    """Write `model.safetensors`. Returns its entry in the result's `files`.

    `ranges` say by modality where the training part lies, if that is known.
    """
    tensors = {f"model.{name}": weight.contiguous() for name, weight in weights.items()}
    for modality, standardizer in scaling.items():
        tensors[f"scaling.{modality}.mean"] = standardizer.mean
        tensors[f"scaling.{modality}.std"] = standardizer.std
    for modality, feature_range in (ranges or {}).items():
        tensors[f"range.{modality}.mean"] = feature_range.mean
        tensors[f"range.{modality}.std"] = feature_range.std
        tensors[f"range.{modality}.percentiles"] = feature_range.percentiles
    return run.write_tensors(MODEL, save(tensors))


def load_model(
    run: Run, device: str = "cpu", models: Mapping[str, str] | None = None
) -> tuple[Fitted, TrainConfig]:
    """The trained model of a run with its scaling, on a device, and a config to predict with there.

    Loss, selection, seed and precision of that config are the defaults, not the run's. `models`
    says by feature where the checkpoint of an encoder with adapters lies now; by default where
    extraction found it. Raises `WrongUse` if the run has no model, its fusion is unknown here or
    that checkpoint is another one, `CorruptStore` for weights that are NaN.
    """
    if not (run.path / MODEL).exists():
        raise WrongUse(
            f"{run.path}: holds no trained model yet; finish the run with "
            f"{ser_command('train', '--resume', run.path)}"
        )

    record = run.config
    fusion = _known_fusion(run, record)
    config_file = str(run.path / CONFIG)
    settings = settings_from_record(fusion.settings, record.settings, config_file)
    training = settings_from_record(TrainingSettings, record.training, config_file)

    tensors, _ = run.tensors(MODEL)
    faulty = CorruptStore(
        f"{run.path / MODEL}: does not hold the weights of fusion '{fusion.name}', "
        f"or they are NaN; {AGAIN}"
    )
    weights = _under("model.", tensors)
    try:
        fusion = with_recorded_encoders(fusion, training, record, models)
        classes = len(record.labels.classes)
        target = TARGETS[record.target]
        model = target.build(fusion, settings, record.dims, classes)
        load_state(model, weights)
        scaling = _read_scaling(_under("scaling.", tensors), record.dims)
        ranges = _read_ranges(_under("range.", tensors))
    except SerError:
        raise
    except (RuntimeError, KeyError, TypeError, ValueError, MemoryError):
        raise faulty from None
    if not weights or not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise faulty

    config = TrainConfig(fusion, settings, training, target=record.target, device=device)
    return Fitted(model.eval().to(device), scaling, ranges=ranges), config


def _known_fusion(run: Run, record: RunConfig) -> Fusion:
    """The fusion of a run, with its learnt sums.

    Raises `WrongUse` for one that is not known here, and for such a target.
    """
    if record.target not in TARGETS:
        raise WrongUse(
            f"{run.path}: was trained with target '{record.target}', which this ser does not know"
        )
    if record.fusion not in FUSIONS:
        trained_with = f"was trained with the fusion '{record.fusion}'"
        raise WrongUse(f"{run.path}: {not_installed(trained_with, record.provenance.package)}")
    return with_layers(FUSIONS[record.fusion], record.layer_sums)


def _read_scaling(
    moments: Mapping[str, torch.Tensor], dims: Mapping[str, int]
) -> dict[str, Standardizer]:
    """By modality, from "<modality>.mean" and "<modality>.std", `[dim]` or `[1 + C, dim]`."""
    scaling = {}
    for modality in sorted({name.partition(".")[0] for name in moments}):
        mean = moments[f"{modality}.mean"].view(-1, dims[modality]).squeeze(0)
        std = moments[f"{modality}.std"].view(-1, dims[modality]).squeeze(0)
        scaling[modality] = Standardizer(mean, std)
    return scaling


def _read_ranges(tensors: Mapping[str, torch.Tensor]) -> dict[str, FeatureRange]:
    """By modality, from "<modality>.mean", "<modality>.std" and "<modality>.percentiles"."""
    ranges = {}
    for modality in sorted({name.partition(".")[0] for name in tensors}):
        mean = tensors[f"{modality}.mean"]
        ranges[modality] = FeatureRange(
            mean=mean,
            std=tensors[f"{modality}.std"].view_as(mean),
            percentiles=tensors[f"{modality}.percentiles"].view(PERCENTILES),
        )
    return ranges


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin so, without that."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
