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


def ids_of(utterances: Utterances, corpora: set[str]) -> set[str]:
    """The qualified ids of these corpora."""
    return {id_ for id_ in utterances.ids if id_.split("/")[0] in corpora}


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
    named = {"acted", "read", "third"}
    if protocol.startswith("cross:"):
        named = {*protocol.removeprefix("cross:").replace(":", "+").split("+")}

    folds = make_folds(protocol, found)
    assert len(folds) == len(tested)

    for fold, test in zip(folds, tested, strict=True):
        ids = {}
        for part, rows in fold.parts.items():
            ids[part] = {found.ids[row] for row in rows}

        assert ids["test"] == ids_of(found, test)
        assert ids["train"] | ids["dev"] == ids_of(found, named - test)

        left_out = sum(map(len, fold.left_out.values()))
        assert left_out == len(found) - sum(map(len, ids.values()))

        # Whole dialogues where there are any, else whole speakers.
        for corpus in named - test:
            key = found.dialogues if corpus == "acted" else found.speakers
            in_train = {key[row] for row in fold.train if found.corpora[row] == corpus}
            in_dev = {key[row] for row in fold.dev if found.corpora[row] == corpus}
            assert in_train
            assert in_dev
            assert not in_train & in_dev

    following = []
    for fold in make_folds("corpus-out", found, Cut("next")):
        following.append({found.corpora[row] for row in fold.dev})

    assert following == [{"read"}, {"third"}, {"acted"}]


def test_names_count_within_their_corpus() -> None:
    found = joined("acted", "read")
    assert found.ids[0] == "acted/u00"
    assert "read/u00" in found.ids
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
    acted, _ = load_dataset(Experiment("logmel", "audio", store, "acted"))
    read, _ = load_dataset(Experiment("logmel", "audio", store, "read"))
    values = np.concatenate([acted.inputs["audio"].values, read.inputs["audio"].values])
    assert np.array_equal(both.inputs["audio"].values, values)
    assert both.record.corpus == "acted+read"
    assert both.record.manifest == "+".join([acted.record.manifest, read.record.manifest])
    assert both.origin.corpora["read"].classes == {"ang": 10, "hap": 10, "neu": 10, "sad": 0}

    names = {job.name for job in prepare(asked(store, corpus="acted+read"))}
    assert {job.name for job in prepare(asked(store, corpus="read+acted"))} == names

    crossed = prepare(asked(store, corpus="acted+read", protocol="cross:read:acted"))
    of_all = prepare(asked(store, corpus=None, protocol="cross:read:acted"))
    assert [job.name for job in of_all] == [job.name for job in crossed]


@pytest.mark.parametrize("protocol", ["cross:acted:read", "speaker-out"])
@pytest.mark.parametrize("fusion", ["audio", "audio:utterance"])
def test_each_corpus_is_standardised_by_itself(store: Path, protocol: str, fusion: str) -> None:
    data, _ = load_dataset(Experiment("logmel", fusion, store, "acted+read"))
    fold = make_folds(protocol, data.utterances)[0]

    class Asked:
        standardise_audio = True

    scaling = fit_standardizers(data, fold, Asked, "corpus")
    inputs = data.inputs["audio"]
    plain = []
    for row in range(len(data.utterances)):
        plain.append(np.array(inputs.take(np.array([row])).values, np.float64))

    every = [np.arange(len(plain))]

    with Gpu() as gpu:
        [on_gpu] = data.on("cuda:0").batches(every[0], "utterance", len(plain), scaling)

    assert gpu.uploads["waiting"] == 3, "the values, mean and deviation: nothing for each batch"

    audio = on_gpu.inputs["audio"]
    read_back = replace(on_gpu, inputs={"audio": replace(audio, values=gpu.read(audio.values))})
    in_batches = data.batch(every, scaling)
    beforehand = data.scaled(scaling).batch(every, {})

    for batch in (in_batches, beforehand, read_back):
        audio = batch.inputs["audio"]
        got = np.split(audio.values.numpy(), np.cumsum(audio.lengths)[:-1])
        for corpus in ("acted", "read"):
            rows = np.flatnonzero(np.array(data.utterances.corpora) == corpus)
            known = [row for row in rows if row in fold.train]
            if not known:
                # Of one that does not train, its test part.
                known = rows

            frames = np.concatenate([plain[row] for row in known])
            for row in rows:
                z = (plain[row] - frames.mean(0)) / frames.std(0)
                assert np.allclose(got[row], z, atol=1e-4)


def test_a_run_from_the_command_line_to_the_report(
    store: Path, tmp_path: Path, undrawn: None
) -> None:
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
    for setting in (*asked(store).set, "standardise_by=corpus"):
        words += ["--set", setting]

    words += ["--epochs", "3", "--out", tmp_path / "runs"]
    scores = json.loads(printed(*words, "--corpus", "acted+read", "--json"))["scores"]
    runs = find_runs(tmp_path / "runs")

    assert (
        "corpora acted+read · z-scored by corpus, the tested one by its own unlabelled"
        in conditions(runs)
    )

    truths = {}

    for run in runs:
        [corpus] = [name for name, sizes in run.result.corpora.items() if sizes.test]
        table = run.predictions().to_pydict()
        assert run.result.corpora[corpus].train == 0
        assert run.result.fold == f"corpus {corpus}"
        assert {id_.split("/")[0] for id_ in table["id"]} == {corpus}

        right = np.array(table["truth"]) == table["predicted"]
        present = sorted(set(table["truth"]))
        recalls = recall_score(table["truth"], table["predicted"], labels=present, average="macro")
        f1 = f1_score(table["truth"], table["predicted"], labels=present, average="macro")
        truths[corpus] = 100 * np.array([recalls, right.mean(), f1])

    metrics = ("UA %", "WA %", "macro-F1 %")
    for line, corpus in zip(scores["corpora"], ("acted", "read"), strict=False):
        assert line["tested on"] == corpus
        assert [line[metric][0] for metric in metrics] == pytest.approx(truths[corpus])
        assert line["trained on"].split()[0] == ({"acted", "read"} - {corpus}).pop()

    mean = np.mean([*truths.values()], axis=0)
    over_corpora = scores["corpora"][2]
    assert [over_corpora[metric][0] for metric in metrics] == pytest.approx(mean)
    assert [line.get("has no") for line in scores["corpora"]] == [None, "sad", None]

    forms = ("html", "csv", "latex-all", "markdown")
    files = [f"--{form}={tmp_path / f'r.{form}'}" for form in forms]
    terminal = ser("report", tmp_path / "runs", *files).output
    by_name = ser("report", tmp_path / "runs", "--tables", "corpora").output
    texts = [" ".join(f"{terminal} {by_name}".split())]
    for form in forms:
        texts.append((tmp_path / f"r.{form}").read_text())

    for text in texts:
        assert "mean over corpora" in text
        assert "transductive" in text

    written = Experiment("logmel", "audio", protocol="corpus-out")
    assert "corpora" in differences(runs, RecipeCell("x", written, written), {})[0]

    scaling = load_model(runs[0])[0].scaling["audio"]
    assert scaling.mean.shape == (3, 80)

    answer = ser("predict", runs[0].path, store.parent / "acted" / "0.wav")
    assert answer.exit_code == 0
    assert "z-scored by the statistics of the whole training part" in answer.output
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
