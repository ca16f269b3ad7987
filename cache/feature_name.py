"""The names of features to train on, and what stands in them."""

from typing import NamedTuple

# Their `hop` is an option of extraction, and so makes another feature.
_OWN_HOP = ("logmel", "mfcc")


class FeatureName(NamedTuple):
    """The parts of a name such as `bert:layer=9,pool=meanstd@3f2a`."""

    feature: str
    """The feature: "bert"."""

    variant: list[str]
    """Options of its extraction, as they are written: ["layer=9"]."""

    reading: dict[str, str]
    """Options of reading it: {"pool": "meanstd"}."""

    fingerprint: str
    """What its fingerprint begins with: "3f2a", or empty."""


def parse_feature_name(name: str) -> FeatureName:
    """Take a name apart; the fingerprint may stand last or before the options.

    `bert:layer=9,pool=meanstd@3f2a` and `bert@3f2a:layer=9,pool=meanstd` say the same.
    """
    before, _, after = name.strip().partition("@")
    feature, _, options = before.partition(":")
    fingerprint, _, more_options = after.partition(":")

    of_reading = ("pool=",) if feature in _OWN_HOP else ("pool=", "hop=")
    variant: list[str] = []
    reading: dict[str, str] = {}

    for option in f"{options},{more_options}".split(","):
        if option.startswith(of_reading):
            key, _, value = option.partition("=")
            reading[key] = value
        elif option:
            variant.append(option)

    return FeatureName(feature, variant, reading, fingerprint)
