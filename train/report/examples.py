"""The report's sections about single utterances: what the model attends to, and where its errors are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from ser.cache.store import Feature
from ser.errors import SerError
from ser.train.scores import confusions, metrics

from .attention import Attended, attend
from .cells import Cell
from .figures import attention_maps, bars, dots, lines
from .html import Block, Group, Plot, Weighed
from .tables import Row, Table
from .utterances import Origin, style

SPECIAL = "special tokens"  # [CLS], [SEP] and their like
SAMPLED = 40  # utterances behind the averages of attention
STEPS, ROWS = 60, 12  # spans of time in a heat map, and in its table
HARDEST = 12  # utterances
GROUPS = 12  # of one grouping in the plot
SECONDS = (0.0, 1.5, 3.0, 5.0, 8.0, np.inf)
# Shares of the raters behind the label, in percent: from, below. Two of three raters are in the second.
AGREEMENT = {"under 60 %": (0, 60), "60–79 %": (60, 80), "80–99 %": (80, 99.9), "all": (99.9, 101)}


# --- attention


def attended(cells: Sequence[Cell], origins: Mapping[str, Origin]) -> list[Block]:
    """What the query tokens attend to, for the cell with the highest UA that has any; nothing if there is none."""
    cell = next((cell for cell in cells if cell.config["fusion"].partition(":")[0] == "mit"), None)
    if cell is None:
        return []
    try:
        return _attended(cell, origins[cell.label])
    except SerError as fault:
        return [f"The attention of {cell.label} cannot be shown: {fault}"]


def _attended(cell: Cell, origin: Origin) -> list[Block]:
    run, p = cell.runs[0], cell.predictions
    mine = p[p.run == 0].join(origin.rows.text, on="id")
    sampled = mine.iloc[np.linspace(0, len(mine) - 1, min(SAMPLED, len(mine))).round().astype(int)]
    chosen = _chosen(cell, mine)
    seen = attend(run, origin, [*sampled.id, *chosen])
    logmel = _logmel(origin)
    cards = []
    for number, (one, why) in enumerate(zip(seen[len(sampled) :], chosen.values(), strict=True), 1):
        plot = _maps(f"attention-{number}", one, _energy(logmel, origin, one))
        cards.append(Group([*_words(one, cell.classes), plot], f"{one.utterance}: {why}"))
    energy = "The grey area above the seconds is the energy, the mean log-mel band in the store"
    if logmel is None:
        energy = "No energy is drawn, since the store holds no log-mel features of this corpus"
    return [
        f"One trained model of {cell.label} (seed {run.config['seed']}, fold {run.config['fold']}): the attention of "
        "its interaction transformer, mean over the heads of its last layer. The tokens have no fixed meaning, so "
        "another seed has other ones.",
        Group([_by_token(seen[: len(sampled)]), _by_class(seen, list(sampled.truth), cell.classes)]),
        f"Below, single utterances: the surest right answer of each class, and the surest wrong ones. {energy}; "
        "training and reports never read audio.",
        Group(cards),
    ]


def _chosen(cell: Cell, mine: Any) -> dict[str, str]:
    """Utterances to show, with the reason: the surest right one of each class, then the two surest wrong ones."""
    short = mine[mine.text.fillna("").str.split().str.len().between(3, 14)]
    pool = short if len(short) >= 8 else mine
    right = pool[pool.right].sort_values("given", ascending=False, kind="stable").drop_duplicates("truth")
    wrong = pool[~pool.right].sort_values("confidence", ascending=False, kind="stable")[:2]
    order = sorted(zip(right.truth, right.id, strict=True), key=lambda pair: cell.classes.index(pair[0]))
    found = {utterance: f"{truth}, recognised" for truth, utterance in order}
    return found | {one.id: f"{one.truth}, taken for {one.predicted}" for one in wrong.itertuples()}


def _logmel(origin: Origin) -> Feature | None:
    """The store's log-mel frames of this corpus."""
    if origin.store is None or origin.manifest is None:
        return None
    found = (one for one in origin.store.features() if (one.spec.feature, one.spec.level) == ("logmel", "frame"))
    return next((feature for feature in found if feature.rows(origin.manifest)), None)


