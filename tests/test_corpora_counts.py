"""A manifest with exactly the release's counts: every count is reproduced, and every difference is named."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from ser.cache.manifest import Manifest
from ser.extract.corpora.counts import KNOWN, compare, count_all, differences, summary
from ser.extract.corpora.scan import Scan

N = 10039
IMPROVISED = [867, 863, 1018, 1002, 1034]  # utterances of each session; 16 dialogues, beside 14 or 15 scripted ones
EXTREMES = {"Ses01F_impro00": 24, "Ses05F_script00": 167}


def dialogues(session: int, total: int) -> list[str]:
    """The dialogue of each of a session's utterances."""
    found = []
    for kind, count, number in (
        ("impro", IMPROVISED[session - 1], 16),
        ("script", total - IMPROVISED[session - 1], 14 + (session == 5)),
    ):
        names = [f"Ses{session:02d}F_{kind}{n:02d}" for n in range(number)]
        fixed = EXTREMES.get(names[0], count // number)
        shares = np.array_split(np.arange(count - fixed), number - 1)
        sizes = [fixed, *map(len, shares)]
        found += [name for name, size in zip(names, sizes, strict=True) for _ in range(size)]
    return found


def labels() -> list[str]:
    """The label of each utterance: the 4-class table of each session, the totals of the rest."""
    pool = {label: [label] * count for label, count in KNOWN["labels"].items()}
    happy = iter(pool["hap"] + pool["exc"])
    rest = iter([label for other in ("xxx", "fru", "sur", "fea", "oth", "dis") for label in pool[other]])
    found = []
    for session, four in KNOWN["4class per session"].items():
        plain = [label for label in ("ang", "neu", "sad") for _ in range(four[label])]
        others = KNOWN["sessions"][session] - sum(four.values())
        found += (
            np.random.default_rng(0).permutation([*plain, *islice(happy, four["hap"]), *islice(rest, others)]).tolist()
        )
    return found


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


@pytest.fixture(scope="module")
def release() -> Scan:
    said = labels()
    seconds = durations(np.array([label in ("ang", "hap", "exc", "neu", "sad") for label in said])) / 1000
    places = [name for session, total in KNOWN["sessions"].items() for name in dialogues(int(session), total)]
    rows = []
    for k, (label, dialogue, duration) in enumerate(zip(said, places, seconds.tolist(), strict=True)):
        gender = "F" if (k + 1) * 4800 // N > k * 4800 // N else "M"
        where = {"dialogue": dialogue, "session": dialogue[4], "speaker": dialogue[:5] + gender, "gender": gender}
        rows.append({"id": f"{dialogue}_{k}", "label": label, "turn": k, "duration": duration, **where})
    return Scan(Manifest.from_rows("iemocap", rows), Path(), "iemocap")


def test_every_count_of_the_release_is_reproduced(release: Scan) -> None:
    assert differences(release) == []
    found = count_all(release.manifest)
    for key in ("utterances", "dialogues", "speakers", "improvised", "scripted", "genders", "sessions", "labels"):
        assert found[key] == KNOWN[key], key
    assert found["policies"] == {"4class": 5531, "5class": 7380, "6class": 7380}
    per_session = {session: sum(classes.values()) for session, classes in found["4class per session"].items()}
    assert per_session == {"1": 1085, "2": 1023, "3": 1151, "4": 1031, "5": 1241}
    assert found["utterances per dialogue"] == {"fewest": 24, "most": 167}
    assert (round(found["hours"], 2), round(found["4class hours"], 2)) == (12.44, 6.99)
    shown = summary(release)
    assert (shown["utterances"], shown["hours"]) == (10039, pytest.approx(12.44, abs=0.005))


def test_the_known_counts_agree_with_each_other() -> None:
    assert sum(KNOWN["sessions"].values()) == sum(KNOWN["labels"].values()) == sum(KNOWN["genders"].values()) == N
    assert KNOWN["improvised"] + KNOWN["scripted"] == N
    per_class = np.array([list(classes.values()) for classes in KNOWN["4class per session"].values()])
    count = KNOWN["labels"]
    assert per_class.sum(axis=0).tolist() == [count["ang"], count["hap"] + count["exc"], count["neu"], count["sad"]]
    assert per_class.sum() == KNOWN["policies"]["4class"]
    assert KNOWN["policies"]["5class"] == KNOWN["policies"]["4class"] + count["fru"]


def test_each_difference_is_named(release: Scan) -> None:
    found = count_all(release.manifest)
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
