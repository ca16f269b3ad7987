"""What is called while a graph is traced, in the place of the models' functions on packed rows."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

from torch import Tensor, nn

from ser.train.models import batch, cme, gban, icon
from ser.train.models.layers import gru, pooling, rnn
from ser.train.models.layers.layout import RaggedLayout, concatenate

from . import one_sequence, recurrent, token_frames, turn_histories

Functions = Mapping[Callable[..., Any], Callable[..., Any]]


def bigru(
    layers: nn.ModuleDict, x: Mapping[str, Tensor], layout: RaggedLayout
) -> dict[str, Tensor]:
    """Each stream's bi-directional GRU over its rows `[r, d]`; `[r, 2 H]`."""
    states: dict[str, Tensor] = {}
    for stream, rows in x.items():
        states[stream] = recurrent.recurrent(layers[stream], rows, layout)  # type: ignore[arg-type]
    return states


# Of one sequence: of one utterance, or of one dialogue.
OF_ONE_SEQUENCE: Functions = {
    RaggedLayout: one_sequence.layout_of,
    concatenate: one_sequence.concatenate,
    batch.vectors: one_sequence.vectors,
    pooling.max_rows: one_sequence.max_rows,
    rnn.recurrent: recurrent.recurrent,
    gru.bigru: bigru,
    gban.last_rows: one_sequence.last_rows,
    gban.pool_windows: one_sequence.pool_windows,
    cme.spoken_frames: token_frames.spoken_frames,
    cme.frames_of_tokens: token_frames.frames_of_tokens,
    icon.speaker_histories: turn_histories.speaker_histories,
    icon.rows_of_speakers: turn_histories.rows_of_speakers,
    icon.with_influence: turn_histories.with_influence,
}


@contextlib.contextmanager
def replaced(functions: Functions, model: nn.Module) -> Iterator[None]:
    """In the context, models call the value of each of `functions` where they call its key.

    That is, in the files of all models, and in those that `model` is made of.
    """
    files = {name for name in sys.modules if name.startswith("ser.train.models.")}
    files.update(type(part).__module__ for part in model.modules())

    # By identity: what a file holds may have no hash.
    substitutes = {id(function): substitute for function, substitute in functions.items()}
    with contextlib.ExitStack() as stack:
        for file in files:
            module = sys.modules[file]
            for name, value in list(vars(module).items()):
                substitute = substitutes.get(id(value))
                if substitute is not None:
                    stack.enter_context(mock.patch.object(module, name, substitute))
        yield
