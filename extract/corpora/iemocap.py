"""IEMOCAP (Busso et al., 2008), read from the release as it lies on disk.

    Session{1..5}/dialog/EmoEvaluation/<dialogue>.txt     times, consensus, the raters' lines
    Session{1..5}/dialog/transcriptions/<dialogue>.txt    what was said
    Session{1..5}/sentences/wav/<dialogue>/<utterance>.wav

An utterance is what EmoEvaluation lists: transcriptions also hold lines that are no utterance, and times differ
between the two in places, so the two are joined on the id alone.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ser.errors import CorpusError, WrongUse

from .reading import Problem, Reading, read_text, visible

SESSIONS = range(1, 6)
LABELS = ("ang", "hap", "exc", "neu", "sad", "fru", "sur", "fea", "dis", "oth", "xxx")
DEMO_MARKER = "ser-demo.json"

# Ses01F_impro01_M003: session, who wore the markers, scene, who speaks, turn of that speaker. Turns that are no
# utterance are numbered FXX0 and MXX1, and fail to match.
ID = re.compile(r"(?P<dialogue>Ses(?P<session>\d\d)[FM]_\w+)_(?P<gender>[FM])(?P<turn>\d{3})")
BLOCK = re.compile(r"\[\s*([\d.]+)\s*-\s*([\d.]+)\s*\]\t(\S+)\t(\w+)\t\[\s*(.+?),\s*(.+?),\s*(.+?)\s*\]\s*")
VOTE = re.compile(r"C-(?P<rater>\w+):\s*(?P<categories>[^(]*)")
TRANSCRIPT = re.compile(r"(?P<id>\S+)\s*\[\s*[\d.]+\s*-\s*[\d.]+\s*\]:(?P<text>.*)", re.DOTALL)


@dataclass
class Evaluation:
    """One block of an EmoEvaluation file."""

    id: str
    start: float
    end: float
    label: str
    vad: tuple[float, float, float]  # as they stand: seven lie outside [1, 5] in the release
    votes: list[list[str]] = field(default_factory=list)  # of the external raters


def is_iemocap(root: Path) -> bool:
    """Whether any session of a release lies here."""
    return any((root / f"Session{n}" / "dialog").is_dir() for n in SESSIONS)


def read_iemocap(root: Path) -> Reading:
    """Read the release at `root`. Raises `WrongUse` if there is none."""
    if not is_iemocap(root):
        raise WrongUse(f"{root} is no IEMOCAP release: it holds no Session1/dialog; give the folder of Session1 … 5")
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for number in SESSIONS:
        session = root / f"Session{number}"
        if not session.is_dir():
            problems.append(Problem(None, session.name, f"Session{number} is missing from this copy of the corpus"))
            continue
        folders = [session / "dialog" / "EmoEvaluation", session / "dialog" / "transcriptions"]
        dialogues = {p.stem for folder in folders for p in visible(folder, ".txt")}
        dialogues |= {p.name for p in visible(session / "sentences" / "wav", "") if p.is_dir()}
        for dialogue in sorted(dialogues):
            _read_dialogue(root, number, dialogue, rows, problems)
    synthetic = _is_demo(root)
    return Reading("demo" if synthetic else "iemocap", root, rows, problems, synthetic=synthetic)


def consensus(votes: list[list[str]]) -> str:
    """The category with most votes, if it has at least two and no other has as many; else `xxx`.

    Every category that a rater names is one vote.
    """
    ranked = Counter(category for rater in votes for category in rater).most_common(2)
    if not ranked or ranked[0][1] < 2 or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return "xxx"
    return ranked[0][0]


def _read_dialogue(
    root: Path, session: int, dialogue: str, rows: list[dict[str, Any]], problems: list[Problem]
) -> None:
    """Append a dialogue's utterances, in turn order, and whatever is wrong with them."""
    folder = root / f"Session{session}"
    evaluation = folder / "dialog" / "EmoEvaluation" / f"{dialogue}.txt"
    transcription = folder / "dialog" / "transcriptions" / f"{dialogue}.txt"
    evaluation_name, transcription_name = (p.relative_to(root).as_posix() for p in (evaluation, transcription))
    if not evaluation.is_file():
        problems.append(Problem(None, evaluation_name, f"the labels of dialogue {dialogue} are missing"))
        return
    texts = dict(_transcripts(transcription)) if transcription.is_file() else {}
    blocks = []
    for number, block in _evaluations(evaluation):
        if isinstance(block, str):
            problems.append(Problem(None, evaluation_name, f"line {number}: {block}"))
            continue
        parts = ID.fullmatch(block.id)
        if not parts or parts["dialogue"] != dialogue or int(parts["session"]) != session:
            problems.append(
                Problem(block.id, evaluation_name, f"line {number}: no utterance id of {dialogue} in Session{session}")
            )
            continue
        blocks.append(block)
        fault = None
        if block.label not in LABELS:
            fault = f"the label {block.label} is none of IEMOCAP's"
        elif block.votes and (expected := consensus(block.votes)) != block.label:
            fault = f"the label is {block.label}, but the raters' votes make it {expected}"
        elif not block.votes:
            fault = "no external rater's vote is there"
        if fault:
            problems.append(Problem(block.id, evaluation_name, fault, "label"))
        if not texts.get(block.id):
            gone = "its transcript is empty" if block.id in texts else "its transcript is missing"
            problems.append(Problem(block.id, transcription_name, gone, "text"))
    for id in sorted(_expected({b.id for b in blocks}, texts) - {b.id for b in blocks}):
        problems.append(Problem(id, evaluation_name, "this utterance has no label line"))
    for turn, block in enumerate(sorted(blocks, key=lambda b: (b.start, b.end, b.id))):
        rows.append(_row(block, turn, texts.get(block.id) or None, f"Session{session}/sentences/wav/{dialogue}"))


