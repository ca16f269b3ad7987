"""SUPERB (Yang et al., Interspeech 2021).

"SUPERB: Speech processing Universal PERformance Benchmark".

The head of SUPERB's emotion task. The learned sum of layers before it is in `layer_sums`. What the
paper leaves open is as in s3prl, its authors' toolkit.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from .batch import Batch, vectors
from .fusion import CommonSettings, Count, Dims, Dropout, Fusion, Positive, setting

S3PRL = "s3prl, downstream/emotion/config.yaml"
UPDATES = 30_000


@dataclass(frozen=True)
class SuperbSettings(CommonSettings):
    """SUPERB's emotion task, by s3prl's config."""

    # A number before the training begins.
    epochs: Count | Literal["auto"] = setting(  # type: ignore[assignment]
        "auto",
        f"{S3PRL}: {UPDATES:,} updates",
        f"epochs; auto: as many as give {UPDATES:,} updates, some 270 of IEMOCAP's 4 classes",
    )
    batch_size: Count = setting(32, f"{S3PRL}: 4 × 8 accumulated")
    lr: Positive = setting(1e-4, S3PRL)
    dropout: Dropout = setting(0.0, f"{S3PRL}: none", "dropout before the last layer")
    hidden: Count = setting(256, S3PRL, "width of the projection")


class Superb(nn.Module):
    """Projection of each frame, their mean, a linear layer; nothing between that is not linear.

    So it takes the mean of the frames in the place of the frames: W (Σ_t x_t / T) + b is the mean
    of W x_t + b, and a weighted sum of layers commutes with the mean too. Function and gradients
    are those of the head on frames.
    """

    def __init__(self, settings: SuperbSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        self.dim = dims["audio"]
        self.projector = nn.Linear(self.dim, settings.hidden)
        self.logits = nn.Linear(settings.hidden, classes)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`."""
        mean_frames = vectors(batch, "audio", self.dim)
        projected = self.projector(mean_frames)
        return {"logits": self.logits(self.dropout(projected))}


FUSIONS = [
    Fusion(
        name="superb",
        source="SUPERB §3, emotion recognition",
        settings=SuperbSettings,
        inputs=("audio",),
        level="vector",
        build=Superb,
        updates=UPDATES,
    )
]
