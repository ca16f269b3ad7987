"""`make bench`: the cases of every part, in one table and in bench.json.

`make bench ONLY=train` runs one part. Ratios count, absolute times do not: the machines are shared.
Exit code 1 if a ratio is below its target.
"""

import importlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

PARTS = ("store", "extract", "train", "finetune", "costs", "demo", "statistics")
HEADERS = ["what", "plain", "ours", "unit", "ratio", "target"]


def main(only: list[str]) -> int:
    """Run the parts named in `only` (all when empty) and return the exit code."""
    rounds = int(os.environ.get("ROUNDS", "3"))
    rows = []

    for part in only or PARTS:
        if part not in PARTS:
            print(f"bench: unknown part '{part}'; known: {', '.join(PARTS)}", file=sys.stderr)
            return 2

        print(f"bench: {part} …", file=sys.stderr)
        module = importlib.import_module(f"benchmarks.{part}")
        rows += module.cases(rounds=rounds)

    return report(rows)


def report(rows: list[dict[str, Any]]) -> int:
    """Write bench.json, print the table and return the exit code.

    It is 1 if a ratio is below its target.
    """
    Path("bench.json").write_text(json.dumps(rows, indent=1) + "\n")

    processor = platform.processor() or platform.machine()
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{processor}, {os.cpu_count()} cores, OMP_NUM_THREADS={threads}")
    print(tabulate([cells(row) for row in rows], headers=HEADERS))

    missed = False
    for row in rows:
        if row["target"] is not None and row["ratio"] < row["target"]:
            print(f"below target: {row['what']}")
            missed = True

    return 1 if missed else 0


def cells(row: dict[str, Any]) -> list[Any]:
    """A line of the table, in the order of `HEADERS`."""
    return [
        row["what"],
        f"{row['plain']:.3g}",
        f"{row['ours']:.3g}",
        row.get("unit", ""),
        f"{row['ratio']:.2f}",
        row["target"] or "–",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
