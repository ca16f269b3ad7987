"""From a Hub on the loopback to features: downloads, conversions on the way, and their faults."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants, save_torch_state_dict
from safetensors.torch import load_file

from ser.cache.store import open_store
from ser.errors import StoreError, WeightsError
from ser.extract.registry import FEATURES
from ser.tests.command_line import ser
from ser.tests.hub_server import StandInHub
from ser.tests.newcomer import shrink
from ser.tests.small_disk import fill, small_disk
from ser.tests.test_weights import Canary, as_pickle
from ser.weights import hub as hub_client
from ser.weights.convert import convert_once
from ser.weights.demo import write_random_checkpoint
from ser.weights.find import find_checkpoint, open_source
from ser.weights.hub import download
from ser.weights.kept import find_kept, list_kept
from ser.weights.source import find_source

# In the order of the default features.
ENCODERS = ("hubert", "mpnet", "bert")
WORDS = ["what", "is", "it", "leave", "me", "alone"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint of each encoder, as safetensors."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: write_random_checkpoint(folder / name, name, WORDS) for name in ENCODERS}


@pytest.fixture(scope="module")
def pickles(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The same as pickles."""
    folder = tmp_path_factory.mktemp("pickles")
    copies = {
        name: Path(shutil.copytree(path, folder / name)) for name, path in checkpoints.items()
    }
    return {name: as_pickle(copy) for name, copy in copies.items()}


