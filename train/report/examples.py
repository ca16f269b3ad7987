"""The report's sections about single utterances: what the model attends to, and where its errors are."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ser.cache.store import Feature
from ser.errors import SerError
from ser.train.scores import confusions, unweighted_accuracy

from .attention import SPECIAL, Attended, Attending
from .cells import Cell
from .figures import Plot, Series, attention_maps, dots, lines, shares
from .html import Block, Group, Weighed
from .tables import Table
from .utterances import STYLES, Origin, style

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
    mine = np.flatnonzero(p.run == 0)
    sampled = mine[np.linspace(0, len(mine) - 1, min(SAMPLED, len(mine))).round().astype(int)]
    chosen = _chosen(cell, mine, origin)
    attending = Attending(run, origin, [p.ids[i] for i in [*sampled, *chosen]])
    seen = [attending(p.ids[i]) for i in sampled]
    logmel = _logmel(origin)
    cards = []
    for number, (i, why) in enumerate(chosen.items(), 1):
        one = attending(p.ids[i])
        blocks = _words(one, cell.classes)
        cards.append(
            Group([*blocks, _maps(f"attention-{number}", one, _energy(logmel, origin, one))], f"{p.ids[i]}: {why}")
        )
    energy = "The grey area above the seconds is the energy, the mean log-mel band in the store"
    if logmel is None:
        energy = "No energy is drawn, since the store holds no log-mel features of this corpus"
    return [
        f"One trained model of {cell.label} (seed {run.config['seed']}, fold {run.config['fold']}): the attention of its "
        "interaction transformer, mean over the heads of its last layer. The tokens have no fixed meaning, so another "
        "seed has other ones.",
        Group([_by_token(seen), _by_class(seen, [cell.classes[k] for k in p.truth[sampled]], cell.classes)]),
        f"Below, single utterances: the surest right answer of each class, and the surest wrong ones. {energy}; training "
        "and reports never read audio.",
        Group(cards),
    ]


def _chosen(cell: Cell, mine: np.ndarray, origin: Origin) -> dict[int, str]:
    """Predictions to show, with the reason: the surest right one of each class, then the two surest wrong ones."""
    p = cell.predictions
    short = np.array([3 <= len((text or "").split()) <= 14 for text in origin.column("text", p.ids[mine])])
    pool = mine[short] if short.sum() >= 8 else mine
    found: dict[int, str] = {}
    for k, name in enumerate(cell.classes):
        right = pool[(p.truth[pool] == k) & p.right[pool]]
        if len(right):
            found[int(right[p.of_truth[right].argmax()])] = f"{name}, recognised"
    wrong = pool[~p.right[pool]]
    for i in wrong[np.argsort(-p.probabilities[wrong].max(1), kind="stable")[:2]]:
        found[int(i)] = f"{cell.classes[p.truth[i]]}, taken for {cell.classes[p.predicted[i]]}"
    return found


def _logmel(origin: Origin) -> Feature | None:
    """The store's log-mel frames of this corpus."""
    for feature in origin.store.features() if origin.store and origin.manifest else ():
        if feature.spec.feature == "logmel" and feature.spec.level == "frame" and feature.rows(origin.manifest):
            return feature
    return None


def _energy(logmel: Feature | None, origin: Origin, one: Attended) -> tuple[np.ndarray, float] | None:
    """Mean over the bands of each frame [T], and the seconds between frames; None where the attention has no clock."""
    if logmel is None or origin.manifest is None or not one.hop:
        return None
    try:
        packed = logmel.load(origin.manifest, [origin.row_of[one.utterance]])
    except SerError:
        return None
    return packed.values.astype(np.float64).mean(1), logmel.spec.hop or 0.01


