"""The CPU preset of MIT in docs/scaling.md on a store of IEMOCAP's full size: estimate and truth.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.preset FOLDER [OPTIONS]

OPTIONS are those of `ser sweep`, such as --folds 1.

The store has 10,039 utterances, 12.4 h, of which 5,531 are labelled: HuBERT base's frames (768 × 50
a second, float16) and MPNet's tokens. Values are random, since they do not change the work; so no
score rises, and patience would end a run soon: it is off here, and what is measured is the most
that the preset takes. Times are CPU seconds of all processes, the estimate's too (its clock is the
CPU's here), so a busy machine disturbs little.
"""

import json
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np

from ser.benchmarks.compare import children_time
from ser.benchmarks.costs import SEQUENCES, timed, write_store
from ser.benchmarks.iemocap_sizes import (
    HOURS,
    LABELLED,
    UTTERANCES,
    durations_of_share,
    sequence_lengths,
)
from ser.train.sweep.estimate import estimate_sweep
from ser.train.sweep.recipe import read_recipe
from ser.train.sweep.tasks import plan_sweep

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
NO_PATIENCE = "patience=0"


def main(folder: Path, *options: str) -> None:
    """Make the store if it is not there, then estimate and measure."""
    store = folder / "store"
    if not store.exists():
        seconds = durations_of_share(UTTERANCES, HOURS, UTTERANCES)
        write_store(store, SEQUENCES, sequence_lengths(seconds), labelled=LABELLED)

    recipe = folder / "mit-cpu.toml"
    recipe.write_text(preset_of_the_page())
    out = folder / f"runs-{int(time.time())}"
    by_name = dict(zip(options[::2], options[1::2], strict=True))
    folds = int(by_name.get("--folds", 5))

    estimated = print_estimate(recipe, store, out, folds)

    command = ["sweep", str(recipe), "--store", str(store), "--out", str(out), "--device", "cpu"]
    command += ["--set", NO_PATIENCE, *options]
    wall, used = timed([command])
    print(
        f"measured: {used:.0f} s CPU for {folds} folds, all of `ser sweep`; "
        f"{wall:.0f} s by the clock"
    )

    runs = 0
    epochs: list[float] = []
    for file in out.glob("*/result.json"):
        runs += 1
        epochs += [line["seconds"] for line in json.loads(file.read_text())["history"]]

    print(
        f"{runs} runs, {len(epochs)} epochs, {np.mean(epochs):.1f} s each by the clock; "
        f"ratio {estimated / used:.2f}"
    )


def preset_of_the_page() -> str:
    """The recipe that docs/scaling.md prints below "`mit-cpu.toml`:"."""
    _, _, after = PAGE.read_text().partition("`mit-cpu.toml`:\n```toml\n")
    recipe, _, _ = after.partition("```")
    return recipe


def print_estimate(recipe: Path, store: Path, out: Path, folds: int) -> float:
    """Print what `ser sweep` says ahead, and return its CPU seconds."""
    sweep = plan_sweep(
        read_recipe(recipe, store=store, out=out, device="cpu", folds=folds, set=(NO_PATIENCE,))
    )

    before = children_time()
    # The clock of the timed steps.
    with mock.patch.object(time, "perf_counter", time.process_time):
        seconds, cells = estimate_sweep(sweep, workers=1)
    took = children_time() - before

    parameters = cells["mit"].parameters
    print(
        f"estimate: {seconds:.0f} s CPU for {folds} folds ({parameters:,} parameters); "
        f"it took {took:.1f} s with loading",
        flush=True,
    )
    return seconds


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
