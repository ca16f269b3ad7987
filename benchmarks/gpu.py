"""A GPU owner's first five minutes: are ser's numbers right there, and how long do the papers'
tables take?

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

ROOT = Path(__file__).resolve().parent.parent
ROWS, ERRORS = "rows.jsonl", "stderr"
ALL = 300.0  # seconds for all stages on a GPU
CPU_TIMES = 4  # as long for a stage, where a CPU does the GPU's work
UNKNOWN = "needs CUDA: not measured"
Row = dict[str, Any]  # what, found, limit, holds (None where nothing is asked), detail


@dataclass(frozen=True)
class Stage:
    """One group of checks: a function of `Asked` that yields rows, its seconds, the file to look at
    if it fails.
    """

    work: str  # "module:function"
    seconds: float
    look: str


@dataclass(frozen=True)
class Asked:
    """What a stage is given."""

    device: str
    small: bool
    folder: Path  # of its own

    @property
    def on_gpu(self) -> bool:
        """Whether there is anything to say about a GPU."""
        return self.device.startswith("cuda")


_NUMBERS, _TIMES = "ser.benchmarks.gpu_numbers", "ser.benchmarks.gpu_times"
STAGES = {
    "versions": Stage("ser.benchmarks.gpu:versions", 15, "engines/machine.py"),
    "float64": Stage(f"{_NUMBERS}:float64", 20, "train/models/layers/"),
    "float32": Stage(f"{_NUMBERS}:float32", 35, "engines/machine.py (TF32), train/fit_many.py"),
    "bf16": Stage(f"{_NUMBERS}:bf16", 15, "train/models/layers/"),
    "waits": Stage(f"{_NUMBERS}:waits", 15, "train/data/dataset.py, train/models/batch.py"),
    "encoders": Stage(f"{_NUMBERS}:encoders", 20, "extract/encoder.py, extract/speech.py"),
    "same seed": Stage(f"{_TIMES}:same_seed", 20, "train/fit.py, engines/machine.py"),
    "hubert": Stage(f"{_TIMES}:hubert", 35, "extract/worker.py, cache/part.py"),
    "perspective": Stage(f"{_TIMES}:perspective", 45, "train/fit_many.py, train/sweep/tasks.py"),
    "mit": Stage(f"{_TIMES}:mit", 60, "train/models/msmser.py, train/fit.py"),
    "launches": Stage(f"{_TIMES}:launches", 20, "train/fit_many.py, train/models/msmser.py"),
}


def told(what: str, found: Any, **detail: Any) -> Row:
    """A row that asks for nothing."""
    return {"what": what, "found": found, "limit": None, "holds": None, "detail": detail}


def most(what: str, found: float, limit: float, **detail: Any) -> Row:
    """A row that holds if `found` is at most `limit`; NaN is not."""
    return {"what": what, "found": found, "limit": limit, "holds": found <= limit, "detail": detail}


def none_of(what: str, faults: list[str] | Mapping[str, str]) -> Row:
    """A row that holds if there are no faults, and else names the first three."""
    named = (
        [f"{name}: {why}" for name, why in faults.items()]
        if isinstance(faults, Mapping)
        else faults
    )
    shown = "; ".join(named[:3]) + f"; and {len(named) - 3} more" * (len(named) > 3)
    return {
        "what": what,
        "found": shown or "none",
        "limit": "none",
        "holds": not named,
        "detail": {"all": named},
    }


def place(trace: str) -> str:
    """The last line of ser that a traceback names, such as " (train/fit.py:12)"."""
    named = re.findall(r'File ".*?/ser/([\w/]+\.py)", line (\d+)', trace)
    ours = [found for found in named if not found[0].startswith("benchmarks")]
    return f" ({':'.join(ours[-1])})" if ours else ""


def versions(asked: Asked) -> Iterator[Row]:
    """What is here, and whether training leaves TF32 on."""
    import platform

    import torch

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        yield told(
            "commit",
            subprocess.check_output(["git", "-C", ROOT, "rev-parse", "HEAD"], text=True).strip(),
        )
    built = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    yield told(
        "software", f"Python {platform.python_version()}, torch {torch.__version__} ({built})"
    )
    if asked.on_gpu:
        card = torch.cuda.get_device_properties(asked.device)
        yield told(
            "GPU",
            f"{card.name}, {card.total_memory / 1e9:.0f} GB, compute {card.major}.{card.minor}",
        )
        yield told("bfloat16", torch.cuda.is_bf16_supported(including_emulation=False))
        ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            yield told("driver", subprocess.check_output(ask, text=True).split("\n")[0])
    yield told("cores", os.cpu_count())
    if not asked.on_gpu:
        yield told("TF32 while training", UNKNOWN)
        return
    from ser.benchmarks.gpu_numbers import flags_in_training

    yield none_of(
        "TF32 while training", [name for name, on in flags_in_training(asked.device).items() if on]
    )


def main(words: list[str] | None = None, stages: Mapping[str, Stage] = STAGES) -> int:
    """Run the stages, print the table and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0]
    )
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
    asked = parser.parse_args(words)
    if asked.device != "cpu":
        import torch

        name, _, number = asked.device.partition(":")
        if (
            name != "cuda"
            or not (number or "0").isdecimal()
            or int(number or 0) >= torch.cuda.device_count()
        ):
            why = f"no GPU that torch sees as {asked.device}: nothing is measured"
            print(f"{why}; --device cpu --small tries this page without one")
            return 1
    try:
        asked.out.touch()  # five minutes later is too late
    except OSError as fault:
        print(
            f"{asked.out}: cannot be written ({fault.strerror}); run it elsewhere, or name another file by --out"
        )
        return 1
    chosen = {name: stage for name, stage in stages.items() if name in (asked.only or stages)}
    found = run(chosen, asked.device, asked.small, asked.out)
    print(table(found), f"\nall of it: {asked.out}")
    return 0 if found["holds"] else 1


