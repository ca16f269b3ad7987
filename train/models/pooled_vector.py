"""Where an utterance has become one vector, and what training may do and ask there.

Mixup mixes the vectors of two utterances, and auxiliary heads tell something else of each, such as
who speaks. A model passes its vector through `PooledVector`, and says so in `Fusion.pooled`.
"""

from torch import Tensor, nn

from .batch import Batch

# Before the name of what an auxiliary head tells, in the names of a model's outputs.
AUXILIARY = "aux "


class PooledVector(nn.Module):
    """The place of the pooled vectors `[n, width]` in a model; it has no weights of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.heads = nn.ModuleDict()

    def add_head(self, name: str, classes: int) -> None:
        """Add an auxiliary head, a linear layer, for the time of a training."""
        self.heads[name] = nn.Linear(self.width, classes)

    def forward(self, z: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The vectors, mixed as the batch says, and in training what auxiliary heads say of them.

        The heads see the vectors before they are mixed: an utterance has one speaker.
        """
        heads = {}
        if self.training:
            for name, head in self.heads.items():
                heads[f"{AUXILIARY}{name}"] = head(z)
        if batch.mix is not None:
            z = batch.mix.share * z + (1 - batch.mix.share) * z[batch.mix.partners]
        return z, heads
