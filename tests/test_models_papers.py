"""Every fusion against its paper's equations written plainly.

MSMSER and Perspective also against torch's own layers.
"""

import copy
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ser.benchmarks.train import PlainMsmser, PlainPerspective, sinusoids
from ser.errors import WrongUse
from ser.tests import one_by_one
from ser.tests.small_models import DIMS, FRAMES, LONG, TINY, build, make_batch, parts, without
from ser.train.models import FUSIONS
from ser.train.models.batch import Batch, Sequences
from ser.train.models.consk_gcn import EDGE_TYPES, dialogue_graph
from ser.train.models.layers.layout import RaggedLayout
from ser.train.models.msmser import MsmserSettings, random_modality_masking
from ser.train.models.perspective import METHODS, POSITIONS, PerspectiveSettings
from ser.train.models.usc import UscSettings

pytestmark = pytest.mark.usefixtures("double")

MSMSER = (
    "mit",
    "mit:no-encoder",
    "mit:no-selfatt",
    "concat",
    "concat:rmm",
    "audio:frame",
    "text:token",
)
PERSPECTIVE = [f"{position}-{method}" for position in POSITIONS for method in METHODS]
short_and_long = pytest.mark.parametrize("frames", [FRAMES, LONG], ids=["short", "long"])

# What a model makes of a batch: its heads, by name.
Compute = Callable[[nn.Module, Batch], dict[str, Tensor]]


def make_dialogues(sizes: list[int], dims: dict[str, int] = DIMS) -> Batch:
    """Vectors of dialogues of these many turns."""
    n = sum(sizes)
    inputs = {}
    for modality, dim in dims.items():
        inputs[modality] = Sequences(torch.randn(n, dim), torch.ones(n, dtype=torch.int64))
    return Batch(
        inputs,
        dialogues=torch.tensor(sizes),
        speakers=torch.arange(n) % 2,
        truth=torch.randint(4, (n,)),
        utterances=torch.arange(n),
    )


def utterances(batch: Batch) -> list[dict[str, Tensor]]:
    """The rows of each utterance, by modality."""
    rows = []
    for utterance in parts(batch, [1] * len(batch)):
        rows.append({modality: x.values for modality, x in utterance.inputs.items()})
    return rows


def check_updates(
    ours: nn.Module,
    plain: nn.Module,
    heads_of: Compute,
    make: Callable[[], Batch],
    steps: int = 12,
    decay: float = 0.0,
) -> None:
    """Two models have the same heads at every training step.

    `heads_of` gives those of the plain one. They start with our weights, and in the end they have
    the same ones.
    """
    plain.load_state_dict(ours.state_dict())
    our_adam = torch.optim.Adam(ours.parameters(), 1e-3, weight_decay=decay)
    plain_adam = torch.optim.Adam(plain.parameters(), 1e-3, weight_decay=decay)

    for _ in range(steps):
        batch = make()
        our_heads = ours(batch)
        update(our_adam, our_heads, batch.truth)
        plain_heads = heads_of(plain, batch)
        update(plain_adam, plain_heads, batch.truth)
        torch.testing.assert_close(our_heads, plain_heads, rtol=0, atol=1e-12)

    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=0, atol=1e-10)


def update(adam: torch.optim.Adam, heads: dict[str, Tensor], truth: Tensor) -> None:
    """One step by the loss of all heads."""
    losses = [F.cross_entropy(logits, truth, reduction="sum") for logits in heads.values()]
    adam.zero_grad()
    sum(losses).backward()
    adam.step()


def by_dialogue(model: nn.Module, batch: Batch, of: Compute) -> dict[str, Tensor]:
    """The heads that a function of the model gives for one dialogue after the other."""
    alone = [of(model, dialogue) for dialogue in parts(batch, batch.dialogues.tolist())]
    return {head: torch.cat([heads[head] for heads in alone]) for head in alone[0]}


def attend(layer: nn.Module, x: Tensor, memory: Tensor, values: Tensor | None = None) -> Tensor:
    """Vaswani et al. 2017, §3.2.2: rows of x `[t, d]` attend to those of memory.

    They take the rows of `values`, which are those of memory too if they are not given.
    """
    if values is None:
        values = memory
    w_q, w_k, w_v = layer.in_proj_weight.chunk(3)
    b_q, b_k, b_v = layer.in_proj_bias.chunk(3)
    q = F.linear(x, w_q, b_q).unflatten(1, (layer.heads, -1))
    k = F.linear(memory, w_k, b_k).unflatten(1, (layer.heads, -1))
    v = F.linear(values, w_v, b_v).unflatten(1, (layer.heads, -1))

    queries = one_by_one.RaggedLayout(torch.tensor([len(x)]))
    keys = one_by_one.RaggedLayout(torch.tensor([len(memory)]))
    attended = one_by_one.attention(q, k, v, queries, keys, keep=layer.keep)
    return layer.out_proj(attended.flatten(1))


