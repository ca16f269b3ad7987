"""The `ser train`, or else `ser cache export`, that fits what `ser features` has extracted."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ser.corpus.manifest import Manifest
    from ser.extract.run import ExtractionPlan
    from ser.train.options import Experiment


# Utterances on which the proposed training is timed, at most: more of them take as much longer.
TIMED_UTTERANCES = 300


def train_options(plan: "ExtractionPlan") -> list[str] | None:
    """Options of `ser train` on the first feature of each modality, with a linear model.

    It takes frames by their means, and seconds or minutes where a model of frames takes hours. None
    where no training is possible: there are too few utterances, or they have no labels.
    """
    cut = _labels_and_protocol(plan.manifest)
    if cut is None:
        return None
    features = _first_of_each_modality(plan)
    return ["--features", features, "--fusion", "linear", *_corpus_and_store(plan), *cut]


def export_words(plan: "ExtractionPlan") -> list[str]:
    """The words of `ser cache export` that write the first feature to a file.

    A table where each utterance has one row, numpy's arrays where it has many.
    """
    spec = plan.features[0].spec
    suffix = ".csv" if spec.level == "utterance" else ".npz"
    return [spec.name, f"{spec.feature}{suffix}", *_corpus_and_store(plan)]


def richer_fusion(plan: "ExtractionPlan") -> str | None:
    """A model that takes more of these features than a linear one; None where there is none."""
    levels: dict[str, str] = {}
    for feature in plan.features:
        levels.setdefault(feature.spec.modality, feature.spec.level)

    # Audio first.
    modalities = sorted(levels)
    if len(modalities) > 1:
        return "mit" if levels[modalities[0]] == "frame" else "lgf-add"
    # A vector by itself: nothing is left that a linear model does not take.
    return modalities[0] if levels[modalities[0]] != "utterance" else None


def seconds_of_training(options: list[str]) -> float | None:
    """How long `ser train` with these options takes, going by a few utterances.

    None where that cannot be said.
    """
    from dataclasses import fields, replace

    from ser.errors import SerError
    from ser.train.estimate import estimate
    from ser.train.experiment import prepare
    from ser.train.options import Experiment

    known = {field.name for field in fields(Experiment)}
    values: dict[str, Any] = {}
    for option, value in zip(options[::2], options[1::2], strict=True):
        name = option.removeprefix("--")
        assert name in known, option
        values[name] = value

    experiment = Experiment(**values, allow_missing=True)
    try:
        jobs = prepare(replace(experiment, limit=TIMED_UTTERANCES))
        ahead = estimate(jobs)
        return ahead.seconds * _labelled(experiment) / ahead.utterances
    except SerError:
        # Such as folds that cannot be cut of so few utterances.
        return None


def _labelled(experiment: "Experiment") -> int:
    """How many utterances of its corpus the experiment trains and tests on."""
    from ser.cache.store import open_store
    from ser.train.data.labelling import apply_policy
    from ser.train.data.labels import get_policy

    manifest = open_store(experiment.store).manifest(experiment.corpus)
    policy = get_policy(experiment.labels, manifest.column("label"))
    return len(apply_policy(policy, manifest))


def _first_of_each_modality(plan: "ExtractionPlan") -> str:
    """Their names, joined with +, audio first."""
    from ser.extract.registry import FEATURES, split_names

    # The first of each modality stays.
    names: dict[str, str] = {}
    for name in split_names(plan.config.features):
        names.setdefault(FEATURES[name.partition(":")[0]].modality, name)
    modalities = {feature.spec.modality for feature in plan.features}
    return "+".join(names[modality] for modality in sorted(modalities))


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
