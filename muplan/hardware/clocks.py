"""Clocks of a device: what the driver lists, what a request really gives, how long a change takes."""

from __future__ import annotations

import math
from functools import cached_property

from pydantic import model_validator

from muplan.errors import InputError
from muplan.hardware.quantity import Constant, Curve
from muplan.serde import Part


class Clocks(Part):
    """SM clocks of a device, in MHz.

    Requested clocks are whole MHz as the driver lists them: ``minimum_mhz`` plus multiples of
    ``step_mhz``, rounded down, up to ``maximum_mhz``. Effective clocks are what the SMs run at.

    Parameters
    ----------
    usable_minimum_mhz, usable_maximum_mhz
        The band that a plan may use: where the effective clock follows the request.
    effective_mhz
        Requested clock (MHz) to effective clock (MHz) without a power cap.
    change_s
        Time from a request to the new clock, during which the old clock holds.
    """

    minimum_mhz: Constant
    maximum_mhz: Constant
    step_mhz: Constant
    usable_minimum_mhz: Constant
    usable_maximum_mhz: Constant
    effective_mhz: Curve
    change_s: Constant

    @model_validator(mode="after")
    def _check_order(self) -> Clocks:
        bounds = [self.minimum_mhz, self.usable_minimum_mhz, self.usable_maximum_mhz, self.maximum_mhz]
        values = [bound.value for bound in bounds]
        if values != sorted(values) or self.step_mhz.value <= 0 or values[0] <= 0:
            order = "0 < minimum_mhz ≤ usable_minimum_mhz ≤ usable_maximum_mhz ≤ maximum_mhz"
            raise ValueError(f"expected {order} and step_mhz > 0")
        if self.change_s.value < 0:
            raise ValueError("change_s must not be negative")
        curve = self.effective_mhz
        if curve.lowest > values[1] or curve.highest < values[2]:
            raise ValueError("effective_mhz must cover usable_minimum_mhz to usable_maximum_mhz")
        if any(effective_mhz > requested_mhz for requested_mhz, effective_mhz in curve.points):
            raise ValueError("effective_mhz must not exceed the requested clock")
        effective = [point[1] for point in curve.points]
        if effective != sorted(effective):
            raise ValueError("effective_mhz must not fall as the requested clock rises")
        return self

    @cached_property
    def supported_mhz(self) -> tuple[int, ...]:
        """Every clock that the driver lists, ascending."""
        lowest, step = self.minimum_mhz.value, self.step_mhz.value
        num_steps = math.floor((self.maximum_mhz.value - lowest) / step + 1e-9)
        return tuple(math.floor(lowest + index * step + 1e-9) for index in range(num_steps + 1))

    @cached_property
    def usable_mhz(self) -> tuple[int, ...]:
        """The listed clocks that a plan may use, ascending."""
        lowest, highest = self.usable_minimum_mhz.value, self.usable_maximum_mhz.value
        return tuple(clock for clock in self.supported_mhz if lowest <= clock <= highest)

    def nearest_usable_mhz(self, clock_mhz: float) -> int:
        """Return the usable clock nearest to ``clock_mhz``; the lower one of two equally near.

        Raises
        ------
        InputError
            ``clock_mhz`` lies more than one step outside the usable band.
        """
        step = self.step_mhz.value
        if not self.usable_mhz[0] - step <= clock_mhz <= self.usable_mhz[-1] + step:
            raise InputError(
                f"{clock_mhz:g} MHz lies outside the usable clocks, {self.usable_mhz[0]} to"
                f" {self.usable_mhz[-1]} MHz.",
                "Choose a clock of that band.",
            )
        return min(self.usable_mhz, key=lambda usable: (abs(usable - clock_mhz), usable))