def _by_token(seen: Sequence[Attended]) -> Plot:
    """The audio's share of each query token's attention."""
    audio = 100 * np.array([one.audio for one in seen])  # [utterances, L]
    pooling = 100 * np.mean([one.tokens for one in seen], axis=0)
    even = 100 * float(np.mean([one.even for one in seen]))
    mean, (low, high) = audio.mean(0), np.quantile(audio, [0.1, 0.9], axis=0)
    number = np.arange(1, len(mean) + 1)
    series = [Series("audio", mean, low, high, x=number)]
    svg = lines(series, "query token", "audio’s share %", limits=(-2, 102), joined=False, baseline=even, legend=0)
    columns = {"query token": "count"} | dict.fromkeys(
        ("to audio %", "10 % of utterances below", "10 % above", "its weight in the pooling %"), "percent"
    )
    rows = [list(row) for row in zip(number.tolist(), *map(np.ndarray.tolist, (mean, low, high, pooling)), strict=True)]
    most, least = number[mean.argmax()], number[mean.argmin()]
    alt = f"Token {most} gives audio most, {mean.max():.0f} %, token {least} least, {mean.min():.0f} %; "
    alt += f"even attention would be {even:.0f} %."
    note = f"Mean of {len(seen)} test utterances; bars: the middle 80 %. The rest goes to the words. "
    note += "Dashed: attention spread evenly over all frames and tokens."
    data = Table("tokens", "Attention to audio of each query token", columns, rows)
    return Plot("Which query token attends to which modality", alt, svg, data, note)


def _by_class(seen: Sequence[Attended], truths: Sequence[str], classes: Sequence[str]) -> Plot:
    """Both modalities' shares in the utterances of each class."""
    pooled: dict[str, list[float]] = {name: [] for name in classes if name in truths}
    for one, truth in zip(seen, truths, strict=True):
        pooled[truth].append(100 * float(one.audio @ one.tokens))
    audio = {name: float(np.mean(values)) for name, values in pooled.items()}
    parts = {"audio": [*audio.values()], "text": [100 - share for share in audio.values()]}
    rows = [[name, len(pooled[name]), share, 100 - share] for name, share in audio.items()]
    columns = {"true class": "text", "utterances": "count", "audio %": "percent", "text %": "percent"}
    data = Table("attention-classes", "Attention to each modality by emotion", columns, rows)
    alt = "Share of the attention that goes to audio: "
    alt += ", ".join(f"{name} {share:.0f} %" for name, share in audio.items())
    svg = shares(list(audio), parts, "share of the attention %")
    return Plot("By emotion, as the pooling weighs the tokens", f"{alt}.", svg, data)


def _words(one: Attended, classes: Sequence[str]) -> list[Block]:
    """What the model predicts, and the words by attention."""
    weights = {n: float(w) for n, w in enumerate(one.tokens @ one.words) if one.texts[n] != SPECIAL}
    most = max([*weights.values(), 1e-9])
    share, surest = 100 * float(one.audio @ one.tokens), int(one.probabilities.argmax())
    caption = f"Words by attention; {100 - share:.0f} % of it goes to the text, {share:.0f} % to the audio"
    return [
        f"Predicted {classes[surest]} with {100 * one.probabilities[surest]:.0f} %.",
        Weighed(caption, [(one.texts[n], weight / most) for n, weight in weights.items()]),
    ]


