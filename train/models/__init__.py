"""The models, one file per paper. A new one is a file with a list `FUSIONS` and a line here."""

from collections.abc import Mapping

from ser.errors import WrongUse, unknown
from ser.plugins import Registry

from . import (
    asp,
    baselines,
    catf_lstm,
    cme,
    consk_gcn,
    dann,
    dutta,
    gban,
    icon,
    ks_transformer,
    lian,
    linear,
    msmser,
    perspective,
    superb,
    svm,
    usc,
    xares,
)
from .fusion import CommonSettings, Fusion, Stage, setting
from .layer_sums import with_layer_sums
from .solved import Layers, with_layer_choice

__all__ = [
    "FUSIONS",
    "CommonSettings",
    "Fusion",
    "Stage",
    "get_fusion",
    "setting",
    "with_layer_sums",
    "with_layers",
]

_PAPERS = (
    msmser,
    perspective,
    usc,
    baselines,
    icon,
    catf_lstm,
    lian,
    dann,
    consk_gcn,
    dutta,
    gban,
    cme,
    ks_transformer,
    superb,
    asp,
    xares,
    linear,
    svm,
)

# Fusions that are chosen by the modalities that the features have.
BY_MODALITY = ("linear", "svm")


def _fusions_of_papers() -> dict[str, Fusion]:
    """Ser's own fusions, by name."""
    fusions = {}
    for paper in _PAPERS:
        for fusion in paper.FUSIONS:
            fusions[fusion.name] = fusion
    return fusions


FUSIONS: Registry[Fusion] = Registry("fusion", "ser.fusions", Fusion, _fusions_of_papers())


def get_fusion(name: str, levels: Mapping[str, str], with_dialogues: bool = True) -> Fusion:
    """The fusion called `name`, for features of these levels.

    `levels` says by modality "frame", "token" or "utterance". One modality alone, `audio` or
    `text`, is a different model for sequences (`audio:frame`, `text:token`, MSMSER §2.1), for
    vectors of dialogues (`audio:utterance`, Perspective §2.2) and for vectors of utterances by
    themselves (`linear:audio`: a recurrent layer over one vector has nothing to add), and is chosen
    by the feature's level and by whether the corpus is `with_dialogues`; each can be asked for by
    its own name, since frames and tokens can always be pooled into vectors. `linear` and `svm` take
    what is there: one modality (`linear:audio`) or both.

    Raises `WrongUse` for an unknown name, a modality too few or too many, or vectors where
    sequences are needed.
    """
    if name in ("audio", "text"):
        if name not in levels:
            raise WrongUse(f"--fusion {name} needs one {name} feature, and --features names none")
        if levels[name] == "utterance" and not with_dialogues:
            name = f"linear:{name}"
        else:
            name = f"{name}:{levels[name]}"
    if name in BY_MODALITY and len(levels) == 1:
        [modality] = levels
        name = f"{name}:{modality}"

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


def with_layers(fusion: Fusion, layers: Layers) -> Fusion:
    """The fusion on features of several layers of an encoder, by modality.

    It sees their learnt sum, or, where a solver fits it, the one that is chosen.
    """
    if fusion.solved:
        return with_layer_choice(fusion, layers)
    return with_layer_sums(fusion, layers)
