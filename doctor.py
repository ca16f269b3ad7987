"""What this machine has for `ser`, and what to do about what it lacks."""

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ser.disk.locks import try_lock
from ser.engines.machine import cores, memory
from ser.errors import DISTRIBUTION
from ser.extract.config import ExtractionConfig
from ser.extract.registry import FEATURES
from ser.weights.find import list_checkpoints

MOUNTS = Path("/proc/mounts")  # one file system a line: device, folder, type, options
IEMOCAP_BYTES = 5e9  # its 12.4 h in the five default features, float16: HuBERT-base alone is 3.4 GB
LICENCES = (
    "openSMILE: research and non-commercial use, features included · IEMOCAP: by its own agreement with USC · "
    "encoders: see each model's page"
)


def examine(store: Path = Path("features")) -> dict[str, dict[str, Any]]:
    """Each finding by its subject: `found`, whether that is `fine` for all that ser can do, else
    the `advice`.

    In the order of printing. Uses no network and writes nothing.
    """
    rows = [*_machine(), *_disk(store), *_weights(), ("licences", LICENCES, "")]
    return {
        what: {"what": what, "found": text, "fine": not advice, "advice": advice}
        for what, text, advice in rows
    }


def _machine() -> Iterator[tuple[str, str, str]]:
    """The processors and their memory, and the versions of the software."""
    import torch

    # torch's own version names its build too, such as +cu130; that of its package may not.
    versions = f"ser {version(DISTRIBUTION)}, Python {platform.python_version()}, torch {torch.__version__}"
    yield "software", versions, ""
    usable, machine = cores(), os.cpu_count() or 1
    yield "cores", f"{usable} (of the machine's {machine})" if usable < machine else str(usable), ""
    total, free = memory()
    size = f"{total / 1e9:.1f} GB" if total else "unknown on this system"
    size += f", {free / 1e9:.1f} GB free" if free else ""
    needed = "IEMOCAP's HuBERT frames take 3.4 GB in training; choose utterance-level features, or train with --limit"
    yield "memory", size, needed if total and total < 8e9 else ""
    if torch.cuda.is_available():
        cards = [
            torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())
        ]
        names = ", ".join(f"{card.name} ({card.total_memory / 1e9:.0f} GB)" for card in cards)
        bf16 = "with" if torch.cuda.is_bf16_supported(including_emulation=False) else "without"
        yield "GPU", f"{names}, {bf16} bfloat16", ""
    else:
        built = "has no CUDA" if torch.version.cuda is None else "finds none"
        use = "all commands work without; full-size mit takes days on a CPU: use a GPU, or --epochs and --set d_model"
        yield "GPU", f"none (this torch {built})", use


def _disk(store: Path) -> Iterator[tuple[str, str, str]]:
    """The disk of the store, or where it would be made, and whether locks work there."""
    folder = next(
        folder for folder in (store.absolute(), *store.absolute().parents) if folder.exists()
    )
    free = shutil.disk_usage(folder).free
    space = f"{free / 1e9:.1f} GB free for {store}"
    if os.access(folder, os.W_OK):
        needed = f"IEMOCAP's features need about {IEMOCAP_BYTES / 1e9:.0f} GB: --store elsewhere"
        yield "disk", space, needed if free < IEMOCAP_BYTES else ""
    else:
        yield "disk", f"{space}, not writable", "name a folder that you may write to with --store"
    yield "store locks", *_locks(folder.resolve())


def _locks(folder: Path) -> tuple[str, str]:
    kind, options = "this file system", [""]
    with suppress(OSError):
        for line in (
            MOUNTS.read_text().splitlines()
        ):  # the last mount that holds the folder hides the others
            _, mount, mount_kind, mount_options, *_ = line.split(" ")
            if folder.is_relative_to(mount.replace("\\040", " ")):
                kind, options = mount_kind, mount_options.split(",")
    once = "let no two processes train the same run at once; leftovers of killed writers go after a day"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if try_lock(file.fileno()) is None:
                return f"none on {kind}", once
    except OSError as error:
        return f"not tried on {kind} ({error.strerror})", ""
    local = {"nolock", "localflock", "local_lock=all", "local_lock=flock"} & {*options}
    if local or kind.startswith("fuse.") or kind == "beegfs":
        return (
            f"work on {kind}, but other machines may not see them",
            f"with several machines, {once}",
        )
    return f"work on {kind}", ""


def _weights() -> Iterator[tuple[str, str, str]]:
    """One line for each encoder of the default features, and one for the others in Hugging Face's
    cache.
    """
    cached = {entry["model"]: entry for entry in list_checkpoints()}
    for feature in str(ExtractionConfig.features).split(","):
        model = FEATURES[feature].model
        checkpoint = cached.pop(model, None)
        if checkpoint and checkpoint["fault"]:
            advice = f"ser weights convert {checkpoint['path']} DIR, then --model {feature}=DIR"
            yield f"weights of {feature}", checkpoint["fault"], advice
        elif checkpoint:
            yield f"weights of {feature}", f"{model} in Hugging Face's cache", ""
        elif model:
            advice = f"fetched when first used if there is a network; else copy its folder: --model {feature}=PATH"
            yield f"weights of {feature}", f"{model} is not on this machine", advice
    if good := [model for model, entry in cached.items() if not entry["fault"]]:
        yield "other weights", f"in Hugging Face's cache: {', '.join(good)}", ""
    for model in sorted(cached.keys() - set(good)):
        yield (
            f"weights of {model}",
            cached[model]["fault"],
            f"ser weights convert {cached[model]['path']} DIR",
        )
