"""What `ser features` is asked for."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ser.cache.errors import WrongUse
from ser.engines.address import check_scheduler


@dataclass(frozen=True)
class Request:
    """The options of `ser features`, under the same names."""

    corpus: Path
    features: str | Sequence[str] = "hubert,mpnet,bert,is13,logmel"
    format: str | None = None
    corpus_name: str | None = None
    text: Path | None = None
    store: Path = Path("features")
    backend: str = "zarr"
    dtype: str = "float16"
    device: str = "auto"
    models: Mapping[str, str] | Sequence[str] = ()  # {"hubert": ID_OR_PATH} or ["hubert=ID_OR_PATH"]
    workers: int | None = None
    batch_seconds: float | None = None
    part_seconds: float = 600.0
    limit: int | None = None
    scheduler: str | None = None
    insecure: bool = False
    on_error: str = "fail"
    retry: bool = False
    check: int | None = None

    def check_options(self) -> None:
        """Before anything is read. Raises `WrongUse` for a value that cannot be, or two that do not go together."""
        for name, value, known in (
            ("--backend", self.backend, ("zarr", "hdf5")),
            ("--dtype", self.dtype, ("float16", "float32")),
            ("--on-error", self.on_error, ("fail", "skip")),
        ):
            if value not in known:
                raise WrongUse(f"{name} {value}: it is {' or '.join(known)}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):  # whether it is here is seen when a model needs it
            raise WrongUse(f"--device {self.device}: it is auto, cpu, cuda or cuda:N")
        if not self.part_seconds > 0 or (self.batch_seconds is not None and not self.batch_seconds > 0):
            raise WrongUse("--part-seconds and --batch-seconds must be above 0")
        if self.scheduler is not None:
            if self.workers is not None:
                raise WrongUse(
                    "--workers starts processes here, and --scheduler uses the workers of a cluster: give one"
                )
            check_scheduler(self.scheduler, self.insecure)

    @property
    def checkpoints(self) -> dict[str, str]:
        """`models` by feature name. Raises `WrongUse` for an entry that is not NAME=ID_OR_PATH."""
        if isinstance(self.models, Mapping):
            return dict(self.models)
        found: dict[str, str] = {}
        for entry in self.models:
            name, equals, value = entry.partition("=")
            if not equals or not value or name in found:
                raise WrongUse(f"--model {entry}: write --model NAME=ID_OR_PATH, each name once")
            found[name] = value
        return found
