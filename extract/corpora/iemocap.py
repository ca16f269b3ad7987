"""IEMOCAP (Busso et al., 2008), read from the release as it lies on disk.

    Session{1..5}/dialog/EmoEvaluation/<dialogue>.txt     times, consensus, the raters' lines
    Session{1..5}/dialog/transcriptions/<dialogue>.txt    what was said
    Session{1..5}/sentences/wav/<dialogue>/<utterance>.wav

EmoEvaluation lists the utterances: transcriptions also hold lines that are not utterances, and the
times of the two differ in places, so they are joined on the id alone.
"""

import re
from itertools import takewhile
from pathlib import Path
from typing import Any

from ser.corpus.labels import IEMOCAP

from .scan import Problem, Reading, read_text, visible

DEMO_MARKER = "ser-demo.json"

# Ses01F_impro01_M003: session, who wore the markers, scene, who speaks, turn of that speaker. Turns
# that are not utterances are numbered FXX0 and MXX1, and do not match.
ID = re.compile(r"(?P<dialogue>Ses(?P<session>\d\d)[FM]_\w+)_(?P<gender>[FM])(?P<turn>\d{3})")
HEAD = re.compile(  # of a block of EmoEvaluation; attributes are not checked: seven of the release are outside [1, 5]
    r"\[\s*(?P<start>N)\s*-\s*(?P<end>N)\s*\]\t(?P<id>\S+)\t(?P<label>\w+)\t"
    r"\[\s*(?P<valence>N)\s*,\s*(?P<arousal>N)\s*,\s*(?P<dominance>N)\s*\]\s*".replace(
        "N", r"-?\d+(?:\.\d*)?"
    )
)
VOTE = re.compile(r"C-E\w*:\s*([^(]*)")  # raters F… and M… are the actors themselves
TRANSCRIPT = re.compile(r"(\S+)\s*\[\s*[\d.]+\s*-\s*[\d.]+\s*\]:(.*)", re.DOTALL)


def read_iemocap(root: Path) -> Reading:
    """Read the release at `root`, the folder of Session1 … Session5."""
    synthetic = (root / DEMO_MARKER).exists()  # a damaged one marks generated speech too
    reading = (
        Reading("demo", root, [], synthetic=True)
        if synthetic
        else Reading("iemocap", root, [], known=IEMOCAP)
    )
    for number in range(1, 6):
        session = root / f"Session{number}"
        if not session.is_dir():
            missing = f"Session{number} is missing from this copy of the corpus"
            reading.problems.append(Problem(None, session.name, missing))
        folders = [session / "dialog" / "EmoEvaluation", session / "dialog" / "transcriptions"]
        dialogues = {p.stem for folder in folders for p in visible(folder, ".txt")}
        dialogues |= {p.name for p in visible(session / "sentences" / "wav", "") if p.is_dir()}
        for dialogue in sorted(dialogues):
            _read_dialogue(session, dialogue, reading)
    return reading


def _read_dialogue(session: Path, dialogue: str, reading: Reading) -> None:
    """Add a dialogue's utterances, in turn order, and their problems."""
    labels = f"{session.name}/dialog/EmoEvaluation/{dialogue}.txt"
    transcripts = f"{session.name}/dialog/transcriptions/{dialogue}.txt"
    evaluation, transcription = reading.root / labels, reading.root / transcripts

    def problem(
        reason: str, id: str | None = None, kind: Any = "corpus", path: str = labels
    ) -> None:
        reading.problems.append(Problem(id, path, reason, kind))

    if not evaluation.is_file():
        return problem(f"the labels of dialogue {dialogue} are missing")
    # Lines that are not utterances are left out. Not splitlines(): it also splits at bytes that a
    # text may hold.
    lines = read_text(transcription).split("\n") if transcription.is_file() else []
    matches = filter(None, map(TRANSCRIPT.match, lines))
    texts = {match[1]: match[2].strip() for match in matches if ID.fullmatch(match[1])}
    rows, lines = list[dict[str, Any]](), read_text(evaluation).split("\n")
    for number, line in enumerate(lines, 1):
        if not line.startswith("["):
            continue
        if not (head := HEAD.fullmatch(line)):
            problem(
                f"line {number}: not readable as [start - end], id, label, [V, A, D]: {line.strip()[:80]}"
            )
            continue
        id = head["id"]
        parts = ID.fullmatch(id)
        if (
            not parts
            or parts["dialogue"] != dialogue
            or f"Session{int(parts['session'])}" != session.name
        ):
            problem(f"line {number}: no utterance id of {dialogue} in {session.name}", id)
            continue
        # Lines after an empty one belong to a block that lost its first line.
        block = takewhile(lambda line: line.strip() and not line.startswith("["), lines[number:])
        votes = []
        for vote in filter(None, map(VOTE.match, block)):
            categories = vote[1].split(";")
            votes.append(
                [category.strip().lower()[:3] for category in categories if category.strip()]
            )
        if not texts.get(id):
            problem(
                f"its transcript is {'empty' if id in texts else 'missing'}",
                id,
                "text",
                transcripts,
            )
        row = {
            "id": id,
            "audio": f"{session.name}/sentences/wav/{dialogue}/{id}.wav",
            "text": texts.get(id) or None,
            "session": str(int(parts["session"])),
            "dialogue": dialogue,
            "speaker": dialogue[:5]
            + parts["gender"],  # not dialogue[:6]: that letter says who wore the markers
            "gender": parts["gender"],
            "label": head["label"],
            "votes": votes,
        }
        rows.append(
            row
            | {
                name: float(head[name])
                for name in ("start", "end", "valence", "arousal", "dominance")
            }
        )
    labelled = {row["id"] for row in rows}
    # Each speaker's turns are numbered without a gap.
    turns = {f"{id[:-3]}{turn:03d}" for id in labelled for turn in range(int(id[-3:]))}
    for id in sorted((turns | texts.keys()) - labelled):
        problem("this utterance has no label line", id)
    rows.sort(key=lambda row: (row["start"], row["end"], row["id"]))
    reading.rows.extend({**row, "turn": turn} for turn, row in enumerate(rows))
