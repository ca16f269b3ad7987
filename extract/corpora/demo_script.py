"""The demo corpus' script: who says what, in which emotion, and whether voice or words show it."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

import numpy as np

Mode = Literal["voice", "words", "both"]
Random = np.random.Generator

# Said in any emotion.
# fmt: off
PLAIN = (
    "Yeah.", "Okay.", "Right.", "Well, I don't know.", "What do you mean?", "Let me see.", "I told them yesterday.",
    "We talked about it.", "It was on the table.", "She said it to me.", "You said that before.", "Are you there?",
    "I was at the office.", "He is coming over tonight.", "They called me this morning.", "So this is the letter.",
    "I have to go to the station.", "Do you want some coffee?", "It is about the house.", "We can do it on Monday.",
    "Give me a minute.", "That is what they said.", "I put it in the car.", "Did you hear from your brother?",
)
EMOTIONAL = {
    "neu": ("The form is on the second floor.", "You need two copies.", "Please sign here.", "The bus leaves at nine.",
            "I will check the number.", "That will be ten dollars.", "Your name and address, please."),
    "ang": ("I hate this.", "Get out of here!", "How dare you!", "This is your fault.", "Shut up!",
            "You never listen, never.", "Don't you lie to me!"),
    "hap": ("I am so glad.", "That is lovely.", "I love it here.", "What a nice day.", "You make me smile.",
            "Thank you, that is sweet.", "It went really well."),
    "exc": ("Oh my god, we won!", "This is amazing!", "I got the job!", "I can't wait!", "We are getting married!",
            "Awesome, just awesome!"),
    "sad": ("I miss her.", "He is gone.", "I feel so alone.", "She died last winter.", "I can't stop crying.",
            "There is nothing left.", "I am sorry, I am so sorry."),
    "fru": ("Not again.", "I have tried everything.", "Nobody can help me.", "I waited in line for hours.",
            "It makes no sense.", "Why is this so hard?"),
    "sur": ("Really? I had no idea.", "Wow, are you serious?", "No way!"),
    "fea": ("Somebody is out there.", "I am scared.", "Please don't leave me here."),
    "dis": ("That is disgusting.", "Ugh, it smells."),
    "oth": ("Hmm, I wonder.", "Whatever you think is best."),
}
TAGS = ("[LAUGHTER]", "[BREATHING]", "[GARBAGE]", "[LIPSMACK]", "[laughter]")
# Texts that a parser stumbles over: a tab, semicolons, quotation marks, a letter outside ASCII, a tag alone.
ODD = (
    "Well,\tI was at the office.", 'She said "Okay" to me; that is what they said.', "Let me see; it was at the café.",
    "[LAUGHTER]", "[BREATHING]",
)

# Where each dialogue goes, from its first turns to its last; every session has them all.
ARCS: dict[str, tuple[str, ...]] = {
    "impro01": ("neu", "fru", "fru", "ang", "ang"),
    "impro02": ("neu", "neu", "sad", "sad", "sad"),
    "impro03": ("neu", "hap", "exc", "exc"),
    "script01_1": ("neu", "neu", "hap", "hap"),
    "script02_2": ("sad", "neu", "fru", "ang", "ang"),
}
# Labels that are rare in the release are rare here: (session, scene, turn) → label.
RARE = {
    (1, "impro01", 4): "sur", (1, "impro02", 7): "oth", (2, "impro03", 5): "sur", (2, "impro02", 9): "fea",
    (3, "script01_1", 6): "fea", (3, "script02_2", 8): "dis", (4, "impro03", 6): "sur", (5, "script02_2", 5): "fea",
    (5, "impro01", 7): "dis", (4, "script01_1", 3): "oth",
}
# fmt: on
# Names as odd as the release has them: one a prefix of another, and letters at the end.
RENAMED = {(3, "impro02"): "impro05a", (3, "impro03"): "impro05b", (5, "script02_2"): "script01_1b"}
TURNS = 14  # of a dialogue, give or take two


@dataclass(frozen=True)
class Line:
    """One utterance of the script. `intensity` says how far its manner is from a neutral voice."""

    id: str
    label: str
    voice: str
    text: str
    intensity: float


def write_script(seed: int) -> dict[str, list[Line]]:
    """The lines of every dialogue, in the order in which they are spoken."""
    script = {}
    for session in range(1, 6):
        for scene in ARCS:
            rng = np.random.default_rng([seed, session, list(ARCS).index(scene)])
            marked = "M" if (session, scene) in RENAMED or rng.random() < 0.5 else "F"
            if (session, scene) == (5, "script01_1"):
                marked = "M"  # beside Ses05M_script01_1b
            dialogue = f"Ses{session:02d}{marked}_{RENAMED.get((session, scene), scene)}"
            script[dialogue] = _dialogue(dialogue, session, scene, rng)
    return script


def demo_vocabulary() -> list[str]:
    """Every word and punctuation mark of the demo's texts, in lower case, with and without accents, sorted."""
    texts = [*PLAIN, *ODD, *TAGS, *(t for texts in EMOTIONAL.values() for t in texts)]
    lower = " ".join(texts).lower()
    bare = "".join(c for c in unicodedata.normalize("NFD", lower) if not unicodedata.combining(c))
    return sorted(set(re.findall(r"\w+|[^\w\s]", f"{lower} {bare}")))


