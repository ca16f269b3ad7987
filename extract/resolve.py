"""From the names of features to what computes them: complete specs, configs and checkpoints."""

import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, get_args

import msgspec

from ser.cache.spec import Dtype, Spec
from ser.disk.paths import real_path
from ser.errors import DISTRIBUTION, WeightsError, WrongUse, unknown
from ser.plugins import not_installed
from ser.weights.checkpoint import Checkpoint
from ser.weights.find import open_source, pointing_with, recorded_checkpoint, short_digest
from ser.weights.folder import TOKENIZER_FILES
from ser.weights.hub import OnDownload
from ser.weights.source import Source, find_source

from .extractor import Extractor, ResolvedFeature
from .registry import FEATURES, FeatureKind, lacks, parse_name


class PackageMissing(WeightsError):
    """A feature needs a package that is not installed here."""


def resolve(
    names: Sequence[str], models: Mapping[str, str], dtype: Dtype
) -> tuple[list[ResolvedFeature], dict[str, WeightsError]]:
    """Every feature that `names` stand for, each once. Finds and hashes the checkpoints.

    A feature whose checkpoint is not to be had is left out; its error is returned beside them, by
    feature. Raises `WrongUse` for an unknown name or an impossible setting.
    """
    sources, not_found = find_sources(names, models)
    checkpoints, not_opened = open_sources(sources)
    return resolve_from(names, checkpoints, dtype), {**not_found, **not_opened}


def find_sources(
    names: Sequence[str], models: Mapping[str, str], convert: bool = True
) -> tuple[dict[str, Source | None], dict[str, WeightsError]]:
    """Where the checkpoint of each feature comes from; None for one without weights.

    Of a feature whose checkpoint or package is not to be had, the error is returned beside them.
    Nothing is downloaded. Raises `WrongUse` for an unknown name.
    """
    features = [parse_name(name)[0] for name in names]
    _check_models(models)

    sources: dict[str, Source | None] = {}
    missing: dict[str, WeightsError] = {}
    for feature in dict.fromkeys(features):
        package = FEATURES[feature].package
        if package is not None and find_spec(package[0]) is None:
            missing[feature] = PackageMissing(lacks(*package))
            continue
        try:
            sources[feature] = _find_source(feature, models, convert)
        except WeightsError as fault:
            missing[feature] = fault
    return sources, missing


def open_sources(
    sources: Mapping[str, Source | None], on_download: OnDownload | None = None
) -> tuple[dict[str, Checkpoint | None], dict[str, WeightsError]]:
    """The checkpoint of each feature: downloaded and converted if it has to be, and hashed.

    Of a feature whose checkpoint cannot be opened, the error is returned beside them.
    """
    checkpoints: dict[str, Checkpoint | None] = {}
    missing: dict[str, WeightsError] = {}
    for feature, source in sources.items():
        try:
            checkpoints[feature] = None if source is None else open_source(source, on_download)
        except WeightsError as fault:
            missing[feature] = fault
    return checkpoints, missing


def resolve_from(
    names: Sequence[str], checkpoints: Mapping[str, Checkpoint | None], dtype: Dtype
) -> list[ResolvedFeature]:
    """Every feature that `names` stand for, each once, but for those without a checkpoint.

    Raises `WrongUse` for an impossible setting.
    """
    resolved: dict[str, ResolvedFeature] = {}
    for name in names:
        feature, settings = parse_name(name)
        if feature not in checkpoints:
            continue
        checkpoint = checkpoints[feature]
        for single in _expand_layers(settings, checkpoint):
            resolved_feature = _resolve_feature(feature, single, checkpoint, dtype)
            resolved.setdefault(resolved_feature.spec.fingerprint, resolved_feature)
    return list(resolved.values())


def resolve_again(
    specs: Iterable[Spec], models: Mapping[str, str] | None = None
) -> list[ResolvedFeature]:
    """What computes stored features again, for new speech.

    `models` maps a feature's name to the place of its checkpoint. A checkpoint that several
    features share, such as the layers of an encoder, is read and hashed once. Raises `WrongUse` if
    the numbers would differ: another checkpoint, or another version of the extractor.
    """
    models = models or {}
    checkpoints: dict[tuple[str, Any], Checkpoint] = {}
    resolved: list[ResolvedFeature] = []
    for spec in specs:
        _check_known(spec)
        _check_models(models.keys() & {spec.feature})

        key = spec.feature, spec.checkpoint.get("digest")
        if FEATURES[spec.feature].model is not None and key not in checkpoints:
            checkpoints[key] = recorded_checkpoint(spec, models)

        feature, settings = parse_name(spec.name)
        again = _resolve_feature(feature, settings, checkpoints.get(key), spec.dtype, spec)
        if again.spec.fingerprint != spec.fingerprint:
            raise WrongUse(
                f"{spec.name} would be computed otherwise than for training "
                f"(differs in {_differences(spec, again.spec)})"
            )
        resolved.append(again)
    return resolved


