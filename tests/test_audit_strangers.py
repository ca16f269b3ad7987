"""`ser audit` on predictions as people keep them: the scores are right, and what was read is said.

The truth is scikit-learn's, of the classes before any file was written.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import recall_score

from ser.audit.audit import audit
from ser.audit.in_words import audit_text
from ser.audit.scores import score
from ser.errors import WrongUse

CLASSES = ["anger", "happiness", "sadness", "neutral"]
ADJECTIVES = {"anger": "angry", "happiness": "happy", "sadness": "sad", "neutral": "neutral"}
IN_GERMAN = {"anger": "Wut", "happiness": "Freude", "sadness": "Trauer", "neutral": "neutral"}


@dataclass
class System:
    """Predictions of utterances whose names are EmoDB's."""

    ids: list[str]
    truth: list[str]
    predicted: list[str]
    probabilities: np.ndarray


@pytest.fixture(scope="module")
def system() -> System:
    rng = np.random.default_rng(3)
    letters = dict(zip("WFTN", CLASSES, strict=True))
    ids = []
    for speaker in ("03", "08", "09", "10"):
        for sentence in ("a01", "a02", "b01"):
            ids += [f"{speaker}{sentence}{letter}{take}" for letter in letters for take in "ab"]
    truth = [letters[id_[5]] for id_ in ids]
    probabilities = rng.dirichlet(np.full(4, 0.5), len(ids))
    right = rng.random(len(ids)) < 0.6
    for row, name in enumerate(truth):
        probabilities[row, CLASSES.index(name)] += right[row]
    probabilities /= probabilities.sum(1, keepdims=True)
    predicted = [CLASSES[place] for place in probabilities.argmax(1)]
    return System(ids, truth, predicted, probabilities)


def numbers(names: list[str]) -> list[int]:
    return [CLASSES.index(name) for name in names]


def index_column(system: System, folder: Path) -> list[Path]:
    """Pandas writes its index without a heading; the classes are adjectives here."""
    table = pd.DataFrame({"filename": [f"wav/{id_}.wav" for id_ in system.ids]})
    table["label"] = system.truth
    for place, name in enumerate(CLASSES):
        table[f"p_{ADJECTIVES[name]}"] = system.probabilities[:, place]
    table.to_csv(folder / "p.csv")
    return [folder / "p.csv"]


def upper_case(system: System, folder: Path) -> list[Path]:
    table = pd.DataFrame({"id": system.ids, "predicted": system.predicted})
    table["truth"] = [name.upper() for name in system.truth]
    table.to_csv(folder / "p.csv", index=False)
    return [folder / "p.csv"]


def numbers_and_config(system: System, folder: Path) -> list[Path]:
    """Numbers, and the names of them as Hugging Face's config.json has them."""
    table = pd.DataFrame({"id": system.ids, "label": numbers(system.truth)})
    table["prediction"] = numbers(system.predicted)
    table.to_csv(folder / "p.csv", index=False)
    id2label = {str(number): name for number, name in enumerate(CLASSES)}
    (folder / "config.json").write_text(json.dumps({"model_type": "x", "id2label": id2label}))
    return [folder / "p.csv", folder / "config.json"]


def numbers_and_table(system: System, folder: Path) -> list[Path]:
    path, _ = numbers_and_config(system, folder)
    names = pd.DataFrame({"label": CLASSES, "index": range(4)})
    names.to_csv(folder / "names.csv", index=False)
    return [path, folder / "names.csv"]


def two_runs(system: System, folder: Path) -> list[Path]:
    """The same utterances twice, told apart by a column `run`."""
    table = pd.DataFrame({"id": system.ids, "y_true": system.truth, "y_pred": system.predicted})
    both = pd.concat([table.assign(run=1), table.assign(run=2)])
    both.to_csv(folder / "p.csv", index=False)
    return [folder / "p.csv"]


def german(system: System, folder: Path) -> list[Path]:
    """A German Excel: semicolons, decimal commas, its own headings."""
    table = pd.DataFrame({"Datei": system.ids, "Sprecher": [id_[:2] for id_ in system.ids]})
    table["Wahrheit"] = [IN_GERMAN[name] for name in system.truth]
    table["Vorhersage"] = [IN_GERMAN[name] for name in system.predicted]
    for place, name in enumerate(CLASSES):
        table[f"p_{IN_GERMAN[name]}"] = system.probabilities[:, place]
    table.to_csv(folder / "p.csv", index=False, sep=";", decimal=",", encoding="cp1252")
    return [folder / "p.csv"]


