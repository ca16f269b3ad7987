"""What a run learns beside classes: valence, arousal and dominance, alone and with them, and the
raters' votes.
"""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from scipy.stats import t as student
from sklearn.metrics import f1_score

from ser.commands.summary import summary_text
from ser.corpus.manifest import Manifest
from ser.errors import Diverged, WrongUse
from ser.tests.command_line import ser
from ser.tests.small_models import DIFFERENT, one_of_each_kind
from ser.tests.tiny_store import add_feature, make_manifest, make_rows, new_store
from ser.train.config import TrainConfig
from ser.train.data.labels import get_policy
from ser.train.data.memory import DataCache
from ser.train.data.utterances import Utterances
from ser.train.data.votes import rater_votes
from ser.train.experiment import Experiment, Job, prepare, run_experiment
from ser.train.fit import fit, shuffled
from ser.train.losses import concordance_loss
from ser.train.models import FUSIONS
from ser.train.records import to_json
from ser.train.report.as_json import scores_as_json
from ser.train.report.cell_scores import CellScores
from ser.train.report.conditions import conditions, left_out
from ser.train.report.grouping import group_runs
from ser.train.report.page import make_page
from ser.train.report.paper import quoted_for
from ser.train.report.searches import chosen_rows
from ser.train.report.sections.calibration import votes_table
from ser.train.report.votes import divergences_from_votes, scores_of_raters
from ser.train.run_folder import CONFIG, MODEL, RESULT, Run, find_runs, run_name
from ser.train.scores.raters import rater_scores
from ser.train.scores.ratings import concordance, dimension_scores, moments
from ser.train.seal import sealed_json
from ser.train.settings import TrainingSettings
from ser.train.targets import TARGETS

DIMENSIONS = ("valence", "arousal", "dominance")
TINY = (
    "d_model=8",
    "heads=2",
    "queries=3",
    "feed_forward=2",
    "gru_hidden=4",
    "lstm_hidden=4",
    "dense=4",
    "hidden=5",
)
TINY += ("frames=40", "channels=2", "turns=4", "encoder_depth=1", "decoder_depth=1", "lr=0.01")
TINY += ("cross_depth=1", "last_depth=1")
CACHE = DataCache()


def asked(store: Path, fusion: str, target: str, **options: Any) -> Experiment:
    takes = {
        "sequence": {"audio": "hubert", "text": "mpnet"},
        "vector": {"audio": "is13", "text": "bert"},
    }
    audio = {"audio": "logmel"} if fusion.startswith("cnn") else {}
    features = [
        (takes[FUSIONS[fusion].level] | audio)[modality] for modality in FUSIONS[fusion].inputs
    ]
    name = fusion.partition(":")[0] if fusion.startswith(("audio", "text")) else fusion
    base = Experiment(
        "+".join(features), name, store, target=target, epochs=2, folds=1, also_set=TINY
    )

    return replace(base, **options)


def slow_ccc(truth: Any, predicted: Any) -> float:
    """Lin 1989."""
    (vt, both), (_, vp) = np.cov(truth, predicted, bias=True)
    return 2 * both / (vt + vp + (np.mean(truth) - np.mean(predicted)) ** 2)


def test_ccc_and_rmse_are_lins_and_the_loss_is_one_minus_ccc() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(2, 11, (40, 3)) / 2
    predicted = rng.normal(3, 1, (40, 3))
    wanted = [slow_ccc(truth[:, d], predicted[:, d]) for d in range(3)]
    found = dimension_scores(truth, predicted)

    assert [found["ccc"][name] for name in DIMENSIONS] == pytest.approx(wanted, abs=1e-12)

    errors = np.sqrt(((truth - predicted) ** 2).mean(0))
    assert [found["rmse"][name] for name in DIMENSIONS] == pytest.approx(errors, abs=1e-12)

    loss = concordance_loss(torch.from_numpy(predicted), torch.from_numpy(truth)).item()
    assert loss == pytest.approx(1 - np.mean(wanted), abs=1e-7)

    # Of one utterance, or without any variance, it is 0 and teaches nothing.
    for same in (
        truth[:1],
        np.ones((5, 3)),
    ):
        outputs = torch.zeros(same.shape, dtype=torch.float64, requires_grad=True)
        concordance_loss(outputs, torch.from_numpy(same)).backward()
        assert outputs.grad is not None
        assert not outputs.grad.any()
        assert set(dimension_scores(same, same)["ccc"].values()) == {0.0}

    assert np.isnan(concordance(moments(truth[:0], predicted[:0]).sum(0))["ccc"]).all()


