"""ConSK-GCN (Fu, Okada, Wang, Guo, Song, Liu & Dang, ICME 2021), its semantic half.

"ConSK-GCN: conversational semantic- and knowledge-oriented graph convolutional network for
multimodal emotion recognition", as in its authors' code (github.com/fuyahuii/ConSK-GCN).

A dialogue is a graph of its turns, u_i the vectors of both modalities, concatenated:

    g = Bi-LSTM(Bi-LSTM(u))
    the edges of turn i: from itself and the turns up to `window` before and after it
    of each edge from j, one of eight types r: whoever speaks i × whoever speaks j × their order
    and a weight:
        α_ij = softmax_j(1 − arccos(cos(g_i, W_s g_j)) / π)

    relational graph convolution, N_i^r the turns that have an edge of type r to i:
        h_i = W_0 g_i + Σ_r Σ_{j ∈ N_i^r} α_ij / |N_i^r| W_r g_j
        W_r = Σ_b a_rb V_b, of so many bases V_b (Schlichtkrull et al., ESWC 2018, eq. 3)
    graph convolution:
        h'_i = W_1 h_i + W_2 Σ_j h_j
    logits = W ReLU(W_c [h'_i; g_i])

Half of the paper's weight of an edge is another: how alike the concepts are that are named in both
turns, by ConceptNet's vectors (Numberbatch) and the words' valence and arousal (NRC-VAD). A store
holds no words, and both are files under licences of their own; that half is not built, and the name
says so.

The authors' code gives the weights of the edges to its layer as their types, and so they weigh
nothing; what is built is what their paper says. There a speaker is one of two; here everybody who
is second to speak, or later, is the other.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .batch import Batch, vectors
from .fusion import (
    BOTH,
    OURS,
    CommonSettings,
    Count,
    Dims,
    Dropout,
    Fusion,
    Positive,
    Weight,
    setting,
)
from .layers.classifier import classifier
from .layers.device import without_autocast
from .layers.layout import RaggedLayout
from .layers.rnn import recurrent
from .layers.roles import speaker_roles

CODE = "the authors' code, fuyahuii/ConSK-GCN"

# Two speakers' pairs, each with the turn before or not before the other.
SPEAKERS = 2
EDGE_TYPES = 2 * SPEAKERS**2

# Where vectors point the same way, the slope of arccos is infinite.
STEEPEST = 1 - 1e-6


@dataclass(frozen=True)
class ConskGcnSettings(CommonSettings):
    """The authors' code, where it fits; else ours."""

    epochs: Count = setting(60, CODE)
    batch_size: Count = setting(32, CODE, "dialogues per batch")
    lr: Positive = setting(1e-4, CODE)
    weight_decay: Weight = setting(1e-8, CODE)
    dropout: Dropout = setting(0.5, CODE, "dropout before the classes")
    standardise_audio: bool = setting(True, OURS)
    lstm_hidden: Count = setting(612, CODE, "states per direction of the first Bi-LSTM")
    node_hidden: Count = setting(150, CODE, "states per direction of the second, of the nodes")
    window: Count = setting(10, CODE, "turns before and after a turn that have edges to it")
    bases: Count = setting(30, CODE, "bases of the relations' weights")
    d_model: Count = setting(100, CODE, "width of the graph convolutions and of the dense layer")


@dataclass(frozen=True)
class Graph:
    """The turns of m dialogues as nodes, padded to t turns."""

    types: Tensor
    """bool `[m, EDGE_TYPES, t, t]`: whether turn i has an edge of that type from turn j."""

    @property
    def edges(self) -> Tensor:
        """Whether turn i has an edge from turn j; bool `[m, t, t]`."""
        return self.types.any(1)


def dialogue_graph(roles: Tensor, layout: RaggedLayout, window: int) -> Graph:
    """The graph of dialogues whose speakers have these roles, int64 `[n]`, 0 or 1."""
    turns = torch.arange(layout.longest, device=roles.device)
    distance = turns[:, None] - turns  # [t, t]
    holds_a_turn = layout.attended
    is_edge = (distance.abs() <= window) & holds_a_turn[:, :, None] & holds_a_turn[:, None]

    role = layout.pad(roles)  # [m, t]
    comes_later = (distance >= 0).long()
    number = 2 * (SPEAKERS * role[:, :, None] + role[:, None]) + comes_later  # [m, t, t]

    every_type = torch.arange(EDGE_TYPES, device=roles.device)[:, None, None]
    return Graph((number[:, None] == every_type) & is_edge[:, None])