def bare_columns(system: System, folder: Path) -> list[Path]:
    table = pd.DataFrame({"file": system.ids, "label": system.truth})
    for place, name in enumerate(CLASSES):
        table[name] = system.probabilities[:, place]
    table.to_csv(folder / "p.csv", index=False)
    return [folder / "p.csv"]


def no_ids(system: System, folder: Path) -> list[Path]:
    table = pd.DataFrame({"y_true": system.truth, "y_pred": system.predicted})
    table.to_csv(folder / "p.csv", index=False)
    return [folder / "p.csv"]


def truth_of_the_corpus(system: System, folder: Path) -> list[Path]:
    predictions = pd.DataFrame({"id": system.ids, "predicted": system.predicted})
    predictions.to_csv(folder / "p.csv", index=False)
    corpus = pd.DataFrame({"id": system.ids, "label": system.truth}).sample(frac=1, random_state=0)
    corpus.to_csv(folder / "corpus.csv", index=False)
    return [folder / "p.csv", folder / "corpus.csv"]


def arrays(system: System, folder: Path) -> list[Path]:
    np.savez(
        folder / "p.npz",
        filenames=np.array(system.ids),
        y_true=np.array(numbers(system.truth)),
        y_pred=np.array(numbers(system.predicted)),
        probs=system.probabilities,
        labels=np.array(CLASSES),
    )
    return [folder / "p.npz"]


def pipeline(system: System, folder: Path) -> list[Path]:
    """What a pipeline of Hugging Face answers for each file."""
    rows = []
    for id_, name, row in zip(system.ids, system.truth, system.probabilities, strict=True):
        scores = [
            {"label": of_class, "score": value}
            for of_class, value in zip(CLASSES, row.tolist(), strict=True)
        ]
        rows.append({"file": id_, "true_label": name, "predictions": scores})
    (folder / "p.json").write_text(json.dumps(rows))
    return [folder / "p.json"]


