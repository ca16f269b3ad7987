"""What the files of a run hold: `RunConfig` is config.json, `RunResult` is result.json.

A field is a key, in the order in which the file has them; one that is None by default is left out
of the file where nothing is to be said. Both files end with a seal (`run`, `sha256`), which is
`run_folder`'s and in no record. Imports nothing heavy.

    K  classes     D  dimensions: valence, arousal and dominance
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec

# Before the way in which an ensemble's members become one, in the place of a fusion.
ENSEMBLE = "ensemble:"

ConfigOrResult = TypeVar("ConfigOrResult", "RunConfig", "RunResult")


class FeatureRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A feature that a run was trained on, or several side by side in the columns of a row."""

    feature: str
    """Its name with its variant, such as "hubert:layer=9"; of several, joined with +."""

    fingerprint: str
    """The 16 hex digits of the feature's folder; of several, the hash of their records."""

    pool: Literal["mean", "meanstd"]
    """How an utterance's rows become one vector, where the fusion takes vectors."""

    hop: float | None = None
    """Seconds over which frames were averaged when they were read; None where they were not."""

    sums: list[tuple[int, int]] | None = None
    """Of several features: (how many successive ones a learnt sum adds up, their dimension)."""

    joined: "list[FeatureRecord] | None" = None
    """Of several features: the record of each, in the order of the columns."""

    extra: str | None = None
    """What was read of the feature in place of its values, such as its token ids."""

    @property
    def parts(self) -> "list[FeatureRecord]":
        """The features that stand side by side: itself, if it is a single one."""
        return [self] if self.joined is None else self.joined

    @property
    def read_name(self) -> str:
        """The name with how the rows are read, as `--features` takes it: "logmel:hop=0.1"."""
        name = self.feature
        if self.pool != "mean":
            name += f"{',' if ':' in name else ':'}pool={self.pool}"
        if self.hop is not None:
            name += f"{',' if ':' in name else ':'}hop={self.hop}"
        return name


class LabelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The label policy of a run."""

    policy: str
    """Its name, such as "4class", or that of its file; "none" for a target without classes."""

    classes: list[str]
    """The K classes, in the order of a model's outputs."""

    maps: dict[str, str]
    """The class of each raw label that has one: {"exc": "hap", …}."""


class CorpusRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One of several corpora of a run."""

    synthetic: bool
    """Whether its speech is generated."""

    classes: dict[str, int]
    """How many of its utterances each class has."""


class Provenance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a run came from: what of its config.json the run's name does not hash."""

    synthetic: bool
    """Whether any of the speech is generated."""

    random_weights: list[str]
    """The features that were computed with random weights."""

    specs: dict[str, dict[str, Any]]
    """By modality, the feature's spec.json, or {"joined": […]} of several: see `feature_specs`."""

    left_out: dict[str, int | list[str]]
    """Why utterances were not used → how many, or their ids."""

    store: str
    """The absolute path of the store."""

    corpora: dict[str, CorpusRecord] | None = None
    """Each of several corpora, by name."""

    transcripts: dict[str, Any] | None = None
    """Who made the transcripts, where an ASR did, and of which corpus ("of")."""

    encoders: dict[str, dict[str, Any]] | None = None
    """By modality, the config of an encoder that the run trains too."""

    asked: dict[str, Any]
    """The options of `ser train`, by the names of the fields of `Experiment`."""

    device: str
    """Where it was trained, such as "cpu" or "cuda:0"."""

    package: str | None = None
    """The package that brings the fusion, if it is a plugin."""

    versions: dict[str, str]
    """Of Python, torch and ser."""

    def feature_specs(self, modality: str) -> list[dict[str, Any]]:
        """The spec.json of each feature of a modality; none if the modality is not known."""
        spec = self.specs.get(modality)
        if spec is None:
            return []
        return spec.get("joined", [spec])


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """config.json: all that a run's name hashes, and `provenance`, which it does not.

    Whatever can change a number of the run stands here.
    """

    version: int
    """`run_config.TRAIN_VERSION` of the run: raised when the same config gives other numbers."""

    corpus: str
    """The corpus, or several joined with +."""

    manifest: str
    """The digest of its manifest; of several corpora, theirs joined with +."""

    labels: LabelRecord
    """The label policy."""

    features: dict[str, FeatureRecord]
    """The inputs by modality, audio before text."""

    views: list[FeatureRecord]
    """The augmented copies that train too."""

    limit: int | None
    """`--limit`: how many utterances were used at most."""

    only: str | None = None
    """`--only`: scripted or improvised; None for all utterances."""

    target: str = "class"
    """What is learnt, see `targets.TARGETS`."""

    fusion: str
    """The fusion's full name, such as "lgf-add" or "audio:frame"."""

    code: str | None = None
    """The sha256 of the plugin's module that holds the fusion; None for a fusion of ser's own."""

    settings: dict[str, Any]
    """The fusion's settings, by name; later ones only where they are not the default."""

    training: dict[str, Any]
    """The training's settings, by name; later ones only where they are not the default."""

    loss: str
    """`--loss`: single or perspective."""

    protocol: str
    """How the utterances are cut, such as "session-out" or "folds:FILE" (without its folder)."""

    fold: str
    """The fold, such as "session 1"."""

    cut: str
    """The sha256 of the ids of train, dev and test."""

    select: str
    """`--select`: which epoch is kept."""

    seed: int
    """Of initial weights, dropout, shuffling and hiding."""

    precision: str
    """float32 or bf16."""

    dims: dict[str, int]
    """The dimension of each modality's rows."""

    members: list[str] | None = None
    """Of an ensemble: the cell and the seed of each member, "<16 hex digits>/<seed>"."""

    provenance: Provenance
    """Where it came from."""

    others: dict[str, Any] = {}
    """Keys that this ser does not know, as a later one may write them: part of the run's name."""

    @property
    def layer_sums(self) -> dict[str, list[tuple[int, int]]]:
        """By modality, (layers, dimension) of each learnt sum; none for a single feature."""
        return {modality: feature.sums or [] for modality, feature in self.features.items()}


