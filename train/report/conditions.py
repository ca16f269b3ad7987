"""Under which conditions cells were scored, and what keeps their numbers from being compared."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ser.train.data.leakage import alike_in_words
from ser.train.records import RunResult
from ser.train.run_folder import Run

if TYPE_CHECKING:
    from .cell import Cell, Cells

NOT_KNOWN = "whether test speakers are heard in training is not known"
NAMED = 4  # cells in a caution; of more, it says how many


def conditions(runs: Sequence[Run]) -> str:
    """Protocol, selection, labels and parts of a cell's finished runs.

    With a warning where a number is easier to win.
    """
    results = [run.result for run in runs]
    first = results[0]
    heard = heard_in_training(results)

    protocol = first.protocol
    if heard not in ("", NOT_KNOWN) or protocol.startswith("random"):
        protocol += " (speaker-dependent)"
    pieces = [protocol, heard, _repeated_audio(results), _alike_speakers(results)]

    selection = first.select
    if selection == "best-test":
        selection += " (epoch chosen on the TEST part)"
    pieces.append(selection)

    if first.classes:
        pieces.append(_labels(first))
    pieces.append(_target(runs[0]))
    for why in first.left_out:
        if why.startswith("--"):  # --only, --limit
            pieces.append(why.removeprefix("--"))

    if first.corpora:
        pieces.append(f"corpora {first.corpus}")
    if first.standardise_by == "corpus":
        pieces.append(_standardised_by_corpus(results))
    for name, value in parts(results).items():
        pieces.append(f"{name} {value}")
    return " · ".join(piece for piece in pieces if piece)


def _labels(result: RunResult) -> str:
    """The label policy, and which share of the labelled corpus it does not look at."""
    used = sum(result.parts.values())
    by_policy = 0
    for reason, n in left_out([result]).items():
        # What has no label is left out by nobody.
        if reason.startswith("label none "):
            continue
        used += n
        if reason.startswith("label "):
            by_policy += n

    if not by_policy:
        return result.labels
    return f"{result.labels} (leaves out {100 * by_policy / used:.1f} % of the corpus)"


def _repeated_audio(results: Sequence[RunResult]) -> str:
    """How many test utterances are heard in training under another id; "" where none is."""
    repeated = sum(result.repeated_audio or 0 for result in results)
    if not repeated:
        return ""
    tested = sum(result.n for result in results)
    return f"{repeated} of {tested} test utterances are in training under another id"


def _alike_speakers(results: Sequence[RunResult]) -> str:
    """Which test speakers may be heard in training under another spelling; "" where none is."""
    alike: dict[str, str] = {}
    for result in results:
        alike.update(result.alike_speakers)
    return alike_in_words(alike)


def _target(run: Run) -> str:
    """What the model learns, and the scale of ratings; "" where that is classes alone."""
    learns_ratings = run.result.moments is not None
    learns_votes = run.result.kl is not None
    if not learns_ratings and not learns_votes:
        return ""
    target = f"target {run.config.target}"
    if learns_ratings:
        target += f", rated {run.config.training['vad_scale']}"
    return target


def _standardised_by_corpus(results: Sequence[RunResult]) -> str:
    """That features are, and whether a corpus that is tested was standardised without training."""
    for result in results:
        for corpus in (result.corpora or {}).values():
            if corpus.test and not corpus.train:
                return (
                    "z-scored by corpus, the tested one by its own unlabelled speech: transductive"
                )
    return "z-scored by corpus"


def parts(results: Sequence[RunResult]) -> dict[str, str]:
    """How dev was cut, and n of each part.

    Where folds differ, the fewest and the most, such as "3,205–3,300".
    """
    cuts = []
    for result in results:
        cuts.append(f"{result.dev}, then refit" if result.refit else result.dev)

    named = {"dev": ", ".join(dict.fromkeys(cuts))}
    for part in results[0].parts:
        named[f"n {part}"] = size_range([result.parts[part] for result in results])
    return named


def size_range(sizes: Sequence[int]) -> str:
    """The least and the most, or the one that all are.

    >>> size_range([3300, 3205]), size_range([12, 12])
    ('3,205–3,300', '12')
    """
    ends = dict.fromkeys((min(sizes), max(sizes)))
    return "–".join(f"{size:,}" for size in ends)


def heard_in_training(results: Sequence[RunResult]) -> str:
    """How many speakers of the test parts are heard in training, or `NOT_KNOWN`; "" if none is."""
    if all(result.speaker_independent for result in results):
        return ""

    test_speakers: set[str] = set()
    heard: set[str] = set()
    for result in results:
        speakers = result.speakers
        if speakers is None:
            return NOT_KNOWN
        test_speakers.update(speakers)
        heard.update(name for name, is_heard in speakers.items() if is_heard)
    return f"{len(heard)} of {len(test_speakers)} test speakers are heard in training"


def left_out(results: Sequence[RunResult]) -> dict[str, int]:
    """Why utterances stand in no part → how many; the most of any fold where the folds differ."""
    counts: dict[str, int] = {}
    for result in results:
        for reason, ids in result.left_out.items():
            if reason.startswith("shares dialogues"):
                reason = "shares dialogues with the test speaker"
            n = len(ids) if isinstance(ids, list) else ids
            counts[reason] = max(counts.get(reason, 0), n)
    return counts


def caveat(results: Iterable[RunResult]) -> str | None:
    """One line for tables whose numbers say nothing about people, else None."""
    random_weights: set[str] = set()
    synthetic: set[str] = set()
    for result in results:
        random_weights.update(result.random_weights)
        if result.corpora:
            synthetic.update(name for name, corpus in result.corpora.items() if corpus.synthetic)
        elif result.synthetic:
            synthetic.add(result.corpus)

    reasons = []
    if random_weights:
        reasons.append(f"random weights ({', '.join(sorted(random_weights))})")
    if synthetic:
        reasons.append(f"synthetic corpus ({', '.join(sorted(synthetic))})")
    if not reasons:
        return None
    return f"{' and '.join(reasons)}: no comparison with the paper is meant"


def caution_of_unreal(cells: "Cells") -> str:
    """Why the scores of these cells say nothing about people, as a sentence; "" if they do."""
    results: list[RunResult] = []
    for cell in cells:
        results += cell.results
    text = caveat(results)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def cautions(cells: "Cells") -> list[str]:
    """What a reader must know before comparing any number of the report."""
    sentences = []
    unreal = caution_of_unreal(cells)
    if unreal:
        sentences.append(
            f"{unreal} The numbers show that everything works and say nothing about people."
        )

    on_test = [cell for cell in cells if cell.config.select == "best-test"]
    if on_test:
        sentences.append(
            f"The epoch was chosen on the TEST part, which lifts every number: {_named(on_test)}."
        )
    sentences += _cautions_of_speakers(cells)

    incomplete = [cell for cell in cells if not cell.whole]
    if incomplete:
        sentences.append(
            f"Runs are missing, so not every seed is scored on every fold: {_named(incomplete)}."
        )
    recut = [cell for cell in cells if cell.recut]
    if recut:
        sentences.append(
            "Folds of one name are cut in several ways, so utterances count several times: "
            f"{_named(recut)}. Report the runs of one cut alone."
        )
    return sentences + _cautions_of_differences(cells)


def _cautions_of_speakers(cells: "Cells") -> list[str]:
    """Which cells know their test speakers from training, or may."""
    heard = []
    not_known = []
    for cell in cells:
        speakers = heard_in_training(cell.results)
        if speakers == NOT_KNOWN:
            not_known.append(cell)
        elif speakers:
            heard.append(cell)

    sentences = []
    if heard:
        sentences.append(
            "Speakers of the test part are heard in training too, so scores are too high: "
            f"{_named(heard)}."
        )
    if not_known:
        sentences.append(
            "Whether test speakers are heard in training is not known, so scores may be too high: "
            f"{_named(not_known)}."
        )
    return sentences


def _cautions_of_differences(cells: "Cells") -> list[str]:
    """In what the cells differ beside their configuration, and what that bars."""
    by_cell = []
    for cell in cells:
        first = cell.results[0]
        by_cell.append(
            {
                "corpus": first.corpus,
                "protocol": first.protocol,
                "selection": first.select,
                "labels": first.labels,
                **parts(cell.results),
            }
        )
    names: dict[str, None] = {}
    for of_cell in by_cell:
        names.update(dict.fromkeys(of_cell))
    differing = []
    for name in names:
        values = {of_cell.get(name) for of_cell in by_cell}
        if len(values) > 1:
            differing.append(name)

    sentences = []
    barring = {"corpus", "protocol", "selection", "labels", "n test"}
    listed = ", ".join(differing)
    if barring.intersection(differing):
        sentences.append(f"The cells differ in {listed}: their numbers must not be compared.")
    elif differing:
        sentences.append(
            f"The cells differ in {listed}: what they differ by may be due to that alone."
        )

    folds = {tuple(cell.folds) for cell in cells}
    if "protocol" not in differing and len(folds) > 1:
        sentences.append(
            "The cells were not tested on the same folds: their numbers are of different "
            "utterances."
        )
    return sentences


def _named(cells: "list[Cell]") -> str:
    """The labels of some cells, and how many more there are."""
    labels = ", ".join(cell.label for cell in cells[:NAMED])
    if len(cells) > NAMED:
        return f"{labels} and {len(cells) - NAMED} more"
    return labels
