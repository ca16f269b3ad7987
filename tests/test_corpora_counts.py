"""A corpus with exactly the release's counts: every count is reproduced, and every difference is named."""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from ser.cache.manifest import IEMOCAP as KNOWN
from ser.extract.corpora.counts import compare, count_all, differences, summary
from ser.extract.corpora.demo import CATEGORIES
from ser.extract.corpora.scan import read_corpus

N, RATE = 10039, 1000  # 8 bits at 1 kHz: as many seconds as in the release, in a thirtieth of the bytes
NAMES = {code: name for code, (name, _) in CATEGORIES.items()}
SCRIPTS = ["script01_1", "script01_2", "script01_3", "script02_1", "script02_2", "script03_1", "script03_2"]


def scenes(session: int) -> tuple[list[str], list[str]]:
    """The improvised and the scripted dialogues of a session: 151 in all."""
    improvised = [f"impro{n:02d}" for n in range(1, 9)]
    ours: tuple[list[str], list[str]] = ([], [])
    for marked in "FM":
        names = improvised[: 7 if session == 1 else 8]
        if (session, marked) == (3, "M"):
            names = [*names[:4], "impro05a", "impro05b", *names[5:7], "impro08a", "impro08b"]
        ours[0].extend(f"Ses{session:02d}{marked}_{name}" for name in names)
        scripted = [*SCRIPTS, "script01_1b"] if (session, marked) == (5, "M") else SCRIPTS
        ours[1].extend(f"Ses{session:02d}{marked}_{name}" for name in scripted)
    return ours


def dialogue_sizes() -> dict[str, int]:
    """How many utterances each dialogue has: 4,784 improvised, the sessions' totals, from 24 to 167."""
    sizes: dict[str, int] = {}
    improvised = [867, 863, 1018, 1002, 1034]
    assert sum(improvised) == KNOWN["improvised"]
    for session in range(1, 6):
        total = KNOWN["sessions"][str(session)]
        for kind, count in zip(
            scenes(session), (improvised[session - 1], total - improvised[session - 1]), strict=True
        ):
            extremes = {"Ses01F_impro01": 24, "Ses05M_script01_1b": 167}
            rest = [d for d in kind if d not in extremes]
            fixed = {d: extremes[d] for d in kind if d in extremes}
            share, more = divmod(count - sum(fixed.values()), len(rest))
            sizes |= fixed | {d: share + (i < more) for i, d in enumerate(rest)}
    return sizes


