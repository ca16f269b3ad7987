"""IEMOCAP (Busso et al., 2008), read from the release as it lies on disk.

    Session{1..5}/dialog/EmoEvaluation/<dialogue>.txt     times, consensus, the raters' lines
    Session{1..5}/dialog/transcriptions/<dialogue>.txt    what was said
    Session{1..5}/sentences/wav/<dialogue>/<utterance>.wav

EmoEvaluation lists the utterances: transcriptions also hold lines that are not utterances, and the
times of the two differ in places, so they are joined on the id alone.
"""

import re
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import Any

from ser.corpus.labels import IEMOCAP
from ser.disk.text import read_text

from .files import visible
from .reading import Problem, Reading

# The file by which the demo corpus, in the same layout, is told from IEMOCAP.
DEMO_MARKER = "ser-demo.json"

# Ses01F_impro01_M003: session, who wore the markers, scene, who speaks, turn of that speaker. Turns
# that are not utterances are numbered FXX0 and MXX1, and do not match.
ID = re.compile(r"(?P<dialogue>Ses(?P<session>\d\d)[FM]_\w+)_(?P<gender>[FM])(?P<turn>\d{3})")

# The first line of an utterance in EmoEvaluation: [start - end], id, label, [valence, arousal,
# dominance]. Attributes are not checked: seven of the release are outside [1, 5].
NUMBER = r"-?\d+(?:\.\d*)?"
HEAD = re.compile(
    rf"\[\s*(?P<start>{NUMBER})\s*-\s*(?P<end>{NUMBER})\s*\]\t(?P<id>\S+)\t(?P<label>\w+)\t"
    rf"\[\s*(?P<valence>{NUMBER})\s*,\s*(?P<arousal>{NUMBER})\s*,"
    rf"\s*(?P<dominance>{NUMBER})\s*\]\s*"
)

# A rater's line in EmoEvaluation. Raters F… and M… are the actors themselves, and do not match.
VOTE = re.compile(r"C-E\w*:\s*([^(]*)")

TRANSCRIPT = re.compile(r"(\S+)\s*\[\s*[\d.]+\s*-\s*[\d.]+\s*\]:(.*)", re.DOTALL)


def read_iemocap(root: Path) -> Reading:
    """Read the release at `root`, the folder of Session1 … Session5."""
    # A damaged marker marks generated speech too.
    if (root / DEMO_MARKER).exists():
        reading = Reading("demo", root, [], synthetic=True, places="dialogue")
    else:
        reading = Reading("iemocap", root, [], known=dict(IEMOCAP), places="dialogue")

    for number in range(1, 6):
        session = root / f"Session{number}"
        if not session.is_dir():
            missing = f"Session{number} is missing from this copy of the corpus"
            reading.problems.append(Problem(None, session.name, missing))
        for dialogue in _dialogues(session):
            _read_dialogue(session, dialogue, reading)
    return reading


def _dialogues(session: Path) -> list[str]:
    """The dialogues of which a session has labels, transcripts or recordings, sorted."""
    names: set[str] = set()
    for folder in ("EmoEvaluation", "transcriptions"):
        for path in visible(session / "dialog" / folder, ".txt"):
            names.add(path.stem)
    for path in visible(session / "sentences" / "wav", ""):
        if path.is_dir():
            names.add(path.name)
    return sorted(names)


