"""Results of an experiment that never was, sound or with one fault, as files of toolkits."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import balanced_accuracy_score

CLASSES = ("ang", "hap", "neu", "sad")


@dataclass
class Experiment:
    """Pairs of speakers hold dialogues; each pair is tested once, the next is dev."""

    corpus: pd.DataFrame
    """id, speaker, dialogue, label, sha256, text."""
    parts: dict[str, dict[str, list[str]]]
    """By fold, ids by part."""
    predictions: pd.DataFrame
    """id, truth, predicted, fold, p_ang, …"""
    history: pd.DataFrame
    """epoch, dev_ua, test_ua, kept."""
    claim: str = ""
    options: dict[str, str] = field(default_factory=dict)


def sound_experiment(seed: int) -> Experiment:
    """An experiment in which nothing is wrong."""
    rng = np.random.default_rng(seed)
    pairs = int(rng.integers(3, 5))

    rows = []
    for pair in range(pairs):
        for dialogue in range(3):
            for turn in range(int(rng.integers(14, 20))):
                rows.append(
                    {
                        "id": f"p{pair}d{dialogue}t{turn:02d}",
                        "speaker": f"s{2 * pair + turn % 2}",
                        "dialogue": f"p{pair}d{dialogue}",
                        "label": CLASSES[int(rng.integers(4))],
                        "pair": pair,
                    }
                )
    corpus = pd.DataFrame(rows)
    corpus["sha256"] = [f"{number:064x}" for number in range(len(corpus))]
    corpus["text"] = [f"words number {number}" for number in range(len(corpus))]

    parts = {}
    for pair in range(pairs):
        dev = corpus.pair == (pair + 1) % pairs
        test = corpus.pair == pair
        parts[f"fold_{pair + 1}"] = {
            "train": corpus.id[~dev & ~test].tolist(),
            "dev": corpus.id[dev].tolist(),
            "test": corpus.id[test].tolist(),
        }

    scores = rng.random((len(corpus), 4))
    right = corpus.label.map(CLASSES.index).to_numpy()
    scores[np.arange(len(corpus)), right] += 0.6 * (rng.random(len(corpus)) < 0.9)
    scores /= scores.sum(1, keepdims=True)
    predictions = pd.DataFrame({"id": corpus.id, "truth": corpus.label})
    predictions["predicted"] = [CLASSES[place] for place in scores.argmax(1)]
    predictions["fold"] = [f"fold_{pair + 1}" for pair in corpus.pair]
    for place, name in enumerate(CLASSES):
        predictions[f"p_{name}"] = scores[:, place]

    history = pd.DataFrame(
        {
            "epoch": range(1, 7),
            "dev_ua": [0.4, 0.5, 0.6, 0.7, 0.65, 0.6],
            "test_ua": [0.41, 0.52, 0.61, 0.66, 0.64, 0.69],
            "kept": ["", "", "", "yes", "", ""],
        }
    )
    ua = balanced_accuracy_score(predictions.truth, predictions.predicted)
    wa = (predictions.truth == predictions.predicted).mean()
    return Experiment(
        corpus.drop(columns="pair"), parts, predictions, history, f"ua={ua:.4f},wa={wa:.4f}"
    )


def _first(experiment: Experiment) -> dict[str, list[str]]:
    return experiment.parts["fold_1"]


def _trains_on_a_test_utterance(experiment: Experiment) -> None:
    parts = _first(experiment)
    parts["train"].append(parts["test"][3])


def _moves_utterances_of_a_test_speaker(experiment: Experiment) -> None:
    parts = _first(experiment)
    speaker = experiment.corpus.speaker[0]
    # All of one dialogue, so that no dialogue is cut through.
    moved = set(experiment.corpus.id[experiment.corpus.dialogue == "p0d0"])
    assert speaker in set(experiment.corpus.speaker[experiment.corpus.id.isin(moved)])
    parts["test"] = [id_ for id_ in parts["test"] if id_ not in moved]
    parts["train"] += sorted(moved)


def _draws_dev_by_utterance(experiment: Experiment) -> None:
    for parts in experiment.parts.values():
        both = sorted(parts["train"] + parts["dev"])
        parts["train"] = both[::2]
        parts["dev"] = both[1::2]


def _cuts_a_dialogue(experiment: Experiment) -> None:
    """Two speakers of other folds are said to hold one dialogue."""
    corpus = experiment.corpus
    one = corpus.index[corpus.dialogue == "p0d0"][0]
    corpus.loc[one, "dialogue"] = "p1d0"


def _copies_audio(experiment: Experiment) -> None:
    parts = _first(experiment)
    digests = experiment.corpus.set_index("id").sha256
    digests[parts["train"][0]] = digests[parts["test"][0]]
    experiment.corpus["sha256"] = digests.to_numpy()


def _tests_twice(experiment: Experiment) -> None:
    folds = list(experiment.parts.values())
    folds[1]["test"].append(folds[0]["test"][0])


def _never_tests(experiment: Experiment) -> None:
    dropped = set(_first(experiment)["test"][:5])
    _first(experiment)["test"] = _first(experiment)["test"][5:]
    keep = ~experiment.predictions.id.isin(dropped)
    experiment.predictions = experiment.predictions[keep].reset_index(drop=True)
    _claim_what_is_there(experiment)


def _leaves_out_of_everything(experiment: Experiment) -> None:
    dropped = set(experiment.corpus.id[:7])
    for parts in experiment.parts.values():
        for part, ids in parts.items():
            parts[part] = [id_ for id_ in ids if id_ not in dropped]
    keep = ~experiment.predictions.id.isin(dropped)
    experiment.predictions = experiment.predictions[keep].reset_index(drop=True)
    _claim_what_is_there(experiment)


def _predicts_twice(experiment: Experiment) -> None:
    again = experiment.predictions.iloc[:4]
    experiment.predictions = pd.concat([experiment.predictions, again], ignore_index=True)
    _claim_what_is_there(experiment)


def _moves_the_truth_one_row(experiment: Experiment) -> None:
    experiment.predictions["truth"] = np.roll(experiment.predictions.truth.to_numpy(), 1)
    _claim_what_is_there(experiment)


def _shuffles_the_truth(experiment: Experiment) -> None:
    shuffled = experiment.predictions.truth.sample(frac=1, random_state=0)
    experiment.predictions["truth"] = shuffled.to_numpy()
    _claim_what_is_there(experiment)


def _relabels_a_few(experiment: Experiment) -> None:
    truth = experiment.predictions.truth.to_numpy().copy()
    for row in (2, 9, 20):
        truth[row] = "sad" if truth[row] != "sad" else "ang"
    experiment.predictions["truth"] = truth
    _claim_what_is_there(experiment)


def _joins_probabilities_to_other_classes(experiment: Experiment) -> None:
    table = experiment.predictions
    first = table.p_ang.to_numpy().copy()
    table["p_ang"] = table.p_sad.to_numpy()
    table["p_sad"] = first


def _has_a_probability_that_is_none(experiment: Experiment) -> None:
    experiment.predictions.loc[5, "p_hap"] = np.nan


def _exchanges_the_names(experiment: Experiment) -> None:
    # Classes of very different sizes, so that the two differ.
    table = experiment.predictions
    rows = table.index[table.truth == "neu"][::2]
    table.loc[rows, "predicted"] = "neu"
    table.drop(columns=[f"p_{name}" for name in CLASSES], inplace=True)
    small = table.index[table.truth == "sad"]
    table.loc[small, "predicted"] = "ang"
    table.loc[small[:2], "predicted"] = "sad"
    ua = balanced_accuracy_score(table.truth, table.predicted)
    wa = (table.truth == table.predicted).mean()
    experiment.claim = f"ua={wa:.4f},wa={ua:.4f}"


def _claims_too_much(experiment: Experiment) -> None:
    experiment.claim = "ua=0.9871"


def _chooses_the_epoch_on_test(experiment: Experiment) -> None:
    experiment.history["kept"] = ["", "", "", "", "", "yes"]


def _claim_what_is_there(experiment: Experiment) -> None:
    table = experiment.predictions
    ua = balanced_accuracy_score(table.truth, table.predicted)
    experiment.claim = f"ua={ua:.4f}"


# Each fault with the check that must find it, and the checks that follow from it.
FAULTS: dict[str, tuple[Callable[[Experiment], None], str, set[str]]] = {
    "test utterance in train": (
        _trains_on_a_test_utterance,
        "same utterance",
        {"same speaker", "same dialogue", "same transcript"},
    ),
    "test speaker in train": (
        _moves_utterances_of_a_test_speaker,
        "same speaker",
        {"folds", "coverage"},  # what trains there is tested nowhere, and predicted
    ),
    "dev drawn by utterance": (_draws_dev_by_utterance, "same speaker", {"same dialogue"}),
    "dialogue cut through": (_cuts_a_dialogue, "same dialogue", set()),
    "audio under two ids": (_copies_audio, "same audio", set()),
    "tested in two folds": (
        _tests_twice,
        "folds",
        {"same utterance", "same speaker", "same dialogue", "same transcript"},
    ),
    "never tested": (_never_tests, "folds", set()),
    "left out of everything": (_leaves_out_of_everything, "coverage", set()),
    "predicted twice": (_predicts_twice, "folds", set()),
    "truth moved one row": (_moves_the_truth_one_row, "truth", {"baselines"}),
    "truth shuffled": (_shuffles_the_truth, "truth", {"baselines"}),
    "a few labels changed": (_relabels_a_few, "truth", set()),
    "probabilities of other classes": (_joins_probabilities_to_other_classes, "classes", set()),
    "a probability that is no number": (_has_a_probability_that_is_none, "classes", set()),
    "UA and WA exchanged": (_exchanges_the_names, "claim", set()),
    "a claim that does not come out": (_claims_too_much, "claim", set()),
    "epoch chosen on test": (_chooses_the_epoch_on_test, "selection", set()),
}


def write_experiment(experiment: Experiment, folder: Path, predictions: str, split: str) -> list:
    """Its files, as paths: predictions with that ending, and the split in that toolkit's way."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "corpus.csv"
    experiment.corpus.to_csv(corpus, index=False)
    history = folder / "history.csv"
    experiment.history.to_csv(history, index=False)
    return [
        write_predictions(experiment.predictions, folder / f"predictions{predictions}"),
        SPLITS[split](experiment, folder),
        corpus,
        history,
    ]


