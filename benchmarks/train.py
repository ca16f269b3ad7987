"""Training packed against training the plain way: padded batches, torch's own modules, a
DataLoader.

The plain models have the parameter names of ours, so that the tests load one's weights into the
other and use them as an oracle. Sizes are IEMOCAP's; features are random, since they do not change
the work.
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
from ser.train.data.inputs import Inputs
from ser.train.models import FUSIONS, with_layer_sums
from ser.train.models.batch import Batch
from ser.train.models.msmser import MsmserSettings
from ser.train.models.perspective import PerspectiveSettings


class PlainPerspective(nn.Module):
    """LGF-ADD on padded dialogues, with torch's modules and the parameter names of `Perspective`."""

    def __init__(self, settings: PerspectiveSettings, dims: dict[str, int], classes: int) -> None:
        super().__init__()
        d, hidden = settings.d_model, settings.gru_hidden
        self.features = nn.ModuleDict({m: nn.Linear(dims[m], d) for m in ("audio", "text")})
        self.gru = nn.ModuleDict(
            {m: nn.GRU(d, hidden, bidirectional=True, batch_first=True) for m in dims}
        )
        self.attention = nn.ModuleDict(
            {m: nn.MultiheadAttention(2 * hidden, settings.heads, batch_first=True) for m in dims}
        )
        self.logits = nn.ModuleDict({m: nn.Linear(2 * hidden, classes) for m in dims})
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: dict[str, Tensor], lengths: Tensor) -> dict[str, Tensor]:
        """Padded vectors `[m, S, dim]` → padded logits `[m, S, K]`."""
        heads = {}
        for m, values in x.items():
            packed = pack_padded_sequence(
                F.relu(self.features[m](values)), lengths, batch_first=True, enforce_sorted=False
            )
            h = self.dropout(pad_packed_sequence(self.gru[m](packed)[0], batch_first=True)[0])
            padding = torch.arange(h.shape[1]) >= lengths[:, None]
            heads[m] = self.logits[m](
                self.dropout(self.attention[m](h, h, h, key_padding_mask=padding)[0])
            )
        return {"logits": heads["audio"] + heads["text"], **heads}


class PlainRefinement(nn.Module):
    """One modality of `PlainMsmser`: linear map, encoder and gate."""

    def __init__(self, settings: MsmserSettings, dim: int) -> None:
        super().__init__()
        d = settings.d_model
        shape = (d, settings.heads, settings.feed_forward * d, settings.dropout)
        self.project = nn.Linear(dim, d)
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(*shape, batch_first=True)
            for _ in range(settings.encoder_depth)
        )
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
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(*shape, batch_first=True)
            for _ in range(settings.decoder_depth)
        )
        self.pool = nn.ModuleDict({"score": nn.Linear(d, 1, bias=False)})

    def forward(self, parts: list[Tensor], paddings: list[Tensor]) -> Tensor:
        """Padded audio and text `[n, t, d]` → `[n, d]`."""
        parts = [
            x + sinusoids(x.shape[1], x.shape[2]).to(x) + self.types[i] for i, x in enumerate(parts)
        ]
        q = self.queries.expand(len(parts[0]), -1, -1)
        for layer in self.decoder:
            q = layer(q, torch.cat(parts, 1), memory_key_padding_mask=torch.cat(paddings, 1))
        return (self.pool["score"](q).softmax(1) * q).sum(1)


class PlainMsmser(nn.Module):
    """MSMSER Full on padded utterances, with torch's transformer layers and the parameter names of
    `Msmser`.
    """

    def __init__(self, settings: MsmserSettings, dims: dict[str, int], classes: int) -> None:
        super().__init__()
        d = settings.d_model
        self.audio, self.text = (
            PlainRefinement(settings, dims["audio"]),
            PlainRefinement(settings, dims["text"]),
        )
        self.interaction = PlainInteraction(settings)
        self.classifier = nn.Sequential(
            nn.Linear(d, d), nn.ReLU(), nn.Dropout(settings.dropout), nn.Linear(d, classes)
        )

    def forward(self, x: dict[str, Tensor], lengths: dict[str, Tensor]) -> dict[str, Tensor]:
        """Padded sequences `[n, t, dim]` and their lengths `[n]` → logits `[n, K]`."""
        paddings = {m: torch.arange(x[m].shape[1]) >= lengths[m][:, None] for m in x}
        refined = [
            self.audio(x["audio"], paddings["audio"]),
            self.text(x["text"], paddings["text"]),
        ]
        return {
            "logits": self.classifier(
                self.interaction(refined, [paddings["audio"], paddings["text"]])
            )
        }


