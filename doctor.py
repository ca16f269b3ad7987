"""What this machine has for `ser`, and what to do about what it lacks."""

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser import engines
from ser.extract.extractors import FEATURES

# Where people keep models, beside Hugging Face's cache.
FOLDERS = ("models", "checkpoints", "demo/checkpoints", "~/models", "~/checkpoints", "/models", "/data/models")
IEMOCAP_BYTES = 5e9  # its 12.4 h in the five default features, float16: HuBERT-base alone is 3.4 GB
PACKAGES = {
    "dask": ("several machines (--scheduler)", "pip install 'ser[cluster]'"),
    "torchaudio": ("converting torchaudio's HuBERT bundles", "pip install torchaudio, of the version of your torch"),
    "pandas": ("tables of features in Python", "pip install pandas"),
}
LICENCES = (
    "openSMILE (is13): research and non-commercial use, features included · IEMOCAP: by its own agreement with USC · "
    "encoders: see each model's page"
)


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was found, whether ser can do all with it, and what to do where it cannot."""

    what: str
    found: str
    fine: bool = True
    advice: str = ""


def examine(store: Path = Path("features")) -> list[Finding]:
    """Everything, in the order in which it is printed. Touches no network and writes nothing."""
    return [
        _python(),
        _cores(),
        _memory(),
        _gpu(),
        _disk(store),
        *_weights(),
        *_packages(),
        Finding("licences", LICENCES),
    ]


def _python() -> Finding:
    from importlib.metadata import version

    import torch

    # torch's own word for itself names its build too, such as +cu130; its package's may not.
    return Finding("software", f"ser {version('ser')}, Python {platform.python_version()}, torch {torch.__version__}")


def _cores() -> Finding:
    usable, all_ = engines.cores(), os.cpu_count() or 1
    limited = f" (of the machine's {all_})" if usable < all_ else ""
    return Finding("cores", f"{usable}{limited}")


def _memory() -> Finding:
    total, free = memory()
    if total is None:
        return Finding("memory", "unknown on this system")
    if total < 8e9:
        return Finding(
            *("memory", f"{total / 1e9:.1f} GB", False),
            "IEMOCAP's HuBERT frames take 3.4 GB in training; choose utterance-level features, or train with --limit",
        )
    return Finding("memory", f"{total / 1e9:.1f} GB, {free / 1e9:.1f} GB free" if free else f"{total / 1e9:.1f} GB")


def memory() -> tuple[int | None, int | None]:
    """Bytes of memory that this process may use, and of those that are free now; None where nobody says.

    The smaller of the machine's and the container's (cgroup's).
    """
    total = free = None
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        pass
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            most = int(Path(limit).read_text())
        except (OSError, ValueError):  # no such cgroup, or "max"
            continue
        if total is not None and most < total:
            total, free = most, min(free or most, most)
    return total, free


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        names = ", ".join(f"{card.name} ({card.total_memory / 1e9:.0f} GB)" for card in cards)
        bf16 = "with" if torch.cuda.is_bf16_supported(including_emulation=False) else "without"
        return Finding("GPU", f"{names}, {bf16} bfloat16")
    built = "has no CUDA" if torch.version.cuda is None else "finds none"
    return Finding(
        *("GPU", f"none (this torch {built})", False),
        "all commands work without; full-size mit takes days on a CPU: use a GPU, or --epochs and --set d_model",
    )


def _disk(store: Path) -> Finding:
    there = store.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    found = f"{free / 1e9:.1f} GB free for {store}{'' if writable else ', not writable'}"
    if not writable:
        return Finding("disk", found, False, "name a folder that you may write to with --store")
    if free < IEMOCAP_BYTES:
        return Finding(
            "disk", found, False, f"IEMOCAP's features need about {IEMOCAP_BYTES / 1e9:.0f} GB: --store elsewhere"
        )
    return Finding("disk", found)


def _weights() -> Iterator[Finding]:
    """One line for each default encoder, then whatever else lies in the cache and the usual folders."""
    cached, folders = _cached(), dict(_in_folders())
    for feature, family in FEATURES.items():
        if family.model is None:
            continue
        what = f"weights of {feature}"
        here = cached.pop(family.model, None)
        local = [path for path, (kind, _) in folders.items() if kind == feature]
        if here is not None and here["fault"] is None:
            yield Finding(what, f"{family.model} in Hugging Face's cache")
        elif local:
            random = " (random weights)" if folders[local[0]][1] else ""
            yield Finding(what, f"--model {feature}={local[0]}{random}")
        elif here is not None:
            yield Finding(
                what, str(here["fault"]), False, f"ser weights convert {here['path']} DIR, then --model {feature}=DIR"
            )
        else:
            yield Finding(
                *(what, f"{family.model} is not on this machine", False),
                f"fetched when first used where there is a network; else copy its folder here: --model {feature}=PATH",
            )
    others = [name for name, entry in cached.items() if entry["architecture"] in FEATURES]
    if others:
        yield Finding("other weights", ", ".join(others))


def _cached() -> dict[str, dict[str, Any]]:
    from ser.weights import list_checkpoints

    return {entry["model"]: entry for entry in list_checkpoints()}


def _in_folders() -> Iterator[tuple[str, tuple[str, bool]]]:
    """Checkpoints in the usual folders: path, and architecture with whether the weights were never trained."""
    import json

    from ser.weights import MARK

    for name in FOLDERS:
        for config in sorted(Path(name).expanduser().glob("*/config.json")):
            try:
                content = json.loads(config.read_text(encoding="utf-8"))
                kind = content.get("model_type")
            except (OSError, ValueError, AttributeError):
                continue
            if kind in FEATURES and any(config.parent.glob("*.safetensors")):
                yield str(config.parent), (kind, bool(content.get(MARK)))


def _packages() -> Iterator[Finding]:
    for name, (use, advice) in PACKAGES.items():
        if importlib.util.find_spec(name):
            yield Finding(f"package {name}", "installed")
        else:
            yield Finding(f"package {name}", f"not installed: {use}", False, advice)
