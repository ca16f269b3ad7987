"""What tells the cells of a report apart, as a label for each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ser.train.models import FUSIONS
from ser.train.records import RunConfig

Options = Mapping[str, Any]

# What stands in a label without its name.
UNNAMED = (
    "features",
    "corpus",
    "target",
    "only",
    "labels",
    "protocol",
    "select",
    "loss",
    "precision",
)
# Chosen by the target where nothing is said.
CHOSEN_BY_TARGET = ("select_score", "vad_scale")
DIGEST = "digest."


def name_apart(configs: Sequence[RunConfig]) -> list[str]:
    """A label for each cell: its fusion, its features if any cell has others, and what else tells.

    That is what tells it from rivals, which are the cells of the same fusion.
    """
    all_options = [_options(config) for config in configs]
    features = {options["features"] for options in all_options}

    labels: list[str] = []
    times_seen = Counter[str]()
    for options in all_options:
        shown = _telling_options(options, all_options)
        if len(features) > 1:
            shown.append("features")
        if options["loss"] != "single":
            shown.append("loss")

        label = _label(options, shown)
        times_seen[label] += 1
        if times_seen[label] > 1:
            label = f"{label} ({times_seen[label]})"
        labels.append(label)
    return labels


def _label(options: Options, shown: Sequence[str]) -> str:
    """The fusion, and these options in the order of all."""
    pieces = [options["fusion"]]
    for key, value in options.items():
        if key in shown:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            name = key.removeprefix(DIGEST)
            pieces.append(text if key in UNNAMED else f"{name} {text}")

    # An ensemble has no features.
    pieces = [piece for piece in pieces if piece]
    return " · ".join(pieces)


def _telling_options(options: Options, all_options: Sequence[Options]) -> list[str]:
    """The options that tell a cell from a rival.

    A fusion's own default goes without saying, and so do digests where anything else differs.
    """
    rivals = [other for other in all_options if other["fusion"] == options["fusion"]]
    differing = []
    for key in options:
        if any(_tells(key, options, other) for other in rivals):
            differing.append(key)
    without_digests = [key for key in differing if not key.startswith(DIGEST)]

    fusion = FUSIONS.get(options["fusion"])
    defaults = {}
    if fusion is not None:
        defaults = {field.name: field.default for field in fields(fusion.settings)}

    telling = []
    for key in without_digests or differing:
        if key not in defaults or options[key] != defaults[key]:
            telling.append(key)
    return telling


def _tells(key: str, first: Options, second: Options) -> bool:
    """Whether an option tells two cells apart.

    What follows from their targets, such as that there are no labels, does not.
    """
    if first[key] == second.get(key):
        return False
    one_has_no_labels = key == "labels" and "none" in (first[key], second[key])
    follows_from_target = key in CHOSEN_BY_TARGET or one_has_no_labels
    return not follows_from_target or first["target"] == second["target"]


def _options(config: RunConfig) -> dict[str, Any]:
    """What can tell two cells apart, by the name it is set under."""
    features = list(config.features.values())
    hops: dict[str, None] = {}
    for feature in features:
        for part in feature.parts:
            if part.hop is not None:
                hops[f"{part.hop} s"] = None

    return {
        "fusion": config.fusion,
        "features": "+".join(feature.feature for feature in features),
        "corpus": config.corpus,
        "target": config.target,
        "labels": config.labels.policy,
        "protocol": config.protocol,
        "select": config.select,
        "loss": config.loss,
        "precision": config.precision,
        "only": config.only or "all utterances",
        "limit": config.limit,
        "pool": "+".join(feature.pool for feature in features),
        "hop": "+".join(hops) or "as extracted",
        "views": "+".join(view.feature for view in config.views) or "none",
        **config.settings,
        **config.training,
        "code": (config.code or "none")[:8],
        f"{DIGEST}features": "+".join(feature.fingerprint[:8] for feature in features),
        f"{DIGEST}manifest": "+".join(digest[:8] for digest in config.manifest.split("+")),
    }
