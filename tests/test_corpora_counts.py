"""Counts of a corpus against the release's published ones: each agrees with the others, each difference is named."""

import numpy as np

from ser.cache.manifest import IEMOCAP as KNOWN
from ser.cache.manifest import Manifest
from ser.extract.corpora.counts import compare, count_all

POINTS = KNOWN["durations"]
FOUR = ("ang", "hap", "exc", "neu", "sad")


def test_as_many_of_each_kind_are_counted_as_were_published() -> None:
    """Labels by session, as in the release; every other utterance is scripted and lasts 2 s, the others 1 s."""
    happy = KNOWN["labels"]["hap"]
    rest = [label for label in ("xxx", "fru", "sur", "fea", "oth", "dis") for _ in range(KNOWN["labels"][label])]
    rows = []
    for session, size in KNOWN["sessions"].items():
        labels = [label for label, count in KNOWN["4class per session"][session].items() for _ in range(count)]
        labels += [rest.pop() for _ in range(size - len(labels))]
        for number, label in enumerate(labels):  # of the happy, some are called so, and the others excited
            excited = label == "hap" and happy <= 0
            happy -= label == "hap"
            speaker, scene = f"{session}{'FM'[number % 2]}", ("impro01", "script01")[number % 2]
            row = {
                "id": f"{session}-{number}",
                "session": session,
                "speaker": speaker,
                "dialogue": f"{session}_{scene}",
            }
            rows.append({**row, "label": "exc" if excited else label, "duration": 1.0 + number % 2})
    found = count_all(Manifest.from_rows("iemocap", rows))
    for name in ("utterances", "speakers", "sessions", "labels", "policies", "4class per session"):
        assert found[name] == KNOWN[name], name
    sizes = KNOWN["sessions"].values()
    assert found["scripted"] == sum(size // 2 for size in sizes) == 10039 - found["improvised"]
    assert found["utterances per dialogue"] == {"fewest": min(sizes) // 2, "most": (max(sizes) + 1) // 2}
    assert found["hours"] == (10039 + found["scripted"]) / 3600 and found["dialogues"] == 10
    assert found["4class hours"] == sum(row["duration"] for row in rows if row["label"] in FOUR) / 3600


def test_the_known_counts_agree_with_each_other() -> None:
    n, count = KNOWN["utterances"], KNOWN["labels"]
    assert all(sum(KNOWN[name].values()) == n for name in ("sessions", "labels", "genders"))
    assert KNOWN["improvised"] + KNOWN["scripted"] == n
    per_class = np.array([list(classes.values()) for classes in KNOWN["4class per session"].values()])
    assert per_class.sum(axis=0).tolist() == [count["ang"], count["hap"] + count["exc"], count["neu"], count["sad"]]
    assert per_class.sum(axis=1).tolist() == [1085, 1023, 1151, 1031, 1241]
    assert per_class.sum() == KNOWN["policies"]["4class"]
    assert KNOWN["policies"]["5class"] == KNOWN["policies"]["4class"] + count["fru"]


def test_each_difference_is_named() -> None:
    labels, table = KNOWN["labels"], KNOWN["4class per session"]
    moved = {**table, "3": {"ang": 240, "hap": 286, "neu": 321, "sad": 304}}
    for changed, said in (
        ({}, []),
        ({"dialogues": 150}, ["dialogues: 150 here, 151 in the release (-1)"]),
        ({"hours": 12.40}, ["hours: 12.4 here, 12.44 in the release (-0.04)"]),
        ({"labels": {**labels, "bor": 1}}, ["labels: bor: 1 here, 0 in the release (+1)"]),
        ({"durations": {**POINTS, "max": 34.10}}, ["durations: max: 34.1 here, 34.14 in the release (-0.04)"]),
        (
            {"4class per session": moved},
            [
                "4class per session: 3: neu: 321 here, 320 in the release (+1)",
                "4class per session: 3: sad: 304 here, 305 in the release (-1)",
            ],
        ),
    ):
        assert compare({**KNOWN, **changed}) == said
