"""What the trainer knows of a model.

What it takes, its settings with their sources, how it is built and trained.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta
from torch import Generator, Tensor, nn

OURS = "ours: not taken from the paper or its code"
BOTH = ("audio", "text")

# By modality, the values of a row.
Dims = Mapping[str, int]

# What a setting may be: `--set` and the runs that are opened again are held to it, and `--settings`
# shows it.
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Even = Annotated[int, Meta(ge=2, le=1_000_000, multiple_of=2)]
Depth = Annotated[int, Meta(ge=0, le=1000)]
Seed = Annotated[int, Meta(ge=0, lt=1 << 32)]
Positive = Annotated[float, Meta(gt=0, le=1e38)]
Factor = Annotated[float, Meta(gt=0, le=1000)]
Weight = Annotated[float, Meta(ge=0, le=1e38)]
Share = Annotated[float, Meta(ge=0, le=1)]
Dropout = Annotated[float, Meta(ge=0, lt=1)]
Decay = Annotated[float, Meta(gt=0, le=1)]
Beta = Annotated[float, Meta(gt=0, lt=1)]
Gamma = Annotated[float, Meta(ge=0, le=100)]


def setting(
    default: Any, source: str, help: str | None = None, *, recorded_at_default: bool = True
) -> Any:
    """A field of a settings dataclass: its default, where the default comes from, and what it does.

    What one of `CommonSettings` does need not be said again.

    A run is named by its config, so one more setting there would rename every run. A setting that
    is added after runs were trained is `recorded_at_default=False`: a config names it only where it
    is not at its default, and the runs from before keep their names.
    """
    metadata: dict[str, Any] = {"source": source, "recorded_at_default": recorded_at_default}
    if help is not None:
        metadata["help"] = help
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class CommonSettings:
    """What every fusion's settings hold.

    A subclass says again what its source, or its kind of batch, has otherwise.
    """

    epochs: Count = setting(100, OURS, "epochs")
    batch_size: Count = setting(16, OURS, "utterances per batch")
    lr: Positive = setting(1e-3, OURS, "Adam's learning rate")
    weight_decay: Weight = setting(
        0.0, OURS, "weight of the L2 term, which Adam adds to the gradient"
    )
    dropout: Dropout = setting(0.2, OURS, "dropout")
    standardise_audio: bool = setting(False, OURS, "z-score the audio features")
    standardise_text: bool = setting(False, OURS, "z-score the text features")


@dataclass(frozen=True)
class Stage:
    """One training of a part of the model, with a fresh optimiser."""

    name: str
    output: str = "logits"
    """The head whose loss is trained and whose scores select the epoch to keep: "logits", "audio"
    or "text"."""
    trains: tuple[str, ...] = ("",)
    """Prefixes of parameter names: the optimiser gets the parameters that start with one of them
    ("" is all), and the others stay as the stage before left them."""
    encoder_layers: int | None = None
    """Of trained encoders, how many layers counted from the top train in this stage, and all below
    them do not; None: all that are trained at all."""
    epochs: str = "epochs"
    """The setting that says how many epochs it has."""
    lr: str = "lr"
    """The setting that is its learning rate."""


@dataclass(frozen=True)
class Fusion:
    """An entry of `FUSIONS`: a model of a paper, and how it is built and trained."""

    name: str
    """What `--fusion` calls it."""
    source: str
    """The paper's section, such as "MSMSER §2.2"."""
    settings: type
    """A frozen dataclass whose every field is made by `setting`, and which has those of
    `CommonSettings`: `batch_size` counts `unit`s, and features are z-scored by the training part's
    statistics. Where there is a property `decay`, the update t = 0, 1, … has the rate
    lr / (1 + decay t)."""
    inputs: tuple[str, ...]
    """The modalities that it takes."""
    level: Literal["sequence", "vector"]
    """Frames or tokens, or one vector per utterance."""
    build: Callable[..., nn.Module]
    """`build(settings, dims, classes)` makes the module; `dims` maps each modality of `inputs` to
    its dimension. Raises `WrongUse` if the settings contradict each other.

    The module's `forward(batch)` returns a dict: "logits" `[n, K]` and, where the model has
    unimodal heads, "audio" and "text" `[n, K]`, before the softmax; it may run under
    `torch.autocast`."""
    unit: Literal["utterance", "dialogue"] = "utterance"
    """What a batch counts."""
    hide: Callable[[Any, int, int, Generator], dict[str, Tensor]] | None = None
    """`hide(settings, n, epoch, generator)`, where there is one, chooses which of the n utterances
    of a training batch do without which modality, modality → bool `[n]`, in an epoch counted from
    0: they then have no rows of it."""
    stages: tuple[Stage, ...] = (Stage("train"),)
    """They are trained one after the other on the same module, each starting from the weights that
    the one before it kept; the model of the run is that of the last, and its scores are those of
    "logits". Most models have one."""
    stacks: Callable[[Any], bool] | None = None
    """`stacks(settings)`, where there is one, says whether many runs can be trained at once
    (`stacked_runs.StackedRuns`): the model takes vectors of whole dialogues, may be given their
    layout, is deterministic but for `nn.Dropout`, has one stage and no `hide`."""
    solved: bool = False
    """Whether a solver fits it at once, in the place of the training loop: then its module is a
    `solved.SolvedModel`, its settings are `solved.SolvedSettings`, and no seed changes it."""
    unused: tuple[str, ...] = ()
    """The settings of its class that this fusion has no use for, and which cannot be set for it;
    they stay in a run's config. That it does not standardise what it does not take, and that whole
    dialogues cannot be drawn by class, is added here."""
    fixed: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """What no paper states and no setting changes: name → value and help."""
    pooled: bool = False
    """Whether the module has a `PooledVector`, so that mixup and auxiliary heads can be had."""
    pools_as_is: bool = False
    """Whether no weight of the module lies before its `PooledVector`: an auxiliary head then shares
    none with it, but those of what stands before the module."""
    updates: int | None = None
    """What the setting `epochs` of "auto", where it can be that, stands for: as many epochs as give
    so many updates, of however large a training part."""
    adversary: str | None = None
    """What the module's `PooledVector` is to tell nothing of, "speaker" or "gender": a head behind
    the gradient reversal that stands before it learns this in training."""
    takes_speakers: bool = False
    """Whether the module reads `batch.speakers`: a model of ONNX then has an input for them."""
    encoded: tuple[str, ...] = ()
    """The modalities whose encoder is trained with the module (`encoder_front`): it takes their
    rows, also where the fusion takes vectors."""

    def __post_init__(self) -> None:
        absent: set[str] = set()
        for modality in BOTH:
            if modality not in self.inputs:
                absent.add(f"standardise_{modality}")
            if modality not in self.inputs or self.solved:
                absent.add(f"finetune_{modality}")
        if self.unit == "dialogue":
            absent.add("sampler")

        added = sorted(absent.difference(self.unused))
        object.__setattr__(self, "unused", (*self.unused, *added))

    def takes_vectors(self, modality: str) -> bool:
        """Whether one vector for each utterance is read of a modality, and not its rows."""
        return self.level == "vector" and modality not in self.encoded