# MSMSER, for one utterance [t, d]


def refine(module: nn.Module, x: Tensor) -> Tensor:
    """§2.1."""
    x = module.project(x)
    for layer in module.encoder:
        x = layer.norm1(x + attend(layer.self_attn, x, x))
        x = layer.norm2(x + layer.linear2(layer.linear1(x).relu()))

    if module.scales is None:
        return x
    # One for each frame.
    scales = module.scales[2](module.scales[0](x).relu()).sigmoid()
    return x * scales


def pool(module: nn.Module, x: Tensor) -> Tensor:
    return (x @ module.score.weight[0]).softmax(0) @ x


def classify(module: nn.Module, z: Tensor) -> Tensor:
    return module[3](module[0](z).relu())


def with_mit(model: nn.Module, x: dict[str, Tensor]) -> Tensor:
    """§2.1 and §2.2."""
    mit = model.interaction
    audio = refine(model.audio, x["audio"])
    text = refine(model.text, x["text"])
    codes = sinusoids(50, audio.shape[1])
    audio = audio + codes[: len(audio)] + mit.types[0]
    text = text + codes[: len(text)] + mit.types[1]
    memory = torch.cat([audio, text])

    q = mit.queries
    for layer in mit.decoder:
        q = layer.norm1(q + attend(layer.self_attn, q, q))
        q = layer.norm2(q + attend(layer.multihead_attn, q, memory))
        q = layer.norm3(q + layer.linear2(layer.linear1(q).relu()))
    return classify(model.classifier, pool(mit.pool, q))


def without_mit(model: nn.Module, x: dict[str, Tensor]) -> Tensor:
    """§4.2."""
    pooled = []
    for modality in model.dims:
        refined = refine(model.refine[modality], x[modality])
        pooled.append(pool(model.pool[modality], refined))
    return classify(model.classifier, torch.cat(pooled))


@short_and_long
@pytest.mark.parametrize("name", MSMSER)
@pytest.mark.parametrize(
    "hidden",
    [
        pytest.param(["", "", "", ""], id="all shown"),
        pytest.param(["audio", "text", "", "text"], id="some hidden"),
        pytest.param(["audio"] * 4, id="no audio"),
        pytest.param(["text"] * 4, id="no text"),
    ],
)
def test_msmser_is_the_papers_sections(name, frames, hidden):
    """Also where an attention mask of zero hides a modality: of that there are no rows."""
    model = build(name)
    whole = make_batch(name, frames)
    is_hidden = {}
    for modality in whole.inputs:
        is_hidden[modality] = torch.tensor([lacks == modality for lacks in hidden])
    batch = without(whole, is_hidden)

    plain = with_mit if name.startswith("mit") else without_mit
    expected = torch.stack([plain(model, x) for x in utterances(batch)])
    torch.testing.assert_close(model(batch)["logits"], expected, rtol=0, atol=1e-10)


def test_msmsers_variants_lack_what_they_say():
    full = build("mit")
    assert len(full.audio.encoder) == len(full.text.encoder) == 2
    assert full.audio.scales is not None
    assert full.text.scales is not None

    no_encoder = build("mit:no-encoder")
    assert len(no_encoder.audio.encoder) == len(no_encoder.text.encoder) == 0
    assert no_encoder.audio.scales is not None
    assert no_encoder.text.scales is not None

    no_self_attention = build("mit:no-selfatt")
    assert len(no_self_attention.audio.encoder) == len(no_self_attention.text.encoder) == 2
    assert no_self_attention.audio.scales is None
    assert no_self_attention.text.scales is None

    assert not hasattr(build("concat"), "interaction")


