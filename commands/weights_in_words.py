"""What `ser features` says of weights: what it will fetch, and what it leaves out."""

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ser.options import options_of

from .output import size_text

if TYPE_CHECKING:
    from ser.extract.config import ExtractionConfig
    from ser.extract.plan import ExtractionPlan
    from ser.weights.source import Source

# Options that say which features there are, and with what weights.
OF_WEIGHTS = ("features", "models", "no_convert")


def fetching_lines(to_fetch: Mapping[str, "Source"]) -> list[str]:
    """What will be downloaded and what converted, by feature: how much, from where, to where."""
    from ser.weights.hub import host, hub_cache
    from ser.weights.kept import ser_cache

    downloads = {}
    pickles = {}
    for feature, source in to_fetch.items():
        if source.download:
            downloads[feature] = source.download
        if source.pickle:
            pickles[feature] = source.pickle

    lines = []
    if downloads:
        lines.append(
            f"to download from {host()}: {_sizes(downloads)}, "
            f"{size_text(sum(downloads.values()))} in all, into {hub_cache()}"
        )
    if pickles:
        lines.append(
            f"to convert, since they are published as pickles alone: {_sizes(pickles)}; once, to "
            f"safetensors, by a child process that takes nothing but tensors, into {ser_cache()} "
            "(--no-convert leaves them out)"
        )
    return lines


def _sizes(sizes: dict[str, int]) -> str:
    """Bytes by feature: "hubert 378.0 MB, mpnet 532.9 MB"."""
    return ", ".join(f"{feature} {size_text(size)}" for feature, size in sizes.items())


def left_out_lines(plan: "ExtractionPlan", with_reasons: bool) -> list[str]:
    """Each feature that is left out and why; at the end the one command that completes the store.

    Without the reasons the command alone. Empty if nothing is left out.
    """
    if not plan.unavailable:
        return []

    lines = []
    if with_reasons:
        lines += [f"left out: {feature}: {fault}" for feature, fault in plan.unavailable.items()]
    command = shlex.join(completing_command(plan.config, list(plan.unavailable)))
    lines.append(
        f"{', '.join(plan.unavailable)} left out; once that is seen to, `{command}` completes it"
    )
    return lines


def completing_command(config: "ExtractionConfig", features: list[str]) -> list[str]:
    """The words of the command that extracts `features` as `config` says for all of them.

    A pickle that was refused is converted, and where --model led nowhere another path is asked for.
    """
    from ser.weights.find import parse_models

    words = ["ser", "features", str(config.corpus), "--features", ",".join(features)]
    for feature in parse_models(config.models).keys() & set(features):
        words += ["--model", f"{feature}=PATH"]

    options = options_of(config)
    for entry in fields(config):
        value = getattr(config, entry.name)
        if entry.name not in options or entry.name in OF_WEIGHTS or value == entry.default:
            continue
        words += _option_words(options[entry.name].name or entry.name, value)
    return words


def _option_words(name: str, value: Any) -> list[str]:
    """An option as the command line has it."""
    option = f"--{name.replace('_', '-')}"
    return [option] if value is True else [option, str(value)]