def load_extractors(
    features: Sequence[ResolvedFeature], device: str = "cpu", batch_seconds: float | None = None
) -> list[Extractor]:
    """One extractor for each group of features that share their work.

    Opens their models on `device`.
    """
    groups: dict[Hashable, list[ResolvedFeature]] = {}
    for feature in features:
        groups.setdefault(_shared_work(feature), []).append(feature)

    extractors: list[Extractor] = []
    for group in groups.values():
        extractor = FEATURES[group[0].spec.feature].extractor_class
        extractors.append(extractor(group, device, batch_seconds))
    return extractors


def _shared_work(feature: ResolvedFeature) -> Hashable:
    """Equal for the features that one extractor computes together."""
    extractor = FEATURES[feature.spec.feature].extractor_class
    if not extractor.varying:
        return feature.spec.fingerprint

    settings = asdict(feature.config).items()
    shared = tuple((name, value) for name, value in settings if name not in extractor.varying)
    return extractor, feature.spec.checkpoint.get("digest"), shared


def _check_models(models: Iterable[str]) -> None:
    """Raise `WrongUse` for an unknown feature, or one that is computed without weights."""
    for feature in models:
        if feature not in FEATURES:
            raise unknown("feature in --model", feature, FEATURES)
        if FEATURES[feature].model is None:
            raise WrongUse(f"--model {feature}=…: {feature} is computed without weights")


def _check_known(spec: Spec) -> None:
    """Raise `WrongUse` for a stored feature that no extractor here can compute."""
    if spec.extractor == "import":
        file = spec.provenance.get("file", "a file")
        raise WrongUse(
            f"{spec.name} was imported from {file}, and cannot be computed for new speech; "
            "train on a feature that `ser features` extracts"
        )
    if spec.feature not in FEATURES:
        package = spec.provenance.get("package")
        raise WrongUse(not_installed(f"{spec.name} was computed by an extractor", package))


def _find_source(feature: str, models: Mapping[str, str], convert: bool) -> Source | None:
    """Where a feature's checkpoint comes from: --model, or its own; None if it has no weights."""
    model = models.get(feature, FEATURES[feature].model)
    if model is None:
        return None
    if model == "":
        raise WrongUse(
            f"{feature} has no checkpoint of its own: name one by --model {feature}=ID_OR_PATH"
        )
    return find_source(model, pointing_with(f"--model {feature}=PATH"), convert)


def _expand_layers(settings: dict[str, str], checkpoint: Checkpoint | None) -> list[dict[str, str]]:
    """`layers=all` and `layers=6-9` to one set of settings per layer.

    The last layer of an encoder that ends in a LayerNorm is taken after it, as s3prl takes it (the
    output of fairseq's encoder), unless the settings say norm=before.
    """
    if "layers" not in settings or checkpoint is None:
        return [settings]

    rest = dict(settings)
    layers = rest.pop("layers")
    last = checkpoint.setting("num_hidden_layers")

    norm_of_last: dict[str, str] = {}
    if checkpoint.config.get("do_stable_layer_norm"):
        norm = rest.get("norm", "after")
        if norm in ("after", "before"):
            rest.pop("norm", None)
        if norm == "after":
            norm_of_last = {"norm": "after"}

    span = re.fullmatch(r"(\d{1,4})-(\d{1,4})", f"0-{last}" if layers == "all" else layers)
    if not span or int(span[1]) > int(span[2]) or "layer" in rest:
        raise WrongUse(f"layers={layers}: write layers=all or layers=6-9, and no layer=K")

    expanded: list[dict[str, str]] = []
    for layer in range(int(span[1]), int(span[2]) + 1):
        norm_of_layer = norm_of_last if layer == last else {}
        expanded.append({**rest, "layer": str(layer), **norm_of_layer})
    return expanded


