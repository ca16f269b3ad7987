"""What `ser features` finds before it fetches or computes anything."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from ser.cache.store import check_local
from ser.engines.machine import choose_device
from ser.engines.scheduler import check_scheduler, local_workers
from ser.errors import WeightsError, WrongUse
from ser.options import options_of
from ser.weights.find import parse_models
from ser.weights.hub import hub_cache
from ser.weights.kept import ser_cache
from ser.weights.room import check_room
from ser.weights.source import Source

from .config import ExtractionConfig
from .corpora.detect import find_format
from .corpora.scan import Scan, scan_corpus
from .registry import split_names
from .resolve import find_sources


@dataclass(frozen=True)
class Preparation:
    """The corpus as it is on disk, and where the weights of each feature come from."""

    config: ExtractionConfig
    scan: Scan
    # The features with their variants, as in "hubert:layer=9".
    names: list[str]
    # By feature, without variants; None for one that has no weights.
    sources: Mapping[str, Source | None]
    # Features whose weights are not to be had.
    unavailable: dict[str, WeightsError] = field(default_factory=dict)

    @property
    def to_fetch(self) -> dict[str, Source]:
        """By feature, the weights that have to be downloaded, converted, or both."""
        return {
            feature: source
            for feature, source in self.sources.items()
            if source is not None and not source.is_ready
        }


def prepare(config: ExtractionConfig, scan: Scan | None = None) -> Preparation:
    """Look for the weights, then read the corpus, unless its `scan` is given.

    Nothing is downloaded or written. Of the default features, those whose weights are not to be had
    are left out, and named in `unavailable`. Raises `WeightsError` if they were asked for by name,
    `WrongUse` for an impossible corpus, feature, model or setting, and `StoreError` if a disk is
    too small for the weights.
    """
    check_config(config)

    names: list[str] = []
    if config.features or scan is None:
        names = split_names(config.features)
    if scan is None:
        # Before the weights, which are looked for over the network.
        find_format(config.corpus, config.format)

    models = parse_models(config.models)
    sources, unavailable = find_sources(names, models, convert=not config.no_convert)
    stop_if_asked_for(config, unavailable)
    _check_room_for_weights(sources)

    if scan is None:
        scan = scan_corpus(
            config.corpus, config.format, config.corpus_name, config.text, config.limit
        )
    return Preparation(config, scan, names, sources, unavailable)


def stop_if_asked_for(config: ExtractionConfig, unavailable: Mapping[str, WeightsError]) -> None:
    """Raise a `WeightsError` for what is not to be had, unless it is of the default features."""
    [default] = [entry.default for entry in fields(config) if entry.name == "features"]
    if not unavailable or config.features == default:
        return

    faults = [f"{feature}: {fault}" for feature, fault in unavailable.items()]
    raise WeightsError("; ".join(faults))


def check_config(config: ExtractionConfig) -> None:
    """Raise `WrongUse` for what an option cannot be, before anything is read."""
    for name, option in options_of(config).items():
        value = getattr(config, name)
        if option.choices and value not in (None, *option.choices):
            allowed = " or ".join(option.choices)
            raise WrongUse(f"--{name.replace('_', '-')} {value}: it is {allowed}")

    check_local(config.store)
    elsewhere = config.scheduler is not None and local_workers(config.scheduler) is None
    choose_device(config.device, here=config.device != "auto" and not elsewhere)

    seconds = [config.part_seconds]
    if config.batch_seconds is not None:
        seconds.append(config.batch_seconds)
    if not all(value > 0 for value in seconds):
        raise WrongUse("--part-seconds and --batch-seconds must be above 0")

    if config.scheduler is not None:
        check_scheduler(config.scheduler, config.insecure, config.workers)


def _check_room_for_weights(sources: Mapping[str, Source | None]) -> None:
    """Raise `StoreError` unless there is room for what will be downloaded and converted."""
    by_name = {source.name: source for source in sources.values() if source is not None}
    downloads = sum(source.download for source in by_name.values())
    pickles = sum(source.pickle for source in by_name.values())
    check_room({hub_cache(): downloads, ser_cache(): pickles})
