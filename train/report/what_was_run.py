"""What was run: features, corpus, protocol, settings, versions, and the command that runs it again."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ser.cache.spec import Spec
from ser.errors import SerError
from ser.train.models import FUSIONS
from ser.train.options import SELECTIONS, Experiment
from ser.train.run_folder import Run
from ser.train.settings import settings
from ser.train.splits import PROTOCOLS

from .cells import Cell
from .markup import Block, Command, Folded, Section, Warned
from .tables import Column, Table
from .utterances import Origin

COMMANDS = 6  # shown at once; more go into a table


def section(cells: Sequence[Cell], origins: Mapping[str, Origin], unfinished: Sequence[Run]) -> Section:
    """The section, for all cells of the report."""
    blocks: list[Block] = [_features(cells, origins), *_corpora(cells, origins), _conditions(cells)]
    blocks += [_left_out(cells)] if any(_left_of(cell) for cell in cells) else []
    if unfinished:
        names = ", ".join(run.path.name for run in unfinished[:5]) + (" …" if len(unfinished) > 5 else "")
        blocks.append(Warned(f"{len(unfinished)} runs are not finished and count nowhere here: {names}"))
    blocks += ["To run it again:"]
    commands = [command(cell) for cell in cells]
    if len(cells) <= COMMANDS:
        blocks.append(Command("\n".join(dict.fromkeys(commands))))
    else:
        blocks.append(Command(commands[0]))
        rows = [[cell.label, text] for cell, text in zip(cells, commands, strict=True)]
        blocks.append(Folded(Table("commands", "The command of each cell", [Column("cell"), Column("command")], rows)))
    blocks += [_settings(cells), _versions(cells), _runs(cells)]
    return Section("what-was-run", "What was run", blocks)


def _features(cells: Sequence[Cell], origins: Mapping[str, Origin]) -> Table:
    rows: dict[str, list[Any]] = {}
    for cell in cells:
        for modality, feature in cell.config["features"].items():
            spec = _spec(origins[cell.label], feature)
            dim = cell.config["dims"][modality]
            if spec is None:
                row = [feature["feature"], modality, None, None, dim, None, feature["fingerprint"]]
            else:
                model = str(spec.provenance.get("model") or spec.extractor)
                model += " (random weights)" if spec.random_weights else ""
                row = [spec.name, modality, model, spec.level, spec.dim, spec.dtype, spec.fingerprint]
            rows.setdefault(f"{feature['feature']}@{feature['fingerprint']}", row)
    columns = [Column(name) for name in ("feature", "modality", "from", "level")]
    columns += [Column("dim", "count"), Column("stored as"), Column("fingerprint")]
    return Table("features", "Features", columns, list(rows.values()))


def _spec(origin: Origin, feature: Mapping[str, Any]) -> Spec | None:
    if origin.store is None:
        return None
    try:
        return origin.store.feature(f"{feature['feature']}@{feature['fingerprint']}").spec
    except SerError:
        return None


def _corpora(cells: Sequence[Cell], origins: Mapping[str, Origin]) -> list[Block]:
    """One table for each set of utterances and labels."""
    blocks: list[Block] = []
    seen = set()
    for cell in cells:
        config, origin = cell.config, origins[cell.label]
        key = (config["corpus"], config["manifest"], config["labels"]["policy"], config["limit"])
        if key in seen:
            continue
        seen.add(key)
        counts = Counter(
            cell.classes[k] for _, k in set(zip(cell.predictions.ids, cell.predictions.truth, strict=True))
        )
        tested = sum(counts.values())
        about = f"{tested:,} utterances tested"
        if (manifest := origin.manifest) is not None:
            hours = sum(d or 0 for d in manifest.column("duration")) / 3600
            people = len({s for s in manifest.column("speaker") if s is not None})
            about += f", of {len(manifest):,} in the corpus ({hours:.2f} h, {people} speakers)"
            about += ", generated speech" if manifest.synthetic else ""
        else:
            about += f"; the store is not at hand ({origin.lack})"
        columns = [Column("manifest"), Column("labels"), *(Column(name, "count") for name in cell.classes)]
        row = [config["manifest"][:16], config["labels"]["policy"], *(counts[name] for name in cell.classes)]
        name = f"corpus-{len(seen)}"
        blocks.append(Table(name, f"Corpus {config['corpus']}", columns, [row], f"{about}. {_merged(cell)}".strip()))
    return blocks


def _merged(cell: Cell) -> str:
    merged: dict[str, list[str]] = {}
    for raw, name in cell.config["labels"]["maps"].items():
        merged.setdefault(name, []).append(raw)
    told = [f"{name} is {' + '.join(raws)}" for name, raws in merged.items() if raws != [name]]
    return f"Labels: {'; '.join(told)}." if told else ""


def _conditions(cells: Sequence[Cell]) -> Table:
    rows = []
    for (protocol, select), members in _by(cells, ("protocol", "select")).items():
        known = PROTOCOLS.get(protocol)
        independent = all(result["speaker_independent"] for cell in members for result in cell.results)
        says = (
            "speakers of the test part are never heard in training" if independent else "speakers stand in both parts"
        )
        cut = "; ".join(dict.fromkeys(_folds(cell) for cell in members))
        lines = (known.cut.__doc__ or "").strip().split("\n")[0] if known else "folds from a file."
        seeds = sorted({seed for cell in members for seed in cell.seeds})
        losses = ", ".join(dict.fromkeys(cell.config["loss"] for cell in members))
        rows.append(
            [protocol, f"{lines.rstrip('.')}; {says}.", cut, f"{select}: {SELECTIONS[select]}", losses, _span(seeds)]
        )
    names = ("protocol", "how it cuts", "folds tested", "selection", "loss", "seeds")
    return Table("protocol", "Protocol and selection", [Column(name) for name in names], rows)


def _folds(cell: Cell) -> str:
    folds = cell.folds
    shared = folds[0].partition(" ")[0]
    if len(folds) > 1 and all(fold.startswith(f"{shared} ") for fold in folds):
        return f"{shared} " + ", ".join(fold.partition(" ")[2] for fold in folds)
    return ", ".join(folds)


def _span(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}–{numbers[-1]}"
    return ", ".join(map(str, numbers))


def _by(cells: Sequence[Cell], keys: Sequence[str]) -> dict[tuple[str, ...], list[Cell]]:
    found: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        found.setdefault(tuple(cell.config[key] for key in keys), []).append(cell)
    return found


def _left_of(cell: Cell) -> dict[str, int]:
    """Why utterances stand in no part of a fold, and how many."""
    counts: dict[str, int] = {}
    for result in cell.results:
        for why, what in result["left_out"].items():
            n = what if isinstance(what, int) else len(what)
            counts[why] = max(counts.get(why, 0), n)
    return counts


def _left_out(cells: Sequence[Cell]) -> Folded:
    rows: dict[tuple[str, str], list[Any]] = {}
    for cell in cells:
        for why, n in _left_of(cell).items():
            rows.setdefault((cell.config["corpus"], why), [cell.config["corpus"], why, n])
    columns = [Column("corpus"), Column("left out because"), Column("utterances", "count")]
    total = sum(n for _, _, n in rows.values())
    return Folded(Table("left-out", f"Utterances left out: {total:,}", columns, list(rows.values())))


def command(cell: Cell) -> str:
    """The `ser train` command that makes the cell's runs again."""
    asked = cell.config["provenance"].get("asked", {})
    known = {field.name: field for field in fields(Experiment)}
    chosen = {key: value for key, value in asked.items() if key in known and key not in ("resume", "also_set")}
    chosen |= {"features": _asked_features(cell), "fusion": cell.config["fusion"], "seeds": max(cell.seeds) + 1}
    chosen["set"] = _assignments(cell)
    chosen["epochs"] = None  # among the settings
    words = ["ser", "train"]
    for key, value in chosen.items():
        default = known[key].default
        option = f"--{key.replace('_', '-')}"
        if isinstance(value, list | tuple):
            words += [word for item in value for word in (option, str(item))]
        elif value is True:
            words.append(option)
        elif value not in (None, False, default):
            words += [option, str(value)]
    return shlex.join(words)


