"""Attentive statistics pooling (Okabe, Koshinaka and Shinoda, Interspeech 2018).

"Attentive statistics pooling for deep speaker embedding": each frame has a weight, and what is
pooled are the weighted mean and standard deviation. Behind it stands the head of the baselines of
the MSP-Podcast challenges (Odyssey 2024, Interspeech 2025), whose code gives depth and widths:
github.com/msplabresearch/MSP-Podcast_Challenge, net/pooling.py and net/ser.py. There the encoder
is fine-tuned too; here it is frozen, or a learned sum of its layers (`layer_sums`).

    n  utterances     r  frames or tokens     d  their dimension     K  classes
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .batch import Batch, visible_rows
from .fusion import (
    BOTH,
    OURS,
    CommonSettings,
    Count,
    Depth,
    Dims,
    Dropout,
    Fusion,
    Positive,
    setting,
)
from .layers.layout import RaggedLayout
from .layers.pooling import mean_rows
from .pooled_vector import PooledVector

BASELINE = "MSP-Podcast challenge baseline"

# The least variance: below it a deviation has no gradient (net/pooling.py).
LEAST_VARIANCE = 1e-5


@dataclass(frozen=True)
class MeanStdSettings(CommonSettings):
    """The challenge baseline's head, by its net/ser.py and run_cat.sh; the rate is ours."""

    epochs: Count = setting(20, f"{BASELINE}, run_cat.sh", "epochs")
    batch_size: Count = setting(32, f"{BASELINE}, run_cat.sh")
    lr: Positive = setting(1e-4, f"{OURS}; 1e-5 there, where the encoder trains too")
    dropout: Dropout = setting(
        0.5, f"{BASELINE}, net/ser.py", "dropout of the pooled vector and of each hidden layer"
    )
    hidden: Count = setting(1024, f"{BASELINE}, run_cat.sh", "width of the hidden layers")
    depth: Count = setting(1, f"{BASELINE}, train_ft_cat_ser_weighted.py", "hidden layers")


@dataclass(frozen=True)
class AspSettings(MeanStdSettings):
    """As of `mean-std`, and of the attention before it."""

    attention: Depth = setting(
        0,
        f"{BASELINE}, net/pooling.py; Okabe et al. §4.2: 64",
        "width of the layer that weighs frames; 0 is that of the features",
    )


class AttentiveStatistics(nn.Module):
    """The weighted mean and standard deviation of each sequence's rows (Okabe et al. §3).

    e_t = vᵀ tanh(W h_t + b), α = softmax(e) over the sequence (eq. 4, 5)
    μ = Σ_t α_t h_t (eq. 6), σ = √(Σ_t α_t h_t ⊙ h_t − μ ⊙ μ) (eq. 7)

    σ is computed as √(Σ_t α_t (h_t − μ)²), which is the same and loses no digits.
    """

    def __init__(self, d: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(d, width)
        # The bias k of eq. 4 would not change the softmax.
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, h: Tensor, layout: RaggedLayout) -> Tensor:
        """Rows `[r, d]` → `[n, 2 d]`, μ and σ side by side; μ is 0 without rows."""
        scores = self.score(torch.tanh(self.hidden(h)))[:, 0]
        scores = layout.pad(scores, torch.finfo(scores.dtype).min)
        weights = layout.unpad(scores.softmax(1))[:, None]

        mean = layout.total(weights * h)
        from_mean = h - mean.index_select(0, layout.owner)
        variance = layout.total(weights * from_mean.square())
        return torch.cat([mean, variance.clamp(min=LEAST_VARIANCE).sqrt()], 1)


class Statistics(nn.Module):
    """The mean and standard deviation of each sequence's rows, all of the same weight.

    Statistics pooling (Snyder et al., Interspeech 2017, §3.2), which Okabe et al. compare with.
    """

    def forward(self, h: Tensor, layout: RaggedLayout) -> Tensor:
        """Rows `[r, d]` → `[n, 2 d]`, mean and deviation side by side; the mean is 0 without
        rows.
        """
        mean = mean_rows(h, layout)
        from_mean = h - mean.index_select(0, layout.owner)
        variance = mean_rows(from_mean.square(), layout)
        return torch.cat([mean, variance.clamp(min=LEAST_VARIANCE).sqrt()], 1)


class Pooled(nn.Module):
    """The statistics of one modality, or of two side by side, and the baseline's head.

    Dropout, `depth` layers of Linear, LayerNorm, ReLU and dropout, and a linear layer (net/ser.py).
    """

    def __init__(self, settings: MeanStdSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        self.dims = {modality: dims[modality] for modality in BOTH if modality in dims}
        self.pool = nn.ModuleDict()
        for modality, d in self.dims.items():
            if isinstance(settings, AspSettings):
                self.pool[modality] = AttentiveStatistics(d, settings.attention or d)
            else:
                self.pool[modality] = Statistics()

        layers: list[nn.Module] = [nn.Dropout(settings.dropout)]
        width = 2 * sum(self.dims.values())
        for _ in range(settings.depth):
            layers.append(nn.Linear(width, settings.hidden))
            layers.append(nn.LayerNorm(settings.hidden))
            layers.append(nn.ReLU())
            layers.append(nn.Dropout(settings.dropout))
            width = settings.hidden
        layers.append(nn.Linear(width, classes))
        self.head = nn.Sequential(*layers)
        self.vector = PooledVector(2 * sum(self.dims.values()))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`, and in training those of auxiliary heads."""
        pooled = []
        for modality, d in self.dims.items():
            h, layout = visible_rows(batch, modality, d)
            pooled.append(self.pool[modality](h, layout))
        z, heads = self.vector(torch.cat(pooled, 1), batch)
        return {"logits": self.head(z), **heads}


FIXED = {
    "least_variance": (
        f"{LEAST_VARIANCE:g}",
        "below it a deviation has no gradient; net/pooling.py",
    )
}

FUSIONS = [
    Fusion(
        name="asp",
        source="Okabe et al. 2018, §3; head: MSP-Podcast challenge baseline",
        settings=AspSettings,
        inputs=("audio",),
        level="sequence",
        build=Pooled,
        pooled=True,
        fixed=FIXED,
    ),
    Fusion(
        name="asp+text",
        source="Okabe et al. 2018, §3, of frames and of tokens; head: challenge baseline",
        settings=AspSettings,
        inputs=BOTH,
        level="sequence",
        build=Pooled,
        pooled=True,
        fixed=FIXED,
    ),
    Fusion(
        name="mean-std",
        source="Snyder et al. 2017, §3.2; head: MSP-Podcast challenge baseline",
        settings=MeanStdSettings,
        inputs=("audio",),
        level="sequence",
        build=Pooled,
        pooled=True,
        pools_as_is=True,
        fixed=FIXED,
    ),
    Fusion(
        name="mean-std+text",
        source="Snyder et al. 2017, §3.2, of frames and of tokens; head: challenge baseline",
        settings=MeanStdSettings,
        inputs=BOTH,
        level="sequence",
        build=Pooled,
        pooled=True,
        pools_as_is=True,
        fixed=FIXED,
    ),
]