def write_predictions(table: pd.DataFrame, path: Path) -> Path:
    """A table of predictions in the format of the path's ending."""
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".tsv":
        table.to_csv(path, index=False, sep="\t")
    elif path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    elif path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    elif path.suffix == ".npz":
        columns = ("id", "truth", "predicted", "fold")
        arrays = {name: table[name].to_numpy(str) for name in columns}
        if "p_ang" in table:
            arrays["probabilities"] = table[[f"p_{name}" for name in CLASSES]].to_numpy()
            arrays["classes"] = np.array(CLASSES)
        np.savez(path, **arrays)
    return path


def _write_table(experiment: Experiment, folder: Path) -> Path:
    path = folder / "split.csv"
    rows = []
    for fold, parts in experiment.parts.items():
        for part, ids in parts.items():
            rows += [{"file": f"wav/{id_}.wav", "fold": fold, "split": part} for id_ in ids]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def _write_emobox(experiment: Experiment, folder: Path) -> Path:
    root = folder / "emobox"
    words = {"train": "train", "dev": "valid", "test": "test"}
    for fold, parts in experiment.parts.items():
        (root / fold).mkdir(parents=True)
        for part, ids in parts.items():
            lines = [json.dumps({"key": id_, "wav": f"{id_}.wav", "length": 1.0}) for id_ in ids]
            (root / fold / f"corpus_{words[part]}_{fold}.jsonl").write_text("\n".join(lines))
    return root


def _write_s3prl(experiment: Experiment, folder: Path) -> Path:
    root = folder / "meta_data"
    for number, parts in enumerate(experiment.parts.values(), 1):
        (root / f"Session{number}").mkdir(parents=True)
        for part, ids in parts.items():
            rows = [{"path": f"Session{number}/wav/{id_}.wav"} for id_ in ids]
            path = root / f"Session{number}" / f"{part}_meta_data.json"
            path.write_text(json.dumps({"labels": {"ang": 0}, "meta_data": rows}))
    return root


def _write_lists(experiment: Experiment, folder: Path) -> Path:
    root = folder / "lists"
    for fold, parts in experiment.parts.items():
        (root / fold).mkdir(parents=True)
        for part, ids in parts.items():
            (root / fold / f"{part}.txt").write_text("".join(f"{id_}\n" for id_ in ids))
    return root


def _write_json(experiment: Experiment, folder: Path) -> Path:
    path = folder / "folds.json"
    path.write_text(json.dumps(experiment.parts))
    return path


SPLITS: dict[str, Callable[[Experiment, Path], Path]] = {
    "table": _write_table,
    "EmoBox": _write_emobox,
    "s3prl": _write_s3prl,
    "lists": _write_lists,
    "JSON": _write_json,
}
