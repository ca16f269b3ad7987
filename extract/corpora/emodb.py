"""EmoDB, the Berlin Database of Emotional Speech (Burkhardt et al., Interspeech 2005): all in the file names.

`03a01Fa.wav` = speaker 03, text a01, emotion F, take a. Ten actors speak ten sentences in seven emotions, so every
sentence is spoken in every emotion: a model on text alone belongs at chance here.
"""

import re
from pathlib import Path

from .reading import Problem, Reading, visible

NAME = re.compile(r"(?P<speaker>\d{2})(?P<text>[ab]\d{2})(?P<emotion>[A-Z])(?P<take>[a-z])")
FULL_SIZE = 535  # recordings in the complete database; copies with fewer are fine

TEXTS = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
# The letters stand for the German words (Wut, Langeweile, Ekel, Angst, Freude, Trauer); the labels are IEMOCAP's,
# so that the same label policies apply, and `bor` for boredom, which IEMOCAP does not have.
EMOTIONS = {"W": "ang", "L": "bor", "E": "dis", "A": "fea", "F": "hap", "T": "sad", "N": "neu"}
MEN = {"03", "10", "11", "12", "15"}
WOMEN = {"08", "09", "13", "14", "16"}


def audio_folder(root: Path) -> Path:
    """Where the recordings lie: the download keeps them in `wav/`."""
    return root / "wav" if (root / "wav").is_dir() else root


def is_emodb(root: Path) -> bool:
    """Whether a folder holds recordings, most of them named by EmoDB's convention."""
    stems = [p.stem for p in visible(audio_folder(root), ".wav")]
    return 2 * sum(NAME.fullmatch(s) is not None for s in stems) > len(stems)


def read_emodb(root: Path) -> Reading:
    """Read EmoDB's file names. A recording is its own dialogue, and its speaker is its session."""
    rows = []
    problems = []
    for path in visible(audio_folder(root), ".wav"):
        audio = path.relative_to(root).as_posix()
        parts = NAME.fullmatch(path.stem)
        if not parts or parts["text"] not in TEXTS or parts["emotion"] not in EMOTIONS:
            reason = "the name does not follow EmoDB's convention (speaker, text, emotion, take: 03a01Fa)"
            problems.append(Problem(None, audio, reason))
            continue
        speaker = parts["speaker"]
        rows.append(
            {
                "id": path.stem,
                "audio": audio,
                "text": TEXTS[parts["text"]],
                "session": speaker,
                "dialogue": path.stem,
                "turn": 0,
                "speaker": speaker,
                "gender": "M" if speaker in MEN else "F" if speaker in WOMEN else None,
                "label": EMOTIONS[parts["emotion"]],
            }
        )
    return Reading("emodb", root, rows, problems)
