"""What was run: features, corpus, protocol, settings, versions, and the command that runs it again."""

import shlex
from collections import Counter
from dataclasses import fields
from typing import Any

from ser.errors import MissingRows, SerError
from ser.train.data.protocols import find_protocol
from ser.train.listed_settings import ListedSetting, list_settings
from ser.train.models import FUSIONS
from ser.train.options import SELECTIONS, Experiment, setting_texts
from ser.train.scores.measures import SHOWN

from .cell_scores import heard_in_training, parts
from .cells import Cell, Cells, grouped
from .tables import Row, Table, described, sentence


def what_was_run(cells: Cells) -> list[Table]:
    """The section, for all cells of the report."""
    left_out: Counter[tuple[str, str]] = Counter()
    for cell in cells:
        left_out |= Counter(
            {(cell.config.corpus, why): n for why, n in cell.left_out.items()}
        )  # the most of any
    rows = [
        {"corpus": corpus, "left out because": why, "utterances": n}
        for (corpus, why), n in left_out.items()
    ]
    commands = [{"cell": cell.label, "command": command(cell)} for cell in cells]
    data = [_features(cells), *_corpora(cells), _protocols(cells), described("left-out", rows)]
    return [
        *data,
        described("commands", commands),
        _settings(cells),
        _versions(cells),
        _runs(cells),
    ]


def _features(cells: Cells) -> Table:
    rows: dict[str, Row] = {}
    for cell in cells:
        features = [
            (m, part) for m, feature in cell.config.features.items() for part in feature.parts
        ]
        # No text is augmented.
        features += [("audio", view) for view in cell.config.views]
        for modality, feature in features:
            name, digest = feature.read_name, feature.fingerprint
            if f"{name}@{digest}" in rows:
                continue
            row: Row = {"feature": name, "modality": modality, "from": None, "level": None}
            row |= {"dim": cell.config.dims[modality], "stored as": None, "fingerprint": digest}
            try:
                spec = (
                    cell.origin.store
                    and cell.origin.store.feature(f"{feature.feature}@{digest}").spec
                )
            except MissingRows:
                spec = None
            except SerError as fault:
                spec, row["from"] = None, str(fault)
            if spec:
                model = (
                    str(spec.provenance.get("model") or spec.extractor)
                    + " (random weights)" * spec.random_weights
                )
                row |= {
                    "from": model,
                    "level": spec.level,
                    "dim": spec.dim,
                    "stored as": spec.dtype,
                }
            rows[f"{name}@{digest}"] = row
    return described("features", list(rows.values()))


def _corpora(cells: Cells) -> list[Table]:
    """One table for each set of utterances and labels."""

    def trained_on(cell: Cell) -> tuple[Any, ...]:
        config = cell.config
        return config.corpus, config.manifest, config.limit, config.only, config.labels.policy

    tables = []
    sets = grouped(cells, trained_on)
    for number, ((corpus, digest, _, _, policy), members) in enumerate(sets.items(), 1):
        cell, manifest = members[0], members[0].origin.manifest
        labels = dict(pair for member in members for pair in member.tested)
        counts: Row = {"n": len(labels), "lack": cell.origin.lack}
        if manifest is not None:
            counts |= {
                "all": len(manifest),
                "hours": sum(d or 0 for d in manifest.column("duration")) / 3600,
            }
            counts["people"] = len(set(manifest.column("speaker")) - {None})
            counts["made"] = f", {'with ' * ('+' in corpus)}generated speech" * manifest.synthetic
        maps = cell.config.labels.maps
        raw = grouped(maps, maps.get)
        merged = "; ".join(
            f"{name} is {' + '.join(of)}" for name, of in raw.items() if of != [name]
        )
        notes = (
            sentence("away" if manifest is None else "tested", **counts),
            sentence("merged", merged, merged=merged),
        )
        row = {"manifest": "+".join(one[:16] for one in digest.split("+")), "labels": policy}
        row |= {f"n {name}": [*labels.values()].count(name) for name in cell.classes}
        tables.append(described("corpus", [row], *notes, name=f"corpus-{number}", corpus=corpus))
    return tables


