"""`make bench`: every part's cases in one table and in bench.json; exit 1 if a ratio is below its
target.

`make bench ONLY=train` runs one part. Ratios count, absolute times do not: the machines are shared.
"""

import importlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

PARTS = ("store", "extract", "train", "costs", "demo", "statistics")


def main(only: list[str]) -> int:
    """Run the parts named in `only` (all when empty) and return the exit code."""
    rows = []
    for part in only or PARTS:
        if part not in PARTS:
            print(f"bench: unknown part '{part}'; known: {', '.join(PARTS)}", file=sys.stderr)
            return 2
        print(f"bench: {part} …", file=sys.stderr)
        rows += importlib.import_module(f"benchmarks.{part}").cases(
            rounds=int(os.environ.get("ROUNDS", "3"))
        )
    return report(rows)


def report(rows: list[dict[str, Any]]) -> int:
    """Write bench.json, print the table and return the exit code: 1 if a ratio is below its target."""
    Path("bench.json").write_text(json.dumps(rows, indent=1) + "\n")
    table = [
        [
            r["what"],
            f"{r['plain']:.3g}",
            f"{r['ours']:.3g}",
            r.get("unit", ""),
            f"{r['ratio']:.2f}",
            r["target"] or "–",
        ]
        for r in rows
    ]
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS={threads}"
    )
    print(tabulate(table, headers=["what", "plain", "ours", "unit", "ratio", "target"]))
    missed = [r["what"] for r in rows if r["target"] is not None and r["ratio"] < r["target"]]
    for what in missed:
        print(f"below target: {what}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
