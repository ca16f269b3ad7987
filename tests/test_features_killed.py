"""`ser features` under kill -9 at random moments, and twice at once on one store: the rows of a quiet run."""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ser.cache.store import open_store
from ser.cache.verify import verify
from ser.tests.stand_in_corpus import contents, parts, run, write_corpus

FEATURES = "logmel,mfcc"  # of a process that is soon at work
SECONDS = 4.0  # of audio to a part
BACKENDS = ("zarr", "hdf5")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_kills_at_random_moments_cost_only_what_was_in_flight(tmp_path: Path, kills: int) -> None:
    """What is published stays as it was, whichever backend wrote it; a store that is complete is begun anew."""
    corpus, store = write_corpus(tmp_path / "corpus", ["words"] * 20, [1.0] * 20), tmp_path / "store"
    run(corpus, tmp_path / "quiet", FEATURES, part_seconds=SECONDS)
    whole, dice, with_parts = contents(tmp_path / "quiet"), random.Random(kills), 0

    def start() -> subprocess.Popen[bytes]:
        words = ["features", corpus, "--features", FEATURES, "--store", store, "--part-seconds", SECONDS]
        words += ["--backend", dice.choice(BACKENDS), "--json"]
        return subprocess.Popen([sys.executable, "-m", "ser", *map(str, words)], stdout=subprocess.DEVNULL)

    for _ in range(kills):
        before, more = parts(store), dice.randrange(4)
        command = start()
        while len(parts(store)) < len(before) + more and command.poll() is None:
            time.sleep(0.002)
        time.sleep(dice.random() * 0.05)
        command.kill()
        command.wait()
        assert before.items() <= parts(store).items(), "a published part is gone or was written again"
        if (store / "manifests").exists():
            assert not [one for one in verify(open_store(store)) if one.problem]
        with_parts += len(parts(store)) > len(before)
        if len(parts(store)) == len(parts(tmp_path / "quiet")):
            shutil.rmtree(store)
    assert [command.wait() for command in (start(), start())] == [0, 0]
    assert contents(store) == whole and (kills < 100 or with_parts > 50)
