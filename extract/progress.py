"""How far a run is, in utterances per stage, as this machine's workers tell."""

from collections import Counter
from collections.abc import Callable

from .plan import Part, Plan

OnProgress = Callable[[str, int, int], None]  # stage, utterances done, of how many


class Told:
    """Counts the utterances of each stage as they are done, and passes them on."""

    def __init__(self, plan: Plan, parts: list[Part], report: OnProgress | None) -> None:
        self.report = report
        self.done: Counter[str] = Counter()
        self.total: Counter[str] = Counter()
        for part in parts:
            known = {utterance.id for utterance in part.utterances if utterance.problem}  # nothing to do for these
            if part.modality == "audio":
                self.total["decode"] += len(part.utterances) - len(known)
            stages: dict[str, set[str]] = {}
            for feature in plan.features:
                spec = feature.wanted.spec
                stages.setdefault(spec.feature, set()).update(part.missing.get(spec.fingerprint, ()))
            for stage, ids in stages.items():
                self.total[stage] += len(ids - known)

    def stage(self, stage: str, count: int) -> None:
        """One more batch of a stage is done."""
        self.done[stage] += count
        if self.report:
            self.report(stage, min(self.done[stage], self.total[stage]), self.total[stage])
