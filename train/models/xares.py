"""The probe of X-ARES (Zhang et al. 2025, arXiv 2505.16369), for comparison with that benchmark.

"X-ARES: A comprehensive framework for assessing audio encoder performance". A LayerNorm and one
linear layer on the mean of an encoder's frames; the settings are those of its code,
github.com/jimbozhang/xares, src/xares/models.py and src/xares/task.py.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from .batch import Batch, vectors
from .fusion import CommonSettings, Count, Dims, Dropout, Fusion, Positive, setting
from .pooled_vector import PooledVector

TASK = "X-ARES, src/xares/task.py"


@dataclass(frozen=True)
class XaresSettings(CommonSettings):
    """Those of its tasks by default."""

    epochs: Count = setting(10, TASK, "epochs")
    batch_size: Count = setting(32, TASK)
    lr: Positive = setting(1e-3, TASK)
    dropout: Dropout = setting(0.0, f"{TASK}: none", "dropout before the linear layer")


class Xares(nn.Module):
    """LayerNorm, then one linear layer."""

    def __init__(self, settings: XaresSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        self.dim = dims["audio"]
        self.norm = nn.LayerNorm(self.dim)
        self.dropout = nn.Dropout(settings.dropout)
        self.logits = nn.Linear(self.dim, classes)
        self.vector = PooledVector(self.dim)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`, and in training those of auxiliary heads."""
        z, heads = self.vector(vectors(batch, "audio", self.dim), batch)
        return {"logits": self.logits(self.dropout(self.norm(z))), **heads}


FUSIONS = [
    Fusion(
        name="xares",
        source="X-ARES §3, the linear probe",
        settings=XaresSettings,
        inputs=("audio",),
        level="vector",
        build=Xares,
        pooled=True,
        pools_as_is=True,
    )
]
