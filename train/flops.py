"""How much arithmetic runs are: the products of matrices alone, which no GPU computes faster than it multiplies."""

import copy
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import PackedSequence
from torch.utils.flop_counter import FlopCounterMode

from ser.engines import exact_arithmetic

from .experiment import Job, rows_of_epoch, shortened
from .models.ragged import Batch
from .settings import TrainConfig
from .targets import TARGETS

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
SIZE = 4096  # rows and columns of the matrices that a GPU is timed on


def count_flops(jobs: Sequence[Job], epochs: int) -> float:
    """Floating-point operations of the matrix products of jobs that differ in seed and fold alone.

    An update of the first is counted, forwards and backwards, on a batch in which nothing is hidden. To count is a
    second of work for torch, whatever the model's size.
    """
    job = jobs[0]
    plan, classes = job.plan, len(job.data.utterances.classes)
    model = TARGETS[plan.target].build(plan.fusion, plan.settings, job.data.dims, classes)
    rows = shortened(job, 1).train
    batch = next(job.data.batches(rows, plan.fusion.unit, plan.settings.batch_size, {}))
    try:
        total = _counted(plan, copy.deepcopy(model).to("meta"), batch.to("meta"))  # without values, in no time
    except RuntimeError:  # some models look at values: those of transformers, whether a mask leaves out anything
        total = _counted(plan, model, batch)
    per_row = total / len(plan.fusion.stages) / sum(int(x.lengths.sum()) for x in batch.inputs.values())
    return per_row * sum(rows_of_epoch(each, each.fold) for each in jobs) * epochs


def _counted(plan: TrainConfig, model: nn.Module, batch: Batch) -> int:
    """Of one update of each stage."""
    total = 0
    for layer in model.modules():
        if isinstance(layer, nn.RNNBase):
            layer.forward = partial(_products, layer)  # type: ignore[method-assign]
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    for stage in plan.fusion.stages:
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in trainable and name.startswith(stage.trains))
        batch.heads = plan.heads(stage)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # as products, which are known
            outputs = model(batch)
            torch.stack([outputs[head].sum() for head in batch.heads or outputs]).sum().backward()
        total += counter.get_total_flops()
    return total


def _products(layer: nn.RNNBase, x: PackedSequence) -> tuple[PackedSequence, Any]:
    """What a recurrent layer multiplies, all steps at once: one after the other they would take long to count."""
    rows, ways = x.data, 1 + layer.bidirectional
    for first in range(0, len(layer.all_weights), ways):
        weights = layer.all_weights[first : first + ways]
        states = [F.linear(rows, w_i)[:, : layer.hidden_size] for w_i, *_ in weights]
        both = zip(states, weights, strict=True)
        rows = torch.cat([F.linear(h, w_h)[:, : layer.hidden_size] for h, (_, w_h, *_) in both], 1)
    return x._replace(data=rows), None


def product_rates(plan: TrainConfig) -> dict[str, float]:
    """FLOP/s that products of large matrices reach on the GPU of a run, by precision: float32, and its own."""
    found: dict[str, float] = {}
    for precision in ("float32", plan.precision) if plan.device.startswith("cuda") else ():
        exact_arithmetic(plan.device, plan.deterministic)
        x = torch.randn(SIZE, SIZE, device=plan.device, dtype=DTYPES[precision])
        for times in (2, 20):  # the first warm up
            torch.cuda.synchronize(plan.device)
            started = time.perf_counter()
            for _ in range(times):
                x @ x
            torch.cuda.synchronize(plan.device)
            found[precision] = times * 2 * SIZE**3 / (time.perf_counter() - started)
    return found
