"""`--check N`: rows computed in batches against the same computed one by one, on the user's own corpus and model."""

from dataclasses import replace
from operator import itemgetter

import numpy as np

from ser.errors import UtteranceError

from .extractors import GPU_SECONDS, batches
from .plan import MODALITIES, ExtractionPlan
from .registry import load_extractors
from .worker import read_input


def measure_deviations(plan: ExtractionPlan, count: int) -> dict[str, float]:
    """Feature name → max |difference| / max |reference| over `count` utterances spread from shortest to longest.

    The reference is one utterance at a time; on a CPU, where a run goes one by one too, the others are in batches all
    the same. Both in float32, before the store's dtype rounds them. A feature that none of them has (all too short,
    say) is left out.
    """
    found: dict[str, float] = {}
    most = plan.config.batch_seconds or GPU_SECONDS
    features = [replace(one.resolved, spec=replace(one.resolved.spec, dtype="float32")) for one in plan.features]
    device = replace(plan.worker_config(), resolved=tuple(features)).here().device
    for modality in MODALITIES:
        mine = [one for one in features if one.spec.modality == modality]
        utterances = [one for one in plan.utterances(modality) if mine and one.problem is None]
        utterances.sort(key=lambda one: (-one.length, one.id))
        spread = np.linspace(0, len(utterances) - 1, min(count, len(utterances))).round().astype(int)
        chosen = [utterances[row] for row in spread]
        read = [(one.length, read_input(one, modality, plan.scan.root)) for one in chosen]
        inputs = [(length, value) for length, value in read if not isinstance(value, UtteranceError)]
        for extractor in load_extractors(mine, device, most):
            for batch in batches(inputs, itemgetter(0), most):
                values = [value for _, value in batch]
                for value, together in zip(values, extractor.run(values), strict=True):
                    [alone] = extractor.run([value])
                    if isinstance(together, UtteranceError) or isinstance(alone, UtteranceError):
                        continue
                    for spec in extractor.specs:
                        ours, reference = (rows[spec.fingerprint].values for rows in (together, alone))
                        found[spec.name] = max(found.get(spec.name, 0.0), relative(ours, reference))
    return found


def relative(ours: np.ndarray, reference: np.ndarray) -> float:
    """Max |difference| / max |reference|."""
    if ours.shape != reference.shape:
        return float("inf")
    return float(np.abs(ours - reference).max() / max(float(np.abs(reference).max()), 1e-30))
