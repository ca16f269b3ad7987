"""`--check N`: our path against the plainest one, on the user's own corpus and model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ser.cache.spec import Modality
from ser.errors import UtteranceError

from .audio import Clip
from .augment import change
from .extractors import GPU_SECONDS, ResolvedFeature, batches, load_extractors
from .plan import ExtractionPlan
from .text import cleaned
from .worker import read_input


def deviations(plan: ExtractionPlan, count: int, device: str) -> dict[str, float]:
    """Feature name → max |difference| / max |reference| over `count` utterances spread from shortest to longest.

    Ours: in batches, as the run does it (on a CPU, where it goes one by one, in batches all the same). The reference:
    one utterance at a time through the plain Hugging Face model, openSMILE, or librosa. Both in float32, before the
    store's dtype rounds them. A feature that none of them has (all too short, say) is left out.
    """
    found: dict[str, float] = {}
    most = plan.config.batch_seconds or GPU_SECONDS
    models: dict[str, Any] = {}  # by checkpoint: layers of one encoder share it
    modalities: tuple[Modality, ...] = ("audio", "text")
    for modality in modalities:
        asked = [f.wanted for f in plan.features if f.wanted.spec.modality == modality]
        exact = [replace(one, spec=replace(one.spec, dtype="float32")) for one in asked]
        names = {one.spec.fingerprint: original.spec.name for one, original in zip(exact, asked, strict=True)}
        utterances = [u for u in plan.utterances(modality) if u.problem is None] if exact else []
        utterances.sort(key=lambda utterance: (-utterance.length, utterance.id))
        spread = {round(i) for i in np.linspace(0, len(utterances) - 1, min(count, len(utterances)))}
        chosen = [utterances[i] for i in sorted(spread)]
        read = [(one.length, read_input(one, modality, plan.scan.root)) for one in chosen]
        inputs = [(length, value) for length, value in read if not isinstance(value, UtteranceError)]
        references = {
            one.spec.fingerprint: REFERENCES[one.spec.extractor](one, device, models)
            for one in exact
            if one.spec.extractor in REFERENCES
        }
        for extractor in load_extractors(exact, device, most):
            for batch in batches([length for length, _ in inputs], most):
                values = [inputs[row][1] for row in batch]
                for value, outcome in zip(values, extractor.run(values), strict=True):
                    for fingerprint, rows in {} if isinstance(outcome, UtteranceError) else outcome.items():
                        if fingerprint in references:
                            deviation = relative(rows.values, references[fingerprint](value))
                            name = names[fingerprint]
                            found[name] = max(found.get(name, 0.0), deviation)
    return found


def relative(ours: np.ndarray, reference: np.ndarray) -> float:
    """Max |difference| / max |reference|."""
    if ours.shape != reference.shape:
        return float("inf")
    return float(np.abs(ours - reference).max() / max(float(np.abs(reference).max()), 1e-30))


Reference = Callable[[Any], np.ndarray]  # one utterance, in the way that the library's documentation shows


def _smile(wanted: ResolvedFeature, device: str, models: dict[str, Any]) -> Reference:
    import opensmile

    smile = opensmile.Smile(opensmile.FeatureSet.IS13, opensmile.FeatureLevel.Functionals)
    rate, largest = wanted.config.sampling_rate, wanted.config.clip
    return lambda clip: np.asarray(smile.process_signal(np.clip(clip.at(rate), -1.0, largest), rate))


def _mel(wanted: ResolvedFeature, device: str, models: dict[str, Any]) -> Reference:
    import librosa

    c = wanted.config

    def reference(clip: Clip) -> np.ndarray:
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

    return reference


def _hidden(wanted: ResolvedFeature, device: str, models: dict[str, Any], inputs: Any) -> np.ndarray:
    import torch

    from ser.weights import load_encoder

    assert wanted.checkpoint is not None
    if wanted.checkpoint.digest not in models:
        models[wanted.checkpoint.digest] = load_encoder(wanted.checkpoint).to(device)
    # Always float32: where bfloat16 is asked for, the figure is what that choice costs.
    with torch.inference_mode():
        output = models[wanted.checkpoint.digest](**inputs.to(device), output_hidden_states=True)
    after = getattr(wanted.config, "norm", "") == "after"
    layer = output.last_hidden_state if after else output.hidden_states[wanted.config.layer]
    return np.asarray(layer[0].float().cpu())


def _speech(wanted: ResolvedFeature, device: str, models: dict[str, Any]) -> Reference:
    import transformers

    rate = wanted.config.sampling_rate
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=wanted.config.normalize)

    def reference(clip: Clip) -> np.ndarray:
        inputs = extractor(clip.at(rate), sampling_rate=rate, return_attention_mask=False, return_tensors="pt")
        return _hidden(wanted, device, models, inputs)

    return reference


def _text(wanted: ResolvedFeature, device: str, models: dict[str, Any]) -> Reference:
    import transformers

    assert wanted.checkpoint is not None
    tokenizer = transformers.AutoTokenizer.from_pretrained(wanted.checkpoint.path, local_files_only=True)
    options = {"truncation": True, "max_length": wanted.config.most, "return_special_tokens_mask": True}

    def reference(text: str) -> np.ndarray:
        tokens = tokenizer(cleaned(text, wanted.config.tags), return_tensors="pt", **options)
        special = tokens.pop("special_tokens_mask")[0].bool().numpy()
        hidden = _hidden(wanted, device, models, tokens)
        return hidden if wanted.config.special else hidden[~special]

    return reference


REFERENCES: dict[str, Callable[[ResolvedFeature, str, dict[str, Any]], Reference]] = {
    "smile": _smile,
    "mel": _mel,
    "speech": _speech,
    "text": _text,
}
