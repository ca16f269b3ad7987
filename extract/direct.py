"""Features of a few utterances, straight into memory: what `ser predict` needs of a trained run's features."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ser.cache.errors import WrongUse
from ser.cache.spec import Spec

from .audio import decode
from .features import FEATURES, Wanted, resolve
from .passes import Rows, Unusable
from .work import open_passes


def wanted_again(spec: Spec, models: Mapping[str, str] | None = None) -> Wanted:
    """What computes a stored feature anew. `models` says where an encoder's checkpoint lies, by feature name.

    Raises `WrongUse` if this would give other numbers: another checkpoint, or another version of the extractor.
    """
    if spec.feature not in FEATURES:
        raise WrongUse(f"{spec.name} was imported, and cannot be computed for new speech")
    model = (models or {}).get(spec.feature) or spec.provenance.get("model")
    mine = {spec.feature: str(model)} if spec.checkpoint and model else {}
    # resolve() spells the variant out again; a name that stands for several layers has one of them in each spec.
    [wanted] = resolve([spec.name], mine, "float32" if spec.dtype == "float32" else "float16")
    if wanted.spec.fingerprint != spec.fingerprint:
        ours, theirs = wanted.spec.identity(), spec.identity()
        other = ", ".join(sorted(key for key in ours if ours[key] != theirs[key]))
        where = (
            f": give the weights that it was trained on by --model {spec.feature}=PATH" if other == "checkpoint" else ""
        )
        raise WrongUse(f"{spec.name} would be computed otherwise than for training (differs in {other}){where}")
    return wanted


def compute(
    wanted: Sequence[Wanted], audio: Sequence[Path], texts: Sequence[str | None], device: str = "cpu"
) -> list[dict[str, Rows | Unusable]]:
    """The features of each utterance, by fingerprint: `Rows`, or `Unusable` with the reason.

    `audio` and `texts` have one entry per utterance; a text may be None.
    """
    clips: list[Any] = []
    for path in audio:
        try:
            clips.append(decode(path))
        except Unusable as fault:
            clips.append(fault)
    spoken: list[Any] = [Unusable("no transcript") if text is None else text for text in texts]
    found: list[dict[str, Rows | Unusable]] = [{} for _ in audio]
    for one in open_passes(wanted, device):
        for row, value in enumerate(clips if one.modality == "audio" else spoken):
            outcome = value if isinstance(value, Unusable) else one.run([value])[0]
            for spec in one.specs:
                rows = outcome if isinstance(outcome, Unusable) else outcome[spec.fingerprint]
                found[row][spec.fingerprint] = rows
    return found
