"""Write the demo corpus: synthetic speech in the layout of the IEMOCAP release, its odd corners included."""

import json
import wave
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ser.errors import WrongUse

from .demo_script import Line, demo_vocabulary, write_script
from .iemocap import DEMO_MARKER, consensus
from .voice import MANNERS, NEUTRAL, RATE, Speaker, speak

__all__ = ["demo_vocabulary", "write_demo"]

VERSION = 1  # raised when the corpus' bytes change

# Categories as the raters' lines spell them.
CATEGORIES = {
    "neu": "Neutral",
    "ang": "Anger",
    "hap": "Happiness",
    "exc": "Excited",
    "sad": "Sadness",
    "fru": "Frustration",
    "sur": "Surprise",
    "fea": "Fear",
    "dis": "Disgust",
    "oth": "Other",
}
# Mean valence, activation and dominance by label, on the scale of 1 to 5.
VAD = {
    "neu": (3.0, 2.5, 2.8),
    "ang": (1.7, 3.9, 4.0),
    "hap": (4.1, 3.0, 3.0),
    "exc": (4.2, 4.0, 3.5),
    "sad": (1.9, 2.0, 2.2),
    "fru": (2.2, 3.1, 3.2),
    "sur": (3.2, 3.7, 2.9),
    "fea": (1.8, 3.6, 1.9),
    "dis": (1.9, 3.0, 3.2),
    "oth": (2.8, 2.8, 2.8),
    "xxx": (2.7, 2.9, 3.0),
}


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
        raise WrongUse(f"{folder} is there already and is no demo corpus; name a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    # First of all, so that speech which says nothing about people never lies about unmarked.
    marker.write_text(content)
    script = write_script(seed)
    for dialogue, lines in script.items():
        _write_dialogue(folder / f"Session{int(dialogue[3:5])}", dialogue, lines, seed)
    return sum(map(len, script.values()))


def _write_dialogue(session: Path, dialogue: str, lines: list[Line], seed: int) -> None:
    rng = np.random.default_rng([seed, zlib.crc32(dialogue.encode())])
    wavs = session / "sentences" / "wav" / dialogue
    evaluations = session / "dialog" / "EmoEvaluation"
    transcriptions = session / "dialog" / "transcriptions"
    for made in (wavs, evaluations / "Categorical", evaluations / "Self-evaluation", transcriptions):
        made.mkdir(parents=True, exist_ok=True)

    times = []
    now = float(rng.uniform(3, 8))
    for line in lines:
        samples = _say(line, seed)
        _write_wav(wavs / f"{line.id}.wav", samples)
        times.append((now, now + len(samples) / RATE))
        now = max(now + 0.1, times[-1][1] + float(rng.normal(0.4, 0.5)))  # people interrupt each other

    blocks = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"]
    blocks += [_evaluation(line, start, end, rng) for line, (start, end) in zip(lines, times, strict=True)]
    (evaluations / f"{dialogue}.txt").write_bytes("".join(blocks).encode())
    # Per rater: the same ids again, in other words. And what a Mac leaves behind.
    rated = "".join(f"{line.id} :{CATEGORIES.get(line.label, 'Other')}; ()\n" for line in lines)
    (evaluations / "Categorical" / f"{dialogue}_e1_cat.txt").write_bytes(rated.encode())
    (evaluations / "Self-evaluation" / f"{dialogue}_f_cat.txt").write_bytes(rated.encode())
    (transcriptions / f"{dialogue}.txt").write_bytes("\n".join(_transcripts(dialogue, lines, times)).encode("cp1252"))
    for folder, name in (
        (wavs, lines[0].id + ".wav"),
        (evaluations, dialogue + ".txt"),
        (transcriptions, dialogue + ".txt"),
    ):
        (folder / f"._{name}").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")


def _speaker(id: str, seed: int) -> Speaker:
    """The voice of session and last letter; no two are alike."""
    gender = id.rpartition("_")[2][0]
    rng = np.random.default_rng([seed, zlib.crc32(f"{id[:5]}{gender}".encode())])
    if gender == "F":
        return Speaker(float(rng.uniform(185, 225)), float(rng.uniform(1.10, 1.20)), float(rng.uniform(0.8, 1.2)))
    return Speaker(float(rng.uniform(100, 130)), float(rng.uniform(0.94, 1.04)), float(rng.uniform(0.8, 1.2)))


def _say(line: Line, seed: int) -> NDArray[np.int16]:
    rng = np.random.default_rng([seed, zlib.crc32(line.id.encode())])
    manner = NEUTRAL.towards(MANNERS[line.voice], line.intensity)
    return speak(line.text, _speaker(line.id, seed), manner, rng)


def _write_wav(path: Path, samples: NDArray[np.int16]) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.astype("<i2").tobytes())


def _evaluation(line: Line, start: float, end: float, rng: np.random.Generator) -> str:
    """One block of an EmoEvaluation file."""
    vad = np.array(VAD[line.label]) + rng.normal(0, 0.3, 3)
    if (line.label == "exc" and rng.random() < 0.05) or line.id.endswith("impro03_F003"):
        vad[0] = 5.5  # outside the scale, as seven values of the release are
    values = ", ".join(f"{v:.4f}" for v in np.where(vad == 5.5, 5.5, np.clip(np.round(vad * 2) / 2, 1, 5)))
    lines = [f"[{start:.4f} - {end:.4f}]\t{line.id}\t{line.label}\t[{values}]"]
    for rater, categories in zip(("E2", "E3", "E4"), _votes(line.label, rng), strict=True):
        lines.append(f"C-{rater}:\t{' '.join(CATEGORIES[c] + ';' for c in categories)}\t()")
    actor = f"{line.id.rpartition('_')[2][0]}1"
    lines.append(f"C-{actor}:\t{CATEGORIES.get(line.voice, 'Neutral')}; Anger;\t()")
    for rater in ("E2", "E3", actor):
        v, a, d = np.clip(np.round(vad), 1, 5).astype(int)
        dominance = f"dom  {d}" if rng.random() < 0.9 else "dom  "
        lines.append(f"A-{rater}:\tval {v}; act {a}; {dominance};\t()")
    return "\n".join(lines) + "\n\n"


def _votes(label: str, rng: np.random.Generator) -> list[list[str]]:
    """Three raters' categories, drawn until their consensus is the label."""
    names = list(CATEGORIES)
    while True:
        votes = []
        for _ in range(3):
            drawn = [str(c) for c in rng.choice(names, int(rng.choice([1, 2], p=[0.8, 0.2])), replace=False)]
            votes.append([label] if label != "xxx" and rng.random() < 0.75 else drawn)
        if consensus(votes) == label:
            return votes


def _transcripts(dialogue: str, lines: list[Line], times: list[tuple[float, float]]) -> Iterator[str]:
    """The transcription's lines: not all of utterances, and not all in order."""
    spoken = [
        f"{line.id} [{start:08.4f}-{end:08.4f}]: {line.text}" for line, (start, end) in zip(lines, times, strict=True)
    ]
    spoken[2], spoken[3] = spoken[3], spoken[2]
    first, last = times[0][0], times[-1][1]
    yield f"{dialogue}_FXX0 [000.0000-{first:08.4f}]: Okay."
    yield from spoken[:5]
    yield from ("M: Yeah.", "F:[LAUGHTER]", "F : Right.")
    yield from spoken[5:]
    yield f"{dialogue}_MXX1 [{last:08.4f}-{last + 1:08.4f}]: Let me see."
