"""Features of a few utterances, straight into memory: what `ser predict` needs of a trained run's features."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ser.cache.spec import Spec
from ser.errors import UtteranceError, WrongUse
from ser.plugins import not_installed
from ser.weights.find import recorded_checkpoint

from .audio import Clip, decode
from .extractors import Extractor, ResolvedFeature, Rows
from .registry import FEATURES, check_models, parse, resolved


def resolve_again(spec: Spec, models: Mapping[str, str] | None = None) -> ResolvedFeature:
    """What computes a stored feature anew. `models` says where an encoder's checkpoint lies, by feature name.

    Raises `WrongUse` if this would give other numbers: another checkpoint, or another version of the extractor.
    """
    if spec.extractor != "import" and spec.feature not in FEATURES:
        raise WrongUse(not_installed(f"{spec.name} was computed by an extractor", spec.provenance.get("package")))
    if spec.extractor == "import":
        raise WrongUse(
            f"{spec.name} was imported from {spec.provenance.get('file', 'a file')}, and cannot be computed for new "
            "speech; train on a feature that `ser features` extracts"
        )
    check_models(models or {})
    checkpoint = recorded_checkpoint(spec, models or {}) if FEATURES[spec.feature].model is not None else None
    wanted = resolved(*parse(spec.name), checkpoint, spec.dtype)
    if wanted.spec.fingerprint != spec.fingerprint:
        then, now = (one.pop("config") | one for one in (spec.identity(), wanted.spec.identity()))
        keys = [key for key in sorted(now.keys() | then.keys()) if now.get(key) != then.get(key)]
        differences = "; ".join(f"{key} {then.get(key)!r}, here {now.get(key)!r}" for key in keys)
        raise WrongUse(f"{spec.name} would be computed otherwise than for training (differs in {differences})")
    return wanted


def rows_of(extractors: Sequence[Extractor], given: Path | str, warnings: list[str]) -> dict[str, Rows]:
    """The features of one audio file (a path) or transcript (a string), by fingerprint.

    Adds what is odd about it, such as a cut text, to `warnings`. Raises `UtteranceError` for what cannot be used.
    """
    source: Clip | str = decode(given) if isinstance(given, Path) else given
    outcomes = [extractor.run([source])[0] for extractor in extractors]
    warnings += dict.fromkeys(source.warnings) if isinstance(source, Clip) else ()
    found: dict[str, Rows] = {}
    for outcome in outcomes:
        if isinstance(outcome, UtteranceError):
            raise outcome
        found |= outcome
    warnings += dict.fromkeys(warning for rows in found.values() for warning in rows.warnings)
    return found