def _read_dialogue(session: Path, dialogue: str, reading: Reading) -> None:
    """Add a dialogue's utterances, in turn order, and their problems."""
    labels_path = f"{session.name}/dialog/EmoEvaluation/{dialogue}.txt"
    texts_path = f"{session.name}/dialog/transcriptions/{dialogue}.txt"
    problems = reading.problems

    if not (reading.root / labels_path).is_file():
        reason = f"the labels of dialogue {dialogue} are missing"
        problems.append(Problem(None, labels_path, reason))
        return
    texts = _read_texts(reading.root / texts_path)

    rows = []
    # Not splitlines(): it also splits at characters that a text may hold.
    lines = read_text(reading.root / labels_path).split("\n")
    for number, line in enumerate(lines, 1):
        if not line.startswith("["):
            continue

        head = HEAD.fullmatch(line)
        if head is None:
            shown = line.strip()[:80]
            reason = f"line {number}: not readable as [start - end], id, label, [V, A, D]: {shown}"
            problems.append(Problem(None, labels_path, reason))
            continue

        id = head["id"]
        parts = ID.fullmatch(id)
        if parts is None or not _belongs(parts, dialogue, session):
            reason = f"line {number}: no utterance id of {dialogue} in {session.name}"
            problems.append(Problem(id, labels_path, reason))
            continue

        if not texts.get(id):
            state = "empty" if id in texts else "missing"
            problems.append(Problem(id, texts_path, f"its transcript is {state}", "text"))
        rows.append(_row(head, parts, session, texts.get(id), _votes(lines[number:])))

    labelled = {row["id"] for row in rows}
    for id in _without_label(labelled, texts):
        problems.append(Problem(id, labels_path, "this utterance has no label line"))

    rows.sort(key=lambda row: (row["start"], row["end"], row["id"]))
    for turn, row in enumerate(rows):
        row["turn"] = turn
    reading.rows.extend(rows)


def _read_texts(path: Path) -> dict[str, str]:
    """The transcripts of a dialogue by id. Lines that are not utterances are left out."""
    texts: dict[str, str] = {}
    if not path.is_file():
        return texts
    for line in read_text(path).split("\n"):
        match = TRANSCRIPT.match(line)
        if match is not None and ID.fullmatch(match[1]):
            texts[match[1]] = match[2].strip()
    return texts


def _belongs(parts: re.Match[str], dialogue: str, session: Path) -> bool:
    """Whether an id is one of this dialogue and session."""
    return parts["dialogue"] == dialogue and f"Session{int(parts['session'])}" == session.name


def _votes(following: Iterable[str]) -> list[list[str]]:
    """The raters' categories, from the lines that follow the first one of an utterance."""

    # Lines after an empty one belong to a block that lost its first line.
    def of_same_block(line: str) -> bool:
        return bool(line.strip()) and not line.startswith("[")

    votes = []
    for line in takewhile(of_same_block, following):
        match = VOTE.match(line)
        if match is None:
            continue
        categories = []
        for category in match[1].split(";"):
            if category.strip():
                categories.append(category.strip().lower()[:3])
        votes.append(categories)
    return votes


def _row(
    head: re.Match[str],
    parts: re.Match[str],
    session: Path,
    text: str | None,
    votes: list[list[str]],
) -> dict[str, Any]:
    """The manifest's row of an utterance, but its turn."""
    dialogue = parts["dialogue"]
    return {
        "id": head["id"],
        "audio": f"{session.name}/sentences/wav/{dialogue}/{head['id']}.wav",
        "text": text or None,
        "session": str(int(parts["session"])),
        "dialogue": dialogue,
        # Not dialogue[:6]: that letter says who wore the markers.
        "speaker": dialogue[:5] + parts["gender"],
        "gender": parts["gender"],
        "label": head["label"],
        "votes": votes,
        "start": float(head["start"]),
        "end": float(head["end"]),
        "valence": float(head["valence"]),
        "arousal": float(head["arousal"]),
        "dominance": float(head["dominance"]),
    }


def _without_label(labelled: set[str], texts: dict[str, str]) -> list[str]:
    """The ids of utterances that there must be, but that have no label line, sorted.

    They have a transcript, or an utterance of a higher number: each speaker's turns are numbered
    without a gap.
    """
    expected = set(texts)
    for id in labelled:
        speaker = id[:-3]
        for turn in range(int(id[-3:])):
            expected.add(f"{speaker}{turn:03d}")
    return sorted(expected - labelled)
