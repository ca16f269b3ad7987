"""What a predictor is given, and what it answers."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Turn:
    """One utterance to classify. Without a `dialogue` it stands alone."""

    # By default the audio path as it is given, or "text".
    id: str = ""
    audio: Path | str | None = None
    text: str | None = None
    dialogue: str | None = None
    # Its rank within the dialogue; by default, its position among the turns given.
    turn: int | None = None
    # For models that distinguish the speakers of a dialogue.
    speaker: str | None = None
    # In seconds: the part of its audio file that it is, where it is not the whole.
    start: float | None = None
    end: float | None = None

    @property
    def is_segment(self) -> bool:
        """Whether it is a part of its audio file."""
        return self.start is not None or self.end is not None

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", "text" if self.audio is None else str(self.audio))


@dataclass(frozen=True)
class Prediction:
    """The model's prediction for one utterance.

    The probabilities are those after the run's temperature, if it has one. `ratings` are valence,
    arousal and dominance on the scale of the corpus that the run trained on, if it learnt them. A
    run that learnt nothing else gives no `label` and no `probabilities`.
    """

    id: str
    label: str | None
    probabilities: dict[str, float]
    # The modalities that the utterance lacks.
    without: tuple[str, ...] = ()
    ratings: dict[str, float] = field(default_factory=dict)
    # The highest probability is below the requested bound: the label does not count as an answer.
    abstained: bool = False


@dataclass(frozen=True)
class Answer:
    """Predictions in the order of the turns."""

    predictions: list[Prediction]
    # By id, why a turn has no prediction.
    unusable: dict[str, str] = field(default_factory=dict)
    # On the others, and on the run.
    notes: list[str] = field(default_factory=list)
