"""What this machine has for `ser`, and what to do about what it lacks."""

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ser.disk.descriptor_lock import try_lock
from ser.disk.paths import real_path
from ser.engines.machine import cores, memory
from ser.errors import DISTRIBUTION, ser_command
from ser.extract.config import ExtractionConfig
from ser.extract.registry import FEATURES
from ser.weights.hub_cache import CachedModel, list_checkpoints

# One file system a line: device, folder, type, options.
MOUNTS = Path("/proc/mounts")

# Its 12.4 h in the five default features, float16: HuBERT-base alone is 3.4 GB.
IEMOCAP_BYTES = 5e9

LITTLE_MEMORY = 8e9  # bytes, in which IEMOCAP's HuBERT frames do not train well

LICENCES = (
    "openSMILE: research and non-commercial use, features included · "
    "IEMOCAP: by its own agreement with USC · "
    "encoders: see each model's page"
)

# Options of a mount by which locks stay on this machine: of NFS and Lustre.
LOCAL_LOCKS = {"nolock", "localflock", "local_lock=all", "local_lock=flock"}


@dataclass(frozen=True)
class Finding:
    """One thing about this machine."""

    subject: str
    """What it is about, such as "memory"."""
    state: str
    """What is there."""
    advice: str = ""
    """What to do; empty if all that ser can do works as it is."""

    @property
    def fine(self) -> bool:
        """Whether nothing has to be done."""
        return not self.advice


def examine(store: Path = Path("features")) -> list[Finding]:
    """The findings, in the order of printing. Uses no network and writes nothing."""
    return [
        *_machine(),
        *_disk(store),
        *_weights(),
        Finding("licences", LICENCES),
    ]


def _machine() -> Iterator[Finding]:
    """The versions of the software, the processors and their memory."""
    import torch

    # torch's own version names its build too, such as +cu130; that of its package may not.
    yield Finding(
        "software",
        f"ser {version(DISTRIBUTION)}, Python {platform.python_version()}, "
        f"torch {torch.__version__}",
    )

    usable = cores()
    on_machine = os.cpu_count() or 1
    if usable < on_machine:
        yield Finding("cores", f"{usable} (of the machine's {on_machine})")
    else:
        yield Finding("cores", str(usable))

    yield _memory()
    yield _gpu()


def _memory() -> Finding:
    total, free = memory()
    size = f"{total / 1e9:.1f} GB" if total else "unknown on this system"
    if free:
        size += f", {free / 1e9:.1f} GB free"

    if total and total < LITTLE_MEMORY:
        return Finding(
            "memory",
            size,
            "IEMOCAP's HuBERT frames take 3.4 GB in training; choose utterance-level features, "
            "or train with --limit",
        )
    return Finding("memory", size)


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        built = "has no CUDA" if torch.version.cuda is None else "finds none"
        return Finding(
            "GPU",
            f"none (this torch {built})",
            "all commands work without; full-size mit takes days on a CPU: use a GPU, "
            "or --epochs and --set d_model",
        )

    cards = []
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        cards.append(f"{card.name} ({card.total_memory / 1e9:.0f} GB)")
    bfloat16 = "with" if torch.cuda.is_bf16_supported(including_emulation=False) else "without"
    return Finding("GPU", f"{', '.join(cards)}, {bfloat16} bfloat16")


def _disk(store: Path) -> Iterator[Finding]:
    """The disk of the store, or where it would be made, and whether locks work there."""
    folder = store.absolute()
    while not folder.exists():
        folder = folder.parent

    free = shutil.disk_usage(folder).free
    space = f"{free / 1e9:.1f} GB free for {store}"
    if not os.access(folder, os.W_OK):
        yield Finding(
            "disk",
            f"{space}, not writable",
            "name a folder that you may write to with --store",
        )
    elif free < IEMOCAP_BYTES:
        yield Finding(
            "disk",
            space,
            f"IEMOCAP's features need about {IEMOCAP_BYTES / 1e9:.0f} GB: --store elsewhere",
        )
    else:
        yield Finding("disk", space)

    yield _locks(real_path(folder))


def _locks(folder: Path) -> Finding:
    """Whether locks work in a folder, and whether other machines see them."""
    kind, options = _file_system(folder)
    once = (
        "let no two processes train the same run at once; "
        "leftovers of killed writers go after a day"
    )
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if try_lock(file.fileno()) is None:
                return Finding("store locks", f"none on {kind}", once)
    except OSError as error:
        return Finding("store locks", f"not tried on {kind} ({error.strerror})")

    if LOCAL_LOCKS.intersection(options) or kind.startswith("fuse.") or kind == "beegfs":
        return Finding(
            "store locks",
            f"work on {kind}, but other machines may not see them",
            f"with several machines, {once}",
        )
    return Finding("store locks", f"work on {kind}")


def _file_system(folder: Path) -> tuple[str, list[str]]:
    """The kind of file system that holds a folder, and the options of its mount."""
    kind = "this file system"
    options: list[str] = []
    with suppress(OSError):
        # The last mount that holds the folder hides the others.
        for line in MOUNTS.read_text().splitlines():
            _, mount, mount_kind, mount_options, *_ = line.split(" ")
            if folder.is_relative_to(mount.replace("\\040", " ")):
                kind = mount_kind
                options = mount_options.split(",")
    return kind, options


def _weights() -> Iterator[Finding]:
    """Each encoder of the default features, and the others on this machine."""
    here = {checkpoint.model: checkpoint for checkpoint in list_checkpoints()}

    for feature in str(ExtractionConfig.features).split(","):
        model = FEATURES[feature].model
        if model is not None:
            yield _weights_of(feature, model, here.pop(model, None))

    usable = [model for model, checkpoint in here.items() if checkpoint.fault is None]
    if usable:
        yield Finding("other weights", f"on this machine: {', '.join(usable)}")

    for model, checkpoint in sorted(here.items()):
        if checkpoint.fault is not None:
            yield Finding(
                f"weights of {model}",
                checkpoint.fault,
                ser_command("weights", "convert", checkpoint.path, "DIR"),
            )


def _weights_of(feature: str, model: str, checkpoint: CachedModel | None) -> Finding:
    """Whether the weights of a feature are here: in Hugging Face's cache, or converted by ser."""
    subject = f"weights of {feature}"
    if checkpoint is None:
        return Finding(
            subject,
            f"{model} is not on this machine",
            "fetched when first used if there is a network, and converted if it is a pickle; "
            f"else copy its folder: --model {feature}=PATH",
        )
    if checkpoint.fault is not None:
        return Finding(
            subject,
            checkpoint.fault,
            f"{ser_command('weights', 'convert', checkpoint.path, 'DIR')}, "
            f"then --model {feature}=DIR",
        )
    if checkpoint.is_pickle:
        return Finding(
            subject,
            f"{model} in Hugging Face's cache, as a pickle: converted when it is first used",
        )
    if checkpoint.is_converted:
        return Finding(subject, f"{model}, converted, in {checkpoint.path}")
    return Finding(subject, f"{model} in Hugging Face's cache")
