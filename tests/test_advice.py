"""What ser advises works: every `next:` and every command or option that an error names is run."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from ser.cache.spec import Spec
from ser.cache.store import open_store
from ser.commands.next_training import richer_fusion, train_options
from ser.corpus.manifest import Manifest
from ser.errors import LeakageError, WrongUse
from ser.extract.config import ExtractionConfig
from ser.extract.corpora.scan import scan_corpus
from ser.extract.run import plan
from ser.tests.command_line import ser
from ser.tests.named_commands import commands_in, next_command
from ser.tests.newcomer import shrink
from ser.tests.test_extract_encoders import SPEECH
from ser.tests.tiny_store import add_feature, make_manifest, make_rows, new_store
from ser.train.data.dev_part import Cut
from ser.train.data.labelling import apply_policy
from ser.train.data.labels import get_policy
from ser.train.data.protocols import make_folds
from ser.train.data.utterances import Utterances
from ser.weights.demo import write_random_checkpoint

# Features of utterances that are fast to compute.
FAST = "egemaps"
ALSO_FAST = "smile:set=GeMAPSv01b"

# Options that make a training small, and change nothing of what is allowed.
SMALL = ("--epochs", 1, "--folds", 1, "--set", "d_model=8", "--set", "heads=2")


# What `ser corpus` and `ser features` say


def test_from_the_demo_to_a_page_by_what_is_printed(tmp_path: Path, short_demo: None) -> None:
    """Each command is the one that the last one has named."""
    store = ["--store", tmp_path / "s"]
    made = ser("corpus", "demo", tmp_path / "demo")
    shrink(tmp_path / "demo")

    shown = ser(*next_command(made))
    assert shown.exit_code == 0, shown.output

    extracted = ser(*next_command(shown), "--features", FAST, *store)
    assert extracted.exit_code == 0, extracted.output

    trained = ser(*next_command(extracted), "--out", tmp_path / "runs")
    assert trained.exit_code == 0, trained.output

    page = tmp_path / "report.html"
    reported = ser(*next_command(trained), "--html", page)
    assert reported.exit_code == 0, reported.output
    assert page.exists()


def test_the_page_that_a_report_names(tmp_path: Path, store: Path) -> None:
    runs = tmp_path / "runs"
    train = ["train", "--features", "is13", "--fusion", "audio", "--store", store, "--out", runs]
    assert ser(*train, *SMALL).exit_code == 0

    command = next_command(ser("report", runs))
    assert command[-1] == "--open"
    page = tmp_path / "page.html"
    assert ser(*command[:-1], "--html", page).exit_code == 0
    assert page.exists()


FEW = [1, 2, 5, 10, 20, 40]
# The others are between these.
FEW_OR_SLOW = [
    pytest.param(limit, marks=() if limit in (1, 10, 20) else pytest.mark.slow) for limit in FEW
]


@pytest.mark.parametrize("limit", FEW_OR_SLOW, ids="{} utterances".format)
def test_after_a_few_utterances_training_works_or_is_not_named(
    demo_corpus: Path, tmp_path: Path, limit: int
) -> None:
    store = ["--store", tmp_path / "s"]
    extracted = ser("features", demo_corpus, "--features", FAST, "--limit", limit, *store)
    assert extracted.exit_code == 0, extracted.output

    if "next: " in extracted.stderr:
        trained = ser(*next_command(extracted), "--folds", 1, "--out", tmp_path / "runs")
        assert trained.exit_code == 0, trained.output
    else:
        assert limit < 20
        assert "extract more, with a larger --limit" in extracted.stderr


def test_after_a_few_utterances_of_both_modalities_the_named_model_trains(
    newcomer: Path, tmp_path: Path
) -> None:
    words = ["features", newcomer / "corpus", "--features", "hubert,mpnet", "--limit", 20]
    for name in ("hubert", "mpnet"):
        words += ["--model", f"{name}={newcomer / 'checkpoints' / f'{name}-random'}"]
    extracted = ser(*words, "--store", tmp_path / "s")
    assert extracted.exit_code == 0, extracted.output

    command = next_command(extracted)
    fusion = command.index("--fusion") + 1
    assert command[fusion] == "linear"
    assert re.search(r"about [\d.]+ m?s, going by a few", extracted.stderr), extracted.stderr
    linear = ser(*command, "--folds", 1, "--out", tmp_path / "runs")
    assert linear.exit_code == 0, linear.output

    # The model that has to beat it.
    assert "such as --fusion mit," in extracted.stderr
    command[fusion] = "mit"
    trained = ser(*command, *SMALL, "--out", tmp_path / "runs")
    assert trained.exit_code == 0, trained.output


@pytest.mark.parametrize(
    ("features", "richer"),
    [
        ("whisper", "audio"),
        ("whisper:layer=1,pool=mean", None),
        ("whisper:layers=all,pool=mean", None),
        ("is13", None),
        ("egemaps", None),
    ],
)
def test_a_linear_model_is_named_first(
    demo_corpus: Path, tmp_path: Path, features: str, richer: str | None
) -> None:
    """On frames as on vectors: a model of frames, which may take hours, comes after it."""
    models = {}
    if features.startswith("whisper"):
        architecture, settings = SPEECH["whisper"]
        weights = write_random_checkpoint(tmp_path / "weights", architecture, **settings)
        models = {"whisper": str(weights)}
    config = ExtractionConfig(demo_corpus, features, store=tmp_path / "features", models=models)
    planned = plan(config)

    options = train_options(planned)
    assert options is not None
    assert options[:4] == ["--features", features, "--fusion", "linear"]
    assert richer_fusion(planned) == richer


@pytest.mark.parametrize("limit", [5, 12, 20, 37], ids="{} utterances".format)
def test_a_limit_is_spread_over_sessions_and_speakers(demo_corpus: Path, limit: int) -> None:
    whole = scan_corpus(demo_corpus).manifest
    manifest = scan_corpus(demo_corpus, limit=limit).manifest
    assert len(manifest) == limit
    assert [id_ for id_ in whole.ids if id_ in manifest.ids] == manifest.ids

    for column in ("session", "speaker"):
        values, counts = np.unique(manifest.column(column), return_counts=True)
        assert len(values) == min(limit, len(set(whole.column(column))))
        assert max(counts) - min(counts) <= 2


def test_a_limit_above_the_corpus_takes_all(demo_corpus: Path) -> None:
    whole = scan_corpus(demo_corpus).manifest
    assert scan_corpus(demo_corpus, limit=100_000).manifest.ids == whole.ids


# What the protocols say


def made_manifest(count: int, **columns: Any) -> Manifest:
    """So many utterances of four classes; a column is a value, or a function of the row."""
    rows = []
    for number in range(count):
        row = {"id": f"u{number}", "label": ("ang", "neu", "sad", "hap")[number // 4 % 4]}
        for name, value in columns.items():
            row[name] = value(number) if callable(value) else value
        rows.append(row)
    return Manifest.from_rows("mine", rows)


def make_corpus(folder: Path, count: int, **columns: Any) -> Path:
    """A store with one feature of such a manifest."""
    manifest = made_manifest(count, **columns)
    rng = np.random.default_rng(0)
    spec = Spec("is13", "audio", "utterance", 12, "float32", "made-up", 1)
    vectors = list(rng.normal(size=(count, 12)).astype(np.float32))
    add_feature(new_store(folder, manifest), manifest, spec, vectors)
    return folder


CORPORA: dict[str, dict[str, Any]] = {
    "one dialogue": {"count": 80, "dialogue": "0", "speaker": lambda n: f"s{n % 20}"},
    "one speaker": {"count": 80, "speaker": "s0"},
    "nothing known": {"count": 80},
    "speakers alone": {"count": 80, "speaker": lambda n: f"s{n % 20}"},
    "two speakers": {"count": 80, "speaker": lambda n: f"s{n % 2}"},
    "one session": {"count": 80, "session": "1", "speaker": lambda n: f"s{n % 8}"},
    "its own split": {"count": 80, "session": lambda n: ("train", "test", "dev")[n % 3]},
    "sessions": {"count": 80, "session": lambda n: str(n % 5 + 1), "speaker": lambda n: f"{n % 5}"},
    "few": {"count": 16, "session": "1", "speaker": "s0"},
}
PROTOCOLS = (
    "session-out",
    "speaker-out",
    "train1234-test5",
    "script-out",
    "official",
    "random-70-20-10",
)


def can_be_cut(protocol: str, utterances: Utterances, cut: Cut) -> bool:
    try:
        folds = make_folds(protocol, utterances, cut)
    except (WrongUse, LeakageError):
        return False
    return all(len(fold.train) and len(fold.dev) and len(fold.test) for fold in folds)


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("dev", ["auto", "next"])
def test_the_protocol_that_is_named_in_place_of_one_works(corpus: str, dev: str) -> None:
    utterances = apply_policy(get_policy("4class"), made_manifest(**CORPORA[corpus]))
    for protocol in PROTOCOLS:
        try:
            make_folds(protocol, utterances, Cut(dev))
        except (LeakageError, WrongUse) as fault:
            message = str(fault)
        else:
            continue

        if "no protocol fits" in message:
            assert not any(can_be_cut(other, utterances, Cut()) for other in PROTOCOLS)
            continue

        right_dev = "auto" if "leave out dev=next" in message else dev
        right_protocol = protocol
        if "use --protocol" in message:
            [right_protocol] = re.findall(r"use --protocol (\S+)", message)
        assert can_be_cut(right_protocol, utterances, Cut(right_dev)), message


def test_one_dialogue_is_cut_by_the_protocol_that_is_named(tmp_path: Path) -> None:
    """It was sent from one protocol to the next, and from the last to itself."""
    store = make_corpus(tmp_path / "s", **CORPORA["one dialogue"])
    for protocol in ("session-out", "speaker-out"):
        refused = trained_by(store, tmp_path, "--protocol", protocol)
        assert refused.exit_code == 2
        [named] = re.findall(r"use --protocol (\S+)", refused.output)
        assert named == "random-70-20-10"

    done = trained_by(store, tmp_path, "--protocol", named)
    assert done.exit_code == 0, done.output


# What training says


def trained_by(
    store: Path, tmp_path: Path, *words: object, fusion: str = "audio:utterance"
) -> Result:
    base = ["train", "--features", "is13", "--store", store, "--out", tmp_path / "runs"]
    return ser(*base, "--fusion", fusion, *SMALL, *words)


@pytest.mark.parametrize(
    ("wrong", "says", "right"),
    [
        pytest.param(
            ["--set", "dev=none"],
            "use --select last",
            ["--set", "dev=none", "--select", "last"],
            id="no dev part",
        ),
        pytest.param(
            ["--set", "patience=3", "--select", "last"],
            "use --select val",
            ["--set", "patience=3", "--select", "val"],
            id="patience without scores",
        ),
        pytest.param(
            ["--loss", "perspective"],
            "use --loss single",
            ["--loss", "single"],
            id="a loss of two heads",
        ),
        pytest.param(
            ["--device", "cuda:7"], "use --device auto", ["--device", "auto"], id="device"
        ),
        pytest.param(
            ["--target", "vad", "--set", "vad_scale=0..1"],
            "give the scale",
            ["--target", "vad", "--set", "vad_scale=1..5"],
            id="the scale of ratings",
        ),
        pytest.param(["--lr", "1e-3"], "--set lr=1e-3", ["--set", "lr=1e-3"], id="a setting"),
        pytest.param(["--only", "scripted"], "leave --only out", [], id="a style that no id names"),
        pytest.param(["--set", "standardise_by=corpus"], "leave it out", [], id="one corpus alone"),
    ],
)
def test_the_option_that_is_named_works(
    store: Path, tmp_path: Path, wrong: list[str], says: str, right: list[str]
) -> None:
    refused = trained_by(store, tmp_path, *wrong)
    assert refused.exit_code == 2, refused.output
    assert says in refused.output

    done = trained_by(store, tmp_path, *right)
    assert done.exit_code == 0, done.output


def test_a_run_that_is_not_finished_goes_on_by_the_command_that_is_named(
    store: Path, tmp_path: Path
) -> None:
    assert trained_by(store, tmp_path).exit_code == 0
    [result] = (tmp_path / "runs").glob("*/result.json")
    result.unlink()

    refused = ser("predict", result.parent, "x.wav")
    [command] = commands_in(refused)
    assert command[:2] == ["train", "--resume"]
    assert ser(*command).exit_code == 0
    assert result.exists()


def test_a_feature_that_is_missing_is_extracted_by_the_command_that_is_named(
    newcomer: Path, tmp_path: Path
) -> None:
    """And a store, where there is none."""
    train = ["train", "--fusion", "audio", "--store", tmp_path / "s", "--out", tmp_path / "runs"]
    for feature in (FAST, ALSO_FAST):
        refused = ser(*train, "--features", feature)
        [command] = commands_in(refused)
        words = [newcomer / "corpus" if word == "CORPUS" else word for word in command]
        if "--features" not in words:
            words += ["--features", feature]
        assert ser(*words).exit_code == 0
        done = ser(*train, "--features", feature, *SMALL)
        assert done.exit_code == 0, done.output


def test_rows_that_are_missing_are_extracted_by_the_command_that_is_named(
    newcomer: Path, tmp_path: Path
) -> None:
    """Of a corpus that was whole when one of its features was not."""
    store = ["--store", tmp_path / "s"]
    extract = ["features", newcomer / "corpus", *store]
    assert ser(*extract, "--features", FAST, "--limit", 10).exit_code == 0
    assert ser(*extract, "--features", ALSO_FAST).exit_code == 0

    train = ["train", "--features", FAST, "--fusion", "audio", *store, *SMALL]
    refused = ser(*train, "--out", tmp_path / "runs")
    assert refused.exit_code == 1, refused.output
    [command] = commands_in(refused)
    words = [newcomer / "corpus" if word == "CORPUS" else word for word in command]
    assert ser(*words).exit_code == 0
    assert ser(*train, "--out", tmp_path / "runs").exit_code == 0


def test_quarantined_utterances_are_left_out_by_the_option_that_is_named(tmp_path: Path) -> None:
    manifest = make_manifest()
    store = new_store(tmp_path / "s", manifest)
    bad = manifest.column("label").index("ang")
    kept = [number for number in range(len(manifest)) if number != bad]
    add_feature(store, manifest, "is13", make_rows(manifest, "is13"), of=kept, empty=[bad])

    refused = trained_by(tmp_path / "s", tmp_path)
    assert "or leave them out with --allow-missing" in refused.output
    done = trained_by(tmp_path / "s", tmp_path, "--allow-missing")
    assert done.exit_code == 0, done.output


# What is said of a store


def test_one_of_several_corpora_is_named(tmp_path: Path) -> None:
    store = make_corpus(tmp_path / "s", **CORPORA["sessions"])
    other = Manifest.from_rows("other", make_manifest().table.to_pylist())
    open_store(store).put_manifest(other)

    refused = trained_by(store, tmp_path)
    assert "name one with --corpus: mine, other" in refused.output
    assert trained_by(store, tmp_path, "--corpus", "mine").exit_code == 0


def test_a_smaller_corpus_gives_its_reason_and_two_ways_that_work(
    newcomer: Path, tmp_path: Path
) -> None:
    store = ["--features", FAST, "--store", tmp_path / "s"]
    assert ser("features", newcomer / "corpus", *store).exit_code == 0

    corpus = Path(shutil.copytree(newcomer / "corpus", tmp_path / "corpus"))
    shutil.rmtree(corpus / "Session5")
    fewer = ["features", corpus, *store, "--on-error", "skip"]
    refused = ser(*fewer)
    assert refused.exit_code == 2, refused.output
    assert "--corpus-name of its own, or let this one take its place with --replace" in (
        refused.output
    )
    assert ser(*fewer, "--corpus-name", "few").exit_code == 3
    assert ser(*fewer, "--replace").exit_code == 3


def test_superseded_and_damaged_parts_are_mended_by_the_commands_that_are_named(
    newcomer: Path, tmp_path: Path
) -> None:
    store = ["--store", tmp_path / "s"]
    extract = ["features", newcomer / "corpus", "--features", FAST, *store]
    assert ser(*extract).exit_code == 0
    values = min((tmp_path / "s").glob("egemaps/*/parts/*/data.zarr/values/c/0/0"))
    content = bytearray(values.read_bytes())
    content[0] ^= 1
    values.write_bytes(content)

    train = ["train", "--features", FAST, "--fusion", "audio", *store, *SMALL]
    refused = ser(*train, "--out", tmp_path / "runs")
    assert refused.exit_code == 1, refused.output
    verify, features = commands_in(refused)
    assert verify == ["cache", "verify", "--repair", "--store", "STORE"]
    assert features == ["features"]

    ser(*verify[:-1], tmp_path / "s")
    assert ser(*extract).exit_code == 0
    assert ser(*train, "--out", tmp_path / "runs").exit_code == 0
