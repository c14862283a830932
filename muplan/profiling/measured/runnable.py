"""Models that run, in parts: of a graph's operators, or of the calls that were captured. Imports torch."""

from __future__ import annotations

import zlib
from typing import Protocol

import torch
from torch import Tensor, nn

from muplan.model.graph import ModelGraph
from muplan.profiling.clustering import segments_of
from muplan.profiling.measured.modules import Batch, PassShape, SegmentModule


class PartModule(Protocol):
    """A part of a model on one device, an ``nn.Module``."""

    dtype: torch.dtype

    @property
    def num_layers(self) -> int:
        """Layers that keep keys and values."""

    @property
    def kv_shapes(self) -> tuple[tuple[int, int], ...]:
        """Heads, and elements of each, of the keys and of the values of each layer."""

    def reads(self, shape: PassShape, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Return a random input of a pass."""

    def __call__(self, entering: Tensor, batch: Batch) -> Tensor:
        """Run the part on what enters it."""


class RunnableModel(Protocol):
    """A model of which parts are made, from one cut to another."""

    def part(self, first: int, last: int) -> nn.ModuleList:
        """Make segments ``first`` to ``last`` (left out): modules to run one after the other.

        Every part has its own copy of the weights.

        Raises
        ------
        InputError
            Something in them cannot be run.
        """


def runnable_model(graph: ModelGraph, device: torch.device, *, seed: str) -> RunnableModel:
    """Make a model runnable on a device.

    Parameters
    ----------
    seed
        Random weights are drawn by it: they are equal in every process, wherever the model is cut.

    Raises
    ------
    InputError
        A captured model whose module cannot be made again.
    """
    return (BuiltModel if graph.captured_from is None else CapturedModel)(graph, device, seed)


class BuiltModel:
    """A model that is run as its operators say, with random weights."""

    def __init__(self, graph: ModelGraph, device: torch.device, seed: str) -> None:
        self._graph, self._device, self._seed = graph, device, seed
        self._segments = segments_of(graph)

    def part(self, first: int, last: int) -> nn.ModuleList:
        """As `RunnableModel` says; a module a segment."""
        # A processor has no arithmetic of 2 bytes to speak of.
        dtype = torch.float32 if self._device.type == "cpu" else None
        modules = []
        for number in range(first, last):
            torch.manual_seed(zlib.crc32(f"{self._seed} {number}".encode()))
            with self._device:
                modules.append(SegmentModule(self._graph, self._segments[number].operators, dtype))
        return nn.ModuleList(modules).eval()


class CapturedModel:
    """A captured model, with the weights that it was captured with, else random ones.

    The whole of it is made in the memory of the host; parts of it go to the device.
    """

    def __init__(self, graph: ModelGraph, device: torch.device, seed: str) -> None:
        from muplan.capture.source import recapture

        self._device = device
        self._captured = recapture(graph, seed=seed, dtype="float32" if device.type == "cpu" else None)
        origin = self._captured.graph.origin
        self._dtype: torch.dtype = getattr(torch, origin.dtype if origin else "float32")

    def part(self, first: int, last: int) -> nn.ModuleList:
        """As `RunnableModel` says; one module."""
        from muplan.profiling.measured.captured_modules import CapturedModule

        module = CapturedModule(self._captured, first, last, self._dtype)
        module.stage.take_copies(self._device)
        return nn.ModuleList([module]).eval()
