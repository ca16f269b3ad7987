"""EmoDB, the Berlin Database of Emotional Speech (Burkhardt et al., Interspeech 2005): all in the file names.

`03a01Fa.wav` = speaker 03, text a01, emotion F, take a. Ten actors speak ten sentences in seven emotions, so every
sentence is spoken in every emotion: a model on text alone belongs at chance here.
"""

import re
import tomllib
from pathlib import Path

from .scan import Problem, Reading, visible

NAME = re.compile(r"(?P<speaker>\d{2})(?P<text>[ab]\d{2})(?P<emotion>[A-Z])(?P<take>[a-z])")
FULL_SIZE = 535  # recordings in the complete database; copies with fewer are fine
TEXTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
# The letters stand for the German words (Wut, Langeweile, Ekel, Angst, Freude, Trauer); the labels are IEMOCAP's,
# so that the same label policies apply, and `bor` for boredom, which IEMOCAP does not have.
EMOTIONS = {"W": "ang", "L": "bor", "E": "dis", "A": "fea", "F": "hap", "T": "sad", "N": "neu"}
GENDERS = dict.fromkeys(("03", "10", "11", "12", "15"), "M") | dict.fromkeys(("08", "09", "13", "14", "16"), "F")


def recordings(root: Path) -> list[Path]:
    """The WAV files, by name: the download keeps them in `wav/`."""
    return visible(root / "wav" if (root / "wav").is_dir() else root, ".wav")


def is_emodb(root: Path) -> bool:
    """Whether a folder holds recordings, most of them named by EmoDB's convention."""
    matches = [NAME.fullmatch(path.stem) is not None for path in recordings(root)]
    return 2 * sum(matches) > len(matches)


def read_emodb(root: Path) -> Reading:
    """Read EmoDB's file names. A recording is its own dialogue, and its speaker is its session."""
    rows, problems = [], []
    for path in recordings(root):
        audio = path.relative_to(root).as_posix()
        parts = NAME.fullmatch(path.stem)
        if not parts or parts["text"] not in TEXTS or parts["emotion"] not in EMOTIONS:
            reason = "the name does not follow EmoDB's convention (speaker, text, emotion, take: 03a01Fa)"
            problems.append(Problem(None, audio, reason))
            continue
        speaker = parts["speaker"]
        who = {"session": speaker, "speaker": speaker, "gender": GENDERS.get(speaker)}
        said = {"text": TEXTS[parts["text"]], "label": EMOTIONS[parts["emotion"]]}
        rows.append({"id": path.stem, "audio": audio, "dialogue": path.stem, "turn": 0, **who, **said})
    missing = [f"{len(rows)} of EmoDB's {FULL_SIZE} recordings are here"] if len(rows) != FULL_SIZE else []
    return Reading("emodb", root, rows, problems, warnings=missing)
