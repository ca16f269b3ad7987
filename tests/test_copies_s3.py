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
from click.testing import Result

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
    server.url = f"s3://{bucket}/store"
    server.done = []
    yield server
    server.fault = None


def parts_of(store: Path) -> dict[Path, bytes]:
    """Every file of every part."""
    files = {}
    for file in store.glob("*/*/parts/**/*"):
        if file.is_file():
            files[file.relative_to(store)] = file.read_bytes()
    return files


def whole(path: Path, like: Store) -> bool:
    """Whether the store at a path is sound and has every part of another, bit for bit."""
    assert not [checked for checked in verify(open_store(path)) if checked.problem]

    mine = parts_of(path)
    theirs = parts_of(like.path)
    assert mine.items() <= theirs.items()
    return mine == theirs


def killed(server: Faulty, words: list[Any], at: int, method: str) -> bool:
    """Run a command, which is killed at a request; True if it came through."""
    number = itertools.count(1)

    def fault(command: str, path: str) -> None:
        if command == method and next(number) == at:
            run.send_signal(signal.SIGKILL)
            run.wait()

    server.fault = fault
    command = [sys.executable, "-m", "ser", *map(str, words)]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    code = run.wait()
    server.fault = None
    return code == 0


def at_first(*kinds: str | None) -> Callable[[str, str], str | None]:
    """What happens to requests in turn; when one is asked again, it is answered."""
    turns = itertools.cycle(kinds)
    seen: set[tuple[str, str]] = set()

    def fault(method: str, path: str) -> str | None:
        again = (method, path) in seen
        seen.add((method, path))
        return None if again else next(turns)

    return fault


def run_push(url: str, store: Path, *options: str) -> Result:
    return ser("cache", "push", url, "--store", store, *options)


def run_pull(url: str, store: Path) -> Result:
    return ser("cache", "pull", url, "--store", store)


def test_a_kill_at_any_request_costs_only_what_was_in_flight(s3: Faulty, tmp_path: Path) -> None:
    store, *_ = sample_store(tmp_path / "here", "zarr")
    there = tmp_path / "there"
    push_words = ["cache", "push", s3.url, "--store", store.path]
    pull_words = ["cache", "pull", s3.url, "--store", there]

    # Each file of data is put once, however often the push is killed.
    for at in (2, 5):
        assert not killed(s3, push_words, at, "PUT")
    assert run_push(s3.url, store.path).exit_code == 0
    puts = Counter(path for method, path in s3.done if method == "PUT" and "/data." in path)
    files = 0
    for feature in store.features():
        for part in feature.parts():
            files += len(part.record.files)
    assert len(puts) == files
    assert set(puts.values()) == {1}

    assert not killed(s3, pull_words, 6, "GET")
    assert not (there / "manifests").exists() or not whole(there, store)
    assert run_pull(s3.url, there).exit_code == 0
    assert whole(there, store)

    before = len(s3.done)
    assert '"parts": 0' in run_push(s3.url, store.path, "--json").stdout
    assert not [path for method, path in s3.done[before:] if method == "PUT"]


def test_what_is_lost_or_cut_on_the_server_is_mended_by_replace(s3: Faulty, tmp_path: Path) -> None:
    store, *_ = sample_store(tmp_path / "here", "zarr")
    assert run_push(s3.url, store.path).exit_code == 0
    server_files = fsspec.filesystem("s3", skip_instance_cache=True)
    lost, cut, *_ = [path for path in server_files.find(s3.url) if "/data." in path]
    server_files.rm(lost)
    server_files.pipe(cut, b"cut")

    assert "push URL --replace" in run_pull(s3.url, tmp_path / "lacking").stderr

    assert run_push(s3.url, store.path, "--replace").exit_code == 0
    assert run_pull(s3.url, tmp_path / "mended").exit_code == 0
    assert whole(tmp_path / "mended", store)


def test_faults_on_the_way_are_asked_again_or_one_sentence(s3: Faulty, tmp_path: Path) -> None:
    store, *_ = sample_store(tmp_path / "here", "zarr", count=6)

    s3.fault = at_first("500", None, None, "lost", None, None)
    assert run_push(s3.url, store.path).exit_code == 0

    s3.fault = at_first("500", None, "cut", None, "slow", None)
    done = run_pull(s3.url, tmp_path / "there")
    assert done.exit_code == 0, done.stderr
    assert whole(tmp_path / "there", store), done.stderr

    s3.fault = lambda method, path: "short" if "/values/c/" in path else None
    sentence = run_pull(s3.url, tmp_path / "other").stderr.splitlines()[-1]
    assert "values/c/" in sentence
    assert not whole(tmp_path / "other", store)

    s3.fault = lambda method, path: "skewed"
    message = run_pull(s3.url, tmp_path / "late").stderr
    assert "access is denied" in message
    assert "clock" in message
    assert "secret" not in message.lower()
    assert message.count("\n") == 1
    assert not (tmp_path / "late").exists()