def padded_utterances(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """What a model of padded utterances gives."""
    padded = {}
    lengths = {}
    for modality, sequences in batch.inputs.items():
        rows = sequences.values.split(sequences.lengths.tolist())
        padded[modality] = pad_sequence(list(rows), batch_first=True)
        lengths[modality] = sequences.lengths
    return model(padded, lengths)


@short_and_long
def test_msmser_equals_the_plain_model(frames):
    fields = MsmserSettings.__dataclass_fields__
    sizes = {name: value for name, value in TINY.items() if name in fields}
    ours = build("mit")
    plain = PlainMsmser(MsmserSettings(**sizes), DIMS, 4)
    check_updates(ours, plain, padded_utterances, partial(make_batch, "mit", frames))


@pytest.mark.parametrize("scale", [1, 2], ids=["100 epochs", "200 epochs"])
@pytest.mark.parametrize(
    ("epoch", "p"), [(0, 0.8), (7, 0.72), (35, 0.4), (63, 0.08), (70, 0.0), (99, 0.0)]
)
def test_masking_frequencies_are_the_stated_ones(epoch, p, scale):
    n = 200_000
    settings = MsmserSettings(epochs=100 * scale)
    generator = torch.Generator().manual_seed(1)
    hidden = random_modality_masking(settings, n, epoch * scale, generator)
    text = hidden["text"]
    audio = hidden["audio"]

    assert not (text & audio).any()
    tolerance = 4 * math.sqrt(0.25 / n)
    assert text.double().mean().item() == pytest.approx(0.6 * p, abs=tolerance)
    assert audio.double().mean().item() == pytest.approx(0.4 * p, abs=tolerance)
    assert (text | audio).any() == (p > 0)


# Perspective, for one dialogue


def fuse(method: str, fusion: nn.Module, a: Tensor, t: Tensor) -> Tensor:
    """§2.3 for one utterance."""
    if method == "add":
        return a + t  # eq. 1
    if method == "concat":
        return fusion.w_f(torch.cat([a, t]))  # eq. 2

    b = torch.stack([t, a], 1)  # columns
    p = torch.tanh(fusion.w_matrix.weight @ b)
    alpha = (fusion.w_vector.weight @ p)[0].softmax(0)
    return b @ alpha


def equations(model: nn.Module, dialogue: Batch, name: str) -> dict[str, Tensor]:
    """§2.2 and §2.3."""
    position, _, method = name.partition("-")

    def fused_at(where: str, x: dict[str, Tensor]) -> dict[str, Tensor]:
        if where != position:
            return x
        fused = []
        for a, t in zip(x["audio"], x["text"], strict=True):
            fused.append(fuse(method, model.fusion, a, t))
        return {**x, "fused": torch.stack(fused)}

    x = {}
    for modality, sequences in dialogue.inputs.items():
        x[modality] = model.features[modality](sequences.values).relu()

    x = fused_at("ef", x)
    x = {stream: model.gru[stream](rows)[0] for stream, rows in x.items()}
    x = fused_at("mf", x)
    x = {stream: attend(model.attention[stream], rows, rows) for stream, rows in x.items()}
    x = fused_at("lf", x)
    x = {stream: model.logits[stream](rows) for stream, rows in x.items()}
    x = fused_at("lgf", x)

    # Of one modality alone, its own are the logits.
    last = "fused" if method else position.removesuffix(":utterance")
    x["logits"] = x.pop(last)
    return x


@pytest.mark.parametrize("name", [*PERSPECTIVE, "audio:utterance", "text:utterance"])
def test_perspective_follows_the_papers_equations(name):
    dims = {modality: DIMS[modality] for modality in FUSIONS[name].inputs}
    plain = partial(by_dialogue, of=partial(equations, name=name))
    make = partial(make_dialogues, [3, 1, 5, 2], dims)
    check_updates(build(name), build(name), plain, make, steps=3, decay=1e-5)


def padded_dialogues(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """What a model of padded dialogues gives."""
    sizes = batch.dialogues
    padded = {}
    for modality, sequences in batch.inputs.items():
        turns = sequences.values.split(sizes.tolist())
        padded[modality] = pad_sequence(list(turns), batch_first=True)

    holds_a_turn = torch.arange(int(sizes.max())) < sizes[:, None]
    heads = model(padded, sizes)
    return {head: logits[holds_a_turn] for head, logits in heads.items()}


@pytest.mark.parametrize(
    "sizes",
    [[3, 1, 8, 2], [1, 1], [30, 5, 26]],
    ids=["padded attention", "single turns", "attention per dialogue"],
)
def test_perspective_equals_the_plain_model(sizes):
    settings = {"d_model": 16, "gru_hidden": 8, "heads": 4, "dropout": 0.0}
    ours = build("lgf-add", **settings)
    plain = PlainPerspective(PerspectiveSettings(**settings), DIMS, 4)
    check_updates(ours, plain, padded_dialogues, partial(make_dialogues, sizes), decay=1e-5)


def released_code(model: nn.Module, dialogue: Batch) -> dict[str, Tensor]:
    """What Luyizhe/SpeechEmotion@17036b9 computes: probabilities."""
    heads = {}
    for modality, sequences in dialogue.inputs.items():
        h, _ = model.gru[modality](model.features[modality](sequences.values))
        h = attend(model.attention[modality], h, h)
        h = model.hidden[modality](h).relu()
        heads[modality] = model.logits[modality](h)

    heads["logits"] = heads["audio"] + heads["text"]
    if hasattr(model.fusion, "w_matrix"):
        u = model.fusion.w_matrix(torch.stack([heads["text"], heads["audio"]], 1))  # [S, 2, K]
        weights = (u.relu() @ model.fusion.w_vector).softmax(1)
        heads["logits"] = torch.einsum("sik,si->sk", u, weights)
    return {head: logits.softmax(1) for head, logits in heads.items()}


@pytest.mark.parametrize("method", ["add", "at"])
def test_released_code_update_by_update(method):
    """Over updates of plain Adam; the score vector stays as it was."""
    ours = build(f"lgf-{method}", released=True, heads=4)
    plain = build(f"lgf-{method}", released=True, heads=4)
    start = copy.deepcopy(ours.state_dict())
    make = partial(make_dialogues, [3, 1, 5, 30, 2])
    check_updates(ours, plain, partial(by_dialogue, of=released_code), make, decay=1e-5)

    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, start[name]) == name.endswith("w_vector"), name


def test_released_code_drops_attention_weights():
    model = build("lgf-add", released=True, dropout=0.2)
    assert model.attention["text"].dropout == 0.2


def test_released_code_has_two_fusions():
    for name in [*PERSPECTIVE, "audio:utterance"]:
        has_released_code = "released" not in FUSIONS[name].unused
        assert has_released_code == (name in ("lgf-add", "lgf-at")), name


def test_released_code_trains_at_a_constant_rate():
    with pytest.raises(WrongUse, match="constant rate; leave lr_decay out"):
        build("lgf-add", released=True, lr_decay=0.0)


# USC, and the systems that the papers compare with


def bc_level(module, x):
    h, _ = module.lstm(x)
    z = module.dense(h).relu()
    return z, module.logits(z)


def concat_fuse(model, audio, text):
    return torch.cat([audio, text], 1)


def catf_level(module, x):
    h, _ = module.lstm(x)
    stars = []
    for i, h_t in enumerate(h):
        # Four turns have weights of their own; what comes later has the last one's.
        t = min(i, 3)
        p = torch.tanh(module.w_h[t] @ h.T)
        alpha = (module.w[t] @ p).softmax(0)
        r = h.T @ alpha
        stars.append(torch.tanh(module.w_p[t] @ r + module.w_x[t] @ h_t))

    star = torch.stack(stars)
    return star, module.logits(star)


def catf_fuse(model, audio, text):
    fused = [fuse("at", model.fuse, a, t) for a, t in zip(audio, text, strict=True)]
    return torch.stack(fused)


def two_levels(model, dialogue, level, fuse):
    audio, audio_logits = level(model.audio, dialogue.inputs["audio"].values)
    text, text_logits = level(model.text, dialogue.inputs["text"].values)
    _, logits = level(model.fusion, fuse(model, audio, text))
    return {"audio": audio_logits, "text": text_logits, "logits": logits}


bc_lstm = partial(two_levels, level=bc_level, fuse=concat_fuse)
catf_lstm = partial(two_levels, level=catf_level, fuse=catf_fuse)


def icon(model, dialogue):
    """Each turn with the histories of its own speaker and of the other.

    So the authors' code is given them.
    """
    u = torch.cat([dialogue.inputs["audio"].values, dialogue.inputs["text"].values], 1)
    logits = []
    for i, speaker in enumerate(dialogue.speakers):
        earlier = u[:i]
        is_own = dialogue.speakers[:i] == speaker

        m = torch.zeros(i, 8)
        for gru, turns in ((model.own, is_own), (model.other, ~is_own)):
            if turns.any():
                m[turns] = gru(earlier[turns])[0]
        m = torch.tanh(m)

        q = torch.tanh(model.query(u[i]))
        for gru in (model.influence, model.memory, model.memory):
            if i > 0:
                m = gru(m)[0]
            q = torch.tanh(q + torch.tanh(m @ q).softmax(0) @ m)
        logits.append(model.logits(q))
    return {"logits": torch.stack(logits)}


def roles_of(dialogue):
    """Who speaks, by the order of their first turns."""
    order = list(dict.fromkeys(dialogue.speakers.tolist()))
    return [order.index(speaker) for speaker in dialogue.speakers.tolist()]


def lian(model, dialogue):
    a = model.features["audio"](dialogue.inputs["audio"].values).relu()
    t = model.features["text"](dialogue.inputs["text"].values).relu()
    turns = []
    for a_i, t_i, role in zip(a, t, roles_of(dialogue), strict=True):
        z = fuse("at", model.fuse, a_i, t_i)
        turns.append(torch.cat([z, model.speakers.weight[min(role, 1)]]))

    h, _ = model.gru["fused"](torch.stack(turns))
    return {"logits": model.logits(attend(model.attention, h, h))}


def dann(model, dialogue):
    x = []
    for modality in ("audio", "text"):
        x.append(model.features[modality](dialogue.inputs[modality].values).relu())
    h, _ = model.gru["both"](torch.cat(x, 1))
    return {"logits": model.logits(attend(model.attention, h, h))}


def dutta(model, dialogue):
    """As the code has it: a two-layer GRU, `softmax(…, 1)`, and BERT's encoder over both."""
    states = {}
    heads = {}
    for modality in ("audio", "text"):
        stage_2 = getattr(model, modality)
        h = dialogue.inputs[modality].values
        for gru in stage_2.gru:
            h = gru(h)[0]

        attended = []
        for half, layer in ((h[:, :4], stage_2.forwards), (h[:, 4:], stage_2.backwards)):
            out = layer.map(half)[None]
            weights = torch.bmm(out, out.permute(0, 2, 1)).softmax(1)
            attended.append(torch.bmm(weights, out)[0])
        states[modality] = torch.cat(attended, 1)
        heads[modality] = stage_2.logits(states[modality])

    projected = [model.project[modality](states[modality]) for modality in ("text", "audio")]
    x = torch.cat(projected)
    for layer in model.encoder:
        x = layer.norm1(x + attend(layer.self_attn, x, x))
        x = layer.norm2(x + layer.linear2(F.gelu(layer.linear1(x))))
    text, audio = x.chunk(2)
    return {**heads, "logits": model.logits(torch.cat([text, audio], 1))}


def consk_gcn(model, dialogue):
    """Edge by edge, with a window of one turn before and after."""
    u = torch.cat([dialogue.inputs["audio"].values, dialogue.inputs["text"].values], 1)
    g = model.lstm_2(model.lstm_1(u)[0])[0]
    role = [min(number, 1) for number in roles_of(dialogue)]
    relational = model.relational
    relations = [
        sum(s * v for s, v in zip(share, relational.bases, strict=True))
        for share in relational.shares
    ]

    h = []
    neighbours_of = []
    for i in range(len(g)):
        neighbours = range(max(0, i - 1), min(len(g), i + 2))
        neighbours_of.append(neighbours)
        scores = []
        kinds = []
        for j in neighbours:
            cosine = F.cosine_similarity(g[i], model.semantic.map.weight @ g[j], dim=0)
            scores.append(1 - cosine.arccos() / math.pi)
            kinds.append(2 * (2 * role[i] + role[j]) + (0 if i < j else 1))
        alpha = torch.stack(scores).softmax(0)

        h_i = relational.root(g[i])
        for j, kind, weight in zip(neighbours, kinds, alpha, strict=True):
            h_i = h_i + weight / kinds.count(kind) * (g[j] @ relations[kind])
        h.append(h_i)

    logits = []
    for i, neighbours in enumerate(neighbours_of):
        summed = sum(h[j] for j in neighbours)
        convolved = model.own(h[i]) + model.neighbours(summed)
        dense = model.logits[0](torch.cat([convolved, g[i]])).relu()
        logits.append(model.logits[3](dense))
    return {"logits": torch.stack(logits)}


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        pytest.param("bc-lstm", bc_lstm, id="bc-lstm"),
        pytest.param("catf-lstm", catf_lstm, id="catf-lstm"),
        pytest.param("icon", icon, id="icon"),
        pytest.param("lian", lian, id="lian"),
        pytest.param("dann", dann, id="dann"),
        pytest.param("dutta", dutta, id="dutta"),
        pytest.param("consk-gcn:semantic", consk_gcn, id="consk-gcn"),
    ],
)
def test_dialogue_by_dialogue(name, plain):
    model = build(name)
    # The last dialogue has two turns more than have weights of their own in CATF-LSTM.
    batch = make_dialogues([3, 1, 6])
    batch.speakers = torch.tensor([0, 1, 1, 7, 2, 2, 3, 2, 3, 3])
    torch.testing.assert_close(model(batch), by_dialogue(model, batch, plain), rtol=0, atol=1e-10)