@pytest.fixture(scope="module")
def corpus(demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo corpus in small."""
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    shutil.copytree(demo_corpus, folder)
    shrink(folder)
    return folder


@pytest.fixture
def published(
    hub: StandInHub, checkpoints: dict[str, Path], pickles: dict[str, Path]
) -> StandInHub:
    """A Hub with HuBERT and MPNet as pickles alone, and BERT as safetensors.

    A pull request proposes safetensors of HuBERT, with other weights.
    """
    proposed = {"model.safetensors": (checkpoints["bert"] / "model.safetensors").read_bytes()}
    hub.publish(model_of("hubert"), pickles["hubert"], pull_requests={7: proposed})
    hub.publish(model_of("mpnet"), pickles["mpnet"])
    hub.publish(model_of("bert"), checkpoints["bert"])
    return hub


def model_of(feature: str) -> str:
    """The id of a feature's default checkpoint."""
    return str(FEATURES[feature].model)


def extract(corpus: Path, store: Path, *words: object) -> Any:
    """`ser features` on a few utterances."""
    return ser("features", corpus, "--store", store, "--limit", 6, *words)


def digests(store: Path) -> dict[str, Any]:
    """The digest of the checkpoint of each feature in a store."""
    opened = open_store(store)
    return {name: opened.feature(name).spec.checkpoint["digest"] for name in ENCODERS}


# One command from a corpus to all default features


def test_one_command_downloads_converts_and_extracts(
    published: StandInHub, checkpoints: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    """In a process of its own, with nothing but HF_ENDPOINT to say where the Hub is."""
    command = [sys.executable, "-m", "ser", "features", corpus, "--limit", "20"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, "--store", tmp_path / "s"], env=environment, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    for name in ENCODERS:
        expected = find_checkpoint(checkpoints[name]).digest
        assert digests(tmp_path / "s")[name] == expected

    # What will be done is said before it is done.
    said = done.stderr
    host = f"127.0.0.1:{published.port}"
    steps = [
        f"to download from {host}: hubert",
        "to convert",
        "once its weights",
        "100%",
        "converting it",
    ]
    places = [said.index(step) for step in steps]
    assert places == sorted(places), said
    assert "next: ser train --features hubert+mpnet --fusion linear" in said
    assert "such as --fusion mit" in said
    assert not [path for _, path in published.asked if "refs" in path]
    assert "model.safetensors" in published.downloads()
    assert sorted(kept.model for kept in list_kept()) == sorted(map(model_of, ENCODERS[:2]))

    # Once: now nothing is asked, converted or computed.
    published.asked.clear()
    again = ser("features", corpus, "--store", tmp_path / "s", "--limit", 20)
    assert again.exit_code == 0
    assert published.asked == []
    assert "to convert" not in again.stderr
    assert "done in" in again.stdout

    provenance = json.loads(
        ser("cache", "info", "hubert", "--store", tmp_path / "s", "--json").stdout
    )["provenance"]
    assert provenance["converted_from"] == "pytorch_model.bin"
    assert provenance["model"] == model_of("hubert")


def test_what_is_refused_is_left_out_and_the_named_command_completes_it(
    published: StandInHub, corpus: Path, tmp_path: Path, in_this_process: None
) -> None:
    done = extract(corpus, tmp_path / "s", "--no-convert", "--part-seconds", 60)

    assert done.exit_code == 3
    assert "pytorch_model.bin" not in published.downloads()
    before, _, after = done.stderr.partition("decode")
    assert "hubert: left out, its weights are not here" in before
    assert "--no-convert refuses" in before
    last = after.splitlines()[-1]
    assert last.startswith("hubert, mpnet left out;")

    [command] = [part for part in last.split("`") if part.startswith("ser ")]
    words = shlex.split(command)[1:]
    assert words[words.index("--part-seconds") + 1] == "60.0"
    completed = ser(*words)
    assert completed.exit_code == 0, completed.output
    assert set(digests(tmp_path / "s")) == set(ENCODERS)

    # What is converted is a pickle no more.
    assert extract(corpus, tmp_path / "s", "--no-convert").exit_code == 0


def test_nothing_is_computed_where_it_was_asked_for_by_name(
    published: StandInHub, corpus: Path, tmp_path: Path
) -> None:
    done = extract(corpus, tmp_path / "s", "--no-convert", "--features", "hubert,bert,logmel")

    assert done.exit_code == 2
    assert "ser: hubert: facebook/hubert-base-ls960: is published as a pickle alone" in done.stderr
    assert published.downloads() == []
    assert not (tmp_path / "s").exists()


def test_a_dry_run_says_what_will_be_fetched_and_fetches_configs_alone(
    published: StandInHub, corpus: Path, tmp_path: Path
) -> None:
    done = extract(corpus, tmp_path / "s", "--dry-run", "--json")
    plan = json.loads(done.stdout)

    assert done.exit_code == 0
    sizes = published.models[model_of("hubert")].main
    assert plan["weights"]["hubert"]["convert"] == len(sizes["pytorch_model.bin"])
    assert plan["weights"]["hubert"]["download"] >= len(sizes["pytorch_model.bin"])
    assert plan["weights"]["bert"]["convert"] == 0
    assert set(plan["features"]) == {*ENCODERS, "is13", "logmel"}
    assert plan["features"]["hubert"]["bytes"] > 0
    assert {name for name in published.downloads() if "config" not in name} == set()
    assert not (tmp_path / "s").exists()

    # In words, as before a run; the estimate is that of a run.
    shown = extract(corpus, tmp_path / "s", "--dry-run").stdout
    assert "to convert, since they are published as pickles alone: hubert" in shown
    assert "hubert: 6 to compute once its weights are here" in shown


def test_a_pickle_that_would_run_code_is_left_out_and_does_not_run(
    hub: StandInHub, pickles: dict[str, Path], tmp_path: Path, in_this_process: None
) -> None:
    canary = tmp_path / "ran"
    folder = Path(shutil.copytree(pickles["hubert"], tmp_path / "evil"))
    torch.save({"a": Canary(canary)}, folder / "pytorch_model.bin")
    hub.publish("some/evil", folder)

    with pytest.raises(WeightsError, match=r"some/evil: .* could run code; nothing was written"):
        find_checkpoint("some/evil")
    assert not canary.exists()
    assert list_kept() == []


# Two processes, killed ones, and full disks


CONVERT = """
import sys, logging
from ser.weights.find import find_checkpoint
print(find_checkpoint("some/pickled").digest)
"""


@pytest.mark.slow
def test_a_killed_conversion_is_made_again_and_once_by_two_processes(
    hub: StandInHub,
    checkpoints: dict[str, Path],
    pickles: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """This process is the second of the two."""
    hub.publish("some/pickled", pickles["hubert"])

    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", CONVERT],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    place = Path(os.environ["SER_CACHE"]) / "converted" / "some--pickled"

    def begun() -> set[Path]:
        return set(place.glob(".ser-tmp/tmp/*/made"))

    killed = start()
    while not begun():
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert find_kept("some/pickled") is None

    expected = find_checkpoint(checkpoints["hubert"]).digest
    left_behind = begun()
    other = start()
    while not begun() - left_behind:
        assert other.poll() is None
        time.sleep(0.02)
    assert find_checkpoint("some/pickled").digest == expected
    answer, said = other.communicate()
    assert answer.strip() == expected, said
    assert said.count("converting it into") == 1, said
    assert "converting it into" not in caplog.text
    assert not (place / ".ser-tmp").exists()
    assert find_kept("some/pickled") is not None


def test_a_full_disk_is_said_before_and_while_converting(
    hub: StandInHub,
    pickles: dict[str, Path],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_this_process: None,
) -> None:
    hub.publish(model_of("hubert"), pickles["hubert"])
    with small_disk(tmp_path / "disk") as disk:
        monkeypatch.setenv("SER_CACHE", str(disk / "ser"))
        file = fill(disk, but=100_000)
        done = extract(corpus, tmp_path / "s", "--features", "hubert")
        assert done.exit_code == 1
        assert "make room, or let HF_HOME (downloads) or SER_CACHE" in done.stderr
        assert hub.downloads() == []

        snapshot = download(model_of("hubert"), ["pytorch_model.bin", "config.json"], 0, "")
        with pytest.raises(StoreError, match=r"the disk is full .*while converting"):
            convert_once(model_of("hubert"), snapshot)
        assert find_kept(model_of("hubert")) is None

        file.unlink()
        assert convert_once(model_of("hubert"), snapshot).is_relative_to(disk)


def test_a_full_disk_is_said_while_downloading(
    hub: StandInHub, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("some/hubert", checkpoints["hubert"])
    with small_disk(tmp_path / "disk") as disk:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(disk / "hub"))
        fill(disk, but=100_000)
        with pytest.raises(StoreError, match="the disk is full while downloading some/hubert"):
            find_checkpoint("some/hubert")


# What comes over a network, and how it fails


def test_shards_are_downloaded_with_their_index_alone(
    hub: StandInHub, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoints["hubert"], tmp_path / "shards"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_torch_state_dict(tensors, folder, max_shard_size="100KB")
    (folder / "pytorch_model.bin").write_bytes(b"not opened")
    hub.publish("some/hubert", folder)

    found = find_checkpoint("some/hubert")
    assert found.digest == find_checkpoint(checkpoints["hubert"]).digest
    assert found.converted_from == ""
    names = hub.downloads()
    assert len([name for name in names if name.startswith("model-")]) > 2
    assert "pytorch_model.bin" not in names


def test_a_download_that_is_cut_goes_on_where_it_was(
    hub: StandInHub, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the client keeps of a connection that breaks are whole pieces of this size.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.publish("some/hubert", checkpoints["hubert"])
    hub.fault = first_time("model.safetensors", "cut")

    found = find_checkpoint("some/hubert")
    assert found.digest == find_checkpoint(checkpoints["hubert"]).digest
    half = (checkpoints["hubert"] / "model.safetensors").stat().st_size // 2
    assert hub.ranges == [f"bytes={half - half % 10_000}-"]


def first_time(ending: str, fault: str) -> Callable[[str, str], str | None]:
    """A fault of the first request for the content of a file."""
    faults = [fault]

    def happens(method: str, path: str) -> str | None:
        if method == "GET" and path.endswith(ending) and faults:
            return faults.pop()
        return None

    return happens


def test_the_progress_of_a_slow_download_is_told_in_bytes(
    hub: StandInHub, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "LOOK_EVERY", 0.02)
    # Else the client waits for a whole file before it writes it.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.publish("some/hubert", checkpoints["hubert"])
    hub.fault = lambda method, path: "slow"

    told: list[tuple[str, int, int]] = []
    source = find_source("some/hubert", "")
    open_source(source, lambda *words: told.append(words))

    assert {(name, total) for name, _, total in told} == {("some/hubert", source.download)}
    done = [bytes_ for _, bytes_, _ in told]
    assert done == sorted(done)
    assert done[-1] == source.download
    between = [bytes_ for bytes_ in done if 0 < bytes_ < source.download]
    assert len(set(between)) > 2, done


def test_a_mirror_that_sends_elsewhere_does_not_pass_the_token_on(
    hub: StandInHub, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.publish("some/hubert", checkpoints["hubert"])
    hub.fault = lambda method, path: "elsewhere" if path.endswith(".safetensors") else None

    assert find_checkpoint("some/hubert").model == "some/hubert"
    by_host: dict[str, set[str | None]] = {}
    for host, token in hub.tokens:
        by_host.setdefault(host.partition(":")[0], set()).add(token)
    assert by_host["127.0.0.1"] == {"Bearer hf_secret"}
    assert by_host["localhost"] == {None}


def test_too_many_requests_for_a_file_are_waited_for(
    hub: StandInHub, checkpoints: dict[str, Path]
) -> None:
    hub.publish("some/hubert", checkpoints["hubert"])
    hub.fault = first_time("model.safetensors", "429")

    assert find_checkpoint("some/hubert").model == "some/hubert"
    assert hub.downloads().count("model.safetensors") == 2


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        pytest.param("429", "takes no more requests for now (429): wait 1 s", id="too many"),
        pytest.param("503", "answered with 503: run the same command again later", id="down"),
        pytest.param("silent", "did not answer in 0.2 s: run the same command again", id="silent"),
        pytest.param("trickling", "did not answer in 0.6 s: run the same", id="trickling"),
        pytest.param("portal", "did not answer as a Hub does: check HF_ENDPOINT", id="no Hub"),
        pytest.param(None, "has no such model, or hides it: check the name", id="unknown"),
    ],
)
def test_what_the_hub_does_not_give_is_one_sentence(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, fault: str | None, sentence: str
) -> None:
    monkeypatch.setattr(hub_client, "PATIENCE", 0.2)
    monkeypatch.setattr(hub_client, "ANSWER_WITHIN", 0.6)
    hub.fault = lambda method, path: fault

    with pytest.raises(WeightsError) as refused:
        find_checkpoint("some/hubert", "--model hubert=PATH")
    message = str(refused.value)
    assert message.startswith("some/hubert: ")
    assert f"127.0.0.1:{hub.port} {sentence}" in message
    assert message.endswith("and point at it with --model hubert=PATH")
    assert "\n" not in message


def test_a_gated_model_is_left_out_before_anything_is_downloaded(
    published: StandInHub, corpus: Path, tmp_path: Path
) -> None:
    published.models[model_of("hubert")].gated = True
    done = extract(corpus, tmp_path / "s", "--features", "hubert,bert")

    assert done.exit_code == 2
    assert f"is gated: accept its conditions at {published.url}/{model_of('hubert')}" in done.stderr
    assert "or HF_TOKEN" in done.stderr
    assert {name for name in published.downloads() if "config" not in name} == set()
    assert not (tmp_path / "s").exists()


def test_a_repository_without_weights_is_named(hub: StandInHub, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "tf_model.h5").write_bytes(b"of another library")
    hub.publish("some/tf", tmp_path / "model")

    with pytest.raises(WeightsError, match=r"safetensors or one pytorch_model\.bin"):
        find_checkpoint("some/tf")
    assert hub.downloads() == []


@pytest.mark.parametrize("name", ["../etc", "a/b/c", "a--b/c", "some/..", "some\\hubert"])
def test_an_id_is_never_a_path(hub: StandInHub, name: str) -> None:
    with pytest.raises(WeightsError, match="it is not a Hugging Face id either"):
        find_checkpoint(name)
    assert hub.asked == []


def test_offline_nothing_is_tried(
    published: StandInHub, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: tried.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **more: tried.append(words) or [])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    done = extract(corpus, tmp_path / "s")
    assert done.exit_code == 3
    assert tried == []
    assert published.asked == []
    assert done.stderr.count("HF_HUB_OFFLINE is set") == 2 * len(ENCODERS)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("hubert, mpnet, bert left out; once that is seen to, `ser features")
    assert set(json.loads(ser("cache", "list", "--store", tmp_path / "s", "--json").stdout)[0])