@pytest.mark.parametrize("unit", ["mean", "sum"])
@pytest.mark.parametrize("soft", [False, True])
def test_the_losses_of_classes_and_ratings_add_up(unit: str, soft: bool) -> None:
    training = TrainingSettings(vad_loss="mse", vad_weight=0.5, vad_scale="1..5", reduction=unit)
    config = TrainConfig(FUSIONS["mit"], None, training, target="class+vad")
    torch.manual_seed(0)
    outputs = torch.randn(6, 7).double()
    ratings = torch.rand(6, 3).double()
    shares = torch.rand(6, 4).double() if soft else torch.eye(4).double()[[0, 1, 2, 3, 0, 1]]
    truth = torch.cat(
        [shares if soft else torch.tensor([[0.0], [1], [2], [3], [0], [1]]), ratings], 1
    )
    of_classes = -(shares * outputs[:, :4].log_softmax(1)).sum()
    wanted = of_classes / 6 + 0.5 * ((outputs[:, 4:] - ratings) ** 2).mean()
    found = TARGETS["class+vad"].loss(outputs, truth, config)
    torch.testing.assert_close(found, wanted * (6 if unit == "sum" else 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", one_of_each_kind(DIFFERENT))
def test_every_fusion_learns_every_target(store: Path, name: str) -> None:
    losses = set()
    for target, of in TARGETS.items():
        job = prepare(asked(store, name, target, limit=40), CACHE)[0]
        classes = len(job.data.utterances.classes)
        heads = []
        torch.manual_seed(0)
        start = of.build(job.config.fusion, job.config.settings, job.data.dims, classes)
        fitted = fit(job.data, job.fold, replace(job.config, select="last"))

        for (weight, before), after in zip(
            start.named_parameters(), fitted.model.parameters(), strict=True
        ):
            if before.ndim == 2 and len(before) == of.width(classes):
                heads.append(weight)
                assert not torch.equal(before, after) or name.startswith(
                    ("ef", "mf", "lf", "lgf")
                ), weight

        assert heads
        assert np.isfinite([line.loss for line in fitted.history]).all()

        losses.add(fitted.history[-1].loss)

    assert len(losses) == len(TARGETS)


@pytest.fixture(scope="module")
def runs(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of each target: all folds with ratings, and two of the others."""
    out = tmp_path_factory.mktemp("targets")
    for target in TARGETS:
        folds = "all" if "vad" in target else 2
        more: dict[str, Any] = {
            "folds": folds,
            "seeds": 2,
            "out": out,
            "epochs": 8,
            "set": ("batch_size=8",),
        }
        if target == "class+vad":
            # So that its runs have not as many epochs: the CCC of dev falls now and then.
            more["set"] += ("lr=0.1", "patience=1", "select_score=ccc")
        run_experiment(asked(store, "concat:utterance", target, **more), cache=CACHE)
    return out


def test_records_give_the_bytes_that_they_were_read_from(runs: Path) -> None:
    """Of config.json and result.json of every target, and the config's name."""
    for run in find_runs(runs):
        for name, record in ((CONFIG, run.config), (RESULT, run.result)):
            encoded = b"".join(sealed_json(to_json(record), run.name))
            assert encoded == (run.path / name).read_bytes()

        assert run_name(run.config) == run.name


def cell_of(runs: Path, target: str) -> Any:
    return next(cell for cell in group_runs(find_runs(runs))[0] if cell.config.target == target)


def test_scores_are_pooled_over_folds_with_intervals_over_speakers(runs: Path) -> None:
    cell = cell_of(runs, "vad")
    every = pandas.concat(
        [run.predictions().to_pandas().assign(seed=run.config.seed) for run in cell.runs]
    )

    def pooled(part: pandas.DataFrame, name: str) -> float:
        ccc = [
            slow_ccc([*one[f"truth {name}"]], [*one[f"predicted {name}"]])
            for _, one in part.groupby("seed")
        ]
        return float(np.mean(ccc))

    for name in DIMENSIONS:
        whole, low, high = cell.scores.with_interval(f"ccc {name}")
        speakers = sorted(every.speaker.unique())
        without = np.array([pooled(every[every.speaker != one], name) for one in speakers])
        half = student.ppf(0.975, len(speakers) - 1) * np.sqrt((len(speakers) - 1) * without.var())

        assert whole == pytest.approx(pooled(every, name), abs=1e-9)
        assert (low, high) == pytest.approx((max(-1, whole - half), min(1, whole + half)), abs=1e-9)

    assert every["truth valence"].between(1, 5).all()

    run = cell.runs[0]
    # The mean CCC on dev selects.
    kept = max(run.result.history, key=lambda line: line.ccc)
    assert run.result.epoch == kept.epoch
    assert kept.ua is None
    assert cell.scores.score("ccc").pooled > 0.6, "it is learnt"
    assert "probabilities" not in every
    assert run.result.classes == []


def test_what_has_no_rating_or_no_class_is_left_out_and_counted(store: Path, runs: Path) -> None:
    alone = cell_of(runs, "vad")
    both = cell_of(runs, "class+vad")
    absent = "no rating of valence, arousal, dominance"
    assert left_out(alone.results) == {absent: 10 // 2}
    assert alone.scores.n == 2 * (120 - 5)

    without = left_out(both.results)
    assert without[absent] < 5
    assert "label xxx is not in 4class" in without
    assert both.config.training["select_score"] == "ccc"
    assert both.scores.score("ua").pooled > 0

    asked_for = [
        asked(store, "audio:utterance", "vad", labels=policy) for policy in ("4class", "6class")
    ]
    assert len({prepare(one, CACHE)[0].name for one in asked_for}) == 1, "labels have no part in it"
    assert "target" not in to_json(cell_of(runs, "class").config)


def test_classes_select_where_ratings_are_learnt_too(store: Path, tmp_path: Path) -> None:
    experiment = asked(store, "concat:utterance", "class+vad", out=tmp_path)
    [run] = run_experiment(experiment, cache=CACHE)
    assert run.config.training["select_score"] == "ua"


def test_reports_show_ratings_and_never_beside_a_paper(
    runs: Path, tmp_path: Path, undrawn: None
) -> None:
    files = [f"--{form}={tmp_path / form}" for form in ("html", "latex-all", "markdown", "csv")]
    shown = ser("report", runs, "--paired", *files)
    assert shown.exit_code == 0 and "CCC valence" in shown.output, shown.output

    page = (tmp_path / "html").read_text()
    assert all(
        "Dashed: predicted as rated" in page and f"scatter-{name}" in page for name in DIMENSIONS
    )
    assert "calibration-ratings" in page
    assert "Mean CCC of the evaluated part" in page

    for form in ("latex-all", "markdown", "csv"):
        assert "RMSE dominance" in (tmp_path / form).read_text()

    cells, _ = group_runs(find_runs(runs))
    labels = {" · ".join(cell.label.split(" · ")[:2]) for cell in cells}
    assert labels == {f"concat:utterance · {target}" for target in TARGETS}
    assert len({len(run.result.history) for run in cell_of(runs, "class+vad").runs}) > 1

    with warnings.catch_warnings(action="error"):
        unrated_first = make_page(sorted(cells, key=lambda cell: cell.scores.rated), [])

    [training] = [section for section in unrated_first.sections if section.anchor == "training"]
    plots = training.elements[0].elements
    [curves] = [plot for plot in plots if plot.table.name == "learning-ccc"]
    rated = {cell.label for cell in cells if cell.scores.dimensions}

    assert {row["cell"] for row in curves.table.rows} == rated
    assert curves.note.endswith("Dev, or test with best-test.")
    # No percent.
    assert all(len(text.partition(".")[2]) == 3 for *_, text in curves.table.texts)

    [row, *_] = chosen_rows("searched", 1, (), cell_of(runs, "vad").runs)
    assert row["dev mean CCC"] == max(
        line.ccc for line in cell_of(runs, "vad").runs[0].result.history
    )

    alone = [run.path for run in cell_of(runs, "vad").runs]
    one = ser("report", *alone, "--html", tmp_path / "one")
    assert one.exit_code == 0
    assert "CCC of arousal" in (tmp_path / "one").read_text()
    assert "UA %" not in one.output

    refused = ser("report", *alone, cell_of(runs, "class").runs[0].path, "--paired")
    assert refused.exit_code == 2
    assert "fewer than two cells of classes" in refused.output
    assert quoted_for(cell_of(runs, "vad")) == quoted_for(cell_of(runs, "class+vad")) == []


def test_sweeps_show_ratings(store: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    base = '[experiment]\nfeatures = "is13+bert"\nfusion = "lgf-add"\n'
    cells = '[[cell]]\nname = "a"\n[[cell]]\nname = "b"\ntarget = "vad"\npaper = {ua = 60.0}\n'
    recipe.write_text(f'tested = "a"\n{base}{cells}')
    asked_for = ["sweep", recipe, "--store", store, "--out", tmp_path, "--workers", "1"]
    asked_for += ["--epochs", "1", "--folds", "1", "--set", "d_model=8", "--set", "gru_hidden=4"]
    shown = ser(*asked_for)

    assert shown.exit_code == 0 and "CCC valence" in shown.output, shown.output

    [_, rated] = json.loads(ser(*asked_for, "--json").stdout)["rows"]
    assert rated["scores"]["rmse valence"]["pooled"] > 0
    assert "ua" not in rated["scores"]

    recipe.write_text(base + 'target = "vad"\n[[cell]]\nname = "a"\nset = { lr = [1e-3, 1e-2] }\n')
    shown = ser(*asked_for)
    tables, *_ = shown.stdout.partition("\nours: ")
    assert "dev mean CCC " in tables and "RMSE valence" in tables and "%" not in tables, (
        "none is a share"
    )

    recipe.write_text(
        base + '[[cell]]\nname = "a"\nset = { select_score = "macro_f1", refit = [true, false] }\n'
    )
    chosen = ser(*asked_for).stdout.partition("chosen on dev")[2]
    assert "dev macro-F1 %" in chosen and " True " in chosen, "the first of equals"


@pytest.mark.parametrize(
    ("target", "setting", "says"),
    [
        ("vad", "vad_scale=5..1", "must be auto, or a range such as 1..5"),
        ("vad", "vad_scale=-inf..5", "must be auto, or a range such as 1..5"),
        ("vad", "vad_scale=-1e308..1e308", "must be auto, or a range such as 1..5"),
        ("vad", "vad_scale=0..1", "has ratings from 1.5 to 4.5; give the scale"),
        ("vad", "soft_labels=true", "no use for it"),
        ("vad", "select_score=wa", "--target vad selects by ccc"),
        ("vad", "batch_size=1", "vad_loss=ccc compares the utterances of a batch"),
        ("vad", "released=true", "probabilities of classes alone"),
        ("class", "vad_loss=mse", "--target class has no use for it"),
        ("class", "select_score=ccc", "--target class selects by ua or wa"),
        ("class", "effective_beta=0.9", "it is that of class_weights=effective"),
    ],
)
def test_what_a_target_cannot_use_is_one_sentence(
    store: Path, target: str, setting: str, says: str
) -> None:
    with pytest.raises(WrongUse, match=says):
        prepare(
            asked(store, "mit" if "batch" in setting else "lgf-add", target, set=(setting,)), CACHE
        )


def test_the_scale_is_known_by_the_ids_or_said_and_one_for_all_corpora(tmp_path: Path) -> None:
    forms = {"tiny": "{}", "improv": "MSP-IMPROV-S01A-{}", "podcast": "MSP-PODCAST_0001_0001 {}"}
    store = new_store(tmp_path / "s", make_manifest(4))
    others = {"unrated": dict.fromkeys(DIMENSIONS), "wild": dict.fromkeys(DIMENSIONS, 9.0)}

    for corpus, form in {
        **forms,
        "mine": "mine{}",
        "unrated": "x{}",
        "wild": forms["improv"],
    }.items():
        rows = [
            {**row, "id": form.format(row["id"]), "audio_sha256": f"{corpus} {row['id']}"}
            | others.get(corpus, {})
            for row in make_manifest(4).table.to_pylist()
        ]
        manifest = Manifest.from_rows(corpus, rows, synthetic=True)
        store.put_manifest(manifest)
        add_feature(store, manifest, "is13", make_rows(manifest, "is13"))

    def job(corpora: str, *settings: str) -> Job:
        return prepare(asked(store.path, "audio:utterance", "vad", corpus=corpora, set=settings))[0]

    def scale(corpora: str, *settings: str) -> str:
        return job(corpora, *settings).config.training.vad_scale

    both = job("tiny+podcast").data.utterances
    for corpus, high in (("tiny", 5), ("podcast", 7)):
        own = job(corpus).data.utterances.dimensions
        found = both.dimensions[np.array(both.corpora) == corpus]
        assert np.allclose(found, 2 * (own - 1) / (high - 1) - 1), "each by its own scale"

    assert scale("tiny+podcast") == "-1..1"
    assert scale("tiny+improv") == scale("improv") == scale("mine", "vad_scale=1..5") == "1..5"
    assert scale("podcast") == "1..7"

    for corpora, settings, says in (
        ("mine", (), r"scale on which corpus mine rates.*--set vad_scale=1\.\.5"),
        (
            "unrated",
            (),
            "no utterance of corpus unrated has ratings of valence, arousal, dominance",
        ),
        (
            "tiny+podcast",
            ("vad_scale=1..7",),
            r"\(podcast 1\.\.7, tiny 1\.\.5\).*normalised by its own; leave",
        ),
        ("improv+tiny", ("vad_scale=2..5",), "corpus improv has ratings from 1.5 to 4.5"),
        # Before they are normalised.
        (
            "podcast+wild",
            (),
            r"vad_scale=1\.\.5: corpus wild has ratings from 9 to 9",
        ),
        ("tiny+unrated", (), "no utterance of unrated is left by --target, --only or --limit"),
    ):
        with pytest.raises(WrongUse, match=says):
            scale(corpora, *settings)


def test_ratings_that_are_no_numbers_after_the_only_epoch_stop_the_run(
    store: Path, tmp_path: Path
) -> None:
    fast = (*(one for one in TINY if not one.startswith("lr=")), "lr=1e30", "batch_size=200")
    with pytest.raises(Diverged, match="the predictions became nan; try a lower lr"):
        run_experiment(
            asked(store, "audio:utterance", "vad", out=tmp_path, epochs=1, also_set=fast),
            cache=CACHE,
        )


def test_shuffled_labels_shuffle_ratings_too(store: Path) -> None:
    experiment = asked(store, "audio:utterance", "class+vad", set=("shuffle_labels=true",))
    [job, *_] = prepare(experiment, CACHE)
    mixed = shuffled(job.data, job.fold, job.config).utterances
    plain = job.data.utterances

    def labels_with_ratings(utterances: Utterances) -> set[tuple]:
        rows = zip(utterances.labels, utterances.dimensions.tolist(), strict=True)
        return {(label, *ratings) for label, ratings in rows}

    assert labels_with_ratings(mixed) == labels_with_ratings(plain)
    assert not np.array_equal(mixed.dimensions, plain.dimensions)
    assert np.array_equal(mixed.dimensions[job.fold.test], plain.dimensions[job.fold.test])


# The raters' votes: what they would score themselves, and models that learn their distribution
# ------------------------


def lgf(store: Path, target: str, out: Path, **more: Any) -> Experiment:
    return asked(
        store, "lgf-add", target, **{"out": out, "epochs": 3, "set": ("batch_size=2",), **more}
    )


def test_each_vote_is_scored_against_the_majority_of_the_others() -> None:
    votes = [
        # Two votes are against a tie; the third is wrong.
        [["Anger"], ["Anger"], ["Sadness"]],
        # Three right, one wrong.
        [["Neutral"], ["Neutral"], ["Neutral"], ["Anger"]],
        # The second names two alike; the others are right.
        [
            ["Happiness"],
            ["Happiness", "Neutral"],
            ["Happiness"],
        ],
        # The first is for no class.
        [["Other"], ["Neutral"], ["Neutral"]],
        [["Anger"]],
        None,
    ]
    matrix, left_out = rater_votes(get_policy("4class"), votes)
    # By row the majority of the others, by column the vote: anger, happiness, neutral, sadness.
    assert matrix.tolist() == [[0, 0, 0, 1], [0, 2, 0, 0], [1, 0, 3 + 2, 0], [0] * 4]
    assert left_out == 2 + 1 + 1 + 1

    told = rater_scores(matrix, left_out)
    assert told is not None
    assert told["n"] == 9
    assert told["wa"] == pytest.approx(7 / 9)
    assert told["ua"] == pytest.approx((0 + 1 + 5 / 6) / 3)
    assert rater_scores(np.zeros((4, 4), int), 3) is None


def weights(run: Run) -> dict[str, bytes]:
    tensors, _ = run.tensors(MODEL)
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_a_run_learns_the_votes_and_is_scored_by_them(store: Path, tmp_path: Path) -> None:
    [run] = run_experiment(lgf(store, "distribution", tmp_path))
    [soft] = run_experiment(lgf(store, "class", tmp_path, set=("batch_size=2", "soft_labels=true")))
    assert weights(run) == weights(soft), "one mechanism"

    votes = run.predictions()["votes"].to_pylist()
    probabilities = run.predictions()["probabilities"].to_pylist()
    pairs = list(zip(votes, probabilities, strict=True))
    wanted = {
        "kl": [entropy(*pair) for pair in pairs],
        "js": [jensenshannon(*pair) ** 2 for pair in pairs],
    }

    for name, each in wanted.items():
        assert run.result.score(name) == pytest.approx(np.mean(each))
        assert run.result.tests["head text"].score(name) > 0

    assert run.result.ua == soft.result.ua
    assert soft.result.kl is None

    runs = run_experiment(lgf(store, "distribution", tmp_path, folds="all"))
    cell = CellScores(runs)
    whole, low, high = divergences_from_votes(cell)["js"]
    assert low is not None
    assert high is not None
    assert 0 <= low < whole < high
    assert whole == pytest.approx(
        np.average([r.result.js for r in runs], weights=[r.result.n for r in runs])
    )

    table = cell.predictions.table
    votes, predicted = (np.stack(table[name]) > 0.250001 for name in ("votes", "probabilities"))
    named = votes.any(0)
    f1 = f1_score(votes[:, named], predicted[:, named], average="macro")
    assert scores_as_json(cell)["multilabel_f1"] == pytest.approx(100 * f1)
    assert f"multi-label macro-F1 {100 * f1:.2f}" in summary_text(cell)

    raters = scores_of_raters(cell)
    assert raters is not None
    assert scores_as_json(cell)["raters"] == raters
    assert raters["n"] > 0

    tested = [r.result.raters.n for r in runs]
    assert raters["n"] == sum(tested) > tested[0] > 0, "the raters of what is tested"
    assert "from the raters' votes, in nats: KL" in summary_text(cell)
    assert "the raters' own: UA" in summary_text(cell)
    assert "of the corpus) · target distribution ·" in conditions(cell.runs)
    assert {"KL in nats", "multi-label F1 %", "raters’ UA %", "votes left out"} <= votes_table(
        group_runs(runs)[0]
    ).rows[0].keys()


def test_what_has_no_majority_trains_and_is_scored_apart(store: Path, tmp_path: Path) -> None:
    [plain, *_] = prepare(lgf(store, "distribution", tmp_path))
    [more, *_] = prepare(lgf(store, "distribution+undecided", tmp_path))
    utterances = more.data.utterances
    undecided = np.flatnonzero(utterances.undecided)
    assert len(utterances) - len(plain.data.utterances) == len(undecided) > 0
    assert np.allclose(utterances.votes[undecided], [0.5, 0, 0.5, 0]), "a rater who names two"
    assert set(undecided) & set(more.fold.train)
    assert not set(undecided) & {
        *more.fold.dev,
        *more.fold.test,
    }
    assert len(more.fold.test) == len(plain.fold.test)

    [run] = run_experiment(lgf(store, "distribution+undecided", tmp_path))
    apart = run.result.no_majority
    assert apart.n == len(more.fold.left_out["no majority among the raters (test)"])
    assert apart.js > 0
    assert 0 <= apart.multilabel_f1 <= 1
    assert votes_table(group_runs([run])[0]).rows[0]["without a majority"] == apart.n
    assert "their multi-label F1 %" in votes_table(group_runs([run])[0]).rows[0]
    assert "no majority among the raters (test)" in Run(run.path).result.left_out


def test_without_votes_there_is_no_distribution(tmp_path: Path) -> None:
    rows = [{**row, "votes": None} for row in make_manifest(8).table.to_pylist()]
    manifest = Manifest.from_rows("mute", rows, synthetic=True)
    store = new_store(tmp_path / "s", manifest)
    add_feature(store, manifest, "is13", make_rows(manifest, "is13"))

    with pytest.raises(WrongUse, match="corpus mute does not hold its raters' votes"):
        prepare(asked(store.path, "audio:utterance", "distribution"))

    words = [
        "--features",
        "is13",
        "--fusion",
        "audio",
        "--epochs",
        "1",
        "--folds",
        "1",
        "--set",
        "d_model=8",
        "--json",
    ]
    done = ser("train", "--store", store.path, "--out", tmp_path / "r", *words)
    assert done.exit_code == 0
    assert "raters" not in json.loads(done.stdout)["scores"]
