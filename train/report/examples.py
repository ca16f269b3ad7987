"""The report's sections about single utterances: what the model attends to, and where its errors are."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ser.cache.manifest import Manifest
from ser.cache.store import Feature
from ser.errors import SerError
from ser.train.data.labels import Policy, ballots
from ser.train.scores import FEWEST, metrics, share

from .attention import Attended, attend
from .cells import Cell, Origin
from .tables import Row, Table, described, sentence, shown

SPECIAL = "special tokens"  # [CLS], [SEP] and their like
SAMPLED = 40  # utterances behind the averages of attention
STEPS, ROWS = 60, 12  # spans of time in a heat map, and in its table
HARDEST = 12  # utterances
GROUPS = 12  # of one grouping in the plot
# Dialogue names of the IEMOCAP release: Ses01F_impro01_F000, Ses05M_script01_1b_M012.
STYLE = r"^(?:[^/]+/)?Ses\d\d[FM]_(impro|script)"
SECONDS = (0.0, 1.5, 3.0, 5.0, 8.0, np.inf)
# Shares of the raters behind the label, in percent: from, below. Two of three raters are in the second.
AGREEMENT = {"under 60 %": (0, 60), "60–79 %": (60, 80), "80–99 %": (80, 99.9), "all": (99.9, 101)}


class Inside(NamedTuple):
    """What the query tokens of a cell attend to, on average and in single utterances; or what is at `fault`."""

    cell: Cell | None
    fault: str = ""
    tables: Sequence[Table] = ()  # those of the cards come last
    cards: Sequence[dict[str, Any]] = ()
    energy: bool = False  # whether it is drawn


def attended(cells: Sequence[Cell]) -> Inside:
    """What the query tokens attend to, for the cell with the highest UA that has any; nothing if there is none."""
    cell = next((cell for cell in cells if cell.config["fusion"].partition(":")[0] == "mit"), None)
    store, manifest, lack = cell.origin if cell else Origin()
    if cell is None or store is None or manifest is None:
        return Inside(cell, lack)
    p = cell.judged
    mine = p[p.run == 0].join(cell.utterances.text, on="id")
    sampled = mine.iloc[np.linspace(0, len(mine) - 1, min(SAMPLED, len(mine))).round().astype(int)]
    chosen = _chosen(cell, mine)
    try:
        seen = attend(cell.runs[0], store, manifest, [*sampled.id, *chosen])
        levels = (one for one in store.features() if (one.spec.feature, one.spec.level) == ("logmel", "frame"))
        logmel = next((feature for feature in levels if feature.rows(manifest)), None)
    except SerError as fault:
        return Inside(cell, str(fault))
    average, single = seen[: len(sampled)], seen[len(sampled) :]
    cards: list[dict[str, Any]] = []
    for number, (one, why) in enumerate(zip(single, chosen.values(), strict=True), 1):
        pairs = zip(one.texts, (one.tokens @ one.words).tolist(), strict=True)
        words = [(text, weight) for text, weight in pairs if text is not None]
        plot = _maps(f"attention-{number}", one, logmel, manifest)
        to_audio = float(one.frames.sum(1) @ one.tokens)  # the share of the audio in what reaches the classifier
        cards.append({"attended": one, "why": why, "words": words, "to_audio": to_audio, "plot": plot})
    tables = [_by_token(average), *(card["plot"] for card in cards)]
    return Inside(cell, "", tables, cards, logmel is not None)


def _chosen(cell: Cell, mine: Any) -> dict[str, str]:
    """Utterances to show, with the reason: the surest right one of each class, then the two surest wrong ones."""
    short = mine[mine.text.fillna("").str.split().str.len().between(3, 14)]
    pool = short if len(short) >= 8 else mine
    right = pool[pool.right].sort_values("given", ascending=False, kind="stable").drop_duplicates("truth")
    wrong = pool[~pool.right].sort_values("confidence", ascending=False, kind="stable")[:2]
    order = sorted(zip(right.truth, right.id, strict=True), key=lambda pair: cell.classes.index(pair[0]))
    found = {utterance: f"{truth}, recognised" for truth, utterance in order}
    return found | {one.id: f"{one.truth}, taken for {one.predicted}" for one in wrong.itertuples()}


def _by_token(seen: Sequence[Attended]) -> Table:
    """The audio's share of each query token's attention."""
    audio = 100 * np.array([one.frames.sum(1) for one in seen])  # [utterances, L]
    pooling = 100 * np.mean([one.tokens for one in seen], axis=0)
    shares = zip(audio.mean(0), *np.quantile(audio, [0.1, 0.9], axis=0), strict=True)
    rows: list[Row] = [
        {"query token": number, "to audio %": share, "its weight in the pooling %": weight}
        for number, (share, weight) in enumerate(zip(shares, pooling, strict=True), 1)
    ]
    points = [("audio", row["query token"], row["to audio %"]) for row in rows]
    return described("tokens", rows, points=points, n=len(seen))


def _maps(name: str, one: Attended, logmel: Feature | None, manifest: Manifest) -> Table:
    """The attention of each query token over the seconds and the words, and above it the energy, if that is known."""
    energy = None  # the mean over the bands of each frame [T], and the seconds between frames
    if logmel is not None and one.hop:  # without a hop the attention has no clock
        with suppress(SerError):
            packed = logmel.load(manifest, [manifest.ids.index(one.utterance)])
            energy = packed.values.astype(np.float64).mean(1), logmel.spec.hop or 0.01
    frames = one.frames.shape[1]
    unit, end = ("seconds", frames * one.hop) if one.hop else ("frames", float(frames))
    binned, spans = _binned(one.frames, STEPS), _binned(one.frames, ROWS)
    short = ["⟨⟩" if text is None else text for text in one.texts]
    step = end / spans.shape[1]
    names = [f"{n * step:.2f}–{(n + 1) * step:.2f} {unit}" for n in range(spans.shape[1])]
    rows = [
        {"modality": modality, "what": what or SPECIAL, "attention %": 100 * float(one.tokens @ column)}
        | {"most by query token": int(column.argmax()) + 1}
        for modality, whats, weights in (("audio", names, spans), ("text", one.texts, one.words))
        for what, column in zip(whats, weights.T, strict=True)
    ]
    shown = binned, one.words, short, one.tokens @ binned, end, unit, energy
    return described("attention", rows, points=shown, name=name, utterance=one.utterance)


def _binned(frames: np.ndarray, steps: int) -> np.ndarray:
    """Attention summed into at most `steps` spans of equal length [L, steps]."""
    cuts = np.linspace(0, frames.shape[1], min(steps, frames.shape[1]) + 1).round().astype(int)
    return np.add.reduceat(frames, cuts[:-1], axis=1)


def hardest_table(cells: Sequence[Cell]) -> Table:
    """Wrong in the largest share of all runs on this corpus; of equals, where the truth was given least."""
    import pandas

    same = [c for c in cells if c.config["corpus"] == cells[0].config["corpus"] and c.classes == cells[0].classes]
    p = pandas.concat([cell.judged for cell in same])
    wrong = p[~p.right].groupby("id").predicted
    found = p.groupby("id").agg(
        truth=("truth", "first"), right=("right", "mean"), runs=("run", "size"), given=("given", "mean")
    )
    found = found[found.right < 1].reset_index().sort_values(["right", "given", "id"])[:HARDEST]
    found = found.join(cells[0].utterances, on="id")
    rows = []
    for one in found.astype(object).where(found.notna(), None).itertuples():
        often = ", ".join(wrong.get_group(one.id).value_counts().index[:2])
        row = {"utterance": one.id, "text": one.text, "label": one.truth, "taken for": often}
        row |= {"wrong %": 100 * (1 - one.right), "runs": one.runs, "given to the truth %": float(one.given)}
        counts = Counter(vote for rater in one.votes or () for vote in rater)
        votes = ", ".join(f"{name} {n}" if n > 1 else name for name, n in counts.most_common())
        rows.append({**row, "votes": votes or None, "seconds": one.duration})
    return described("hardest", rows, n=len(rows), where=", of all cells" if len(same) > 1 else "")


def groups_table(cell: Cell) -> Table:
    """The share of wrong predictions in each group; no row where no group is known."""
    import pandas

    p = cell.judged.join(cell.utterances, on="id")
    names = [f"under {SECONDS[1]:g} s", *(f"{low:g}–{to:g} s" for low, to in pairwise(SECONDS[1:-1]))]
    names.append(f"from {SECONDS[-2]:g} s")
    p["duration"] = pandas.cut(p.duration.astype(float), SECONDS, right=False, labels=names)
    p["scripted or improvised"] = p.id.str.extract(STYLE)[0].map({"impro": "improvised", "script": "scripted"})
    rows: list[Row] = []
    for by in ("session", "speaker", "gender", "duration", "scripted or improvised"):
        groups = p.groupby(by, observed=True)
        for group, part in sorted(groups, key=lambda pair: int(pair[0]) if pair[0].isdecimal() else 0):
            n, matrix = part.id.nunique(), pandas.crosstab(part.truth, part.predicted)
            ua = metrics(matrix.reindex(index=cell.classes, columns=cell.classes, fill_value=0).to_numpy())["ua"]
            row = {"by": by, "group": group, "utterances": n, "wrong %": share(~part.right, part.group)}
            rows.append({**row, "UA %": 100 * float(ua)})
    counts = Counter(row["by"] for row in rows)
    points = [("wrong", (row["by"], row["group"]), row["wrong %"]) for row in rows if counts[row["by"]] <= GROUPS]
    left, wrong = sentence("groupings", len(points) < len(rows), most=GROUPS), 100 * (1 - p.right.mean())
    return described("groups", rows, left, points=points, baseline=wrong, over=cell.over, fewest=FEWEST)


def agreement(cell: Cell) -> np.ndarray:
    """The share of the raters that stand behind the label, in percent, of each prediction; NaN without votes.

    A rater who gave several categories counts in parts; votes outside the label policy count against the label.
    """
    labels, votes = cell.config["labels"], cell.utterances.votes.reindex(cell.predictions.id)
    policy = Policy(labels["policy"], tuple(labels["classes"]), labels["maps"])
    shares = np.full(len(votes), np.nan)
    for row, (k, raters) in enumerate(zip(cell.truth, votes, strict=True)):
        if isinstance(raters, list) and raters:
            shares[row] = 100 * ballots(policy, raters)[:, k].sum() / len(raters)
    return shares


def agreement_table(cell: Cell) -> Table:
    """Confidence and recall by the share of the raters' votes that stand behind the label; no row without votes."""
    from scipy.stats import spearmanr

    p, behind = cell.judged, agreement(cell)
    voted = np.isfinite(behind)
    rows: list[Row] = []
    for name, (low, high) in AGREEMENT.items():
        part = p[(behind >= low) & (behind < high)]
        if n := part.id.nunique():
            row = {"raters for the label": name, "utterances": n, "right %": share(part.right, part.group)}
            rows.append({**row, "confidence %": part.confidence.mean(), "given to the truth %": part.given.mean()})
    measures = ("right", "confidence", "given to the truth")
    places = [f"{row['raters for the label']}\nn {row['utterances']:,}" for row in rows]
    points = [(one, place, row[f"{one} %"]) for one in measures for place, row in zip(places, rows, strict=True)]
    rank = ""
    if voted.any() and np.ptp(behind[voted]) and np.ptp(p.given[voted]):
        found = shown(float(spearmanr(behind[voted], p.given[voted]).statistic), "difference")
        rank = sentence("rank", rank=found) + " "
    return described("agreement", rows, points=points, over=cell.over, rank=rank)
