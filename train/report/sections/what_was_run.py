"""What was run: features, corpora, protocols, settings, versions, and the command for it."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ser.cache.spec import Spec
from ser.errors import MissingRows, SerError
from ser.train.data.protocols import find_protocol
from ser.train.listed_settings import ListedSetting, list_settings
from ser.train.models import FUSIONS
from ser.train.options import SELECTIONS, Experiment, setting_texts
from ser.train.records import ENSEMBLE, FeatureRecord, RunResult
from ser.train.run_folder import Run
from ser.train.scores.measures import SHOWN
from ser.train.solved_candidates import refits_by_default

from ..cell import Cell, Cells, grouped
from ..conditions import heard_in_training, left_out, parts
from ..elements import Caution, Element, Section, TableElement, table_elements
from ..formats import COUNT, FINE, NUMBER, PERCENT, TEXT
from ..table import Column, Row, Table, columns_of, joined

NAMED = 5  # runs that are not finished; of more, it says how many


def what_was_run(cells: Cells, unfinished: Sequence[Run]) -> Section:
    """The section, for all cells of the report."""
    protocols = protocols_table(cells)
    elements: list[Element] = [
        *table_elements(features_table(cells), *corpora_tables(cells)),
        TableElement(protocols, turned=len(protocols.rows) == 1),
        *table_elements(left_out_table(cells)),
    ]
    if unfinished:
        elements.append(Caution(_about_unfinished(unfinished)))
    elements += table_elements(
        commands_table(cells), settings_table(cells), versions_table(cells), runs_table(cells)
    )
    return Section("what-was-run", "What was run", elements)


def _about_unfinished(runs: Sequence[Run]) -> str:
    names = ", ".join(run.path.name for run in runs[:NAMED])
    more = " …" if len(runs) > NAMED else ""
    noun = "run" if len(runs) == 1 else "runs"
    return f"Not finished, and counted nowhere here: {len(runs):,} {noun}: {names}{more}"


def features_table(cells: Cells) -> Table:
    """Each feature of any cell, and how it was made, as far as its store is there."""
    rows: dict[str, Row] = {}
    for cell in cells:
        for modality, feature in _features(cell):
            key = f"{feature.read_name}@{feature.fingerprint}"
            if key not in rows:
                rows[key] = _feature_row(cell, modality, feature)
    return Table(
        name="features",
        caption="Features",
        columns=[
            *columns_of(TEXT, ["feature", "modality", "from", "level"]),
            Column("dim", COUNT),
            *columns_of(TEXT, ["stored as", "fingerprint"]),
        ],
        rows=list(rows.values()),
    )


def _features(cell: Cell) -> list[tuple[str, FeatureRecord]]:
    """The modality and the record of each feature, and of each view: no text is augmented."""
    features = []
    for modality, feature in cell.config.features.items():
        for part in feature.parts:
            features.append((modality, part))
    for view in cell.config.views:
        features.append(("audio", view))
    return features


def _feature_row(cell: Cell, modality: str, feature: FeatureRecord) -> Row:
    row: Row = {
        "feature": feature.read_name,
        "modality": modality,
        "from": None,
        "level": None,
        "dim": cell.config.dims[modality],
        "stored as": None,
        "fingerprint": feature.fingerprint,
    }
    try:
        spec = _spec(cell, feature)
    except MissingRows:
        return row
    except SerError as fault:
        row["from"] = str(fault)
        return row

    if spec is not None:
        model = str(spec.provenance.get("model") or spec.extractor)
        row["from"] = f"{model} (random weights)" if spec.random_weights else model
        row["level"] = spec.level
        row["dim"] = spec.dim
        row["stored as"] = spec.dtype
    return row


def _spec(cell: Cell, feature: FeatureRecord) -> Spec | None:
    """How a feature was made; None without a store."""
    store = cell.origin.store
    if store is None:
        return None
    return store.feature(f"{feature.feature}@{feature.fingerprint}").spec


def corpora_tables(cells: Cells) -> list[Table]:
    """One table for each set of utterances and labels."""

    def same_set(cell: Cell) -> tuple[Any, ...]:
        config = cell.config
        return (
            config.corpus,
            config.manifest,
            config.limit,
            config.only,
            config.labels.policy,
        )

    sets = grouped(cells, same_set).values()
    return [_corpus_table(f"corpus-{number}", of_set) for number, of_set in enumerate(sets, 1)]


def _corpus_table(name: str, cells: list[Cell]) -> Table:
    """What cells with the same utterances and labels tested."""
    first = cells[0]
    corpus = first.config.corpus
    label_of: dict[str, str] = {}
    for cell in cells:
        label_of.update(cell.scores.predictions.utterances)

    digests = first.config.manifest.split("+")
    row: Row = {
        "manifest": "+".join(digest[:16] for digest in digests),
        "labels": first.config.labels.policy,
    }
    counts = Counter(label_of.values())
    for label in first.scores.classes:
        row[f"n {label}"] = counts[label]
    return Table(
        name=name,
        caption=f"Corpus {corpus}",
        columns=[
            *columns_of(TEXT, ["manifest", "labels"]),
            *columns_of(COUNT, [f"n {label}" for label in first.scores.classes]),
        ],
        rows=[row],
        note=joined(_about_utterances(first, len(label_of)), _about_labels(first)),
    )


def _about_utterances(cell: Cell, tested: int) -> str:
    """How many were tested, of how many, as far as the store is there."""
    manifest = cell.origin.manifest
    if manifest is None:
        return f"{tested:,} utterances tested; the store is not at hand ({cell.origin.lack})."

    hours = sum(duration or 0 for duration in manifest.column("duration")) / 3600
    speakers = set(manifest.column("speaker")) - {None}
    generated = ""
    if manifest.synthetic:
        several = "+" in cell.config.corpus
        generated = ", with generated speech" if several else ", generated speech"
    return (
        f"{tested:,} utterances tested, of {len(manifest):,} in the corpus "
        f"({hours:.2f} h, {len(speakers)} speakers){generated}."
    )


def _about_labels(cell: Cell) -> str:
    """Which raw labels the policy merges; "" where it merges none."""
    merged = []
    maps = cell.config.labels.maps
    for name, raw_labels in grouped(maps, maps.get).items():
        if raw_labels != [name]:
            merged.append(f"{name} is {' + '.join(raw_labels)}")
    return f"Labels: {'; '.join(merged)}." if merged else ""


def protocols_table(cells: Cells) -> Table:
    """A line for each way in which cells were cut and selected."""

    def cut_alike(cell: Cell) -> tuple[Any, ...]:
        return (
            cell.config.protocol,
            cell.config.select,
            _repeated_texts(cell),
            tuple(parts(cell.results).items()),
        )

    rows = []
    groups = grouped(cells, cut_alike)
    named_parts: dict[str, None] = {}
    for (protocol, select, repeated, cut), members in groups.items():
        row: Row = {}
        if len(groups) > 1:
            row["cells"] = ", ".join(cell.label for cell in members)
        row["protocol"] = protocol
        row["how it cuts"] = _how_it_cuts(protocol, members)
        row["test transcripts also in training %"] = repeated
        row |= dict(cut)

        folds = dict.fromkeys(", ".join(cell.folds) for cell in members)
        losses = dict.fromkeys(cell.config.loss for cell in members)
        seeds: set[int] = set()
        for cell in members:
            seeds.update(cell.seeds)
        row["folds tested"] = "; ".join(folds)
        row["selection"] = f"{select}: {SELECTIONS[select]}"
        row["loss"] = ", ".join(losses)
        row["seeds"] = ", ".join(str(seed) for seed in sorted(seeds))
        rows.append(row)
        named_parts.update(dict.fromkeys(dict(cut)))

    return Table(
        name="protocol",
        caption="Protocol and selection",
        columns=[
            *columns_of(TEXT, ["cells", "protocol", "how it cuts"]),
            Column("test transcripts also in training %", PERCENT),
            *columns_of(TEXT, named_parts),
            *columns_of(TEXT, ["folds tested", "selection", "loss", "seeds"]),
        ],
        rows=rows,
    )


def _repeated_texts(cell: Cell) -> float | None:
    """The share of the test transcripts that are in training too, in percent.

    None where it is not known.
    """
    repeated = 0
    for result in cell.results:
        if result.repeated_texts is None:
            return None
        repeated += result.repeated_texts
    return 100 * repeated / cell.scores.n


def _how_it_cuts(protocol: str, cells: list[Cell]) -> str:
    """The protocol in words, and who of the test speakers is in training."""
    built_in = find_protocol(protocol)
    cut = built_in.summary if built_in else "folds from a file"
    results: list[RunResult] = []
    for cell in cells:
        results += cell.results
    heard = heard_in_training(results) or "no test speaker is in training"
    return f"{cut}; {heard}."


def left_out_table(cells: Cells) -> Table:
    """Why utterances of each corpus stand in no part, the most of any cell."""
    counts: Counter[tuple[str, str]] = Counter()
    for cell in cells:
        corpus = cell.config.corpus
        for why, n in left_out(cell.results).items():
            counts[corpus, why] = max(counts[corpus, why], n)
    rows: list[Row] = []
    for (corpus, why), n in counts.items():
        rows.append({"corpus": corpus, "left out because": why, "utterances": n})
    return Table(
        name="left-out",
        caption="Utterances left out, by reason",
        columns=[*columns_of(TEXT, ["corpus", "left out because"]), Column("utterances", COUNT)],
        rows=rows,
        note=(
            "Of cells and folds that differ, the most of any. One utterance may stand in several "
            "rows. What is quarantined could not be used; ser cache info FEATURE names each, and "
            "says why."
        ),
        folded=True,
    )


def commands_table(cells: Cells) -> Table:
    return Table(
        name="commands",
        caption="The command that runs each cell again",
        columns=columns_of(TEXT, ["cell", "command"]),
        rows=[{"cell": cell.label, "command": command(cell)} for cell in cells],
        folded=True,
    )


def command(cell: Cell) -> str:
    """The `ser train` command that makes the cell's runs again, with these features alone.

    Of an ensemble the `ser ensemble` command, with all members.
    """
    if cell.search:
        return shlex.join(["ser", "sweep", cell.search.file])
    if cell.config.members is not None:
        return _ensemble_command(cell)

    config = cell.config
    defaults = {field.name: field.default for field in fields(Experiment)}
    options = {}
    for key, value in config.provenance.asked.items():
        if key in defaults and key not in ("resume", "also_set"):
            options[key] = value
    options["features"] = "+".join(map(exact_name, config.features.values()))
    options["fusion"] = config.fusion
    options["seeds"] = max(cell.seeds) + 1
    options["set"] = setting_texts(_changed_settings(cell))
    options["epochs"] = None  # which are among the settings

    words = ["ser", "train"]
    for key, values in options.items():
        option = f"--{key.replace('_', '-')}"
        for value in values if isinstance(values, list | tuple) else [values]:
            if value in (None, False, defaults[key]):
                continue
            words.append(option)
            if value is not True:
                words.append(str(value))
    return shlex.join(words)


def _ensemble_command(cell: Cell) -> str:
    words = ["ser", "ensemble"]
    for run in cell.runs:
        words += run.config.provenance.asked["members"]
    words += ["--by", cell.config.fusion.removeprefix(ENSEMBLE)]
    if "weights" in cell.config.settings:
        words += ["--weights", cell.config.settings["weights"]]
    return shlex.join(words)


def exact_name(feature: FeatureRecord) -> str:
    """A feature's name with its fingerprint; of several that are joined, no folder has it."""
    name = feature.read_name
    return name if feature.joined else f"{name}@{feature.fingerprint[:8]}"


