"""Text encoders of transformers: one row per token of the transcript.

Right padding with an attention mask is exact: a row's numbers do not depend on its batch.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import nn

from ser.errors import UtteranceError, WrongUse
from ser.weights.checkpoint import Checkpoint
from ser.weights.load import loading

from .extractors import ENCODERS, Encoder, Layer, Outcome, Precision

MOST = 512  # tokens
TAG = re.compile(
    r"\[[A-Za-z_]+\]"
)  # IEMOCAP's [LAUGHTER], [BREATHING], [GARBAGE], [LIPSMACK], lower-case too


@dataclass(frozen=True)
class TextConfig:
    """One layer of a text encoder: `hidden_states[layer]` of transformers, 0 the embeddings."""

    layer: int
    special: bool = (
        True  # [CLS] and [SEP] (<s> and </s>) keep their rows; the encoder sees them in any case
    )
    tags: Literal["keep", "remove"] = "keep"  # [LAUGHTER] and its like
    most: int = MOST  # tokens with the special ones; a longer text is cut, with a warning
    precision: Precision = "float32"


class TextExtractor(Encoder):
    """Tokens `[tokens, dim]`.

    `extras["word"]`, int32, is the number of the word (text between spaces) that a token belongs
    to, -1 for special tokens; `extras["token"]`, int32, is its id in the vocabulary.
    """

    name, version, Config = "text", 1, TextConfig
    packages = ("torch", "transformers", "tokenizers")
    mask_always = True

    @classmethod
    def resolve(cls, settings: dict[str, Any], checkpoint: Checkpoint) -> TextConfig:
        """The complete config on this checkpoint. Raises `WrongUse` for what the encoder cannot
        give.
        """
        config: TextConfig = super().resolve(settings, checkpoint)
        offset = ENCODERS[checkpoint.architecture].get("offset", 0)
        longest = checkpoint.setting("max_position_embeddings") - offset
        config = replace(config, most=settings.get("most", min(MOST, longest)))
        if not 3 <= config.most <= longest:
            raise WrongUse(f"most={config.most}: {checkpoint.model} takes 3 to {longest} tokens")
        return config

    def open(self) -> None:
        """Load the model and its tokenizer."""
        from transformers import AutoTokenizer

        super().open()
        self.model.config.output_hidden_states = True
        folder, hint = self.checkpoint.path, ""
        if not (folder / "tokenizer.json").exists():
            hint = " (no tokenizer.json is there; a SentencePiece model takes `pip install sentencepiece protobuf`)"
        with loading(f"{folder}: its tokenizer cannot be loaded{hint}"):
            self.tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
            # Only fast tokenizers have offsets. This call turns off the truncation and padding of
            # its file.
            self.tokenizer("a", return_offsets_mapping=True)
            known = self.model.get_input_embeddings().num_embeddings
            tokens = (
                max(self.tokenizer.get_vocab().values()) + 1
            )  # without its file, few: it is an empty one
            if self.tokenizer.pad_token_id is None or not known / 2 < tokens <= known:
                raise ValueError(
                    f"it has no padding token, or {tokens} tokens where the model has {known}"
                )
        self.padding = self.tokenizer.pad_token_id

    def tap(self, wanted: set[int]) -> None:
        """Drop the layers above the deepest wanted one, except the next: after the last, some
        encoders have a norm.
        """
        if self.model.config.model_type == "albert":
            return  # its modules are groups, of which several layers may share one
        for module in self.model.modules():
            if (
                isinstance(module, nn.ModuleList)
                and len(module) == self.model.config.num_hidden_layers
            ):
                del module[max(wanted) + 1 :]

    def hidden(self, config: TextConfig, output: Any) -> Any:
        """The layer `[batch, tokens, dim]` that `config` names."""
        return output.hidden_states[config.layer]

    def run(self, batch: Sequence[str]) -> list[Outcome]:
        """The tokens of each transcript, `[tokens, dim]` of each spec."""
        remaining = ""
        if self.config.tags == "remove":
            batch, remaining = (
                [" ".join(TAG.sub(" ", text).split()) for text in batch],
                ", its tags aside",
            )
        outcomes: list[Outcome] = [
            UtteranceError(f"its transcript is empty{remaining}") for _ in batch
        ]
        texts = {row: text for row, text in enumerate(batch) if text.strip()}
        # By the backend: the tokenizer around it sets the truncation on every call, which is not
        # safe in threads.
        encodings = [self.tokenizer.backend_tokenizer.encode(text) for text in texts.values()]
        cut = slice(self.config.most - 1, -1)  # of a longer text, before the closing special token
        ids = [np.delete(np.array(encoding.ids, dtype=np.int64), cut) for encoding in encodings]
        hidden = self.forward(ids) if ids else []
        for (row, text), encoding, tokens, layers in zip(
            texts.items(), encodings, ids, hidden, strict=True
        ):
            special = np.delete(np.array(encoding.special_tokens_mask, dtype=bool), cut)
            keep = slice(None) if self.config.special else ~special
            word = words(text, np.delete(encoding.offsets, cut, axis=0), special)[keep]
            warnings: tuple[str, ...] = ()
            if (total := len(encoding.ids)) > len(tokens):
                warnings = (
                    f"its transcript of {total} tokens is cut to {len(tokens)} for {self.label}",
                )
            if word.size:
                kept = [Layer(values[keep], peaks[keep]) for values, peaks in layers]
                outcomes[row] = self.outcome(
                    kept, {"word": word, "token": tokens.astype(np.int32)[keep]}, warnings
                )
        return outcomes


def words(text: str, spans: np.ndarray, special: np.ndarray) -> np.ndarray:
    """The number of the word between spaces that holds each token's first letter, int32 `[tokens]`.

    A space before a word belongs to it: some tokenizers put it into its first token, or into a
    token of its own.
    """
    ends = [word.end() for word in re.finditer(r"\S+", text)]
    before = np.searchsorted(ends, [start for start, _ in spans], side="right")
    return np.where(special, -1, np.minimum(before, len(ends) - 1)).astype(np.int32)
