"""Scores as somebody claims them: `ua=76.4,wa=75.2`."""

import re

from ser.errors import WrongUse, unknown
from ser.train.scores.classes import METRICS

from ..evidence import Claim

# What the field calls them besides.
ALIASES = {
    "uar": "ua",
    "uwa": "ua",
    "war": "wa",
    "acc": "wa",
    "accuracy": "wa",
    "f1": "macro_f1",
    "macro-f1": "macro_f1",
    "mf1": "macro_f1",
    "wf1": "weighted_f1",
    "weighted-f1": "weighted_f1",
}

NUMBER = re.compile(r"\d+(?:\.(?P<decimals>\d+))?")


def parse_claim(text: str) -> Claim:
    """A claim: up to 1 a fraction, above 1 per cent. Raises `WrongUse`."""
    scores: dict[str, tuple[float, float]] = {}
    for pair in filter(None, text.split(",")):
        name, _, number = pair.partition("=")
        metric = ALIASES.get(name.strip().casefold(), name.strip().casefold())
        if metric not in METRICS:
            raise unknown("score in --claim", name.strip(), [*METRICS, *ALIASES])

        match = NUMBER.fullmatch(number.strip().removesuffix("%"))
        if match is None or float(match[0]) > 100:
            raise WrongUse(
                f"--claim {text}: {number.strip() or 'nothing'!r} is not a score; write such as "
                "ua=76.4 (per cent) or ua=0.764"
            )
        value = float(match[0])
        rounding = 0.5 * 10 ** -len(match["decimals"] or "")
        if value > 1 or "%" in number:
            value /= 100
            rounding /= 100
        scores[metric] = (value, rounding)

    if not scores:
        raise WrongUse("--claim names no score; write such as --claim ua=76.4,wa=75.2")
    return Claim(scores, text)
