"""Write the demo corpus: synthetic speech in the layout of the IEMOCAP release, its odd corners included."""

import json
import re
import unicodedata
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from ser.errors import WrongUse

from .demo_voice import MANNERS, RATE, Speaker, speak
from .iemocap import DEMO_MARKER, consensus

VERSION = 1  # raised when the corpus' bytes change
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
# The raters' word for each label, and its mean valence, activation and dominance on the scale of 1 to 5.
CATEGORIES = {
    "neu": ("Neutral", (3.0, 2.5, 2.8)),
    "ang": ("Anger", (1.7, 3.9, 4.0)),
    "hap": ("Happiness", (4.1, 3.0, 3.0)),
    "exc": ("Excited", (4.2, 4.0, 3.5)),
    "sad": ("Sadness", (1.9, 2.0, 2.2)),
    "fru": ("Frustration", (2.2, 3.1, 3.2)),
    "sur": ("Surprise", (3.2, 3.7, 2.9)),
    "fea": ("Fear", (1.8, 3.6, 1.9)),
    "dis": ("Disgust", (1.9, 3.0, 3.2)),
    "oth": ("Other", (2.8, 2.8, 2.8)),
}
UNDECIDED = ("Other", (2.7, 2.9, 3.0))  # xxx


@dataclass(frozen=True)
class Line:
    """One utterance of the script: `voice` is the emotion heard, and `intensity` how far it is from neutral."""

    id: str
    label: str
    voice: str
    text: str
    intensity: float


