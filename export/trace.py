"""How a graph is written as ONNX."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from ser.train.train_jobs import one_thread

from .inputs import GraphInput
from .substitutes import OF_ONE_SEQUENCE, replaced

# A protobuf holds no more; weights beyond it lie beside the graph, in model.onnx.data.
PROTOBUF_BYTES = 1_900_000_000
NOISY = ("torch.onnx", "onnxscript", "onnx_ir", "onnxruntime")


class NoGraph(Exception):
    """Why a run cannot be written as ONNX, in words that follow "because"."""


def write_graph(
    graph: nn.Module,
    inputs: Sequence[GraphInput],
    outputs: Sequence[str],
    counts: dict[str, int],
    path: Path,
) -> None:
    """Trace the graph with inputs of these counts, and write it.

    Every axis with a name stays free. Raises `NoGraph` if torch's exporter cannot.
    """
    examples: list[torch.Tensor] = []
    # By their names alone: with bounds torch traces a second time, since it finds narrower ones,
    # which no operator of ONNX has.
    free_axes: list[dict[int, str]] = []
    for graph_input in inputs:
        dtype = getattr(torch, graph_input.dtype)
        examples.append(torch.zeros(graph_input.sized(counts), dtype=dtype))

        free: dict[int, str] = {}
        for number, axis in enumerate(graph_input.shape):
            if isinstance(axis, str):
                free[number] = axis
        free_axes.append(free)

    weights = sum(tensor.nbytes for tensor in graph.state_dict().values())
    try:
        with quietly(), replaced(OF_ONE_SEQUENCE, graph), torch.no_grad(), one_thread():
            torch.onnx.export(
                graph,
                tuple(examples),
                path,
                input_names=[graph_input.name for graph_input in inputs],
                output_names=list(outputs),
                dynamic_shapes=(tuple(free_axes),),
                dynamo=True,
                external_data=weights > PROTOBUF_BYTES,
                verbose=False,
            )
    except Exception as fault:  # torch's exporter raises nearly every kind
        raise NoGraph(_reason(fault)) from fault


def _reason(fault: BaseException) -> str:
    """The first line of what lies at the bottom of an exporter's error."""
    while fault.__cause__ is not None:
        fault = fault.__cause__
    lines = str(fault).strip().splitlines() or [type(fault).__name__]
    return lines[0][:200]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what torch's exporter says on its way."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
