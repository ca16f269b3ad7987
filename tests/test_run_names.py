"""A run's name says what it does: another name is another model, and the same name the same one."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ser.cache.spec import Spec
from ser.cache.store import Store
from ser.errors import WrongUse
from ser.tests.store_samples import new_store
from ser.tests.test_train_settings import small, texts
from ser.tests.tiny_store import add_feature, make_manifest, make_rows
from ser.train.data.loading import load_dataset
from ser.train.data.memory import DataCache
from ser.train.experiment import prepare
from ser.train.fit import fit
from ser.train.fit_solved import fit_solved
from ser.train.listed_settings import ListedSetting, list_settings
from ser.train.models import FUSIONS
from ser.train.options import Experiment

CACHE = DataCache()

# One fusion of each kind of settings.
KINDS = {fusion.settings: name for name, fusion in FUSIONS.items()}
# And those that use what another one of their kind does not.
NAMES = sorted({*KINDS.values(), "lgf-add", "mit"})
# Of these each setting is tried in every run of the tests, of the others in `make test-slow`.
ALWAYS = ("concat:utterance", "linear:text", "xares")

# Another value of a setting, where it follows from its default too little, or allows too few.
OTHER = {
    "warmup": "0.9",
    "epochs": "3",
    "batch_size": "3",
    "C": "1e-3",
    "cut_seed": "1",
    "dev": "next",
    "effective_beta": "0.9",
    "gamma": "0.3",
    "heads": "4",
    "layer": "1",
    "lr_decay": "0.5",
    "rmm_end": "0.1",
    "rmm_start": "0.2",
    "vad_scale": "1..5",
}
# What they change depends on the scores of the epochs: those are tried by themselves.
BY_SCORES = ("patience", "select_score")
LAST = {"select": "last"}
SMALL_CONCAT = {"hidden": 4, "epochs": 2}


def bytes_and_name(store: Path, features: str, fusion: str, *settings: str, **options: object):
    """The name of a run's folder, and a hash of its weights and of what it predicts."""
    experiment = Experiment(
        features, fusion, store=store, set=settings, folds=1, limit=24, **options
    )
    [job] = prepare(experiment, CACHE)
    train = fit_solved if job.config.fusion.solved else fit
    fitted = train(job.data, job.fold, job.config)

    digest = hashlib.sha256()
    for tensor in fitted.model.state_dict().values():
        digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    for scaling in fitted.scaling.values():
        digest.update(scaling.mean.numpy().tobytes())
    predicted = fitted.predict(job.data, job.fold.test, job.config)
    digest.update(predicted["logits"].tobytes())
    return job.name, digest.hexdigest()


def other_value(setting: ListedSetting, usual: object) -> str:
    """A value that is not the `usual` one."""
    if setting.name in OTHER:
        return OTHER[setting.name]
    if setting.kind == "bool":
        return str(not usual).lower()
    if "|" in setting.kind:
        choices = [choice for choice in setting.kind.split("|") if choice != str(usual)]
        return choices[-1]
    if setting.kind == "int":
        return str(2 * int(usual) or 2)
    return str(float(usual) / 2 or 0.25)


def always_or_slow(name: str) -> object:
    """The name of a fusion as a parameter, which is slow but for a few."""
    marks = [] if name in ALWAYS else [pytest.mark.slow]
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", map(always_or_slow, NAMES))
def test_a_setting_changes_the_name_of_a_run_and_its_bytes_or_neither(
    name: str, store: Path
) -> None:
    fusion = FUSIONS[name]
    vectors = {"audio": "is13", "text": "bert"}
    rows = {"audio": "hubert", "text": "bert"}
    of_level = vectors if fusion.level == "vector" else rows
    features = "+".join(of_level[modality] for modality in fusion.inputs)

    options = LAST
    usual = dict(small(name))
    if fusion.solved:
        # So strong a penalty that every utterance counts.
        usual.update(C="0.01")
        options = {}
    else:
        # Two where something changes from one update, or epoch, to the next.
        of_two = {"rmm_end", "lr_decay"} & fusion.settings.__dataclass_fields__.keys()
        if fusion.unit == "dialogue":
            of_two.add("dialogues")
        epochs = 2 if of_two else 1
        # Of dialogues there are few: each is a batch, so that an epoch has several updates.
        batch_size = 1 if fusion.unit == "dialogue" else 8
        usual.update(epochs=epochs, batch_size=batch_size, lr=0.01)
    plain_name, plain_bytes = bytes_and_name(store, features, name, *texts(usual), **options)

    wrong = []
    for setting in list_settings(fusion):
        if setting.kind == "fixed" or setting.name in BY_SCORES:
            continue
        if fusion.solved and setting.name in ("cut_seed", "dev"):
            # Another dev part may choose the same, and is learnt from in the end.
            continue
        value = other_value(setting, usual.get(setting.name, setting.default))
        changed = texts({**usual, setting.name: value})
        try:
            new_name, new_bytes = bytes_and_name(store, features, name, *changed, **options)
        except WrongUse:
            continue
        same = (new_name == plain_name, new_bytes == plain_bytes)
        if same not in [(True, True), (False, False)]:
            wrong.append(f"{setting.name}={value}: {same}")
    assert not wrong


