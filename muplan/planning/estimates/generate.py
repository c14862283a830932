"""Estimates of generate services: prefill, then one token an iteration with continuous batching.

A group that carries x requests a second and decodes b sequences at once is in balance where

    b = x · T · iteration(b) / (1 − x · prefill)      so      x(b) = b / (T · iteration(b) + b · prefill)

with T the mean reply in tokens: every prefill holds up all running sequences. The concurrency of a
group varies about its mean b as a Poisson number would, widened by the arrivals' variation and
narrowed by pooling over m groups; the guard keeps its upper quantile within the TPOT limit, the KV
memory and the sequence limit, and the wait for the prefill within the TTFT limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.hardware.device import Device
from muplan.planning.estimates.clusters import (
    Floats,
    cluster_bytes,
    cluster_table,
    same_node,
    stage_peaks,
    stage_sums,
    transfer_s,
)
from muplan.planning.estimates.cuts import cut_fronts
from muplan.planning.estimates.estimate import MAX_STAGES, Estimate, Shape
from muplan.planning.estimates.partition import contiguous_partition, crossings
from muplan.planning.guard.tail import Queue, burstiness, max_utilisation
from muplan.planning.stated.model import PoolSupply, StageClusters
from muplan.problem.problem import ResolvedService
from muplan.profile import Phase, Profile
from muplan.serving.groups import loaded_power_w

_LEAST_SHARE = 0.05
"""Part of a group's hard limit that the guard allows at least; simulation raises or lowers it."""
_TTFT_SHARE = 0.9
"""Part of the TTFT limit that a plan may use up before waiting; prompts longer than the mean need it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Iterations:
    """Decode at a range of concurrencies: time, and power of the whole group above loaded."""

    batches: NDArray[np.int64]
    latency_s: Floats
    above_loaded_w: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """A pipeline at one clock, with what its passes take and the sequences that its memory holds."""

    shape: Shape
    partition: StageClusters
    clock_index: int
    prefill_s: float
    iterations: _Iterations
    most_sequences: float


class GenerateEstimator:
    """Estimates of one generate service on one pool at one tensor parallelism."""

    def __init__(
        self,
        service: ResolvedService,
        device: Device,
        supply: PoolSupply,
        *,
        tensor_parallel: int,
        max_sequences: int,
        cap_w: float,
        overhead_s: float = 0.0,
    ) -> None:
        self._overhead_s = overhead_s
        self._service = service
        self._device = device
        self._supply = supply
        self._width = tensor_parallel
        self._profile: Profile = service.profiles[supply.name]
        self._max_sequences = min(max_sequences, self._profile.grid(Phase.DECODE).batches[-1])
        self._context = _within(
            self._profile, Phase.DECODE, service.input_tokens + service.output_tokens / 2.0
        )
        self._prompt = _within(self._profile, Phase.PREFILL, service.input_tokens)
        self._weights = cluster_bytes(self._profile, tensor_parallel, "weight")
        self._cache = cluster_bytes(self._profile, tensor_parallel, "kv_per_token")
        self._working = cluster_bytes(self._profile, tensor_parallel, "activation_per_token")
        self._prefill = cluster_table(
            self._profile, Phase.PREFILL, tensor_parallel=tensor_parallel, batch=1, tokens=self._prompt
        )
        batches = _fine_batches(self._max_sequences)
        self._batches = np.array(batches)
        self._decode = [
            cluster_table(
                self._profile,
                Phase.DECODE,
                tensor_parallel=tensor_parallel,
                batch=batch,
                tokens=self._context,
            )
            for batch in batches
        ]
        nothing = np.zeros((MAX_STAGES - 1, len(self._weights)))  # the least bottleneck is all that is asked
        self._fronts = [cut_fronts(prefill_s, nothing, nothing[0]) for prefill_s in self._prefill.latency_s.T]
        self._loaded_w = loaded_power_w(device, self._profile.clocks_mhz)
        self._peak_w = self._peaks()
        self.clock_indices = tuple(
            index
            for index, clock in enumerate(self._profile.clocks_mhz)
            if self._peak_w[:, index].max() <= cap_w and clock in supply.clocks_mhz
        )

    @property
    def clocks_mhz(self) -> tuple[int, ...]:
        """Clocks that hold the cap on each GPU."""
        return tuple(self._profile.clocks_mhz[index] for index in self.clock_indices)

    def estimate(self, num_stages: int, clock_index: int, pooled_gpus: float) -> Estimate | None:
        """The service on a pipeline of ``num_stages`` at one clock; None where it can carry nothing.

        Parameters
        ----------
        pooled_gpus
            GPUs over which the service's requests are pooled.
        """
        group = self._group(num_stages, clock_index)
        if group is None:
            return None
        servers = max(1.0, pooled_gpus / group.shape.num_gpus)
        rates = _balance_rps(group.iterations, self._service.output_tokens, group.prefill_s)
        hard = self._fits_limits(group, rates, quantile=0.0, servers=servers)
        if not hard.any():
            return None
        quantile = _normal_quantile(self._service.attainment)
        guarded = self._fits_limits(group, rates, quantile=quantile, servers=servers)
        limit_rps = float(rates[hard].max())
        guarded_rps = float(rates[guarded].max()) if guarded.any() else _LEAST_SHARE * limit_rps
        guarded_rps = min(guarded_rps, limit_rps, self._ttft_guard_rps(group, servers))
        if guarded_rps <= 0:
            return None
        return self._estimate(group, rates, limit_rps, guarded_rps)

    def _group(self, num_stages: int, clock_index: int) -> _Group | None:
        """Partition and passes on a pipeline; None where the clusters are too few or memory is too small."""
        shape = Shape(pool=self._supply.name, tensor_parallel=self._width, num_stages=num_stages)
        prefill = self._prefill.latency_s[:, clock_index]
        partition = contiguous_partition(self._fronts[clock_index][num_stages - 1][0].stops)
        most = self._sequences_that_fit(partition)
        if most < 1.0:
            return None
        return _Group(
            shape=shape,
            partition=partition,
            clock_index=clock_index,
            prefill_s=float(prefill.sum()) + self._moved_s(shape, partition, self._prompt),
            iterations=self._iterations(shape, partition, clock_index),
            most_sequences=most,
        )

    def _estimate(self, group: _Group, rates: Floats, limit_rps: float, guarded_rps: float) -> Estimate:
        shape, partition, clock_index = group.shape, group.partition, group.clock_index
        standing_w, energy_j = self._power_line(group, rates, limit_rps)
        within = group.iterations.latency_s <= self._service.limits.tpot_s
        peaks = stage_peaks(self._peak_w, partition)[:, clock_index]
        cache = stage_sums(self._cache, partition)
        working = stage_peaks(self._working, partition)
        return Estimate(
            service=self._service.name,
            shape=shape,
            clocks_mhz=(self._profile.clocks_mhz[clock_index],) * shape.num_stages,
            stage_clusters=partition,
            levels=(),
            max_batch=int(group.iterations.batches[within].max(initial=1)),
            energy_j=energy_j,
            standing_w=standing_w,
            rate_limit_rps=limit_rps,
            guarded_rps=guarded_rps,
            latency_s=group.prefill_s,
            loaded_w=shape.num_gpus * float(self._loaded_w[clock_index]),
            peak_w=tuple(float(peak) for peak in peaks),
            weight_bytes=tuple(float(weight) for weight in stage_sums(self._weights, partition)),
            working_bytes=tuple(float(size) for size in (working + cache) * self._service.max_context),
            is_grouped=False,
        )

    def _peaks(self) -> Floats:
        """Highest power of every cluster at every clock over all it may compute; shape (clusters, clocks)."""
        peaks = []
        for phase in (Phase.PREFILL, Phase.DECODE):
            grid = self._profile.grid(phase)
            limit = grid.batches[-1] if phase is Phase.PREFILL else self._max_sequences
            batches = [batch for batch in grid.batches if batch < limit] + [limit]
            peaks += [
                cluster_table(
                    self._profile, phase, tensor_parallel=self._width, batch=batch, tokens=tokens
                ).power_w
                for batch in batches
                for tokens in grid.tokens
            ]
        return np.asarray(np.max(peaks, axis=0))

    def _sequences_that_fit(self, partition: StageClusters) -> float:
        """Sequences of mean context whose caches fit beside the weights; 0 if one longest does not."""
        weights = stage_sums(self._weights, partition)
        cache = np.maximum(stage_sums(self._cache, partition), 1e-9)
        working = stage_peaks(self._working, partition) * self._service.max_context
        room = self._device.usable_memory_bytes - weights - working
        if (room < cache * self._service.max_context).any():
            return 0.0
        held = self._service.input_tokens + self._service.output_tokens / 2.0
        return float((room / (cache * held)).min())

    def _moved_s(self, shape: Shape, partition: StageClusters, num_tokens: float) -> float:
        if shape.num_stages == 1:
            return 0.0
        near = transfer_s(self._device, self._profile, num_tokens, same_node=True)
        far = transfer_s(self._device, self._profile, num_tokens, same_node=False)
        return sum(
            float((near if same_node(self._supply, self._width, stage, following) else far)[index])
            for index, stage, following in crossings(partition)
        )

    def _iterations(self, shape: Shape, partition: StageClusters, clock_index: int) -> _Iterations:
        latency, above = [], []
        for batch, table in zip(self._batches, self._decode, strict=True):
            times = table.latency_s[:, clock_index]
            energy = self._width * float(
                (times * (table.power_w[:, clock_index] - self._loaded_w[clock_index])).sum()
            )
            total = float(times.sum()) + self._moved_s(shape, partition, float(batch))
            latency.append(total)
            above.append(energy / total)
        return _Iterations(batches=self._batches, latency_s=np.array(latency), above_loaded_w=np.array(above))

    def _fits_limits(
        self, group: _Group, rates: Floats, *, quantile: float, servers: float
    ) -> NDArray[np.bool_]:
        """Whether the upper quantile of the concurrency is within TPOT, KV memory and sequence limit."""
        limits, iterations = self._service.limits, group.iterations
        mean = iterations.batches.astype(float)
        spread = np.sqrt(mean * (1.0 + self._service.cv**2) / 2.0 / servers)
        high = mean + quantile * spread
        times = np.interp(high, iterations.batches, iterations.latency_s)
        tpot_s = times / np.maximum(1.0 - rates * group.prefill_s, 1e-9)
        first_s = iterations.latency_s + group.prefill_s + self._overhead_s
        within = (tpot_s <= limits.tpot_s) & (first_s <= limits.ttft_s)
        return np.asarray(within & (high <= min(group.most_sequences, float(self._max_sequences))))

    def _ttft_guard_rps(self, group: _Group, servers: float) -> float:
        """The rate at which the wait for the prefill is within the TTFT limit often enough."""
        first_s = group.prefill_s + float(group.iterations.latency_s[0]) + self._overhead_s
        slack_s = max(self._service.limits.ttft_s * _TTFT_SHARE - first_s, 0.0)
        expected = self._service.rate_rps * slack_s
        queue = Queue(
            slack_s=slack_s,
            service_s=group.prefill_s,
            service_scv=1.0,  # prompts vary about as much as an exponential length
            servers=servers,
            burstiness=float(burstiness(np.array(self._service.cv**2), np.array(expected))),
            miss=1.0 - self._service.attainment,
        )
        return max_utilisation(queue) / group.prefill_s

    def _power_line(self, group: _Group, rates: Floats, limit_rps: float) -> tuple[float, float]:
        """Power above loaded as standing + energy · rate: the chord from half the limit to the limit.

        Power is concave in the rate: one sequence keeps the group as busy as many, and more sequences
        share each iteration's weights.
        """
        times = self._prefill.latency_s[:, group.clock_index]
        above = self._prefill.power_w[:, group.clock_index] - self._loaded_w[group.clock_index]
        prefill_j = self._width * float((times * above).sum())
        busy = (1.0 - rates * group.prefill_s) * -np.expm1(-group.iterations.batches.astype(float))
        power = rates * prefill_j + busy * group.iterations.above_loaded_w
        order = np.argsort(rates)
        half, full = np.interp([limit_rps / 2.0, limit_rps], rates[order], power[order])
        if limit_rps / 2.0 < rates.min():
            half = power[order][0] * (limit_rps / 2.0) / rates.min()
        slope = float(full - half) / (limit_rps / 2.0)
        if slope < 0:
            return float(max(half, full)), 0.0
        return max(float(full) - slope * limit_rps, 0.0), slope


def _balance_rps(iterations: _Iterations, output_tokens: float, prefill_s: float) -> Floats:
    mean = iterations.batches.astype(float)
    return np.asarray(mean / (output_tokens * iterations.latency_s + mean * prefill_s))


def _within(profile: Profile, phase: Phase, tokens: float) -> float:
    points = profile.grid(phase).tokens
    return min(max(tokens, points[0]), points[-1])


def _fine_batches(limit: int) -> list[int]:
    """Concurrencies 1, 2, 3, 4, 6, 8, 12 … up to ``limit``."""
    batches = sorted(
        {size for power in range(12) for size in (2**power, 3 * 2**power // 2) if 1 <= size <= limit}
    )
    return batches if batches[-1] == limit else [*batches, limit]


def _normal_quantile(probability: float) -> float:
    from statistics import NormalDist

    return max(0.0, NormalDist().inv_cdf(probability)) if not math.isclose(probability, 0.5) else 0.0
