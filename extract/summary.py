"""What an extraction did, as `ser features` prints it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Summary:
    """What a run did.

    `features` has one entry per feature name, with the keys that `--json` prints.
    """

    store: str
    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    # By feature, the reason of each id.
    quarantined: dict[str, dict[str, str]] = field(default_factory=dict)
    # Parts of the corpus without a row: a missing session, a bad line.
    refused: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    # Default features whose weights are not to be had, and why.
    left_out: dict[str, str] = field(default_factory=dict)
    # Wall clock.
    seconds: float = 0.0
    # Of audio that was decoded.
    audio_seconds: float = 0.0
    # By stage, busy seconds shared among its threads; slowest first.
    stages: dict[str, float] = field(default_factory=dict)
    # By feature, the largest relative deviation from one by one.
    check: dict[str, float] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether every feature is there, and has every utterance of the corpus.

        If not, the run ends with exit code 3.
        """
        return not (any(self.quarantined.values()) or self.refused or self.left_out)

    @property
    def sentence(self) -> str:
        """The closing line: "42.0 min of audio in 55.2 s: 46× real time; limited by is13"."""
        slowest = ""
        if self.stages:
            slowest = f"; limited by {next(iter(self.stages))}"
        if not self.audio_seconds:
            return f"done in {self.seconds:.1f} s{slowest}"

        minutes = self.audio_seconds / 60
        speed = self.audio_seconds / max(self.seconds, 1e-9)
        return (
            f"{minutes:.1f} min of audio in {self.seconds:.1f} s: {speed:.0f}× real time{slowest}"
        )


def group_warnings(warnings: Iterable[tuple[str, str]]) -> list[str]:
    """One line for each warning, with how many utterances have it, and the first of them.

    `warnings` are pairs of a warning and an utterance's id.
    """
    ids_by_warning: dict[str, set[str]] = {}
    for warning, id_ in warnings:
        ids_by_warning.setdefault(warning, set()).add(id_)

    lines: list[str] = []
    for warning, ids in sorted(ids_by_warning.items()):
        first = min(ids)
        subject = first if len(ids) == 1 else f"{len(ids)} utterances ({first}, …)"
        lines.append(f"{subject}: {warning}")
    return lines
