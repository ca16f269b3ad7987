"""A job that is being trained, in its run's folder: config.json, the log and the state."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from msgspec import structs

from .job import Job, OnProgress
from .records import Epoch
from .run_folder import CONFIG, FAULT, LOG, STATE, Run

# Between two states of an unfinished run: what a kill costs at most.
STATE_SECONDS = 30.0

# What TensorBoard draws of each stage.
CURVES = ("loss", "wa", "ua", "macro_f1", "ccc")


class JobInTraining:
    """A job being trained in its run's folder.

    Called with an epoch, or with a line, it is the run's log. An epoch goes to TensorBoard too, if
    the config says so, and to `on_epoch`; every `STATE_SECONDS` the state after it is written, if
    `keeps_states`. What is opened is closed with the stack.
    """

    def __init__(
        self,
        job: Job,
        run: Run,
        stack: contextlib.ExitStack,
        keeps_states: bool,
        on_epoch: OnProgress | None,
    ) -> None:
        self.job = job
        self.run = run
        self.keeps_states = keeps_states
        self.on_epoch = on_epoch
        self.state_written = time.monotonic()

        (run.path / FAULT).unlink(missing_ok=True)
        run.write_json(CONFIG, job.record)

        if not (run.path / STATE).exists():
            # Removed and not cut: a backup may be a hard link to it.
            (run.path / LOG).unlink(missing_ok=True)
        self.lines = stack.enter_context((run.path / LOG).open("a", encoding="utf-8"))

        self.curves: Any = None
        if job.config.log == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self.curves = stack.enter_context(SummaryWriter(str(run.path / "tensorboard")))

    def __call__(self, event: Epoch | str, state: Callable[[], bytes] | None = None) -> None:
        if isinstance(event, str):
            self._write_line(event)
        else:
            self._take_epoch(event, state)

    def _take_epoch(self, epoch: Epoch, state: Callable[[], bytes] | None) -> None:
        values = {}
        words = []
        for name, value in structs.asdict(epoch).items():
            if value is None:
                continue
            values[name] = value
            shown = f"{value:.4f}" if isinstance(value, float) else value
            words.append(f"{name} {shown}")
        self._write_line(" · ".join(words))

        if self.curves is not None:
            for name in CURVES:
                if name in values:
                    self.curves.add_scalar(f"{epoch.stage}/{name}", values[name], epoch.epoch)
            self.curves.flush()

        if self.on_epoch:
            self.on_epoch(self.job, epoch)

        since = time.monotonic() - self.state_written
        if self.keeps_states and state and since >= STATE_SECONDS:
            self.run.write_tensors(STATE, state())
            self.state_written = time.monotonic()

    def _write_line(self, line: str) -> None:
        self.lines.write(f"{line}\n")
        self.lines.flush()
