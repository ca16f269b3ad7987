"""`--log tensorboard`: curves of each run, beside the lines of its own log."""

import contextlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from ser.cache.errors import WrongUse, unknown

from .fit import Epoch

FOLDER = "tensorboard"  # in the run folder


def check_log(log: str | None) -> None:
    """Raise `WrongUse` if runs cannot be logged that way here."""
    if log is None:
        return
    if log != "tensorboard":
        raise unknown("log", log, ["tensorboard"])
    if find_spec("tensorboard") is None:
        raise WrongUse(
            "--log tensorboard: TensorBoard is not installed; `pip install 'ser[tensorboard]'` adds it, and without "
            "--log every run still writes its epochs to its file `log`"
        )


@contextlib.contextmanager
def curves(log: str | None, run: Path) -> Iterator[Callable[[Epoch], None]]:
    """What notes the epochs of a run: loss, and WA and UA of the part that is watched, by stage."""
    if log is None:
        yield lambda epoch: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run / FOLDER)) as writer:

        def note(epoch: Epoch) -> None:
            for name in ("loss", "wa", "ua"):
                value = getattr(epoch, name)
                if value is not None:
                    writer.add_scalar(f"{epoch.stage}/{name}", value, epoch.epoch)
            writer.flush()

        yield note