def _maps(name: str, one: Attended, energy: tuple[np.ndarray, float] | None) -> Plot:
    """The attention of each query token over the seconds and the words."""
    tokens, frames = one.frames.shape
    unit, end = ("seconds", frames * one.hop) if one.hop else ("frames", float(frames))
    binned = _binned(one.frames, STEPS)
    over_time, over_words = one.tokens @ binned, one.tokens @ one.words
    texts = ["⟨⟩" if text == SPECIAL else text for text in one.texts]
    svg = attention_maps(binned, one.words, texts, over_time, end, unit, energy)
    spans = _binned(one.frames, ROWS)
    step = end / spans.shape[1]
    names = [f"{n * step:.2f}–{(n + 1) * step:.2f} {unit}" for n in range(spans.shape[1])]
    rows = [
        [modality, what, 100 * float(one.tokens @ column), int(column.argmax()) + 1]
        for modality, whats, weights in (("audio", names, spans), ("text", one.texts, one.words))
        for what, column in zip(whats, weights.T, strict=True)
    ]
    columns = {"modality": "text", "what": "text", "attention %": "percent", "most by query token": "count"}
    data = Table(name, f"{one.utterance}: attention over seconds and words", columns, rows)
    when = (int(over_time.argmax()) + 0.5) * end / len(over_time)
    words = [n for n, word in enumerate(one.texts) if word != SPECIAL]
    most = one.texts[max(words, key=lambda n: over_words[n])] if words else "none"
    alt = (
        f"Attention of {tokens} query tokens: strongest around {when:.1f} of {end:.1f} {unit}, and on the word {most}."
    )
    note = "Stronger colour, more attention; each map from 0 to its own maximum. ⟨⟩: special tokens."
    return Plot("Attention of each query token", alt, svg, data, note)


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
    agreement = _agreement(cell, origin)
    return [*blocks, Group([_groups(cell, origin), *([agreement] if agreement else [])]), _hardest(cells, origin)]


def _hardest(cells: Sequence[Cell], origin: Origin) -> Table:
    """Wrong in the largest share of all runs on this corpus; of equals, where the truth was given least."""
    same = [c for c in cells if c.config["corpus"] == cells[0].config["corpus"] and c.classes == cells[0].classes]
    given, wrong, truth = defaultdict(list), defaultdict(list), {}
    taken: dict[str, Counter[str]] = defaultdict(Counter)
    for cell in same:
        p, names = cell.predictions, np.array(cell.classes)
        columns = p.ids, names[p.truth].tolist(), names[p.predicted].tolist(), p.right.tolist(), p.of_truth.tolist()
        for id_, label, prediction, right, share in zip(*columns, strict=True):
            truth[id_] = label
            wrong[id_].append(100 * (not right))
            given[id_].append(100 * share)
            if not right:
                taken[id_][prediction] += 1
    order = sorted(taken, key=lambda id_: (-np.mean(wrong[id_]), np.mean(given[id_]), id_))[:HARDEST]
    rows = [
        [id_, origin.of(id_, "text"), truth[id_], ", ".join(name for name, _ in taken[id_].most_common(2))]
        + [float(np.mean(wrong[id_])), len(wrong[id_]), float(np.mean(given[id_]))]
        + [origin.votes(id_), origin.of(id_, "duration")]
        for id_ in order
    ]
    columns = {"utterance": "text", "text": "text", "label": "text", "taken for": "text", "wrong %": "percent"}
    columns |= {"runs": "count", "given to the truth %": "percent", "votes": "text", "seconds": "number"}
    note = (
        f"Wrong in the largest share of the runs that tested it{', of all cells' if len(same) > 1 else ''}; of equals, "
    )
    note += "the one whose truth got least."
    return Table("hardest", f"The {len(rows)} hardest utterances", columns, rows, note)


