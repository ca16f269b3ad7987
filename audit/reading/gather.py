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
from .class_names import (
    as_truth_is_named,
    class_names_in_json,
    class_names_in_table,
    renamed_predictions,
    with_class_names,
)
from .columns import Columns, columns_of_classes, find_columns
from .corpora import is_store, read_corpus, read_store, utterances_of
from .histories import is_history, read_history
from .join_keys import join_keys, names_of_recordings
from .known_ids import known_utterances
from .parts import FOLD_IN_A_NAME
from .predictions import TRUTH_OF_CORPUS, has_predictions, read_predictions, sheet_with_truth
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
    class_names: list[dict[str, str]] = field(default_factory=list)
    """By what stands for them in files of predictions, the names of classes."""
    found: set[tuple[str, str]] = field(default_factory=set)
    """What a column of some file holds, and its heading."""
    without_ids: list[Path] = field(default_factory=list)
    """Files of predictions whose rows name no utterances."""
    without_truth: list[tuple[Sheet, Columns, str]] = field(default_factory=list)
    """Predictions whose truth the corpus must say, and the fold that their file names."""
    bare: list[tuple[Sheet, Columns, Columns, str]] = field(default_factory=list)
    """Tables with a column of numbers for each class: what their columns are if they are of a
    corpus, what if they are of predictions, and the fold."""
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
    _read_bare_tables(gathering)
    _read_predictions_without_truth(gathering)
    _check_columns_were_found(gathering)
    _check_ids_are_there(gathering)
    _name_classes(gathering)

    splits = [*gathering.splits, *join_members(gathering.members, "the files of parts")]
    splits += _folds_in_turn(gathering.in_folds)
    predictions = [*_systems(gathering), *_told_apart(gathering.of_runs)]
    if len(claims) > len(predictions) > 1:
        raise WrongUse(
            f"--claim is given {len(claims)} times, and there are {len(predictions)} systems; give "
            "one for each, in the order of the files"
        )

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
        value = read_json(path)
        splits = splits_in_json(path, value)
        if splits:
            gathering.splits += splits
            gathering.notes.append(f"{path.name}: {len(splits)} folds")
            return
        names = class_names_in_json(value)
        if names:
            _add_class_names(path, names, gathering)
            # s3prl's files list utterances too.
            if "meta_data" not in value:
                return

    sheet = read_sheet(path)
    names = class_names_in_table(sheet)
    if names:
        _add_class_names(path, names, gathering)
        return
    sheet = with_segment_ids(sheet)
    columns = find_columns(sheet, gathering.columns)
    gathering.found.update(columns.headings.items())
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

    if has_predictions(sheet, columns):
        if "truth" not in columns and "id" in columns:
            gathering.without_truth.append((sheet, columns, fold))
        else:
            _add_predictions(sheet, columns, fold, gathering)
        return
    of_classes = columns_of_classes(sheet, columns)
    if of_classes is not None:
        gathering.bare.append((sheet, columns, of_classes, fold))
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
    predictions, splits, said = read_predictions(sheet, columns)
    gathering.splits += splits
    if predictions.folds is None and fold:
        predictions = replace(predictions, folds=[fold] * len(predictions))
    seed = SEED_IN_A_NAME.search(sheet.path.stem)
    if predictions.seeds is None and seed is not None:
        predictions = replace(predictions, seeds=[seed[1]] * len(predictions))
    gathering.predictions.append(predictions)

    note = f"{sheet.path.name}: {len(sheet):,} predictions; {columns.in_words()}{said}"
    if "id" in columns:
        # Their truth is what is to be checked, so it says nothing here.
        gathering.utterances.append(utterances_of(sheet, columns, with_labels=False))
    else:
        gathering.without_ids.append(sheet.path)
        note += "; no column names the utterances, so what hangs on them is not checked"
    gathering.notes.append(note)


def _add_class_names(path: Path, names: dict[str, str], gathering: Gathering) -> None:
    gathering.class_names.append(names)
    pairs = [f"{key} is {name}" for key, name in names.items()]
    gathering.notes.append(f"{path.name}: names of {len(names)} classes; {', '.join(pairs)}")


def _name_classes(gathering: Gathering) -> None:
    """Call the classes as the files say that name them, and in all systems alike."""
    for place, predictions in enumerate(gathering.predictions):
        for names in gathering.class_names:
            named = with_class_names(predictions, names)
            if named is not None:
                gathering.predictions[place] = named
                break

    for place, predictions in enumerate(gathering.predictions[1:], 1):
        others = [*predictions.truth, *predictions.predicted, *predictions.classes]
        renamed = as_truth_is_named(gathering.predictions[0].truth, others)
        if renamed:
            gathering.predictions[place] = renamed_predictions(predictions, renamed)