def _changed_settings(cell: Cell) -> dict[str, Any]:
    """The settings that are not at their default."""
    listed = _listed_settings(cell.config.fusion)
    changed = {}
    for key, value in cell.settings.items():
        if key not in listed or value != listed[key].default:
            changed[key] = value

    # A config names it where it is true.
    config = cell.config
    fusion = FUSIONS.get(config.fusion)
    if fusion and refits_by_default(fusion, config.select) and "refit" not in cell.settings:
        changed["refit"] = False
    return changed


def _listed_settings(fusion: str) -> dict[str, ListedSetting]:
    """The settings of a fusion by name; none of one that is not installed."""
    if fusion not in FUSIONS:
        return {}
    return {setting.name: setting for setting in list_settings(FUSIONS[fusion])}


def settings_table(cells: Cells) -> Table:
    """Every setting of every fusion in the report, with its source."""
    rows: list[Row] = []
    for fusion, members in grouped(cells, lambda cell: cell.config.fusion).items():
        listed = _listed_settings(fusion)
        names: dict[str, None] = {}
        for cell in members:
            names.update(dict.fromkeys(cell.settings))

        for name in names:
            setting = listed.get(name, ListedSetting(name, "", "", "", ""))
            used = dict.fromkeys(str(cell.settings.get(name, setting.default)) for cell in members)
            rows.append(
                {
                    "fusion": fusion,
                    "setting": name,
                    "used": ", ".join(used),
                    "default": str(setting.default),
                    "source of the default": setting.source,
                    "what it is": setting.help,
                }
            )
    headings = ["fusion", "setting", "used", "default", "source of the default", "what it is"]
    return Table(
        name="settings",
        caption="All settings",
        columns=columns_of(TEXT, headings),
        rows=rows,
        folded=True,
    )


