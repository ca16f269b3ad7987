"""Which query token attends to which modality."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .attention import Attended
from .plots import AUDIO, MUTED, TEXT, Plot, figure, to_svg
from .tables import Column, Table, percent


def by_token(seen: Sequence[Attended]) -> Plot:
    """The audio's share of each query token's attention."""
    shares = np.array([one.audio for one in seen])  # [utterances, L]
    tokens = np.array([one.tokens for one in seen])
    even = float(np.mean([one.even for one in seen]))
    mean = shares.mean(0)
    low, high = np.quantile(shares, [0.1, 0.9], axis=0)
    number = np.arange(1, shares.shape[1] + 1)
    with figure(270) as (drawing, axes):
        axes.vlines(number, low, high, color=AUDIO, linewidth=2, alpha=0.45)
        axes.plot(number, mean, "o", color=AUDIO, markersize=5.5)
        axes.axhline(even, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
        axes.set_ylabel("audio’s share %")
        axes.set_xlabel("query token")
        axes.xaxis.get_major_locator().set_params(integer=True)
        svg = to_svg(drawing)
    rows = [
        [int(n), float(m), float(a), float(b), float(w)]
        for n, m, a, b, w in zip(number, mean, low, high, tokens.mean(0), strict=True)
    ]
    columns = [
        Column("query token", "count"),
        Column("to audio %", "percent"),
        Column("10 % of utterances below", "percent"),
    ]
    columns += [Column("10 % above", "percent"), Column("its weight in the pooling %", "percent")]
    data = Table("tokens", "Attention to audio of each query token", columns, rows)
    most, least = int(mean.argmax()) + 1, int(mean.argmin()) + 1
    alt = f"Token {most} gives audio most, {percent(mean.max())}, token {least} least, {percent(mean.min())}; "
    alt += f"even attention would be {percent(even)}."
    note = f"Mean of {len(seen)} test utterances; bars: the middle 80 %. The rest goes to the words. "
    note += "Dashed: attention spread evenly over all frames and tokens."
    return Plot("Which query token attends to which modality", alt, svg, data, note)


def by_class(seen: Sequence[Attended], truths: Sequence[str], classes: Sequence[str]) -> Plot:
    """Both modalities' shares in the utterances of each class."""
    pooled = np.array([float(one.audio @ one.tokens) for one in seen])
    held = [name for name in classes if name in truths]
    rows: list[list[Any]] = []
    with figure(90 + 34 * len(held)) as (drawing, axes):
        for place, name in enumerate(held):
            mine = pooled[[truth == name for truth in truths]]
            share = float(mine.mean())
            axes.barh(place, share, color=AUDIO, height=0.56, label="audio" if place == 0 else None)
            axes.barh(
                place,
                1 - share,
                left=share,
                color=TEXT,
                height=0.56,
                hatch="///",
                edgecolor="none",
                label="text" if place == 0 else None,
            )
            rows.append([name, len(mine), share, 1 - share])
        axes.set_yticks(range(len(held)), held)
        axes.set_ylim(len(held) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
        axes.set_xlabel("share of the attention %")
        axes.grid(axis="y", visible=False)
        drawing.legend(loc="outside lower left", ncols=2)
        svg = to_svg(drawing)
    columns = [
        Column("true class"),
        Column("utterances", "count"),
        Column("audio %", "percent"),
        Column("text %", "percent"),
    ]
    data = Table("attention-classes", "Attention to each modality by emotion", columns, rows)
    told = ", ".join(f"{name} {100 * share:.0f} %" for name, _, share, _ in rows)
    return Plot(
        "By emotion, as the pooling weighs the tokens", f"Share of the attention that goes to audio: {told}.", svg, data
    )
