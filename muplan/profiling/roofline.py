"""Time and activity of operators on a device: the roofline.

An operator takes ``t = (t_compute^p + t_memory^p)^(1/p) + t_launch``, where the compute rate follows
the effective clock and the bandwidth its own curve of it. p = 1 adds the two, a large p overlaps
them: decode passes, whose kernels are too small to overlap, take p = 1; the device says p of the
others. An all-reduce takes its start-up and ring traffic, whatever the clock.

Activities are the shares of time in which cores and memory work; they set the power, and with it the
clock that a power cap leaves. `docs/mathematics.md` states the model, `docs/validation.md` its errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.errors import InputError
from muplan.hardware.device import Device
from muplan.model.graph import TENSOR_CORE_KINDS, Operator, OperatorKind, Phase

Floats = NDArray[np.float64]

# The range of clocks is below 2,048 MHz = 2¹¹: the clock at the cap is exact to 2⁻¹³ MHz.
_NUM_HALVINGS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class PassGrid:
    """Passes to evaluate: every batch with every token count, in one phase.

    ``tokens`` are the new tokens of each sequence in a forward or prefill pass, the context in decode.
    A batch need not be whole: 1,000 tokens in sequences of 800 are 1.25 of them.
    """

    phase: Phase
    batches: tuple[float, ...]
    tokens: tuple[int, ...]

    def variables(self) -> tuple[Floats, Floats, Floats]:
        """Return batch, tokens and context; their shapes broadcast to (batches, tokens)."""
        batch = np.array(self.batches, dtype=float)[:, None]
        points = np.array(self.tokens, dtype=float)[None, :]
        return batch, np.ones_like(points) if self.phase is Phase.DECODE else points, points


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one operator asks of one GPU on a grid of passes; arrays have the shape (batches, tokens).

    ``repeat`` operators with the same work run one after the other.
    """

    repeat: int
    flops: Floats
    moved_bytes: Floats
    comm_s: Floats
    on_tensor_cores: bool
    launches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Time of a sequence of operators, and the mean activity of cores and memory in it."""

    latency_s: Floats
    core_activity: Floats
    memory_activity: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoints:
    """Latency of a sequence of operators and power of one GPU; shape (clocks, batches, tokens)."""

    latency_s: Floats
    power_w: Floats
    effective_clock_mhz: Floats


def works_of(
    operators: Sequence[tuple[Operator, int]], device: Device, grid: PassGrid, *, tensor_parallel: int
) -> tuple[Work, ...]:
    """Return the work of the operators that run in the grid's phase.

    Parameters
    ----------
    operators
        Operators, each with how often it repeats.
    tensor_parallel
        GPUs that share each operator.
    """
    return tuple(
        _work_of(operator, repeat, device, grid, tensor_parallel)
        for operator, repeat in operators
        if grid.phase in operator.phases
    )


def _work_of(operator: Operator, repeat: int, device: Device, grid: PassGrid, tensor_parallel: int) -> Work:
    variables = grid.variables()
    shards = operator.shards(tensor_parallel)
    reads_weights = operator.kind is not OperatorKind.EMBEDDING
    weight_bytes = operator.weight_bytes if reads_weights else 0
    is_reduction = operator.kind is OperatorKind.ALL_REDUCE
    messages = operator.comm_bytes(*variables)
    comm_s = np.array([device.all_reduce_s(float(message), tensor_parallel) for message in messages.flat])
    return Work(
        repeat=repeat,
        flops=operator.flops(*variables) / shards,
        moved_bytes=(operator.activation_bytes(*variables) + weight_bytes) / shards,
        comm_s=comm_s.reshape(messages.shape) if is_reduction else np.zeros(messages.shape),
        on_tensor_cores=operator.kind in TENSOR_CORE_KINDS,
        launches=0 if is_reduction else 1,
    )


def load_of(works: Sequence[Work], device: Device, clock_mhz: Floats, *, overlap_exponent: float) -> Load:
    """Return time and activity at effective clocks.

    Parameters
    ----------
    clock_mhz
        Effective clocks; broadcasts against (batches, tokens).
    """
    bandwidth = device.memory_bandwidth_bytes_per_s(clock_mhz)
    tensor_rate, vector_rate = device.matmul_flops_per_s(clock_mhz), device.vector_flops_per_s(clock_mhz)
    latency = core_s = memory_s = np.zeros(())
    for work in works:
        compute = work.flops / (tensor_rate if work.on_tensor_cores else vector_rate)
        memory = work.moved_bytes / bandwidth
        busy = _p_norm(compute, memory, overlap_exponent)
        compute_activity = (
            device.matmul_core_activity if work.on_tensor_cores else device.vector_core_activity
        )
        waiting = np.maximum(busy - compute, 0.0) + work.comm_s
        latency = latency + work.repeat * (busy + work.comm_s + work.launches * device.launch_s)
        core_s = core_s + work.repeat * (compute * compute_activity + waiting * device.memory_core_activity)
        memory_s = memory_s + work.repeat * np.minimum(memory, busy)
    safe = np.where(latency > 0, latency, 1.0)
    return Load(
        latency_s=np.asarray(latency),
        core_activity=np.clip(core_s / safe, 0.0, 1.0),
        memory_activity=np.clip(memory_s / safe, 0.0, 1.0),
    )


def _p_norm(compute_s: Floats, memory_s: Floats, exponent: float) -> Floats:
    """Return ``(compute^p + memory^p)^(1/p)``, scaled by the larger so that small times do not underflow."""
    larger = np.maximum(compute_s, memory_s)
    ratio = np.minimum(compute_s, memory_s) / np.where(larger > 0, larger, 1.0)
    return np.asarray(larger * (1.0 + ratio**exponent) ** (1.0 / exponent))


def overlap_exponent_of(device: Device, phase: Phase) -> float:
    """Return the exponent p of a phase's passes."""
    return 1.0 if phase is Phase.DECODE else device.compute.overlap_exponent.value


