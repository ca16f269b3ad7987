"""Which tests are heavy, and fixtures that several files use.

A heavy test starts processes, a browser or a dask cluster, builds the wheel, extracts or trains the
demo, runs or converts encoders of every kind, writes graphs of ONNX, trains tables or stacks of
many runs, runs models on a pretended GPU, or searches. `make test-fast` leaves them out.
"""

import gc
import inspect
import os
import shutil
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY_FILES = (
    "test_benchmarks",
    "test_cluster",
    "test_copies_s3",
    "test_encoder_tops",
    "test_engines",
    "test_export",
    "test_extract_encoders",
    "test_faults",
    "test_finetune_audio",
    "test_fuzz",
    "test_hub",
    "test_models_on_a_gpu",
    "test_report_html",
    "test_train_together",
    "test_transcribe",
    "test_weights",
)
HEAVY_TESTS = {
    "test_a_whole_release_has_its_published_counts",
    "test_each_fold_counts_with_its_best_candidate",
    "test_every_fusion_learns_every_target",
    "test_every_table_shows_the_same_digits",
    "test_from_the_demo_to_a_page_by_what_is_printed",
    "test_published_feature_files_are_trained_on",
    "test_shards_split_all_runs_without_overlap",
    "test_the_time_is_estimated_from_the_corpus_itself",
    "test_wheel_alone_runs",
}
HEAVY_FIXTURES = {
    "browser",
    "demo_corpus",
    "demo_store",
    "fork_server",
    "newcomer",
    "processes",
    "runs",
}
PROCESSES = {
    "subprocess",
    "in_a_process",
    "multiprocessing",
    "LocalCluster",
    "start_fork_server",
    "workers",
}


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real store with small made-up features, not to be written to; see tests/tiny_store.py."""
    from ser.tests.tiny_store import make_store

    return make_store(tmp_path_factory.mktemp("tiny")).path


@pytest.fixture(scope="session")
def demo_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo corpus as `ser corpus demo` writes it, not to be written to."""
    from ser.extract.corpora.demo import write_demo
    from ser.tests.newcomer import once

    folder = once(tmp_path_factory, "corpus", lambda folder: write_demo(folder / "corpus"))
    return folder / "corpus"


