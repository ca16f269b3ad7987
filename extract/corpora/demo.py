"""Write the demo corpus: synthetic speech in the layout of the IEMOCAP release, its odd corners
included.

Its texts, labels, voices and the templates of its files are in demo.toml.
"""

import io
import json
import re
import tomllib
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain, count
from pathlib import Path
from statistics import multimode
from types import SimpleNamespace
from typing import Any

import jinja2
import numpy as np
import soundfile

from ser.disk.write import write_whole
from ser.errors import WrongUse

from .demo_voice import RATE, Random, speak
from .iemocap import DEMO_MARKER

VERSION, SEED = 1, 0  # of the corpus' bytes
TURNS = 14  # of a dialogue, plus or minus two
Line = dict[str, Any]  # an utterance, by the names that the templates of demo.toml use

DATA = SimpleNamespace(
    **tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
)
SAID = {**DATA.categories, "xxx": DATA.undecided}  # by label
TEMPLATES = jinja2.Environment(
    trim_blocks=True, keep_trailing_newline=True, loader=jinja2.DictLoader(DATA.files)
)


def write_demo(folder: str | Path) -> None:
    """Write the demo corpus into `folder`, the same bytes each time.

    Raises `WrongUse` if the folder holds anything but this very demo corpus.
    """
    folder = Path(folder).expanduser()
    marker, content = (
        folder / DEMO_MARKER,
        json.dumps({"synthetic": True, "version": VERSION, "seed": SEED}) + "\n",
    )
    ours = marker.is_file() and marker.read_text() == content
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise WrongUse(
            f"{folder} exists and is not the demo corpus of this ser; name a new or empty folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(
        marker, content.encode()
    )  # first, so that no generated speech is ever without its mark
    for session in range(1, 6):
        for number, scene in enumerate(DATA.arcs):
            rng = np.random.default_rng([SEED, session, number])
            name = DATA.renamed.get(f"{session} {scene}", scene)
            # Who wears the markers; in Ses05M_script01_1 it is who does in Ses05M_script01_1b.
            man = name != scene or rng.random() < 0.5 or (session, scene) == (5, "script01_1")
            dialogue = f"Ses{session:02d}{'M' if man else 'F'}_{name}"
            _write_dialogue(
                folder / f"Session{session}", dialogue, _lines(dialogue, session, scene, rng)
            )


def demo_vocabulary() -> list[str]:
    """Every word and punctuation mark of the demo's texts, in lower case, with and without accents,
    sorted.
    """
    lower = " ".join(
        [*DATA.plain, *DATA.odd, *DATA.tags, *chain.from_iterable(DATA.emotional.values())]
    ).lower()
    bare = "".join(c for c in unicodedata.normalize("NFD", lower) if not unicodedata.combining(c))
    return sorted(set(re.findall(r"\w+|[^\w\s]", f"{lower} {bare}")))


def _lines(dialogue: str, session: int, scene: str, rng: Random) -> Iterator[Line]:
    """The lines of a dialogue in order: `voice` is the emotion heard, `intensity` how far it is
    from neutral.
    """
    turns = TURNS + int(rng.integers(-2, 3))
    numbers = {"F": count(), "M": count()}
    speaker = str(rng.choice(["F", "M"]))
    for turn in range(turns):
        if (label := DATA.rare.get(f"{session} {scene} {turn}")) is None:
            arc, label = DATA.arcs[scene], "xxx"
            if rng.random() >= 0.09:  # the arc's label at this turn, early or late by chance
                label = arc[
                    int(np.clip(turn / (turns - 1) + rng.normal(0, 0.08), 0, 0.999) * len(arc))
                ]
        mode = rng.choice(
            ["voice", "words", "both"], p=[0.27, 0.28, 0.45]
        )  # what shows the emotion
        voice, words = "neu" if mode == "words" else label, None if mode == "voice" else label
        if label == "xxx":  # voice and words disagree: so did the raters
            voice, words = map(
                str, rng.choice(["ang", "hap", "sad", "fru", "neu"], 2, replace=False)
            )
        odd = DATA.odd[(session + list(DATA.arcs).index(scene)) % len(DATA.odd)]
        text = odd if turn == turns - 2 else _text(words, rng)
        line = {
            "id": f"{dialogue}_{speaker}{next(numbers[speaker]):03d}",
            "label": label,
            "voice": voice,
            "text": text,
        }
        yield line | {"intensity": float(rng.normal(0.75 + 0.35 * turn / turns, 0.15))}
        if rng.random() < 0.85:
            speaker = "M" if speaker == "F" else "F"


