"""`--check N`: how far batches are from one by one, on the user's own corpus and model."""

from dataclasses import replace

import numpy as np

from ser.corpus.names import Modality
from ser.errors import UtteranceError

from .audio import Clip
from .batches import GPU_SECONDS, batches
from .extractor import Extractor
from .inputs import Inputs
from .plan import ExtractionPlan
from .resolve import load_extractors


def measure_deviations(plan: ExtractionPlan, count: int) -> dict[str, float]:
    """Feature name → max |difference| / max |reference| over `count` utterances.

    They are spread from shortest to longest. The reference is computed one utterance at a time, the
    others in batches, on a CPU too. Both are in float32, before the store's dtype rounds them. A
    feature without rows (all utterances too short, say) is left out.
    """
    features = [
        replace(feature, spec=replace(feature.spec, dtype="float32")) for feature in plan.features
    ]
    device = replace(plan.worker_config(), features=tuple(features)).here().device
    limit = plan.config.batch_seconds or GPU_SECONDS

    deviations: dict[str, float] = {}
    for modality in plan.utterances:
        inputs = _spread_inputs(plan, modality, count)
        of_modality = [feature for feature in features if feature.spec.modality == modality]
        for extractor in load_extractors(of_modality, device, limit):
            for batch in batches(inputs, lambda pair: pair[0], limit):
                _compare(extractor, [value for _, value in batch], deviations)
    return deviations


def _spread_inputs(
    plan: ExtractionPlan, modality: Modality, count: int
) -> list[tuple[float, Clip | str]]:
    """The lengths and inputs of `count` usable utterances, from the longest to the shortest."""
    usable = [utterance for utterance in plan.utterances[modality] if not utterance.problem]
    usable.sort(key=lambda utterance: (-utterance.length, utterance.id))
    spread = np.linspace(0, len(usable) - 1, min(count, len(usable))).round().astype(int)

    reader = Inputs(plan.scan.root)
    inputs: list[tuple[float, Clip | str]] = []
    for row in spread:
        utterance = usable[row]
        value = reader.read(utterance, modality)
        if not isinstance(value, UtteranceError):
            inputs.append((utterance.length, value))
    return inputs


def _compare(extractor: Extractor, inputs: list[Clip | str], deviations: dict[str, float]) -> None:
    """Raise `deviations`, by feature, to those of one batch."""
    for value, batched in zip(inputs, extractor.run(inputs), strict=True):
        [alone] = extractor.run([value])
        if isinstance(batched, UtteranceError) or isinstance(alone, UtteranceError):
            continue
        for spec in extractor.specs:
            deviation = relative_deviation(
                batched[spec.fingerprint].values, alone[spec.fingerprint].values
            )
            deviations[spec.name] = max(deviations.get(spec.name, 0.0), deviation)


def relative_deviation(ours: np.ndarray, reference: np.ndarray) -> float:
    """Max |difference| / max |reference|; infinite if the shapes differ."""
    if ours.shape != reference.shape:
        return float("inf")
    largest = max(float(np.abs(reference).max()), 1e-30)
    return float(np.abs(ours - reference).max() / largest)