class Scores(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The scores of one set of predictions; formulas are in `scores`.

    Those of classes are None for a target without classes, those of ratings for one without them.
    """

    wa: float | None = None
    """Weighted accuracy in [0, 1]: the share of utterances that are right."""

    ua: float | None = None
    """Unweighted accuracy in [0, 1]: the mean recall of the classes."""

    macro_f1: float | None = None
    """The mean F1 of the classes, in [0, 1]."""

    weighted_f1: float | None = None
    """The mean F1 of the classes, weighted by their sizes, in [0, 1]."""

    per_class: dict[str, float | None] | None = None
    """The recall of each class; None for one that does not occur."""

    confusion: list[list[int]] | None = None
    """`[K, K]`: rows are true classes, columns predicted ones."""

    n: int
    """How many utterances were predicted; in the file it stands behind the scores of classes, or,
    without classes, behind those of ratings."""

    kl: float | None = None
    """The mean KL divergence from the raters' votes, in nats; None unless the target is voted."""

    js: float | None = None
    """The mean JS divergence from the raters' votes, in nats; None unless the target is voted."""

    ccc: dict[str, float] | None = None
    """Lin's concordance correlation coefficient of each dimension."""

    rmse: dict[str, float] | None = None
    """The root mean squared error of each dimension, on the corpus's scale."""

    moments: list[list[float]] | None = None
    """`[D, 6]`: the sums that CCC and RMSE are made of, see `scores.moments`."""

    def score(self, metric: str) -> float | None:
        """A single number by its name: wa, ua, macro_f1, weighted_f1, kl or js."""
        value: float | None = getattr(self, metric)
        return value


class RaterScores(msgspec.Struct, frozen=True, kw_only=True):
    """The scores of the raters themselves: each vote against the label of the majority."""

    ua: float
    """Unweighted accuracy in [0, 1]."""

    wa: float
    """Weighted accuracy in [0, 1]."""

    macro_f1: float
    """The mean F1 of the classes, in [0, 1]."""

    n: int
    """How many votes count."""

    left_out: int
    """How many votes are for no class of the policy."""

    confusion: list[list[int]]
    """`[K, K]`: rows are labels, columns votes."""

    def score(self, metric: str) -> float:
        """The score of that name: ua, wa or macro_f1."""
        value: float = getattr(self, metric)
        return value


class UndecidedScores(msgspec.Struct, frozen=True, kw_only=True):
    """How well the votes are predicted of the test speakers' utterances without a majority."""

    n: int
    """How many utterances."""

    kl: float
    """The mean KL divergence from the raters' votes, in nats."""

    js: float
    """The mean JS divergence from the raters' votes, in nats."""

    multilabel_f1: float | None = None
    """See `scores.raters.multilabel_macro_f1`; None of a run of an earlier ser."""

    def score(self, metric: str) -> float:
        """The divergence of that name: kl or js."""
        value: float = getattr(self, metric)
        return value


class Calibration(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The temperature that is fitted on dev, and what it does to the test part."""

    temperature: float
    """T, by which logits are divided (Guo et al. 2017, §4.2)."""

    n_dev: int
    """How many utterances it is fitted on."""

    ece: float
    """The expected calibration error of the test part in [0, 1], before T."""

    ece_tempered: float
    """The same after T."""

    unfitted: str | None = None
    """Why T is 1 and not fitted: "dev has no error", or "the fit ended at a bound"."""


class Epoch(msgspec.Struct, frozen=True, kw_only=True):
    """One epoch, with the scores of the part that is evaluated (dev, or test with best-test).

    Its scores are None where nothing is evaluated, or the target has none such.
    """

    stage: str
    """The stage of the fusion's training; "… again" in the second training of `refit`."""

    epoch: int
    """Which one of the stage, from 1."""

    epochs: int
    """How many the stage has at most."""

    loss: float
    """The mean per utterance of the training part."""

    wa: float | None
    """Weighted accuracy."""

    ua: float | None
    """Unweighted accuracy."""

    seconds: float
    """How long it took; of runs that are trained at once, each its share."""

    kept: bool
    """Whether it is the best of its stage so far; the last such epoch is the one that is kept."""

    macro_f1: float | None
    """The mean F1 of the classes."""

    ccc: float | None
    """The mean CCC over valence, arousal and dominance."""

    eval_loss: float | None = None
    """The mean loss per utterance of the part that is evaluated, see `Target.evaluation_loss`."""

    tried: dict[str, float | str] | None = None
    """Of a model without a training loop, whose epochs are what was tried: the values of the
    settings, such as {"C": 0.01, "layer": 3}."""

    def score(self, metric: str) -> float | None:
        """The number of that name: loss, eval_loss, wa, ua, macro_f1 or ccc."""
        value: float | None = getattr(self, metric)
        return value


class SplitCorpus(CorpusRecord, frozen=True, kw_only=True):
    """One of several corpora, and how many of its utterances stand in each part."""

    train: int
    """Utterances in the training part."""

    dev: int
    """Utterances in the dev part."""

    test: int
    """Utterances in the test part."""


class RunFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a run folder, or of an exported run."""

    bytes: int
    """Its size."""

    sha256: str
    """Of its content, in hex."""


class MemberRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One member of an ensemble."""

    run: str
    """The name of its run folder."""

    path: str
    """Where that was: an absolute path."""

    weight: float | None = None
    """Its share in the mean; None where all have the same, or a regression weighs them."""

    predictions: str
    """The sha256 of its predictions.parquet, in hex."""


class EnsembleRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of what an ensemble was made, and how it was fitted on the dev part."""

    members: list[MemberRecord]
    """In the order of `RunConfig.members`."""

    strength: float | None = None
    """C of the regression of a stack, the inverse of its regularisation."""


class RunResult(Scores, frozen=True, kw_only=True, omit_defaults=True):
    """result.json: the scores of the test part, and how they came about.

    The scores at the top are those of the model as it is: `tests["both"]`.
    """

    corpus: str
    """The corpus, or several joined with +."""

    fusion: str
    """The fusion's full name."""

    loss: str
    """`--loss`."""

    protocol: str
    """How the utterances are cut."""

    select: str
    """`--select`."""

    fold: str
    """The fold that is tested."""

    seed: int
    """The seed."""

    labels: str
    """The name of the label policy."""

    classes: list[str]
    """The K classes; none for a target without them."""

    tests: dict[str, Scores]
    """By the way in which the model was tested, see `evaluate.predict_all_ways`."""

    raters: RaterScores | None
    """What the raters of the test part score themselves; None where there are no votes."""

    no_majority: UndecidedScores | None = None
    """Of the test speakers' utterances without a majority, if the target learns from them."""

    calibration: Calibration | None
    """None without a dev part or without classes."""

    speakers: dict[str, bool] | None
    """Whether each test speaker is heard in train or dev; None where one is not known."""

    speaker_independent: bool
    """Whether no test speaker is heard in train or dev."""

    repeated_texts: int | None
    """How many test utterances have a transcript that stands in train; None without transcripts."""

    repeated_audio: int | None = None
    """How many test utterances' audio stands in train or dev under another id."""

    alike_speakers: dict[str, str] = {}
    """By test speaker, a name in train or dev that differs by case or zeros alone."""

    synthetic: bool
    """Whether any of the speech is generated."""

    random_weights: list[str]
    """The features that were computed with random weights."""

    parts: dict[str, int]
    """How many utterances train, dev and test have."""

    dev: str
    """How the dev part was cut."""

    refit: bool
    """Whether the model was trained again, on train and dev."""

    left_out: dict[str, int | list[str]]
    """Why utterances stand in no part → how many, or their ids."""

    epoch: int
    """The epoch that was kept, of the last stage, from 1."""

    tied: int | None = None
    """How many epochs of that stage have its score, itself among them: of these the evaluated
    part's loss chose. None where no score selected."""

    seconds: float
    """How long the training took; of runs that are trained at once, each its share."""

    history: list[Epoch]
    """Every epoch."""

    layers: dict[str, float] | None = None
    """What each layer of a feature counts in its learnt sum, if there is one."""

    files: dict[str, RunFile]
    """The other files of the run, by name."""

    corpora: dict[str, SplitCorpus] | None = None
    """Each of several corpora, by name."""

    standardise_by: str | None = None
    """Of several corpora: whether they were z-scored together ("all") or each by itself."""

    ensemble: EnsembleRecord | None = None
    """Of an ensemble: its members."""

    others: dict[str, Any] = {}
    """Keys that this ser does not know, as a later one may write them."""


def from_json(kind: type[ConfigOrResult], values: Mapping[str, Any]) -> ConfigOrResult:
    """The record in a JSON object. Raises `msgspec.ValidationError` if it is another one."""
    names = {field.encode_name for field in msgspec.structs.fields(kind)} - {"others"}
    known = {key: value for key, value in values.items() if key in names}
    others = {key: value for key, value in values.items() if key not in names}
    return msgspec.convert({**known, "others": others}, kind)


def to_json(record: msgspec.Struct) -> dict[str, Any]:
    """The JSON object of a record, its keys in the order in which the file has them."""
    values: dict[str, Any] = msgspec.to_builtins(record)
    others = values.pop("others", {})

    if isinstance(record, RunResult):
        values = _n_behind_ratings(values)
        for way, scores in values["tests"].items():
            values["tests"][way] = _n_behind_ratings(scores)

    return {**values, **others}


def _n_behind_ratings(scores: dict[str, Any]) -> dict[str, Any]:
    """Scores whose `n` stands behind the scores of ratings where there are none of classes."""
    if "confusion" in scores or "moments" not in scores:
        return scores

    ordered: dict[str, Any] = {}
    for key, value in scores.items():
        if key != "n":
            ordered[key] = value
        if key == "moments":
            ordered["n"] = scores["n"]
    return ordered
