"""One utterance: what each query token attends to, over the seconds and the words."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .attention import SPECIAL, Attended
from .markup import Block, Weighed
from .plots import AUDIO, MUTED, TEXT, Plot, figure, to_svg
from .tables import Column, Table

STEPS = 60  # columns of a heat map over time
ROWS = 12  # time steps in a table


def attended_blocks(
    name: str, classes: Sequence[str], one: Attended, envelope: tuple[np.ndarray, float] | None
) -> list[Block]:
    """What the model predicts, the words by attention, and the attention of each query token over seconds and words.

    `envelope` is the energy over time with its seconds per step.
    """
    weights = one.tokens @ one.words  # [N]
    strongest = max(float(weights[[w != SPECIAL for w in one.texts]].max(initial=0)), 1e-9)
    words = [(w, min(1.0, float(v) / strongest)) for w, v in zip(one.texts, weights, strict=True) if w != SPECIAL]
    share = float(one.audio @ one.tokens)
    caption = f"Words by attention; {100 * (1 - share):.0f} % of it goes to the text, {100 * share:.0f} % to the audio"
    surest = int(one.probabilities.argmax())
    told = f"Predicted {classes[surest]} with {100 * one.probabilities[surest]:.0f} %."
    return [told, Weighed(caption, words), _heat(name, one, envelope)]


def _binned(frames: np.ndarray, steps: int) -> np.ndarray:
    """Attention summed into at most `steps` spans of equal length [L, steps]."""
    cuts = np.linspace(0, frames.shape[1], min(steps, frames.shape[1]) + 1).round().astype(int)
    return np.add.reduceat(frames, cuts[:-1], axis=1)


def _heat(name: str, one: Attended, envelope: tuple[np.ndarray, float] | None) -> Plot:
    tokens, frames = one.frames.shape
    envelope = envelope if one.hop else None  # without a clock the two cannot be laid over each other
    seconds = frames * one.hop if one.hop else float(frames)
    unit = "seconds" if one.hop else "frames"
    binned = _binned(one.frames, STEPS)
    ratios = [1.0, 2.2] if envelope is not None else [0.7, 2.2]
    wide = [3.0, max(0.7, min(2.4, 0.24 * len(one.texts)))]
    with figure(330, nrows=2, ncols=2, height_ratios=ratios, width_ratios=wide, squeeze=False) as (drawing, grid):
        top, heat, corner, words = grid[0, 0], grid[1, 0], grid[0, 1], grid[1, 1]
        corner.set_axis_off()
        pooled = one.tokens @ binned
        x = (np.arange(len(pooled)) + 0.5) * seconds / len(pooled)
        if envelope is not None:
            energy, hop = envelope
            level = (energy - energy.min()) / max(float(np.ptp(energy)), 1e-9)
            top.fill_between(np.arange(len(level)) * hop, level, color=MUTED, alpha=0.28, linewidth=0, step="mid")
        top.plot(x, pooled / max(pooled.max(), 1e-12), color=AUDIO, linewidth=1.8)
        top.set(ylim=(0, 1.06), xlim=(0, seconds), yticks=[])
        top.set_xticklabels([])
        top.grid(visible=False)
        top.spines["left"].set_visible(False)
        top.set_title("attention over the seconds" if one.hop else "attention over the frames", fontsize=12)
        _image(heat, binned, AUDIO, (0, seconds, tokens + 0.5, 0.5))
        heat.set_xlabel(unit)
        heat.set_ylabel("query token")
        heat.yaxis.get_major_locator().set_params(integer=True)
        _image(words, one.words, TEXT, (-0.5, len(one.texts) - 0.5, tokens + 0.5, 0.5))
        words.set_yticks([])
        words.set_xticks(
            range(len(one.texts)),
            ["⟨⟩" if w == SPECIAL else w if len(w) < 11 else f"{w[:9]}…" for w in one.texts],
            rotation=90,
            fontsize=10.5,
        )
        words.set_title("words", fontsize=12)
        svg = to_svg(drawing)
    data = _heat_table(name, one, seconds, unit)
    when = x[int(pooled.argmax())]
    named = [w for w in one.texts if w != SPECIAL]
    most = named[int(np.argmax((one.tokens @ one.words)[: len(named)]))] if named else "none"
    alt = f"Attention of {tokens} query tokens: strongest around {when:.1f} of {seconds:.1f} {unit}, "
    alt += f"and on the word {most}."
    note = "Stronger colour, more attention; each map from 0 to its own maximum. ⟨⟩: special tokens."
    return Plot("Attention of each query token", alt, svg, data, note)


def _image(axes: Any, values: np.ndarray, colour: str, extent: tuple[float, float, float, float]) -> None:
    """A heat map in one colour of rising opacity, so that it stands on light and dark paper."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    ramp = LinearSegmentedColormap.from_list("ramp", [(*to_rgb(colour), 0.0), (*to_rgb(colour), 1.0)])
    axes.imshow(
        values,
        aspect="auto",
        cmap=ramp,
        vmin=0,
        vmax=max(float(values.max()), 1e-12),
        extent=extent,
        interpolation="nearest",
    )
    axes.grid(visible=False)


def _heat_table(name: str, one: Attended, seconds: float, unit: str) -> Table:
    """What the pooling sees of each span and word, and the query token that attends to it most."""
    spans = _binned(one.frames, ROWS)
    step = seconds / spans.shape[1]
    rows: list[list[Any]] = []
    for number in range(spans.shape[1]):
        rows.append(
            [
                "audio",
                f"{number * step:.2f}–{(number + 1) * step:.2f} {unit}",
                float(one.tokens @ spans[:, number]),
                int(spans[:, number].argmax()) + 1,
            ]
        )
    for number, word in enumerate(one.texts):
        rows.append(["text", word, float(one.tokens @ one.words[:, number]), int(one.words[:, number].argmax()) + 1])
    columns = [
        Column("modality"),
        Column("what"),
        Column("attention %", "percent"),
        Column("most by query token", "count"),
    ]
    return Table(name, f"{one.utterance}: attention over seconds and words", columns, rows)
