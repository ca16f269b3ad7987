"""The frames of each token of one utterance, as `train/models/cme.py` deals them out."""

import torch
from torch import Tensor

from ser.train.models.layers.layout import RaggedLayout


class TokenFrames(RaggedLayout):
    """The layout of r frames by token, of which there are n; both may be symbolic.

    Token j has an even share of the frames, from ⌊j r / n⌋ to ⌊(j + 1) r / n⌋.
    """

    def __init__(self, frames: int, tokens: int) -> None:
        token = torch.arange(tokens)
        self.ends = (token + 1) * frames // tokens
        self.frames = frames
        super().__init__(self.ends - token * frames // tokens, torch.device("cpu"))

    @property
    def owner(self) -> Tensor:
        """The token that each frame belongs to; int64 `[r]`."""
        has_ended = self.ends <= torch.arange(self.frames)[:, None]  # [r, n]
        return has_ended.sum(1)

    def total(self, x: Tensor) -> Tensor:
        """The sum of each token's frames `[r, d]`; `[n, d]`, zeros for a token without frames."""
        is_of_token = self.owner == torch.arange(self.lengths.shape[0])[:, None]  # [n, r]
        return is_of_token.to(x.dtype) @ x

    def maximum(self, x: Tensor) -> Tensor:
        """The largest values among each token's frames `[r, d]`.

        `[n, d]`, zeros for a token without frames.
        """
        owner = self.owner[:, None].expand_as(x)
        lowest = x.new_full((self.lengths.shape[0], x.shape[1]), -torch.inf)
        maxima = lowest.scatter_reduce(0, owner, x, "amax")
        return torch.where(self.lengths[:, None] > 0, maxima, 0.0)


def spoken_frames(frames: Tensor, audio: RaggedLayout, text: RaggedLayout) -> Tensor:
    """All frames `[r, d]`: the utterance has tokens."""
    return frames


def frames_of_tokens(audio: RaggedLayout, text: RaggedLayout) -> RaggedLayout:
    """The layout of the frames by token."""
    return TokenFrames(audio.longest, text.longest)
