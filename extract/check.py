"""`--check N`: our path against the plainest one, on the user's own corpus and model."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .audio import Clip, decode, locate
from .extractors import GPU_SECONDS, Outcome, ResolvedFeature, UtteranceError, batches, load_extractors
from .plan import Plan, Utterance


def deviations(plan: Plan, count: int, device: str) -> dict[str, float]:
    """Feature name → max |difference| / max |reference| over `count` utterances spread from shortest to longest.

    Ours: in batches, as the run does it (on a CPU, where it goes one by one, in batches all the same). The reference:
    one utterance at a time through the plain Hugging Face model, openSMILE, or librosa. Both in float32, before the
    store's dtype rounds them. A feature that none of them has (all too short, say) is left out.
    """
    found: dict[str, float] = {}
    for modality in ("audio", "text"):
        wanted = [f.wanted for f in plan.features if f.wanted.spec.modality == modality]
        if not wanted:
            continue
        chosen = _spread([u for u in plan.utterances(modality) if u.problem is None], count)
        inputs = [_input(plan, utterance, modality) for utterance in chosen]
        usable = [value for value in inputs if not isinstance(value, UtteranceError)]
        ours = _ours(wanted, usable, device, plan.request.batch_seconds)
        models: dict[str, Any] = {}  # by checkpoint: layers of one encoder share it
        for one in wanted:
            reference = _Reference(one, device, models)
            compared = [
                _relative(outcome[one.spec.fingerprint], reference(value))
                for value, outcome in zip(usable, ours, strict=True)
                if one.spec.fingerprint in outcome
            ]
            if compared:
                found[one.spec.name] = max(compared)
    return found


def _spread(utterances: list[Utterance], count: int) -> list[Utterance]:
    ordered = sorted(utterances, key=lambda utterance: (-utterance.length, utterance.id))
    if len(ordered) <= count:
        return ordered
    return [ordered[round(i)] for i in np.linspace(0, len(ordered) - 1, count)]


def _input(plan: Plan, utterance: Utterance, modality: str) -> Any:
    if modality == "text":
        return utterance.text
    try:
        return decode(locate(plan.scan.root, utterance.audio or ""), utterance.digest)
    except UtteranceError as fault:
        return fault


def _ours(
    wanted: Sequence[ResolvedFeature], inputs: Sequence[Any], device: str, batch_seconds: float | None
) -> list[dict[str, np.ndarray]]:
    found: list[dict[str, np.ndarray]] = [{} for _ in inputs]
    most = batch_seconds or GPU_SECONDS
    for one in load_extractors([_in_float32(w) for w in wanted], device, most):
        lengths = [value.seconds if isinstance(value, Clip) else 1.0 for value in inputs]
        for batch in batches(lengths, most):
            outcomes: list[Outcome] = one.run([inputs[row] for row in batch])
            for row, outcome in zip(batch, outcomes, strict=True):
                if not isinstance(outcome, UtteranceError):
                    for original, spec in _pairs(wanted, one.specs):
                        found[row][original] = outcome[spec].values
    return found


def _in_float32(wanted: ResolvedFeature) -> ResolvedFeature:
    from dataclasses import replace

    return replace(wanted, spec=replace(wanted.spec, dtype="float32"))


def _pairs(wanted: Sequence[ResolvedFeature], specs: Sequence[Any]) -> list[tuple[str, str]]:
    """The fingerprints of the wanted features, and those that they have in float32."""
    in_float32 = {_in_float32(w).spec.fingerprint: w.spec.fingerprint for w in wanted}
    return [(in_float32[spec.fingerprint], spec.fingerprint) for spec in specs]


def _relative(ours: np.ndarray, reference: np.ndarray) -> float:
    if ours.shape != reference.shape:
        return float("inf")
    return float(np.abs(ours - reference).max() / max(float(np.abs(reference).max()), 1e-30))


class _Reference:
    """One feature of one utterance, in the way its documentation shows."""

    def __init__(self, wanted: ResolvedFeature, device: str, models: dict[str, Any]) -> None:
        self.wanted, self.config, self.device, self.models = wanted, wanted.config, device, models

    def __call__(self, value: Any) -> np.ndarray:
        return np.asarray(getattr(self, f"_{self.wanted.spec.extractor}")(value))

    def _smile(self, clip: Clip) -> np.ndarray:
        import opensmile

        smile = opensmile.Smile(opensmile.FeatureSet.IS13, opensmile.FeatureLevel.Functionals)
        samples = np.clip(clip.at(self.config.sampling_rate), -1.0, self.config.clip)
        return np.asarray(smile.process_signal(samples, self.config.sampling_rate))

    def _mel(self, clip: Clip) -> np.ndarray:
        import librosa

        c = self.config
        samples = clip.at(c.sampling_rate)
        if c.view:
            from .augment import change

            samples = change(samples, c.sampling_rate, c.view)
        power = librosa.feature.melspectrogram(
            y=samples,
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

    def _hidden(self, **inputs: Any) -> np.ndarray:
        import torch

        from ser.weights import load_encoder

        checkpoint = self.wanted.checkpoint
        assert checkpoint is not None
        if checkpoint.digest not in self.models:
            self.models[checkpoint.digest] = load_encoder(checkpoint).to(self.device)
        # Always float32: where bfloat16 is asked for, the figure is what that choice costs.
        with torch.inference_mode():
            output = self.models[checkpoint.digest](**inputs, output_hidden_states=True)
        if getattr(self.config, "norm", "") == "after":
            return np.asarray(output.last_hidden_state[0].float().cpu())
        return np.asarray(output.hidden_states[self.config.layer][0].float().cpu())

    def _speech(self, clip: Clip) -> np.ndarray:
        import transformers

        extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=self.config.normalize)
        values = extractor(clip.at(self.config.sampling_rate), sampling_rate=16000, return_tensors="pt").input_values
        return self._hidden(input_values=values.to(self.device))

    def _text(self, text: str) -> np.ndarray:
        import transformers

        from .text import TAG

        assert self.wanted.checkpoint is not None
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.wanted.checkpoint.path, local_files_only=True)
        cleaned = " ".join(TAG.sub(" ", text).split()) if self.config.tags == "remove" else text
        tokens = tokenizer(
            cleaned, return_tensors="pt", truncation=True, max_length=self.config.most, return_special_tokens_mask=True
        )
        special = tokens.pop("special_tokens_mask")[0].bool().numpy()
        hidden = self._hidden(**tokens.to(self.device))
        return hidden if self.config.special else hidden[~special]
