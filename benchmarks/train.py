"""Training packed against training the plain way.

The plain way is padded batches, torch's own modules, and a DataLoader. Its models have the
parameter names of ours, so that the tests load one's weights into the other and use them as an
oracle. Sizes are IEMOCAP's; features are random, since they do not change the work.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader

from ser.benchmarks.compare import compare
from ser.benchmarks.iemocap_sizes import (
    LABELLED,
    dialogue_lengths,
    durations,
    frame_counts,
    token_counts,
)
from ser.train.data.inputs import Inputs
from ser.train.models import FUSIONS, with_layer_sums
from ser.train.models.batch import Batch
from ser.train.models.msmser import MsmserSettings
from ser.train.models.perspective import PerspectiveSettings


class PlainPerspective(nn.Module):
    """LGF-ADD on padded dialogues, with torch's modules.

    The parameters have the names of `Perspective`.
    """

    def __init__(self, settings: PerspectiveSettings, dims: dict[str, int], classes: int) -> None:
        super().__init__()
        d = settings.d_model
        hidden = settings.gru_hidden
        features = {}
        gru = {}
        attention = {}
        logits = {}

        for m, dim in dims.items():
            features[m] = nn.Linear(dim, d)
            gru[m] = nn.GRU(d, hidden, bidirectional=True, batch_first=True)
            attention[m] = nn.MultiheadAttention(2 * hidden, settings.heads, batch_first=True)
            logits[m] = nn.Linear(2 * hidden, classes)

        self.features = nn.ModuleDict(features)
        self.gru = nn.ModuleDict(gru)
        self.attention = nn.ModuleDict(attention)
        self.logits = nn.ModuleDict(logits)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: dict[str, Tensor], lengths: Tensor) -> dict[str, Tensor]:
        """Padded vectors `[m, S, dim]` → padded logits `[m, S, K]`."""
        heads = {}

        for m, values in x.items():
            features = F.relu(self.features[m](values))

            packed = pack_padded_sequence(features, lengths, batch_first=True, enforce_sorted=False)
            packed_h, _ = self.gru[m](packed)
            h, _ = pad_packed_sequence(packed_h, batch_first=True)
            h = self.dropout(h)

            padding = torch.arange(h.shape[1]) >= lengths[:, None]
            attended, _ = self.attention[m](h, h, h, key_padding_mask=padding)
            heads[m] = self.logits[m](self.dropout(attended))

        return {"logits": heads["audio"] + heads["text"], **heads}


class PlainRefinement(nn.Module):
    """One modality of `PlainMsmser`: linear map, encoder and gate."""

    def __init__(self, settings: MsmserSettings, dim: int) -> None:
        super().__init__()
        d = settings.d_model
        shape = (d, settings.heads, settings.feed_forward * d, settings.dropout)

        self.project = nn.Linear(dim, d)

        self.encoder = nn.ModuleList()
        for _ in range(settings.encoder_depth):
            self.encoder.append(nn.TransformerEncoderLayer(*shape, batch_first=True))

        self.scales = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 1), nn.Sigmoid())

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """Padded rows `[n, t, dim]` → `[n, t, d]`."""
        x = self.project(x)
        for layer in self.encoder:
            x = layer(x, src_key_padding_mask=padding)

        return self.scales(x) * x


class PlainInteraction(nn.Module):
    """The modality interaction transformer of `PlainMsmser`."""

    def __init__(self, settings: MsmserSettings) -> None:
        super().__init__()
        d = settings.d_model
        shape = (d, settings.heads, settings.feed_forward * d, settings.dropout)

        self.queries = nn.Parameter(torch.zeros(settings.queries, d))
        self.types = nn.Parameter(torch.zeros(2, d))

        self.decoder = nn.ModuleList()
        for _ in range(settings.decoder_depth):
            self.decoder.append(nn.TransformerDecoderLayer(*shape, batch_first=True))

        self.pool = nn.ModuleDict({"score": nn.Linear(d, 1, bias=False)})

    def forward(self, parts: list[Tensor], paddings: list[Tensor]) -> Tensor:
        """Padded audio and text `[n, t, d]` → `[n, d]`."""
        placed = []
        for i, x in enumerate(parts):
            _, t, d = x.shape
            placed.append(x + sinusoids(t, d).to(x) + self.types[i])

        q = self.queries.expand(len(placed[0]), -1, -1)
        memory = torch.cat(placed, 1)
        padding = torch.cat(paddings, 1)
        for layer in self.decoder:
            q = layer(q, memory, memory_key_padding_mask=padding)

        shares = self.pool["score"](q).softmax(1)
        return (shares * q).sum(1)


class PlainMsmser(nn.Module):
    """MSMSER Full on padded utterances, with torch's transformer layers.

    The parameters have the names of `Msmser`.
    """

    def __init__(self, settings: MsmserSettings, dims: dict[str, int], classes: int) -> None:
        super().__init__()
        d = settings.d_model
        self.audio = PlainRefinement(settings, dims["audio"])
        self.text = PlainRefinement(settings, dims["text"])
        self.interaction = PlainInteraction(settings)
        self.classifier = nn.Sequential(
            nn.Linear(d, d), nn.ReLU(), nn.Dropout(settings.dropout), nn.Linear(d, classes)
        )

    def forward(self, x: dict[str, Tensor], lengths: dict[str, Tensor]) -> dict[str, Tensor]:
        """Padded sequences `[n, t, dim]` and their lengths `[n]` → logits `[n, K]`."""
        audio_padding = torch.arange(x["audio"].shape[1]) >= lengths["audio"][:, None]
        text_padding = torch.arange(x["text"].shape[1]) >= lengths["text"][:, None]

        audio = self.audio(x["audio"], audio_padding)
        text = self.text(x["text"], text_padding)
        fused = self.interaction([audio, text], [audio_padding, text_padding])
        return {"logits": self.classifier(fused)}


def sinusoids(length: int, d: int) -> Tensor:
    """Position encodings, float64 `[length, d]` (Vaswani et al. 2017, §3.5).

    They are computed one position and dimension at a time, as the paper writes them.
    """
    angles = []
    for t in range(length):
        angles.append([t / 10000 ** (2 * (i // 2) / d) for i in range(d)])

    table = torch.tensor(angles, dtype=torch.float64)
    return torch.where(torch.arange(d) % 2 == 0, table.sin(), table.cos())


def typical_batches(seconds: np.ndarray, size: int, steps: int) -> np.ndarray:
    """Of an epoch's shuffled batches, `steps` that follow each other and are typically padded.

    Their share of padding is nearest to that of the whole epoch.
    """
    # [batches, size] and [groups, steps, size]: what does not fill one is left out.
    batches = seconds[: len(seconds) // size * size].reshape(-1, size)
    groups = batches[: len(batches) // steps * steps].reshape(-1, steps, size)

    padding = size * groups.max(2).sum(1) / groups.sum((1, 2))
    padding_of_epoch = size * batches.max(1).sum() / batches.sum()
    typical = np.abs(padding - padding_of_epoch).argmin()
    return groups[typical].reshape(-1)


def cases(rounds: int) -> list[dict[str, Any]]:
    """Rows for `make bench`: CPU seconds at one thread, least of the interleaved rounds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [*perspective_cases(rounds), *msmser_cases(rounds), superb_case(rounds)]
    finally:
        torch.set_num_threads(threads)


