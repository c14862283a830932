"""The device document: one GPU type and its physics."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, model_validator

from muplan.errors import InputError
from muplan.hardware.clocks import Clocks
from muplan.hardware.link import Link
from muplan.hardware.power import Power
from muplan.hardware.quantity import Constant, Curve, Floats
from muplan.serde import Document, Part

_HZ_PER_MHZ = 1e6


class Memory(Part):
    """Memory of a device.

    Parameters
    ----------
    capacity_bytes
        All of it.
    reserved_bytes
        What the context, the libraries and fragmentation keep from models.
    bandwidth_bytes_per_s
        Effective SM clock (MHz) to achievable bandwidth: it falls below a knee, because slow SMs
        cannot keep enough requests in flight.
    """

    capacity_bytes: Constant
    reserved_bytes: Constant
    bandwidth_bytes_per_s: Curve

    @model_validator(mode="after")
    def _check_memory(self) -> Memory:
        if not 0 <= self.reserved_bytes.value < self.capacity_bytes.value:
            raise ValueError("expected 0 ≤ reserved_bytes < capacity_bytes")
        rates = [rate for _, rate in self.bandwidth_bytes_per_s.points]
        if rates != sorted(rates) or rates[0] <= 0:
            raise ValueError("bandwidth_bytes_per_s must be positive and must not fall")
        return self


class Compute(Part):
    """Arithmetic rates of a device.

    Parameters
    ----------
    matmul_flops_per_cycle, vector_flops_per_cycle
        Peak operations per SM clock cycle of the whole device: fp16 on the matrix units; fp32 elsewhere.
    matmul_efficiency, vector_efficiency
        The achieved share of the peak.
    overlap_exponent
        p of ``t = (t_compute^p + t_memory^p)^(1/p)``: 1 adds the two, large values overlap them.
    launch_s
        Time to launch one kernel.
    """

    matmul_flops_per_cycle: Constant
    matmul_efficiency: Constant
    vector_flops_per_cycle: Constant
    vector_efficiency: Constant
    overlap_exponent: Constant
    launch_s: Constant

    @model_validator(mode="after")
    def _check_compute(self) -> Compute:
        if min(self.matmul_flops_per_cycle.value, self.vector_flops_per_cycle.value) <= 0:
            raise ValueError("the operations per cycle must be positive")
        for efficiency in (self.matmul_efficiency.value, self.vector_efficiency.value):
            if not 0 < efficiency <= 1:
                raise ValueError("the efficiencies must lie in (0, 1]")
        if self.overlap_exponent.value < 1 or self.launch_s.value < 0:
            raise ValueError("expected overlap_exponent ≥ 1 and launch_s ≥ 0")
        return self


class Device(Document):
    """A GPU type: memory, clocks, arithmetic, links and power.

    Requested clocks are ``int`` MHz of `supported_clocks_mhz`; effective clocks are float MHz. Methods
    that take effective clocks accept arrays and return arrays of the broadcast shape.
    """

    KIND: ClassVar[str] = "device"

    kind: Literal["device"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    description: str
    memory: Memory
    clocks: Clocks
    compute: Compute
    link: Link
    power: Power

    @model_validator(mode="after")
    def _check_curves_cover_clocks(self) -> Device:
        lowest = float(self.clocks.effective_mhz.at(self.clocks.usable_minimum_mhz.value))
        highest = float(self.clocks.effective_mhz.at(self.clocks.usable_maximum_mhz.value))
        curves = {
            "memory.bandwidth_bytes_per_s": self.memory.bandwidth_bytes_per_s,
            "power.voltage_ratio": self.power.voltage_ratio,
            "power.memory_share": self.power.memory_share,
        }
        for key, curve in curves.items():
            covers_low = curve.flat_below or curve.lowest <= lowest
            if not covers_low or not (curve.flat_above or curve.highest >= highest):
                raise ValueError(f"{key} must cover the effective clocks {lowest:g} to {highest:g} MHz")
        return self

    # --- memory ---------------------------------------------------------------------------------

    @property
    def memory_bytes(self) -> int:
        """Capacity of the device memory."""
        return int(self.memory.capacity_bytes.value)

    @property
    def usable_memory_bytes(self) -> int:
        """What models may use of it."""
        return int(self.memory.capacity_bytes.value - self.memory.reserved_bytes.value)

    def memory_bandwidth_bytes_per_s(self, clock_mhz: ArrayLike) -> Floats:
        """Achievable memory bandwidth at effective SM clocks."""
        return self.memory.bandwidth_bytes_per_s.at(clock_mhz)

    # --- clocks ---------------------------------------------------------------------------------

    @property
    def supported_clocks_mhz(self) -> tuple[int, ...]:
        """Every clock that the driver lists, ascending."""
        return self.clocks.supported_mhz

    @property
    def usable_clocks_mhz(self) -> tuple[int, ...]:
        """The listed clocks that a plan may use, ascending."""
        return self.clocks.usable_mhz

    @property
    def max_clock_mhz(self) -> int:
        """The highest usable clock."""
        return self.clocks.usable_mhz[-1]

    @property
    def clock_change_s(self) -> float:
        """Time from a request to the new clock; the old clock holds meanwhile."""
        return self.clocks.change_s.value

    def effective_clock_mhz(self, requested_mhz: int) -> float:
        """Return the clock that the SMs run at when ``requested_mhz`` is locked and no power cap binds.

        Raises
        ------
        InputError
            The clock is not on the driver's list, or its effective clock is not known.
        """
        if requested_mhz not in self.clocks.supported_mhz:
            raise InputError(
                f"{requested_mhz} MHz is not a clock of {self.name}.",
                f"Choose one of {self.clocks.supported_mhz[0]} to {self.clocks.supported_mhz[-1]} MHz"
                f" in steps of {self.clocks.step_mhz.value:g} MHz (fractions dropped).",
            )
        return float(self.clocks.effective_mhz.at(requested_mhz))

    def capped_clock_mhz(
        self, requested_mhz: int, core_activity: float, memory_activity: float, cap_w: float | None = None
    ) -> float:
        """Return the effective clock when ``requested_mhz`` is locked and power is held to a cap.

        Parameters
        ----------
        cap_w
            The cap in W; the board's own limit if left out or higher than it.

        Raises
        ------
        InputError
            As `effective_clock_mhz`, or the cap cannot be held at any known clock.
        """
        effective = self.effective_clock_mhz(requested_mhz)
        return float(self.capped_clocks_mhz(effective, core_activity, memory_activity, cap_w))

    def capped_clocks_mhz(
        self,
        clock_mhz: ArrayLike,
        core_activity: ArrayLike,
        memory_activity: ArrayLike,
        cap_w: float | None = None,
    ) -> Floats:
        """`capped_clock_mhz` for arrays of effective clocks and activities, which broadcast."""
        limit_w = self.power_cap_w if cap_w is None else min(cap_w, self.power_cap_w)
        return self.power.capped_clock_mhz(clock_mhz, core_activity, memory_activity, limit_w)

    # --- arithmetic and links -------------------------------------------------------------------

    def matmul_flops_per_s(self, clock_mhz: ArrayLike) -> Floats:
        """Achievable fp16 matrix rate at effective clocks."""
        compute = self.compute
        per_cycle = compute.matmul_flops_per_cycle.value * compute.matmul_efficiency.value
        return _array(clock_mhz) * (_HZ_PER_MHZ * per_cycle)

    def vector_flops_per_s(self, clock_mhz: ArrayLike) -> Floats:
        """Achievable rate of other arithmetic at effective clocks."""
        compute = self.compute
        per_cycle = compute.vector_flops_per_cycle.value * compute.vector_efficiency.value
        return _array(clock_mhz) * (_HZ_PER_MHZ * per_cycle)

    @property
    def launch_s(self) -> float:
        """Time to launch one kernel."""
        return self.compute.launch_s.value

    def all_reduce_s(self, message_bytes: float, num_gpus: int) -> float:
        """Seconds of an all-reduce of ``message_bytes`` over ``num_gpus`` GPUs of one node."""
        return self.link.all_reduce_s(message_bytes, num_gpus)

    def transfer_s(self, message_bytes: float, same_node: bool) -> float:
        """Seconds to send ``message_bytes`` to another GPU, in the same node or in another."""
        return self.link.transfer_s(message_bytes, same_node=same_node)

    # --- power ----------------------------------------------------------------------------------

    @property
    def parked_w(self) -> float:
        """Power without a context."""
        return self.power.parked_w.value

    @property
    def loaded_w(self) -> float:
        """Power with a context loaded and nothing to do, at the highest usable clock."""
        return float(self.loaded_power_w(self.effective_clock_mhz(self.max_clock_mhz)))

    def loaded_power_w(self, clock_mhz: ArrayLike) -> Floats:
        """Power with a context loaded and nothing to do, at effective clocks."""
        return self.busy_power_w(clock_mhz, 0.0, 0.0)

    @property
    def power_cap_w(self) -> float:
        """The board's power limit."""
        return self.power.cap_w.value

    def voltage_ratio(self, clock_mhz: ArrayLike) -> Floats:
        """Core voltage at effective clocks over its lowest value."""
        return self.power.voltage_ratio.at(clock_mhz)

    def busy_power_w(
        self, clock_mhz: ArrayLike, core_activity: ArrayLike, memory_activity: ArrayLike
    ) -> Floats:
        """Uncapped power at effective clocks and activities in 0..1; the arguments broadcast.

        ``memory_activity`` is the achieved share of the bandwidth that is there at that clock.
        """
        return self.power.busy_w(clock_mhz, core_activity, memory_activity)

    @property
    def matmul_core_activity(self) -> float:
        """Core activity while the matrix units are the bottleneck."""
        return self.power.matmul_core_activity.value

    @property
    def vector_core_activity(self) -> float:
        """Core activity while other arithmetic is the bottleneck."""
        return self.power.vector_core_activity.value

    @property
    def memory_core_activity(self) -> float:
        """Core activity while memory is the bottleneck."""
        return self.power.memory_core_activity.value


def _array(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)