def _energy(logmel: Feature | None, origin: Origin, one: Attended) -> tuple[np.ndarray, float] | None:
    """Mean over the bands of each frame [T], and the seconds between frames; None where the attention has no clock."""
    if logmel is None or origin.manifest is None or not one.hop:
        return None
    try:
        packed = logmel.load(origin.manifest, [origin.manifest.ids.index(one.utterance)])
    except SerError:
        return None
    return packed.values.astype(np.float64).mean(1), logmel.spec.hop or 0.01


def _by_token(seen: Sequence[Attended]) -> Plot:
    """The audio's share of each query token's attention."""
    audio = 100 * np.array([one.audio for one in seen])  # [utterances, L]
    pooling = 100 * np.mean([one.tokens for one in seen], axis=0)
    even = 100 * float(np.mean([one.even for one in seen]))
    columns = audio.mean(0), *np.quantile(audio, [0.1, 0.9], axis=0), pooling
    names = "to audio %", "a tenth of the utterances below %", "a tenth above %", "its weight in the pooling %"
    rows = [
        {"query token": number} | dict(zip(names, map(float, values), strict=True))
        for number, values in enumerate(zip(*columns, strict=True), 1)
    ]
    points = [("audio", number, tuple(row[name] for name in names[:3])) for number, row in enumerate(rows, 1)]
    draw = partial(
        lines, points, "query token", "audio’s share %", limits=(-2, 102), joined=False, baseline=even, legend=0
    )
    note = f"Mean of {len(seen)} test utterances; bars: the middle 80 %. The rest goes to the words. "
    note += f"Dashed: {even:.0f} %, attention spread evenly over all frames and tokens."
    data = Table("tokens", "Attention to audio of each query token", rows)
    return Plot("Which query token attends to which modality", data, draw, note)


def _by_class(seen: Sequence[Attended], truths: Sequence[str], classes: Sequence[str]) -> Plot:
    """Both modalities' shares in the utterances of each class."""
    pooled: dict[str, list[float]] = {name: [] for name in classes if name in truths}
    for one, truth in zip(seen, truths, strict=False):
        pooled[truth].append(100 * float(one.audio @ one.tokens))
    rows = []
    for name, values in pooled.items():
        share = float(np.mean(values))
        rows.append({"true class": name, "utterances": len(values), "audio %": share, "text %": 100 - share})
    points = [(part, row["true class"], row[f"{part} %"]) for part in ("audio", "text") for row in rows]
    data = Table("attention-classes", "Attention to each modality by emotion", rows)
    return Plot("By emotion, as the pooling weighs the tokens", data, partial(bars, points, "share of the attention %"))


def _words(one: Attended, classes: Sequence[str]) -> list[Block]:
    """What the model predicts, and the words by attention."""
    weights = [(text, float(w)) for text, w in zip(one.texts, one.tokens @ one.words, strict=True) if text is not None]
    most = max([weight for _, weight in weights], default=0.0) or 1.0
    share, surest = 100 * float(one.audio @ one.tokens), int(one.probabilities.argmax())
    caption = f"Words by attention; {100 - share:.0f} % of it goes to the text, {share:.0f} % to the audio"
    return [
        f"Predicted {classes[surest]} with {100 * one.probabilities[surest]:.0f} %.",
        Weighed(caption, [(text, weight / most) for text, weight in weights]),
    ]