def perspective_cases(rounds: int) -> list[dict[str, Any]]:
    """One seed-epoch of LGF-ADD with the perspective loss.

    Four sessions, 20 dialogues a batch, dropout off.
    """
    rng = np.random.default_rng(0)
    settings = PerspectiveSettings(dropout=0.0)
    dims = {"audio": 6373, "text": 768}

    # The dialogues of four sessions, with random vectors and labels.
    lengths = dialogue_lengths(4290, rng)
    n = sum(lengths)
    values = {}
    for m, dim in dims.items():
        values[m] = torch.from_numpy(rng.standard_normal((n, dim), dtype=np.float32))
    labels = torch.from_numpy(rng.integers(4, size=n))
    dialogues = np.split(np.arange(n), np.cumsum(lengths)[:-1])

    # Ours: packed rows.
    inputs = {m: Inputs(x, np.arange(n + 1)) for m, x in values.items()}
    model = FUSIONS["lgf-add"].build(settings, dims, 4)
    optimiser = torch.optim.Adam(
        model.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=True
    )

    def ours() -> None:
        order = torch.randperm(len(dialogues)).tolist()
        for start in range(0, len(order), settings.batch_size):
            chosen = [dialogues[i] for i in order[start : start + settings.batch_size]]
            batch = take(inputs, labels, chosen)

            losses = []
            for logits in model(batch).values():
                losses.append(F.cross_entropy(logits, batch.truth, reduction="sum"))

            optimiser.zero_grad()
            torch.stack(losses).sum().backward()
            optimiser.step()

    # Theirs: padded dialogues from a DataLoader.
    plain = PlainPerspective(settings, dims, 4)
    plain.load_state_dict(model.state_dict())
    adam = torch.optim.Adam(plain.parameters(), settings.lr, weight_decay=settings.weight_decay)

    items = []
    for rows in dialogues:
        vectors = {m: x[rows] for m, x in values.items()}
        items.append((vectors, labels[rows]))
    loader: DataLoader[Any] = DataLoader(
        items,  # type: ignore[arg-type]
        batch_size=settings.batch_size,
        shuffle=True,
        collate_fn=pad_dialogues,
    )

    def theirs() -> None:
        for x, truth, count in loader:
            losses = []
            for logits in plain(x, count).values():
                loss = F.cross_entropy(
                    logits.flatten(0, 1), truth.flatten(), reduction="sum", ignore_index=-1
                )
                losses.append(loss)

            adam.zero_grad()
            torch.stack(losses).sum().backward()
            adam.step()

    return compare_both(f"Perspective LGF-ADD, an epoch of {n}", theirs, ours, (2.0, 2.6), rounds)


