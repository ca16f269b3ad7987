"""`ser audit`: every fault of the field is found, and nothing is found where nothing is wrong."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from ser.audit.audit import Audit, audit
from ser.audit.evidence import Evidence
from ser.audit.finding import Finding
from ser.audit.registry import CHECKS
from ser.cli import main
from ser.corpus.labels import IEMOCAP
from ser.errors import WrongUse
from ser.tests.audit_sets import (
    FAULTS,
    SPLITS,
    Experiment,
    sound_experiment,
    write_experiment,
    write_predictions,
)
from ser.tests.made_run import made_config, made_result
from ser.train.run_folder import CONFIG, RESULT, Run, run_name

PREDICTION_FILES = (".csv", ".tsv", ".jsonl", ".parquet", ".npz")

# Experiments that hypothesis draws.
DRAWS = [
    pytest.param(10, id="ten draws"),
    pytest.param(50, id="fifty draws", marks=pytest.mark.slow),
]


def drawn(examples: int) -> settings:
    """So many draws, the same ones each time."""
    return settings(max_examples=examples, deadline=None, derandomize=True)


def run_audit(experiment: Experiment, folder: Path, predictions: str, split: str) -> Audit:
    paths = write_experiment(experiment, folder, predictions, split)
    return audit(paths, claims=[experiment.claim])


@pytest.mark.heavy
@pytest.mark.parametrize("examples", DRAWS)
def test_nothing_is_found_where_nothing_is_wrong(
    tmp_path_factory: pytest.TempPathFactory, examples: int
) -> None:
    @drawn(examples)
    @given(
        seed=st.integers(0, 10_000),
        predictions=st.sampled_from(PREDICTION_FILES),
        split=st.sampled_from(sorted(SPLITS)),
    )
    def check(seed: int, predictions: str, split: str) -> None:
        experiment = sound_experiment(seed)
        done = run_audit(experiment, tmp_path_factory.mktemp("sound"), predictions, split)
        assert done.findings == []
        assert done.verdict == "sound"

    check()


@pytest.mark.heavy
@pytest.mark.parametrize("examples", DRAWS)
def test_a_fault_is_found_and_none_else(
    tmp_path_factory: pytest.TempPathFactory, examples: int
) -> None:
    @drawn(examples)
    @given(
        seed=st.integers(0, 10_000),
        fault=st.sampled_from(sorted(FAULTS)),
        predictions=st.sampled_from(PREDICTION_FILES),
        split=st.sampled_from(sorted(SPLITS)),
    )
    def check(seed: int, fault: str, predictions: str, split: str) -> None:
        _check_fault(fault, seed, tmp_path_factory.mktemp("fault"), predictions, split)

    check()


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_every_fault_is_found(fault: str, tmp_path: Path) -> None:
    _check_fault(fault, 7, tmp_path, ".csv", "table")


def _check_fault(fault: str, seed: int, folder: Path, predictions: str, split: str) -> None:
    seed_fault, check, follows = FAULTS[fault]
    experiment = sound_experiment(seed)
    seed_fault(experiment)
    done = run_audit(experiment, folder, predictions, split)

    assert check in {finding.check for finding in done.faults}
    assert {finding.check for finding in done.findings} <= {check, *follows}
    assert done.verdict == "fault"


def test_scores_are_those_of_scikit_learn(tmp_path: Path) -> None:
    experiment = sound_experiment(3)
    table = experiment.predictions
    path = write_predictions(table, tmp_path / "p.csv")
    answer = CliRunner().invoke(main, ["audit", str(path), "--json"])

    facts = json.loads(answer.stdout)
    assert set(facts) == {"verdict", "findings", "scores", "not_checked"}
    assert facts["scores"] == pytest.approx(
        {
            "ua": balanced_accuracy_score(table.truth, table.predicted),
            "wa": float((table.truth == table.predicted).mean()),
            "macro_f1": f1_score(table.truth, table.predicted, average="macro"),
            "n": len(table),
        }
    )
    # Who speaks, and what was trained on, is not known: nobody can call it sound.
    assert facts["verdict"] == "unclear"
    assert answer.exit_code == 0


def test_exit_codes_and_the_page(tmp_path: Path) -> None:
    experiment = sound_experiment(1)
    paths = [str(path) for path in write_experiment(experiment, tmp_path, ".csv", "table")]
    page = tmp_path / "audit.html"

    sound = CliRunner().invoke(main, ["audit", *paths, "--html", str(page)])
    assert sound.exit_code == 0, sound.output
    assert sound.stdout.startswith("sound: ")
    assert "<h1>Sound: " in page.read_text()

    claimed = CliRunner().invoke(main, ["audit", *paths, "--claim", "ua=99.9"])
    assert claimed.exit_code == 3
    assert "UA 99.90 % is claimed" in " ".join(claimed.stdout.split())

    wrong = CliRunner().invoke(main, ["audit", str(tmp_path / "nothing.csv")])
    assert wrong.exit_code == 2
    assert "does not exist" in wrong.output


def test_a_page_escapes_what_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("id,truth,predicted\n<script>x</script>,ang,ang\n<script>x</script>,sad,sad\n")
    page = tmp_path / "a.html"
    answer = CliRunner().invoke(main, ["audit", str(path), "--html", str(page)])
    assert answer.exit_code == 3
    assert "<script>" not in page.read_text()
    assert "&lt;script&gt;" in page.read_text()


@pytest.mark.parametrize(
    ("claim", "sentence"),
    [
        ("ua=WA", "that is the weighted one, WA; the names are exchanged"),
        ("wa=UA", "that is the unweighted one, UA; the names are exchanged"),
        ("macro_f1=WF1", "that is weighted F1"),
        ("ua=FOLDS", "is the mean of 2 folds; pooled over them it is"),
        ("ua=BEST", "that is seed 1 alone, of 2"),
    ],
    ids=["weighted as unweighted", "unweighted as weighted", "F1", "mean of folds", "best seed"],
)
def test_a_claim_is_explained(claim: str, sentence: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    truth = rng.choice(["ang", "hap", "sad"], 300, p=[0.6, 0.3, 0.1])
    tables = []
    for seed in (0, 1):
        right = rng.random(300) < np.where(truth == "ang", 0.95, 0.4 + 0.1 * seed)
        predicted = np.where(right, truth, "neu")
        fold = np.where(np.arange(300) < 60, 1, 2)
        rows = {"id": [f"u{n}" for n in range(300)], "truth": truth, "predicted": predicted}
        tables.append(pd.DataFrame({**rows, "fold": fold, "seed": seed}))
    table = pd.concat(tables)
    path = write_predictions(table, tmp_path / "p.csv")

    def mean_over_seeds(score: Any) -> float:
        return float(np.mean([score(of.truth, of.predicted) for _, of in table.groupby("seed")]))

    def weighted(truth: Any, predicted: Any) -> float:
        labels = sorted(set(truth))
        return float(f1_score(truth, predicted, labels=labels, average="weighted"))

    def mean_recall(truth: Any, predicted: Any) -> float:
        recalls = [(predicted[truth == name] == name).mean() for name in sorted(set(truth))]
        return float(np.mean(recalls))

    folds = [mean_recall(of.truth, of.predicted) for _, of in table.groupby(["seed", "fold"])]
    best = table[table.seed == 1]
    values = {
        "WA": mean_over_seeds(lambda truth, predicted: (truth == predicted).mean()),
        "UA": mean_over_seeds(mean_recall),
        "WF1": mean_over_seeds(weighted),
        "FOLDS": float(np.mean(folds)),
        "BEST": mean_recall(best.truth, best.predicted),
    }
    name, _, what = claim.partition("=")
    done = audit([path], claims=[f"{name}={values[what]:.4f}"])
    said = [finding.sentence for finding in done.findings if finding.check == "claim"]
    assert len(said) == 1
    assert sentence in said[0]


def test_claims_are_fractions_up_to_one_and_percent_above(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    rows = [f"u{n},{'ang' if n % 2 else 'sad'},{'ang' if n < 3 else 'sad'}" for n in range(8)]
    path.write_text("\n".join(["id,truth,predicted", *rows]))
    ua = balanced_accuracy_score([n % 2 for n in range(8)], [n < 3 for n in range(8)])
    for claim in (f"ua={ua:.3f}", f"ua={100 * ua:.1f}", f"uar={100 * ua:.1f}%"):
        assert not audit([path], claims=[claim]).faults, claim


@pytest.mark.parametrize("claim", ["ua=", "ua=x", "ua=101", "beauty=3", ""])
def test_a_claim_that_is_none_is_refused(claim: str, tmp_path: Path) -> None:
    with pytest.raises(WrongUse):
        audit([tmp_path], claims=[claim])


def test_columns_are_said_and_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("clip,was,said\na,ang,ang\nb,sad,ang\n")
    with pytest.raises(WrongUse, match="--columns"):
        audit([path])

    done = audit([path], columns="truth=was,predicted=said")
    assert done.evidence.notes == ["p.csv: 2 predictions; id = clip, truth = was, predicted = said"]

    with pytest.raises(WrongUse, match="no file has a column 'gone'"):
        audit([path], columns="truth=was,predicted=said,fold=gone")
    with pytest.raises(WrongUse, match="did you mean"):
        audit([path], columns="trut=was")


def test_classes_as_numbers(tmp_path: Path) -> None:
    """Indices beside named probabilities are in the order of these."""
    path = tmp_path / "p.csv"
    path.write_text("id,label,p_ang,p_sad\na,0,0.9,0.1\nb,1,0.2,0.8\nc,1.0,0.6,0.4\n")
    done = audit([path])
    assert done.evidence.predictions[0].truth == ["ang", "sad", "sad"]
    assert done.evidence.predictions[0].predicted == ["ang", "sad", "ang"]


def test_rows_that_cannot_count_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("id,truth,predicted\na,ang,ang\nb,,sad\n")
    with pytest.raises(WrongUse, match="row 2 has no truth"):
        audit([path])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.csv", "", "has no row"),
        ("header.csv", "id,truth,predicted\n", "has no row"),
        ("list.json", "[1, 2]", "list of objects"),
        ("numbers.csv", "1,2\n3,4\n", "neither predictions nor a split nor a history"),
        ("short.csv", "id,truth,predicted\na,ang\n", "line 2 has 2 columns"),
        ("p.csv", "id,truth,p_ang,p_sad\na,ang,much,0.1\n", "p_ang is not a number"),
    ],
    ids=["empty", "header alone", "numbers in JSON", "numbers", "a short row", "no number"],
)
def test_files_that_hold_nothing_to_audit(
    name: str, content: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(WrongUse, match=reason):
        audit([tmp_path / name])


def test_the_same_file_twice_is_one_system(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("id,truth,predicted\na,ang,ang\nb,sad,sad\n")
    assert len(audit([path, path]).evidence.predictions) == 1


def test_npz_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    np.savez(path, id=np.array(["a", None], object), truth=np.array(["a", "b"]))
    with pytest.raises(WrongUse, match="not of objects"):
        audit([path])


def test_benchmark_that_shuffles_utterances(tmp_path: Path) -> None:
    """Tars of train, valid and test drawn from shuffled clips of CREMA-D: voices are in all."""
    names = []
    for actor in range(1001, 1021):
        for emotion in ("ANG", "HAP", "NEU", "SAD"):
            names.append(f"{actor}_DFA_{emotion}_XX")
    order = np.random.default_rng(0).permutation(len(names))
    for part, rows in (("train", order[:60]), ("valid", order[60:70]), ("test", order[70:])):
        with tarfile.open(tmp_path / f"wds-audio-{part}-000.tar", "w") as archive:
            for row in rows:
                for ending in ("wav", "json"):
                    archive.addfile(tarfile.TarInfo(f"{names[row]}.{ending}"), io.BytesIO())
    done = audit([tmp_path])
    assert {finding.check for finding in done.faults} == {"same speaker"}
    assert "stand in train and test" in done.faults[0].sentence


def test_folds_in_tars_that_are_cut_by_session_are_sound(tmp_path: Path) -> None:
    for session in range(1, 6):
        with tarfile.open(tmp_path / f"wds-audio-fold-{session}-000.tar", "w") as archive:
            for turn in range(6):
                name = f"Ses0{session}F_impro01_{'FM'[turn % 2]}{turn:03d}.wav"
                archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    done = audit([tmp_path])
    assert len(done.evidence.splits) == 5
    assert done.verdict == "sound"


def test_partition_file_of_msp_podcast(tmp_path: Path) -> None:
    path = tmp_path / "labels_consensus.csv"
    rows = ["FileName,EmoClass,SpkrID,Split_Set"]
    for number in range(30):
        part = ("Train", "Development", "Test1", "Test2", "Test3")[number % 5]
        speaker = "Unknown" if number > 24 else str(number % 5)
        rows.append(f"MSP-PODCAST_{number:04d}_0001.wav,A,{speaker},{part}")
    path.write_text("\n".join(rows))
    done = audit([path])
    assert done.faults == []
    assert done.verdict == "sound"

    path.write_text("\n".join(rows).replace("0000_0001.wav,A,0", "0000_0001.wav,A,2"))
    assert [finding.check for finding in audit([path]).faults] == ["same speaker"]


def test_tables_of_parts(tmp_path: Path) -> None:
    """Nkululeko's and autrainer's way: a table for each part."""
    for part, speakers in (("train", "abc"), ("dev", "d"), ("test", "ef")):
        rows = ["file,speaker,emotion"]
        rows += [f"wav/{speaker}{n}.wav,{speaker},ang" for speaker in speakers for n in range(4)]
        (tmp_path / f"emodb_{part}.csv").write_text("\n".join(rows))
    assert audit([tmp_path]).verdict == "sound"
    files = sorted(tmp_path.glob("*.csv"))
    assert audit(files).verdict == "sound"

    (tmp_path / "emodb_test.csv").write_text("file,speaker,emotion\nwav/a9.wav,a,ang\n")
    assert [finding.check for finding in audit([tmp_path]).faults] == ["same speaker"]


def test_epoch_of_the_last_dev_utterance(tmp_path: Path) -> None:
    """A baseline that kept the epoch with the lowest loss of the dev utterance that came last."""
    path = tmp_path / "history.csv"
    rows = ["epoch,id,dev_loss,kept"]
    losses = {1: (0.9, 0.8, 0.9), 2: (0.3, 0.4, 0.6), 3: (0.8, 0.9, 0.2)}
    for epoch, of_epoch in losses.items():
        for place, loss in enumerate(of_epoch):
            rows.append(f"{epoch},d{place},{loss},{'yes' if epoch == 3 else ''}")
    path.write_text("\n".join(rows))
    done = audit([path])
    assert [finding.check for finding in done.faults] == ["selection"]
    assert "of the last utterance alone; over all of them epoch 2" in done.faults[0].sentence


def test_predictions_of_several_epochs(tmp_path: Path) -> None:
    rows = ["id,truth,predicted,epoch"]
    for epoch, right in ((1, 4), (2, 7), (3, 6)):
        for n in range(8):
            truth = "ang" if n % 2 else "sad"
            other = "sad" if n % 2 else "ang"
            rows.append(f"u{n},{truth},{truth if n < right else other},{epoch}")
    path = tmp_path / "p.csv"
    path.write_text("\n".join(rows))
    done = audit([path], claims=["wa=0.875"])
    assert "selection" in {finding.check for finding in done.faults}
    assert any("epoch 2, the best of 3 on the test part" in f.sentence for f in done.faults)


def test_script_that_does_not_parse(tmp_path: Path) -> None:
    path = tmp_path / "evaluate.py"
    path.write_text("def score(y:\n    return 1\n")
    assert [finding.check for finding in audit([path]).faults] == ["script"]
    path.write_text("raise SystemExit('never run')\n")
    assert audit([path]).faults == []


def test_known_counts_of_iemocap(tmp_path: Path) -> None:
    """5,531 utterances of four classes are the release's; 2,588 are not."""
    per_session = IEMOCAP["4class per session"]
    rows = []
    for session, counts in per_session.items():
        number = 0
        for name, count in counts.items():
            for _ in range(count):
                dialogue = f"Ses0{session}F_script0{1 + number // 500}"
                id_ = f"{dialogue}_{'FM'[number % 2]}{number % 500:03d}"
                rows.append((id_, name, name if number % 3 else "neu", session))
                number += 1
    assert len(rows) == 5531

    table = pd.DataFrame(rows, columns=["id", "truth", "predicted", "fold"])
    path = write_predictions(table, tmp_path / "p.csv")
    assert [f for f in audit([path]).faults if f.check == "coverage"] == []

    only_one = write_predictions(table[table.fold == "5"], tmp_path / "one.csv")
    assert [f for f in audit([only_one]).faults if f.check == "coverage"] == []

    fewer = write_predictions(table.iloc[::2], tmp_path / "fewer.csv")
    said = [f.sentence for f in audit([fewer]).faults if f.check == "coverage"]
    assert len(said) == 4
    assert "the release has 1,636" in "".join(said)


