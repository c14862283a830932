"""The bench: passes of clusters as they are repeated under the stopwatch. This file imports torch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from muplan.errors import DeviceError
from muplan.model.graph import ModelGraph
from muplan.profiling.clustering import Segment
from muplan.profiling.measured.modules import PassShape, SegmentModule, pass_shape
from muplan.profiling.measured.points import Measurement, Point
from muplan.profiling.measured.stopwatch import Run, Stopwatch, Timing

_CACHE_BYTES = 128 << 20
"""Weights of the copies that a run goes through: more than twice any last-level cache at hand, so that every
pass reads its weights from memory, as it would in the whole model."""
_LEAST_PASSES = 4
"""Passes of a run, so that starting it does not count."""
_STEADY_SPREAD, _TRIES, _COOL_S = 0.05, 3, 2.0


class Bench:
    """The clusters of one model on one device.

    Parameters
    ----------
    members
        The segments of each cluster type.
    counts
        How often each type stands in the model.
    """

    def __init__(
        self,
        graph: ModelGraph,
        members: Sequence[tuple[Segment, ...]],
        counts: Sequence[int],
        stopwatch: Stopwatch,
    ) -> None:
        self._graph, self._members, self._counts = graph, members, counts
        self._stopwatch = stopwatch
        self._type = -1
        self._copies: list[list[SegmentModule]] = []

    def measure(self, point: Point, *, with_power: bool) -> Measurement:
        """Time a point; one that is not steady is tried again, and the steadiest try counts.

        Raises
        ------
        DeviceError
            The pass does not fit in the device's memory.
        """
        shape = pass_shape(point.phase, point.batch, point.tokens)
        try:
            with torch.inference_mode():
                return self._measure(point, shape, with_power=with_power)
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"{self._graph.name}, {point.phase}: a batch of {point.batch} × {point.tokens} tokens does"
                f" not fit in the device's memory ({str(error).split('.')[0]}).",
                "Measure smaller batches or fewer tokens: --batches, --tokens.",
            ) from error

    def _measure(self, point: Point, shape: PassShape, *, with_power: bool) -> Measurement:
        run, num_passes = self._run(point.cluster_type, shape)
        run = self._stopwatch.prepared(run)
        best = self._stopwatch.time(run)
        for _ in range(_TRIES - 1):
            if _spread(best) <= _STEADY_SPREAD:
                break
            best = min(best, self._stopwatch.time(run), key=_spread)
        drawn = self._stopwatch.draw(run, best.median_s) if with_power else None
        if drawn is not None and "thermal" in drawn.limits:
            time.sleep(_COOL_S)
            drawn = self._stopwatch.draw(run, best.median_s)
        return Measurement(
            latency_s=best.median_s / num_passes,
            low_s=best.low_s / num_passes,
            high_s=best.high_s / num_passes,
            power_w=drawn.power_w if drawn else None,
            sm_clock_mhz=drawn.sm_clock_mhz if drawn else None,
            temperature_c=drawn.temperature_c if drawn else None,
            limits=drawn.limits if drawn else (),
        )

    def _run(self, cluster_type: int, shape: PassShape) -> tuple[Run, int]:
        """A run through all copies of a cluster, and how many passes it is."""
        if cluster_type != self._type:
            self._type, self._copies = cluster_type, []
            self._copies = self._make(cluster_type)
        device = self._stopwatch.device
        generator = torch.Generator(device).manual_seed(0)
        entering = self._copies[0][0].reads(shape, device, generator)

        rounds = math.ceil(_LEAST_PASSES / len(self._copies))

        def run() -> None:
            for copy in self._copies * rounds:
                flowing = entering
                for module in copy:
                    flowing = module(flowing, shape)

        return run, len(self._copies) * rounds

    def _make(self, cluster_type: int) -> list[list[SegmentModule]]:
        """Copies of a cluster, each with weights of its own, no more than the model has."""
        members = self._members[cluster_type]
        size = sum(operator.weight_bytes for segment in members for operator in segment.operators)
        wanted = math.ceil(_CACHE_BYTES / max(size, 1))
        # Processors have no arithmetic of 2 bytes to speak of.
        dtype = torch.float32 if self._stopwatch.device.type == "cpu" else None
        with self._stopwatch.device:
            return [
                [SegmentModule(self._graph, segment.operators, dtype).eval() for segment in members]
                for _ in range(min(wanted, self._counts[cluster_type]))
            ]


def _spread(timing: Timing) -> float:
    return (timing.high_s - timing.low_s) / 2 / timing.median_s