def msmser_cases(rounds: int, steps: int = 2) -> list[dict[str, Any]]:
    """A few updates of MSMSER Full in float32, 8 utterances a batch, dropout off."""
    rng = np.random.default_rng(0)
    settings = MsmserSettings(dropout=0.0)
    dims = {"audio": 768, "text": 768}

    # Utterances of typical lengths, with random frames, tokens and labels.
    seconds = typical_batches(durations(LABELLED, rng), settings.batch_size, steps)
    lengths = {"audio": frame_counts(seconds), "text": token_counts(seconds)}
    values: dict[str, list[Tensor]] = {}
    for m, counts in lengths.items():
        values[m] = []
        for count in counts:
            rows = rng.standard_normal((count, dims[m]), dtype=np.float32)
            values[m].append(torch.from_numpy(rows))
    labels = torch.from_numpy(rng.integers(4, size=len(seconds)))
    batches = np.split(np.arange(len(seconds)), steps)

    # Ours: packed rows.
    inputs = {}
    for m, sequences in values.items():
        offsets = np.concatenate([[0], lengths[m].cumsum()])
        inputs[m] = Inputs(torch.cat(sequences), offsets)

    model = FUSIONS["mit"].build(settings, dims, 4)
    optimiser = torch.optim.Adam(model.parameters(), settings.lr, fused=True)

    def ours() -> None:
        for rows in batches:
            batch = take(inputs, labels, list(rows[:, None]))
            step(optimiser, model(batch)["logits"], batch.truth)

    # Theirs: padded sequences.
    plain = PlainMsmser(settings, dims, 4)
    plain.load_state_dict(model.state_dict())
    adam = torch.optim.Adam(plain.parameters(), settings.lr)

    def theirs() -> None:
        for rows in batches:
            x = {}
            count = {}
            for m, sequences in values.items():
                x[m] = pad_sequence([sequences[i] for i in rows], batch_first=True)
                count[m] = torch.from_numpy(lengths[m][rows])

            step(adam, plain(x, count)["logits"], labels[torch.from_numpy(rows)])

    return compare_both(f"MSMSER Full, {steps} updates of 8", theirs, ours, (1.6, 2.4), rounds)