def versions_table(cells: Cells) -> Table:
    """The versions and devices that runs were made with, and how many runs were."""
    counts: Counter[tuple[str, str]] = Counter()
    for cell in cells:
        for run in cell.runs:
            versions: dict[str, Any] = {
                "ser's training": run.config.version,
                **run.config.provenance.versions,
                "device": run.config.provenance.device,
            }
            counts.update((name, str(version)) for name, version in versions.items())
    rows: list[Row] = []
    for (name, version), n in counts.items():
        rows.append({"what": name, "version": version, "runs": n})
    return Table(
        name="versions",
        caption="Versions and devices",
        columns=[*columns_of(TEXT, ["what", "version"]), Column("runs", COUNT)],
        rows=rows,
        folded=True,
    )


def runs_table(cells: Cells) -> Table:
    """Every run: its place, its scores, the epoch it kept, and n of its parts."""
    rows: list[Row] = []
    dimensions: dict[str, None] = {}
    named_parts: dict[str, None] = {}
    for cell in cells:
        for run in cell.runs:
            rows.append(_run_row(cell, run))
            dimensions.update(dict.fromkeys(run.result.ccc or {}))
            named_parts.update(dict.fromkeys(run.result.parts))
    return Table(
        name="runs",
        caption="Every run",
        columns=[
            *columns_of(TEXT, ["run", "cell", "fold"]),
            Column("seed", COUNT),
            *columns_of(PERCENT, [f"{name} %" for name in SHOWN]),
            *columns_of(FINE, [f"CCC {name}" for name in dimensions]),
            Column("epoch kept", COUNT),
            Column("epochs tied", COUNT),
            Column("seconds", NUMBER),
            *columns_of(COUNT, [f"n {part}" for part in named_parts]),
        ],
        rows=rows,
        folded=True,
    )


def _run_row(cell: Cell, run: Run) -> Row:
    result = run.result
    row: Row = {
        "run": run.path.name,
        "cell": cell.label,
        "fold": result.fold,
        "seed": result.seed,
    }
    for name, metric in SHOWN.items():
        score = result.score(metric)
        if score is not None:
            row[f"{name} %"] = 100 * score
    for name, value in (result.ccc or {}).items():
        row[f"CCC {name}"] = value
    row["epoch kept"] = result.epoch
    if result.tied is not None:
        row["epochs tied"] = result.tied
    row["seconds"] = float(result.seconds)
    for part, n in result.parts.items():
        row[f"n {part}"] = n
    return row
