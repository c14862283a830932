"""Power of a device as a function of clock and activity, and the clock that a power cap leaves.

P(f, a, b) = base + (idle_clocking + core · a) · f · (V(f)/V₀)² + memory · b · g(f)

with f the effective SM clock, a the core activity, b the memory activity (both 0 to 1), V the core
voltage and g the share of the memory's power that SMs at clock f can call forth. The form is CMOS
dynamic power, C V² f, plus memory power; `docs/mathematics.md` derives it, `docs/validation.md` tests it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from pydantic import model_validator

from muplan.errors import InputError
from muplan.hardware.quantity import Constant, Curve, Floats
from muplan.serde import Part

# Halvings of the clock range that the cap's bisection makes: the range is below 2,048 MHz = 2¹¹, so
# the clock is exact to 2⁻²⁹ MHz.
_NUM_HALVINGS = 40


class Power(Part):
    """Power of a device, in W.

    Parameters
    ----------
    parked_w
        No context on the device.
    base_w
        What a loaded device draws besides its clocked parts.
    idle_clocking_w_per_mhz
        What each MHz costs, at base voltage, once a context is loaded, busy or not.
    core_w_per_mhz
        What each MHz costs on top, at base voltage and core activity 1.
    memory_w
        Power of memory traffic at full bandwidth and a high clock.
    cap_w
        The board's power limit.
    voltage_ratio
        Effective clock (MHz) to core voltage over its lowest value.
    memory_share
        Effective clock (MHz) to the share of ``memory_w`` that traffic at the bandwidth of that clock takes.
    matmul_core_activity, vector_core_activity, memory_core_activity
        Core activity of a kernel while the matmul units, the vector units, or only loads and stores
        are the bottleneck.
    """

    parked_w: Constant
    base_w: Constant
    idle_clocking_w_per_mhz: Constant
    core_w_per_mhz: Constant
    memory_w: Constant
    cap_w: Constant
    voltage_ratio: Curve
    memory_share: Curve
    matmul_core_activity: Constant
    vector_core_activity: Constant
    memory_core_activity: Constant

    @model_validator(mode="after")
    def _check_signs(self) -> Power:
        positive = ("parked_w", "base_w", "idle_clocking_w_per_mhz", "core_w_per_mhz", "memory_w", "cap_w")
        for name in positive:
            if getattr(self, name).value <= 0:
                raise ValueError(f"{name} must be positive")
        for name in ("matmul_core_activity", "vector_core_activity", "memory_core_activity"):
            if not 0 <= getattr(self, name).value <= 1:
                raise ValueError(f"{name} must lie in 0..1")
        ratios = [ratio for _, ratio in self.voltage_ratio.points]
        if ratios != sorted(ratios) or ratios[0] != 1.0:
            raise ValueError("voltage_ratio must begin at 1 and not fall")
        shares = [share for _, share in self.memory_share.points]
        if shares != sorted(shares) or shares[0] < 0 or shares[-1] != 1.0:
            raise ValueError("memory_share must not fall, from 0 or more to 1")
        return self

    @property
    def lowest_clock_mhz(self) -> float:
        """The lowest effective clock at which power is known."""
        return max(self.voltage_ratio.lowest, self.memory_share.lowest)

    def busy_w(self, clock_mhz: ArrayLike, core_activity: ArrayLike, memory_activity: ArrayLike) -> Floats:
        """Uncapped power at effective clocks; the arguments broadcast.

        Raises
        ------
        InputError
            An activity lies outside 0..1, or a clock outside the curves.
        """
        core = _checked(core_activity, "core activity")
        memory = _checked(memory_activity, "memory activity")
        clock = np.asarray(clock_mhz, dtype=np.float64)
        per_mhz = self.idle_clocking_w_per_mhz.value + self.core_w_per_mhz.value * core
        core_w = per_mhz * clock * self.voltage_ratio.at(clock) ** 2
        memory_w = self.memory_w.value * memory * self.memory_share.at(clock)
        return np.asarray(self.base_w.value + core_w + memory_w, dtype=np.float64)

    def capped_clock_mhz(
        self, clock_mhz: ArrayLike, core_activity: ArrayLike, memory_activity: ArrayLike, cap_w: float
    ) -> Floats:
        """Return the highest clock ≤ ``clock_mhz`` whose power is ≤ ``cap_w``; the arguments broadcast.

        Power never falls with the clock, so bisection between the lowest known clock and ``clock_mhz``
        finds it.

        Raises
        ------
        InputError
            Even the lowest known clock draws more than ``cap_w``.
        """
        wanted, core, memory = np.broadcast_arrays(clock_mhz, core_activity, memory_activity)
        high = np.array(wanted, dtype=np.float64)
        low = np.full(high.shape, self.lowest_clock_mhz)
        fits = self.busy_w(high, core, memory) <= cap_w
        if fits.all():
            return high
        floor_w = self.busy_w(low, core, memory)
        if (~fits & (floor_w > cap_w)).any():
            raise InputError(
                f"A power cap of {cap_w:g} W cannot be held: at {self.lowest_clock_mhz:g} MHz, the lowest"
                f" known clock, the device already draws {float(floor_w.max()):.0f} W.",
                "Raise the cap.",
            )
        capped = np.where(fits, high, low)
        for _ in range(_NUM_HALVINGS):
            middle = (capped + high) / 2
            holds = self.busy_w(middle, core, memory) <= cap_w
            capped, high = np.where(holds, middle, capped), np.where(holds, high, middle)
        return capped


def _checked(activity: ArrayLike, name: str) -> Floats:
    values = np.asarray(activity, dtype=np.float64)
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        first = values[wrong].flat[0] if values.ndim else float(values)
        raise InputError(f"A {name} of {first:g} is impossible.", "Activities lie between 0 and 1.")
    return values