def superb_case(rounds: int, steps: int = 2) -> dict[str, Any]:
    """A few updates of SUPERB's emotion head, on frames, and on their means.

    32 utterances a batch of HuBERT base's 13 layers. Both begin with the features in memory in
    float16 frames and float32 means, as the store has them, and end with Adam's step; the plain way
    pads, as s3prl does.
    """
    rng = np.random.default_rng(0)
    layers = 13
    dim = 768
    size = 32

    # Utterances of typical lengths, with random frames and labels.
    lengths = frame_counts(typical_batches(durations(LABELLED, rng), size, steps))
    frames = [torch.randn(count, layers, dim).half() for count in lengths]
    labels = torch.from_numpy(rng.integers(4, size=len(lengths)))
    batches = np.split(np.arange(len(lengths)), steps)

    # What ours reads: each utterance's means of all layers.
    means = torch.stack([utterance.float().mean(0).flatten() for utterance in frames])
    inputs = {"audio": Inputs(means, np.arange(len(means) + 1))}

    fusion = with_layer_sums(FUSIONS["superb"], {"audio": [(layers, dim)]})
    settings = fusion.settings()
    dims = {"audio": layers * dim}
    model = fusion.build(settings, dims, 4)
    plain = fusion.build(settings, dims, 4)
    our_adam = torch.optim.Adam(model.parameters(), settings.lr, fused=True)
    their_adam = torch.optim.Adam(plain.parameters(), settings.lr, fused=True)
    weights = plain.get_parameter("layer_sums.weights.audio 0")

    def ours() -> None:
        for rows in batches:
            batch = take(inputs, labels, list(rows[:, None]))
            step(our_adam, model(batch)["logits"], batch.truth)

    def theirs() -> None:
        for rows in batches:
            # [n, t, layers, dim]
            x = pad_sequence([frames[i] for i in rows], batch_first=True).float()
            summed = (x * weights.softmax(0)[:, None]).sum(2)
            projected = plain.projector(summed)  # type: ignore[operator]

            pooled = []
            for sequence, count in zip(projected, lengths[rows], strict=True):
                pooled.append(sequence[:count].mean(0))
            logits = plain.logits(torch.stack(pooled))  # type: ignore[operator]
            step(their_adam, logits, labels[torch.from_numpy(rows)])

    return compare(
        f"SUPERB's emotion head, {steps} updates of {size}, on means of layers",
        theirs,
        ours,
        50.0,
        rounds,
    )


def step(adam: torch.optim.Adam, logits: Tensor, truth: Tensor) -> None:
    """One update by the mean cross-entropy of a batch."""
    adam.zero_grad()
    F.cross_entropy(logits, truth).backward()
    adam.step()


def compare_both(
    what: str,
    plain: Callable[[], None],
    ours: Callable[[], None],
    targets: tuple[float, float],
    rounds: int,
) -> list[dict[str, Any]]:
    """Ours in float32 and in bfloat16, each against plain in float32.

    The target of bfloat16 holds where the CPU multiplies it itself.
    """
    float32_target, bfloat16_target = targets

    def ours_in_bfloat16() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            ours()

    in_hardware = torch.cpu._is_avx512_bf16_supported()
    return [
        compare(f"{what}, float32", plain, ours, float32_target, rounds),
        compare(
            f"{what}, bfloat16",
            plain,
            ours_in_bfloat16,
            bfloat16_target if in_hardware else None,
            rounds,
        ),
    ]


def take(inputs: dict[str, Inputs], labels: Tensor, groups: list[np.ndarray]) -> Batch:
    """The packed batch of the given dialogues or utterances, as `Dataset.batch` cuts it."""
    rows = np.concatenate(groups)
    utterances = torch.from_numpy(rows)
    sequences = {m: x.take(rows) for m, x in inputs.items()}
    dialogues = torch.tensor([len(group) for group in groups])
    return Batch(sequences, dialogues, truth=labels[utterances], utterances=utterances)


def pad_dialogues(items: list[Any]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Padded vectors `[m, S, dim]`, padded labels and lengths, as a DataLoader gives them.

    Labels are -1 where there is none.
    """
    vectors, truths = zip(*items, strict=True)

    x = {}
    for m in vectors[0]:
        x[m] = pad_sequence([dialogue[m] for dialogue in vectors], batch_first=True)

    truth = pad_sequence(list(truths), batch_first=True, padding_value=-1)
    lengths = torch.tensor([len(labels) for labels in truths])
    return x, truth, lengths
