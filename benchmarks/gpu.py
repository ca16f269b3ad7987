"""A GPU owner's first five minutes: are ser's numbers right, and how long do tables take?

    python -m benchmarks.gpu [--device cuda] [--small] [--out gpu.json] [--only STAGE]…

Every stage runs in a process of its own, for so many seconds at most; one that crashes, hangs or
lacks a package is reported, with the file to look at, and the next goes on. What is found stands in
gpu.json as soon as a stage is done, and in one table at the end. Exit code 1 if anything does not
hold. All takes at most 300 s on a GPU.

`--small` tries this page itself: `--device cpu --small` runs on any machine every stage that has a
meaning there. Run it from the checkout's root; ser need not be installed, but the packages that it
depends on.
"""

import argparse
import contextlib
import json
import os
import pkgutil
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from ser.children import python_module

ROOT = Path(__file__).resolve().parent.parent
ROWS = "rows.jsonl"
ERRORS = "stderr"

# Seconds for all stages on a GPU; a CPU that does the GPU's work has so many times as long.
ALL = 300.0
CPU_TIMES = 4

UNKNOWN = "needs CUDA: not measured"

# what, found, limit, holds (None where nothing is asked), detail
Row = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One group of checks."""

    work: str
    """"module:function": it takes a `Request`, in a process of its own, and yields rows."""
    seconds: float
    """At most so many, on a GPU."""
    look: str
    """The file to look at if it fails."""


@dataclass(frozen=True)
class Request:
    """What a stage is given."""

    device: str
    small: bool
    folder: Path
    """Its own."""

    @property
    def on_gpu(self) -> bool:
        """Whether there is anything to say about a GPU."""
        return self.device.startswith("cuda")


_NUMBERS = "ser.benchmarks.gpu_numbers"
_TIMES = "ser.benchmarks.gpu_times"
STAGES = {
    "versions": Stage("ser.benchmarks.gpu:versions", 15, "engines/machine.py"),
    "float64": Stage(f"{_NUMBERS}:float64", 20, "train/models/layers/"),
    "float32": Stage(f"{_NUMBERS}:float32", 35, "engines/machine.py (TF32), train/fit_many.py"),
    "bf16": Stage(f"{_NUMBERS}:bf16", 15, "train/models/layers/"),
    "waits": Stage(f"{_NUMBERS}:waits", 15, "train/data/dataset.py, train/models/batch.py"),
    "encoders": Stage(f"{_NUMBERS}:encoders", 20, "extract/encoder.py, extract/speech.py"),
    "same seed": Stage(f"{_TIMES}:same_seed", 20, "train/fit.py, engines/machine.py"),
    "hubert": Stage(f"{_TIMES}:hubert", 35, "extract/worker.py, cache/part.py"),
    "perspective": Stage(f"{_TIMES}:perspective", 40, "train/fit_many.py, train/sweep/tasks.py"),
    "mit": Stage(f"{_TIMES}:mit", 50, "train/models/msmser.py, train/fit.py"),
    "finetune": Stage(f"{_TIMES}:finetune", 15, "train/models/encoders/, train/finetune.py"),
    "launches": Stage(f"{_TIMES}:launches", 20, "train/fit_many.py, train/models/msmser.py"),
}


def fact(what: str, found: Any, **detail: Any) -> Row:
    """A row that asks for nothing."""
    return {"what": what, "found": found, "limit": None, "holds": None, "detail": detail}


def at_most(what: str, found: float, limit: float, **detail: Any) -> Row:
    """A row that holds if `found` is at most `limit`; NaN is not."""
    return {"what": what, "found": found, "limit": limit, "holds": found <= limit, "detail": detail}


def no_faults(what: str, faults: list[str] | Mapping[str, str]) -> Row:
    """A row that holds if there are no faults, and else names the first three."""
    if isinstance(faults, Mapping):
        names = [f"{name}: {why}" for name, why in faults.items()]
    else:
        names = faults

    shown = "; ".join(names[:3]) or "none"
    if len(names) > 3:
        shown += f"; and {len(names) - 3} more"

    return {
        "what": what,
        "found": shown,
        "limit": "none",
        "holds": not names,
        "detail": {"all": names},
    }


def raised_at(trace: str) -> str:
    """The last line of ser that a traceback names, such as " (train/fit.py:12)"."""
    place = ""
    for file, line in re.findall(r'File ".*?/ser/([\w/]+\.py)", line (\d+)', trace):
        if not file.startswith("benchmarks"):
            place = f" ({file}:{line})"

    return place


def versions(request: Request) -> Iterator[Row]:
    """What is here, and whether training leaves TF32 on."""
    import torch

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        yield fact("commit", subprocess.check_output(command, text=True).strip())

    python = platform.python_version()
    built = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    yield fact("software", f"Python {python}, torch {torch.__version__} ({built})")

    if request.on_gpu:
        card = torch.cuda.get_device_properties(request.device)
        gigabytes = card.total_memory / 1e9
        yield fact("GPU", f"{card.name}, {gigabytes:.0f} GB, compute {card.major}.{card.minor}")
        yield fact("bfloat16", torch.cuda.is_bf16_supported(including_emulation=False))

        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            yield fact("driver", subprocess.check_output(command, text=True).split("\n")[0])

    yield fact("cores", os.cpu_count())

    if not request.on_gpu:
        yield fact("TF32 while training", UNKNOWN)
        return

    from ser.benchmarks.gpu_numbers import flags_in_training

    flags = flags_in_training(request.device)
    yield no_faults("TF32 while training", [name for name, on in flags.items() if on])


def main(words: list[str] | None = None, stages: Mapping[str, Stage] = STAGES) -> int:
    """Run the stages, print the table and return the exit code."""
    options = parse_options(words, stages)

    if options.device != "cpu" and not has_gpu(options.device):
        print(
            f"no GPU that torch sees as {options.device}: nothing is measured; "
            "--device cpu --small tries this page without one"
        )
        return 1

    # Five minutes later is too late.
    try:
        options.out.touch()
    except OSError as fault:
        print(
            f"{options.out}: cannot be written ({fault.strerror}); "
            "run it elsewhere, or name another file by --out"
        )
        return 1

    chosen = {}
    for name, stage in stages.items():
        if not options.only or name in options.only:
            chosen[name] = stage

    found = run(chosen, options.device, options.small, options.out)
    print(table(found), f"\nall of it: {options.out}")
    return 0 if found["holds"] else 1


def parse_options(words: list[str] | None, stages: Mapping[str, Stage]) -> argparse.Namespace:
    """The options of this page."""
    description, _, _ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=description)
    parser.add_argument(
        "--device", default="cuda", help="cuda (the default), cuda:N, or cpu for a trial"
    )
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes: a trial of this page itself"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("gpu.json"), help="where all that is found is written"
    )
    parser.add_argument(
        "--only", action="append", choices=stages, help="this stage alone; repeatable"
    )
    return parser.parse_args(words)


def has_gpu(device: str) -> bool:
    """Whether torch sees that device, such as "cuda" or "cuda:1"."""
    import torch

    kind, _, number = device.partition(":")
    number = number or "0"
    return kind == "cuda" and number.isdecimal() and int(number) < torch.cuda.device_count()


def run(stages: Mapping[str, Stage], device: str, small: bool, out: Path) -> dict[str, Any]:
    """What every stage found, also in `out` as it becomes known."""
    found: dict[str, Any] = {
        "device": device,
        "small": small,
        "begun": time.strftime("%F %T"),
        "stages": {},
    }
    times = CPU_TIMES if device == "cpu" else 1
    # A stage sees one GPU, whatever its number here.
    kind, _, _ = device.partition(":")
    started = time.monotonic()

    with tempfile.TemporaryDirectory(prefix="ser-gpu-", ignore_cleanup_errors=True) as name:
        env = environment(Path(name), device)

        for number, (what, stage) in enumerate(stages.items()):
            print(f"gpu: {what} …", file=sys.stderr, flush=True)
            folder = Path(name) / str(number)
            folder.mkdir()

            begun = time.monotonic()
            limit = min(stage.seconds * times, ALL * times - (begun - started))
            fault = in_a_process(stage.work, kind, small, folder, limit, env)
            rows = read_rows(folder / ROWS)
            if fault:
                row = {**fact("all of it", fault), "holds": False}
                rows.append(row)

            found["stages"][what] = {
                "seconds": round(time.monotonic() - begun, 1),
                "limit": limit,
                "look": stage.look,
                "stderr": read(folder / ERRORS)[-4000:],
                "rows": rows,
            }
            found["seconds"] = round(time.monotonic() - started, 1)
            found["holds"] = len(found["stages"]) == len(stages) and all_hold(found["stages"])
            write_json(out, found)

    return found


def read_rows(file: Path) -> list[Row]:
    """The rows that a stage wrote; a stage that was killed may have written half a line."""
    return [json.loads(line) for line in read(file).splitlines() if line.endswith("}")]


def all_hold(stages: Mapping[str, Any]) -> bool:
    """Whether there is no row that does not hold."""
    rows = [row for stage in stages.values() for row in stage["rows"]]
    return all(row["holds"] is not False for row in rows)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a file, whole or not at all."""
    beside = file.with_name(f".{file.name}.tmp")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(file)