def _resolve_feature(
    feature: str,
    settings: dict[str, str],
    checkpoint: Checkpoint | None,
    dtype: Dtype,
    stored: Spec | None = None,
) -> ResolvedFeature:
    """One feature with its complete config and spec. Raises `WrongUse` for impossible settings.

    `stored` is the spec of the same feature in a store, which may say more, as it did earlier.
    """
    kind = FEATURES[feature]
    extractor = kind.extractor_class
    types = kind.settings
    typed = {key: _typed(feature, key, value, types[key]) for key, value in settings.items()}
    config = extractor.resolve({**kind.preset, **kind.defaults, **typed}, checkpoint)

    hashed = asdict(config)
    pooled = hashed.get("pool", "none") != "none"
    for name, value in extractor.added_later.items():
        if hashed.get(name) == value:
            hashed.pop(name)

    for name in extractor.unrecorded:
        if stored is None or name not in stored.config:
            hashed.pop(name)

    hop = None if pooled else extractor.hop(config, checkpoint)
    # openSMILE gives vectors or frames, as its settings say.
    level = kind.level
    if pooled:
        level = "utterance"
    elif hop is not None:
        level = "frame"

    named = settings
    if stored is None:
        named = _without_defaults(settings, kind, types, config, checkpoint)
    variant = ",".join(f"{key}={value}" for key, value in sorted(named.items()))
    identity: dict[str, Any] = {}
    if checkpoint:
        digest = checkpoint.speech_digest if kind.modality == "audio" else checkpoint.digest
        if stored is not None and stored.checkpoint.get("digest") == checkpoint.digest:
            digest = checkpoint.digest
        identity = {"digest": digest, "random": checkpoint.random}

    spec = Spec(
        feature=feature,
        modality=kind.modality,
        level=level,
        dim=extractor.dim(config, checkpoint),
        dtype="float32" if level == "utterance" or extractor.always_float32 else dtype,
        extractor=extractor.name,
        version=extractor.version,
        variant=variant,
        hop=hop,
        config=hashed,
        checkpoint=identity,
        provenance=_provenance(feature, variant, extractor, checkpoint),
    )
    return ResolvedFeature(spec, config, checkpoint)


def _without_defaults(
    settings: Mapping[str, str],
    kind: FeatureKind,
    types: Mapping[str, Any],
    config: Any,
    checkpoint: Checkpoint | None,
) -> dict[str, str]:
    """The settings without those that change nothing: `logmel:bands=80` is `logmel`.

    The number of a layer stays, as it tells an encoder's layers apart.
    """
    needed = dict(settings)
    for key in settings:
        if key == "layer":
            continue
        fewer = {name: value for name, value in needed.items() if name != key}
        typed = {name: _typed("", name, value, types[name]) for name, value in fewer.items()}
        with suppress(WrongUse):
            extractor = kind.extractor_class
            if extractor.resolve({**kind.preset, **kind.defaults, **typed}, checkpoint) == config:
                needed = fewer
    return needed


def _typed(feature: str, key: str, value: str, kind: Any) -> Any:
    """The value of a setting in its type. Raises `WrongUse` for one that it cannot have."""
    with suppress(msgspec.ValidationError):
        typed = msgspec.convert(value, kind, strict=False)
        if kind is not float or math.isfinite(typed):
            return typed

    words = {int: "a whole number", float: "a number", bool: "true or false"}
    allowed = words.get(kind) or " or ".join(map(str, get_args(kind)))
    raise WrongUse(f"{feature}:{key}={value}: {key} is {allowed}")


def _provenance(
    feature: str, variant: str, extractor: type[Extractor], checkpoint: Checkpoint | None
) -> dict[str, Any]:
    """Where the numbers come from, beside what the fingerprint hashes.

    No paths, no environment: nothing private, but for a checkpoint that only a path names.
    """
    versions = {"ser": version(DISTRIBUTION)}
    for package in ("numpy", *extractor.packages):
        versions[package] = version(package)

    name = f"{feature}:{variant}" if variant else feature
    provenance: dict[str, Any] = {
        "versions": versions,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"ser features CORPUS --features {name}",
    }
    if plugin := FEATURES.package(feature):
        provenance["package"] = plugin

    if checkpoint:
        provenance["model"] = checkpoint.model
        provenance["layers"] = checkpoint.setting("num_hidden_layers")
        files = {}
        for file, digest in sorted(checkpoint.files.items()):
            if FEATURES[feature].modality == "text" or file not in TOKENIZER_FILES:
                files[file] = short_digest(digest)
        provenance["files"] = files
        if checkpoint.converted_from:
            provenance["converted_from"] = checkpoint.converted_from
        folder = real_path(checkpoint.path)
        # Not an id of the Hub: `ser predict` looks for the folder.
        if checkpoint.model == folder.name:
            provenance["folder"] = str(folder)
    return provenance


def versions_here(spec: Spec) -> dict[str, str]:
    """The versions, on this machine, of the packages that compute a feature."""
    versions = {}
    for package in spec.provenance.get("versions", {}):
        versions[package] = version(DISTRIBUTION if package == "ser" else package)
    return versions


def _differences(then: Spec, now: Spec) -> str:
    """What differs between two specs, in words: `layer 9, here 10`."""
    before = {**then.config, **then.identity()}
    here = {**now.config, **now.identity()}
    keys = sorted((before.keys() | here.keys()) - {"config"})
    return "; ".join(
        f"{key} {before.get(key)!r}, here {here.get(key)!r}"
        for key in keys
        if here.get(key) != before.get(key)
    )