def _protocols(cells: Cells) -> Table:
    def cut_alike(cell: Cell) -> tuple[Any, ...]:
        repeated: list[Any] = [result.repeated_texts for result in cell.results]
        share = None if None in repeated else 100 * sum(repeated) / cell.n
        return cell.config.protocol, cell.config.select, share, *parts(cell.results).items()

    rows, groups = [], grouped(cells, cut_alike)
    for (protocol, select, share, *cut_in), members in groups.items():
        known = find_protocol(protocol)
        cut = known.summary if known else "folds from a file"
        heard = heard_in_training([result for cell in members for result in cell.results])
        row: Row = {"cells": ", ".join(cell.label for cell in members)} if len(groups) > 1 else {}
        row |= {
            "protocol": protocol,
            "how it cuts": f"{cut}; {heard or 'no test speaker is in training'}.",
        }
        row |= {"test transcripts also in training %": share, **dict(cut_in)}
        row["folds tested"] = "; ".join(dict.fromkeys(", ".join(cell.folds) for cell in members))
        row["selection"] = f"{select}: {SELECTIONS[select]}"
        row["loss"] = ", ".join(dict.fromkeys(cell.config.loss for cell in members))
        row["seeds"] = ", ".join(
            map(str, sorted({seed for cell in members for seed in cell.seeds}))
        )
        rows.append(row)
    return described("protocol", rows)


def _described_settings(fusion: str) -> dict[str, ListedSetting]:
    return (
        {setting.name: setting for setting in list_settings(FUSIONS[fusion])}
        if fusion in FUSIONS
        else {}
    )


def command(cell: Cell) -> str:
    """The `ser train` command that makes the cell's runs again, with these features and no others."""
    if cell.search:
        return shlex.join(["ser", "sweep", cell.search.file])
    config, known = cell.config, {field.name: field.default for field in fields(Experiment)}
    requested = config.provenance.asked
    options = {
        key: value
        for key, value in requested.items()
        if key in known and key not in ("resume", "also_set")
    }
    names = []
    for feature in config.features.values():
        # Of several features joined, no folder has the fingerprint.
        at = "" if feature.joined else f"@{feature.fingerprint[:8]}"
        names.append(f"{feature.read_name}{at}")
    own = _described_settings(config.fusion)
    changed = {
        key: value
        for key, value in cell.settings.items()
        if key not in own or value != own[key].default
    }
    options |= {
        "features": "+".join(names),
        "fusion": config.fusion,
        "seeds": max(cell.seeds) + 1,
    }
    options |= {"set": setting_texts(changed), "epochs": None}  # epochs are among the settings
    words = ["ser", "train"]
    for key, values in options.items():
        option = f"--{key.replace('_', '-')}"
        for value in values if isinstance(values, list | tuple) else [values]:
            if value not in (None, False, known[key]):
                words += [option] if value is True else [option, str(value)]
    return shlex.join(words)


def _settings(cells: Cells) -> Table:
    """Every setting of every fusion in the report, with its source."""
    rows = []
    for fusion in dict.fromkeys(cell.config.fusion for cell in cells):
        members = [cell.settings for cell in cells if cell.config.fusion == fusion]
        known = _described_settings(fusion)
        for key in dict.fromkeys(key for own in members for key in own):
            setting = known.get(key, ListedSetting(key, "", "", "", ""))
            used = ", ".join(dict.fromkeys(str(own.get(key, setting.default)) for own in members))
            row = {"fusion": fusion, "setting": key, "used": used, "default": str(setting.default)}
            rows.append(
                {**row, "source of the default": setting.source, "what it is": setting.help}
            )
    return described("settings", rows)


def _versions(cells: Cells) -> Table:
    counts: Counter[tuple[str, str]] = Counter()
    for config in (run.config for cell in cells for run in cell.runs):
        versions: dict[str, Any] = {"ser's training": config.version}
        versions |= config.provenance.versions
        versions["device"] = config.provenance.device
        counts.update((what, str(version)) for what, version in versions.items())
    rows = [{"what": what, "version": version, "runs": n} for (what, version), n in counts.items()]
    return described("versions", rows)


def _runs(cells: Cells) -> Table:
    rows = [
        {"run": run.path.name, "cell": cell.label, "fold": result.fold, "seed": result.seed}
        | {
            f"{name} %": 100 * score
            for name, metric in SHOWN.items()
            if (score := result.score(metric)) is not None
        }
        | {f"CCC {name}": value for name, value in (result.ccc or {}).items()}
        | {"epoch kept": result.epoch, "seconds": float(result.seconds)}
        | {f"n {part}": n for part, n in result.parts.items()}
        for cell in cells
        for run, result in zip(cell.runs, cell.results, strict=True)
    ]
    return described("runs", rows)
