"""The sbatch script of docs/scaling.md does what Slurm would have it do, with Slurm's variables and without Slurm."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ser.tests.tiny_store import make_store

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"


@pytest.mark.slow
def test_the_array_trains_every_run_once(tmp_path: Path) -> None:
    store = make_store(tmp_path, turns=24).path
    found = re.search(r"`sweep\.sbatch`:\n```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    script = tmp_path / "sweep.sbatch"
    script.write_text(found[1])
    assert found[1].startswith("#!/bin/bash\n#SBATCH --array=1-16\n")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    options = ["perspective-table1", "--store", str(store), "--seeds", "2", "--epochs", "1", "--set", "d_model=16"]
    trained = []
    for number in (1, 2):
        slurm = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_SUBMIT_DIR": str(tmp_path)}
        subprocess.run(["bash", str(script), *options], env={**os.environ, **slurm, "PATH": path}, check=True, cwd="/")
        trained.append({file.parent.name for file in (tmp_path / "runs").glob("*/result.json")})
    assert len(trained[0]) == 2 and trained[0] < trained[1] and len(trained[1]) == 4
