"""The tops of encoders as a front that stands before any model here, and is trained with it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from .batch import Batch, Sequences, visible_rows
from .encoders import EncoderTop, merge_adapters
from .fusion import Dims, Fusion, Stage
from .layers.layout import RaggedLayout
from .layers.pooling import mean_rows

# The name of the front in a model, and so the beginning of its weights' names.
FRONT = "encoders"

# Successive rows that are masked together: 200 ms of speech, as in wav2vec 2.0.
MASKED_ROWS = 10

# How a model of vectors gets one of an utterance's rows.
Pool = Literal["mean", "meanstd"]


class EncoderFront(nn.ModuleDict):
    """By modality, the top of an encoder, and how its rows are pooled for a model of vectors.

    In training a share `mask` of the rows that an encoder starts from is masked.
    """

    def __init__(
        self, tops: Mapping[str, EncoderTop], pools: Mapping[str, Pool], mask: float = 0.0
    ) -> None:
        super().__init__(tops)
        self.pools = dict(pools)
        self.mask = mask

    def forward(self, batch: Batch) -> Batch:
        """The batch with the rows of the encoder's last layer, or vectors made of them.

        Where the outputs of one modality alone are wanted, the other's encoder does not run. Raises
        `WrongUse` for rows of another width.
        """
        inputs = dict(batch.inputs)
        for modality, top in self.items():
            if batch.wants("logits", modality):
                inputs[modality] = self._encode(batch, modality, top)
        return replace(batch, inputs=inputs)

    def _encode(self, batch: Batch, modality: str, top: nn.Module) -> Sequences:
        x, layout = visible_rows(batch, modality, cast(int, top.columns))
        if self.training and self.mask and not getattr(top, "takes_tokens", False):
            x = masked(x, layout, self.mask)
        rows, layout = top(x, layout)
        if modality not in self.pools:
            return Sequences(rows, layout.lengths, layout=layout)
        return pooled(rows, layout, self.pools[modality])


def masked(x: Tensor, layout: RaggedLayout, share: float) -> Tensor:
    """Rows `[r, d]`, of which about that share is replaced by the mean of its sequence, in spans.

    Each row begins a span of `MASKED_ROWS` with the same chance, so that the expected share of
    masked rows is `share` (Baevski et al., 2020, §4.1, on SpecAugment: Park et al., 2019).
    """
    chance = 1 - (1 - share) ** (1 / MASKED_ROWS)
    begins = torch.rand(len(x)) < chance

    is_masked = torch.zeros(len(x), dtype=torch.bool)
    place = layout.position.cpu()
    for offset in range(MASKED_ROWS):
        shifted = torch.zeros_like(is_masked)
        shifted[offset:] = begins[: len(x) - offset]
        # A span ends with its sequence.
        is_masked |= shifted & (place >= offset)

    means = mean_rows(x, layout)[layout.owner]
    return torch.where(is_masked.to(x.device)[:, None], means, x)


def pooled(x: Tensor, layout: RaggedLayout, pool: Pool) -> Sequences:
    """One vector for each sequence with rows `[r, d]`: the mean, or `[…, 2 d]` with the deviation.

    The deviation is that of the rows themselves, as numpy's `std`.
    """
    vectors = mean_rows(x, layout)
    if pool == "meanstd":
        variance = mean_rows((x - vectors[layout.owner]).square(), layout)
        # The root's slope at zero is infinite.
        deviation = torch.where(variance > 0, variance.clamp(min=1e-12).sqrt(), 0)
        vectors = torch.cat([vectors, deviation], 1)

    if layout.fixed:
        return Sequences(vectors, layout.lengths, layout=layout.of_length(1))

    has_rows = layout.lengths > 0
    if not has_rows.all():
        vectors = vectors[has_rows.to(vectors.device)]
    lengths = has_rows.long()
    return Sequences(vectors, lengths, layout=RaggedLayout(lengths, layout.device))


def with_encoders(
    fusion: Fusion,
    tops: Mapping[str, Callable[[], EncoderTop]],
    pools: Mapping[str, Pool],
    mask: float = 0.0,
) -> Fusion:
    """The fusion behind the tops of some modalities' encoders, each made anew for each model.

    `pools` are those of the modalities that the fusion takes as vectors. The model's own parts keep
    their names. A stage that trains one modality's part alone trains its encoder with it. In
    training a share `mask` of the encoders' rows is masked.
    """
    pools_of_tops: dict[str, Pool] = {}
    if fusion.level == "vector":
        pools_of_tops = {modality: pools[modality] for modality in tops}

    build = partial(_build_behind_tops, fusion.build, tops, pools_of_tops, mask)
    stages = tuple(_with_encoder_of(stage, tops) for stage in fusion.stages)
    return replace(fusion, build=build, stages=stages, stacks=None, encoded=tuple(tops))


def _build_behind_tops(
    build: Callable[..., nn.Module],
    tops: Mapping[str, Callable[[], EncoderTop]],
    pools: Mapping[str, Pool],
    mask: float,
    settings: Any,
    dims: Dims,
    *others: Any,
) -> nn.Module:
    """The model that `build` makes for the encoders' rows, with the tops in front of it."""
    model = build(settings, dims, *others)
    front = EncoderFront({modality: make() for modality, make in tops.items()}, pools, mask)
    model.add_module(FRONT, front)
    model.register_forward_pre_hook(_encode_first)
    return model