def _length(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    place = int(np.searchsorted(SECONDS, seconds, side="right")) - 1
    low, high = SECONDS[place], SECONDS[place + 1]
    return f"under {high:g} s" if low == 0 else f"from {low:g} s" if np.isinf(high) else f"{low:g}–{high:g} s"


def _groups(cell: Cell, origin: Origin) -> Plot:
    """The share of wrong predictions in each group."""
    p = cell.predictions
    groupings: dict[str, Sequence[str | None]] = {
        "session": origin.column("session", p.ids),
        "speaker": p.speakers,
        "gender": origin.column("gender", p.ids),
        "duration": [_length(seconds) for seconds in origin.column("duration", p.ids)],
        "scripted or improvised": [style(id_) for id_ in p.ids],
    }
    known = [*map(_length, SECONDS[:-1]), *STYLES.values()]  # the order of these; others by number, then by name
    rows: list[list[Any]] = []
    for by, values in groupings.items():
        found = {value for value in values if value is not None}
        for group in sorted(
            found, key=lambda g: (known.index(g) if g in known else -1, g.zfill(9) if g.isdigit() else g)
        ):
            inside = np.array([value == group for value in values])
            n = len(set(p.ids[inside]))
            [matrix] = confusions(p.truth[inside], p.predicted[None, inside], len(cell.classes))
            wrong = wilson(float((~p.right[inside]).mean()), n)
            rows.append([by, group, n, wrong, 100 * float(unweighted_accuracy(matrix))])
    counts = Counter(row[0] for row in rows)
    drawn = [row for row in rows if counts[row[0]] <= GROUPS]
    headings = {by: [row[1] for row in drawn if row[0] == by] for by in dict.fromkeys(row[0] for row in drawn)}
    every = 100 * float((~p.right).mean())
    series = [Series("wrong", *zip(*(row[3] for row in drawn), strict=True))]
    svg = dots(headings, series, "wrong %", baseline=every, limits=(0, None))
    worst = max(drawn, key=lambda row: row[3][0])
    alt = f"Share of wrong predictions by group, {every:.0f} % over all. "
    alt += f"Highest: {worst[0]} {worst[1]}, {worst[3][0]:.0f} %."
    note = "Dashed: over all utterances. Bars: Wilson’s 95 % interval for the number of utterances; seeds are averaged."
    note += "" if len(drawn) == len(rows) else f" Groupings of more than {GROUPS} groups are only in the numbers."
    columns = {"by": "text", "group": "text", "utterances": "count", "wrong %": "interval", "UA %": "percent"}
    return Plot("Errors by group", alt, svg, Table("groups", "Errors by group", columns, rows), note)


def wilson(share: float, n: int) -> tuple[float, float, float]:
    """A share of n with Wilson's (1927) 95 % interval, in percent: for groups too small to draw from."""
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return 100 * share, float(max(0.0, 100 * (centre - half))), float(min(100.0, 100 * (centre + half)))


def _agreement(cell: Cell, origin: Origin) -> Plot | None:
    """Confidence and recall by the share of the raters' votes that stand behind the label."""
    from scipy.stats import spearmanr

    p, behind = cell.predictions, 100 * origin.agreement(cell)
    voted = np.isfinite(behind)
    if not voted.any():
        return None
    confidence = 100 * p.probabilities.max(1)
    rows: list[list[Any]] = []
    for name, (low, high) in AGREEMENT.items():
        inside = (behind >= low) & (behind < high)
        if n := len(set(p.ids[inside])):
            right = wilson(float(p.right[inside].mean()), n)
            rows.append([name, n, right, float(confidence[inside].mean()), 100 * float(p.of_truth[inside].mean())])
    series = [Series("right", *zip(*(row[2] for row in rows), strict=True))]
    series += [Series("confidence", [row[3] for row in rows]), Series("given to the truth", [row[4] for row in rows])]
    ticks = {place: f"{row[0]}\nn {row[1]:,}" for place, row in enumerate(rows)}
    svg = lines(series, "raters for the label", "%", ticks=ticks, limits=(0, 102), legend=3)
    note = "Confidence: mean probability of the predicted class. A rater’s several votes count in parts."
    if np.ptp(behind[voted]) and np.ptp(p.of_truth[voted]):
        rank = f"{spearmanr(behind[voted], p.of_truth[voted]).statistic:+.2f}".replace("-", "−")
        note = f"Spearman’s correlation of agreement and what is given to the truth: {rank}. {note}"
    surest, least = (
        f"{row[2][0]:.0f} % right with {row[0]} of the raters for the label" for row in (rows[-1], rows[0])
    )
    columns = {"raters for the label": "text", "utterances": "count", "right %": "interval"}
    columns |= {"confidence %": "percent", "given to the truth %": "percent"}
    title = "Agreement of the raters against confidence"
    return Plot(title, f"{surest}; {least}.", svg, Table("agreement", title, columns, rows), note)
