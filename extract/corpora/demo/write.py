"""Write the demo corpus into a folder."""

import io
import json
from pathlib import Path

import soundfile

from ser.disk.paths import expand_user
from ser.disk.write import write_whole
from ser.errors import WrongUse

from ..iemocap import DEMO_MARKER
from .dialogues import Dialogue, draw_dialogues
from .draws import SEED, generator_named
from .raters import draw_ratings
from .release import SpokenLine, release_files
from .synthesiser import DEMO_RATE
from .voices import speak_line

# Of the corpus' bytes.
VERSION = 1


def write_demo(folder: str | Path) -> None:
    """Write the demo corpus into `folder`, the same bytes each time.

    Raises `WrongUse` if the folder holds anything but this very demo corpus.
    """
    folder = expand_user(folder)
    marker = folder / DEMO_MARKER
    content = json.dumps({"synthetic": True, "version": VERSION, "seed": SEED}) + "\n"

    ours = marker.is_file() and marker.read_text() == content
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise WrongUse(
            f"{folder} exists and is not the demo corpus of this ser; name a new or empty folder"
        )

    folder.mkdir(parents=True, exist_ok=True)
    # First, so that no generated speech is ever without its mark.
    write_whole(marker, content.encode())
    for dialogue in draw_dialogues():
        _write_dialogue(folder / f"Session{dialogue.session}", dialogue)


def _write_dialogue(session: Path, dialogue: Dialogue) -> None:
    """Write the recordings of a dialogue, and the files that describe them."""
    rng = generator_named(dialogue.name)
    wavs = session / "sentences" / "wav" / dialogue.name
    wavs.mkdir(parents=True, exist_ok=True)

    times = []
    start = float(rng.uniform(3, 8))
    for line in dialogue.lines:
        samples = speak_line(line)
        audio = io.BytesIO()
        soundfile.write(audio, samples, DEMO_RATE, format="WAV", subtype="PCM_16")
        (wavs / f"{line.id}.wav").write_bytes(audio.getvalue())

        end = start + len(samples) / DEMO_RATE
        times.append((start, end))
        # People interrupt each other.
        start = max(start + 0.1, end + float(rng.normal(0.4, 0.5)))

    spoken = []
    for line, (start, end) in zip(dialogue.lines, times, strict=True):
        spoken.append(SpokenLine(line, start, end, draw_ratings(line, rng)))

    for name, text in release_files(dialogue.name, spoken).items():
        path = session / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("cp1252"))