def _row(block: Evaluation, turn: int, text: str | None, folder: str) -> dict[str, Any]:
    dialogue, _, tail = block.id.rpartition("_")
    return {
        "id": block.id,
        "audio": f"{folder}/{block.id}.wav",
        "text": text,
        "session": str(int(dialogue[3:5])),
        "dialogue": dialogue,
        "turn": turn,
        "speaker": dialogue[:5] + tail[0],  # not dialogue[:6]: that letter says who wore the markers
        "gender": tail[0],
        "start": block.start,
        "end": block.end,
        "label": block.label,
        "votes": block.votes,
        "valence": block.vad[0],
        "arousal": block.vad[1],
        "dominance": block.vad[2],
    }


def _evaluations(path: Path) -> Iterator[tuple[int, Evaluation | str]]:
    """Each block of an EmoEvaluation file with its line number; a string in its place says why it cannot be read."""
    block: Evaluation | None = None
    begun = 0
    for number, line in enumerate([*read_text(path).split("\n"), "["], 1):
        if line.startswith("["):
            if block:
                yield begun, block
            match = BLOCK.fullmatch(line.rstrip("\r"))
            block, begun = None, number
            if match:
                try:
                    start, end, v, a, d = (float(match[i]) for i in (1, 2, 5, 6, 7))
                    block = Evaluation(match[3], start, end, match[4], (v, a, d))
                except ValueError:
                    match = None
            if not match and line != "[":
                yield number, f"not readable as [start - end], id, label, [V, A, D]: {line.strip()[:80]}"
        elif block and (vote := VOTE.match(line)) and vote["rater"].startswith("E"):
            # Raters F… and M… are the actors themselves. Categories are coded by their first three letters.
            categories = [c.strip().lower()[:3] for c in vote["categories"].split(";")]
            block.votes.append([c for c in categories if c])


def _transcripts(path: Path) -> Iterator[tuple[str, str]]:
    """The id and text of each line that belongs to an utterance."""
    # Not splitlines(): it also breaks at bytes that a text may hold.
    for line in read_text(path).split("\n"):
        if (match := TRANSCRIPT.match(line)) and ID.fullmatch(match["id"]):
            yield match["id"], match["text"].strip()


def _expected(labelled: set[str], texts: dict[str, str]) -> set[str]:
    """The ids a dialogue should have: all that are transcribed, and no gap in either speaker's turns."""
    expected = set(texts)
    last: dict[str, int] = {}
    for id in labelled:
        last[id[:-3]] = max(int(id[-3:]), last.get(id[:-3], 0))
    return expected | {f"{speaker}{turn:03d}" for speaker, end in last.items() for turn in range(end)}


def _is_demo(root: Path) -> bool:
    marker = root / DEMO_MARKER
    if not marker.is_file():
        return False
    try:
        return bool(json.loads(marker.read_text())["synthetic"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{marker} is damaged; write the demo corpus again with `ser corpus demo`") from error