def _maps(name: str, one: Attended, energy: tuple[np.ndarray, float] | None) -> Plot:
    """The attention of each query token over the seconds and the words."""
    frames = one.frames.shape[1]
    unit, end = ("seconds", frames * one.hop) if one.hop else ("frames", float(frames))
    binned, spans = _binned(one.frames, STEPS), _binned(one.frames, ROWS)
    short = ["⟨⟩" if text is None else text for text in one.texts]
    draw = partial(attention_maps, binned, one.words, short, one.tokens @ binned, end, unit, energy)
    step = end / spans.shape[1]
    names = [f"{n * step:.2f}–{(n + 1) * step:.2f} {unit}" for n in range(spans.shape[1])]
    rows = [
        {"modality": modality, "what": what or SPECIAL, "attention %": 100 * float(one.tokens @ column)}
        | {"most by query token": int(column.argmax()) + 1}
        for modality, whats, weights in (("audio", names, spans), ("text", one.texts, one.words))
        for what, column in zip(whats, weights.T, strict=True)
    ]
    data = Table(name, f"{one.utterance}: attention over seconds and words", rows)
    note = "Stronger colour, more attention; each map from 0 to its own maximum. ⟨⟩: special tokens."
    return Plot("Attention of each query token", data, draw, note)


def _binned(frames: np.ndarray, steps: int) -> np.ndarray:
    """Attention summed into at most `steps` spans of equal length [L, steps]."""
    cuts = np.linspace(0, frames.shape[1], min(steps, frames.shape[1]) + 1).round().astype(int)
    return np.add.reduceat(frames, cuts[:-1], axis=1)


# --- errors


def errors(cells: Sequence[Cell], origins: Mapping[str, Origin]) -> list[Block]:
    """The hardest utterances of all cells; the groups and the raters' agreement of the first."""
    cell, origin = cells[0], origins[cells[0].label]
    blocks: list[Block] = []
    if len(cells) > 1:
        blocks.append(f"Errors by group and agreement are those of the cell with the highest UA, {cell.label}.")
    if origin.manifest is None:
        blocks.append(f"Texts, durations and votes are not at hand: {origin.lack}")
    plots, hardest = [*_groups(cell, origin), *_agreement(cell, origin)], _hardest(cells, origin)
    return [*blocks, *([Group(plots)] if plots else []), *([hardest] if hardest.rows else [])]


def _hardest(cells: Sequence[Cell], origin: Origin) -> Table:
    """Wrong in the largest share of all runs on this corpus; of equals, where the truth was given least."""
    import pandas

    same = [c for c in cells if c.config["corpus"] == cells[0].config["corpus"] and c.classes == cells[0].classes]
    p = pandas.concat([cell.predictions for cell in same])
    wrong = p[~p.right].groupby("id").predicted
    found = p.groupby("id").agg(
        truth=("truth", "first"), right=("right", "mean"), runs=("run", "size"), given=("given", "mean")
    )
    found = found[found.right < 1].reset_index().sort_values(["right", "given", "id"])[:HARDEST]
    rows = []
    for one in found.join(origin.rows, on="id").itertuples():
        often = ", ".join(wrong.get_group(one.id).value_counts().index[:2])
        row = {"utterance": one.id, "text": _known(one.text), "label": one.truth, "taken for": often}
        row |= {"wrong %": 100 * (1 - one.right), "runs": one.runs, "given to the truth %": float(one.given)}
        counts = Counter(vote for rater in _known(one.votes) or () for vote in rater)
        votes = ", ".join(f"{name} {n}" if n > 1 else name for name, n in counts.most_common())
        rows.append({**row, "votes": votes or None, "seconds": _known(one.duration)})
    note = f"Wrong in the largest share of the runs that tested it{', of all cells' if len(same) > 1 else ''}; "
    return Table(
        "hardest", f"The {len(rows)} hardest utterances", rows, f"{note}of equals, the one whose truth got least."
    )


def _known(value: Any) -> Any:
    """None for what pandas calls NaN, where the manifest has no such row."""
    return None if value != value else value


