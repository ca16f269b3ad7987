"""The options of `ser train`, declared once: for the command line, for recipes and for Python. Imports nothing heavy.

The commands make one click option of each field of `Experiment` that has a `help` (`fields(Experiment)`, in order):
its name with `-` for `_`, its default, and from its `metadata` the `help`, `metavar` and `choices`. `field.type` says
the rest: `bool` is a flag, `tuple[str, ...]` is repeatable, `int` and `int | None` are numbers from 1, `Path | str` is
a path, and all else is text. What an option may hold is checked by `experiment.prepare`, whoever made the experiment.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Experiment"]

SELECTIONS = {  # which epoch counts
    "val": "the epoch with the best score on the dev part",
    "last": "the last epoch",
    "best-test": "the epoch with the best score on the TEST part, which lifts every number",
}
TARGETS = ("class", "distribution", "distribution+undecided", "vad", "class+vad")  # see targets.py
PROTOCOL_HELP = (
    "session-out, speaker-out, script-out, train1234-test5, random-70-20-10, official, corpus-out, cross:A:B or "
    "folds:FILE"
)


def option(
    default: Any, help: str, metavar: str | None = None, choices: tuple[str, ...] = (), most: int | None = None
) -> Any:
    """A field of `Experiment` that is an option of the commands; with `choices`, the only values that it takes."""
    return field(default=default, metadata={"help": help, "metavar": metavar, "choices": choices, "most": most})


@dataclass(frozen=True)
class Experiment:
    """What `ser train` is asked for: every fold and seed of one configuration."""

    features: str = field(metadata={"help": "Features in the store, joined with +, such as hubert+mpnet."})
    fusion: str = field(metadata={"help": "The model, such as mit, lgf-add, cnn, audio or text."})
    store: Path | str = option("features", "The store that `ser features` made.", "PATH")  # noqa: RUF009 (immutable)
    corpus: str | None = option(None, "The store's only corpus by default; several joined with +.", "A[+B]")
    labels: str = option("4class", "4class, 5class, 6class, 8class, all (the corpus's own) or a TOML file.", "POLICY")
    target: str = option(
        "class",
        "What is learnt: class, distribution (of the raters' votes), vad (valence, arousal, dominance), …",
        "KIND",
        TARGETS,
    )
    protocol: str = option("session-out", f"How train, dev and test are cut: {PROTOCOL_HELP}.", "NAME")
    only: str | None = option(None, "Only scripted or improvised utterances.", "KIND", ("scripted", "improvised"))
    select: str = option("val", "Which epoch counts: val, last or best-test.", "EPOCH", tuple(SELECTIONS))
    loss: str = option("single", "single or perspective.", "LOSS", ("single", "perspective"))
    seeds: int = option(1, "How many seeds: 0, 1, … N-1.", "N", most=10_000)
    folds: str | int = option("all", "All folds, or the first K, as far as the protocol has them.", "all|K")
    epochs: int | None = option(None, "The fusion's own by default.", "N")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.", "DEVICE")
    precision: str = option(
        "auto",
        "Of the model: float32, or bf16, faster with other numbers; auto: bf16 for frames on a GPU that has it.",
        "TYPE",
        ("auto", "float32", "bf16"),
    )
    set: tuple[str, ...] = option((), "A setting; see --settings. Repeatable.", "KEY=VALUE")
    also_set: tuple[str, ...] = ()  # as `set`, where the fusion has that setting: for sweeps over several fusions
    resume: bool = False
    log: str | None = option(None, "Curves of each run, in its folder: tensorboard.", "KIND", ("tensorboard",))
    out: Path | str = option("runs", "Where the run folders are written.", "PATH")  # noqa: RUF009
    limit: int | None = option(None, "N utterances, spread over the corpus.", "N")
    allow_missing: bool = option(False, "Leave quarantined utterances out, and say which.", None)
    model: tuple[str, ...] = option(
        (), "Where the weights of an encoder lie that finetune_layers trains. Repeatable.", "NAME=ID_OR_PATH"
    )
    views: str = option("", "Augmented views to train on too, such as logmel:view=noise-1+logmel:view=pitch-1.", "A+B")
    deterministic: bool = option(False, "The same seed gives the same bytes on a GPU too, more slowly; a CPU does so.")
    memory: str | None = option(
        None, "Bytes of features held, such as 8GB; others are read as needed. Default: half of what is free.", "SIZE"
    )


def assignments(table: Mapping[str, Any]) -> tuple[str, ...]:
    """A TOML table as the `key=value` assignments of `--set`."""
    return tuple(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in table.items())
