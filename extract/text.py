"""Text encoders of transformers: one row per token of the transcript.

Right padding with an attention mask is exact: a row's numbers do not depend on its batch.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor, nn

from ser.errors import UtteranceError, WrongUse
from ser.weights.checkpoint import Checkpoint
from ser.weights.load import loading

from .encoder import Encoder, Precision
from .extractor import Extracted, Layer

MAX_TOKENS = 512
# IEMOCAP's [LAUGHTER], [BREATHING], [GARBAGE], [LIPSMACK], lower-case too.
TAG = re.compile(r"\[[A-Za-z_]+\]")

# How many positions of an architecture are not for tokens: tokens start after the position of the
# padding token, 1.
POSITION_OFFSETS: Mapping[str, int] = {
    "camembert": 2,
    "data2vec-text": 2,
    "mpnet": 2,
    "roberta": 2,
    "roberta-prelayernorm": 2,
    "xlm-roberta": 2,
    "xlm-roberta-xl": 2,
}


@dataclass(frozen=True)
class TextConfig:
    """One layer of a text encoder: `hidden_states[layer]` of transformers, 0 the embeddings."""

    layer: int
    # [CLS] and [SEP] (<s> and </s>) keep their rows; the encoder sees them in any case.
    special: bool = True
    # [LAUGHTER] and its like.
    tags: Literal["keep", "remove"] = "keep"
    # Tokens with the special ones; a longer text is cut, with a warning.
    most: int = MAX_TOKENS
    precision: Precision = "float32"


class Tokens(NamedTuple):
    """One transcript as the encoder takes it."""

    # `[tokens]` int64: their numbers in the vocabulary.
    ids: np.ndarray
    # `[tokens]` bool: [CLS], [SEP] and their like.
    special: np.ndarray
    # `[tokens]` int32: the word that each belongs to, -1 for special tokens.
    words: np.ndarray
    # How many there were before the cut.
    total: int


class TextExtractor(Encoder):
    """Tokens `[tokens, dim]`.

    `extras["word"]`, int32, is the number of the word (text between spaces) that a token belongs
    to, -1 for special tokens; `extras["token"]`, int32, is its id in the vocabulary.
    """

    name = "text"
    version = 1
    Config = TextConfig
    packages = ("torch", "transformers", "tokenizers")
    mask_always = True
    # Those whose hidden states do not depend on right padding (one test for all). No decoder and no
    # encoder-decoder: what a causal model says of a word knows nothing of the words after it.
    architectures = (
        "albert",
        "bert",
        "camembert",
        "data2vec-text",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "ernie",
        "eurobert",
        "megatron-bert",
        "modernbert",
        "mpnet",
        "nomic_bert",
        "rembert",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
    )

    @classmethod
    def resolve(cls, settings: dict[str, Any], checkpoint: Checkpoint) -> TextConfig:
        """The complete config on this checkpoint.

        Raises `WrongUse` for what the encoder cannot give.
        """
        config: TextConfig = super().resolve(settings, checkpoint)
        positions = checkpoint.setting("max_position_embeddings")
        longest = positions - POSITION_OFFSETS.get(checkpoint.architecture, 0)

        config = replace(config, most=settings.get("most", min(MAX_TOKENS, longest)))
        if not 3 <= config.most <= longest:
            raise WrongUse(f"most={config.most}: {checkpoint.model} takes 3 to {longest} tokens")
        return config

    def open(self) -> None:
        """Load the model and its tokenizer. Raises `WeightsError` unless one fits the other."""
        from transformers import AutoTokenizer

        super().open()
        self.model.config.output_hidden_states = True

        folder = self.checkpoint.path
        hint = ""
        if not (folder / "tokenizer.json").exists():
            hint = (
                " (no tokenizer.json is there; a SentencePiece model takes "
                "`pip install sentencepiece protobuf`)"
            )
        with loading(f"{folder}: its tokenizer cannot be loaded{hint}"):
            self.tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
            # Only fast tokenizers have offsets. This call turns off the truncation and padding of
            # its file.
            self.tokenizer("a", return_offsets_mapping=True)

            # A tokenizer without its file is an empty one, of few tokens.
            known = self.model.get_input_embeddings().num_embeddings
            tokens = max(self.tokenizer.get_vocab().values()) + 1
            if self.tokenizer.pad_token_id is None or not known / 2 < tokens <= known:
                raise ValueError(
                    f"it has no padding token, or {tokens} tokens where the model has {known}"
                )
        self.padding = self.tokenizer.pad_token_id

    def keep_layers(self, wanted: set[int]) -> None:
        """Drop the layers above the deepest wanted one, except the next.

        After the last, some encoders have a norm.
        """
        # Its modules are groups, of which several layers may share one.
        if self.model.config.model_type == "albert":
            return

        count = self.model.config.num_hidden_layers
        for module in self.model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                del module[max(wanted) + 1 :]

    def hidden(self, config: TextConfig, output: Any) -> Tensor:
        """The layer `[batch, tokens, dim]` that `config` names."""
        layer: Tensor = output.hidden_states[config.layer]
        return layer

    def run(self, batch: Sequence[str]) -> list[Extracted]:
        """The tokens of each transcript, `[tokens, dim]` of each spec."""
        empty = "its transcript is empty"
        if self.config.tags == "remove":
            batch = [without_tags(text) for text in batch]
            empty += ", its tags aside"

        tokens = {row: self.tokenize(text) for row, text in enumerate(batch) if text.strip()}
        hidden: list[list[Layer]] = []
        if tokens:
            hidden = self.forward([transcript.ids for transcript in tokens.values()])

        results: list[Extracted] = [UtteranceError(empty) for _ in batch]
        for (row, transcript), layers in zip(tokens.items(), hidden, strict=True):
            keep = slice(None) if self.config.special else ~transcript.special
            if transcript.ids[keep].size:
                results[row] = self.kept(transcript, layers, keep)
        return results

    def tokenize(self, text: str) -> Tokens:
        """The tokens of one transcript, cut to the config's `most`."""
        # By the backend: the tokenizer around it sets the truncation on every call, which is not
        # safe in threads.
        encoding = self.tokenizer.backend_tokenizer.encode(text)
        # Of a longer text, what stands before the closing special token.
        cut = slice(self.config.most - 1, -1)

        ids = np.delete(np.array(encoding.ids, dtype=np.int64), cut)
        special = np.delete(np.array(encoding.special_tokens_mask, dtype=bool), cut)
        spans = np.delete(encoding.offsets, cut, axis=0)
        return Tokens(ids, special, word_numbers(text, spans, special), len(encoding.ids))

    def kept(self, tokens: Tokens, layers: Sequence[Layer], keep: slice | np.ndarray) -> Extracted:
        """The rows of one transcript, of the tokens that `keep` names."""
        count = len(tokens.ids)
        warnings: tuple[str, ...] = ()
        if tokens.total > count:
            warnings = (
                f"its transcript of {tokens.total} tokens is cut to {count} for {self.label}",
            )

        kept = [Layer(layer.values[keep], layer.peaks[keep]) for layer in layers]
        extras = {"word": tokens.words[keep], "token": tokens.ids.astype(np.int32)[keep]}
        return self.as_rows(kept, extras, warnings)


def without_tags(text: str) -> str:
    """The text without [LAUGHTER] and its like, its words parted by one space."""
    return " ".join(TAG.sub(" ", text).split())


def word_numbers(text: str, spans: np.ndarray, special: np.ndarray) -> np.ndarray:
    """The number of the word between spaces that holds each token's first letter, int32 `[tokens]`.

    `spans` `[tokens, 2]` are the tokens' places in the text. A space before a word belongs to it:
    some tokenizers put it into its first token, or into a token of its own.
    """
    ends = [word.end() for word in re.finditer(r"\S+", text)]
    before = np.searchsorted(ends, [start for start, _ in spans], side="right")
    return np.where(special, -1, np.minimum(before, len(ends) - 1)).astype(np.int32)
