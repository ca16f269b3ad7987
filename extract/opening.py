"""From wanted features to the passes that compute them: those that can share a forward pass share it."""

from collections.abc import Sequence
from typing import Any

from ser.cache.errors import WrongUse

from .features import EXTRACTORS, Wanted
from .passes import Pass


def choose_device(name: str, wanted: Sequence[Wanted]) -> str:
    """The device by name: `auto` is the first GPU, if any model needs one and there is one. Raises `WrongUse`."""
    if not any(one.checkpoint for one in wanted):
        return "cpu"
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise WrongUse(f"--device {name}: it is auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise WrongUse(f"--device {name}: torch finds no such device here; leave it auto")
    return str(device)


def open_passes(wanted: Sequence[Wanted], device: str, batch_seconds: float | None = None) -> list[Pass]:
    """One pass per extractor; features that can share a forward pass share it."""
    passes: list[Pass] = []
    shared: dict[tuple[Any, ...], list[Wanted]] = {}
    for one in wanted:
        if one.spec.extractor in EXTRACTORS:
            passes.append(EXTRACTORS[one.spec.extractor].open(one.config, one.spec))
        elif one.spec.extractor == "smile":
            from .smile import SmilePass

            passes.append(SmilePass(one.config, one.spec))
        elif one.spec.extractor == "mel":
            from .mel import MelPass

            passes.append(MelPass(one.config, one.spec))
        else:
            assert one.checkpoint is not None
            own = {key: value for key, value in one.spec.config.items() if key not in {"layer", "norm"}}
            shared.setdefault((one.checkpoint.digest, *sorted(own.items())), []).append(one)
    for group in shared.values():
        passes.append(_model_pass(group, device, batch_seconds))
    return passes


def _model_pass(group: Sequence[Wanted], device: str, batch_seconds: float | None) -> Pass:
    import torch

    if device.startswith("cuda"):
        # TF32 keeps ten bits of the mantissa: float32 is meant where float32 is said.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    configs, specs = [one.config for one in group], [one.spec for one in group]
    checkpoint = group[0].checkpoint
    assert checkpoint is not None
    if group[0].spec.extractor == "speech":
        from .speech import SpeechPass

        return SpeechPass(configs, specs, checkpoint, torch.device(device), batch_seconds)
    from .text import TextPass

    return TextPass(configs, specs, checkpoint, torch.device(device))
