"""Estimates of a forward service: the pipelines of its model that are within its limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from muplan.planning.estimates.clocking import least_bottleneck
from muplan.planning.estimates.estimate import Estimate, Shape
from muplan.planning.estimates.forward_costs import ForwardCosts
from muplan.planning.estimates.partition import contiguous_partition
from muplan.planning.estimates.pipelines import Pipelines, make_pipelines
from muplan.problem.problem import ResolvedService


class ForwardEstimator:
    """Estimates of one forward service on one pool at one tensor parallelism.

    Parameters
    ----------
    pipelines
        Those offered for the service's model, by shape.
    """

    def __init__(self, service: ResolvedService, costs: ForwardCosts, pipelines: Sequence[Pipelines]) -> None:
        self.service, self.costs = service, costs
        self._pipelines = pipelines

    def estimates(self) -> Iterator[Estimate]:
        """What can be in time if it waits for nothing, in every partition and at all clocks offered."""
        for pipelines in self._pipelines:
            yield from self._within(pipelines)

    def at(self, shape: Shape, clocks_mhz: tuple[int, ...]) -> Estimate | None:
        """The contiguous cut of least bottleneck at any clocks; None where the service cannot be there."""
        costs = self.costs
        known = set(costs.clocks_mhz).issuperset(clocks_mhz) and costs.num_stages is None
        if not known or costs.num_clusters < shape.num_stages:
            return None
        clocks = tuple(costs.clocks_mhz.index(clock_mhz) for clock_mhz in clocks_mhz)
        partition = contiguous_partition(least_bottleneck(costs.latency_s[:, 0, :], clocks))
        return next(self._within(make_pipelines(costs, shape, [(partition, clocks)])), None)

    def fastest(self) -> Estimate | None:
        """What fits the memory and completes a request first, in time or not; None where nothing fits."""
        found: list[Estimate] = []
        for pipelines in self._pipelines:
            num_levels = self._num_levels(pipelines)
            fits = self._fits(pipelines, num_levels)
            if fits.any():
                least = np.where(fits, pipelines.latency_s, np.inf).argmin()
                found += self._made(pipelines, num_levels, np.array([least]))
        return min(found, key=lambda item: item.latency_s, default=None)

    def _within(self, pipelines: Pipelines) -> Iterator[Estimate]:
        """Those that fit the memory and can be in time."""
        num_levels = self._num_levels(pipelines)
        within = self._fits(pipelines, num_levels) & (pipelines.latency_s <= self.service.limits.latency_s)
        yield from self._made(pipelines, num_levels, np.flatnonzero(within))

    def _num_levels(self, pipelines: Pipelines) -> NDArray[np.int64]:
        """How many batches of every choice may be formed within the limit; shape (choices,)."""
        in_time = pipelines.in_time_s[:, 1:] <= self.service.limits.latency_s
        most = np.array([len(levels) for levels in pipelines.levels])
        return np.asarray(np.minimum(1 + np.logical_and.accumulate(in_time, axis=1).sum(axis=1), most))

    def _fits(self, pipelines: Pipelines, num_levels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the memory holds every choice at its largest batch; shape (choices,)."""
        working = pipelines.working_bytes * self.costs.batches[num_levels - 1][:, None]
        return np.asarray((pipelines.weight_bytes + working <= self.costs.usable_bytes).all(axis=1))

    def _made(
        self, pipelines: Pipelines, num_levels: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> Iterator[Estimate]:
        max_batch = self.costs.batches[num_levels[rows] - 1]
        columns = zip(
            rows.tolist(),
            num_levels[rows].tolist(),
            max_batch.tolist(),
            pipelines.energy_j[rows].tolist(),
            pipelines.latency_s[rows].tolist(),
            pipelines.loaded_w[rows].tolist(),
            pipelines.peak_w[rows].tolist(),
            pipelines.weight_bytes[rows].tolist(),
            (pipelines.working_bytes[rows] * max_batch[:, None]).tolist(),
            strict=True,
        )
        for row, num, batch, energy_j, latency_s, loaded_w, peak_w, weights, working in columns:
            partition = pipelines.partitions[row]
            yield Estimate(
                service=self.service.name,
                shape=pipelines.shape,
                clocks_mhz=pipelines.clocks_mhz[row],
                stage_clusters=partition,
                levels=pipelines.levels[row][:num],
                max_batch=batch,
                energy_j=energy_j,
                standing_w=0.0,
                rate_limit_rps=0.0,
                guarded_rps=0.0,
                latency_s=latency_s,
                loaded_w=loaded_w,
                peak_w=tuple(peak_w),
                weight_bytes=tuple(weights),
                working_bytes=tuple(working),
                is_grouped=any(len(ranges) > 1 for ranges in partition),
            )