def _read_bare_tables(gathering: Gathering) -> None:
    """Columns of classes are probabilities where nothing else is, and else a corpus's ratings."""
    has_others = gathering.predictions or gathering.of_runs or gathering.without_truth
    for sheet, of_corpus, of_predictions, fold in gathering.bare:
        if has_others and "id" in of_corpus:
            note = f"{sheet.path.name}: {len(sheet):,} utterances of a corpus"
            gathering.notes.append(f"{note}; {of_corpus.in_words()}")
            gathering.corpora.append(utterances_of(sheet, of_corpus))
        else:
            _add_predictions(sheet, of_predictions, fold, gathering)


def _read_predictions_without_truth(gathering: Gathering) -> None:
    """Predictions whose true classes are the labels that the corpus, or the ids, give them."""
    for sheet, columns, fold in gathering.without_truth:
        heading = columns.headings["id"]
        ids = [str(value).strip() for value in sheet.columns[heading]]
        labels = _labels_of(ids, gathering)
        with_truth = sheet_with_truth(sheet, columns, labels)
        if not len(with_truth):
            # Says what is missing.
            read_predictions(sheet, columns)
        columns = replace(columns, headings={**columns.headings, "truth": TRUTH_OF_CORPUS})
        _add_predictions(with_truth, columns, fold, gathering)
        left_out = len(sheet) - len(with_truth)
        if left_out:
            gathering.notes.append(
                f"{sheet.path.name}: {left_out:,} predictions are left out, of utterances whose "
                "label in the corpus is none of the classes, or is not known"
            )


def _labels_of(ids: Sequence[str], gathering: Gathering) -> list[str | None]:
    """The corpus's label of each utterance, or that its id says; None where nobody says it."""
    sources = [*gathering.corpora, *gathering.stored.values(), *gathering.utterances]
    keys = join_keys([ids, *sources], gathering.corpus_names, gathering.recordings)
    label_of: dict[str, str | None] = {}
    for key, utterance in known_utterances(dict.fromkeys(keys[id_] for id_ in ids)).items():
        label_of[key] = utterance.label
    for source in reversed(sources):
        for id_, utterance in source.items():
            if utterance.label is not None:
                label_of[keys[id_]] = utterance.label
    return [label_of.get(keys[id_]) for id_ in ids]


def _check_ids_are_there(gathering: Gathering) -> None:
    """Raise `WrongUse` if rows without ids would have to be compared with those of other files."""
    systems = len(gathering.predictions) + len(gathering.of_runs)
    if gathering.without_ids and systems > 1:
        raise WrongUse(
            f"{gathering.without_ids[0]}: no column names the utterances, so its rows cannot be "
            "compared with those of the other files: say which with --columns id=…, or audit it "
            "alone"
        )


def _check_columns_were_found(gathering: Gathering) -> None:
    """Raise `WrongUse` for a heading of `--columns` that no file has."""
    for held, heading in gathering.columns.items():
        if (held, heading) not in gathering.found:
            raise WrongUse(
                f"--columns {held}={heading}: no file has a column {heading!r}; the columns as "
                f"they were taken: {'; '.join(gathering.notes) or 'none'}"
            )


def _told_apart(of_runs: Sequence[Predictions]) -> list[Predictions]:
    """Those of runs, the second of a name called so."""
    counts: dict[str, int] = {}
    named = []
    for predictions in of_runs:
        source = predictions.source
        counts[source] = counts.get(source, 0) + 1
        if counts[source] > 1:
            predictions = replace(predictions, source=f"{source} ({counts[source]})")
        named.append(predictions)
    return named


def _systems(gathering: Gathering) -> list[Predictions]:
    """Files of predictions as systems.

    Files that share no utterance are the folds of one system; so are those whose names differ by
    their seed. Any other is a system of its own.
    """
    files = gathering.predictions
    if len(files) < 2:
        return files

    keys = join_keys([file.ids for file in files], gathering.corpus_names, gathering.recordings)
    systems: list[Predictions] = []
    for predictions in files:
        for place, system in enumerate(systems):
            if _belong_together(system, predictions, keys):
                systems[place] = _joined(system, predictions)
                break
        else:
            systems.append(predictions)
    return systems


def _belong_together(first: Predictions, second: Predictions, keys: Mapping[str, str]) -> bool:
    if set(first.classes) != set(second.classes) and (first.probabilities is not None):
        return False
    of_first = set(map(keys.__getitem__, first.ids))
    if of_first.isdisjoint(map(keys.__getitem__, second.ids)):
        return True
    if _family(first) != _family(second):
        return False
    return _trainings(first).isdisjoint(_trainings(second))


def _trainings(predictions: Predictions) -> set[tuple[str, str]]:
    """The seeds and folds of predictions; one without a name is any."""
    nothing = [""] * len(predictions)
    return set(zip(predictions.seeds or nothing, predictions.folds or nothing, strict=True))


def _family(predictions: Predictions) -> str:
    """The name of the first of its files, without the seed and the fold that it says."""
    name = predictions.source.partition(", ")[0]
    return FOLD_IN_A_NAME.sub("", SEED_IN_A_NAME.sub("", name))


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