def _asked_features(cell: Cell) -> str:
    """The features with their fingerprints, so that the command means these and no others."""
    names = []
    for feature in cell.config["features"].values():
        pool = "" if feature["pool"] == "mean" else f"{',' if ':' in feature['feature'] else ':'}pool={feature['pool']}"
        names.append(f"{feature['feature']}{pool}@{feature['fingerprint'][:8]}")
    return "+".join(names)


def _assignments(cell: Cell) -> list[str]:
    """`key=value` of every setting that is not the default."""
    fusion = FUSIONS.get(cell.config["fusion"])
    values = {**cell.config["settings"], **cell.config["training"]}
    defaults = {s.name: s.default for s in settings(fusion)} if fusion else {}
    return [
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in values.items()
        if value != defaults.get(key, object())
    ]


def _settings(cells: Sequence[Cell]) -> Table | Folded:
    """Every setting of every fusion in the report, with its source."""
    rows = []
    for (name,), members in _by(cells, ("fusion",)).items():
        known = {s.name: s for s in settings(FUSIONS[name])} if name in FUSIONS else {}
        for key in [*members[0].config["settings"], *members[0].config["training"]]:
            used = dict.fromkeys(str({**c.config["settings"], **c.config["training"]}.get(key)) for c in members)
            about = known.get(key)
            default = str(about.default) if about else ""
            source, help_ = (about.source, about.help) if about else ("", "")
            rows.append([name, key, ", ".join(used), default, source, help_])
    names = ("fusion", "setting", "used", "default", "source of the default", "what it is")
    return Folded(Table("settings", "All settings", [Column(name) for name in names], rows))


def _versions(cells: Sequence[Cell]) -> Folded:
    found: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        for run in cell.runs:
            provenance = run.config["provenance"]
            versions = {"ser's training": run.config["version"], **provenance.get("versions", {})}
            for what, version in [*versions.items(), ("device", provenance.get("device"))]:
                found.setdefault((what, str(version)), []).append(run.path.name)
    rows = [[what, version, len(names)] for (what, version), names in found.items()]
    columns = [Column("what"), Column("version"), Column("runs", "count")]
    return Folded(Table("versions", "Versions and devices", columns, rows))


def _runs(cells: Sequence[Cell]) -> Folded:
    rows = [
        [
            run.path.name,
            cell.label,
            r["fold"],
            r["seed"],
            r["ua"],
            r["wa"],
            r["macro_f1"],
            r["epoch"],
            r["n"],
            r["seconds"],
        ]
        for cell in cells
        for run, r in zip(cell.runs, cell.results, strict=True)
    ]
    columns = [Column("run"), Column("cell"), Column("fold"), Column("seed", "count")]
    columns += [Column(name, "percent") for name in ("UA %", "WA %", "macro-F1 %")]
    columns += [Column("epoch kept", "count"), Column("n", "count"), Column("seconds", "number")]
    return Folded(Table("runs", "Every run", columns, rows))