def write_demo(folder: str | Path, seed: int = 0) -> int:
    """Write the demo corpus into `folder` and return its number of utterances.

    The same seed gives the same bytes. Raises `WrongUse` if the folder holds anything but this very demo corpus.
    """
    folder = Path(folder).expanduser()
    marker, content = folder / DEMO_MARKER, json.dumps({"synthetic": True, "version": VERSION, "seed": seed}) + "\n"
    if folder.exists() and not folder.is_dir():
        raise WrongUse(f"{folder} is a file; name a new or empty folder for the demo corpus")
    if marker.is_file() and marker.read_text() != content:
        raise WrongUse(f"{folder} holds another demo corpus (other version or seed); remove it or name a new folder")
    if folder.exists() and not marker.is_file() and any(folder.iterdir()):
        raise WrongUse(f"{folder} exists and is not a demo corpus; name a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(content)  # first of all: generated speech never lies about unmarked
    script = _script(seed)
    for dialogue, lines in script.items():
        _write_dialogue(folder / f"Session{int(dialogue[3:5])}", dialogue, lines, seed)
    return sum(map(len, script.values()))


def demo_vocabulary() -> list[str]:
    """Every word and punctuation mark of the demo's texts, in lower case, with and without accents, sorted."""
    texts = [*PLAIN, *ODD, *TAGS, *(t for texts in EMOTIONAL.values() for t in texts)]
    lower = " ".join(texts).lower()
    bare = "".join(c for c in unicodedata.normalize("NFD", lower) if not unicodedata.combining(c))
    return sorted(set(re.findall(r"\w+|[^\w\s]", f"{lower} {bare}")))


def _script(seed: int) -> dict[str, list[Line]]:
    """The lines of every dialogue, in the order in which they are spoken."""
    script = {}
    for session in range(1, 6):
        for number, scene in enumerate(ARCS):
            rng = np.random.default_rng([seed, session, number])
            marked = "M" if (session, scene) in RENAMED or rng.random() < 0.5 else "F"
            if (session, scene) == (5, "script01_1"):
                marked = "M"  # beside Ses05M_script01_1b
            dialogue = f"Ses{session:02d}{marked}_{RENAMED.get((session, scene), scene)}"
            script[dialogue] = _dialogue(dialogue, session, scene, rng)
    return script


def _dialogue(dialogue: str, session: int, scene: str, rng: Random) -> list[Line]:
    turns = TURNS + int(rng.integers(-2, 3))
    counts = {"F": 0, "M": 0}
    speaker = str(rng.choice(["F", "M"]))
    lines = []
    for turn in range(turns):
        label = RARE.get((session, scene, turn)) or _label(ARCS[scene], turn / (turns - 1), rng)
        mode = rng.choice(["voice", "words", "both"], p=[0.27, 0.28, 0.45])  # what shows the emotion
        voice, words = "neu" if mode == "words" else label, None if mode == "voice" else label
        if label == "xxx":  # voice and words disagree: so did the raters
            voice, words = map(str, rng.choice(["ang", "hap", "sad", "fru", "neu"], 2, replace=False))
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


def _text(words: str | None, rng: Random) -> str:
    """Plain phrases around one of the emotion `words`, if any; sometimes with a tag."""
    plain = int(rng.choice([1, 2, 3, 5], p=[0.62, 0.28, 0.07, 0.03]))
    if words is not None:
        plain = max(0, plain - int(rng.random() < 0.6))
    phrases = [str(p) for p in rng.choice(PLAIN, plain, replace=False)]
    if words is not None:
        phrases.insert(int(rng.integers(len(phrases) + 1)), str(rng.choice(EMOTIONAL[words])))
    if rng.random() < 0.06:
        phrases.insert(0, str(rng.choice(TAGS)))
    return " ".join(phrases)


def _random(seed: int, of: str) -> Random:
    return np.random.default_rng([seed, zlib.crc32(of.encode())])


def _write_dialogue(session: Path, dialogue: str, lines: list[Line], seed: int) -> None:
    rng = _random(seed, dialogue)
    wavs = session / "sentences" / "wav" / dialogue
    evaluations = session / "dialog" / "EmoEvaluation"
    transcriptions = session / "dialog" / "transcriptions"
    for made in (wavs, evaluations / "Categorical", evaluations / "Self-evaluation", transcriptions):
        made.mkdir(parents=True, exist_ok=True)

    times = []
    now = float(rng.uniform(3, 8))
    for line in lines:
        samples = speak(line.text, _speaker(line.id, seed), MANNERS[line.voice], line.intensity, _random(seed, line.id))
        soundfile.write(wavs / f"{line.id}.wav", samples, RATE, subtype="PCM_16")
        times.append((now, now + len(samples) / RATE))
        now = max(now + 0.1, times[-1][1] + float(rng.normal(0.4, 0.5)))  # people interrupt each other

    blocks = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"]
    blocks += [_evaluation(line, start, end, rng) for line, (start, end) in zip(lines, times, strict=True)]
    # Per rater: the same ids again, in other words. And what a Mac leaves behind.
    rated = "".join(f"{line.id} :{CATEGORIES.get(line.label, UNDECIDED)[0]}; ()\n" for line in lines).encode()
    (evaluations / "Categorical" / f"{dialogue}_e1_cat.txt").write_bytes(rated)
    (evaluations / "Self-evaluation" / f"{dialogue}_f_cat.txt").write_bytes(rated)
    (evaluations / f"{dialogue}.txt").write_bytes("".join(blocks).encode())
    (transcriptions / f"{dialogue}.txt").write_bytes(_transcripts(dialogue, lines, times).encode("cp1252"))
    for beside in (wavs / f"{lines[0].id}.wav", evaluations / f"{dialogue}.txt", transcriptions / f"{dialogue}.txt"):
        beside.with_name(f"._{beside.name}").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")


def _speaker(id: str, seed: int) -> Speaker:
    """The voice of session and last letter; no two are alike."""
    gender = id.rpartition("_")[2][0]
    pitch, tract = ((185, 225), (1.10, 1.20)) if gender == "F" else ((100, 130), (0.94, 1.04))
    rng = _random(seed, f"{id[:5]}{gender}")
    return Speaker(*(float(rng.uniform(low, high)) for low, high in (pitch, tract, (0.8, 1.2))))


def _evaluation(line: Line, start: float, end: float, rng: Random) -> str:
    """One block of an EmoEvaluation file."""
    vad = np.array(CATEGORIES.get(line.label, UNDECIDED)[1]) + rng.normal(0, 0.3, 3)
    if (line.label == "exc" and rng.random() < 0.05) or line.id.endswith("impro03_F003"):
        vad[0] = 5.5  # outside the scale, as seven values of the release are
    values = ", ".join(f"{v:.4f}" for v in np.where(vad == 5.5, 5.5, np.clip(np.round(vad * 2) / 2, 1, 5)))
    lines = [f"[{start:.4f} - {end:.4f}]\t{line.id}\t{line.label}\t[{values}]"]
    for rater, categories in zip(("E2", "E3", "E4"), _votes(line.label, rng), strict=True):
        lines.append(f"C-{rater}:\t{' '.join(CATEGORIES[c][0] + ';' for c in categories)}\t()")
    actor = f"{line.id.rpartition('_')[2][0]}1"
    lines.append(f"C-{actor}:\t{CATEGORIES[line.voice][0]}; Anger;\t()")
    for rater in ("E2", "E3", actor):
        v, a, d = np.clip(np.round(vad), 1, 5).astype(int)
        dominance = f"dom  {d}" if rng.random() < 0.9 else "dom  "
        lines.append(f"A-{rater}:\tval {v}; act {a}; {dominance};\t()")
    return "\n".join(lines) + "\n\n"


def _votes(label: str, rng: Random) -> list[list[str]]:
    """Three raters' categories, drawn until their consensus is the label."""
    while True:
        votes = []
        for _ in range(3):
            drawn = rng.choice(list(CATEGORIES), int(rng.choice([1, 2], p=[0.8, 0.2])), replace=False)
            votes.append([label] if label != "xxx" and rng.random() < 0.75 else [str(c) for c in drawn])
        if consensus(votes) == label:
            return votes


def _transcripts(dialogue: str, lines: list[Line], times: list[tuple[float, float]]) -> str:
    """The transcription: its lines are not all utterances, and not all in order."""
    spoken = [f"{line.id} [{a:08.4f}-{b:08.4f}]: {line.text}" for line, (a, b) in zip(lines, times, strict=True)]
    spoken[2], spoken[3] = spoken[3], spoken[2]
    first = f"{dialogue}_FXX0 [000.0000-{times[0][0]:08.4f}]: Okay."
    last = f"{dialogue}_MXX1 [{times[-1][1]:08.4f}-{times[-1][1] + 1:08.4f}]: Let me see."
    return "\n".join([first, *spoken[:5], "M: Yeah.", "F:[LAUGHTER]", "F : Right.", *spoken[5:], last])
