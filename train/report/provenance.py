"""What was run: features, corpus, protocol, settings, versions, and the command that runs it again."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ser.cache.spec import Spec
from ser.errors import SerError
from ser.train.experiment import Experiment
from ser.train.models import FUSIONS
from ser.train.options import SELECTIONS, assignments
from ser.train.run_folder import Run
from ser.train.settings import Setting, settings
from ser.train.splits import PROTOCOLS

from .cells import Cell
from .html import Block, Command, Warned
from .tables import Table
from .utterances import Origin

COMMANDS = 6  # shown at once; more go into a table


def what_was_run(cells: Sequence[Cell], origins: Mapping[str, Origin], unfinished: Sequence[Run]) -> list[Block]:
    """The section, for all cells of the report."""
    blocks: list[Block] = [_features(cells, origins), *_corpora(cells, origins), _protocols(cells)]
    left_out: Counter[tuple[str, str]] = Counter()
    for cell in cells:
        left_out |= Counter({(cell.config["corpus"], why): n for why, n in cell.left_out.items()})  # the most of any
    if left_out:
        rows: list[list[Any]] = [[corpus, why, n] for (corpus, why), n in left_out.items()]
        columns = {"corpus": "text", "left out because": "text", "utterances": "count"}
        blocks.append(Table("left-out", f"Utterances left out: {left_out.total():,}", columns, rows, folded=True))
    if unfinished:
        names = ", ".join(run.path.name for run in unfinished[:5]) + (" …" if len(unfinished) > 5 else "")
        blocks.append(Warned(f"{len(unfinished)} runs are not finished and count nowhere here: {names}"))
    commands = [command(cell) for cell in cells]
    shown = commands if len(cells) <= COMMANDS else commands[:1]
    blocks += ["To run it again:", Command("\n".join(dict.fromkeys(shown)))]
    if len(cells) > COMMANDS:
        rows = [[cell.label, text] for cell, text in zip(cells, commands, strict=True)]
        blocks.append(_texts("commands", "The command of each cell", ("cell", "command"), rows, folded=True))
    return [*blocks, _settings(cells), _versions(cells), _runs(cells)]


def _texts(name: str, caption: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], folded: bool) -> Table:
    return Table(name, caption, dict.fromkeys(columns, "text"), rows, folded=folded)


def _features(cells: Sequence[Cell], origins: Mapping[str, Origin]) -> Table:
    rows: dict[str, list[Any]] = {}
    for cell in cells:
        for modality, feature in cell.config["features"].items():
            name = f"{feature['feature']}@{feature['fingerprint']}"
            spec = _spec(origins[cell.label], name)
            row = [
                feature["feature"],
                modality,
                None,
                None,
                cell.config["dims"][modality],
                None,
                feature["fingerprint"],
            ]
            if spec is not None:
                model = str(spec.provenance.get("model") or spec.extractor)
                model += " (random weights)" if spec.random_weights else ""
                row = [spec.name, modality, model, spec.level, spec.dim, spec.dtype, spec.fingerprint]
            rows.setdefault(name, row)
    names = ("feature", "modality", "from", "level", "dim", "stored as", "fingerprint")
    return Table("features", "Features", dict.fromkeys(names, "text") | {"dim": "count"}, list(rows.values()))


def _spec(origin: Origin, feature: str) -> Spec | None:
    try:
        return None if origin.store is None else origin.store.feature(feature).spec
    except SerError:
        return None


def _corpora(cells: Sequence[Cell], origins: Mapping[str, Origin]) -> list[Table]:
    """One table for each set of utterances and labels."""
    firsts: dict[tuple[Any, ...], Cell] = {}
    for cell in cells:
        config = cell.config
        firsts.setdefault((config["corpus"], config["manifest"], config["labels"]["policy"], config["limit"]), cell)
    tables = []
    for number, ((corpus, digest, policy, _), cell) in enumerate(firsts.items(), 1):
        p, origin = cell.predictions, origins[cell.label]
        counts = Counter(k for _, k in set(zip(p.ids, p.truth.tolist(), strict=True)))
        about = f"{counts.total():,} utterances tested"
        if (manifest := origin.manifest) is not None:
            hours = sum(d or 0 for d in manifest.column("duration")) / 3600
            people = len(set(manifest.column("speaker")) - {None})
            about += f", of {len(manifest):,} in the corpus ({hours:.2f} h, {people} speakers)"
            about += ", generated speech" if manifest.synthetic else ""
        else:
            about += f"; the store is not at hand ({origin.lack})"
        columns = {"manifest": "text", "labels": "text"} | {f"n {name}": "count" for name in cell.classes}
        row = [digest[:16], policy, *(counts[k] for k in range(len(cell.classes)))]
        note = f"{about}. {_merged(cell)}".strip()
        tables.append(Table(f"corpus-{number}", f"Corpus {corpus}", columns, [row], note))
    return tables


def _merged(cell: Cell) -> str:
    merged: dict[str, list[str]] = {}
    for raw, name in cell.config["labels"]["maps"].items():
        merged.setdefault(name, []).append(raw)
    named = [f"{name} is {' + '.join(raws)}" for name, raws in merged.items() if raws != [name]]
    return f"Labels: {'; '.join(named)}." if named else ""


def _protocols(cells: Sequence[Cell]) -> Table:
    rows = []
    for protocol, select in dict.fromkeys((cell.config["protocol"], cell.config["select"]) for cell in cells):
        members = [c for c in cells if (c.config["protocol"], c.config["select"]) == (protocol, select)]
        known = PROTOCOLS.get(protocol)
        cut = (known.cut.__doc__ or "").strip().split("\n")[0] if known else "folds from a file."
        independent = all(result["speaker_independent"] for cell in members for result in cell.results)
        speakers = "are never heard in training" if independent else "are heard in training too"
        rows.append(
            [
                protocol,
                f"{cut.rstrip('.')}; speakers of the test part {speakers}.",
                "; ".join(dict.fromkeys(_folds(cell.folds) for cell in members)),
                f"{select}: {SELECTIONS[select]}",
                ", ".join(dict.fromkeys(cell.config["loss"] for cell in members)),
                _span(sorted({seed for cell in members for seed in cell.seeds})),
            ]
        )
    names = ("protocol", "how it cuts", "folds tested", "selection", "loss", "seeds")
    return _texts("protocol", "Protocol and selection", names, rows, folded=False)


def _folds(folds: Sequence[str]) -> str:
    """Such as "session 1, 2, 3"."""
    kind = folds[0].partition(" ")[0]
    if len(folds) > 1 and all(fold.startswith(f"{kind} ") for fold in folds):
        return f"{kind} " + ", ".join(fold.removeprefix(f"{kind} ") for fold in folds)
    return ", ".join(folds)


def _span(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}–{numbers[-1]}"
    return ", ".join(map(str, numbers))


def _defaults(fusion: str) -> dict[str, Setting]:
    return {one.name: one for one in settings(FUSIONS[fusion])} if fusion in FUSIONS else {}


def command(cell: Cell) -> str:
    """The `ser train` command that makes the cell's runs again, with these features and no others."""
    config, known = cell.config, {field.name: field.default for field in fields(Experiment)}
    asked = config["provenance"].get("asked", {})
    chosen = {key: value for key, value in asked.items() if key in known and key not in ("resume", "also_set")}
    names = []
    for feature in config["features"].values():
        pool = "" if feature["pool"] == "mean" else f"{',' if ':' in feature['feature'] else ':'}pool={feature['pool']}"
        names.append(f"{feature['feature']}{pool}@{feature['fingerprint'][:8]}")
    usual = {name: one.default for name, one in _defaults(config["fusion"]).items()}
    changed = {key: value for key, value in cell.settings.items() if key not in usual or value != usual[key]}
    chosen |= {"features": "+".join(names), "fusion": config["fusion"], "seeds": max(cell.seeds) + 1}
    chosen |= {"set": assignments(changed), "epochs": None}  # epochs are among the settings
    words = ["ser", "train"]
    for key, value in chosen.items():
        option = f"--{key.replace('_', '-')}"
        if isinstance(value, list | tuple):
            words += [word for item in value for word in (option, str(item))]
        elif value is True:
            words.append(option)
        elif value not in (None, False, known[key]):
            words += [option, str(value)]
    return shlex.join(words)


