"""What a GPU is given, tried without one: torch's meta device has shapes and no values.

Whoever asks it for a number, as every wait for a GPU does, fails there, and so does whoever mixes devices.
"""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ser.tests.plain_layers import CASES
from ser.train import fit_many
from ser.train.data.dataset import Inputs
from ser.train.data.features import load_dataset
from ser.train.data.splits import Fold
from ser.train.fit import make_optimiser, training_loss
from ser.train.models import with_layer_sums
from ser.train.models.ragged import RaggedLayout
from ser.train.models.stacked import Stack
from ser.train.settings import TrainConfig, has_setting, parse_settings

FEATURES = {"sequence": {"audio": "hubert", "text": "mpnet"}, "vector": {"audio": "is13", "text": "bert"}}
TINY = ("d_model=16", "heads=2", "gru_hidden=8", "lstm_hidden=8", "frames=48", "channels=2", "queries=3")


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_training_step_asks_the_gpu_for_nothing(store: Path, case: str) -> None:
    fusion, name = CASES[case], CASES[case].name
    features = {**FEATURES[fusion.level], **({"audio": "logmel"} if name.startswith("cnn") else {})}
    data, fusion = load_dataset(store, "+".join(features[m] for m in fusion.inputs), name)
    if case != name:
        fusion = with_layer_sums(fusion, {"audio": {"sums": [[2, data.dims["audio"] // 2]]}})
    settings, training = parse_settings(fusion, [setting for setting in TINY if has_setting(fusion, setting)])
    plan = TrainConfig(
        fusion, settings, training, loss="perspective" if fusion.stacks and len(fusion.inputs) == 2 else "single"
    )
    there = data.on("meta")
    assert there is data.on("meta") and data.on("cpu") is data
    model = fusion.build(settings, data.dims, len(data.utterances.classes)).to("meta")
    for stage in fusion.stages:
        optimiser = make_optimiser(dict(model.named_parameters()), stage, settings)
        [batch, *_] = there.batches(np.arange(12), fusion.unit, 4, {})
        assert {x.values.device.type for x in batch.inputs.values()} == {batch.device.type} == {"meta"}
        if fusion.hide:
            batch.hidden = fusion.hide(settings, len(batch), 0, torch.Generator().manual_seed(0))
        batch.heads = plan.heads(stage)
        outputs = model(batch)
        loss = training_loss(outputs, batch.truth, plan, stage)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with pytest.raises(RuntimeError):
            loss.item()  # the meta device does refuse


def test_what_travels_is_the_stored_dtype() -> None:
    stored = Inputs(torch.randn(9, 3).half(), np.array([0, 2, 5, 9]))
    there = stored.on(torch.device("meta"))
    taken = there.take(np.array([2, 0]))
    assert (taken.values.dtype, taken.values.shape, taken.values.device.type) == (torch.float16, (6, 3), "meta")
    assert taken.lengths.tolist() == [4, 2] and taken.lengths.device.type == "cpu"


@pytest.mark.parametrize("fusion", ["lgf-at", "ef-add", "mf-concat", "audio:utterance"])
def test_a_step_of_many_runs_asks_the_gpu_for_nothing(
    store: Path, fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its generators do not exist there: dropout is drawn elsewhere, and has its own tests."""

    def draw(self: Stack, *like: Any) -> list[Tensor]:
        return [torch.ones(*like[1].rows.shape, width, device=like[2][0].device) for width in self.widths(*like)]

    monkeypatch.setattr(Stack, "draw", draw)
    monkeypatch.setattr(fit_many, "Generator", lambda device="cpu": torch.Generator())
    monkeypatch.setattr(TrainConfig, "autocast", lambda plan: contextlib.nullcontext())  # the meta device has none
    data, found = load_dataset(store, "is13+bert" if "-" in fusion else "is13", fusion)
    settings, training = parse_settings(found, ("d_model=16", "gru_hidden=8", "heads=2", "batch_size=2"))
    config = TrainConfig(found, settings, training, device="meta", select="last")
    losses = ("single", "perspective") if "-" in fusion else ("single",)
    configs = [replace(config, loss=loss, seed=seed) for loss in losses for seed in (0, 1)]
    with pytest.raises(RuntimeError) as asked:
        fit_many.fit_many(data, Fold("1", np.arange(24), np.arange(0), np.arange(0)), configs)
    last = asked.traceback[-1]
    assert last.name == "fit_many" and "tolist" in str(last.statement), "asked at the end of the epoch, and there alone"


def test_layouts_are_made_where_the_lengths_are() -> None:
    layout = RaggedLayout(torch.tensor([2, 0, 3]), torch.device("meta"))
    assert (layout.sizes, layout.longest, layout.steps[2]) == ([2, 0, 3], 3, [2, 2, 1])
    there = (layout.owner, layout.position, layout.cells, layout.attended, layout.first(2), *layout.steps[:2])
    assert {x.device.type for x in there} == {"meta"}