def test_graph_convolutions_are_those_of_torch_geometric():
    """Its RGCNConv, which knows no weights of edges, and its GraphConv."""
    geometric = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is not here")
    model = build("consk-gcn:semantic")
    layout = RaggedLayout(torch.tensor([3, 1, 6]))
    graph = dialogue_graph(torch.tensor([0, 1, 1, 0, 0, 0, 1, 0, 1, 1]), layout, window=2)
    g = torch.randn(10, 8)
    first = layout.lengths.cumsum(0) - layout.lengths

    edges = []
    for dialogue, kind, i, j in graph.types.nonzero().tolist():
        edges.append((first[dialogue] + j, first[dialogue] + i, kind))
    sources, targets, kinds = torch.tensor(edges).T
    index = torch.stack([sources, targets])

    rgcn = geometric.RGCNConv(8, 8, EDGE_TYPES, num_bases=3)
    rgcn.weight.data = model.relational.bases
    rgcn.comp.data = model.relational.shares
    rgcn.root.data = model.relational.root.weight.T
    rgcn.bias.data = model.relational.root.bias
    expected = rgcn(g, index, kinds)
    ones = torch.ones(3, 6, 6)
    ours = layout.unpad(model.relational(layout.pad(g), graph, ones))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)

    convolution = geometric.GraphConv(8, 8)
    convolution.lin_rel.load_state_dict(model.neighbours.state_dict())
    convolution.lin_root.load_state_dict(model.own.state_dict())
    padded = layout.pad(ours)
    summed = layout.unpad(graph.edges.to(padded.dtype) @ padded)
    ours = model.own(ours) + model.neighbours(summed)
    torch.testing.assert_close(ours, convolution(expected, index), rtol=0, atol=1e-12)