def environment(folder: Path, device: str) -> dict[str, str]:
    """That of the stages.

    `ser` is this checkout, installed or not, they see one GPU, and nothing is fetched.
    """
    (folder / "ser").symlink_to(ROOT)

    # `version` asks for the distribution.
    try:
        distribution("ser-fusion")
    except PackageNotFoundError:
        metadata = folder / "ser_fusion-0.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text("Metadata-Version: 2.1\nName: ser-fusion\nVersion: 0\n")

    path = str(folder)
    if os.environ.get("PYTHONPATH"):
        path += os.pathsep + os.environ["PYTHONPATH"]
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}

    if device.startswith("cuda"):
        _, _, digits = device.partition(":")
        number = int(digits or 0)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        env["CUDA_VISIBLE_DEVICES"] = visible[number] if visible[0] else str(number)

    return env


def in_a_process(
    work: str, device: str, small: bool, folder: Path, limit: float, env: Mapping[str, str]
) -> str | None:
    """Run a stage with all that it starts, and kill what is left of it.

    Returns why it failed, or None.
    """
    if limit < 1:
        return "not begun: the time for all stages is over"

    words = ["stage", work, device, str(small), str(folder)]
    command = python_module("ser.benchmarks.gpu", *words)
    with (folder / ERRORS).open("w") as errors:
        child = subprocess.Popen(
            command, env=env, stdout=errors, stderr=errors, start_new_session=True
        )
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit:.0f} s, its limit"
        finally:
            kill_session(child)

    if code == 0:
        return None
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"

    errors_text = read(folder / ERRORS)
    reason = last_line(errors_text) + raised_at(errors_text)
    return reason if code == 1 else f"exit code {code}: {reason}"


