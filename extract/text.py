"""BERT and MPNet: one row per token of the transcript.

Right padding with an attention mask is exact: a row's numbers do not depend on its batch.
"""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ser.cache.spec import Modality, Spec
from ser.errors import WrongUse
from ser.weights import Checkpoint, WeightsError, load_encoder

from .extractors import Layers, Outcome, Rows, UtteranceError, as_stored, in_halves

VERSION = 1
ARCHITECTURES = ("bert", "mpnet")
MOST = 512  # tokens
TAG = re.compile(r"\[[A-Za-z_]+\]")  # IEMOCAP's [LAUGHTER], [BREATHING], [GARBAGE], [LIPSMACK], lower-case too


@dataclass(frozen=True)
class TextConfig:
    """One layer of a text encoder.

    Layer k is the output of the k-th transformer layer, 0 the embeddings; the last one is `last_hidden_state`.
    """

    layer: int
    special: bool = True  # [CLS] and [SEP] (<s> and </s>) keep their rows; the encoder sees them in any case
    tags: str = "keep"  # or "remove": [LAUGHTER] and its like
    most: int = MOST  # tokens with the special ones; a longer text is cut, with a warning
    precision: str = "float32"  # or "bfloat16": autocast


def resolve(settings: dict[str, Any], checkpoint: Checkpoint) -> TextConfig:
    """The complete config of `settings` on this checkpoint. Raises `WrongUse` for what the encoder cannot give."""
    if checkpoint.architecture not in ARCHITECTURES:
        raise WrongUse(f"{checkpoint.model} is a {checkpoint.architecture} model, no text encoder of bert, mpnet")
    layers = int(checkpoint.setting("num_hidden_layers"))
    config = TextConfig(**{"layer": layers, "most": min(MOST, _positions(checkpoint)), **settings})
    if not 0 <= config.layer <= layers:
        raise WrongUse(f"layer={config.layer}: {checkpoint.model} has layers 0 to {layers}")
    if config.tags not in ("keep", "remove"):
        raise WrongUse(f"tags={config.tags}: it is keep or remove")
    if config.precision not in ("float32", "bfloat16"):
        raise WrongUse(f"precision={config.precision}: it is float32 or bfloat16")
    if not 3 <= config.most <= _positions(checkpoint):
        raise WrongUse(f"most={config.most}: {checkpoint.model} takes 3 to {_positions(checkpoint)} tokens")
    return config


def _positions(checkpoint: Checkpoint) -> int:
    """The longest input: MPNet's positions start after its padding index, 1."""
    return int(checkpoint.setting("max_position_embeddings")) - (2 if checkpoint.architecture == "mpnet" else 0)


