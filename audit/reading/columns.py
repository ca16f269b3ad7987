"""What the columns of somebody's file are called, and what they hold."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ser.corpus.labels import code
from ser.errors import WrongUse, unknown

from .sheet import Sheet

# What toolkits call each of them, in small letters and without separators; the first that a file
# has is taken.
NAMES: dict[str, tuple[str, ...]] = {
    "id": (
        "id", "utteranceid", "uttid", "utterance", "utt", "key", "filename", "file", "wav", "path",
        "audio", "clip", "segment", "name", "sample", "ids", "utterances", "keys", "filenames",
        "files", "wavs", "paths", "names", "filepath", "audiopath", "wavpath", "datei",
        "dateiname", "aufnahme", "pfad",
    ),
    "truth": (
        "truth", "true", "ytrue", "truelabel", "groundtruth", "gold", "target", "targets",
        "reference", "label", "labels", "emotion", "emo", "emoclass", "actual", "y", "truths",
        "emotions", "wahrheit", "klasse",
    ),
    "predicted": (
        "predicted", "prediction", "predictions", "pred", "preds", "ypred", "predlabel",
        "predictedlabel", "predictedemotion", "hyp", "hypothesis", "yhat", "output", "vorhersage",
        "vorhergesagt", "schätzung",
    ),
    "probabilities": ("probabilities", "probs", "prob", "proba", "posteriors", "logits", "scores"),
    "fold": ("fold", "foldid", "testfold", "cvfold", "cv", "folds"),
    "part": ("part", "split", "splitset", "subset", "partition", "set", "teil", "teilmenge"),
    "seed": (
        "seed", "randomseed", "randomstate", "seeds", "startwert", "run", "runid", "trial",
        "repeat", "repetition", "lauf",
    ),
    "epoch": ("epoch", "epochs", "epoche"),
    "speaker": (
        "speaker", "speakerid", "spk", "spkid", "spkrid", "actor", "speakers", "sprecher",
        "sprecherin",
    ),
    "dialogue": ("dialogue", "dialog", "dialogueid", "dialogid", "conversation", "gespräch"),
    "text": ("text", "transcript", "transcription", "sentence", "transkript", "satz"),
    "sound": ("audiosha256", "sha256", "md5", "hash"),
    "kept": ("kept", "selected", "best", "chosen"),
}  # fmt: skip

# What the column of a recording's file is called.
FILES = {"wav", "audio", "path", "file", "filename", "filepath", "audiopath", "wavpath", "datei"}

# What stands before the name of a class where each has a column of its own.
PROBABILITY_PREFIXES = (
    "p_", "p(", "prob_", "proba_", "probability_", "posterior_", "logit_", "score_",
)  # fmt: skip
PROBABILITY_SUFFIXES = ("_prob", "_proba", "_probability", "_posterior", "_logit", "_score")


@dataclass(frozen=True)
class Columns:
    """Which heading holds what."""

    headings: Mapping[str, str]
    """By what it holds, one of `NAMES`."""

    probabilities: Mapping[str, str]
    """By class, the heading of its probability, where each has its own column."""

    def __contains__(self, held: str) -> bool:
        return held in self.headings

    def file_beside_id(self, sheet: Sheet) -> str | None:
        """The heading of the recordings' files, where the ids are in another column."""
        for heading in sheet.columns:
            if plain(heading) in FILES and heading != self.headings.get("id"):
                return heading if "id" in self else None
        return None

    def in_words(self) -> str:
        """Such as "id = utt_id, truth = y_true"."""
        pairs = [f"{held} = {heading}" for held, heading in self.headings.items()]
        if self.probabilities:
            pairs.append(f"probabilities = {', '.join(self.probabilities.values())}")
        return ", ".join(pairs)


def parse_columns(text: str) -> dict[str, str]:
    """What `--columns truth=y_true,predicted=hyp` says. Raises `WrongUse`."""
    given = {}
    for pair in filter(None, text.split(",")):
        held, equals, heading = pair.partition("=")
        if not equals or not heading.strip():
            raise WrongUse(
                f"--columns: '{pair}' is not WHAT=HEADING; write such as truth=y_true,id=file"
            )
        if held.strip() not in NAMES:
            raise unknown("column in --columns", held.strip(), NAMES)
        given[held.strip()] = heading.strip()
    return given


def find_columns(sheet: Sheet, given: Mapping[str, str]) -> Columns:
    """Which heading holds what: as `given`, else guessed by its name."""
    by_name: dict[str, str] = {}
    for heading in sheet.headings:
        by_name.setdefault(plain(heading), heading)

    found: dict[str, str] = {}
    taken = set(given.values())
    for held, names in NAMES.items():
        if given.get(held) in sheet.headings:
            found[held] = given[held]
            continue
        for name in names:
            named = by_name.get(name)
            if named is not None and named not in taken:
                found[held] = named
                break

    probabilities = {}
    for heading in sheet.columns:
        class_name = _class_of(heading)
        if class_name and heading not in found.values():
            probabilities[class_name] = heading
    # One alone is of no class: a p-value.
    return Columns(found, probabilities if len(probabilities) > 1 else {})


def columns_of_classes(sheet: Sheet, columns: Columns) -> Columns | None:
    """The columns with a probability of each true class under its bare name, if there are such."""
    heading = columns.headings.get("truth")
    if heading is None or heading not in sheet.columns or "predicted" in columns:
        return None
    true_codes = {code(str(value)) for value in set(map(str, sheet.columns[heading]))}

    probabilities = {}
    for other in sheet.columns:
        if code(other) in true_codes and other not in columns.headings.values():
            if sheet.numbers(other) is None:
                return None
            probabilities[other] = other
    codes = {code(name) for name in probabilities}
    if len(codes) < 2 or codes != true_codes:
        return None
    return replace(columns, probabilities=probabilities)


def plain(heading: str) -> str:
    """The heading in small letters and without what separates its words."""
    return "".join(character for character in heading.casefold() if character.isalnum())


def _class_of(heading: str) -> str | None:
    """The class of which a heading is the probability, if it is one."""
    for prefix in PROBABILITY_PREFIXES:
        if heading.casefold().startswith(prefix) and len(heading) > len(prefix):
            return heading[len(prefix) :].rstrip(")").strip()
    for suffix in PROBABILITY_SUFFIXES:
        if heading.casefold().endswith(suffix) and len(heading) > len(suffix):
            return heading[: -len(suffix)].strip()
    return None