def kill_session(child: "subprocess.Popen[bytes]") -> None:
    """Kill a process and all that it started."""
    if sys.platform == "win32":
        child.kill()
    else:
        # Nobody may be left.
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)

    child.wait()


def last_line(text: str) -> str:
    """The last line that is not blank, "" if there is none."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def stage(work: str, device: str, small: str, folder: str) -> None:
    """In a process of its own: write each row of a stage as it comes."""
    request = Request(device, small == "True", Path(folder))
    with (request.folder / ROWS).open("a") as file:
        for row in pkgutil.resolve_name(work)(request):
            print(json.dumps(row), file=file, flush=True)


def read(file: Path) -> str:
    """A file's text, "" if there is none."""
    return file.read_text(errors="replace") if file.exists() else ""


def table(found: Mapping[str, Any]) -> str:
    """All rows, and which file to look at for those that do not hold."""
    from tabulate import tabulate

    answers = {True: "yes", False: "NO", None: ""}
    lines = []
    look = []
    for name, stage in found["stages"].items():
        for row in stage["rows"]:
            what = f"{name}: {row['what']}"
            holds = answers[row["holds"]]
            lines.append([what, cell(row["found"]), cell(row["limit"]), holds])

        if not all_hold({name: stage}):
            look.append(f"{name} failed: look at {stage['look']}")

    shown = tabulate(
        lines,
        ["what", "found", "limit", "holds"],
        disable_numparse=True,
        maxcolwidths=[56, 72, 12, 5],
    )
    return "\n".join([shown, *look, f"{found['seconds']:.0f} s in all"])


def cell(value: Any) -> Any:
    """A value as the table shows it."""
    return f"{value:.3g}" if isinstance(value, float) else value


if __name__ == "__main__":
    if sys.argv[1:2] == ["stage"]:
        stage(*sys.argv[2:])
    else:
        sys.exit(main())
