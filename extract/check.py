"""`--check N`: our path against the plainest one, on the user's own corpus and model."""

from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np

from ser.errors import UtteranceError
from ser.weights import load_encoder

from .audio import Clip
from .augment import change
from .extractors import GPU_SECONDS, ResolvedFeature, batches
from .plan import MODALITIES, ExtractionPlan
from .registry import load_extractors
from .smile import open_smile
from .text import cleaned
from .worker import read_input


def deviations(plan: ExtractionPlan, count: int) -> dict[str, float]:
    """Feature name → max |difference| / max |reference| over `count` utterances spread from shortest to longest.

    Ours: in batches, as the run does it (on a CPU, where it goes one by one, in batches all the same). The reference:
    one utterance at a time through the plain Hugging Face model, openSMILE, or librosa. Both in float32, before the
    store's dtype rounds them. A feature that none of them has (all too short, say) is left out.
    """
    found: dict[str, float] = {}
    most = plan.config.batch_seconds or GPU_SECONDS
    compared = [f.resolved for f in plan.features if f.resolved.spec.extractor in REFERENCES]
    device = replace(plan.worker_config(), resolved=tuple(compared)).here().device
    checkpoints = {one.checkpoint.digest: one.checkpoint for one in compared if one.checkpoint}
    models = {digest: load_encoder(one).to(device) for digest, one in checkpoints.items()}  # layers of one share it
    for modality in MODALITIES:
        names = {one.spec.name: one for one in compared if one.spec.modality == modality}
        exact = {name: replace(one, spec=replace(one.spec, dtype="float32")) for name, one in names.items()}
        named = {one.spec.fingerprint: name for name, one in exact.items()}
        utterances = [u for u in plan.utterances(modality) if names and u.problem is None]
        utterances.sort(key=lambda utterance: (-utterance.length, utterance.id))
        spread = {round(i) for i in np.linspace(0, len(utterances) - 1, min(count, len(utterances)))}
        chosen = [utterances[i] for i in sorted(spread)]
        read = [(one.length, read_input(one, modality, plan.scan.root)) for one in chosen]
        inputs = [(length, value) for length, value in read if not isinstance(value, UtteranceError)]
        for extractor in load_extractors([*exact.values()], device, most):
            for batch in batches(inputs, itemgetter(0), most):
                values = [value for _, value in batch]
                for value, outcome in zip(values, extractor.run(values), strict=True):
                    for fingerprint, rows in {} if isinstance(outcome, UtteranceError) else outcome.items():
                        name = named[fingerprint]
                        one = names[name]
                        model = models[one.checkpoint.digest] if one.checkpoint else None
                        plain = REFERENCES[one.spec.extractor](one, model, value)
                        found[name] = max(found.get(name, 0.0), relative(rows.values, plain))
    return found


def relative(ours: np.ndarray, reference: np.ndarray) -> float:
    """Max |difference| / max |reference|."""
    if ours.shape != reference.shape:
        return float("inf")
    return float(np.abs(ours - reference).max() / max(float(np.abs(reference).max()), 1e-30))


def _smile(wanted: ResolvedFeature, model: Any, clip: Clip) -> np.ndarray:
    rate = wanted.config.sampling_rate
    samples = np.clip(clip.at(rate), -1.0, wanted.config.clip)
    return np.asarray(open_smile(wanted.config).process_signal(samples, rate))


def _mel(wanted: ResolvedFeature, model: Any, clip: Clip) -> np.ndarray:
    import librosa

    c = wanted.config
    samples = clip.at(c.sampling_rate)
    power = librosa.feature.melspectrogram(
        y=change(samples, c.sampling_rate, c.view) if c.view else samples,
        sr=c.sampling_rate,
        n_fft=c.window_samples,
        hop_length=c.hop_samples,
        n_mels=c.bands,
        fmin=c.low,
        fmax=c.high or None,
        pad_mode=c.padding,
    )
    logmel = np.log(np.maximum(power, c.floor))
    return np.asarray((librosa.feature.mfcc(S=logmel, n_mfcc=c.coefficients) if c.coefficients else logmel).T)


def _hidden(wanted: ResolvedFeature, model: Any, inputs: Any) -> np.ndarray:
    import torch

    # Always float32: where bfloat16 is asked for, the figure is what that choice costs.
    with torch.inference_mode():
        output = model(**inputs.to(model.device), output_hidden_states=True)
    after = getattr(wanted.config, "norm", "") == "after"
    layer = output.last_hidden_state if after else output.hidden_states[wanted.config.layer]
    return np.asarray(layer[0].float().cpu())


def _speech(wanted: ResolvedFeature, model: Any, clip: Clip) -> np.ndarray:
    import transformers

    assert wanted.checkpoint is not None
    if wanted.spec.extractor == "speech":
        extractor: Any = transformers.Wav2Vec2FeatureExtractor(do_normalize=wanted.config.normalize)
    else:
        extractor = transformers.AutoFeatureExtractor.from_pretrained(wanted.checkpoint.path, local_files_only=True)
    rate, samples, rows = wanted.config.sampling_rate, clip.at(wanted.config.sampling_rate), []
    window = getattr(extractor, "n_samples", len(samples))  # Whisper's
    for start in range(0, len(samples), window):
        stretch, masked = samples[start : start + window], wanted.spec.extractor != "speech"
        inputs = extractor(stretch, sampling_rate=rate, return_attention_mask=masked, return_tensors="pt")
        hidden = _hidden(wanted, model, inputs)
        valid = inputs["attention_mask"][0].bool().numpy() if masked else np.ones(len(hidden), bool)
        rows.append(hidden[valid[:: len(valid) // len(hidden)]])
    return np.concatenate(rows)


def _text(wanted: ResolvedFeature, model: Any, text: str) -> np.ndarray:
    import transformers

    assert wanted.checkpoint is not None
    tokenizer = transformers.AutoTokenizer.from_pretrained(wanted.checkpoint.path, local_files_only=True)
    options = {"truncation": True, "max_length": wanted.config.most, "return_special_tokens_mask": True}
    tokens = tokenizer(cleaned(text, wanted.config.tags), return_tensors="pt", **options)
    special = tokens.pop("special_tokens_mask")[0].bool().numpy()
    hidden = _hidden(wanted, model, tokens)
    return hidden if wanted.config.special else hidden[~special]


# One utterance, in the way that the library's documentation shows, by the name of the extractor.
REFERENCES: dict[str, Callable[[ResolvedFeature, Any, Any], np.ndarray]] = {
    "smile": _smile,
    "mel": _mel,
    "speech": _speech,
    "whisper": _speech,
    "w2v-bert": _speech,
    "text": _text,
}
