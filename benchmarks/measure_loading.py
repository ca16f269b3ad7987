"""What loading takes, measured in a process that trains nothing; see `costs.full_size`.

    python -m ser.benchmarks.measure_loading STORE [SETTING …]

It prints JSON: the seconds of CPU from the start until MIT's features are loaded, their bytes, the
model's parameters, and the peak memory in bytes before loading and after it.
"""

import json
import re
import sys
import time
from pathlib import Path

from ser.train.estimate import estimate
from ser.train.experiment import Experiment, prepare


def main(store: str, *settings: str) -> None:
    """Load the store's features, and time the steps of an estimate."""
    experiment = Experiment(
        "hubert+mpnet", "mit", store=store, folds=1, device="cpu", set=tuple(settings)
    )
    jobs = prepare(experiment)

    # The bare process has all that training imports.
    import torch  # noqa: F401

    import ser.train.models  # noqa: F401

    bare = peak()
    inputs = jobs[0].data.inputs
    loaded = time.process_time()
    parameters = estimate(jobs).parameters

    figures = {
        "bare": bare,
        "peak": peak(),
        "size": sum(x.values.nbytes for x in inputs.values()),
        "parameters": parameters,
        "loaded": loaded,
    }
    print(json.dumps(figures))


def peak() -> int:
    """The most memory in bytes that this process has had.

    getrusage's peak begins with that of the process that started this one, VmHWM does not.
    """
    status = Path("/proc/self/status").read_text()
    line = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert line is not None
    return int(line[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