def _groups(cell: Cell, origin: Origin) -> list[Plot]:
    """The share of wrong predictions in each group; nothing where no group is known."""
    import pandas

    p = cell.predictions.join(origin.rows, on="id")
    names = [
        f"under {to:g} s" if not low else f"from {low:g} s" if np.isinf(to) else f"{low:g}–{to:g} s"
        for low, to in pairwise(SECONDS)
    ]
    p["duration"] = pandas.cut(p.duration.astype(float), SECONDS, right=False, labels=names)
    p["scripted or improvised"] = p.id.map(style)
    codes = {name: k for k, name in enumerate(cell.classes)}
    rows: list[Row] = []
    for by in ("session", "speaker", "gender", "duration", "scripted or improvised"):
        groups = p.groupby(by, observed=True)
        for group, part in sorted(groups, key=lambda pair: int(pair[0]) if pair[0].isdigit() else 0):
            n, predicted = part.id.nunique(), part.predicted.map(codes).to_numpy()
            [matrix] = confusions(part.truth.map(codes).to_numpy(), predicted[None], len(codes))
            row = {"by": by, "group": group, "utterances": n, "wrong %": wilson(1 - part.right.mean(), n)}
            rows.append({**row, "UA %": 100 * float(metrics(matrix)["ua"])})
    counts = Counter(row["by"] for row in rows)
    drawn = [row for row in rows if counts[row["by"]] <= GROUPS]
    points = [("wrong", (row["by"], row["group"]), row["wrong %"]) for row in drawn]
    every = 100 * (1 - p.right.mean())
    note = f"Dashed: {every:.0f} %, over all utterances. Bars: Wilson’s 95 % interval for the number of utterances; "
    note += "seeds are averaged."
    note += "" if len(drawn) == len(rows) else f" Groupings of more than {GROUPS} groups are only in the numbers."
    draw = partial(dots, points, "wrong %", baseline=every, limits=(0, None))
    return [Plot("Errors by group", Table("groups", "Errors by group", rows), draw, note)] if rows else []


def wilson(share: float, n: int) -> tuple[float, float, float]:
    """A share of n with Wilson's (1927) 95 % interval, in percent: for groups too small to draw from."""
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return 100 * float(share), float(max(0.0, 100 * (centre - half))), float(min(100.0, 100 * (centre + half)))


def _agreement(cell: Cell, origin: Origin) -> list[Plot]:
    """Confidence and recall by the share of the raters' votes that stand behind the label; nothing without votes."""
    from scipy.stats import spearmanr

    p, behind = cell.predictions, origin.agreement(cell)
    voted = np.isfinite(behind)
    rows: list[Row] = []
    for name, (low, high) in AGREEMENT.items():
        part = p[(behind >= low) & (behind < high)]
        if n := part.id.nunique():
            row = {"raters for the label": name, "utterances": n, "right %": wilson(part.right.mean(), n)}
            rows.append({**row, "confidence %": part.confidence.mean(), "given to the truth %": part.given.mean()})
    if not rows:
        return []
    measures = ("right", "confidence", "given to the truth")
    points = [(measure, place, row[f"{measure} %"]) for measure in measures for place, row in enumerate(rows)]
    ticks = {place: f"{row['raters for the label']}\nn {row['utterances']:,}" for place, row in enumerate(rows)}
    draw = partial(lines, points, "raters for the label", "%", ticks=ticks, limits=(0, 102), legend=3)
    note = "Confidence: mean probability of the predicted class. A rater’s several votes count in parts."
    if np.ptp(behind[voted]) and np.ptp(p.given[voted]):
        rank = f"{spearmanr(behind[voted], p.given[voted]).statistic:+.2f}".replace("-", "−")
        note = f"Spearman’s correlation of agreement and what is given to the truth: {rank}. {note}"
    title = "Agreement of the raters against confidence"
    return [Plot(title, Table("agreement", title, rows), draw, note)]
