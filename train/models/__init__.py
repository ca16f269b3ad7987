"""The models, one file per paper. A new one is a file with a list `FUSIONS` and a line here."""

from collections.abc import Mapping

from ser.errors import WrongUse, unknown
from ser.plugins import Registry

from . import (
    baselines,
    catf_lstm,
    cme,
    gban,
    icon,
    ks_transformer,
    msmser,
    perspective,
    superb,
    usc,
)
from .fusion import CommonSettings, Fusion, Stage, setting
from .layer_sums import with_layer_sums

__all__ = [
    "FUSIONS",
    "CommonSettings",
    "Fusion",
    "Stage",
    "get_fusion",
    "setting",
    "with_layer_sums",
]

_PAPERS = (msmser, perspective, usc, baselines, icon, catf_lstm, gban, cme, ks_transformer, superb)


def _fusions_of_papers() -> dict[str, Fusion]:
    """Ser's own fusions, by name."""
    fusions = {}
    for paper in _PAPERS:
        for fusion in paper.FUSIONS:
            fusions[fusion.name] = fusion
    return fusions


FUSIONS: Registry[Fusion] = Registry("fusion", "ser.fusions", Fusion, _fusions_of_papers())


def get_fusion(name: str, levels: Mapping[str, str]) -> Fusion:
    """The fusion called `name`, for features of these levels.

    `levels` says by modality "frame", "token" or "utterance". One modality alone, `audio` or
    `text`, is a different model for vectors (`audio:utterance`, Perspective §2.2) and for sequences
    (`audio:frame`, `text:token`, MSMSER §2.1), and is chosen by the feature's level; all three
    names can be asked for, since frames and tokens can always be pooled into vectors.

    Raises `WrongUse` for an unknown name, a modality too few or too many, or vectors where
    sequences are needed.
    """
    if name in ("audio", "text"):
        if name not in levels:
            raise WrongUse(f"--fusion {name} needs one {name} feature, and --features names none")
        name = f"{name}:{levels[name]}"

    if name not in FUSIONS:
        raise unknown("fusion", name, [*FUSIONS, "audio", "text"])
    fusion = FUSIONS[name]

    if set(levels) != set(fusion.inputs):
        inputs = " and ".join(fusion.inputs)
        modalities = " and ".join(sorted(levels)) or "nothing"
        raise WrongUse(f"--fusion {name} takes {inputs}, and --features gives {modalities}")

    for modality in fusion.inputs:
        if fusion.level == "sequence" and levels[modality] == "utterance":
            rows = "frames" if modality == "audio" else "tokens"
            raise WrongUse(
                f"--fusion {name} takes {modality} {rows}, and the {modality} feature has one "
                "vector per utterance; choose a frame- or token-level feature, or a fusion of "
                "vectors such as lgf-add"
            )
    return fusion
