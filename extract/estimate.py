"""How long a run will take, from a few of its own utterances: told before it starts, and never as more than "about"."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ser import engines
from ser.cache.spec import Modality

from .audio import decode, locate
from .batching import GPU_SECONDS, batches
from .opening import choose_device, open_passes
from .passes import Pass, Unusable
from .plan import Plan, Utterance
from .running import one_thread

T = TypeVar("T")

ENOUGH = 100  # utterances to compute: fewer are done before they are estimated
AT = (1 / 6, 1 / 2, 5 / 6)  # of the utterances by length, those that are timed


def about_seconds(plan: Plan) -> float | None:
    """The seconds that the plan will take on this machine, as far as a few utterances can tell.

    None if there is little to do, or if other machines do it. Opens the encoders and leaves them open for the run.
    """
    request = plan.request
    if request.scheduler is not None or max((len(f.missing) for f in plan.features), default=0) < ENOUGH:
        return None
    device = choose_device(request.device, [feature.wanted for feature in plan.features])
    on_gpu = device.startswith("cuda")
    most = request.batch_seconds or (GPU_SECONDS if on_gpu else None)
    if not on_gpu:
        one_thread()
    cores_busy = device_busy = 0.0
    modalities: tuple[Modality, ...] = ("audio", "text")
    for modality in modalities:
        wanted = [feature.wanted for feature in plan.features if feature.wanted.spec.modality == modality]
        left = _left(plan, modality, {one.spec.fingerprint for one in wanted})
        if not left:
            continue
        passes = open_passes(wanted, device, most)
        if (request.workers or 1) == 1:
            plan.opened[modality] = passes
        start = time.perf_counter()
        timed = _inputs(plan, _chosen(left, most if on_gpu else None), modality)
        cores_busy += (time.perf_counter() - start) / max(sum(u.length for u, _ in timed), 1e-9) * _seconds(left)
        for one in passes:
            alone = on_gpu and one.batched
            rate = _rate(one, timed, most, 1) if alone else _rate(one, _spread(timed), most, engines.cores())
            busy = rate * _seconds(_left(plan, modality, {spec.fingerprint for spec in one.specs}))
            if alone:
                device_busy += busy
            else:
                cores_busy += busy
    return max(cores_busy / engines.cores(), device_busy)


def _left(plan: Plan, modality: Modality, fingerprints: set[str]) -> list[Utterance]:
    """The usable utterances that lack one of these features, longest first; equal transcripts once."""
    rows = set[int]().union(*(f.missing for f in plan.features if f.wanted.spec.fingerprint in fingerprints))
    utterances = plan.utterances(modality) if rows else []
    usable = [utterances[row] for row in sorted(rows) if not utterances[row].problem]
    found = {(u.text if modality == "text" else u.id): u for u in usable}
    return sorted(found.values(), key=lambda utterance: -utterance.length)


def _seconds(utterances: Sequence[Utterance]) -> float:
    return sum(utterance.length for utterance in utterances)


def _spread(some: list[T]) -> list[T]:
    return [some[int(part * len(some))] for part in AT] if some else []


def _chosen(left: list[Utterance], most: float | None) -> list[Utterance]:
    """Three of different lengths; on a GPU, which a few leave idle, a batch from the middle."""
    if most is None:
        return _spread(left)
    groups = batches([utterance.length for utterance in left], most)
    return [left[index] for index in groups[len(groups) // 2]]


def _inputs(plan: Plan, utterances: list[Utterance], modality: Modality) -> list[tuple[Utterance, Any]]:
    """What a pass takes of each utterance that can be decoded."""
    if modality == "text":
        return [(utterance, utterance.text) for utterance in utterances]
    found: list[tuple[Utterance, Any]] = []
    for utterance in utterances:
        try:
            found.append((utterance, decode(locate(plan.scan.root, utterance.audio or ""), utterance.digest)))
        except Unusable:
            continue
    return found


def _rate(one: Pass, timed: list[tuple[Utterance, Any]], most: float | None, threads: int) -> float:
    """Seconds of one thread's work per second of utterances; 0 where none could be decoded."""
    groups = batches([utterance.length for utterance, _ in timed], most if one.batched else None)
    if not groups:
        return 0.0

    def once(_: int) -> float:
        one.run([timed[groups[-1][-1]][1]])  # the first call of a thread loads and allocates
        start = time.perf_counter()
        for group in groups:
            one.run([timed[row][1] for row in group])
        return time.perf_counter() - start

    # As many at once as in the run: cores share their memory, and often this machine with others.
    with ThreadPoolExecutor(threads) as pool:
        busy = list(pool.map(once, range(threads)))
    return sum(busy) / threads / max(_seconds([utterance for utterance, _ in timed]), 1e-9)