FORMS = [
    index_column, upper_case, numbers_and_config, numbers_and_table, two_runs, german,
    bare_columns, no_ids, truth_of_the_corpus, arrays, pipeline,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_scores_are_right(
    form: Callable[[System, Path], list[Path]], system: System, tmp_path: Path
) -> None:
    done = audit(form(system, tmp_path))
    assert done.faults == []
    assert done.verdict == "unclear"
    ua = recall_score(system.truth, system.predicted, average="macro")
    scored = score(done.evidence.predictions[0])
    assert scored.pooled["ua"] == pytest.approx(ua)
    assert scored.n == len(system.ids)


def test_what_was_read_is_said(system: System, tmp_path: Path) -> None:
    (note,) = audit(index_column(system, tmp_path)).evidence.notes
    assert "id = filename, truth = label, probabilities = p_angry, p_happy" in note
    assert note.endswith("of its classes angry is anger, happy is happiness, sad is sadness")

    (note,) = audit(no_ids(system, tmp_path)).evidence.notes
    assert note.endswith("no column names the utterances, so what hangs on them is not checked")


def test_names_of_numbers_are_compared_with_the_corpus(system: System, tmp_path: Path) -> None:
    """Two names exchanged in the file that maps numbers are another truth than the ids'."""
    path, names = numbers_and_table(system, tmp_path)
    assert audit([path, names]).faults == []
    exchanged = ["happiness", "anger", *CLASSES[2:]]
    pd.DataFrame({"label": exchanged, "index": range(4)}).to_csv(names, index=False)
    assert {finding.check for finding in audit([path, names]).faults} == {"truth"}


def test_two_trainings_in_a_file_that_does_not_name_them(system: System, tmp_path: Path) -> None:
    table = pd.read_csv(two_runs(system, tmp_path)[0]).drop(columns="run")
    path = tmp_path / "p.csv"
    table.to_csv(path, index=False)
    done = audit([path])
    assert done.faults == []
    assert "is predicted 2 times, and no column says by which" in done.notes[0].sentence


def test_runs_that_test_other_utterances_are_folds(system: System, tmp_path: Path) -> None:
    table = pd.DataFrame({"id": system.ids, "truth": system.truth, "predicted": system.predicted})
    table["run"] = [id_[:2] for id_ in system.ids]
    table.to_csv(tmp_path / "p.csv", index=False)
    (predictions,) = audit([tmp_path / "p.csv"]).evidence.predictions
    assert predictions.seeds is None
    assert set(predictions.folds or []) == {"3", "8", "9", "10"}


def test_files_of_folds_that_overlap_are_one_system(system: System, tmp_path: Path) -> None:
    table = pd.DataFrame({"id": system.ids, "truth": system.truth, "predicted": system.predicted})
    table[:50].to_csv(tmp_path / "p_fold1.csv", index=False)
    table[49:].to_csv(tmp_path / "p_fold2.csv", index=False)
    done = audit([tmp_path / "p_fold1.csv", tmp_path / "p_fold2.csv"])
    assert len(done.evidence.predictions) == 1
    assert {finding.check for finding in done.faults} == {"folds"}


def test_rows_without_ids_are_compared_with_no_other_file(system: System, tmp_path: Path) -> None:
    (path,) = no_ids(system, tmp_path)
    other = path.rename(tmp_path / "other.csv")
    upper_case(system, tmp_path)
    with pytest.raises(WrongUse, match="no column names the utterances"):
        audit([other, tmp_path / "p.csv"])


def test_ratings_of_a_corpus_are_no_predictions(system: System, tmp_path: Path) -> None:
    """A corpus's table has a column for each class too: the share of its raters."""
    (ratings,) = bare_columns(system, tmp_path)
    corpus = ratings.rename(tmp_path / "corpus.csv")
    (path,) = upper_case(system, tmp_path)
    done = audit([path, corpus])
    assert len(done.evidence.predictions) == 1
    assert done.evidence.corpus is not None


def test_predictions_and_a_split_of_other_utterances(system: System, tmp_path: Path) -> None:
    """What is tested and not predicted, predicted and not tested; nothing that fits is no proof."""
    (path,) = upper_case(system, tmp_path)
    split = tmp_path / "split.csv"

    def coverage_of(test: list[str], train: list[str]) -> list[tuple[str, int]]:
        rows = [{"id": id_, "split": "test", "label": "neutral"} for id_ in test]
        rows += [{"id": id_, "split": "train", "label": "neutral"} for id_ in train]
        pd.DataFrame(rows).to_csv(split, index=False)
        findings = audit([path, split]).findings
        return [(found.severity, found.count) for found in findings if found.check == "coverage"]

    n = len(system.ids)
    more = [f"16b10N{take}" for take in "abc"]
    assert coverage_of(system.ids, more) == []
    assert coverage_of([*system.ids, *more], []) == [("fault", 3)]
    assert coverage_of(system.ids[:-5], system.ids[-5:]) == [("fault", 5)]
    assert coverage_of(more, []) == [("fault", n)]

    split.write_text("\n".join(["id,split", *(f"{id_},test" for id_ in [*system.ids, "other"])]))
    said = [found for found in audit([path, split]).findings if found.check == "coverage"]
    assert [(found.severity, found.count) for found in said] == [("note", 1)]


def test_files_that_spell_ids_otherwise_are_of_the_same_utterances(
    system: System, tmp_path: Path
) -> None:
    (first,) = index_column(system, tmp_path)
    first = first.rename(tmp_path / "first.csv")
    (second,) = upper_case(system, tmp_path)
    done = audit([first, second])
    assert len(done.evidence.predictions) == 2
    (said,) = [finding for finding in done.findings if finding.check == "difference"]
    assert "+0.00 points of UA" in said.sentence

    with pytest.raises(WrongUse, match="--claim is given 3 times, and there are 2 systems"):
        audit([first, second], claims=["ua=1", "ua=2", "ua=3"])


def test_session_in_the_documentation(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "audit.md").read_text()
    behind = page.partition("`theirs.csv`")[2]
    table = behind.partition("```csv\n")[2].partition("```")[0]
    session = behind.partition("```text\n")[2].partition("\n…")[0]
    command, answer = session.split("\n", 1)

    path = tmp_path / "theirs.csv"
    path.write_text(table)
    done = audit([path], claims=[command.rpartition("--claim ")[2]])
    assert audit_text(done, 100).startswith(answer + "\n")
