"""IEMOCAP (Busso et al., 2008), read from the release as it lies on disk.

    Session{1..5}/dialog/EmoEvaluation/<dialogue>.txt     times, consensus, the raters' lines
    Session{1..5}/dialog/transcriptions/<dialogue>.txt    what was said
    Session{1..5}/sentences/wav/<dialogue>/<utterance>.wav

An utterance is what EmoEvaluation lists: transcriptions also hold lines that are not utterances, and times differ
between the two in places, so the two are joined on the id alone.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from ser.cache.manifest import IEMOCAP
from ser.errors import CorpusError, WrongUse

from .scan import Problem, Reading, read_text, visible

SESSIONS = range(1, 6)
LABELS = ("ang", "hap", "exc", "neu", "sad", "fru", "sur", "fea", "dis", "oth", "xxx")
DEMO_MARKER = "ser-demo.json"

# Ses01F_impro01_M003: session, who wore the markers, scene, who speaks, turn of that speaker. Turns that are no
# utterance are numbered FXX0 and MXX1, and fail to match.
ID = re.compile(r"(?P<dialogue>Ses(?P<session>\d\d)[FM]_\w+)_(?P<gender>[FM])(?P<turn>\d{3})")
BLOCK = re.compile(
    r"\[\s*(?P<start>[\d.]+)\s*-\s*(?P<end>[\d.]+)\s*\]\t(?P<id>\S+)\t(?P<label>\w+)\t"
    r"\[\s*(?P<valence>.+?),\s*(?P<arousal>.+?),\s*(?P<dominance>.+?)\s*\]\s*"
)
VOTE = re.compile(r"C-(?P<rater>\w+):\s*(?P<categories>[^(]*)")
TRANSCRIPT = re.compile(r"(\S+)\s*\[\s*[\d.]+\s*-\s*[\d.]+\s*\]:(.*)", re.DOTALL)


def is_iemocap(root: Path) -> bool:
    """Whether any session of a release lies here."""
    return any((root / f"Session{n}" / "dialog").is_dir() for n in SESSIONS)


def read_iemocap(root: Path) -> Reading:
    """Read the release at `root`. Raises `WrongUse` if there is none."""
    if not is_iemocap(root):
        raise WrongUse(
            f"{root} is not an IEMOCAP release: it holds no Session1/dialog; give the folder of Session1 … 5"
        )
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
    marker = root / DEMO_MARKER
    try:
        synthetic = marker.is_file() and bool(json.loads(read_text(marker))["synthetic"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorpusError(f"{marker} is damaged; write the demo corpus again with `ser corpus demo`") from error
    known = {} if synthetic else IEMOCAP
    return Reading("demo" if synthetic else "iemocap", root, rows, problems, synthetic=synthetic, known=known)


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
    evaluation = session / "dialog" / "EmoEvaluation" / f"{dialogue}.txt"
    transcription = session / "dialog" / "transcriptions" / f"{dialogue}.txt"
    labels, transcripts = (path.relative_to(session.parent).as_posix() for path in (evaluation, transcription))
    if not evaluation.is_file():
        return [], [Problem(None, labels, f"the labels of dialogue {dialogue} are missing")]
    texts = {}
    if transcription.is_file():
        # Lines that are not utterances are left out. Not splitlines(): it also breaks at bytes that a text may hold.
        matches = filter(None, map(TRANSCRIPT.match, read_text(transcription).split("\n")))
        texts = {match[1]: match[2].strip() for match in matches if ID.fullmatch(match[1])}
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for line, block in _evaluations(evaluation):
        if isinstance(block, str):
            problems.append(Problem(None, labels, f"line {line}: {block}"))
            continue
        id = block["id"]
        parts = ID.fullmatch(id)
        if not parts or parts["dialogue"] != dialogue or f"Session{int(parts['session'])}" != session.name:
            problems.append(Problem(id, labels, f"line {line}: no utterance id of {dialogue} in {session.name}"))
            continue
        if fault := _label_fault(block["label"], block["votes"]):
            problems.append(Problem(id, labels, fault, "label"))
        if not texts.get(id):
            fault = "its transcript is empty" if id in texts else "its transcript is missing"
            problems.append(Problem(id, transcripts, fault, "text"))
        row = {
            "audio": f"{session.name}/sentences/wav/{dialogue}/{id}.wav",
            "text": texts.get(id) or None,
            "session": str(int(parts["session"])),
            "dialogue": dialogue,
            "speaker": dialogue[:5] + parts["gender"],  # not dialogue[:6]: that letter says who wore the markers
            "gender": parts["gender"],
        }
        rows.append({**block, **row})
    labelled = {row["id"] for row in rows}
    # Each speaker's turns are numbered without a gap.
    turns = {f"{id[:-3]}{turn:03d}" for id in labelled for turn in range(int(id[-3:]))}
    unlabelled = sorted((turns | texts.keys()) - labelled)
    problems += [Problem(id, labels, "this utterance has no label line") for id in unlabelled]
    rows.sort(key=lambda row: (row["start"], row["end"], row["id"]))
    return [{**row, "turn": turn} for turn, row in enumerate(rows)], problems


def _label_fault(label: str, votes: list[list[str]]) -> str | None:
    if label not in LABELS:
        return f"the label {label} is not one of IEMOCAP's"
    if not votes:
        return "no external rater's vote is there"
    if (expected := consensus(votes)) != label:
        return f"the label is {label}, but the raters' votes make it {expected}"
    return None


def _evaluations(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Each block of an EmoEvaluation file with its line number; a string in its place says why it cannot be read."""
    number = 1
    for block in re.split(r"^(?=\[)", read_text(path), flags=re.MULTILINE):  # a block begins with [start - end]
        if block.startswith("["):
            yield number, _evaluation(*block.split("\n"))
        number += block.count("\n")


def _evaluation(head: str, *lines: str) -> dict[str, Any] | str:
    """A block's columns of the manifest. Attributes are as they stand: seven lie outside [1, 5] in the release."""
    unreadable = f"not readable as [start - end], id, label, [V, A, D]: {head.strip()[:80]}"
    if not (match := BLOCK.fullmatch(head.rstrip("\r"))):
        return unreadable
    try:
        row: dict[str, Any] = {k: v if k in ("id", "label") else float(v) for k, v in match.groupdict().items()}
    except ValueError:
        return unreadable
    # Raters F… and M… are the actors themselves. Categories are coded by their first three letters. What follows an
    # empty line is of a block that lost its first one.
    own = takewhile(str.strip, lines)
    votes = [vote["categories"] for line in own if (vote := VOTE.match(line)) and vote["rater"].startswith("E")]
    row["votes"] = [[c.strip().lower()[:3] for c in categories.split(";") if c.strip()] for categories in votes]
    return row
