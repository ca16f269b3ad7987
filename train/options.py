"""The options of `ser train`, for the command line, for recipes and for Python.

Imports nothing heavy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ser.errors import WrongUse, unknown
from ser.options import Option, option, options_of

__all__ = ["Experiment"]

# What `--select` takes, and which epoch counts with each.
SELECTIONS = {
    "val": "the epoch with the best score on the dev part",
    "last": "the last epoch",
    "best-test": "the epoch with the best score on the TEST part, which lifts every number",
}


# The fields that hold texts such as "lr=1e-3" and "hubert=FOLDER".
REPEATABLE = ("set", "also_set", "model")


@dataclass(frozen=True)
class Experiment:
    """What `ser train` is asked for: every fold and seed of one configuration."""

    features: str = option(
        help="Features in the store, joined with +, such as hubert+mpnet.",
    )
    fusion: str = option(
        help="The model, such as mit, lgf-add, cnn, audio, text or linear.",
    )
    store: Path | str = option(
        "features",
        help="The store that `ser features` made.",
        metavar="PATH",
    )
    corpus: str | None = option(
        None,
        help="The store's only corpus by default; several joined with +.",
        metavar="A[+B]",
    )
    labels: str = option(
        "4class",
        help="4class, 5class, 6class, 8class, all (the corpus's own) or a TOML file.",
        metavar="POLICY",
    )
    target: str = option(
        "class",
        help="What is learnt: class, distribution (of the raters' votes), vad (valence, arousal, "
        "dominance), …",
        metavar="KIND",
        choices=["class", "distribution", "distribution+undecided", "vad", "class+vad"],
    )
    protocol: str = option(
        "session-out",
        help="How train, dev and test are cut: session-out, speaker-out, script-out, "
        "train1234-test5, random-70-20-10, official, corpus-out, cross:A:B or folds:FILE.",
        metavar="NAME",
    )
    only: str | None = option(
        None,
        help="Only scripted or improvised utterances.",
        metavar="KIND",
        choices=["scripted", "improvised"],
    )
    select: str = option(
        "val",
        help="Which epoch counts: val, last or best-test.",
        metavar="EPOCH",
        choices=SELECTIONS,
    )
    loss: str = option(
        "single",
        help="single or perspective.",
        metavar="LOSS",
        choices=["single", "perspective"],
    )
    seeds: int = option(
        1,
        help="How many seeds: 0, 1, … N-1.",
        metavar="N",
        maximum=10_000,
    )
    folds: str | int = option(
        "all",
        help="All folds, or the first K, as far as the protocol has them.",
        metavar="all|K",
    )
    epochs: int | None = option(
        None,
        help="The fusion's own by default.",
        metavar="N",
    )
    device: str = option(
        "auto",
        help="auto, cpu, cuda, cuda:N or mps.",
        metavar="DEVICE",
    )
    precision: str = option(
        "auto",
        help="Of the model: float32, or bf16, faster with other numbers; auto: bf16 for frames on "
        "a GPU that has it.",
        metavar="TYPE",
        choices=["auto", "float32", "bf16"],
    )
    # In Python also a mapping: {"lr": 1e-3}.
    set: tuple[str, ...] | Mapping[str, Any] = option(
        (),
        help="A setting; see --settings. Repeatable.",
        metavar="KEY=VALUE",
    )
    # As `set`, where the fusion has that setting: for sweeps over several fusions.
    also_set: tuple[str, ...] | Mapping[str, Any] = ()
    resume: bool = False
    log: str | None = option(
        None,
        help="Curves of each run, in its folder: tensorboard.",
        metavar="KIND",
        choices=["tensorboard"],
    )
    out: Path | str = option(
        "runs",
        help="Where the run folders are written.",
        metavar="PATH",
    )
    limit: int | None = option(
        None,
        help="N utterances, spread over the corpus.",
        metavar="N",
    )
    allow_missing: bool = option(
        False,
        help="Leave quarantined utterances out, and say which.",
    )
    model: tuple[str, ...] | Mapping[str, str] = option(
        (),
        help="Where the weights of an encoder lie that finetune_audio or _text trains. Repeatable.",
        metavar="NAME=ID_OR_PATH",
    )
    views: str = option(
        "",
        help="Augmented views to train on too, such as logmel:view=noise-1+logmel:view=pitch-1.",
        metavar="A+B",
    )
    deterministic: bool = option(
        False,
        help="The same seed gives the same bytes on a GPU too, more slowly; a CPU does so.",
    )
    memory: str | None = option(
        None,
        help="Bytes of features held, such as 8GB; others are read as needed. Default: half of "
        "what is free.",
        metavar="SIZE",
    )

    def __post_init__(self) -> None:
        """Turn mappings and lists into the texts that the command line gives."""
        for name in REPEATABLE:
            value = getattr(self, name)
            if isinstance(value, Mapping):
                value = setting_texts(value)
            elif isinstance(value, list):
                value = tuple(value)
            object.__setattr__(self, name, value)


def check_options(experiment: Experiment) -> None:
    """Raise `WrongUse` for a value that its option does not take, or not on this machine.

    Whoever made the experiment: the command line, a recipe or Python.
    """
    options = options_of(experiment)
    for field in fields(experiment):
        value = getattr(experiment, field.name)
        if field.name in REPEATABLE:
            _check_texts(field.name, value)
        else:
            _check_type(field.name, value, field.type)
        if field.name in options:
            _check_value(field.name, value, options[field.name])

    if experiment.log == "tensorboard" and find_spec("tensorboard") is None:
        raise WrongUse(
            "--log tensorboard: TensorBoard is not installed; `pip install "
            "'ser-fusion[tensorboard]'` adds it, and each run's file `log` holds its epochs anyway"
        )


def _check_texts(name: str, value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(text, str) for text in value):
        raise WrongUse(
            f"{name}={str(value)[:200]!r}: must be a tuple of texts, such as "
            '("lr=1e-3",), or a mapping, such as {"lr": 1e-3}'
        )


def _check_type(name: str, value: Any, kind: Any) -> None:
    fits = isinstance(value, kind)
    # True is an int for Python, and not for us.
    if isinstance(value, bool) and kind is not bool:
        fits = False
    if not fits:
        raise WrongUse(f"{name}={str(value)[:200]!r}: must be {getattr(kind, '__name__', kind)}")


def _check_value(name: str, value: Any, declared: Option) -> None:
    if value is not None and declared.choices and value not in declared.choices:
        raise unknown(f"value of --{name}", value, declared.choices)

    if isinstance(value, int) and not isinstance(value, bool):
        maximum = declared.maximum or 1_000_000_000
        if not 1 <= value <= maximum:
            raise WrongUse(f"--{name} {value}: must be at least 1 and at most {maximum:,}")


def setting_texts(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings by name, as a TOML table has them, in the form of `--set`: "lr=0.001"."""
    texts = []
    for name, value in values.items():
        if isinstance(value, bool):
            value = str(value).lower()
        texts.append(f"{name}={value}")
    return tuple(texts)
