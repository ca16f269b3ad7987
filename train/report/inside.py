"""Looking inside: what the query tokens attend to, over the seconds and the words of chosen utterances."""

from collections.abc import Mapping, Sequence

import numpy as np

from ser.errors import SerError
from ser.train.run_folder import Run

from .attention import Attending, can_attend
from .cells import Cell
from .heat import attended_blocks
from .markup import Block, Card, Section, Side
from .tokens import by_class, by_token
from .utterances import Origin

SAMPLED = 40  # utterances behind the averages


def section(ranked: Sequence[Cell], origins: Mapping[str, Origin]) -> Section | None:
    """The section, for the cell with the highest UA that has query tokens; None if there is none."""
    able = [cell for cell in ranked if can_attend(cell.runs[0])]
    if not able:
        return None
    cell = able[0]
    title = "Looking inside: what the query tokens attend to"
    try:
        blocks = _blocks(cell, cell.runs[0], origins[cell.label])
    except SerError as fault:
        blocks = [f"The attention of {cell.label} cannot be shown: {fault}"]
    return Section("inside", title, blocks)


def _blocks(cell: Cell, run: Run, origin: Origin) -> list[Block]:
    p = cell.predictions
    mine = np.flatnonzero(p.run == 0)
    sampled = mine[np.linspace(0, len(mine) - 1, min(SAMPLED, len(mine))).round().astype(int)]
    chosen = _chosen(cell, mine, origin)
    attending = Attending(run, origin, [p.ids[i] for i in [*sampled, *(i for i, _ in chosen)]])
    seen = [attending(p.ids[i]) for i in sampled]
    truths = [cell.classes[p.truth[i]] for i in sampled]
    envelopes = _Envelopes(origin)
    cards: list[Block] = []
    for number, (i, why) in enumerate(chosen, 1):
        utterance = p.ids[i]
        envelope = envelopes.of(utterance)
        blocks = attended_blocks(f"attention-{number}", cell.classes, attending(utterance), envelope)
        cards.append(Card(f"{utterance}: {why}", blocks))
    intro = (
        f"One trained model of {cell.label} (seed {run.config['seed']}, fold {run.config['fold']}): the attention of "
        "its interaction transformer, mean over the heads of its last layer. The tokens have no fixed meaning, so "
        "another seed has other ones."
    )
    told = (
        "The grey area above the seconds is the energy, the mean log-mel band in the store"
        if envelopes.there
        else ("No energy is drawn, since the store holds no log-mel features of this corpus")
    )
    return [
        intro,
        Side([by_token(seen), by_class(seen, truths, cell.classes)]),
        f"Below, single utterances: the surest right answer of each class, and the surest wrong ones. {told}; training "
        "and reports never read audio.",
        Side(cards),
    ]


def _chosen(cell: Cell, mine: np.ndarray, origin: Origin) -> list[tuple[int, str]]:
    """Predictions to look at, with the reason: the surest right one of each class, then the two surest wrong ones."""
    p = cell.predictions
    short = np.array([3 <= len((origin.of(p.ids[i], "text") or "").split()) <= 14 for i in mine])
    pool = mine[short] if short.sum() >= 8 else mine
    found: list[tuple[int, str]] = []
    for k, name in enumerate(cell.classes):
        right = pool[(p.truth[pool] == k) & p.right[pool]]
        if len(right):
            found.append((int(right[p.of_truth[right].argmax()]), f"{name}, rightly told"))
    wrong = pool[~p.right[pool]]
    for i in wrong[np.argsort(-p.probabilities[wrong].max(1), kind="stable")[:2]]:
        found.append((int(i), f"{cell.classes[p.truth[i]]}, taken for {cell.classes[p.predicted[i]]}"))
    return found


class _Envelopes:
    """The energy over time, from log-mel features where the store has them."""

    def __init__(self, origin: Origin) -> None:
        self.origin, self.feature = origin, None
        if origin.store is not None and origin.manifest is not None:
            for feature in origin.store.features():
                if feature.spec.feature == "logmel" and feature.spec.level == "frame" and feature.rows(origin.manifest):
                    self.feature = feature
                    break

    @property
    def there(self) -> bool:
        """Whether there are any."""
        return self.feature is not None

    def of(self, utterance: str) -> tuple[np.ndarray, float] | None:
        """Mean over the bands of each frame [T], and the seconds between frames."""
        if self.feature is None or self.origin.manifest is None:
            return None
        try:
            packed = self.feature.load(self.origin.manifest, [self.origin.row_of[utterance]])
        except SerError:
            return None
        return packed.values.astype(np.float64).mean(1), self.feature.spec.hop or 0.01
