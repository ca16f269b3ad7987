"""Several corpora in one run: joined under qualified names, cut by corpus, standardised and scored
each by itself.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from sklearn.metrics import f1_score, recall_score

from ser.cache.spec import Spec
from ser.cache.store import open_store
from ser.corpus.manifest import Manifest
from ser.errors import LeakageError, WrongUse
from ser.tests.command_line import printed, ser
from ser.tests.pretend_device import Gpu
from ser.tests.tiny_store import add_feature
from ser.train.data.dev_part import Cut
from ser.train.data.labelling import apply_policy
from ser.train.data.labels import get_policy
from ser.train.data.loading import load_dataset
from ser.train.data.protocols import make_folds
from ser.train.data.utterances import Utterances
from ser.train.experiment import Experiment, prepare
from ser.train.fit import fit_standardizers
from ser.train.model_file import load_model
from ser.train.report.conditions import conditions
from ser.train.report.paper import differences
from ser.train.run_folder import find_runs
from ser.train.sweep.recipe import RecipeCell

LABELS = {
    "acted": ["ang", "exc", "neu", "sad", "fru"],
    "read": ["Anger", "happy", "neutral", "boredom"],
    "third": ["ang", "neu"],
}


def rows_of(corpus: str) -> list[dict]:
    """Corpus "acted" has dialogues and sessions, the others only speakers.

    All of them count from 1 or 01.
    """
    rows = []
    for n in range(40):
        row: dict[str, Any] = {
            "id": f"u{n:02d}",
            "label": LABELS[corpus][n % len(LABELS[corpus])],
            "speaker": f"{n // 8 + 1:02d}",
            "audio": f"{n}.wav",
            "text": f"words {n % 3}",
        }
        if corpus == "acted":
            row["session"] = str(n // 8 + 1)
            row["dialogue"] = f"d{n // 4}"
            row["votes"] = [["ang"]]
        rows.append(row)
    return rows


def joined(*names: str, same_audio: bool = False) -> Utterances:
    parts = []
    for name in names:
        rows = rows_of(name)
        for row in rows:
            row["audio_sha256"] = f"{'' if same_audio else name} {row['id']}"
        parts.append(Manifest.from_rows(name, rows))
    return apply_policy(get_policy("4class"), Manifest.joined(parts))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both corpora as tables beside noise whose pitch tells the emotion, with log-mel frames."""
    folder = tmp_path_factory.mktemp("several")
    for corpus, shift in (("acted", 1.0), ("read", 3.0)):
        (folder / corpus).mkdir()
        rng = np.random.default_rng(int(shift))
        rows = rows_of(corpus)
        (folder / corpus / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
        for row in rows:
            seconds = np.arange(4000 + 16 * rng.integers(100)) / 16000
            pitch = 300 * shift * (1 + LABELS[corpus].index(row["label"]))
            tone = 0.1 * shift * np.sin(2 * np.pi * pitch * seconds)
            sound = tone + rng.normal(0, 0.01, len(seconds))
            sf.write(folder / corpus / row["audio"], sound, 16000)
        table = ["features", folder / corpus / "corpus.jsonl", "--corpus-name", corpus]
        printed(*table, "--features", "logmel", "--store", folder / "store")
    return folder / "store"


def asked(store: Path, out: Path = Path("runs"), **options) -> Experiment:
    settings = (
        "d_model=8",
        "heads=2",
        "encoder_depth=1",
        "standardise_audio=true",
        *options.pop("set", ()),
    )
    given = {"corpus": "read+acted", "protocol": "corpus-out", "epochs": 1, **options}
    return Experiment("logmel", "audio", store=store, out=out, set=settings, **given)


@pytest.mark.parametrize(
    ("protocol", "tested"),
    [
        ("corpus-out", [{"acted"}, {"read"}, {"third"}]),
        ("cross:read:acted", [{"acted"}]),
        ("cross:acted+read:third", [{"third"}]),
        ("cross:acted:read+third", [{"read", "third"}]),
    ],
)
def test_whole_corpora_are_tested_and_dev_is_cut_from_each_that_trains(
    protocol: str, tested: list[set]
) -> None:
    found = joined("acted", "read", "third")
    named = (
        {"acted", "read", "third"}
        if protocol == "corpus-out"
        else {*protocol[6:].replace(":", "+").split("+")}
    )
    folds = make_folds(protocol, found)
    assert len(folds) == len(tested)
    for fold, test in zip(folds, tested, strict=True):
        ids = {part: {found.ids[row] for row in rows} for part, rows in fold.parts.items()}
        own = {
            corpus: {id_ for id_ in found.ids if id_.startswith(f"{corpus}/")} for corpus in named
        }
        assert ids["test"] == set().union(*(own[corpus] for corpus in test))
        assert ids["train"] | ids["dev"] == set().union(*(own[corpus] for corpus in named - test))
        assert sum(map(len, fold.left_out.values())) == len(found) - sum(map(len, ids.values()))
        for corpus in named - test:  # whole dialogues where there are any, else whole speakers
            key = found.dialogues if corpus == "acted" else found.speakers
            units = [
                {key[row] for row in rows if found.corpora[row] == corpus}
                for rows in (fold.train, fold.dev)
            ]
            assert units[0] and units[1] and not units[0] & units[1]
    following = [
        {found.corpora[row] for row in fold.dev}
        for fold in make_folds("corpus-out", found, Cut("next"))
    ]
    assert following == [{"read"}, {"third"}, {"acted"}]


def test_names_count_within_their_corpus() -> None:
    found = joined("acted", "read")
    assert found.ids[0] == "acted/u00" and "read/u00" in found.ids
    assert len(set(found.ids)) == len(found)
    assert len(make_folds("speaker-out", found)) == 10
    assert found.left_out == {"fru of acted": 8, "boredom of read": 10}
    with pytest.raises(WrongUse, match="30 utterances name none"):
        make_folds("session-out", found)
    says = "the same recording in two of these corpora, such as acted/u00"
    with pytest.raises(LeakageError, match=says):
        joined("acted", "read", same_audio=True)


def test_rows_are_those_of_each_corpus_whatever_the_order_asked(store: Path) -> None:
    both, _ = load_dataset(Experiment("logmel", "audio", store, "read+acted"))
    alone = [
        load_dataset(Experiment("logmel", "audio", store, corpus))[0]
        for corpus in ("acted", "read")
    ]
    values = np.concatenate([one.inputs["audio"].values for one in alone])
    assert (
        np.array_equal(both.inputs["audio"].values, values) and both.record.corpus == "acted+read"
    )
    assert both.record.manifest == "+".join(one.record.manifest for one in alone)
    assert both.origin.corpora["read"].classes == {"ang": 10, "hap": 10, "neu": 10, "sad": 0}
    names = [
        {job.name for job in prepare(asked(store, corpus=corpus))}
        for corpus in ("acted+read", "read+acted")
    ]
    assert names[0] == names[1]
    crossed = [
        prepare(asked(store, corpus=corpus, protocol="cross:read:acted"))
        for corpus in (None, "acted+read")
    ]
    assert [job.name for job in crossed[0]] == [job.name for job in crossed[1]]


@pytest.mark.parametrize("protocol", ["cross:acted:read", "speaker-out"])
@pytest.mark.parametrize("fusion", ["audio", "audio:utterance"])
def test_each_corpus_is_standardised_by_itself(store: Path, protocol: str, fusion: str) -> None:
    data, _ = load_dataset(Experiment("logmel", fusion, store, "acted+read"))
    fold = make_folds(protocol, data.utterances)[0]

    class Asked:
        standardise_audio = True

    scaling = fit_standardizers(data, fold, Asked, "corpus")
    inputs = data.inputs["audio"]
    plain = [
        np.array(inputs.take(np.array([row])).values, np.float64)
        for row in range(len(data.utterances))
    ]
    every = [np.arange(len(plain))]
    with Gpu() as gpu:
        [there] = data.on("cuda:0").batches(every[0], "utterance", len(plain), scaling)
    assert gpu.uploads["waiting"] == 3, "the values, mean and deviation: nothing for each batch"
    elsewhere = replace(
        there, inputs={m: replace(x, values=gpu.read(x.values)) for m, x in there.inputs.items()}
    )
    for batch in (data.batch(every, scaling), data.scaled(scaling).batch(every, {}), elsewhere):
        got = np.split(
            batch.inputs["audio"].values.numpy(), np.cumsum(batch.inputs["audio"].lengths)[:-1]
        )
        for corpus in ("acted", "read"):
            own = [row for row, name in enumerate(data.utterances.corpora) if name == corpus]
            known = [
                row for row in own if row in fold.train
            ] or own  # of one that does not train, its test part
            frames = np.concatenate([plain[row] for row in known])
            for row in own:
                assert np.allclose(
                    got[row], (plain[row] - frames.mean(0)) / frames.std(0), atol=1e-4
                )


def test_a_run_from_the_command_line_to_the_report(store: Path, tmp_path: Path) -> None:
    words = [
        "train",
        "--store",
        store,
        "--features",
        "logmel",
        "--fusion",
        "audio",
        "--protocol",
        "corpus-out",
    ]
    words += [w for one in (*asked(store).set, "standardise_by=corpus") for w in ("--set", one)]
    words += ["--epochs", "3", "--out", tmp_path / "runs"]
    told = json.loads(printed(*words, "--corpus", "acted+read", "--json"))["scores"]
    runs = find_runs(tmp_path / "runs")
    assert (
        "corpora acted+read · z-scored by corpus, the tested one by its own unlabelled"
        in conditions(runs)
    )
    truths = {}
    for run in runs:
        [(corpus, about)] = [(name, one) for name, one in run.result.corpora.items() if one.test]
        table = run.predictions().to_pydict()
        assert about.train == 0 and run.result.fold == f"corpus {corpus}"
        assert {id_.split("/")[0] for id_ in table["id"]} == {corpus}
        right = np.array(table["truth"]) == table["predicted"]
        present = sorted(set(table["truth"]))
        recalls = recall_score(table["truth"], table["predicted"], labels=present, average="macro")
        f1 = f1_score(table["truth"], table["predicted"], labels=present, average="macro")
        truths[corpus] = 100 * np.array([recalls, right.mean(), f1])
    metrics = ("UA %", "WA %", "macro-F1 %")
    for line, corpus in zip(told["corpora"], ("acted", "read"), strict=False):
        assert line["tested on"] == corpus and [line[one][0] for one in metrics] == pytest.approx(
            truths[corpus]
        )
        assert line["trained on"].split()[0] == ({"acted", "read"} - {corpus}).pop()
    mean = np.mean([*truths.values()], axis=0)
    assert [told["corpora"][2][one][0] for one in metrics] == pytest.approx(mean)
    assert [line.get("has no") for line in told["corpora"]] == [None, "sad", None]
    files = [
        word
        for form in ("html", "csv", "latex", "markdown")
        for word in (f"--{form}", tmp_path / f"r.{form}")
    ]
    shown = ser("report", tmp_path / "runs", *files).output
    for text in (
        shown,
        *((tmp_path / f"r.{form}").read_text() for form in ("html", "csv", "latex", "markdown")),
    ):
        assert "mean over corpora" in text and "transductive" in text
    written = Experiment("logmel", "audio", protocol="corpus-out")
    assert "corpora" in differences(runs, RecipeCell("x", written, written), {})[0]
    scaling = load_model(runs[0])[0].scaling["audio"]
    assert scaling.mean.shape == (3, 80)
    answer = ser("predict", runs[0].path, store.parent / "acted" / "0.wav")
    assert (
        answer.exit_code == 0
        and "z-scored by the statistics of the whole training part" in answer.output
    )
    assert "has no corpus 'b'" in ser(*words, "--corpus", "b+read").output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"corpus": "read"}, "needs several corpora"),
        ({"corpus": "read+read"}, "needs several corpora"),
        ({"corpus": None, "protocol": "cross:read:read"}, "no corpus on both sides"),
        ({"protocol": "cross:read"}, "must be cross:A:B"),
        ({"protocol": "cross:read:read"}, "no corpus on both sides"),
        ({"protocol": "cross:read:third"}, "all of them in --corpus"),
        ({"protocol": "cross:read:acted", "set": ("dev=next",)}, "needs a dev part"),
        ({"set": ("dev=next",)}, "nothing is left to train on"),
        ({"set": ("standardise_by=corpus", "standardise_audio=false")}, "that are z-scored"),
        (
            {"corpus": "read", "protocol": "speaker-out", "set": ("standardise_by=corpus",)},
            "several corpora",
        ),
        ({"limit": 1, "protocol": "random-70-20-10"}, "no utterance of read is left by"),
        ({"target": "distribution"}, "corpus read does not hold its raters' votes"),
    ],
)
def test_what_does_not_fit_is_one_sentence(store: Path, options: dict, says: str) -> None:
    with pytest.raises(WrongUse, match=says):
        prepare(asked(store, **options))


def test_features_of_two_kinds_are_told_apart(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    for number, corpus in enumerate(("acted", "read")):
        manifest = Manifest.from_rows(corpus, rows_of(corpus))
        store.put_manifest(manifest)
        values = [np.zeros((1, 2), np.float32)] * len(manifest)
        spec = Spec(
            "mpnet",
            "text",
            "utterance",
            2,
            "float32",
            "made-up",
            1,
            checkpoint={"tensors": str(number)},
        )
        add_feature(store, manifest, spec, values)
    with pytest.raises(
        WrongUse,
        match=r"not computed in the same way for all; acted has mpnet@\w+ .* read has mpnet@",
    ):
        load_dataset(Experiment("mpnet", "text", tmp_path / "s", "acted+read"))