def test_two_systems_are_compared_over_speakers(tmp_path: Path) -> None:
    experiment = sound_experiment(2)
    paths = write_experiment(experiment, tmp_path, ".csv", "table")
    worse = experiment.predictions.copy()
    worse["predicted"] = np.roll(worse.predicted.to_numpy(), 1)
    other = write_predictions(
        worse.drop(columns=["p_ang", "p_hap", "p_neu", "p_sad"]), tmp_path / "other.csv"
    )
    done = audit([*paths, other])
    said = [finding for finding in done.notes if finding.check == "difference"]
    assert len(said) == 1
    assert "two-sided" in said[0].sentence
    first = balanced_accuracy_score(experiment.predictions.truth, experiment.predictions.predicted)
    second = balanced_accuracy_score(worse.truth, worse.predicted)
    assert f"{100 * (first - second):+.2f} points of UA" in said[0].sentence


def made_run(folder: Path, heard: bool, id_prefix: str = "u", **changes: Any) -> None:
    """A run of ser with made-up numbers whose test speakers were heard in training, or not."""
    config = made_config(**changes)
    run = Run(folder / run_name(config))
    run.path.mkdir(parents=True)
    truth = ["ang", "hap", "neu", "sad"] * 2
    columns = {
        "id": [f"{id_prefix}{number}" for number in range(8)],
        "speaker": ["a", "b"] * 4,
        "dialogue": [number // 2 for number in range(8)],
        "truth": truth,
        "predicted": truth,
        "probabilities": list(np.eye(4)[[0, 1, 2, 3] * 2]),
    }
    files = {**run.write_json(CONFIG, config), **run.write_predictions(columns)}
    speakers = {"a": heard, "b": False}
    run.write_json(RESULT, made_result(config, files=files, speakers=speakers))


@pytest.mark.parametrize(
    ("protocol", "heard", "severity"),
    [
        ("session-out", False, None),
        ("random-70-20-10", True, "note"),
        ("official", True, "note"),
        ("script-out", True, "note"),
        ("session-out", True, "fault"),
        ("folds:mine.csv", True, "fault"),
    ],
    ids=["sound", "random", "official", "script-out", "against its protocol", "own folds"],
)
def test_runs_of_ser(protocol: str, heard: bool, severity: str | None, tmp_path: Path) -> None:
    made_run(tmp_path, heard, protocol=protocol)
    done = audit([tmp_path])
    said = {finding.severity for finding in done.findings if finding.check == "same speaker"}
    assert said == ({severity} if severity else set())
    assert done.verdict == ("fault" if severity == "fault" else "sound")


def test_generated_speech_is_not_taken_for_iemocap(tmp_path: Path) -> None:
    """Its ids are IEMOCAP's, its counts are not."""
    made_run(tmp_path, False, id_prefix="Ses01F_impro01_F00")
    assert audit([tmp_path]).findings == []


def test_best_test_is_a_fault_always(tmp_path: Path) -> None:
    made_run(tmp_path, False, select="best-test")
    assert [finding.check for finding in audit([tmp_path]).faults] == ["selection"]


def test_folders_count_where_names_alone_are_not_enough(tmp_path: Path) -> None:
    """`1/a.wav` and `2/a.wav` are two utterances, and `x/a.wav` may be the `a` of another file."""
    path = tmp_path / "split.csv"
    path.write_text("file,split\n1/a.wav,train\n2/a.wav,test\n")
    assert audit([path]).faults == []

    path.write_text("file,split\n1/a.wav,train\n1/b.wav,test\n")
    predictions = tmp_path / "p.csv"
    predictions.write_text("id,truth,predicted\nb,ang,ang\n")
    done = audit([path, predictions])
    assert set(done.evidence.keys.values()) == {"a", "b"}


def test_an_installed_check_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def check_something(evidence: Evidence) -> list[Finding]:
        return [Finding("mine", "fault", f"{len(evidence.predictions)} is too few", (), 1)]

    monkeypatch.setitem(CHECKS.data, "mine", check_something)
    path = tmp_path / "p.csv"
    path.write_text("id,truth,predicted\na,ang,ang\nb,sad,sad\n")
    assert [finding.check for finding in audit([path]).faults] == ["mine"]
