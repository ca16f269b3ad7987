"""What needs no model: chance, the largest class, and the words alone."""

from collections import Counter

from ..evidence import Evidence, Predictions, Split
from ..finding import Finding, NotChecked
from ..scores import agrees, score

CHECK = "baselines"


def check_baselines(evidence: Evidence) -> list[Finding]:
    """Scores, measured or claimed, that a guess or a model of the words alone reaches too."""
    if not evidence.predictions:
        raise NotChecked("whether the result is above chance: give predictions")
    findings = []
    for place, predictions in enumerate(evidence.predictions):
        findings += _against_guesses(predictions)
        if place == 0:
            findings += _claims_against_guesses(evidence, predictions)
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


def _claims_against_guesses(evidence: Evidence, predictions: Predictions) -> list[Finding]:
    chance = 1 / len(set(predictions.truth))
    majority = max(Counter(predictions.truth).values()) / len(predictions)
    measured = score(predictions).pooled
    findings = []
    for claim in evidence.claims:
        for metric, level, name in (
            ("ua", chance, "chance"),
            ("wa", majority, "the largest class"),
        ):
            value, rounding = claim.scores.get(metric, (1.0, 0.0))
            # What is claimed and comes out was said above.
            if value <= level and not agrees(value, measured[metric], rounding):
                findings.append(
                    _note(
                        f"{metric.upper()} {100 * value:.2f} % is claimed, and {name} gives "
                        f"{100 * level:.2f} %"
                    )
                )
    return findings


def _note(sentence: str) -> Finding:
    return Finding(CHECK, "note", sentence, (), 1)


def _against_words(evidence: Evidence, predictions: Predictions) -> list[Finding]:
    """A linear model of the words (TF-IDF, logistic regression) on the same folds.

    Nothing where the split, the transcripts or the labels of the training parts are not known.
    """
    right: list[tuple[str, str]] = []
    for split in evidence.splits:
        of_fold = _words_alone(evidence, split)
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
    ).pooled
    ours = score(predictions).pooled
    if words["ua"] < ours["ua"]:
        return []
    return [
        _note(
            f"{predictions.source}: UA {100 * ours['ua']:.2f} % is not above a linear model of the "
            f"words alone on the same folds, {100 * words['ua']:.2f} %"
        )
    ]


def _words_alone(evidence: Evidence, split: Split) -> list[tuple[str, str]] | None:
    """True label and prediction of each test utterance of a fold; None if words are not known."""
    parts = {}
    for part in ("train", "test"):
        rows = [evidence.about(id_) for id_ in split.of(part)]
        parts[part] = [(row.text, row.label) for row in rows if row.text and row.label]
        if len(parts[part]) < max(1, len(rows) // 2):
            return None
    if len({label for _, label in parts["train"]}) < 2:
        return None

    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectors = TfidfVectorizer()
    try:
        train = vectors.fit_transform([text for text, _ in parts["train"]])
    # Texts of no word of two letters.
    except ValueError:
        return None
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    model.fit(train, [label for _, label in parts["train"]])
    predicted = model.predict(vectors.transform([text for text, _ in parts["test"]]))
    truth = [str(label) for _, label in parts["test"]]
    return list(zip(truth, [str(label) for label in predicted], strict=True))