def test_the_speakers_gradient_is_reversed_and_grows():
    model = build("dann", adversary=0.5)
    model.speakers.add_head("speaker", 3)
    model.speakers.to(torch.float64)
    batch = make_dialogues([3, 2])
    speakers = torch.tensor([0, 1, 2, 1, 0])

    def gradients(progress: float) -> tuple[Tensor, Tensor]:
        model.zero_grad()
        batch.progress = progress
        F.cross_entropy(model(batch)["aux speaker"], speakers).backward()
        head = model.speakers.heads["speaker"].weight.grad.clone()
        return head, model.features["audio"].weight.grad.clone()

    # What a head without reversal sends back.
    model.zero_grad()
    h = torch.cat([model.features[m](batch.inputs[m].values).relu() for m in DIMS], 1)
    z = by_dialogue_gru(model, h, [3, 2])
    F.cross_entropy(model.speakers.heads["speaker"](z), speakers).backward()
    of_head = model.speakers.heads["speaker"].weight.grad.clone()
    of_encoder = model.features["audio"].weight.grad.clone()

    for progress, factor in ((0.0, 0.0), (0.1, 0.4621171572600098 / 2), (1.0, 0.99990920426 / 2)):
        head, encoder = gradients(progress)
        torch.testing.assert_close(head, of_head)
        torch.testing.assert_close(encoder, -factor * of_encoder, rtol=1e-9, atol=1e-15)

    model.eval()
    assert set(model(batch)) == {"logits"}


