"""From the paths that somebody gives to the evidence they hold together."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ser.disk.memory import name_what_does_not_fit
from ser.disk.paths import expand_user
from ser.errors import WrongUse

from ..evidence import Claim, Evidence, History, Predictions, Script, Split, Utterance
from .columns import Columns, find_columns
from .corpora import is_store, read_corpus, read_store, utterances_of
from .histories import is_history, read_history
from .join_keys import join_keys, names_of_recordings
from .known_ids import known_utterances
from .predictions import has_predictions, read_predictions
from .runs import is_run_folder, read_runs
from .scripts import read_script
from .segments import with_segment_ids
from .sheet import ENDINGS, Sheet, read_json, read_sheet
from .splits import (
    Members,
    corpora_before_ids,
    files_of_split,
    join_members,
    names_parts,
    part_and_fold,
    read_members,
    read_tar,
    splits_in_json,
)

# "seed3" in the name of a file of predictions.
SEED_IN_A_NAME = re.compile(r"(?<![a-z])seed[ _-]?(\d+)", re.IGNORECASE)

# What a table that predicts and splits nothing may say of utterances.
ABOUT = ("speaker", "dialogue", "text", "truth", "sound")


@dataclass
class Gathering:
    """What was read so far."""

    columns: Mapping[str, str]
    """By what it holds, the heading that the user gave."""

    predictions: list[Predictions] = field(default_factory=list)
    of_runs: list[Predictions] = field(default_factory=list)
    members: list[Members] = field(default_factory=list)
    in_folds: list[Members] = field(default_factory=list)
    """Ids of a fold, of no part: each is tested there, and trains in the other folds."""
    splits: list[Split] = field(default_factory=list)
    histories: list[History] = field(default_factory=list)
    scripts: list[Script] = field(default_factory=list)
    utterances: list[dict[str, Utterance]] = field(default_factory=list)
    """By id, the first that says something counts."""
    corpora: list[dict[str, Utterance]] = field(default_factory=list)
    stored: dict[str, dict[str, Utterance]] = field(default_factory=dict)
    """Those of a store of ser, by name."""
    corpus_names: set[str] = field(default_factory=set)
    """Those that stand before ids, as EmoBox writes them."""
    recordings: dict[str, str] = field(default_factory=dict)
    """By id, the name of its recording, where the id is that in another spelling."""
    notes: list[str] = field(default_factory=list)


def gather(paths: Sequence[Path], columns: Mapping[str, str], claims: Sequence[Claim]) -> Evidence:
    """Read all paths. Raises `WrongUse` for one that holds nothing to audit."""
    gathering = Gathering(columns)
    # The same file twice is no second system.
    for path in dict.fromkeys(expand_user(path) for path in paths):
        with name_what_does_not_fit(path, WrongUse):
            _read_path(path, gathering)
    _check_columns_were_found(gathering)

    splits = [*gathering.splits, *join_members(gathering.members, "the files of parts")]
    splits += _folds_in_turn(gathering.in_folds)
    predictions = [*_systems(gathering.predictions), *gathering.of_runs]

    evidence = Evidence(
        predictions=predictions,
        splits=splits,
        histories=gathering.histories,
        claims=list(claims),
        scripts=gathering.scripts,
        notes=gathering.notes,
    )
    return _with_utterances(evidence, gathering)


def _with_utterances(evidence: Evidence, gathering: Gathering) -> Evidence:
    """The evidence with what is known of each utterance, whatever file says it."""
    files: list[list[str]] = []
    for predictions in evidence.predictions:
        files.append(predictions.ids)
    for split in evidence.splits:
        ids: list[str] = []
        for members in split.parts.values():
            ids += members
        files.append(ids)
    corpora = [*gathering.corpora, *_stored_corpora(evidence, gathering)]
    sources = [*corpora, *gathering.utterances]
    files += [list(source) for source in sources]

    keys = join_keys(files, gathering.corpus_names, gathering.recordings)
    utterances = known_utterances(dict.fromkeys(keys.values()))
    # What comes first counts: the corpus, then the files' own rows, then the ids themselves.
    for source in reversed(sources):
        for id_, utterance in source.items():
            key = keys[id_]
            utterances[key] = _completed(utterance, utterances.get(key))

    corpus = None
    if corpora:
        corpus = []
        for source in corpora:
            corpus += [keys[id_] for id_ in source]
    return replace(evidence, keys=keys, utterances=utterances, corpus=corpus)


def _stored_corpora(evidence: Evidence, gathering: Gathering) -> list[dict[str, Utterance]]:
    """The corpora of a store; of those that are there, the ones that runs of ser name."""
    named: set[str] = set()
    for predictions in evidence.predictions:
        if predictions.declared is None:
            return list(gathering.stored.values())
        named.update(predictions.declared.corpora)

    if named.isdisjoint(gathering.stored):
        return list(gathering.stored.values())
    return [utterances for name, utterances in gathering.stored.items() if name in named]


def _completed(first: Utterance, second: Utterance | None) -> Utterance:
    """What the first says, and where it says nothing the second."""
    if second is None:
        return first
    return Utterance(
        speaker=first.speaker if first.speaker is not None else second.speaker,
        dialogue=first.dialogue if first.dialogue is not None else second.dialogue,
        text=first.text if first.text is not None else second.text,
        label=first.label if first.label is not None else second.label,
        sound=first.sound if first.sound is not None else second.sound,
    )


def _read_path(path: Path, gathering: Gathering) -> None:
    if not path.exists():
        raise WrongUse(f"{path} does not exist; give predictions, a split, runs or a corpus")
    if path.is_dir():
        _read_folder(path, gathering)
    elif path.suffix == ".py":
        gathering.scripts.append(read_script(path))
        gathering.notes.append(f"{path.name}: a script; parsed, not run")
    elif path.suffix == ".tar":
        _read_tar(path, None, gathering)
    else:
        _read_file(path, None, gathering)


def _read_folder(folder: Path, gathering: Gathering) -> None:
    if is_run_folder(folder):
        predictions, known, notes = read_runs(folder)
        gathering.of_runs += predictions
        gathering.utterances.append(known)
        gathering.notes += notes
        return
    if is_store(folder):
        by_corpus, notes = read_store(folder)
        gathering.stored.update(by_corpus)
        gathering.notes += notes
        return

    files = files_of_split(folder)
    for path in files:
        if path.suffix == ".tar":
            _read_tar(path, folder, gathering)
        else:
            _read_file(path, folder, gathering)
    if files:
        return

    known, notes = read_corpus(folder)
    gathering.corpora.append(known)
    gathering.notes += notes


def _read_tar(path: Path, root: Path | None, gathering: Gathering) -> None:
    part, fold = part_and_fold(path, root)
    sheet = read_tar(path)
    columns = find_columns(sheet, {})
    gathering.utterances.append(utterances_of(sheet, columns))
    ids = sheet.columns["id"]
    if part is None:
        gathering.in_folds.append(Members(path.name, fold, "test", ids))
    else:
        gathering.members.append(Members(path.name, fold, part, ids))
    gathering.notes.append(
        f"{path.name}: {len(ids):,} utterances of {part or fold or 'one fold'}; "
        f"{columns.in_words()}"
    )


def _read_file(path: Path, root: Path | None, gathering: Gathering) -> None:
    if path.suffix.lower() not in ENDINGS:
        raise WrongUse(
            f"{path}: ser audit reads {', '.join(sorted(ENDINGS))}, .tar and .py, run folders, "
            "stores and corpora; save it as one of them"
        )
    if path.suffix.lower() == ".json":
        splits = splits_in_json(path, read_json(path))
        if splits:
            gathering.splits += splits
            gathering.notes.append(f"{path.name}: {len(splits)} folds")
            return

    sheet = read_sheet(path)
    sheet = with_segment_ids(sheet)
    columns = find_columns(sheet, gathering.columns)
    prefixes = corpora_before_ids(sheet, columns)
    gathering.corpus_names.update(prefixes)
    file_heading = columns.file_beside_id(sheet)
    if file_heading is not None:
        ids = sheet.columns[columns.headings["id"]]
        files = sheet.columns[file_heading]
        gathering.recordings.update(names_of_recordings(ids, files, prefixes))
    part, fold = part_and_fold(path, root)
    name = str(path.relative_to(root)) if root else path.name
    count = f"{name}: {len(sheet):,}"

    if has_predictions(columns):
        gathering.notes.append(f"{count} predictions; {columns.in_words()}")
        _add_predictions(sheet, columns, fold, gathering)
        # Their truth is what is to be checked, so it says nothing here.
        gathering.utterances.append(utterances_of(sheet, columns, with_labels=False))
        return
    if is_history(columns):
        gathering.notes.append(f"{count} rows of a history; {columns.in_words()}")
        gathering.histories.append(read_history(sheet, columns))
        return
    if names_parts(sheet, columns) or part:
        said = columns.in_words()
        gathering.notes.append(f"{count} rows of a split{f' ({part})' if part else ''}; {said}")
        gathering.members += read_members(sheet, columns, part, fold)
        gathering.utterances.append(utterances_of(sheet, columns))
        return
    if "id" in columns and any(held in columns for held in ABOUT):
        gathering.notes.append(f"{count} utterances of a corpus; {columns.in_words()}")
        gathering.corpora.append(utterances_of(sheet, columns))
        return
    raise WrongUse(
        f"{path}: holds neither predictions nor a split nor a history that ser can tell; its "
        f"columns are {', '.join(sheet.headings) or 'none'}: say what they hold, such as "
        "--columns id=utt,truth=y,predicted=yhat"
    )


def _add_predictions(sheet: Sheet, columns: Columns, fold: str, gathering: Gathering) -> None:
    predictions, splits = read_predictions(sheet, columns)
    gathering.splits += splits
    if predictions.folds is None and fold:
        predictions = replace(predictions, folds=[fold] * len(predictions))
    seed = SEED_IN_A_NAME.search(sheet.path.stem)
    if predictions.seeds is None and seed is not None:
        predictions = replace(predictions, seeds=[seed[1]] * len(predictions))
    gathering.predictions.append(predictions)


def _check_columns_were_found(gathering: Gathering) -> None:
    """Raise `WrongUse` for a heading of `--columns` that no file has."""
    said = " ".join(gathering.notes)
    for held, heading in gathering.columns.items():
        if f"{held} = {heading}" not in said:
            raise WrongUse(
                f"--columns {held}={heading}: no file has a column {heading!r}; the columns as "
                f"they were taken: {'; '.join(gathering.notes) or 'none'}"
            )


def _systems(files: Sequence[Predictions]) -> list[Predictions]:
    """Files of predictions as systems.

    Files that share no utterance are the folds of one system; so are those whose names differ by
    their seed. Any other is a system of its own.
    """
    systems: list[Predictions] = []
    for predictions in files:
        for place, system in enumerate(systems):
            if _belong_together(system, predictions):
                systems[place] = _joined(system, predictions)
                break
        else:
            systems.append(predictions)
    return systems


def _belong_together(first: Predictions, second: Predictions) -> bool:
    if set(first.classes) != set(second.classes) and (first.probabilities is not None):
        return False
    if set(first.ids).isdisjoint(second.ids):
        return True
    if first.seeds is None or second.seeds is None:
        return False
    return set(first.seeds).isdisjoint(second.seeds)


def _joined(first: Predictions, second: Predictions) -> Predictions:
    probabilities = None
    both = first.probabilities is not None and second.probabilities is not None
    if both and first.classes == second.classes:
        assert first.probabilities is not None and second.probabilities is not None
        probabilities = np.concatenate([first.probabilities, second.probabilities])

    classes = first.classes
    if first.classes != second.classes:
        classes = sorted({*first.classes, *second.classes})
    return Predictions(
        source=f"{first.source}, {second.source}",
        ids=first.ids + second.ids,
        truth=first.truth + second.truth,
        predicted=first.predicted + second.predicted,
        classes=classes,
        probabilities=probabilities,
        folds=_joined_column(first.folds, second.folds),
        seeds=_joined_column(first.seeds, second.seeds),
        epochs=_joined_column(first.epochs, second.epochs),
    )


def _joined_column(first: list[str] | None, second: list[str] | None) -> list[str] | None:
    if first is None or second is None:
        return None
    return first + second


def _folds_in_turn(in_folds: Iterable[Members]) -> list[Split]:
    """Folds without parts: each one's utterances are tested there, and train in the others."""
    by_fold: dict[str, list[str]] = {}
    for members in in_folds:
        by_fold.setdefault(members.fold, []).extend(members.ids)

    splits = []
    for fold, tested in by_fold.items():
        trained: list[str] = []
        for other, ids in by_fold.items():
            if other != fold:
                trained += ids
        splits.append(Split("the files of folds", fold, {"train": trained, "test": tested}))
    return splits