@pytest.fixture
def short_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ser corpus demo` writes the first dialogue of each session alone, as `shrink` leaves it."""
    from ser.extract.corpora.demo.dialogues import draw_dialogues

    first = {}
    for dialogue in sorted(draw_dialogues(), key=lambda dialogue: dialogue.name):
        first.setdefault(dialogue.session, dialogue)
    monkeypatch.setattr(
        "ser.extract.corpora.demo.write.draw_dialogues", lambda: list(first.values())
    )


@pytest.fixture(scope="session")
def newcomer(tmp_path_factory: pytest.TempPathFactory, demo_corpus: Path) -> Path:
    """A folder with a corpus, checkpoints, features and runs, not to be written to.

    See tests/newcomer.py.
    """
    from ser.tests.newcomer import make_newcomer, once

    return once(tmp_path_factory, "newcomer", partial(make_newcomer, demo_corpus=demo_corpus))


@pytest.fixture(scope="session")
def demo_store(tmp_path_factory: pytest.TempPathFactory, newcomer: Path) -> Path:
    """The features of every recipe, beside their corpus and checkpoints, not to be written to."""
    from ser.tests.newcomer import make_recipes_store, once

    folder = once(tmp_path_factory, "demo", partial(make_recipes_store, newcomer=newcomer))
    return folder / "features"


@pytest.fixture(scope="session")
def hub_of_session() -> Iterator[Any]:
    """The one stand-in for Hugging Face's Hub; see tests/hub_server.py."""
    from ser.tests.hub_server import hub_server

    with hub_server() as hub:
        yield hub


@pytest.fixture
def hub(hub_of_session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty Hub, for this process and those that it starts, and empty caches."""
    from huggingface_hub import constants

    hub_of_session.forget()
    url = hub_of_session.url
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("SER_CACHE", str(tmp_path / "ser"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return hub_of_session


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle is opened here: the child process that opens it takes seconds to start."""
    from ser.weights import open_pickle

    def run(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        *_, folder, pickle = command
        try:
            open_pickle.main(Path(folder), pickle)
        except SystemExit as fault:
            return subprocess.CompletedProcess(command, 1, stderr=str(fault))
        except Exception:
            return subprocess.CompletedProcess(command, 1, stderr=traceback.format_exc())
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("ser.weights.convert.subprocess", SimpleNamespace(run=run))


@pytest.fixture(params=["zarr", "hdf5"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each way to store the parts of a feature."""
    return request.param


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and figures are without their drawings, which take most of the time."""
    for page in ("ser.train.report.elements", "ser.explore.page"):
        monkeypatch.setattr(f"{page}.to_svg", lambda draw, name: ("", ""))
    forms = dict.fromkeys(("pdf", "svg", "png"), b"")
    monkeypatch.setattr("ser.train.report.figure_files._drawn", lambda plot: forms)


@pytest.fixture
def double() -> Iterator[None]:
    """Everything in float64, from one seed."""
    import torch

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Those of a dask cluster: none yet, and none afterwards."""
    from ser.tests.dask_processes import DaskProcesses

    # On a busy machine a worker may take minutes to start.
    monkeypatch.setattr("ser.engines.cluster.PATIENCE", 200.0)
    started = DaskProcesses(tmp_path)
    yield started
    started.stop()


@pytest.fixture
def fork_server() -> None:
    """The process that forks workers has imported for all of them what takes long."""
    from ser.engines.fork_server import start_fork_server

    start_fork_server("ser.tests.worker_imports")


# In memory, where there is enough and its programs may run: `fsync`, which publishing is made of,
# waits for no disk.
MEMORY = Path("/dev/shm")
if (
    MEMORY.is_dir()
    and shutil.disk_usage(MEMORY).free > 8e9
    and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# A shell lets what it runs in the background ignore Ctrl-C, and so would every process that the
# tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class RootAsFolder:
    """Collects the root as a plain folder.

    The root is the package `ser`. pytest takes any folder with an `__init__.py` for a package and
    would import it once more, under the name of the checkout's folder, which may be that of another
    package. A hook of this file is called for what lies below tests/ alone, one of a plugin
    everywhere.
    """

    def pytest_collect_directory(
        self, path: Path, parent: pytest.Collector
    ) -> pytest.Collector | None:
        """The root as a `Dir`, in place of a `Package`."""
        if path == ROOT:
            return pytest.Dir.from_parent(parent, path=path)
        return None


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin, before anything is collected."""
    config.pluginmanager.register(RootAsFolder())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files that are heavy as a whole are not even imported where nothing heavy is asked for."""
    if "not heavy" in config.option.markexpr and collection_path.name.startswith(HEAVY_FILES):
        return True
    return None


def pytest_collection_finish() -> None:
    """What has been imported stays: the garbage collector looks at its many objects no more."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark what is heavy, by name or because it starts processes."""
    for item in items:
        is_named = item.path.name.startswith(HEAVY_FILES) or item.originalname in HEAVY_TESTS
        has_heavy_fixture = not HEAVY_FIXTURES.isdisjoint(item.fixturenames)
        if is_named or has_heavy_fixture or starts_processes(item.function, set()):
            item.add_marker(pytest.mark.heavy)


def starts_processes(function: Callable[..., Any], seen: set[str]) -> bool:
    """Whether a test names one of `PROCESSES`, if only as a keyword.

    Or a function of its own module that it calls, and that is not among those `seen`.
    """
    seen.add(function.__name__)
    names = names_in(function.__code__)
    if names & PROCESSES:
        return True

    for name in names - seen:
        called = function.__globals__.get(name)
        is_own = inspect.isfunction(called) and called.__module__ == function.__module__
        if is_own and starts_processes(called, seen):
            return True
    return False


def names_in(code: CodeType) -> set[str]:
    """The names and the keywords of a function's code, and of the functions within."""
    names = {*code.co_names, *code.co_varnames}
    for constant in code.co_consts:
        if isinstance(constant, tuple):
            # The keywords of a call.
            names |= set(constant)
        elif isinstance(constant, CodeType):
            names |= names_in(constant)
    return names
