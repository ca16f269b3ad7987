"""Extraction killed at random moments, and two at once on one store: only what was in flight."""

import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from ser.cache.store import open_store
from ser.cache.tools.verify import verify
from ser.tests.stand_in_corpus import contents, parts, run, ser_features, slow_texts, write_corpus


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("features", "kills"),
    [
        pytest.param("standin,standin2", 3, id="3 kills"),
        pytest.param("logmel,mfcc", 200, marks=pytest.mark.slow, id="200 kills"),
    ],
)
def test_kills_at_random_moments_cost_only_what_was_in_flight(
    tmp_path: Path, features: str, kills: int
) -> None:
    """What is published stays as it was, whichever backend wrote it.

    A store that is complete is begun anew.
    """
    corpus = write_corpus(tmp_path / "corpus", slow_texts(20, 0.01), [1.0] * 20)
    quiet = tmp_path / "quiet"
    store = tmp_path / "store"
    run(corpus, quiet, features)
    whole = contents(quiet)
    dice = random.Random(kills)
    kills_with_parts = 0

    def start() -> subprocess.Popen[bytes]:
        options = ("--features", features, "--backend", dice.choice(("zarr", "hdf5")), "--json")
        return subprocess.Popen(ser_features(corpus, store, 4, *options), stdout=subprocess.DEVNULL)

    for _ in range(kills):
        before = parts(store)
        target = len(before) + dice.randrange(4)
        command = start()
        while len(parts(store)) < target and command.poll() is None:
            time.sleep(0.002)
        time.sleep(dice.random() * 0.05)
        command.kill()
        command.wait()

        after = parts(store)
        assert before.items() <= after.items(), "a published part is gone or was written again"
        if (store / "manifests").exists():
            assert not [checked for checked in verify(open_store(store)) if checked.problem]
        if len(after) > len(before):
            kills_with_parts += 1
        if len(after) == len(parts(quiet)):
            shutil.rmtree(store)

    first = start()
    second = start()
    assert first.wait() == 0
    assert second.wait() == 0
    assert contents(store) == whole
    assert kills < 100 or kills_with_parts > kills / 2