def _settings(cells: Sequence[Cell]) -> Table:
    """Every setting of every fusion in the report, with its source."""
    rows = []
    for fusion in dict.fromkeys(cell.config["fusion"] for cell in cells):
        members = [cell for cell in cells if cell.config["fusion"] == fusion]
        known = _defaults(fusion)
        for key in members[0].settings:
            used = ", ".join(dict.fromkeys(str(cell.settings.get(key)) for cell in members))
            about = known.get(key)
            rows.append([fusion, key, used, *((about.default, about.source, about.help) if about else ("", "", ""))])
    names = ("fusion", "setting", "used", "default", "source of the default", "what it is")
    return _texts("settings", "All settings", names, rows, folded=True)


def _versions(cells: Sequence[Cell]) -> Table:
    found: Counter[tuple[str, str]] = Counter()
    for run in (run for cell in cells for run in cell.runs):
        provenance = run.config["provenance"]
        versions = {"ser's training": run.config["version"], **provenance.get("versions", {})}
        found.update(
            (what, str(version)) for what, version in [*versions.items(), ("device", provenance.get("device"))]
        )
    rows = [[what, version, n] for (what, version), n in found.items()]
    columns = {"what": "text", "version": "text", "runs": "count"}
    return Table("versions", "Versions and devices", columns, rows, folded=True)


def _runs(cells: Sequence[Cell]) -> Table:
    rows = [
        [run.path.name, cell.label, r["fold"], r["seed"]]
        + [100 * r["ua"], 100 * r["wa"], 100 * r["macro_f1"], r["epoch"], r["n"], r["seconds"]]
        for cell in cells
        for run, r in zip(cell.runs, cell.results, strict=True)
    ]
    columns = {"run": "text", "cell": "text", "fold": "text", "seed": "count"}
    columns |= {"UA %": "percent", "WA %": "percent", "macro-F1 %": "percent"}
    columns |= {"epoch kept": "count", "n": "count", "seconds": "number"}
    return Table("runs", "Every run", columns, rows, folded=True)
