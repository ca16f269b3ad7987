"""Looking inside: what the query tokens of a modality interaction transformer attend to."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ser.cache.feature import Feature
from ser.cache.store import Store
from ser.corpus.manifest import Manifest
from ser.errors import SerError

from ..attention import Attended, attend, audio_by_token, summed_spans
from ..cell import Cell, Cells
from ..elements import Card, Element, Note, Paragraph, Plot, Section, SideBySide, Word
from ..figures import AttentionMap, Points, attention_map, lines
from ..formats import COUNT, PERCENT, PERCENT_WITH_INTERVAL, TEXT
from ..table import Column, Row, Table, columns_of, evenly
from .notes import WITHOUT_TEXT

if TYPE_CHECKING:
    import pandas

TITLE = "Looking inside: what the query tokens attend to"
SPECIAL = "special tokens"  # [CLS], [SEP] and their like
SAMPLED = 40  # utterances behind the averages of attention
MAP_SPANS = 60  # of time in a heat map
TABLE_SPANS = 12  # of time in its table
SHOWN_WORDS = (3, 14)  # of the transcripts that are shown, as long as there are FEW of them
FEW = 8
WRONG_ANSWERS = 2  # that are shown


def inside(cells: Cells) -> Section | None:
    """What the query tokens attend to, on average and in single utterances.

    Of the cell with the highest UA that has any; None if there is none. What it cannot read, the
    section says.
    """
    with_query_tokens = [cell for cell in cells if cell.config.fusion.partition(":")[0] == "mit"]
    if not with_query_tokens:
        return None
    cell = with_query_tokens[0]
    store, manifest, lack = cell.origin
    if store is None or manifest is None:
        return _not_shown(cell, lack) if lack else None

    predictions = cell.judged[cell.judged.run == 0].join(cell.utterances.text, on="id")
    sampled = list(predictions.id.iloc[evenly(len(predictions), SAMPLED)])
    reasons = _chosen(cell, predictions)
    try:
        attended = attend(cell.runs[0], store, manifest, [*sampled, *reasons])
        if not cell.shows_text:
            attended = [_without_words(utterance) for utterance in attended]
        logmel = _logmel(store, manifest)
    except SerError as fault:
        return _not_shown(cell, str(fault))

    cards: list[Element] = []
    chosen = attended[len(sampled) :]
    for number, (utterance, reason) in enumerate(zip(chosen, reasons.values(), strict=True), 1):
        plot = _attention_plot(f"attention-{number}", utterance, logmel, manifest)
        cards.append(_card(cell, utterance, reason, plot))

    run = cell.runs[0].config
    return Section(
        "inside",
        TITLE,
        [
            Paragraph(
                f"One trained model of {cell.label} (seed {run.seed}, fold {run.fold}): the "
                "attention of its interaction transformer, mean over the heads of its last layer. "
                "The tokens have no fixed meaning, so another seed has other ones."
            ),
            SideBySide([_by_token(attended[: len(sampled)])]),
            Paragraph(_about_cards(has_energy=logmel is not None)),
            *([] if cell.shows_text else [Note(WITHOUT_TEXT)]),
            SideBySide(cards),
        ],
    )


def _without_words(utterance: Attended) -> Attended:
    """The same with the words by their number: "word 1", "word 2", …."""
    names: list[str | None] = []
    for number, text in enumerate(utterance.texts, 1):
        names.append(None if text is None else f"word {number}")
    return replace(utterance, texts=names)


def _not_shown(cell: Cell, fault: str) -> Section:
    words = Paragraph(f"The attention of {cell.label} cannot be shown: {fault}")
    return Section("inside", TITLE, [words])


def _about_cards(has_energy: bool) -> str:
    energy = (
        "The grey area above the seconds is the energy, the mean log-mel band in the store;"
        if has_energy
        else "No energy is drawn, since the store holds no log-mel features of this corpus;"
    )
    return (
        "Below, single utterances: the surest right answer of each class, and the surest wrong "
        f"ones. {energy} training and reports never read audio."
    )


def _logmel(store: Store, manifest: Manifest) -> Feature | None:
    """The first log-mel frames in the store that have rows of this corpus."""
    for feature in store.features():
        is_logmel = feature.spec.feature == "logmel" and feature.spec.level == "frame"
        if is_logmel and feature.rows(manifest):
            return feature
    return None


def _chosen(cell: Cell, predictions: "pandas.DataFrame") -> dict[str, str]:
    """Utterances to show, with the reason.

    The surest right one of each class, then the surest wrong ones.
    """
    words = predictions.text.fillna("").str.split().str.len()
    short = predictions[words.between(*SHOWN_WORDS)]
    pool = short if len(short) >= FEW else predictions
    reasons: dict[str, str] = {}

    right = pool[pool.right].sort_values("given", ascending=False, kind="stable")
    surest = right.drop_duplicates("truth").set_index("truth").id
    for truth, utterance in surest.reindex(cell.scores.classes).dropna().items():
        reasons[utterance] = f"{truth}, recognised"

    wrong = pool[~pool.right].sort_values("confidence", ascending=False, kind="stable")
    for answer in wrong[:WRONG_ANSWERS].itertuples():
        reasons[answer.id] = f"{answer.truth}, taken for {answer.predicted}"
    return reasons


def _card(cell: Cell, utterance: Attended, reason: str, plot: Plot) -> Card:
    """An utterance with its words by attention."""
    surest = int(utterance.probabilities.argmax())
    audio_percent = 100 * utterance.audio_share

    weights = (utterance.tokens @ utterance.words).tolist()
    weighed = [
        (text, weight)
        for text, weight in zip(utterance.texts, weights, strict=True)
        if text is not None
    ]
    heaviest = max((weight for _, weight in weighed), default=0) or 1
    return Card(
        title=f"{utterance.utterance}: {reason}",
        prediction=(
            f"Predicted {cell.scores.classes[surest]} with "
            f"{100 * utterance.probabilities[surest]:.0f} %."
        ),
        words_caption=(
            f"Words by attention; {100 - audio_percent:.0f} % of it goes to the text, "
            f"{audio_percent:.0f} % to the audio"
        ),
        words=[Word(text, weight / heaviest) for text, weight in weighed],
        plot=plot,
    )


def _by_token(attended: Sequence[Attended]) -> Plot:
    """The audio's share of each query token's attention."""
    rows: list[Row] = []
    points: Points = []
    for token, (share, pooling) in enumerate(audio_by_token(attended), 1):
        rows.append(
            {
                "query token": token,
                "to audio %": share,
                "its weight in the pooling %": pooling,
            }
        )
        points.append(("audio", token, share))
    return Plot(
        table=Table(
            name="tokens",
            caption=(
                "Attention to audio of each query token, and the middle 80 % of the utterances"
            ),
            columns=[
                Column("query token", COUNT),
                Column("to audio %", PERCENT_WITH_INTERVAL),
                Column("its weight in the pooling %", PERCENT),
            ],
            rows=rows,
        ),
        title="Which query token attends to which modality",
        draw=partial(
            lines,
            points,
            xlabel="query token",
            ylabel="audio’s share %",
            ylim=(-2, 102),
            joined=False,
        ),
        note=(
            f"Mean of {len(attended)} test utterances; bars: the middle 80 %. The rest goes to the "
            "words."
        ),
    )


def _attention_plot(
    name: str, utterance: Attended, logmel: Feature | None, manifest: Manifest
) -> Plot:
    """The attention of each query token over the seconds and the words.

    Above it stands the energy, if that is known.
    """
    frames = utterance.frames.shape[1]
    if utterance.hop:
        unit = "seconds"
        end = frames * utterance.hop
    else:
        unit = "frames"
        end = float(frames)

    spans = summed_spans(utterance.frames, MAP_SPANS)
    shown = AttentionMap(
        spans=spans,
        words=utterance.words,
        names=utterance.texts,
        over_time=utterance.tokens @ spans,
        end=end,
        unit=unit,
        energy=_energy(utterance, logmel, manifest),
    )
    return Plot(
        table=Table(
            name=name,
            caption=f"{utterance.utterance}: attention over seconds and words",
            columns=[
                *columns_of(TEXT, ["modality", "what"]),
                Column("attention %", PERCENT),
                Column("most by query token", COUNT),
            ],
            rows=_attention_rows(utterance, end, unit),
        ),
        title="Attention of each query token",
        draw=partial(attention_map, shown),
        note=(
            "Stronger colour, more attention; each map from 0 to its own maximum. ⟨⟩: special "
            "tokens."
        ),
    )


def _attention_rows(utterance: Attended, end: float, unit: str) -> list[Row]:
    """A line for each of a few spans of time, and for each word."""
    spans = summed_spans(utterance.frames, TABLE_SPANS)
    step = end / spans.shape[1]
    names = [f"{n * step:.2f}–{(n + 1) * step:.2f} {unit}" for n in range(spans.shape[1])]

    attended: list[tuple[str, str, np.ndarray]] = []
    for name, weights in zip(names, spans.T, strict=True):
        attended.append(("audio", name, weights))
    for word, weights in zip(utterance.texts, utterance.words.T, strict=True):
        attended.append(("text", word or SPECIAL, weights))

    rows: list[Row] = []
    for modality, name, weights in attended:
        rows.append(
            {
                "modality": modality,
                "what": name,
                "attention %": 100 * float(utterance.tokens @ weights),
                "most by query token": int(weights.argmax()) + 1,
            }
        )
    return rows


def _energy(
    utterance: Attended, logmel: Feature | None, manifest: Manifest
) -> tuple[np.ndarray, float] | None:
    """The mean over the bands of each log-mel frame [T], and the seconds between frames.

    None where it is not known, and where the attention has no clock.
    """
    if logmel is None or not utterance.hop:
        return None
    with suppress(SerError):
        packed = logmel.load(manifest, [manifest.ids.index(utterance.utterance)])
        return packed.values.astype(np.float64).mean(1), logmel.spec.hop or 0.01
    return None
