"""What stands in two parts of a fold: refused, or said beside the scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ser.corpus.people import spelled_alike
from ser.errors import LeakageError

from .folds import Fold
from .utterances import Utterances


def check_leakage(
    fold: Fold, utterances: Utterances, separate: Sequence[str], shared_dev: bool = False
) -> None:
    """Raise `LeakageError` if an utterance, or anything of `separate`, stands in two of its parts.

    `separate` may name "dialogue" and "speaker". `shared_dev` allows train and dev to have speakers
    in common: a dev share is cut from the training speakers.
    """
    columns: dict[str, Sequence[Any]] = {"utterance": utterances.ids}
    if "dialogue" in separate:
        columns["dialogue"] = utterances.dialogues.tolist()
    if "speaker" in separate:
        columns["speaker"] = utterances.speakers

    for kind, column in columns.items():
        values = {}
        for part, rows in fold.parts.items():
            values[part] = {column[row] for row in rows} - {None}

        for first, second in (("train", "test"), ("dev", "test"), ("train", "dev")):
            if kind == "speaker" and shared_dev and second == "dev":
                continue
            common = values[first] & values[second]
            if common:
                place = next(row for row, value in enumerate(column) if value in common)
                raise LeakageError(
                    f"fold '{fold.name}': {len(common)} {kind}(s) stand in both {first} and "
                    f"{second}, such as that of utterance {utterances.ids[place]}; a score of this "
                    "fold would be worthless"
                )


def known_before(fold: Fold, utterances: Utterances) -> dict[str, Any]:
    """What of the test part also occurs in training, as a run's result.json holds it.

    `speakers`: whether each one is heard in train or dev, None where one is unknown;
    `speaker_independent`: if none is; `repeated_texts`: how many utterances' transcripts stand in
    train word for word, None where none has a transcript; `repeated_audio`: how many utterances'
    audio stands in train or dev under another id, None where none has audio; `alike_speakers`: the
    names in train or dev that differ by case or zeros alone from those of test speakers, by these.
    """
    speakers = _heard_speakers(fold, utterances)
    return {
        "speakers": speakers,
        "speaker_independent": speakers is not None and not any(speakers.values()),
        "repeated_texts": _repeated_texts(fold, utterances),
        "repeated_audio": _repeated_audio(fold, utterances),
        "alike_speakers": alike_speakers(fold, utterances),
    }


def alike_speakers(fold: Fold, utterances: Utterances) -> dict[str, str]:
    """The test speakers whose names differ by case or zeros alone from one heard before them.

    By each, that other name, such as `Anna` by `anna`: the two may be one person.
    """
    heard = {utterances.speakers[row] for row in np.concatenate([fold.train, fold.dev])}
    tested = {utterances.speakers[row] for row in fold.test}
    names = {str(name) for name in (heard | tested) - {None}}

    alike: dict[str, str] = {}
    for group in spelled_alike(names):
        for name in group:
            others = [other for other in group if other != name and other in heard]
            if name in tested and others:
                alike[name] = others[0]
    return alike


def alike_in_words(alike: Mapping[str, str]) -> str:
    """What `alike_speakers` are, in one clause; "" where there is none."""
    if not alike:
        return ""
    name, other = next(iter(alike.items()))
    return (
        f"{len(alike)} test speakers are spelled as ones in training but for case or zeros, such "
        f"as {name} and {other}: they may be the same people"
    )


def _heard_speakers(fold: Fold, utterances: Utterances) -> dict[str, bool] | None:
    heard = {utterances.speakers[row] for row in np.concatenate([fold.train, fold.dev])}
    tested = {utterances.speakers[row] for row in fold.test}
    if None in heard or None in tested:
        return None
    return {str(name): name in heard for name in sorted(tested, key=str)}


def _repeated_texts(fold: Fold, utterances: Utterances) -> int | None:
    if not utterances.texts:
        return None
    tested = [utterances.texts[row] for row in fold.test]
    if not any(tested):
        return None
    trained = {utterances.texts[row] for row in fold.train} - {None}
    return sum(text in trained for text in tested)


def _repeated_audio(fold: Fold, utterances: Utterances) -> int | None:
    if not utterances.sounds:
        return None
    tested = [utterances.sounds[row] for row in fold.test]
    if not any(tested):
        return None
    heard = {utterances.sounds[row] for row in np.concatenate([fold.train, fold.dev])} - {None}
    return sum(sound in heard for sound in tested)
