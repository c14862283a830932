"""Estimates of forward services: one pass over a whole request, batched."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from muplan.hardware.device import Device
from muplan.planning.estimates.estimate import (
    BatchLevel,
    ClusterTable,
    Estimate,
    Floats,
    Shape,
    batches_that_pay,
    cluster_bytes,
    forward_tables,
    same_node,
    stage_peaks,
    stage_sums,
    transfer_s,
)
from muplan.planning.estimates.partition import crossings, grouped_partitions, pareto_cuts
from muplan.planning.stated.model import PoolSupply, StageClusters
from muplan.problem.problem import ResolvedService
from muplan.profile import Phase, Profile
from muplan.serving.groups import loaded_power_w

_CUTS_KEPT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupingWorth:
    """What grouping by sensitivity is worth, in a sentence; a tie is worth nothing either way."""

    text: str
    is_tie: bool = False


class ForwardEstimator:
    """Estimates of one forward service on one pool at one tensor parallelism.

    Parameters
    ----------
    max_batch
        The largest batch that the planner may choose.
    num_stages
        The only number of stages, where the profile was measured stage by stage.
    overhead_s, stage_overhead
        As `muplan.workload.Serving`.
    cap_w
        Cap on the power of each GPU; clocks at which any cluster draws more are not used.
    """

    def __init__(
        self,
        service: ResolvedService,
        device: Device,
        supply: PoolSupply,
        *,
        tensor_parallel: int,
        max_batch: int,
        cap_w: float,
        num_stages: int | None = None,
        overhead_s: float = 0.0,
        stage_overhead: float = 0.0,
    ) -> None:
        self._service = service
        self._device = device
        self._supply = supply
        self._width = tensor_parallel
        self._profile: Profile = service.profiles[supply.name]
        self._num_stages = num_stages
        self._overhead_s, self._stage_overhead = overhead_s, stage_overhead
        self._tables = forward_tables(service, self._profile, tensor_parallel, max_batch, num_stages)
        self._weights = cluster_bytes(self._profile, tensor_parallel, "weight", num_stages)
        self._working = (
            cluster_bytes(self._profile, tensor_parallel, "activation_per_token", num_stages)
            * service.input_tokens
        )
        self._loaded_w = loaded_power_w(device, self._profile.clocks_mhz)
        self._peak_w = np.max([table.power_w for table in self._tables.values()], axis=0)
        self._near_s = self._transfers(1, near=True)
        self._far_s = self._transfers(1, near=False)
        self.clock_indices = tuple(
            index
            for index, clock in enumerate(self._profile.clocks_mhz)
            if self._peak_w[:, index].max() <= cap_w and clock in device.usable_clocks_mhz
        )

    @property
    def clocks_mhz(self) -> tuple[int, ...]:
        """Clocks that hold the cap on each GPU."""
        return tuple(self._profile.clocks_mhz[index] for index in self.clock_indices)

    def contiguous(self, num_stages: int, clock_indices: tuple[int, ...]) -> list[Estimate]:
        """Estimates of the cuts that are not dominated, at one clock for each stage."""
        shape = Shape(pool=self._supply.name, tensor_parallel=self._width, num_stages=num_stages)
        measured = self._profile.measured_cuts(self._width, num_stages) if self._num_stages else None
        if measured is not None:
            edges = (0, *measured)
            partition = tuple(((start, stop),) for start, stop in pairwise(edges))
            return [self._estimate(shape, clock_indices, partition)]
        slowest = self._tables[1].latency_s[:, clock_indices[0]]
        all_near = shape.num_gpus <= self._supply.gpus_per_node
        cuts = pareto_cuts(slowest, self._near_s if all_near else self._far_s, num_stages)
        return [self._estimate(shape, clock_indices, cut.stage_clusters) for cut in cuts[:_CUTS_KEPT]]

    def grouped(self) -> list[Estimate]:
        """Estimates of sensitivity-grouped partitions on two stages, at every pair of clocks where they pay.

        A pair pays where no contiguous two-stage partition under one clock is at least as good in
        energy, latency and bottleneck.
        """
        indices = np.array(self.clock_indices)
        if len(indices) == 0 or len(self._weights) < 2 or self._num_stages is not None:
            return []
        uniform = [self.contiguous(2, (int(index),) * 2)[0] for index in indices]
        rivals = np.array([(rival.energy_j, rival.latency_s, rival.bottleneck_s) for rival in uniform])
        shape = uniform[0].shape
        estimates = []
        for partition in self.grouped_partitions():
            points = self._pair_points(shape, partition, indices)
            beaten = (rivals[None, None] <= points[:, :, None] * (1 + 1e-9)).all(axis=-1).any(axis=-1)
            estimates += [
                self._estimate(shape, (int(indices[first]), int(indices[second])), partition)
                for first, second in np.argwhere(~beaten)
            ]
        return estimates

    @property
    def service_name(self) -> str:
        """Name of the service."""
        return self._service.name

    @property
    def model_name(self) -> str:
        """Name of the service's model."""
        return self._profile.model

    def grouping_worth(self) -> GroupingWorth:
        """Energy of a request on two stages, grouped by sensitivity against one clock."""
        limit_s = self._service.limits.latency_s
        indices = np.array(self.clock_indices)
        if self._num_stages is not None:
            text = f"{self.service_name} was measured stage by stage: its clusters cannot be regrouped."
            return GroupingWorth(text=text)
        if len(indices) == 0 or len(self._weights) < 2:
            return GroupingWorth(text=f"{self.service_name} cannot be split into two stages.")
        uniform = [self.contiguous(2, (int(index),) * 2)[0] for index in indices]
        contiguous = min((item.energy_j for item in uniform if item.latency_s <= limit_s), default=np.inf)
        partitions = self.grouped_partitions()
        if not partitions:
            text = f"grouping by sensitivity: the clusters of {self.service_name} respond alike to the clock."
            return GroupingWorth(text=text)
        grouped, moved_s = np.inf, 0.0
        for partition in partitions:
            points = self._pair_points(uniform[0].shape, partition, indices)
            within = points[..., 1] <= limit_s
            energy = float(np.where(within, points[..., 0], np.inf).min())
            if energy < grouped:
                grouped = energy
                moved_s = float(self._near_s[list(crossings(partition))].sum())
        if not np.isfinite(grouped) or not np.isfinite(contiguous):
            return GroupingWorth(
                text=f"grouping by sensitivity: on two stages {self.service_name} is not within its limit"
                f" ({'grouped' if np.isfinite(contiguous) else 'in any partition'}; modelled)."
            )
        change = grouped / contiguous - 1.0
        verdict = f"saves {-change:.1%}" if change < -5e-4 else "never pays"
        return GroupingWorth(
            is_tie=abs(change) < 5e-4,
            text=f"grouping by sensitivity {verdict}: {grouped:.2f} J a request on two GPUs with own clocks,"
            f" {contiguous:.2f} J under one; {moved_s * 1e3:.1f} ms of transfers (modelled).",
        )

    def grouped_partitions(self) -> tuple[StageClusters, ...]:
        """Two-stage partitions by sensitivity."""
        scores = self._profile.sensitivity_score(
            Phase.FORWARD, tensor_parallel=self._width, batch=1, tokens=self._service.input_tokens
        )
        return grouped_partitions(self._profile.cluster_type_index, scores)

    def _pair_points(self, shape: Shape, partition: StageClusters, indices: NDArray[np.int64]) -> Floats:
        """Energy, latency and bottleneck at every pair of clocks; shape (clocks, clocks, 3)."""
        table = self._tables[1]
        factor = self._stretch(shape)
        times = factor * stage_sums(table.latency_s, partition)[:, indices]
        above_w = table.power_w - self._loaded_w
        energy = factor * self._width * stage_sums(table.latency_s * above_w, partition)
        near = shape.num_gpus <= self._supply.gpus_per_node
        moved = float((self._near_s if near else self._far_s)[list(crossings(partition))].sum())
        return np.stack(
            [
                energy[0][indices][:, None] + energy[1][indices][None, :],
                times[0][:, None] + times[1][None, :] + moved + self._overhead_s,
                np.maximum(times[0][:, None], times[1][None, :]),
            ],
            axis=-1,
        )

    def _transfers(self, batch: int, *, near: bool) -> Floats:
        tokens = self._service.input_tokens * batch
        return transfer_s(self._device, self._profile, tokens, same_node=near)

    def _estimate(self, shape: Shape, clock_indices: tuple[int, ...], partition: StageClusters) -> Estimate:
        weights = stage_sums(self._weights, partition)
        working = stage_peaks(self._working, partition)
        room = float(np.min((self._device.usable_memory_bytes - weights) / np.maximum(working, 1.0)))
        fitting = [batch for batch in self._tables if batch <= room] or [1]
        levels = batches_that_pay(
            [self._level(shape, clock_indices, partition, batch) for batch in fitting],
            self._service.limits.latency_s,
        )
        max_batch = levels[-1].batch
        stages = range(shape.num_stages)
        peaks = stage_peaks(self._peak_w, partition)
        return Estimate(
            service=self._service.name,
            shape=shape,
            clocks_mhz=tuple(self._profile.clocks_mhz[index] for index in clock_indices),
            stage_clusters=partition,
            levels=levels,
            max_batch=max_batch,
            energy_j=self._stretch(shape) * self._energy_j(clock_indices, partition),
            standing_w=0.0,
            rate_limit_rps=0.0,
            guarded_rps=0.0,
            latency_s=levels[0].latency_s,
            loaded_w=self._width * float(self._loaded_w[list(clock_indices)].sum()),
            peak_w=tuple(float(peaks[stage, clock_indices[stage]]) for stage in stages),
            weight_bytes=tuple(float(weight) for weight in weights),
            working_bytes=tuple(float(size) * max_batch for size in working),
            is_grouped=any(len(ranges) > 1 for ranges in partition),
        )

    def _stage_s(
        self, table: ClusterTable, clock_indices: tuple[int, ...], partition: StageClusters
    ) -> Floats:
        sums = stage_sums(table.latency_s, partition)
        return np.array([sums[stage, index] for stage, index in enumerate(clock_indices)])

    def _level(
        self, shape: Shape, clock_indices: tuple[int, ...], partition: StageClusters, batch: int
    ) -> BatchLevel:
        times = self._stretch(shape) * self._stage_s(self._tables[batch], clock_indices, partition)
        stage_of = {
            cluster: stage
            for stage, ranges in enumerate(partition)
            for start, stop in ranges
            for cluster in range(start, stop)
        }
        moved = 0.0
        if shape.num_stages > 1:
            near = self._near_s if batch == 1 else self._transfers(batch, near=True)
            far = self._far_s if batch == 1 else self._transfers(batch, near=False)
            for index in crossings(partition):
                together = same_node(shape, self._supply.gpus_per_node, stage_of[index], stage_of[index + 1])
                moved += float((near if together else far)[index])
        latency_s = float(times.sum()) + moved + self._overhead_s
        return BatchLevel(batch=batch, bottleneck_s=float(times.max()), latency_s=latency_s)

    def _stretch(self, shape: Shape) -> float:
        """How much longer every stage takes for the stages there are."""
        return 1.0 + self._stage_overhead * shape.num_stages

    def _energy_j(self, clock_indices: tuple[int, ...], partition: StageClusters) -> float:
        table = self._tables[1]
        above = table.latency_s * (table.power_w - self._loaded_w)
        sums = stage_sums(above, partition)
        return float(self._width * sum(sums[stage, index] for stage, index in enumerate(clock_indices)))