def test_two_pushers_at_once_never_mix_their_numbers(s3: Faulty, tmp_path: Path) -> None:
    """Parts of the same names with other numbers, as two machines compute them, and a feature that
    one alone has.
    """
    first, feature, manifest, arrays = sample_store(tmp_path / "first", "zarr", count=6)
    second = new_store(tmp_path / "second", manifest)
    others = {id_: array + 1 for id_, array in arrays.items()}
    fill(second.add(feature.spec), manifest, "zarr", others)
    sample_store(tmp_path / "second", "zarr", count=6, level="utterance")

    with ThreadPoolExecutor() as pool:
        pushes = [pool.submit(Push(store, s3.url).run) for store in (first, second)]
    faults = [str(push.exception()) for push in pushes if push.exception()]
    assert all("another push has begun" in fault for fault in faults), faults

    # Each goes on, with what the other one has.
    for store in (first, second):
        Push(store, s3.url).run()
    assert run_pull(s3.url, tmp_path / "got").exit_code == 0

    got = open_store(tmp_path / "got")
    assert not [checked for checked in verify(got) if checked.problem]
    assert len(got.features()) == 2
    for pulled in got.features():
        assert pulled.complete(manifest)


def test_a_card_that_another_push_writes_meanwhile_ends_none(s3: Faulty, tmp_path: Path) -> None:
    """Whenever it does: while it is looked at, before it is read, before it is put."""
    store, *_ = sample_store(tmp_path / "here", "zarr", count=2)
    server_files = fsspec.filesystem("s3", skip_instance_cache=True)
    card = f"{s3.url}/README.md"

    def write_card_at(at: int) -> Callable[[str, str], None]:
        """A fault: at this request for the card, another push has written it."""
        number = itertools.count(1)

        def fault(method: str, path: str) -> None:
            if path.endswith("/README.md") and next(number) == at:
                server_files.pipe(card, b"<!-- written by `ser cache push` %d" % at)

        return fault

    for at in range(1, 5):
        s3.fault = write_card_at(at)
        assert run_push(s3.url, store.path).exit_code == 0
        assert server_files.cat(card).startswith(b"---")


def test_what_is_not_there_or_not_allowed_is_one_sentence(
    s3: Faulty, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, *_ = sample_store(tmp_path / "here", "zarr", count=2)
    assert "no such bucket" in run_push("s3://no-such-bucket/x", store.path).stderr
    assert "nothing is published" in run_pull(s3.url, tmp_path / "x").stderr

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "cannot be reached" in run_pull(s3.url, tmp_path / "x").stderr

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    assert "come from the environment" in run_pull(s3.url, tmp_path / "x").stderr


RECIPE = """\
[experiment]
store = "{url}"
epochs = 1
folds = 1
[[cell]]
name = "a"
features = "is13"
fusion = "audio"
"""


def test_training_at_a_url_pulls_what_it_needs(
    s3: Faulty, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SER_STORES", str(tmp_path / "cache"))
    assert run_push(s3.url, store).exit_code == 0
    options = ["--features", "is13", "--fusion", "audio", "--epochs", 1, "--folds", 1]
    out = ["--out", tmp_path / "runs"]

    done = ser("train", "--store", s3.url, *options, *out)
    assert done.exit_code == 0, done.stderr
    assert "MB to pull" in done.stderr

    [pulled] = (tmp_path / "cache").iterdir()
    assert [feature.spec.name for feature in open_store(pulled).features()] == ["is13"]
    assert ser("report", tmp_path / "runs").exit_code == 0

    recipe = tmp_path / "mine.toml"
    recipe.write_text(RECIPE.format(url=s3.url))
    done = ser("sweep", recipe, *out, "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert "0 parts, 0.0 MB to pull" in done.stderr
    assert "1 finished" in done.stderr

    done = ser("sweep", recipe, "--features", "mpnet", *out, "--dry-run")
    assert done.exit_code == 2
    assert "bring it there by `ser cache pull`" in done.stderr
