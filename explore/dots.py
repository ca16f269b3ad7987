"""The plot of one effect: a dot for each speaker and group, at the mean of their utterances."""

from typing import Any

import numpy as np

from ser.train.report.figures import MUTED, figure

from .effects import Design

HEIGHT = 150.0  # points


def draw_dots(values: np.ndarray, dimension: str, design: Design, place: int) -> Any:
    """The means of each speaker `[n]` in the reference and another group, joined by a line."""
    drawing, axes = figure(HEIGHT)
    means: dict[int, dict[int, float]] = {}
    for speaker in np.unique(design.speaker_of):
        of_speaker = design.speaker_of == speaker
        for height, group in enumerate((0, place)):
            chosen = of_speaker & (design.group_of == group)
            if chosen.any():
                means.setdefault(int(speaker), {})[height] = float(values[chosen].mean())

    for of_groups in means.values():
        axes.plot(list(of_groups.values()), list(of_groups), color=MUTED, linewidth=0.5, zorder=1)
    for height in (0, 1):
        points = [of_groups[height] for of_groups in means.values() if height in of_groups]
        axes.scatter(points, [height] * len(points), s=14, color=f"C{height}", zorder=2)

    axes.set(xlabel=dimension, ylim=(-0.5, 1.5))
    axes.set_yticks([0, 1], [design.groups[0], design.groups[place]])
    return drawing
