"""The top of HuBERT base from cached rows against the whole model on waveforms, step by step.

The plain way reads files, and runs Hugging Face's whole model in every step, with its lower layers
frozen, or none. Weights are random, and so is the audio: neither changes the work. Dropout is off,
so that both ways make the same update.

Counted, in GFLOP for a second of speech, at a mean length of 4.5 s (2 FLOP for each product):

    convolutions of the waveform     4.9       positions and projection     0.5
    a layer forward                  0.74

So the lower 10 layers are 12.8 forward, and the top 2 are 1.5 forward and 2.9 backward. The bound
of the ratio is (12.8 + 4.4) / 4.4 = 3.9 against a frozen prefix, and 3 · 14.3 / 4.4 = 9.7 against
training everything, where every FLOP costs the same; convolutions cost more of them on a CPU.

Memory is counted too: weights, gradients, Adam's two moments, and what the batch of the longest
utterances keeps for the backward pass.
"""

import copy
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser.benchmarks.compare import compare, row
from ser.benchmarks.iemocap_sizes import durations
from ser.train.activations import kept_bytes
from ser.train.models import FUSIONS
from ser.train.models.batch import Batch, Sequences
from ser.train.models.encoder_front import with_encoders
from ser.train.models.encoders import Adapters, add_adapters, cut_top

RATE = 16000
TOP = 2
RANK = 8
BATCH = 4
UTTERANCES = 12
CLASSES = 4