def by_dialogue_gru(model, x, sizes):
    """DANN's encoder behind the features, one dialogue after the other."""
    z = []
    for turns in x.split(sizes):
        h, _ = model.gru["both"](turns)
        z.append(attend(model.attention, h, h))
    return torch.cat(z)


def test_superb_on_layer_means_is_the_head_on_frames():
    """SUPERB's emotion head as s3prl has it, frame by frame."""
    name = "superb on layers"
    lengths = [5, 1, 200, 4]

    def make():
        batch = make_batch(name)
        batch.frames = torch.randn(sum(lengths), 3, 9).split(lengths)  # [t, layers, dim] each
        means = [frames.mean(0).flatten() for frames in batch.frames]
        batch.inputs["audio"].values = torch.stack(means)
        return batch

    def on_frames(model, batch):
        shares = model.layer_sums.weights["audio 0"].softmax(0)
        logits = []
        for frames in batch.frames:
            summed = sum(share * frames[:, layer] for layer, share in enumerate(shares))
            logits.append(model.logits(model.projector(summed).mean(0)))
        return {"logits": torch.stack(logits)}

    ours = build(name)
    check_updates(ours, build(name), on_frames, make)
    weights_were_trained = ours.layer_sums.weights["audio 0"].abs().min() > 1e-3
    assert weights_were_trained


