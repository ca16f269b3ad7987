"""The dialogues of the demo corpus: who says what, and in which emotion."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from .draws import Random, draw_one, generator_of
from .words import ODD, draw_text

SESSIONS = range(1, 6)
# Of a dialogue, plus or minus two.
MEAN_TURNS = 14

# Where each scene goes, from its first turns to its last. Every session has them all.
ARCS = {
    "impro01": ["neu", "fru", "fru", "ang", "ang"],
    "impro02": ["neu", "neu", "sad", "sad", "sad"],
    "impro03": ["neu", "hap", "exc", "exc"],
    "script01_1": ["neu", "neu", "hap", "hap"],
    "script02_2": ["sad", "neu", "fru", "ang", "ang"],
}

# Labels that are rare in the release are rare here, by session, scene and turn.
RARE_LABELS = {
    (1, "impro01", 4): "sur",
    (1, "impro02", 7): "oth",
    (2, "impro03", 5): "sur",
    (2, "impro02", 9): "fea",
    (3, "script01_1", 6): "fea",
    (3, "script02_2", 8): "dis",
    (4, "impro03", 6): "sur",
    (5, "script02_2", 5): "fea",
    (5, "impro01", 7): "dis",
    (4, "script01_1", 3): "oth",
}

# Scenes that are called otherwise in one session, by names as odd as the release has them: one a
# prefix of another, and letters at the end.
RENAMED = {
    (3, "impro02"): "impro05a",
    (3, "impro03"): "impro05b",
    (5, "script02_2"): "script01_1b",
}

# The label where the raters do not agree.
UNDECIDED = "xxx"
UNDECIDED_SHARE = 0.09


@dataclass(frozen=True)
class Line:
    """An utterance, as it is to be said."""

    id: str
    label: str
    voice: str
    """The emotion that is heard."""
    text: str
    intensity: float
    """How far the voice is from neutral: 0 is neutral, 1 all of the emotion."""


@dataclass(frozen=True)
class Dialogue:
    """The lines of a dialogue, in order."""

    name: str
    session: int
    lines: list[Line]


def draw_dialogues() -> Iterator[Dialogue]:
    """All dialogues of the corpus, named as the release names them: Ses03F_impro01.

    The letter is that of the speaker, F or M, who wears the markers of motion capture.
    """
    for session in SESSIONS:
        for number, scene in enumerate(ARCS):
            rng = generator_of(session, number)
            marked = "M" if _man_is_marked(session, scene, rng) else "F"
            scene_name = RENAMED.get((session, scene), scene)
            name = f"Ses{session:02d}{marked}_{scene_name}"
            yield Dialogue(name, session, list(_draw_lines(name, session, number, scene, rng)))


def _man_is_marked(session: int, scene: str, rng: Random) -> bool:
    """Whether the man wears the markers.

    In Ses05M_script01_1 it is who does in Ses05M_script01_1b, whose name it begins.
    """
    if (session, scene) in RENAMED:
        return True
    return bool(rng.random() < 0.5) or (session, scene) == (5, "script01_1")


def _draw_lines(
    dialogue: str, session: int, scene_number: int, scene: str, rng: Random
) -> Iterator[Line]:
    """The lines of a dialogue, in order."""
    turns = MEAN_TURNS + int(rng.integers(-2, 3))
    next_number = {"F": count(), "M": count()}
    speaker = draw_one(rng, ["F", "M"])

    for turn in range(turns):
        label = RARE_LABELS.get((session, scene, turn))
        if label is None:
            label = _draw_label(ARCS[scene], turn / (turns - 1), rng)
        voice, words = _draw_expression(label, rng)

        if turn == turns - 2:
            text = ODD[(session + scene_number) % len(ODD)]
        else:
            text = draw_text(words, rng)

        # Emotions grow in the course of a dialogue.
        intensity = float(rng.normal(0.75 + 0.35 * turn / turns, 0.15))
        number = next(next_number[speaker])
        yield Line(f"{dialogue}_{speaker}{number:03d}", label, voice, text, intensity)

        if rng.random() < 0.85:
            speaker = "M" if speaker == "F" else "F"


def _draw_label(arc: list[str], position: float, rng: Random) -> str:
    """The arc's label at a position from 0 to 1, early or late by chance, or none at all."""
    if rng.random() < UNDECIDED_SHARE:
        return UNDECIDED
    shifted = np.clip(position + rng.normal(0, 0.08), 0, 0.999)
    return arc[int(shifted * len(arc))]


def _draw_expression(label: str, rng: Random) -> tuple[str, str | None]:
    """The emotion of the voice, and that of the words (None: they are plain)."""
    shown_by = rng.choice(["voice", "words", "both"], p=[0.27, 0.28, 0.45])
    if label == UNDECIDED:
        # Voice and words disagree: so did the raters.
        pair = rng.choice(["ang", "hap", "sad", "fru", "neu"], 2, replace=False)
        return str(pair[0]), str(pair[1])

    voice = "neu" if shown_by == "words" else label
    words = None if shown_by == "voice" else label
    return voice, words