def labels() -> dict[str, Iterator[str]]:
    """The labels of each session's utterances: the 4-class table of each session, the totals of the rest."""
    left = {label: KNOWN["labels"][label] for label in ("xxx", "fru", "sur", "fea", "oth", "dis")}
    happy = KNOWN["labels"]["hap"]
    rng = np.random.default_rng(0)
    drawn = {}
    for session, four in KNOWN["4class per session"].items():
        part = min(happy, 150) if session != "5" else happy
        happy -= part
        ours = {**four, "hap": part, "exc": four["hap"] - part}
        rest = KNOWN["sessions"][session] - sum(four.values())
        for label in left:
            take = left[label] if session == "5" else min(left[label], rest * KNOWN["labels"][label] // 4508)
            left[label] -= take
            ours[label] = take
        ours["xxx"] += (short := KNOWN["sessions"][session] - sum(ours.values()))
        left["xxx"] -= short
        drawn[session] = iter(rng.permutation([label for label, n in ours.items() for _ in range(n)]).tolist())
    assert not any(left.values())
    return drawn


def durations(four_class: np.ndarray) -> np.ndarray:
    """Milliseconds of each utterance, with the release's percentiles and hours, in all and of the 4-class set."""
    points = [0, 0.5, 0.8, 0.95, 0.99, 1]
    low, high = 3.52, 10.53
    for _ in range(50):  # the free point in the middle sets the mean
        middle = (low + high) / 2
        seconds = np.interp(np.linspace(0, 1, N), points, [0.585, 3.52, middle, 10.53, 15.08, 34.14])
        low, high = (middle, high) if seconds.sum() < KNOWN["hours"] * 3600 else (low, middle)
    found = np.random.default_rng(1).permutation(np.round(seconds * 1000).astype(int))
    inside, outside = np.flatnonzero(four_class), np.flatnonzero(~four_class)
    for _ in range(1000):
        missing = KNOWN["4class hours"] * 3600e3 - found[inside].sum()
        if abs(missing) < 1000:
            break
        for a, b in zip(inside, outside, strict=False):
            step = found[b] - found[a]
            if 0 < step * np.sign(missing) <= abs(missing):
                found[a], found[b] = found[b], found[a]
                missing -= step
        outside = np.roll(outside, 1)
    return found


def write_wav(path: str, milliseconds: int) -> None:
    data = milliseconds * RATE // 1000
    header = b"RIFF" + (36 + data).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    header += np.array([1, 1], "<u2").tobytes() + np.array([RATE, RATE], "<u4").tobytes()
    header += np.array([1, 8], "<u2").tobytes() + b"data" + data.to_bytes(4, "little")
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(header)
        file.truncate(len(header) + data)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("release")
    others = cycle(NAMES)
    drawn = labels()
    sizes = dialogue_sizes()
    said = [(dialogue, next(drawn[dialogue[4]])) for dialogue, size in sizes.items() for _ in range(size)]
    lengths = durations(np.array([label in ("ang", "hap", "exc", "neu", "sad") for _, label in said]))
    lines = iter(zip(said, lengths.tolist(), range(N), strict=True))
    outside = iter([0.5, 5.5, 0.5, 5.5, 5.5, 0.5, 5.5])
    extra_marked, extra_plain = 48, 152
    for dialogue, size in sizes.items():
        session = root / f"Session{dialogue[4]}"
        wavs = session / "sentences/wav" / dialogue
        wavs.mkdir(parents=True)
        blocks, texts, turns, now = ["% header\n\n"], [], {"F": 0, "M": 0}, 1.0
        for _ in range(size):
            (_, label), length, k = next(lines)
            who = "F" if (k + 1) * 4800 // N > k * 4800 // N else "M"
            id = f"{dialogue}_{who}{turns[who]:03d}"
            turns[who] += 1
            write_wav(f"{wavs}/{id}.wav", length)
            first = next(others)
            second = next(o for o in others if o != first)
            third = next(o for o in others if o not in (first, second))
            votes = [[first], [second], [third]] if label == "xxx" else [[label], [label], [first]]
            valence = next(outside, 2.5) if k % 1000 == 0 else 2.5
            blocks.append(f"[{now:.4f} - {now + length / 1000:.4f}]\t{id}\t{label}\t[{valence:.4f}, 3.0000, 3.5000]\n")
            blocks += [f"C-E{i}:\t{' '.join(NAMES[c] + ';' for c in v)}\t()\n" for i, v in enumerate(votes, 1)]
            blocks.append("C-F1:\tAnger;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n")
            texts.append(f"{id} [{now:08.4f}-{now + length / 1000:08.4f}]: Text {k}.\n")
            now += length / 1000
        if dialogue[:5] in ("Ses03", "Ses05") and extra_marked:
            texts.append(f"{dialogue}_FXX0 [000.0000-000.1000]: No.\n")
            extra_marked -= 1
        if extra_plain:
            texts.append("M: Yeah.\n")
            extra_plain -= 1
        for folder, content in (("EmoEvaluation", blocks), ("transcriptions", texts)):
            (session / "dialog" / folder).mkdir(parents=True, exist_ok=True)
            (session / "dialog" / folder / f"{dialogue}.txt").write_text("".join(content))
            (session / "dialog" / folder / f"._{dialogue}.txt").write_bytes(b"\x00\x05\x16\x07")
    return root


def test_every_count_of_the_release_is_reproduced(release: Path) -> None:
    scan = read_corpus(release)
    assert scan.problems == []
    assert differences(scan) == []
    found = count_all(scan.manifest)
    for key in ("utterances", "dialogues", "speakers", "improvised", "scripted", "genders", "sessions", "labels"):
        assert found[key] == KNOWN[key], key
    assert found["policies"] == {"4class": 5531, "5class": 7380, "6class": 7380, "8class": 7527}
    per_session = {session: sum(classes.values()) for session, classes in found["4class per session"].items()}
    assert per_session == {"1": 1085, "2": 1023, "3": 1151, "4": 1031, "5": 1241}
    assert found["utterances per dialogue"] == {"fewest": 24, "most": 167}
    assert (round(found["hours"], 2), round(found["4class hours"], 2)) == (12.44, 6.99)
    values = [v for c in ("valence", "arousal", "dominance") for v in scan.manifest.column(c)]
    assert sum(not 1 <= v <= 5 for v in values) == 7
    shown = summary(scan)
    assert (shown["utterances"], shown["hours"]) == (10039, pytest.approx(12.44, abs=0.005))


def test_the_known_counts_agree_with_each_other() -> None:
    assert sum(KNOWN["sessions"].values()) == sum(KNOWN["labels"].values()) == sum(KNOWN["genders"].values()) == N
    assert KNOWN["improvised"] + KNOWN["scripted"] == N
    per_class = np.array([list(classes.values()) for classes in KNOWN["4class per session"].values()])
    count = KNOWN["labels"]
    assert per_class.sum(axis=0).tolist() == [count["ang"], count["hap"] + count["exc"], count["neu"], count["sad"]]
    assert per_class.sum() == KNOWN["policies"]["4class"]
    assert KNOWN["policies"]["5class"] == KNOWN["policies"]["4class"] + count["fru"]


def test_each_difference_is_named(release: Path) -> None:
    found = count_all(read_corpus(release).manifest)
    assert compare({**found, "dialogues": 150}) == ["dialogues: 150 here, 151 in the release (-1)"]
    assert compare({**found, "hours": 12.40}) == ["hours: 12.4 here, 12.44 in the release (-0.04)"]
    moved = {**found["labels"], "neu": 1707, "sad": 1085}
    assert compare({**found, "labels": moved}) == [
        "labels: neu: 1707 here, 1708 in the release (-1)",
        "labels: sad: 1085 here, 1084 in the release (+1)",
    ]
    unknown_label = {**found["labels"], "bor": 1}
    assert compare({**found, "labels": unknown_label}) == ["labels: bor: 1 here, 0 in the release (+1)"]
    table = {**found["4class per session"], "3": {"ang": 240, "hap": 286, "neu": 321, "sad": 304}}
    assert compare({**found, "4class per session": table}) == [
        "4class per session: 3: neu: 321 here, 320 in the release (+1)",
        "4class per session: 3: sad: 304 here, 305 in the release (-1)",
    ]
    assert any("max" in d for d in compare({**found, "durations": {**found["durations"], "max": 34.10}}))