def _dialogue(dialogue: str, session: int, scene: str, rng: Random) -> list[Line]:
    turns = TURNS + int(rng.integers(-2, 3))
    counts = {"F": 0, "M": 0}
    speaker = str(rng.choice(["F", "M"]))
    lines = []
    for turn in range(turns):
        label = RARE.get((session, scene, turn)) or _label(ARCS[scene], turn / (turns - 1), rng)
        mode: Mode = rng.choice(["voice", "words", "both"], p=[0.27, 0.28, 0.45])
        voice, words = _shown(label, mode, rng)
        text = _text(words, rng) if turn != turns - 2 else ODD[(session + list(ARCS).index(scene)) % len(ODD)]
        intensity = rng.normal(0.75 + 0.35 * turn / turns, 0.15)
        lines.append(Line(f"{dialogue}_{speaker}{counts[speaker]:03d}", label, voice, text, float(intensity)))
        counts[speaker] += 1
        if rng.random() < 0.85:
            speaker = "M" if speaker == "F" else "F"
    return lines


def _label(arc: tuple[str, ...], progress: float, rng: Random) -> str:
    """The emotion at this point of a dialogue: where its arc is by now, early or late by chance."""
    if rng.random() < 0.09:
        return "xxx"
    place = np.clip(progress + rng.normal(0, 0.08), 0, 0.999)
    return arc[int(place * len(arc))]


def _shown(label: str, mode: Mode, rng: Random) -> tuple[str, str | None]:
    """The emotion of the voice, and that of the words (None: plain words), of an utterance with this label."""
    if label == "xxx":  # voice and words disagree: so did the raters
        voice, words = rng.choice(["ang", "hap", "sad", "fru", "neu"], 2, replace=False)
        return str(voice), str(words)
    return ("neu" if mode == "words" else label), (None if mode == "voice" else label)


def _text(words: str | None, rng: Random) -> str:
    """Plain phrases around a telling one; sometimes with a tag."""
    plain = int(rng.choice([1, 2, 3, 5], p=[0.62, 0.28, 0.07, 0.03]))
    if words is not None:
        plain = max(0, plain - int(rng.random() < 0.6))
    phrases = [str(p) for p in rng.choice(PLAIN, plain, replace=False)]
    if words is not None:
        phrases.insert(int(rng.integers(len(phrases) + 1)), str(rng.choice(EMOTIONAL[words])))
    if rng.random() < 0.06:
        phrases.insert(0, str(rng.choice(TAGS)))
    return " ".join(phrases)
