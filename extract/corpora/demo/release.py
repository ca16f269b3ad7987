"""The text files of a dialogue, as the IEMOCAP release has them."""

from dataclasses import dataclass

from .dialogues import Line
from .raters import Ratings

# What a Mac leaves beside a file.
APPLE_DOUBLE = "\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "


@dataclass(frozen=True)
class SpokenLine:
    """A line with its place in the dialogue, and what the raters say to it."""

    line: Line
    start: float
    """In seconds."""
    end: float
    ratings: Ratings


def release_files(dialogue: str, lines: list[SpokenLine]) -> dict[str, str]:
    """The content of each file, by its path below the session's folder."""
    evaluation = "dialog/EmoEvaluation"
    transcriptions = "dialog/transcriptions"
    categorical = _categorical(lines)
    return {
        f"{evaluation}/{dialogue}.txt": _evaluation(lines),
        f"{transcriptions}/{dialogue}.txt": _transcription(dialogue, lines),
        # Per rater: the same ids again, in other words.
        f"{evaluation}/Categorical/{dialogue}_e1_cat.txt": categorical,
        f"{evaluation}/Self-evaluation/{dialogue}_f_cat.txt": categorical,
        f"sentences/wav/{dialogue}/._{lines[0].line.id}.wav": APPLE_DOUBLE,
        f"{evaluation}/._{dialogue}.txt": APPLE_DOUBLE,
        f"{transcriptions}/._{dialogue}.txt": APPLE_DOUBLE,
    }


def _evaluation(lines: list[SpokenLine]) -> str:
    """Times, consensus and mean ratings of each line, and below them the raters' own."""
    text = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
    for spoken in lines:
        line = spoken.line
        ratings = spoken.ratings
        # F1 or M1.
        actor = f"{line.id[-4]}1"

        valence, activation, dominance = ratings.means
        text += f"[{spoken.start:.4f} - {spoken.end:.4f}]\t{line.id}\t{line.label}\t"
        text += f"[{valence:.4f}, {activation:.4f}, {dominance:.4f}]\n"

        for rater, votes in zip(("E2", "E3", "E4", actor), ratings.votes, strict=True):
            text += f"C-{rater}:\t{'; '.join(votes)};\t()\n"
        for rater, values in zip(("E2", "E3", actor), ratings.single, strict=True):
            valence, activation, rated_dominance = values
            text += f"A-{rater}:\tval {valence}; act {activation}; dom  {rated_dominance};\t()\n"
        text += "\n"
    return text


def _transcription(dialogue: str, lines: list[SpokenLine]) -> str:
    """What was said. Its lines are not all utterances, and not all in order."""
    text = f"{dialogue}_FXX0 [000.0000-{lines[0].start:08.4f}]: Okay.\n"

    shuffled = [*lines[:2], lines[3], lines[2], *lines[4:]]
    for number, spoken in enumerate(shuffled, 1):
        line = spoken.line
        text += f"{line.id} [{spoken.start:08.4f}-{spoken.end:08.4f}]: {line.text}\n"
        if number == 5:
            text += "M: Yeah.\nF:[LAUGHTER]\nF : Right.\n"

    end = lines[-1].end
    text += f"{dialogue}_MXX1 [{end:08.4f}-{end + 1:08.4f}]: Let me see."
    return text


def _categorical(lines: list[SpokenLine]) -> str:
    text = ""
    for spoken in lines:
        text += f"{spoken.line.id} :{spoken.ratings.word}; ()\n"
    return text