def attentive_statistics(pool, h):
    """Okabe et al. 2018, eq. 4 to 7, of one utterance's frames `[t, d]`; in float64."""
    e = torch.tanh(h @ pool.hidden.weight.T + pool.hidden.bias) @ pool.score.weight[0]
    alpha = e.exp() / e.exp().sum()
    mean = (alpha[:, None] * h).sum(0)
    variance = (alpha[:, None] * h * h).sum(0) - mean * mean
    return torch.cat([mean, variance.clamp(min=1e-5).sqrt()])


def mean_and_deviation(pool, h):
    variance = h.var(0, correction=0)
    return torch.cat([h.mean(0), variance.clamp(min=1e-5).sqrt()])


@short_and_long
@pytest.mark.parametrize(
    "name", ["asp", "asp+text", "mean-std", "mean-std+text", "asp+text on layers"]
)
def test_statistics_of_each_utterance_and_the_challenges_head(name, frames):
    """The head as in the baseline's net/ser.py: Linear, LayerNorm, ReLU, Linear."""
    pool_one = mean_and_deviation if name.startswith("mean") else attentive_statistics

    def plain(model, batch):
        logits = []
        for utterance in utterances(batch):
            pooled = []
            for modality, rows in utterance.items():
                if "on layers" in name and modality == "audio":
                    shares = model.layer_sums.weights["audio 0"].softmax(0)
                    layers = rows.unflatten(1, (3, 9))
                    rows = (shares[:, None] * layers).sum(1)
                pooled.append(pool_one(model.pool[modality], rows))
            _, first, norm, _, _, last = model.head
            z = first(torch.cat(pooled))
            z = (z - z.mean()) / (z.var(correction=0) + 1e-5).sqrt() * norm.weight + norm.bias
            logits.append(last(z.relu()))
        return {"logits": torch.stack(logits)}

    check_updates(build(name), build(name), plain, lambda: make_batch(name, frames))


def concat_utterance(model, audio, text):
    both = torch.cat([audio, text], 1)
    return model.layers[4](model.layers[1](both).relu())[0]


def cma(model, audio, text):
    a, _ = model.encoder["audio"](audio)
    w, _ = model.encoder["text"](text)

    statistics = []
    for seen in (attend(model.attention["audio"], a, w), attend(model.attention["text"], w, a)):
        mean = seen.mean(0)
        variance = ((seen - mean) ** 2).mean(0)
        statistics.append(mean)
        statistics.append((variance + 1e-8).sqrt())
    return model.logits(torch.cat(statistics))


def gban(model, audio, text):
    def aligned(score, queries, keys):
        seen = []
        for q in queries:
            alpha = (torch.tanh(q + keys) @ score.weight[0]).softmax(0)
            seen.append(alpha @ keys)
        return torch.stack(seen).mean(0)

    windows = torch.stack([part.max(0).values for part in audio.split(2)])
    s, _ = model.lstm["audio"](windows)
    w, _ = model.lstm["text"](text)
    x_1 = aligned(model.score["audio"], s, w)
    x_2 = aligned(model.score["text"], w, s)
    x_3 = w[-1]
    x_4 = s[-1]

    z = torch.sigmoid(model.gates[0](torch.cat([x_1, x_2])))
    z_ = torch.sigmoid(model.gates[1](torch.cat([x_3, x_4])))
    h = z * torch.tanh(model.maps[0](x_1))
    h = h + (1 - z) * torch.tanh(model.maps[1](x_2))
    h = h + z_ * torch.tanh(model.maps[2](x_3))
    h = h + (1 - z_) * torch.tanh(model.maps[3](x_4))
    return model.logits[3](model.logits[0](h).relu())


def cme(model, audio, text):
    words = []
    for j, w in enumerate(text):
        first = j * len(audio) // len(text)
        end = (j + 1) * len(audio) // len(text)
        if end > first:
            frames = model.audio(audio[first:end])
            a = torch.cat([frames.mean(0), frames.max(0).values])
        else:
            a = torch.zeros(8)

        s = model.text(w)
        excited_s = s + s * torch.sigmoid(model.excite_text(a))
        excited_a = a + a * torch.sigmoid(model.excite_audio(w))
        words.append(torch.cat([excited_s, excited_a]))

    states, _ = model.lstm(torch.stack(words))
    return model.logits(states.max(0).values)