def sinusoids(length: int, d: int) -> Tensor:
    """Position encodings (Vaswani et al. 2017, §3.5), float64 `[length, d]`, one position at a
    time.
    """
    angles = [[t / 10000 ** (2 * (i // 2) / d) for i in range(d)] for t in range(length)]
    table = torch.tensor(angles, dtype=torch.float64)
    return torch.where(torch.arange(d) % 2 == 0, table.sin(), table.cos())


def dialogue_lengths(utterances: int, generator: np.random.Generator) -> list[int]:
    """Labelled utterances of each dialogue: some 37 of them, as in the four-class IEMOCAP, 5,531 in
    151.
    """
    lengths: list[int] = []
    while sum(lengths) < utterances:
        lengths.append(int(np.clip(generator.lognormal(np.log(33), 0.45), 8, 110)))
    return lengths


def durations(n: int, generator: np.random.Generator) -> np.ndarray:
    """Seconds of n utterances, distributed as IEMOCAP's: median 3.52, 95th percentile 10.53, 0.585
    to 34.14.
    """
    return np.clip(generator.lognormal(np.log(3.52), 0.666, n), 0.585, 34.14)


def typical_batches(seconds: np.ndarray, size: int, steps: int) -> np.ndarray:
    """Of an epoch's shuffled batches, `steps` following ones that are padded as much as the whole
    epoch is.
    """
    batches = seconds[: len(seconds) // size * size].reshape(-1, size)
    groups = batches[: len(batches) // steps * steps].reshape(-1, steps, size)
    padded = size * groups.max(2).sum(1) / groups.sum((1, 2))
    epoch = size * batches.max(1).sum() / batches.sum()
    return groups[np.abs(padded - epoch).argmin()].reshape(-1)


def cases(rounds: int) -> list[dict[str, Any]]:
    """Rows for `make bench`: CPU seconds at one thread, least of the interleaved rounds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [*perspective_cases(rounds), *msmser_cases(rounds), superb_case(rounds)]
    finally:
        torch.set_num_threads(threads)


def perspective_cases(rounds: int) -> list[dict[str, Any]]:
    """One seed-epoch of LGF-ADD with the perspective loss on four sessions, 20 dialogues a batch,
    dropout off.
    """
    random = np.random.default_rng(0)
    lengths = dialogue_lengths(4290, random)
    n, dims = sum(lengths), {"audio": 6373, "text": 768}
    values = {
        m: torch.from_numpy(random.standard_normal((n, dim), dtype=np.float32))
        for m, dim in dims.items()
    }
    labels = torch.from_numpy(random.integers(4, size=n))
    settings = PerspectiveSettings(dropout=0.0)
    dialogues = np.split(np.arange(n), np.cumsum(lengths)[:-1])

    inputs = {m: Inputs(x, np.arange(n + 1)) for m, x in values.items()}
    model = FUSIONS["lgf-add"].build(settings, dims, 4)
    optimiser = torch.optim.Adam(
        model.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=True
    )

    def ours() -> None:
        order = torch.randperm(len(dialogues)).tolist()
        for start in range(0, len(order), settings.batch_size):
            batch = take(
                inputs, labels, [dialogues[i] for i in order[start : start + settings.batch_size]]
            )
            optimiser.zero_grad()
            losses = [
                F.cross_entropy(logits, batch.truth, reduction="sum")
                for logits in model(batch).values()
            ]
            torch.stack(losses).sum().backward()
            optimiser.step()

    plain = PlainPerspective(settings, dims, 4)
    plain.load_state_dict(model.state_dict())
    adam = torch.optim.Adam(plain.parameters(), settings.lr, weight_decay=settings.weight_decay)
    loader: DataLoader[Any] = DataLoader(
        [({m: x[rows] for m, x in values.items()}, labels[rows]) for rows in dialogues],  # type: ignore[arg-type]
        batch_size=settings.batch_size,
        shuffle=True,
        collate_fn=pad_dialogues,
    )

    def theirs() -> None:
        for x, truth, count in loader:
            adam.zero_grad()
            losses = [
                F.cross_entropy(
                    logits.flatten(0, 1), truth.flatten(), reduction="sum", ignore_index=-1
                )
                for logits in plain(x, count).values()
            ]
            torch.stack(losses).sum().backward()
            adam.step()

    return compare_both(f"Perspective LGF-ADD, an epoch of {n}", theirs, ours, (2.0, 2.6), rounds)


def msmser_cases(rounds: int, steps: int = 2) -> list[dict[str, Any]]:
    """A few updates of MSMSER Full in float32, 8 utterances a batch, dropout off."""
    random = np.random.default_rng(0)
    settings, dims = MsmserSettings(dropout=0.0), {"audio": 768, "text": 768}
    seconds = typical_batches(durations(5531, random), settings.batch_size, steps)
    lengths = {
        "audio": np.ceil(seconds * 50 - 1).astype(int),
        "text": np.ceil(seconds * 3.2 + 2).astype(int),
    }
    values = {
        m: [
            torch.from_numpy(random.standard_normal((count, dims[m]), dtype=np.float32))
            for count in counts
        ]
        for m, counts in lengths.items()
    }
    labels = torch.from_numpy(random.integers(4, size=len(seconds)))
    batches = np.split(np.arange(len(seconds)), steps)

    inputs = {
        m: Inputs(torch.cat(x), np.concatenate([[0], lengths[m].cumsum()]))
        for m, x in values.items()
    }
    model = FUSIONS["mit"].build(settings, dims, 4)
    optimiser = torch.optim.Adam(model.parameters(), settings.lr, fused=True)

    def ours() -> None:
        for rows in batches:
            batch = take(inputs, labels, list(rows[:, None]))
            optimiser.zero_grad()
            F.cross_entropy(model(batch)["logits"], batch.truth).backward()
            optimiser.step()

    plain = PlainMsmser(settings, dims, 4)
    plain.load_state_dict(model.state_dict())
    adam = torch.optim.Adam(plain.parameters(), settings.lr)

    def theirs() -> None:
        for rows in batches:
            x = {m: pad_sequence([v[i] for i in rows], batch_first=True) for m, v in values.items()}
            count = {m: torch.from_numpy(lengths[m][rows]) for m in values}
            adam.zero_grad()
            F.cross_entropy(plain(x, count)["logits"], labels[torch.from_numpy(rows)]).backward()
            adam.step()

    return compare_both(f"MSMSER Full, {steps} updates of 8", theirs, ours, (1.6, 2.4), rounds)


def superb_case(rounds: int, steps: int = 2) -> dict[str, Any]:
    """A few updates of SUPERB's emotion head, 32 utterances of HuBERT base's 13 layers: on frames,
    and on their means.

    Both begin with the features in memory in float16 frames and float32 means, as the store has
    them, and end with Adam's step; the plain way pads, as s3prl does.
    """
    random, (layers, dim), size = np.random.default_rng(0), (13, 768), 32
    lengths = np.ceil(typical_batches(durations(5531, random), size, steps) * 50 - 1).astype(int)
    frames = [torch.randn(count, layers, dim).half() for count in lengths]
    labels = torch.from_numpy(random.integers(4, size=len(lengths)))
    batches = np.split(np.arange(len(lengths)), steps)
    fusion = with_layer_sums(FUSIONS["superb"], {"audio": [(layers, dim)]})
    means = torch.stack([one.float().mean(0).flatten() for one in frames])
    inputs, settings = {"audio": Inputs(means, np.arange(len(means) + 1))}, fusion.settings()
    model, plain = (fusion.build(settings, {"audio": layers * dim}, 4) for _ in range(2))
    adams = [torch.optim.Adam(one.parameters(), settings.lr, fused=True) for one in (model, plain)]
    projector, last = plain.projector, plain.logits
    shares = plain.get_parameter("layer_sums.weights.audio 0")

    def step(adam: torch.optim.Adam, logits: Tensor, truth: Tensor) -> None:
        adam.zero_grad()
        F.cross_entropy(logits, truth).backward()
        adam.step()

    def ours() -> None:
        for rows in batches:
            batch = take(inputs, labels, list(rows[:, None]))
            step(adams[0], model(batch)["logits"], batch.truth)

    def theirs() -> None:
        for rows in batches:
            x = pad_sequence(
                [frames[i] for i in rows], batch_first=True
            ).float()  # [n, t, layers, dim]
            summed = (x * shares.softmax(0)[:, None]).sum(2)
            projected = projector(summed)  # type: ignore[operator]
            pooled = torch.stack(
                [one[:count].mean(0) for one, count in zip(projected, lengths[rows], strict=True)]
            )
            step(adams[1], last(pooled), labels[torch.from_numpy(rows)])  # type: ignore[operator]

    return compare(
        f"SUPERB's emotion head, {steps} updates of {size}, on means of layers",
        theirs,
        ours,
        50.0,
        rounds,
    )


def compare_both(
    what: str,
    plain: Callable[[], None],
    ours: Callable[[], None],
    targets: tuple[float, float],
    rounds: int,
) -> list[dict[str, Any]]:
    """Ours in float32 and, where the CPU multiplies bfloat16 itself, in bfloat16, each against
    plain in float32.
    """

    def rounded() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            ours()

    bf16 = targets[1] if torch.cpu._is_avx512_bf16_supported() else None
    return [
        compare(f"{what}, float32", plain, ours, targets[0], rounds),
        compare(f"{what}, bfloat16", plain, rounded, bf16, rounds),
    ]


def take(inputs: dict[str, Inputs], labels: Tensor, groups: list[np.ndarray]) -> Batch:
    """The packed batch of the given dialogues or utterances, as `Dataset.batch` cuts it."""
    rows = np.concatenate(groups)
    utterances = torch.from_numpy(rows)
    taken = {m: x.take(rows) for m, x in inputs.items()}
    dialogues = torch.tensor([len(group) for group in groups])
    return Batch(taken, dialogues, truth=labels[utterances], utterances=utterances)


def pad_dialogues(items: list[Any]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Padded vectors `[m, S, dim]`, padded labels (-1 where there is none) and lengths, as a
    DataLoader gives them.
    """
    xs, truths = zip(*items, strict=True)
    x = {m: pad_sequence([each[m] for each in xs], batch_first=True) for m in xs[0]}
    return (
        x,
        pad_sequence(list(truths), batch_first=True, padding_value=-1),
        torch.tensor([len(t) for t in truths]),
    )
