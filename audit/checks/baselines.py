"""What needs no model: chance, the largest class, and the words alone."""

from collections import Counter
from collections.abc import Mapping

from ..evidence import Claim, Evidence, Predictions
from ..finding import Finding, NotChecked
from ..scores import agrees, score
from .claims import claims_of_systems
from .truth import classes_of_labels

CHECK = "baselines"


def check_baselines(evidence: Evidence) -> list[Finding]:
    """Scores, measured or claimed, that a guess or a model of the words alone reaches too."""
    if not evidence.predictions:
        raise NotChecked("whether the result is above chance: give predictions")
    findings = []
    for predictions in evidence.predictions:
        findings += _against_guesses(predictions)
    for claim, predictions in claims_of_systems(evidence):
        findings += _claim_against_guesses(claim, predictions)
    return findings + _against_words(evidence, evidence.predictions[0])


def _against_guesses(predictions: Predictions) -> list[Finding]:
    scores = score(predictions).pooled
    chance = 1 / len(set(predictions.truth))
    majority = max(Counter(predictions.truth).values()) / len(predictions)
    findings = []
    if scores["ua"] <= chance:
        findings.append(
            _note(
                f"{predictions.source}: UA {100 * scores['ua']:.2f} % is not above chance, "
                f"{100 * chance:.2f} %"
            )
        )
    if scores["wa"] <= majority:
        findings.append(
            _note(
                f"{predictions.source}: WA {100 * scores['wa']:.2f} % is not above always saying "
                f"the largest class, {100 * majority:.2f} %"
            )
        )
    return findings


def _claim_against_guesses(claim: Claim, predictions: Predictions) -> list[Finding]:
    chance = 1 / len(set(predictions.truth))
    majority = max(Counter(predictions.truth).values()) / len(predictions)
    findings = []
    for metric, level, name in (("ua", chance, "chance"), ("wa", majority, "the largest class")):
        findings += _claim_against(claim, predictions, metric, level, name)
    return findings


def _claim_against(
    claim: Claim, predictions: Predictions, metric: str, level: float, name: str
) -> list[Finding]:
    """A note where what is claimed is not above what a guess, or the words, give."""
    if metric not in claim.scores:
        return []
    value, rounding = claim.scores[metric]
    # What is claimed and comes out is said of the predictions.
    if value > level or agrees(value, score(predictions).pooled[metric], rounding):
        return []
    return [
        _note(
            f"{metric.upper()} {100 * value:.2f} % is claimed, and {name} gives {100 * level:.2f} %"
        )
    ]


def _note(sentence: str) -> Finding:
    return Finding(CHECK, "note", sentence, (), 1)


def _against_words(evidence: Evidence, predictions: Predictions) -> list[Finding]:
    """A linear model of the words (TF-IDF, logistic regression) on the same folds.

    Nothing where the split, the transcripts or the labels of the training parts are not known.
    """
    class_of = _class_of_keys(evidence, predictions)
    right: list[tuple[str, str]] = []
    for keys in evidence.split_keys:
        of_fold = _words_alone(evidence.texts, class_of, keys)
        if of_fold is None:
            return []
        right += of_fold
    if not right:
        return []

    truth = [name for name, _ in right]
    words = score(
        Predictions(
            source="words alone",
            ids=[str(row) for row in range(len(right))],
            truth=truth,
            predicted=[name for _, name in right],
            classes=sorted(set(truth)),
        )
    ).pooled["ua"]

    findings = []
    name = "a linear model of the words alone, on the same folds,"
    for claim, claimed in claims_of_systems(evidence):
        if claimed is predictions:
            findings += _claim_against(claim, predictions, "ua", words, name)
    ours = score(predictions).pooled["ua"]
    if words >= ours:
        findings.append(
            _note(
                f"{predictions.source}: UA {100 * ours:.2f} % is not above a linear model of the "
                f"words alone on the same folds, {100 * words:.2f} %"
            )
        )
    return findings


def _class_of_keys(evidence: Evidence, predictions: Predictions) -> dict[str, str]:
    """The class of each utterance, by key: its truth, else what its label is among the tested."""
    keys = evidence.keys_of(predictions.ids)
    class_of = dict(zip(keys, predictions.truth, strict=True))

    labelled = [key for key in class_of if key in evidence.labels]
    labels = [evidence.labels[key] for key in labelled]
    truth = [class_of[key] for key in labelled]
    of_label = classes_of_labels(truth, labels, set(class_of.values()))
    for key, label in evidence.labels.items():
        if label in of_label:
            class_of.setdefault(key, of_label[label])
    return class_of


def _words_alone(
    texts: Mapping[str, str], class_of: Mapping[str, str], keys: Mapping[str, list[str]]
) -> list[tuple[str, str]] | None:
    """Truth and prediction of each test utterance of a fold; None if words are not known."""
    parts = {}
    for part in ("train", "test"):
        known = [key for key in keys[part] if key in texts and key in class_of]
        if len(known) < max(1, len(keys[part]) // 2):
            return None
        parts[part] = known
    train_classes = [class_of[key] for key in parts["train"]]
    if len(set(train_classes)) < 2:
        return None

    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectors = TfidfVectorizer()
    try:
        train = vectors.fit_transform([texts[key] for key in parts["train"]])
    # Texts of no word of two letters.
    except ValueError:
        return None
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    model.fit(train, train_classes)
    predicted = model.predict(vectors.transform([texts[key] for key in parts["test"]]))
    truth = [class_of[key] for key in parts["test"]]
    return list(zip(truth, map(str, predicted), strict=True))