def _encode_first(model: nn.Module, arguments: tuple[Batch]) -> tuple[Batch]:
    """Before a forward pass of the model: its batch, with the encoders' rows."""
    [batch] = arguments
    front = getattr(model, FRONT)
    return (front(batch),)


def unfrozen_step_by_step(fusion: Fusion, layers: int) -> Fusion:
    """The fusion whose last stage becomes several: the model alone, then one more layer each.

    Gradual unfreezing (Howard & Ruder, "Universal language model fine-tuning", ACL 2018, §3.3), of
    so many `layers` at most.
    """
    *before, last = fusion.stages
    steps = []
    for count in range(layers):
        steps.append(replace(last, name=f"{last.name}: {count} layers", encoder_layers=count))
    steps.append(replace(last, name=last.name))
    return replace(fusion, stages=(*before, *steps))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model, without those of its encoders that stay their checkpoint's."""
    state = model.state_dict()
    for name in _of_checkpoints(model):
        del state[name]
    return state


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `state_of` gave. Raises `RuntimeError` if it is not of such a model."""
    whole = model.state_dict()
    of_checkpoints = {name: whole[name] for name in _of_checkpoints(model)}
    model.load_state_dict({**of_checkpoints, **state})


def _of_checkpoints(model: nn.Module) -> set[str]:
    """The names of a model's weights that stay those of checkpoints."""
    names = set()
    for modality, top in _tops(model).items():
        for name in top.of_checkpoint:
            names.add(f"{FRONT}.{modality}.{name}")
    return names


def _tops(model: nn.Module) -> dict[str, EncoderTop]:
    """By modality, the encoders that are trained with a model."""
    return dict(getattr(model, FRONT, {}))


def merge_all_adapters(model: nn.Module) -> None:
    """Make of the adapters of a model's encoders plain weights."""
    for top in _tops(model).values():
        merge_adapters(top)
        top.of_checkpoint = frozenset()


def layers_above(model: nn.Module, weight: str) -> int | None:
    """How many layers of a trained encoder lie above a weight; None of the model's own weights."""
    if not weight.startswith(f"{FRONT}."):
        return None
    _, modality, name = weight.split(".", 2)
    above: int = getattr(model, FRONT)[modality].layers_above(name)
    return above


def _with_encoder_of(stage: Stage, tops: Mapping[str, Callable[[], EncoderTop]]) -> Stage:
    """The stage, which trains the encoder of the modality too whose head it trains."""
    if stage.output not in tops:
        return stage
    return replace(stage, trains=(*stage.trains, f"{FRONT}.{stage.output}."))