def operating_points(
    works: Sequence[Work], device: Device, clocks_mhz: Sequence[int], phase: Phase
) -> OperatingPoints:
    """Return latency and power at requested clocks, under the device's power cap.

    The cap is applied to the mean power of the whole sequence, so that every stage made of such
    sequences stays under it: the clock is the lower of the requested one and the one whose power is
    the cap, at the activities that the sequence has at that clock.

    Raises
    ------
    InputError
        The device exceeds its cap even at the lowest usable clock.
    """
    exponent = overlap_exponent_of(device, phase)
    wanted = np.array([device.effective_clock_mhz(clock) for clock in clocks_mhz])[:, None, None]
    effective = np.minimum(wanted, _clock_at_cap(works, device, float(wanted.max()), exponent))
    load = load_of(works, device, effective, overlap_exponent=exponent)
    return OperatingPoints(
        latency_s=load.latency_s,
        power_w=np.minimum(_power_w(load, device, effective), device.power_cap_w),
        effective_clock_mhz=effective,
    )


def _power_w(load: Load, device: Device, clock_mhz: Floats) -> Floats:
    return device.busy_power_w(clock_mhz, load.core_activity, load.memory_activity)


def _clock_at_cap(works: Sequence[Work], device: Device, highest_mhz: float, exponent: float) -> Floats:
    """Return the effective clock at which the power is the cap; ``highest_mhz`` where it is below.

    Power and activities both depend on the clock, so the clock is found by bisection; the result has
    the shape (1, batches, tokens).
    """

    def exceeds(clock_mhz: Floats) -> NDArray[np.bool_]:
        load = load_of(works, device, clock_mhz, overlap_exponent=exponent)
        return _power_w(load, device, clock_mhz) > device.power_cap_w

    shape = (1, *works[0].flops.shape)
    high = np.full(shape, highest_mhz)
    is_capped = exceeds(high)
    if not is_capped.any():
        return high
    low = np.full(shape, device.effective_clock_mhz(device.usable_clocks_mhz[0]))
    if exceeds(low).any():
        raise InputError(
            f"{device.name} draws more than its power cap of {device.power_cap_w:g} W even at"
            f" {device.usable_clocks_mhz[0]} MHz, its lowest usable clock.",
            "Raise the cap, or widen the usable clocks in the device file.",
        )
    low = np.where(is_capped, low, high)
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        above = exceeds(middle)
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return low