def ks_transformer(model, audio, text):
    def key_sparse(layer, x, memory):
        q = x + sinusoids(len(x), 8)
        if memory is None:
            return attend(layer, q, q, q)
        k = memory + sinusoids(len(memory), 8)
        return attend(layer, q, k, memory)

    def stack(module, x, memory=None):
        x = module.norm(x)
        if memory is not None:
            memory = module.memory_norm(memory)
        for layer in module.layers:
            x = layer.norm1(x + key_sparse(layer.self_attn, x, memory))
            x = layer.norm2(x + layer.linear2(layer.linear1(x).relu()))
        return x

    def branch(modality, x, y):
        z = x
        cross = model.cross[modality]
        for to_other, to_itself in ((cross[0], cross[1]), (cross[2], cross[3])):
            z = stack(to_other, z, y)
            z = stack(to_itself, z)
        return stack(model.last[modality], x + (z + x)).mean(0)

    a = stack(model.own["audio"], model.project["audio"](audio))
    t = stack(model.own["text"], model.project["text"](text))
    h = torch.cat([branch("audio", a, t), branch("text", t, a)])
    h = model.classifier[0](h).relu()
    h = model.classifier[3](h).relu()
    return model.classifier[6](h)


def cnn(model, audio, frames=40):
    """Zeros behind a clip's end, and what comes after `frames` cropped.

    3×3 convolutions with zeros around, LeakyReLU, the largest of each 2×2 or fewer.
    """
    cropped = audio[:frames]
    clip = F.pad(cropped, (0, 0, 0, frames - len(cropped)))[None]
    for layer in model.convolutions:
        if isinstance(layer, nn.Conv2d):
            clip = F.leaky_relu(F.conv2d(clip, layer.weight, layer.bias, padding=1))
            clip = F.max_pool2d(clip, 2, ceil_mode=True)

    first, last = [layer for layer in model.linear if isinstance(layer, nn.Linear)]
    return last(F.leaky_relu(first(clip.flatten())))


def bert(model, text):
    return model.linear[1](text[0])


# Frames, of 40 that a clip is padded or cropped to.
CLIPS = [12, 40, 75, 1]
# Thirteen MFCCs are the fewest that the CNN takes.
USC_DIMS = {"audio": 13, "text": 7}


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        pytest.param("concat:utterance", concat_utterance, id="concat"),
        pytest.param("cma", cma, id="cma"),
        pytest.param("gban", gban, id="gban"),
        pytest.param("cme", cme, id="cme"),
        pytest.param("ks-transformer", ks_transformer, id="ks-transformer"),
        pytest.param("cnn", cnn, id="cnn"),
        pytest.param("bert", bert, id="bert"),
    ],
)
def test_utterance_by_utterance(name, plain):
    model = build(name, USC_DIMS)
    batch = make_batch(name, CLIPS, USC_DIMS)
    expected = torch.stack([plain(model, **rows) for rows in utterances(batch)])
    torch.testing.assert_close(model(batch)["logits"], expected, rtol=0, atol=1e-10)


def test_uscs_late_fusion_adds_the_mapped_probabilities():
    model = build("cnn+bert", USC_DIMS)
    batch = make_batch("cnn+bert", CLIPS, USC_DIMS)
    rows = utterances(batch)
    audio = torch.stack([cnn(model.audio, x["audio"]) for x in rows])
    text = torch.stack([bert(model.text, x["text"]) for x in rows])

    mapped_audio = model.linear["audio"](audio.softmax(1))
    mapped_text = model.linear["text"](text.softmax(1))
    expected = {"audio": audio, "text": text, "logits": mapped_audio + mapped_text}
    torch.testing.assert_close(model(batch), expected, rtol=0, atol=1e-10)


def test_uscs_cnn_has_the_papers_layers():
    model = FUSIONS["cnn"].build(UscSettings(), {"audio": 80}, 5)
    kinds = [type(layer).__name__ for layer in model.modules()]
    assert kinds.count("Conv2d") == 5
    assert kinds.count("MaxPool2d") == 5
    assert kinds.count("Linear") == 2
    assert kinds.count("LeakyReLU") == 6
    assert all(layer.p == 0.6 for layer in model.modules() if isinstance(layer, nn.Dropout))

    clips = Sequences(torch.randn(900, 80).float(), torch.tensor([700, 200]))
    batch = Batch({"audio": clips}, torch.ones(2))
    assert model.float()(batch)["logits"].shape == (2, 5)
