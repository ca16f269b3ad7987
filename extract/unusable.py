"""What cannot be used stops a run, unless it says `on_error="skip"`."""

from collections.abc import Mapping, Sequence

from ser.cache.part import Quarantine
from ser.errors import ExtractionStopped

from .config import ExtractionConfig
from .corpora.alike import grouped, kind_of, kind_of_reason
from .corpora.reading import Problem
from .plan import ExtractionPlan

# Faults that a message names before it counts the rest.
MAX_NAMED = 5


def stop_if_unusable(plan: ExtractionPlan) -> None:
    """Raises `ExtractionStopped` for all that the scan found unusable, unless the config skips."""
    unusable: dict[str, list[Quarantine]] = {}
    for feature in plan.features:
        bad: list[Quarantine] = []
        for utterance in plan.missing[feature.spec.fingerprint]:
            if utterance.problem:
                bad.append(utterance.quarantine(utterance.problem))
        if bad:
            unusable[feature.spec.name] = bad
    stop_at(plan.config, unusable, plan.scan.refused)


def stop_at(
    config: ExtractionConfig,
    failed: Mapping[str, list[Quarantine]],
    refused: Sequence[Problem] = (),
) -> None:
    """Raises `ExtractionStopped`, naming what `failed` by feature and was `refused`.

    Unless the config says `on_error="skip"`.
    """
    failures: list[tuple[str, str]] = []
    for quarantined in failed.values():
        for entry in quarantined:
            place = f"{entry.id} ({entry.path})" if entry.path else entry.id
            kind = kind_of_reason(entry.reason, entry.id, entry.path)
            failures.append((kind, f"{place}: {entry.reason}"))

    # An utterance may fail for several features in the same way.
    faults = [(kind_of(problem), str(problem)) for problem in refused]
    faults += dict.fromkeys(failures)
    if config.on_error == "skip" or not faults:
        return

    count = "1 problem" if len(faults) == 1 else f"{len(faults)} problems"
    of_features = f" for {', '.join(failed)}" if failures else ""
    lines = grouped(faults)
    named = "; ".join(lines[:MAX_NAMED])
    more = ""
    if len(lines) > MAX_NAMED:
        more = f"; and {len(lines) - MAX_NAMED} more"
    raise ExtractionStopped(
        f"{count} with the corpus{of_features}: {named}{more}; "
        "correct the corpus, or go on without them by --on-error skip"
    )