def run(stages: Mapping[str, Stage], device: str, small: bool, out: Path) -> dict[str, Any]:
    """What every stage found, also in `out` as it becomes known."""
    found: dict[str, Any] = {
        "device": device,
        "small": small,
        "begun": time.strftime("%F %T"),
        "stages": {},
    }
    times = CPU_TIMES if device == "cpu" else 1
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ser-gpu-", ignore_cleanup_errors=True) as name:
        env = environment(Path(name), device)
        for number, (what, stage) in enumerate(stages.items()):
            print(f"gpu: {what} …", file=sys.stderr, flush=True)
            begun = time.monotonic()
            limit = min(stage.seconds * times, ALL * times - (begun - started))
            folder = Path(name) / str(number)
            folder.mkdir()
            fault = in_a_process(stage.work, device.partition(":")[0], small, folder, limit, env)
            rows = [
                json.loads(line) for line in read(folder / ROWS).splitlines() if line.endswith("}")
            ]
            if fault:
                rows.append(
                    {
                        "what": "all of it",
                        "found": fault,
                        "limit": None,
                        "holds": False,
                        "detail": {},
                    }
                )
            seconds = round(time.monotonic() - begun, 1)
            about = {
                "seconds": seconds,
                "limit": limit,
                "look": stage.look,
                "stderr": read(folder / ERRORS)[-4000:],
            }
            found["stages"][what] = {**about, "rows": rows}
            found["seconds"] = round(time.monotonic() - started, 1)
            every = [row for one in found["stages"].values() for row in one["rows"]]
            found["holds"] = len(found["stages"]) == len(stages) and all(
                row["holds"] is not False for row in every
            )
            written = out.with_name(f".{out.name}.tmp")
            written.write_text(json.dumps(found, indent=1) + "\n")
            written.replace(out)
    return found


def environment(folder: Path, device: str) -> dict[str, str]:
    """That of the stages: `ser` is this checkout, installed or not, they see one GPU, and nothing
    is fetched.
    """
    (folder / "ser").symlink_to(ROOT)
    try:
        distribution("ser-fusion")
    except PackageNotFoundError:  # which `version` asks for
        about = folder / "ser_fusion-0.dist-info" / "METADATA"
        about.parent.mkdir()
        about.write_text("Metadata-Version: 2.1\nName: ser-fusion\nVersion: 0\n")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if device.startswith("cuda"):
        number = int(device.partition(":")[2] or 0)
        env["CUDA_VISIBLE_DEVICES"] = gpus[number] if gpus[0] else str(number)
    return env


def in_a_process(
    work: str, device: str, small: bool, folder: Path, limit: float, env: Mapping[str, str]
) -> str | None:
    """Run a stage with all that it starts, and kill what is left of it; why it failed, or None."""
    if limit < 1:
        return "not begun: the time for all stages is over"
    command = [
        sys.executable,
        "-m",
        "ser.benchmarks.gpu",
        "stage",
        work,
        device,
        str(small),
        str(folder),
    ]
    with (folder / ERRORS).open("w") as errors:
        child = subprocess.Popen(
            command, env=env, stdout=errors, stderr=errors, start_new_session=True
        )
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit:.0f} s, its limit"
        finally:
            if sys.platform == "win32":
                child.kill()
            else:
                with contextlib.suppress(OSError):  # nobody is left
                    os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if not code:
        return None
    said = read(folder / ERRORS)
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "") + place(
        said
    )
    return (
        last
        if code == 1
        else f"killed by {signal.Signals(-code).name}"
        if code < 0
        else f"exit code {code}: {last}"
    )


def stage(work: str, device: str, small: str, folder: str) -> None:
    """In a process of its own: write each row of a stage as it comes."""
    asked = Asked(device, small == "True", Path(folder))
    with (asked.folder / ROWS).open("a") as file:
        for row in pkgutil.resolve_name(work)(asked):
            print(json.dumps(row), file=file, flush=True)


def read(file: Path) -> str:
    """A file's text, "" if there is none."""
    return file.read_text(errors="replace") if file.exists() else ""


def table(found: Mapping[str, Any]) -> str:
    """All rows, and which file to look at for those that do not hold."""
    from tabulate import tabulate

    lines, look = [], []
    for name, about in found["stages"].items():
        for row in about["rows"]:
            cells = [
                f"{value:.3g}" if isinstance(value, float) else value
                for value in (row["found"], row["limit"])
            ]
            lines.append(
                [
                    f"{name}: {row['what']}",
                    *cells,
                    {True: "yes", False: "NO", None: ""}[row["holds"]],
                ]
            )
        if any(row["holds"] is False for row in about["rows"]):
            look.append(f"{name} failed: look at {about['look']}")
    shown = tabulate(
        lines,
        ["what", "found", "limit", "holds"],
        disable_numparse=True,
        maxcolwidths=[56, 72, 12, 5],
    )
    return "\n".join([shown, *look, f"{found['seconds']:.0f} s in all"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["stage"]:
        stage(*sys.argv[2:])
    else:
        sys.exit(main())
