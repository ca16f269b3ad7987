"""How many of our files a command runs through: `python -m benchmarks.hops` traces the commands of
`make demo`.

`--write docs/architecture.md` puts the lists between that page's `<!-- hops -->` markers.

A file counts when a function of it is called, a hop when a function of one file calls a function of
another. Running a module's or a class's body is an import, not a hop.
"""

import contextlib
import inspect
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MOST = 28  # files of each command
MARKER = "<!-- hops -->"
ENCODERS = ("hubert", "mpnet", "bert")


class Tracer:
    """Notes calls between files of this checkout, in the order in which they first happen."""

    def __init__(self) -> None:
        self.files: dict[str, None] = {}
        self.hops: dict[tuple[str, str], None] = {}
        self._names: dict[CodeType, str | None] = {}

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        """The profiler that `sys.setprofile` takes."""
        if (
            event != "call"
            or (callee := self._name(frame.f_code)) is None
            or _is_body(frame.f_code)
        ):
            return
        caller = frame.f_back
        while caller is not None and (name := self._name(caller.f_code)) is None:
            caller = caller.f_back
        if caller is not None and _is_body(caller.f_code):
            return
        self.files.setdefault(callee)
        if caller is not None and name is not None and name != callee:
            self.hops.setdefault((name, callee))

    def _name(self, code: CodeType) -> str | None:
        """The file under the root that holds this code; None for a library's, a test's or generated
        code.
        """
        if code not in self._names:
            path = Path(code.co_filename)
            inside = path.is_absolute() and path.is_file() and path.resolve().is_relative_to(ROOT)
            relative = path.resolve().relative_to(ROOT) if inside else None
            ours = relative is not None and relative.parts[0] not in (
                "benchmarks",
                "tests",
                ".venv",
            )
            self._names[code] = str(relative) if ours else None
        return self._names[code]


def _is_body(code: CodeType) -> bool:
    return code.co_name == "<module>" or not code.co_flags & inspect.CO_NEWLOCALS


def trace(arguments: list[str]) -> Tracer:
    """Run one `ser` command in this process."""
    from ser.cli import main

    tracer = Tracer()
    threading.setprofile(tracer)
    sys.setprofile(tracer)
    try:
        main(arguments)
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return tracer


def trace_demo(folder: Path) -> dict[str, Tracer]:
    """`ser features` with the five default features, and both of the demo's `ser train`, by name.

    The folder has the demo's `corpus` and `checkpoints`.
    """
    store, weights = folder / "features", folder / "checkpoints"
    models = [f"--model={name}={weights}/{name}-random" for name in ENCODERS]
    small = [
        "--epochs=2",
        "--set=d_model=16",
        "--set=heads=2",
        "--set=queries=4",
        "--set=standardise_audio=true",
    ]
    train = ["train", f"--store={store}", f"--out={folder}/runs", "--folds=2"]
    lgf = [*train, "--features=is13+bert", "--fusion=lgf-add", "--loss=perspective", "--epochs=2"]
    with contextlib.chdir(folder):  # where no file holds defaults of one's own
        return {
            "ser features": trace(["features", f"{folder}/corpus", f"--store={store}", *models]),
            "ser train --fusion mit": trace(
                [*train, "--features=hubert+mpnet", "--fusion=mit", *small]
            ),
            "ser train --fusion lgf-add": trace(lgf),
        }


def listing(traced: dict[str, Tracer]) -> str:
    """The files of each command in the order in which they are first called, and which files each
    calls.
    """
    lines = []
    for command, tracer in traced.items():
        lines.append(f"{command}: {len(tracer.files)} files, {len(tracer.hops)} hops")
        for caller in tracer.files:
            called = [callee for first, callee in tracer.hops if first == caller]
            lines.append(f"  {caller}{' → ' if called else ''}{', '.join(called)}")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Print the hop lists, or write them into a page; exit 1 if a command runs through more than
    `MOST` files.
    """
    from ser.extract.corpora.demo import write_demo
    from ser.tests.newcomer import write_inputs

    with tempfile.TemporaryDirectory() as folder:
        write_demo(Path(folder) / "demo")
        write_inputs(Path(folder), Path(folder) / "demo")
        traced = trace_demo(Path(folder))
    print(listing(traced))
    if arguments[:1] == ["--write"]:
        page = Path(arguments[1])
        before, _, after = page.read_text(encoding="utf-8").partition(MARKER)
        after = after.partition(MARKER)[2]
        page.write_text(
            f"{before}{MARKER}\n```text\n{listing(traced)}\n```\n{MARKER}{after}", encoding="utf-8"
        )
    return int(any(len(tracer.files) > MOST for tracer in traced.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