class TextExtractor:
    """Several layers of one encoder from one forward pass.

    Each row's place in `extras["word"]` is the number of the word (text between spaces) that its token belongs to,
    int32, -1 for special tokens; `extras["token"]`, int32, is its id in the vocabulary.
    """

    modality: Modality = "text"
    batched = True

    def __init__(
        self, configs: Sequence[TextConfig], specs: Sequence[Spec], checkpoint: Checkpoint, device: torch.device
    ) -> None:
        import transformers

        self.configs, self.specs, self.stage = tuple(configs), tuple(specs), specs[0].feature
        self.shared, self.device = configs[0], device
        self.model = load_encoder(checkpoint).to(device)
        self._layers = Layers()
        self._layers.watch(self.model.encoder, "layer", {config.layer for config in self.configs})
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                checkpoint.path, trust_remote_code=False, local_files_only=True
            )
        except (OSError, ValueError, KeyError, TypeError) as fault:
            reason = (str(fault).splitlines() or [type(fault).__name__])[0]
            raise WeightsError(f"{checkpoint.path}: its tokenizer cannot be loaded: {reason}") from fault
        if not self.tokenizer.is_fast:
            raise WeightsError(f"{checkpoint.path}: its tokenizer gives no offsets; save a fast one (tokenizer.json)")
        # The tokenizer sets its truncation on every call, and may not be used meanwhile.
        self._tokenizing = threading.Lock()

    def run(self, batch: Sequence[str]) -> list[Outcome]:
        """The tokens of each transcript, `[tokens, dim]` of each spec."""
        texts = [self.cleaned(text) for text in batch]
        outcomes: list[Outcome] = [{} for _ in batch]
        rows = []
        for row, text in enumerate(texts):
            if text.strip():
                rows.append(row)
            else:
                outcomes[row] = UtteranceError(
                    "its transcript is empty" + (" without its tags" if batch[row].strip() else "")
                )
        if rows:
            for row, outcome in zip(rows, self._run([texts[row] for row in rows]), strict=True):
                outcomes[row] = outcome
        return outcomes

    def cleaned(self, text: str) -> str:
        """The transcript as the tokenizer gets it."""
        return " ".join(TAG.sub(" ", text).split()) if self.shared.tags == "remove" else text

    def _run(self, texts: list[str]) -> list[Outcome]:
        with self._tokenizing:
            tokens = [
                self.tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True) for text in texts
            ]
        ids = [self._cut(token["input_ids"]) for token in tokens]
        arrays = self.forward(ids)
        outcomes: list[Outcome] = []
        for row, text in enumerate(texts):
            special = np.array(self._cut(tokens[row]["special_tokens_mask"]), dtype=bool)
            words = _words(text, self._cut(tokens[row]["offset_mapping"]), special)
            keep = slice(None) if self.shared.special else ~special
            if not words[keep].size:
                outcomes.append(UtteranceError("its transcript has no token"))
                continue
            warnings = self._warnings(len(tokens[row]["input_ids"]))
            extras = {"word": words[keep], "token": np.array(ids[row], dtype=np.int32)[keep]}
            try:
                outcomes.append(
                    {
                        spec.fingerprint: Rows(as_stored(values[keep], spec.dtype), extras, warnings)
                        for spec, values in zip(self.specs, arrays[row], strict=True)
                    }
                )
            except UtteranceError as fault:
                outcomes.append(fault)
        return outcomes

    def _warnings(self, tokens: int) -> tuple[str, ...]:
        most = self.shared.most
        return (f"its transcript of {tokens} tokens is cut to {most} for {self.stage}",) if tokens > most else ()

    def _cut(self, tokens: list[Any]) -> list[Any]:
        """At most `most` tokens, the last one still the closing special token."""
        if len(tokens) <= self.shared.most:
            return tokens
        return [*tokens[: self.shared.most - 1], tokens[-1]]

    def forward(self, ids: Sequence[Sequence[int]]) -> list[list[np.ndarray]]:
        """Hidden states of each token sequence, one `[tokens, dim]` float32 per spec. Halves as speech does."""
        return in_halves(self._forward, ids)

    def _forward(self, ids: Sequence[Sequence[int]]) -> list[list[np.ndarray]]:
        longest = max(len(tokens) for tokens in ids)
        padded = torch.full((len(ids), longest), self.tokenizer.pad_token_id)
        mask = torch.zeros(len(ids), longest, dtype=torch.long)
        for row, tokens in enumerate(ids):
            padded[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        self._layers.taken.clear()
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.shared.precision == "bfloat16"),
        ):
            self.model(padded.to(self.device), attention_mask=mask.to(self.device))
            arrays = [self._layers.taken[config.layer].float().cpu().numpy() for config in self.configs]
        self._layers.taken.clear()
        return [[array[row, : len(tokens)] for array in arrays] for row, tokens in enumerate(ids)]


def _words(text: str, spans: Sequence[tuple[int, int]], special: np.ndarray) -> np.ndarray:
    """The number of the word between spaces that each token's first character lies in, int32 `[tokens]`."""
    number = np.cumsum([not c.isspace() and (i == 0 or text[i - 1].isspace()) for i, c in enumerate(text)]) - 1
    return np.array(
        [-1 if alone else number[start] for (start, _), alone in zip(spans, special, strict=True)], dtype=np.int32
    )
