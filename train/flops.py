"""How much arithmetic some runs are, and how fast a GPU could do it: for `ser train --dry-run`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ser.engines.machine import exact_arithmetic

from .config import TrainConfig
from .estimate import rows_per_epoch, trial_job
from .fit import fit
from .job import Job
from .train_jobs import one_thread, oom_as_error

# Rows and columns of the matrices that a GPU is timed on, and how often they are multiplied.
SIZE = 4096
TIMES = 20


class FlopCounter(TorchDispatchMode):
    """Counts the floating-point operations of matrix products while entered, by torch's formulas.

    As `torch.utils.flop_counter.FlopCounterMode`, but for the modules that they are of.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler, seconds of CPU, to keep it out of this class."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        return result


def count_flops(jobs: Sequence[Job], epochs: int) -> float:
    """Floating-point operations of the matrix products of jobs that differ in seed and fold alone.

    Those of the first job are counted while it trains on one batch, in which nothing is hidden.
    0 for a model without a training loop, of whose solver nothing is known.
    """
    if jobs[0].config.fusion.solved:
        return 0.0

    trial = trial_job(jobs[0], epochs=1, batches=1)
    config = trial.config
    config = replace(config, fusion=replace(config.fusion, hide=None), select="last")
    fold = replace(trial.fold, dev=trial.fold.dev[:0])
    trial = replace(trial, fold=fold, config=config)

    # The counter knows products: attention made of products, and recurrent layers step by step.
    attention = sdpa_kernel(SDPBackend.MATH)
    recurrent = torch.backends.cudnn.flags(enabled=False)
    counter = FlopCounter()
    with one_thread(), oom_as_error(config), attention, recurrent, counter:
        fit(trial.data, trial.fold, config)

    flops_per_row = counter.flops / len(config.fusion.stages) / rows_per_epoch(trial)
    rows = sum(rows_per_epoch(job) for job in jobs)
    return float(flops_per_row * rows * epochs)


def product_rates(config: TrainConfig) -> dict[str, float]:
    """FLOP/s that products of large matrices reach on the GPU of a run, in float32 and its own.

    By precision; empty for a run on another device than CUDA.
    """
    if not config.device.startswith("cuda"):
        return {}

    # Its timer warms up, and waits for the GPU.
    from torch.utils.benchmark import Timer

    exact_arithmetic(config.device, config.deterministic)
    rates: dict[str, float] = {}
    for precision in ("float32", config.precision):
        if precision in rates:
            continue
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        x = torch.randn(SIZE, SIZE, dtype=dtype, device=config.device)
        seconds = Timer("x @ x", globals={"x": x}).timeit(TIMES).mean
        rates[precision] = 2 * SIZE**3 / seconds
    return rates
