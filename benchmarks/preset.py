"""The CPU preset of MIT in docs/scaling.md on a store of IEMOCAP's full size: what a sweep says and
what it takes.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.preset FOLDER [ser sweep's options, such as --folds 1]

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

import numpy as np

from ser.benchmarks.compare import children_time
from ser.benchmarks.costs import SEQUENCES, timed, write_store
from ser.benchmarks.train import durations
from ser.train.sweep.estimate import estimate_sweep
from ser.train.sweep.recipe import read_recipe
from ser.train.sweep.tasks import plan_sweep

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
UTTERANCES, LABELLED, HOURS = 10_039, 5_531, 12.44


def main(folder: Path, *options: str) -> None:
    """Make the store if it is not there, then estimate and measure."""
    store, out = folder / "store", folder / f"runs-{int(time.time())}"
    if not store.exists():
        lasts = durations(UTTERANCES, np.random.default_rng(0))
        lasts *= HOURS * 3600 / lasts.sum()
        lengths = {
            "hubert": np.ceil(lasts * 50 - 1).astype(int),
            "mpnet": np.ceil(lasts * 3.2 + 2).astype(int),
        }
        write_store(store, SEQUENCES, lengths, labelled=LABELLED)
    asked = dict(zip(options[::2], options[1::2], strict=True))
    folds = int(asked.get("--folds", 5))
    off = ("patience=0",)
    recipe = folder / "mit-cpu.toml"
    recipe.write_text(
        PAGE.read_text().partition("`mit-cpu.toml`:\n```toml\n")[2].partition("```")[0]
    )
    planned = plan_sweep(
        read_recipe(recipe, store=store, out=out, device="cpu", folds=folds, set=off)
    )
    clock, time.perf_counter = time.perf_counter, time.process_time  # of the timed steps
    before = children_time()
    seconds, cells = estimate_sweep(planned, workers=1)
    print(
        f"estimate: {seconds:.0f} s CPU for {folds} folds ({cells['mit'].parameters:,} parameters);",
        end=" ",
    )
    time.perf_counter = clock
    print(f"it took {children_time() - before:.1f} s with loading", flush=True)
    command = [
        "sweep",
        str(recipe),
        "--store",
        str(store),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--set",
        off[0],
    ]
    wall, used = timed([[*command, *options]])
    print(
        f"measured: {used:.0f} s CPU for {folds} folds, all of `ser sweep`; {wall:.0f} s by the clock"
    )
    runs = [json.loads(path.read_text()) for path in out.glob("*/result.json")]
    epochs = [line["seconds"] for run in runs for line in run["history"]]
    print(
        f"{len(runs)} runs, {len(epochs)} epochs, {np.mean(epochs):.1f} s each by the clock; ratio {seconds / used:.2f}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
