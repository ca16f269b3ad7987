"""The registry of features: the names that users give, and what a name resolves to.

Built-in extractors (the rows of features.toml), a user's own and those of installed packages are in
one table, `FEATURES`, and are imported when they are first needed: torch and transformers are slow
to import.
"""

import math
import pkgutil
import re
import tomllib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from ser.cache.spec import Dtype, Level, Spec
from ser.corpus.names import Modality
from ser.errors import DISTRIBUTION, WeightsError, WrongUse, unknown
from ser.plugins import Registry, not_installed
from ser.weights.checkpoint import Checkpoint
from ser.weights.find import find_checkpoint, recorded_checkpoint

from .extractors import Extractor, ResolvedFeature


@dataclass(frozen=True)
class FeatureKind:
    """What a feature name stands for."""

    modality: Modality
    level: Level
    summary: str
    extractor: str | type[Extractor]  # the class, or its place: "package.module:Class"
    model: str | None = (
        None  # default checkpoint; "": the user must name one; None: computed without weights
    )
    preset: Mapping[str, Any] = field(
        default_factory=dict
    )  # settings of the extractor that the name stands for
    defaults: Mapping[str, Any] = field(
        default_factory=dict
    )  # of settings that the user may change

    @property
    def code(self) -> type[Extractor]:
        """The extractor's class, imported when it is first needed."""
        try:
            return (
                pkgutil.resolve_name(self.extractor)
                if isinstance(self.extractor, str)
                else self.extractor
            )
        except Exception as fault:  # from someone else's code
            raise WrongUse(
                f"{self.extractor} cannot be imported ({fault}); mend the package that it is of"
            ) from fault

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that may follow the feature's name, with their types: the fields of the
        extractor's config.
        """
        code, types = self.code, get_type_hints(self.code.Config)
        hidden = {*self.preset, *code.fixed}
        names = {f.name: f.metadata.get("setting", f.name) for f in fields(code.Config) if f.init}
        return {setting: types[name] for name, setting in names.items() if setting not in hidden}


_ROWS = tomllib.loads(Path(__file__).with_name("features.toml").read_text(encoding="utf-8"))
_BUILT_IN = {name: FeatureKind(**row) for name, row in _ROWS.items()}
FEATURES: Registry[FeatureKind] = Registry("feature", "ser.extractors", FeatureKind, _BUILT_IN)


def split_names(features: str | Sequence[str]) -> list[str]:
    """`"hubert:layer=9,norm=before,is13"` to its names: a comma before `key=` belongs to a variant."""
    text = features if isinstance(features, str) else ",".join(features)
    names = dict.fromkeys(
        filter(None, re.split(r",(?!\w+=)", re.sub(r"\s*,\s*", ",", text.strip())))
    )
    if not names:
        raise WrongUse(f"no feature is named; known: {', '.join(sorted(FEATURES))}")
    return list(names)


def parse(name: str) -> tuple[str, dict[str, str]]:
    """`"hubert:layer=9"` to `("hubert", {"layer": "9"})`. Raises `WrongUse` for an unknown feature
    or setting.
    """
    feature, _, variant = name.partition(":")
    if feature not in FEATURES:
        raise unknown("feature", feature, FEATURES)
    settings: dict[str, str] = {}
    for piece in variant.split(",") if variant else []:
        key, equals, value = piece.partition("=")
        known = FEATURES[feature].settings
        if key not in known and not (key == "layers" and FEATURES[feature].model is not None):
            raise unknown(f"setting of {feature}", key, known)
        if not equals or not value or key in settings:
            raise WrongUse(f"{name}: settings are written {feature}:{key}=VALUE, each once")
        settings[key] = value
    return feature, settings


def resolve(
    names: Sequence[str], models: Mapping[str, str], dtype: Dtype
) -> tuple[list[ResolvedFeature], dict[str, WeightsError]]:
    """Every feature that `names` stand for, each spec complete. Finds and hashes the checkpoints.

    A feature whose checkpoint is not on this machine is left out; its error is returned beside
    them, by feature. Raises `WrongUse` for an unknown name or an impossible setting.
    """
    parsed = [parse(name) for name in names]
    _check_models(models)
    checkpoints: dict[str, Checkpoint | None] = {}
    missing: dict[str, WeightsError] = {}
    resolved: dict[str, ResolvedFeature] = {}
    for feature, settings in parsed:
        if feature not in checkpoints | missing:
            if (model := models.get(feature, FEATURES[feature].model)) == "":
                raise WrongUse(
                    f"{feature} has no checkpoint of its own: name one by --model {feature}=ID_OR_PATH"
                )
            try:
                checkpoints[feature] = (
                    None if model is None else find_checkpoint(model, f"--model {feature}=PATH")
                )
            except WeightsError as fault:
                missing[feature] = fault
        for single in _expand(settings, checkpoints[feature]) if feature in checkpoints else ():
            made = _resolved(feature, single, checkpoints[feature], dtype)
            resolved.setdefault(made.spec.fingerprint, made)
    return list(resolved.values()), missing


def _check_models(models: Iterable[str]) -> None:
    """Raise `WrongUse` for an unknown feature, or one that is computed without weights."""
    for feature in models:
        if feature not in FEATURES:
            raise unknown("feature in --model", feature, FEATURES)
        if FEATURES[feature].model is None:
            raise WrongUse(f"--model {feature}=…: {feature} is computed without weights")


def _expand(settings: dict[str, str], checkpoint: Checkpoint | None) -> list[dict[str, str]]:
    """`layers=all` and `layers=6-9` to one set of settings per layer.

    The last layer of an encoder that ends in a LayerNorm is taken after it, as s3prl takes it (the
    output of fairseq's encoder), unless the settings say norm=before.
    """
    if "layers" not in settings or checkpoint is None:
        return [settings]
    rest, last = {**settings}, str(checkpoint.setting("num_hidden_layers"))
    layers, norm = rest.pop("layers"), {}
    if checkpoint.config.get("do_stable_layer_norm") and rest.get("norm", "after") in (
        "after",
        "before",
    ):
        norm = {"norm": "after"} if rest.pop("norm", "after") == "after" else {}
    span = re.fullmatch(r"(\d{1,4})-(\d{1,4})", f"0-{last}" if layers == "all" else layers)
    if not span or int(span[1]) > int(span[2]) or "layer" in rest:
        raise WrongUse(f"layers={layers}: write layers=all or layers=6-9, and no layer=K")
    numbers = map(str, range(int(span[1]), int(span[2]) + 1))
    return [{**rest, "layer": number, **(norm if number == last else {})} for number in numbers]


def _resolved(
    feature: str, settings: dict[str, str], checkpoint: Checkpoint | None, dtype: Dtype
) -> ResolvedFeature:
    kind = FEATURES[feature]
    code = kind.code
    typed = {
        key: _typed(feature, key, value, kind.settings[key]) for key, value in settings.items()
    }
    config = code.resolve({**kind.preset, **kind.defaults, **typed}, checkpoint)
    variant = ",".join(f"{key}={value}" for key, value in sorted(settings.items()))
    provenance: dict[str, Any] = {
        "versions": {"ser": version(DISTRIBUTION)}
        | {name: version(name) for name in ("numpy", *code.packages)},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        # No paths, no environment: nothing private.
        "command": f"ser features CORPUS --features {feature}{':' if variant else ''}{variant}",
    }
    pooled = getattr(config, "pool", "none") != "none"
    # `pool` was added later: without it, fingerprints are those of before.
    hashed = {key: value for key, value in asdict(config).items() if key != "pool" or pooled}
    dim, hop = code.dim(config, checkpoint), None if pooled else code.hop(config, checkpoint)
    # openSMILE gives vectors or frames, as its settings say.
    level = "utterance" if pooled else "frame" if hop is not None else kind.level
    if package := FEATURES.package(feature):
        provenance["package"] = package
    if checkpoint:
        provenance["model"], provenance["layers"] = (
            checkpoint.model,
            checkpoint.setting("num_hidden_layers"),
        )
        folder = checkpoint.path.resolve()
        if (
            checkpoint.model == folder.name
        ):  # not an id of the Hub: `ser predict` looks for the folder
            provenance["folder"] = str(folder)
    spec = Spec(
        feature=feature,
        modality=kind.modality,
        level=level,
        dim=dim,
        dtype="float32" if level == "utterance" or code.exact else dtype,
        extractor=code.name,
        version=code.version,
        variant=variant,
        hop=hop,
        config=hashed,
        checkpoint={"digest": checkpoint.digest, "random": checkpoint.random} if checkpoint else {},
        provenance=provenance,
    )
    return ResolvedFeature(spec, config, checkpoint)


def _typed(feature: str, key: str, value: str, kind: Any) -> Any:
    with suppress(msgspec.ValidationError):
        typed = msgspec.convert(value, kind, strict=False)
        if kind is not float or math.isfinite(typed):
            return typed
    plain = {int: "a whole number", float: "a number", bool: "true or false"}
    allowed = plain.get(kind) or " or ".join(map(str, get_args(kind)))
    raise WrongUse(f"{feature}:{key}={value}: {key} is {allowed}")


def resolve_again(
    specs: Iterable[Spec], models: Mapping[str, str] | None = None
) -> list[ResolvedFeature]:
    """What computes stored features again. `models` maps a feature's name to the place of its
    checkpoint.

    A checkpoint that several features share, such as the layers of an encoder, is read and hashed
    once. Raises `WrongUse` if the numbers would differ: another checkpoint, or another version of
    the extractor.
    """
    models, resolved = models or {}, list[ResolvedFeature]()
    checkpoints: dict[tuple[str, Any], Checkpoint] = {}
    for spec in specs:
        if spec.extractor == "import":
            raise WrongUse(
                f"{spec.name} was imported from {spec.provenance.get('file', 'a file')}, and cannot be computed for "
                "new speech; train on a feature that `ser features` extracts"
            )
        if spec.feature not in FEATURES:
            raise WrongUse(
                not_installed(
                    f"{spec.name} was computed by an extractor", spec.provenance.get("package")
                )
            )
        _check_models(models.keys() & {spec.feature})
        key = spec.feature, spec.checkpoint.get("digest")
        if FEATURES[spec.feature].model is not None and key not in checkpoints:
            checkpoints[key] = recorded_checkpoint(spec, models)
        again = _resolved(*parse(spec.name), checkpoints.get(key), spec.dtype)
        if again.spec.fingerprint != spec.fingerprint:
            then, now = ({**one.config, **one.identity()} for one in (spec, again.spec))
            keys = sorted(
                key
                for key in (now.keys() | then.keys()) - {"config"}
                if now.get(key) != then.get(key)
            )
            differences = "; ".join(
                f"{key} {then.get(key)!r}, here {now.get(key)!r}" for key in keys
            )
            raise WrongUse(
                f"{spec.name} would be computed otherwise than for training (differs in {differences})"
            )
        resolved.append(again)
    return resolved


def load_extractors(
    features: Sequence[ResolvedFeature], device: str = "cpu", batch_seconds: float | None = None
) -> list[Extractor]:
    """One extractor for each group of features that share their work; opens their models on
    `device`.
    """
    groups: dict[Hashable, list[ResolvedFeature]] = {}
    for feature in features:
        code = FEATURES[feature.spec.feature].code
        shared = tuple(item for item in asdict(feature.config).items() if item[0] not in code.own)
        key = (
            (code, feature.spec.checkpoint.get("digest"), shared)
            if code.own
            else feature.spec.fingerprint
        )
        groups.setdefault(key, []).append(feature)
    return [
        FEATURES[group[0].spec.feature].code(group, device, batch_seconds)
        for group in groups.values()
    ]
