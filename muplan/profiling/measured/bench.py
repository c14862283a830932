"""The bench: passes of a model's clusters on a torch device. This file imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle

import torch
from torch import nn

from muplan.errors import DeviceError
from muplan.model.graph import ModelGraph
from muplan.profiling.clustering import Segment, segments_of
from muplan.profiling.measured.modules import PassShape, pass_shape
from muplan.profiling.measured.points import Point
from muplan.profiling.measured.runnable import runnable_model
from muplan.profiling.measured.torch_load import TorchLoad

_CACHE_BYTES = 128 << 20
"""Weights of the copies that a run goes through: more than twice any last-level cache at hand, so that every
pass reads its weights from memory, as it would in the whole model."""
_LEAST_PASSES = 4
"""Passes of a run on a GPU, so that starting it does not count."""


class TorchBench:
    """The clusters of one model on one torch device.

    Parameters
    ----------
    members
        The segments of each cluster type.
    counts
        How often each type stands in the model.
    use_graphs
        Capture runs as CUDA graphs, on a GPU.
    """

    def __init__(
        self,
        graph: ModelGraph,
        members: Sequence[tuple[Segment, ...]],
        counts: Sequence[int],
        device: torch.device,
        *,
        use_graphs: bool = True,
    ) -> None:
        self._graph, self._members, self._counts = graph, members, counts
        self._device, self._use_graphs = device, use_graphs
        self._model, self._segments = runnable_model(graph, device, seed=graph.name), segments_of(graph)
        self._type = -1
        self._copies: list[nn.ModuleList] = []

    def load(self, point: Point) -> TorchLoad:
        """Prepare a run through all copies of a point's cluster.

        Raises
        ------
        DeviceError
            The passes do not fit in the device's memory.
        """
        shape = pass_shape(point.phase, point.batch, point.tokens)
        try:
            with torch.inference_mode():
                return self._load(point.cluster_type, shape)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise DeviceError(
                f"{self._graph.name}, {point.phase}: a batch of {point.batch} × {point.tokens} tokens does"
                f" not fit in the device's memory ({str(error).split('.')[0]}).",
                "Measure smaller batches or fewer tokens: --batches, --tokens.",
            ) from error

    def _load(self, cluster_type: int, shape: PassShape) -> TorchLoad:
        if cluster_type != self._type:
            self._type, self._copies = cluster_type, []
            self._copies = self._make(cluster_type)
        copies, device = self._copies, self._device
        generator = torch.Generator(device).manual_seed(0)
        entering = copies[0][0].reads(shape, device, generator)

        def one_pass(copy: nn.ModuleList) -> None:
            flowing = entering
            for module in copy:
                flowing = module(flowing, shape)

        if device.type != "cuda":  # passes are long, and nothing is captured: a run is one, of the next copy
            following = cycle(copies)
            return TorchLoad(lambda: one_pass(next(following)), device)
        rounds = math.ceil(_LEAST_PASSES / len(copies))

        def run() -> None:
            for copy in copies * rounds:
                one_pass(copy)

        return TorchLoad(run, device, num_passes=len(copies) * rounds, use_graphs=self._use_graphs)

    def _make(self, cluster_type: int) -> list[nn.ModuleList]:
        """Copies of a cluster, each with weights of its own, no more than the model has."""
        members = self._members[cluster_type]
        size = sum(operator.weight_bytes for segment in members for operator in segment.operators)
        wanted = math.ceil(_CACHE_BYTES / max(size, 1))
        first = self._segments.index(members[0])
        return [
            self._model.part(first, first + len(members))
            for _ in range(min(wanted, self._counts[cluster_type]))
        ]
