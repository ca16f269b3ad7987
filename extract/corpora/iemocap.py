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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser.errors import CorpusError, WrongUse

from .scan import Problem, Reading, read_text, visible

SESSIONS = range(1, 6)
LABELS = ("ang", "hap", "exc", "neu", "sad", "fru", "sur", "fea", "dis", "oth", "xxx")
DEMO_MARKER = "ser-demo.json"

# Ses01F_impro01_M003: session, who wore the markers, scene, who speaks, turn of that speaker. Turns that are no
# utterance are numbered FXX0 and MXX1, and fail to match.
ID = re.compile(r"(?P<dialogue>Ses(?P<session>\d\d)[FM]_\w+)_(?P<gender>[FM])(?P<turn>\d{3})")
BLOCK = re.compile(r"\[\s*([\d.]+)\s*-\s*([\d.]+)\s*\]\t(\S+)\t(\w+)\t\[\s*(.+?),\s*(.+?),\s*(.+?)\s*\]\s*")
VOTE = re.compile(r"C-(?P<rater>\w+):\s*(?P<categories>[^(]*)")
TRANSCRIPT = re.compile(r"(\S+)\s*\[\s*[\d.]+\s*-\s*[\d.]+\s*\]:(.*)", re.DOTALL)


@dataclass(frozen=True)
class Evaluation:
    """One block of an EmoEvaluation file."""

    id: str
    start: float
    end: float
    label: str
    vad: list[float]  # as they stand: seven lie outside [1, 5] in the release
    votes: list[list[str]]  # of the external raters


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
            of_dialogue, faults = _read_dialogue(session, dialogue)
            rows += of_dialogue
            problems += faults
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


def _read_dialogue(session: Path, dialogue: str) -> tuple[list[dict[str, Any]], list[Problem]]:
    """A dialogue's utterances, in turn order, and whatever is wrong with them."""
    evaluation, transcription = (f"dialog/{kind}/{dialogue}.txt" for kind in ("EmoEvaluation", "transcriptions"))
    labels, transcripts = f"{session.name}/{evaluation}", f"{session.name}/{transcription}"
    if not (session / evaluation).is_file():
        return [], [Problem(None, labels, f"the labels of dialogue {dialogue} are missing")]
    texts = _transcripts(session / transcription)
    problems: list[Problem] = []
    blocks: list[Evaluation] = []
    for line, block in _evaluations(session / evaluation):
        if isinstance(block, str):
            problems.append(Problem(None, labels, f"line {line}: {block}"))
            continue
        parts = ID.fullmatch(block.id)
        if not parts or parts["dialogue"] != dialogue or f"Session{int(parts['session'])}" != session.name:
            fault = f"line {line}: no utterance id of {dialogue} in {session.name}"
            problems.append(Problem(block.id, labels, fault))
            continue
        blocks.append(block)
        if fault := _label_fault(block):
            problems.append(Problem(block.id, labels, fault, "label"))
        if not texts.get(block.id):
            fault = "its transcript is empty" if block.id in texts else "its transcript is missing"
            problems.append(Problem(block.id, transcripts, fault, "text"))
    labelled = {block.id for block in blocks}
    unlabelled = sorted((_turns(labelled) | texts.keys()) - labelled)
    problems += [Problem(id, labels, "this utterance has no label line") for id in unlabelled]
    blocks.sort(key=lambda b: (b.start, b.end, b.id))
    audio = f"{session.name}/sentences/wav/{dialogue}"
    return [_row(block, turn, texts.get(block.id) or None, audio) for turn, block in enumerate(blocks)], problems


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
        **dict(zip(("valence", "arousal", "dominance"), block.vad, strict=True)),
    }


def _label_fault(block: Evaluation) -> str | None:
    if block.label not in LABELS:
        return f"the label {block.label} is none of IEMOCAP's"
    if not block.votes:
        return "no external rater's vote is there"
    if (expected := consensus(block.votes)) != block.label:
        return f"the label is {block.label}, but the raters' votes make it {expected}"
    return None


def _evaluations(path: Path) -> Iterator[tuple[int, Evaluation | str]]:
    """Each block of an EmoEvaluation file with its line number; a string in its place says why it cannot be read."""
    number = 1
    for block in re.split(r"^(?=\[)", read_text(path), flags=re.MULTILINE):  # a block begins with [start - end]
        if block.startswith("["):
            yield number, _evaluation(*block.split("\n"))
        number += block.count("\n")


def _evaluation(head: str, *lines: str) -> Evaluation | str:
    match = BLOCK.fullmatch(head.rstrip("\r"))
    unreadable = f"not readable as [start - end], id, label, [V, A, D]: {head.strip()[:80]}"
    if not match:
        return unreadable
    try:
        start, end, *vad = map(float, match.group(1, 2, 5, 6, 7))
    except ValueError:
        return unreadable
    # Raters F… and M… are the actors themselves. Categories are coded by their first three letters.
    votes = [vote["categories"] for line in lines if (vote := VOTE.match(line)) and vote["rater"].startswith("E")]
    coded = [[c.strip().lower()[:3] for c in categories.split(";") if c.strip()] for categories in votes]
    return Evaluation(match[3], start, end, match[4], vad, coded)


def _transcripts(path: Path) -> dict[str, str]:
    """The text of each utterance, by id; other lines are left out."""
    if not path.is_file():
        return {}
    # Not splitlines(): it also breaks at bytes that a text may hold.
    matches = filter(None, map(TRANSCRIPT.match, read_text(path).split("\n")))
    return {match[1]: match[2].strip() for match in matches if ID.fullmatch(match[1])}


def _turns(ids: set[str]) -> set[str]:
    """The ids of all turns of each speaker up to the last, without a gap."""
    last: dict[str, int] = {}
    for id in ids:
        last[id[:-3]] = max(int(id[-3:]), last.get(id[:-3], 0))
    return {f"{speaker}{turn:03d}" for speaker, end in last.items() for turn in range(end)}


def _is_demo(root: Path) -> bool:
    marker = root / DEMO_MARKER
    if not marker.is_file():
        return False
    try:
        return bool(json.loads(marker.read_text())["synthetic"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{marker} is damaged; write the demo corpus again with `ser corpus demo`") from error
