"""A job that is being trained, in its run's folder: config.json, the log and the state."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from msgspec import structs

from ser.engines import defer_sigint

from .job import Job, OnProgress
from .records import Epoch
from .run_folder import CONFIG, FAULT, LOG, STATE, Run
from .selection import describe_tried

# Between two states of an unfinished run: what a kill costs at most.
STATE_SECONDS = 30.0

# Between two copies of the state in memory, at least, and in times what a copy takes: so that
# copies cost little, however short an epoch is.
COPY_SECONDS = 1.0
COPY_RATIO = 20

# What TensorBoard draws of each stage.
CURVES = ("loss", "wa", "ua", "macro_f1", "ccc")


class JobInTraining:
    """A job being trained in its run's folder.

    Called with an epoch, or with a line, it is the run's log. An epoch goes to TensorBoard too, if
    the config says so, and to `on_epoch`; every `STATE_SECONDS` the state after it is written, if
    `keeps_states`, and with Ctrl-C at once: see `interruptible`. What is opened is closed with the
    stack.
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

        # The state after the last epoch, until it is written; None where it is not copied.
        self.copy: bytes | None = None
        self.copied = time.monotonic()
        self.copy_seconds = 0.0
        # Whether an epoch has ended whose state is neither written nor copied.
        self.uncopied = False
        self.interrupted = False

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

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C in this context leaves the state after the last epoch.

        Where that is in memory, training stops at once. Else epochs are short, and it stops after
        the one that runs; a second Ctrl-C does not wait for that.
        """
        before = signal.getsignal(signal.SIGINT)
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not self.keeps_states or not in_main_thread or not callable(before):
            yield
            return

        signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        except KeyboardInterrupt:
            with defer_sigint():
                if self.copy is not None and not self.run.finished:
                    self.run.write_tensors(STATE, self.copy)
            raise
        finally:
            signal.signal(signal.SIGINT, before)

        if self.interrupted:
            # After the last epoch: the run is finished.
            raise KeyboardInterrupt

    def _interrupt(self, *_: object) -> None:
        if self.interrupted or not self.uncopied:
            raise KeyboardInterrupt
        self.interrupted = True

    def _take_epoch(self, epoch: Epoch, state: Callable[[], bytes] | None) -> None:
        self.copy = None
        self.uncopied = True

        values = {}
        words = []
        for name, value in structs.asdict(epoch).items():
            if value is None:
                continue
            if isinstance(value, dict):
                words.append(describe_tried(value))
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

        if self.keeps_states and state:
            self._keep_state(state)

    def _keep_state(self, state: Callable[[], bytes]) -> None:
        """Copy the state to memory, or write it, where it is time to."""
        now = time.monotonic()
        write_now = now - self.state_written >= STATE_SECONDS
        copy_now = now - self.copied >= max(COPY_SECONDS, COPY_RATIO * self.copy_seconds)
        if write_now or copy_now or self.interrupted:
            self.copy = state()
            self.uncopied = False
            self.copied = time.monotonic()
            self.copy_seconds = self.copied - now

        if write_now and self.copy is not None:
            self.run.write_tensors(STATE, self.copy)
            self.copy = None
            self.state_written = time.monotonic()

        if self.interrupted:
            raise KeyboardInterrupt

    def _write_line(self, line: str) -> None:
        self.lines.write(f"{line}\n")
        self.lines.flush()