class SemanticWeights(nn.Module):
    """α_ij of the edges, by the angle between what two turns say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width, bias=False)

    def forward(self, g: Tensor, graph: Graph) -> Tensor:
        """Nodes `[m, t, width]` → `[m, t, t]`; zero where there is no edge."""
        of_i = nn.functional.normalize(g, dim=2)
        of_j = nn.functional.normalize(self.map(g), dim=2)
        cosine = (of_i @ of_j.mT).clamp(-STEEPEST, STEEPEST)
        similarity = 1 - cosine.arccos() / math.pi

        # A place that holds no turn has no edges, and a softmax over nothing is nan.
        scores = similarity.masked_fill(~graph.edges, torch.finfo(g.dtype).min)
        return scores.softmax(2) * graph.edges


class RelationalConvolution(nn.Module):
    """h_i = W_0 g_i + b + Σ_r Σ_{j ∈ N_i^r} α_ij / |N_i^r| W_r g_j."""

    def __init__(self, width: int, d: int, bases: int) -> None:
        super().__init__()
        self.bases = nn.Parameter(nn.init.xavier_uniform_(torch.empty(bases, width, d)))
        self.shares = nn.Parameter(nn.init.xavier_uniform_(torch.empty(EDGE_TYPES, bases)))
        self.root = nn.Linear(width, d)

    def forward(self, g: Tensor, graph: Graph, alpha: Tensor) -> Tensor:
        """Nodes `[m, t, width]` and the weights of their edges `[m, t, t]` → `[m, t, d]`."""
        neighbours = graph.types.sum(3, keepdim=True).clamp(min=1)
        weights = alpha[:, None] * graph.types / neighbours  # [m, r, t, t]

        w = torch.einsum("rb,bio->rio", self.shares, self.bases)
        messages = torch.einsum("mji,rio->mrjo", g, w)
        return self.root(g) + (weights @ messages).sum(1)


class ConskGcn(nn.Module):
    """The equations above."""

    def __init__(self, settings: ConskGcnSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        d = settings.d_model
        width = 2 * settings.node_hidden
        self.dims = {modality: dims[modality] for modality in BOTH}
        self.window = settings.window

        self.lstm_1 = nn.LSTM(sum(self.dims.values()), settings.lstm_hidden, bidirectional=True)
        self.lstm_2 = nn.LSTM(2 * settings.lstm_hidden, settings.node_hidden, bidirectional=True)
        self.semantic = SemanticWeights(width)
        self.relational = RelationalConvolution(width, d, settings.bases)
        self.own = nn.Linear(d, d, bias=False)
        self.neighbours = nn.Linear(d, d)
        self.logits = classifier(settings.dropout, d + width, d, classes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`."""
        layout = RaggedLayout(batch.dialogues, batch.device)
        modalities = [vectors(batch, modality, dim) for modality, dim in self.dims.items()]
        u = torch.cat(modalities, 1)
        g = recurrent(self.lstm_2, recurrent(self.lstm_1, u, layout), layout)

        graph = dialogue_graph(speaker_roles(batch, layout, SPEAKERS), layout, self.window)
        with without_autocast(batch.device.type):
            nodes = layout.pad(g)
            h = self.relational(nodes, graph, self.semantic(nodes, graph))  # [m, t, d]
            h = self.own(h) + self.neighbours(graph.edges.to(h.dtype) @ h)
            return {"logits": self.logits(torch.cat([layout.unpad(h), g], 1))}


FUSIONS = [
    Fusion(
        name="consk-gcn:semantic",
        source="Fu et al., ICME 2021",
        settings=ConskGcnSettings,
        inputs=BOTH,
        level="vector",
        build=ConskGcn,
        unit="dialogue",
        takes_speakers=True,
    )
]
