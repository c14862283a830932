"""Pipelines: a forward model on one shape of group, in several partitions and at several clocks.

They depend on model, request length and device alone, so services that share these share the pipelines;
a service adds its limit (`muplan.planning.estimates.forward`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.planning.estimates.clusters import Floats, same_node, stage_peaks, stage_sums
from muplan.planning.estimates.estimate import BatchLevel, Shape
from muplan.planning.estimates.forward_costs import ForwardCosts
from muplan.planning.estimates.partition import crossings
from muplan.planning.stated.model import StageClusters

_BATCH_GAIN = 0.95
"""A batch limit is doubled only where that lowers the time per request to this share or less."""

Choice = tuple[StageClusters, tuple[int, ...]]
"""A partition, and the index of each stage's clock."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pipelines:
    """Choices of partition and clocks for one model on one shape, by columns.

    Parameters
    ----------
    partitions, clocks_mhz, levels
        Of every choice: cluster ranges and clock of each stage; the batches that serve requests faster
        and fit the memory, ascending from 1.
    in_time_s
        Latency limit from which on each batch may be formed; shape (choices, batches). A request may
        arrive when a full batch has just begun and must then be served in the next full batch.
    bottleneck_s, latency_s, moved_s
        Of a single request, the last being its transfers; shape (choices,).
    energy_j
        Energy of a request above that of loaded GPUs, at batch 1; shape (choices,).
    loaded_w
        Power of all GPUs, loaded and idle; shape (choices,).
    peak_w, weight_bytes, working_bytes
        As `Estimate`, the last for each request of a batch; shape (choices, stages).
    """

    shape: Shape
    partitions: tuple[StageClusters, ...]
    clocks_mhz: tuple[tuple[int, ...], ...]
    levels: tuple[tuple[BatchLevel, ...], ...]
    in_time_s: Floats
    bottleneck_s: Floats
    latency_s: Floats
    moved_s: Floats
    energy_j: Floats
    loaded_w: Floats
    peak_w: Floats
    weight_bytes: Floats
    working_bytes: Floats

    @property
    def figures(self) -> Floats:
        """What choices are compared by (`muplan.planning.estimates.dominance`); shape (choices, figures)."""
        return np.column_stack(
            [self.loaded_w, self.energy_j, self.latency_s, self.bottleneck_s, self.weight_bytes.max(axis=1)]
        )

    @property
    def full_use_j(self) -> Floats:
        """Energy of a request while the bottleneck never rests, loaded power included; shape (choices,)."""
        return np.asarray(self.energy_j + self.loaded_w * self.bottleneck_s)


def make_pipelines(costs: ForwardCosts, shape: Shape, choices: Sequence[Choice]) -> Pipelines:
    """Work out time, energy, power and memory of every choice."""
    partitions = list(dict.fromkeys(partition for partition, _ in choices))
    place = {partition: index for index, partition in enumerate(partitions)}
    stages = Stages.of(costs, shape, partitions)
    row = np.array([place[partition] for partition, _ in choices], dtype=np.int64)
    clock = np.array([clocks for _, clocks in choices], dtype=np.int64).reshape(-1, shape.num_stages)
    at = row[:, None], np.arange(shape.num_stages)[None, :]
    stage_s = np.ascontiguousarray(stages.latency_s[*at, :, clock].swapaxes(1, 2))
    stage_s *= costs.stretch(shape.num_stages)
    bottleneck_s = stage_s.max(axis=-1)
    moved_s = stages.moved_s[row]
    latency_s = stage_s.sum(axis=-1) + moved_s + costs.overhead_s
    return Pipelines(
        shape=shape,
        partitions=tuple(partition for partition, _ in choices),
        clocks_mhz=tuple(tuple(costs.clocks_mhz[index] for index in clocks) for _, clocks in choices),
        levels=_levels(costs, bottleneck_s, latency_s, stages.num_fitting[row]),
        in_time_s=latency_s + np.where(costs.batches > 1, bottleneck_s, 0.0),
        bottleneck_s=bottleneck_s[:, 0],
        latency_s=latency_s[:, 0],
        moved_s=moved_s[:, 0],
        energy_j=costs.stretch(shape.num_stages)
        * (shape.tensor_parallel * np.add.accumulate(stages.energy_j[*at, clock], axis=1)[:, -1]),
        loaded_w=shape.tensor_parallel * costs.loaded_w[clock].sum(axis=-1),
        peak_w=stages.peak_w[*at, clock],
        weight_bytes=stages.weight_bytes[row],
        working_bytes=stages.working_bytes[row],
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stages:
    """Sums over the clusters of every stage; the first axes are (partitions, stages)."""

    latency_s: Floats
    energy_j: Floats
    peak_w: Floats
    weight_bytes: Floats
    working_bytes: Floats
    moved_s: Floats
    """All transfers, by batch; shape (partitions, batches)."""
    num_fitting: NDArray[np.int64]
    """Batches that fit the memory, at least one; shape (partitions,)."""

    @classmethod
    def of(cls, costs: ForwardCosts, shape: Shape, partitions: Sequence[StageClusters]) -> Stages:
        """Work out the sums of every partition."""

        def stacked(values: Floats, reduce: Callable[[Floats, StageClusters], Floats]) -> Floats:
            empty = np.empty((0, shape.num_stages, *values.shape[1:]))
            return np.array([reduce(values, partition) for partition in partitions]) if partitions else empty

        weights = stacked(costs.weight_bytes, stage_sums)
        working = stacked(costs.working_bytes, stage_peaks)
        room = ((costs.usable_bytes - weights) / np.maximum(working, 1.0)).min(axis=1)
        return cls(
            latency_s=stacked(costs.latency_s, stage_sums),
            energy_j=stacked(costs.energy_j, stage_sums),
            peak_w=stacked(costs.peak_w, stage_peaks),
            weight_bytes=weights,
            working_bytes=working,
            moved_s=np.array([_moved_s(costs, shape, partition) for partition in partitions]).reshape(
                -1, len(costs.batches)
            ),
            num_fitting=np.maximum((costs.batches <= room[:, None]).sum(axis=1), 1),
        )


def _moved_s(costs: ForwardCosts, shape: Shape, partition: StageClusters) -> Floats:
    """Time of all transfers of a pass; shape (batches,)."""
    moved_s = np.zeros(len(costs.batches))
    for cluster, stage, following in crossings(partition):
        together = same_node(costs.supply, shape.tensor_parallel, stage, following)
        moved_s += (costs.near_s if together else costs.far_s)[:, cluster]
    return moved_s


def _levels(
    costs: ForwardCosts, bottleneck_s: Floats, latency_s: Floats, num_fitting: NDArray[np.int64]
) -> tuple[tuple[BatchLevel, ...], ...]:
    """The batches of every choice that fit and each serve requests faster than the one before."""
    gains = bottleneck_s[:, 1:] / costs.batches[1:] <= _BATCH_GAIN * bottleneck_s[:, :-1] / costs.batches[:-1]
    num = np.minimum(1 + np.logical_and.accumulate(gains, axis=1).sum(axis=1), num_fitting)
    batches = costs.batches.tolist()
    return tuple(
        tuple(
            BatchLevel(batch=batch, bottleneck_s=bottleneck, latency_s=latency)
            for batch, bottleneck, latency in zip(batches[:count], times, latencies, strict=False)
        )
        for count, times, latencies in zip(
            num.tolist(), bottleneck_s.tolist(), latency_s.tolist(), strict=True
        )
    )
