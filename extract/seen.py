"""How far a run is, in utterances per stage, as the store shows: whoever has published what."""

import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator

from ser.engines.crew import LOOK

from .arrivals import Arrivals
from .plan import Part, Plan
from .progress import OnProgress
from .work import Record

SHARE = 20  # a look at the store waits so many times what the last one took: a slow disk is not kept busy by looking
LACKS, THERE = 1, 2  # an utterance in the eyes of a feature; 0: nothing to do for it


class Seen:
    """Counts what is in the store of all that the plan lacked, whoever has published it.

    So it goes on where a command that was killed has left workers behind, and where another works on the same store.
    An utterance of a stage is done when every feature of that stage has it. A look costs a listing per feature, and
    each part is read once.
    """

    def __init__(self, plan: Plan, parts: Iterable[Part], report: OnProgress | None) -> None:
        self.report = report or (lambda _stage, _done, _total: None)
        self.corpus = plan.manifest.corpus
        self.total: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._told: dict[str, int] = {}
        self._next = 0.0
        # By number, one byte for each utterance: a million of them in five features shall cost little.
        self._numbers: dict[str, int] = {id_: number for number, id_ in enumerate(plan.manifest.ids)}
        features = [feature for feature in plan.features if feature.missing]
        self._stages = {feature.wanted.spec.fingerprint: feature.wanted.spec.feature for feature in features}
        self._keys = {one.wanted.spec.fingerprint: plan.manifest.keys(one.wanted.spec.modality) for one in features}
        self._lacks = {name: bytearray(len(plan.manifest)) for name in self._stages}
        self._open = {stage: array("H", bytes(2 * len(plan.manifest))) for stage in self._stages.values()}
        self._arrivals = {
            one.wanted.spec.fingerprint: Arrivals(
                plan.request.store / one.wanted.spec.feature / one.wanted.spec.fingerprint, one.parts
            )
            for one in features
        }
        for part in parts:
            known = {utterance.id for utterance in part.utterances if utterance.problem}  # nothing to do for these
            for name, ids in part.missing.items():
                for id_ in ids - known:
                    number, waiting = self._numbers[id_], self._open[self._stages[name]]
                    self._lacks[name][number] = LACKS
                    self.total[self._stages[name]] += not waiting[number]
                    waiting[number] += 1

    def look(self, anew: bool = False) -> None:
        """Look at the store and report, unless it was looked at a moment ago."""
        if not anew and time.monotonic() < self._next:
            return
        begun = time.monotonic()
        for name, arrivals in self._arrivals.items():
            for record in arrivals.new():
                if record.corpus == self.corpus:
                    for id_, digest in zip(record.ids, record.inputs, strict=True):
                        self._there(name, id_, digest)
                    for entry in record.quarantined:
                        self._there(name, entry.id, entry.input)
        self._tell()
        self._next = time.monotonic() + max(LOOK, SHARE * (time.monotonic() - begun))

    def add(self, record: Record) -> None:
        """A lease that came back: what is quarantined again stands in a part that was there before."""
        for name, found in record.quarantined.items():
            for entry in found:
                self._there(name, entry.id, entry.input)

    def left(self, parts: Iterable[Part]) -> Iterator[Part]:
        """The parts as they are taken, each without what had come into the store at the last look."""
        for part in parts:
            missing = {name: self._still(name, ids) for name, ids in part.missing.items()}
            if (some := part.only(missing)) is not None:
                yield some

    def _still(self, name: str, ids: frozenset[str]) -> frozenset[str]:
        return frozenset(id_ for id_ in ids if self._lacks[name][self._numbers[id_]] != THERE)

    def _there(self, name: str, id_: str, digest: str | None) -> None:
        number = self._numbers.get(id_)
        if number is None or self._lacks[name][number] != LACKS or self._keys[name][number][2] != digest:
            return
        stage = self._stages[name]
        self._lacks[name][number] = THERE
        self._open[stage][number] -= 1
        self._done[stage] += not self._open[stage][number]

    def _tell(self) -> None:
        for stage, total in self.total.items():
            if self._told.get(stage) != self._done[stage]:
                self._told[stage] = self._done[stage]
                self.report(stage, self._done[stage], total)
