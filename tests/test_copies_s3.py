"""Push to and pull from a real S3 server, with everything going wrong on the way."""

import itertools
import os
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from ser.cache.store import Store, open_store
from ser.cache.tools.push import Push
from ser.cache.tools.verify import verify
from ser.tests.command_line import ser
from ser.tests.s3_server import Faulty, s3_server
from ser.tests.store_samples import fill, new_store, sample_store


@pytest.fixture(scope="module")
def server() -> Iterator[Faulty]:
    """One server for all tests: each has a bucket of its own."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with s3_server() as faulty:
        yield faulty


@pytest.fixture
def s3(
    server: Faulty, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Faulty]:
    """The server without faults, which is asked again at once; `url` is a place in a new bucket."""
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda **_: 0.0)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASECRETKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    bucket = f"bucket-{secrets.token_hex(8)}"
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
    server.url, server.done = f"s3://{bucket}/store", []
    yield server
    server.fault = None


def whole(path: Path, like: Store) -> bool:
    """Whether the store at a path is sound and has every part of another, bit for bit."""
    assert not [one for one in verify(open_store(path)) if one.problem]
    mine, theirs = (
        {
            file.relative_to(root): file.read_bytes()
            for file in root.glob("*/*/parts/**/*")
            if file.is_file()
        }
        for root in (path, like.path)
    )
    assert mine.items() <= theirs.items()
    return mine == theirs


def killed(server: Faulty, words: list[Any], at: int, method: str) -> bool:
    """Run a command, which is killed at a request; True if it came through."""
    number, nowhere = itertools.count(1), subprocess.DEVNULL

    def fault(command: str, path: str) -> None:
        if command == method and next(number) == at:
            run.send_signal(signal.SIGKILL)
            run.wait()

    server.fault = fault
    run = subprocess.Popen(
        [sys.executable, "-m", "ser", *map(str, words)], stdout=nowhere, stderr=nowhere
    )
    code = run.wait()
    server.fault = None
    return code == 0


def at_first(*kinds: str | None) -> Callable[[str, str], str | None]:
    """What happens to requests in turn; when one is asked again, it is answered."""
    turns, asked = itertools.cycle(kinds), set[tuple[str, str]]()

    def fault(method: str, path: str) -> str | None:
        again = (method, path) in asked
        asked.add((method, path))
        return None if again else next(turns)

    return fault


def test_a_kill_at_any_request_costs_only_what_was_in_flight(s3: Faulty, tmp_path: Path) -> None:
    store, *_ = sample_store(tmp_path / "here", "zarr")
    push, pull = (["cache", what, s3.url, "--store"] for what in ("push", "pull"))
    for at in (2, 5):
        assert not killed(s3, [*push, store.path], at, "PUT")
    assert ser(*push, store.path).exit_code == 0
    data = Counter(path for method, path in s3.done if method == "PUT" and "/data." in path)
    assert len(data) == sum(len(p.record.files) for f in store.features() for p in f.parts())
    assert set(data.values()) == {1}
    assert not killed(s3, [*pull, tmp_path / "there"], 6, "GET")
    assert not (tmp_path / "there/manifests").exists() or not whole(tmp_path / "there", store)
    assert ser(*pull, tmp_path / "there").exit_code == 0
    assert whole(tmp_path / "there", store)
    before = len(s3.done)
    assert '"parts": 0' in ser(*push, store.path, "--json").stdout
    assert not [path for method, path in s3.done[before:] if method == "PUT"]
    there = fsspec.filesystem("s3", skip_instance_cache=True)
    lost, cut, *_ = [path for path in there.find(s3.url) if "/data." in path]
    there.rm(lost)
    there.pipe(cut, b"cut")
    assert "push --replace" in ser(*pull, tmp_path / "lacking").stderr
    assert (
        ser(*push, store.path, "--replace").exit_code == 0
        and ser(*pull, tmp_path / "mended").exit_code == 0
    )
    assert whole(tmp_path / "mended", store)


def test_faults_on_the_way_are_asked_again_or_one_sentence(s3: Faulty, tmp_path: Path) -> None:
    store, *_ = sample_store(tmp_path / "here", "zarr", count=6)
    push, pull = (["cache", what, s3.url, "--store"] for what in ("push", "pull"))
    s3.fault = at_first("500", None, None, "lost", None, None)
    assert ser(*push, store.path).exit_code == 0
    s3.fault = at_first("500", None, "cut", None, "slow", None)
    done = ser(*pull, tmp_path / "there")
    assert done.exit_code == 0 and whole(tmp_path / "there", store), done.stderr
    s3.fault = lambda method, path: "short" if "/values/c/" in path else None
    words = ser(*pull, tmp_path / "other").stderr.splitlines()[-1]
    assert "values/c/" in words and not whole(tmp_path / "other", store)
    s3.fault = lambda method, path: "skewed"
    words = ser(*pull, tmp_path / "late").stderr
    assert "access is denied" in words and "clock" in words and "secret" not in words.lower()
    assert words.count("\n") == 1 and not (tmp_path / "late").exists()


def test_two_pushers_at_once_never_mix_their_numbers(s3: Faulty, tmp_path: Path) -> None:
    """Parts of the same names with other numbers, as two machines compute them, and a feature that
    one alone has.
    """
    first, feature, manifest, arrays = sample_store(tmp_path / "first", "zarr", count=6)
    second = new_store(tmp_path / "second", manifest)
    fill(
        second.add(feature.spec),
        manifest,
        "zarr",
        {id_: array + 1 for id_, array in arrays.items()},
    )
    sample_store(tmp_path / "second", "zarr", count=6, level="utterance")
    with ThreadPoolExecutor() as pool:
        pushes = [
            pool.submit(lambda store: Push(store, s3.url).run(), store) for store in (first, second)
        ]
    faults = [str(push.exception()) for push in pushes if push.exception()]
    assert all("another push has begun" in fault for fault in faults), faults
    for store in (first, second):  # each goes on, with what the other one has
        Push(store, s3.url).run()
    assert ser("cache", "pull", s3.url, "--store", tmp_path / "got").exit_code == 0
    got = open_store(tmp_path / "got")
    assert not [one for one in verify(got) if one.problem]
    assert len(got.features()) == 2 and all(one.complete(manifest) for one in got.features())


def test_a_card_that_another_push_writes_meanwhile_ends_none(s3: Faulty, tmp_path: Path) -> None:
    """Whenever it does: while it is looked at, before it is read, before it is put."""
    store, *_ = sample_store(tmp_path / "here", "zarr", count=2)
    there, card = fsspec.filesystem("s3", skip_instance_cache=True), f"{s3.url}/README.md"
    for at in range(1, 5):
        number = itertools.count(1)

        def fault(method: str, path: str, number: Any = number, at: int = at) -> None:
            if path.endswith("/README.md") and next(number) == at:
                there.pipe(card, b"<!-- written by `ser cache push` %d" % at)

        s3.fault = fault
        assert ser("cache", "push", s3.url, "--store", store.path).exit_code == 0
        assert there.cat(card).startswith(b"---")


def test_what_is_not_there_or_not_allowed_is_one_sentence(
    s3: Faulty, monkeypatch: Any, tmp_path: Path
) -> None:
    store, *_ = sample_store(tmp_path / "here", "zarr", count=2)
    assert (
        "no such bucket"
        in ser("cache", "push", "s3://no-such-bucket/x", "--store", store.path).stderr
    )
    assert "nothing is published" in ser("cache", "pull", s3.url, "--store", tmp_path / "x").stderr
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "cannot be reached" in ser("cache", "pull", s3.url, "--store", tmp_path / "x").stderr
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    assert (
        "come from the environment"
        in ser("cache", "pull", s3.url, "--store", tmp_path / "x").stderr
    )


def test_training_at_a_url_pulls_what_it_needs(
    s3: Faulty, store: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("SER_STORES", str(tmp_path / "cache"))
    assert ser("cache", "push", s3.url, "--store", store).exit_code == 0
    asked = [
        "--features",
        "is13",
        "--fusion",
        "audio",
        "--epochs",
        1,
        "--folds",
        1,
        "--out",
        tmp_path / "runs",
    ]
    done = ser("train", "--store", s3.url, *asked)
    assert done.exit_code == 0 and "MB to pull" in done.stderr, done.stderr
    (pulled,) = (tmp_path / "cache").iterdir()
    assert [feature.spec.name for feature in open_store(pulled).features()] == ["is13"]
    assert ser("report", tmp_path / "runs").exit_code == 0
    recipe = f'[experiment]\nstore = "{s3.url}"\nepochs = 1\nfolds = 1\n[[cell]]\nname = "a"\nfeatures = "is13"\n'
    (tmp_path / "mine.toml").write_text(recipe + 'fusion = "audio"\n')
    done = ser("sweep", tmp_path / "mine.toml", "--out", tmp_path / "runs", "--dry-run")
    assert (
        done.exit_code == 0
        and "0 parts, 0.0 MB to pull" in done.stderr
        and "1 finished" in done.stderr
    ), done.stderr
    done = ser(
        "sweep",
        tmp_path / "mine.toml",
        "--features",
        "mpnet",
        "--out",
        tmp_path / "runs",
        "--dry-run",
    )
    assert done.exit_code == 2 and "bring it there by `ser cache pull`" in done.stderr