class Steps:
    """An epoch of training in three ways, on the same utterances in batches of like lengths."""

    def __init__(
        self, config: Mapping[str, Any], seconds: np.ndarray, folder: Path, device: str = "cpu"
    ) -> None:
        import transformers

        torch.manual_seed(0)
        random = np.random.default_rng(0)
        hubert = transformers.HubertConfig(
            **config,
            layerdrop=0.0,
            mask_time_prob=0.0,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
        )
        self.device = device
        self.model = transformers.HubertModel(hubert).eval().to(device)
        self.head = nn.Linear(hubert.hidden_size, CLASSES).to(device)

        self.files = []
        for number, length in enumerate(np.sort(seconds)):
            samples = random.normal(size=int(length * RATE)).astype(np.float32)
            self.files.append(folder / f"{number}.wav")
            sf.write(self.files[-1], samples, RATE, "FLOAT")
        self.labels = torch.arange(len(self.files), device=device) % CLASSES

        top = cut_top(copy.deepcopy(self.model), TOP)
        fusion = with_encoders(FUSIONS["superb"], {"audio": lambda: top}, {"audio": "mean"})
        settings = fusion.settings(hidden=hubert.hidden_size)
        self.ours = fusion.build(settings, {"audio": hubert.hidden_size}, CLASSES)
        # The same head as the plain way's.
        self.ours.projector = nn.Identity()
        self.ours.logits = copy.deepcopy(self.head)
        self.ours.to(device)
        self.rows = self._cached_rows(hubert.num_hidden_layers - TOP)

    def _cached_rows(self, layer: int) -> list[Tensor]:
        """The rows of the layer below, of each utterance, as a store holds them."""
        rows = []

        def keep(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows.append(args[0][0].half().cpu())

        hook = self.model.encoder.layers[layer].register_forward_pre_hook(keep)
        with torch.no_grad():
            for file in self.files:
                samples, _ = sf.read(file, dtype="float32")
                self.model(torch.from_numpy(samples)[None].to(self.device))
        hook.remove()
        return rows

    def batches(self) -> list[range]:
        """Of utterances of like lengths."""
        firsts = range(0, len(self.files), BATCH)
        return [range(first, min(first + BATCH, len(self.files))) for first in firsts]

    def plain_epoch(self, trained_layers: int | None) -> list[float]:
        """The losses of Hugging Face's whole model, of which the top layers or all train."""
        return self._epoch(self._plain(trained_layers), self._plain_logits)

    def our_epoch(self) -> list[float]:
        """The losses of the top on cached rows."""
        return self._epoch(copy.deepcopy(self.ours), self._our_logits)

    def adapted_epoch(self) -> list[float]:
        """The losses of adapters of the top on cached rows."""
        return self._epoch(self._adapted(), self._our_logits)

    def adapted_bytes(self) -> int:
        """What training adapters takes."""
        return self._bytes(self._adapted(), self._our_logits)

    def _adapted(self) -> nn.Module:
        """Ours, with adapters in place of the layers."""
        model = copy.deepcopy(self.ours)
        top: Any = model.get_submodule("encoders.audio")
        add_adapters(top, Adapters(RANK, alpha=16.0, dropout=0.0))
        return model

    def plain_bytes(self, trained_layers: int | None) -> int:
        """What training takes the plain way."""
        return self._bytes(self._plain(trained_layers), self._plain_logits)

    def our_bytes(self) -> int:
        """What training the top takes."""
        return self._bytes(copy.deepcopy(self.ours), self._our_logits)

    def _plain(self, trained_layers: int | None) -> nn.ModuleDict:
        """Hugging Face's whole model and a head."""
        encoder = copy.deepcopy(self.model).requires_grad_(trained_layers is None)
        if trained_layers is not None:
            encoder.encoder.layers[-trained_layers:].requires_grad_(True)
        return nn.ModuleDict({"encoder": encoder, "head": copy.deepcopy(self.head)})

    def _plain_logits(self, model: Any, batch: range) -> Tensor:
        """From files."""
        waves = [sf.read(self.files[number], dtype="float32")[0] for number in batch]
        longest = max(len(wave) for wave in waves)
        padded = torch.stack(
            [F.pad(torch.from_numpy(wave), (0, longest - len(wave))) for wave in waves]
        )
        mask = torch.stack([torch.arange(longest) < len(wave) for wave in waves]).long()
        mask = mask.to(self.device)
        encoder = model["encoder"]
        hidden = encoder(padded.to(self.device), attention_mask=mask).last_hidden_state

        counts = encoder._get_feat_extract_output_lengths(mask.sum(1))
        places = torch.arange(hidden.shape[1], device=self.device)
        valid = (places < counts[:, None])[..., None]
        means = (hidden * valid).sum(1) / counts[:, None]
        logits: Tensor = model["head"](means)
        return logits

    def _our_logits(self, model: Any, batch: range) -> Tensor:
        """From cached rows."""
        rows = [self.rows[number] for number in batch]
        lengths = torch.tensor([len(of_utterance) for of_utterance in rows])
        values = torch.cat(rows).to(self.device).float()
        inputs = {"audio": Sequences(values, lengths)}
        logits: Tensor = model(Batch(inputs, torch.ones(len(rows), dtype=torch.int64)))["logits"]
        return logits

    def _epoch(self, model: nn.Module, logits_of: Callable[[Any, range], Tensor]) -> list[float]:
        """The losses of an epoch of updates."""
        adam = torch.optim.Adam([w for w in model.parameters() if w.requires_grad], lr=1e-4)
        losses = []
        for batch in self.batches():
            logits = logits_of(model, batch)
            losses.append(_update(logits, self.labels[list(batch)], adam))
        return losses

    def _bytes(self, model: nn.Module, logits_of: Callable[[Any, range], Tensor]) -> int:
        """Weights, gradients, Adam's moments, and the activations of the longest utterances."""
        weights = sum(weight.nbytes for weight in model.parameters())
        trained = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
        longest = self.batches()[-1]
        return weights + 3 * trained + kept_bytes(model, lambda: logits_of(model, longest))


def _update(logits: Tensor, labels: Tensor, adam: torch.optim.Optimizer) -> float:
    """One update; its loss."""
    loss = F.cross_entropy(logits, labels)
    adam.zero_grad()
    loss.backward()
    adam.step()
    return float(loss.detach())


def cases(rounds: int = 1) -> list[dict[str, Any]]:
    """An epoch of the top 2 layers of HuBERT base from the cache, against two plain ways."""
    seconds = durations(UTTERANCES, np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps({}, seconds, Path(folder))
        # Their words, the layers that train, and the least ratio.
        ways = [("frozen below", TOP, 3.5), ("all of it", None, 8.0)]
        rows = []
        for words, layers, target in ways:
            what = f"top {TOP} of HuBERT base from the cache ÷ {words}, from files"
            plain = partial(steps.plain_epoch, layers)
            rows.append(compare(what, plain, steps.our_epoch, target, rounds))
        ours = steps.our_bytes() / 1e6
        for words, layers, _ in ways:
            what = f"memory of the top {TOP} ÷ {words}, batches of {BATCH}"
            rows.append(row(what, steps.plain_bytes(layers) / 1e6, ours, "MB", None))

        if find_spec("peft") is not None:
            what = f"adapters of rank {RANK} ÷ the layers themselves, from the cache"
            rows.append(compare(what, steps.our_epoch, steps.adapted_epoch, None, rounds))
            rows.append(row(f"memory of {what}", ours, steps.adapted_bytes() / 1e6, "MB", None))
    return rows
