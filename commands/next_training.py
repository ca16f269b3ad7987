"""The `ser train` that fits what `ser features` has just extracted."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ser.corpus.manifest import Manifest
    from ser.extract.run import ExtractionPlan


def train_options(plan: "ExtractionPlan") -> list[str] | None:
    """Options of `ser train` on the first feature of each modality, with a model of both.

    None where no training is possible: there are too few utterances, or they have no labels.
    """
    cut = _labels_and_protocol(plan.manifest)
    if cut is None:
        return None
    return [*_features_and_fusion(plan), *_corpus_and_store(plan), *cut]


def _features_and_fusion(plan: "ExtractionPlan") -> list[str]:
    from ser.extract.registry import FEATURES, split_names

    # The first of each modality stays.
    names: dict[str, str] = {}
    for name in split_names(plan.config.features):
        names.setdefault(FEATURES[name.partition(":")[0]].modality, name)
    levels: dict[str, str] = {}
    for feature in plan.features:
        levels.setdefault(feature.spec.modality, feature.spec.level)

    # Audio first.
    modalities = sorted(levels)
    fusion = modalities[0]
    if len(modalities) > 1:
        fusion = "mit" if levels[modalities[0]] == "frame" else "lgf-add"

    features = "+".join(names[modality] for modality in modalities)
    return ["--features", features, "--fusion", fusion]


def _corpus_and_store(plan: "ExtractionPlan") -> list[str]:
    return ["--corpus", plan.manifest.corpus, "--store", str(plan.config.store)]


def _labels_and_protocol(manifest: "Manifest") -> list[str] | None:
    """The labels and the protocol, where they are not the defaults; None if nothing fits."""
    from ser.errors import SerError
    from ser.train.data.labelling import apply_policy
    from ser.train.data.labels import get_policy
    from ser.train.data.protocols import find_fitting

    for labels in ("4class", "all"):
        try:
            policy = get_policy(labels, manifest.column("label"))
            utterances = apply_policy(policy, manifest)
            protocol = find_fitting(utterances)
        except SerError:
            # Such as fewer than two classes.
            continue
        if protocol is None:
            continue

        options = []
        if labels != "4class":
            options += ["--labels", labels]
        if protocol != "session-out":
            options += ["--protocol", protocol]
        return options
    return None