def _text(words: str | None, rng: Random) -> str:
    """Plain phrases around one of the emotion `words`, if any; sometimes with a tag."""
    plain = int(rng.choice([1, 2, 3, 5], p=[0.62, 0.28, 0.07, 0.03]))
    if words is not None:
        plain = max(0, plain - int(rng.random() < 0.6))
    phrases = [str(p) for p in rng.choice(DATA.plain, plain, replace=False)]
    if words is not None:
        phrases.insert(int(rng.integers(len(phrases) + 1)), str(rng.choice(DATA.emotional[words])))
    if rng.random() < 0.06:
        phrases.insert(0, str(rng.choice(DATA.tags)))
    return " ".join(phrases)


def _random(name: str) -> Random:
    return np.random.default_rng([SEED, zlib.crc32(name.encode())])


def _write_dialogue(session: Path, dialogue: str, lines: Iterable[Line]) -> None:
    """Write the recordings of a dialogue, and the files that describe them."""
    rng = _random(dialogue)
    wavs = session / "sentences" / "wav" / dialogue
    wavs.mkdir(parents=True, exist_ok=True)
    spoken, start = list[Line](), float(rng.uniform(3, 8))
    for line in lines:
        samples, audio = _spoken(line), io.BytesIO()
        soundfile.write(audio, samples, RATE, format="WAV", subtype="PCM_16")
        (wavs / f"{line['id']}.wav").write_bytes(audio.getvalue())
        spoken.append(line | {"start": start, "end": start + len(samples) / RATE})
        start = max(
            start + 0.1, spoken[-1]["end"] + float(rng.normal(0.4, 0.5))
        )  # people interrupt each other
    rated = [line | _rated(line, rng) for line in spoken]
    for name in DATA.files:
        path = session / name.format(dialogue, rated[0]["id"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            TEMPLATES.get_template(name).render(dialogue=dialogue, lines=rated).encode("cp1252")
        )


def _spoken(line: Line) -> np.ndarray:
    """The line in the voice of its speaker: each session and gender has its own."""
    id, intensity = line["id"], line["intensity"]
    gender = id.rpartition("_")[2][0]
    rng = _random(f"{id[:5]}{gender}")
    pitch, tract, gain = (float(rng.uniform(*bounds)) for bounds in DATA.voices[gender])
    neutral, full = (np.array(DATA.manners[emotion]) for emotion in ("neu", line["voice"]))
    voice = dict(zip(DATA.manner, neutral + intensity * (full - neutral), strict=True))
    voice |= {"pitch": pitch * voice["pitch"], "tract": tract, "gain": 0.06 * gain * voice["gain"]}
    return speak(line["text"], voice, _random(id))


def _rated(line: Line, rng: Random) -> dict[str, Any]:
    """The raters' answers to a line."""
    id, label = line["id"], line["label"]
    vad = np.array(SAID[label][1]) + rng.normal(0, 0.3, 3)
    if (label == "exc" and rng.random() < 0.05) or id.endswith("impro03_F003"):
        vad[0] = 5.5  # outside the scale, as seven values of the release are
    means = tuple(np.where(vad == 5.5, 5.5, np.clip(np.round(vad * 2) / 2, 1, 5)))
    votes = [[DATA.categories[category][0] for category in vote] for vote in _votes(label, rng)]
    votes.append([DATA.categories[line["voice"]][0], "Anger"])
    v, a, d = np.clip(np.round(vad), 1, 5).astype(int)
    rated = [(v, a, d if rng.random() < 0.9 else "") for _ in range(3)]
    return {
        "word": SAID[label][0],
        "means": means,
        "votes": votes,
        "rated": rated,
        "actor": f"{id[-4]}1",
    }


def _votes(label: str, rng: Random) -> list[list[str]]:
    """Three raters' categories, drawn until their consensus is the label.

    The release's rule: the category with most votes, at least two and more than any other has; else
    `xxx`. Every category that a rater names is one vote.
    """
    while True:
        votes = []
        for _ in range(3):
            drawn = rng.choice(
                list(DATA.categories), int(rng.choice([1, 2], p=[0.8, 0.2])), replace=False
            )
            votes.append(
                [label] if label != "xxx" and rng.random() < 0.75 else [str(c) for c in drawn]
            )
        most = multimode(
            chain.from_iterable(votes)
        )  # of three votes or more: one alone has two or more
        if label == (most[0] if len(most) == 1 else "xxx"):
            return votes