@pytest.mark.parametrize("setting", ["patience=1", "select_score=macro_f1"])
def test_what_chooses_the_epoch_is_another_run_where_other_epochs_are_kept(
    store: Path, setting: str
) -> None:
    """On labels in random order, whose scores rise and fall; on some cuts the same is kept."""
    changes = []
    for cut in range(3):
        usual = ["lr=0.03", "batch_size=4", "epochs=12", "dev=0.2", f"cut_seed={cut}"]
        usual.append("shuffle_labels=true")
        plain_name, plain_bytes = bytes_and_name(store, "is13", "xares", *usual)
        name, content = bytes_and_name(store, "is13", "xares", *usual, setting)
        assert name != plain_name
        changes.append(content != plain_bytes)
    assert any(changes)


def runs_of(store: Path, features: str, fusion: str = "linear") -> tuple[str, str]:
    """The name and the bytes of a run on these features."""
    return bytes_and_name(store, features, fusion, "C=1e-3")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("hubert", "hubert:pool=mean", id="means of frames"),
        pytest.param("hubert", "hubert:pool=meanstd", id="means and deviations"),
        pytest.param("hubert", "hubert:hop=0.06", id="averaged frames"),
        pytest.param("hubert", "hubert:layer=2", id="the last layer by its number"),
        pytest.param("hubert", "hubert:layer=1", id="another layer"),
        pytest.param("hubert:pool=mean", "hubert:layer=2,pool=mean", id="stored means"),
    ],
)
def test_variants_of_a_feature_are_other_bytes_or_the_same_run(
    layered: Store, first: str, second: str
) -> None:
    names = []
    contents = []
    for features in (first, second):
        name, content = runs_of(layered.path, features)
        names.append(name)
        contents.append(content)
    assert (names[0] == names[1]) == (contents[0] == contents[1])


LAYERS = {"checkpoint": {"digest": "a", "random": True}, "provenance": {"layers": 2}}


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Frames of an encoder of two layers, the last without its number, and its means with it."""
    manifest = make_manifest()
    store = new_store(tmp_path_factory.mktemp("layered") / "s", manifest)
    frames = make_rows(manifest, "hubert")
    for layer, variant in ((1, "layer=1"), (2, "")):
        spec = Spec(
            "hubert",
            "audio",
            "frame",
            12,
            "float16",
            "made-up",
            1,
            variant,
            0.02,
            {"layer": layer},
            **LAYERS,
        )
        add_feature(store, manifest, spec, [rows + np.float16(layer) for rows in frames])

    means = [rows.mean(0, dtype=np.float32) for rows in frames]
    spec = Spec(
        "hubert",
        "audio",
        "utterance",
        12,
        "float32",
        "made-up",
        1,
        "layer=2,pool=mean",
        None,
        {"layer": 2, "pool": "mean"},
        **LAYERS,
    )
    add_feature(store, manifest, spec, means)
    yield store


def test_a_last_layer_is_found_by_both_its_names(layered: Store) -> None:
    by_number = layered.feature("hubert:layer=2,pool=mean")
    assert layered.feature("hubert:pool=mean").path == by_number.path
    assert layered.feature("hubert:layer=2").path == layered.feature("hubert").path

    data, _ = load_dataset(Experiment("hubert:pool=mean", "linear", layered.path))
    assert data.record.features["audio"].feature == "hubert:layer=2,pool=mean"
    sums, _ = load_dataset(Experiment("hubert:layers=1-2", "superb", layered.path))
    assert [part.feature for part in sums.record.features["audio"].parts] == [
        "hubert:layer=1",
        "hubert",
    ]


def test_what_is_pooled_is_a_vector(layered: Store, store: Path) -> None:
    """A model of frames has none to take; that of one modality is the one for vectors."""
    with pytest.raises(WrongUse, match="the audio feature has one vector per utterance"):
        load_dataset(Experiment("hubert:pool=meanstd+bert", "mit", store))
    _, fusion = load_dataset(Experiment("hubert:pool=mean", "audio", store))
    assert fusion.name == "audio:utterance"
    with pytest.raises(WrongUse, match="is13:pool=meanstd: has one vector per utterance"):
        load_dataset(Experiment("is13:pool=meanstd", "audio", store))


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        pytest.param(["reduction=mean"], {}, id="what auto stands for"),
        pytest.param(["dev=0.10"], {}, id="a share written otherwise"),
        pytest.param(["dev=none"], LAST, id="no dev part where none is needed"),
        pytest.param(["select_score=wa"], LAST, id="a score that nothing selects by"),
        pytest.param(["cut_seed=3"], LAST, id="the seed of a cut that is not drawn"),
        pytest.param(["patience=1"], {}, id="a patience that no stage is long enough for"),
    ],
)
def test_a_setting_without_effect_leaves_a_run_its_name(
    store: Path, settings: list[str], options: dict[str, str]
) -> None:
    usual = texts({**SMALL_CONCAT, "lr": 0.01})
    plain = bytes_and_name(store, "is13+bert", "concat:utterance", *usual, **options)
    other = bytes_and_name(store, "is13+bert", "concat:utterance", *usual, *settings, **options)
    assert other == plain
