"""A device document of what was probed, with the constants of a like device where nothing was."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from muplan.errors import DeviceError
from muplan.hardware.device import Device
from muplan.hardware.meter import Meter
from muplan.hardware.power import Power
from muplan.hardware.quantity import Constant, Curve, Label
from muplan.profiling.measured.device_probe import AtClock, Probed
from muplan.profiling.measured.summary import Levels

Floats = NDArray[np.float64]

_PRODUCTS_SHARE = 0.9
"""Of the peak, that large matrix products reach: 0.9 on H200 (see its device file)."""
_FOLLOWS = 0.97
"""A clock is usable where the effective one is this share of it, or more."""
_LEAST_BANDWIDTH = 0.5
"""Nor is one usable at which less than this share of the memory bandwidth is left."""
_REMEDY = "Let nothing else run on it or set its clock, and measure again once it is cool."


def fit_device(name: str, like: Device, probed: Probed, *, meter: Meter, levels: Levels) -> Device:
    """Make a device document; what was not probed is taken from ``like``, and labelled assumed.

    Raises
    ------
    DeviceError
        The probes contradict each other: no power is left for the clock or for memory.
    """
    fitted = _Fit(like, probed, meter, levels)
    content = _assumed_as(like)
    content |= {"name": name, "description": f"{meter.name}, measured by muplan; rest as {like.name}"}
    content["clocks"] |= fitted.clocks()
    content["memory"] |= fitted.memory()
    content["compute"] |= fitted.compute()
    content["power"] |= fitted.power()
    try:
        return Device.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DeviceError(
            f"{meter.name}: what was probed makes no device: {key}: {first['msg']}.", _REMEDY
        ) from error


def _assumed_as(like: Device) -> dict[str, Any]:
    """The content of a device, with every constant labelled as an assumption."""

    def relabelled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "label" in value:
            return {**value, "label": Label.ASSUMED, "source": f"as {like.name}: {value['source']}"}
        return {key: relabelled(inner) for key, inner in value.items()}

    content: dict[str, Any] = relabelled(like.model_dump())
    return content


class _Fit:
    """The parts of a device that probes say something of."""

    def __init__(self, like: Device, probed: Probed, meter: Meter, levels: Levels) -> None:
        self._like, self._probed, self._meter, self._levels = like, probed, meter, levels
        self._source = f"muplan device measure on {meter.name}, driver {meter.driver}"
        self._at = list(probed.at_clocks)
        if len(self._at) > 1:
            self._at = [at for at in self._at if self._is_usable(at)]
            if len(self._at) < 2:
                raise self._contradiction("it comes to fewer than two of the clocks that were set")

    def _is_usable(self, at: AtClock) -> bool:
        most = max(other.bytes_per_s for other in self._probed.at_clocks)
        follows = at.memory_mhz >= _FOLLOWS * at.requested_mhz
        return follows and at.bytes_per_s >= _LEAST_BANDWIDTH * most

    def _constant(self, value: float, label: Label, what: str) -> Constant:
        return Constant(value=float(f"{value:.6g}"), label=label, source=f"{what} ({self._source})")

    def _curve(self, points: list[tuple[float, float]], what: str) -> Curve:
        return Curve(
            points=tuple((float(f"{x:.6g}"), float(f"{y:.6g}")) for x, y in points),
            label=Label.DERIVED,
            source=f"{what} ({self._source})",
            flat_below=True,
            flat_above=True,
        )

    def clocks(self) -> dict[str, Any]:
        """The driver's list; the usable band; requested and effective clocks; the time of a change."""
        listed = self._meter.supported_clocks_mhz
        measured, made = Label.MEASURED, self._constant
        parts: dict[str, Any] = {
            "minimum_mhz": made(listed[0], measured, "the driver's list"),
            "maximum_mhz": made(listed[-1], measured, "the driver's list"),
            "step_mhz": made((listed[-1] - listed[0]) / (len(listed) - 1), measured, "the driver's list"),
            "usable_maximum_mhz": made(listed[-1], measured, "the highest listed clock"),
        }
        if len(self._at) < 2:
            lowest = max(self._like.clocks.usable_minimum_mhz.value, listed[0])
            parts["usable_minimum_mhz"] = made(lowest, Label.ASSUMED, f"as {self._like.name}")
            highest = min(self._at[-1].memory_mhz, listed[-1])
            requests = [(float(lowest), float(min(lowest, highest))), (float(listed[-1]), float(highest))]
            return parts | {
                "effective_mhz": self._curve(requests, "requests hold: assumed, no clock was set").model_copy(
                    update={"label": Label.ASSUMED}
                )
            }
        effective = [(at.requested_mhz, min(at.memory_mhz, at.requested_mhz)) for at in self._at]
        what = "the lowest at which clock and bandwidth follow"
        parts["usable_minimum_mhz"] = made(self._at[0].requested_mhz, measured, what)
        parts["effective_mhz"] = self._curve(
            [(float(x), float(y)) for x, y in effective], "under copies"
        ).model_copy(update={"label": measured})
        if self._probed.change_s is not None:
            parts["change_s"] = made(self._probed.change_s, measured, "the longer of up and down, under load")
        return parts

    def memory(self) -> dict[str, Any]:
        """Capacity, and bandwidth over the clock; in proportion to the like device if no clock was set."""
        capacity = self._constant(self._meter.memory_bytes, Label.MEASURED, "NVML's total")
        if len(self._at) < 2:
            curve, at = _flat(self._like.memory.bandwidth_bytes_per_s), self._at[-1]
            factor = at.bytes_per_s / float(curve.at(at.memory_mhz))
            scaled = [(clock, rate * factor) for clock, rate in curve.points]
            what = f"copies at {at.memory_mhz:.0f} MHz; other clocks in proportion to {self._like.name}"
            return {"capacity_bytes": capacity, "bandwidth_bytes_per_s": self._curve(scaled, what)}
        rates = np.maximum.accumulate([at.bytes_per_s for at in self._at])
        points = _ascending([at.memory_mhz for at in self._at], rates)
        return {"capacity_bytes": capacity, "bandwidth_bytes_per_s": self._curve(points, "copies")}

    def compute(self) -> dict[str, Any]:
        """Arithmetic for each cycle, and the time of a launch."""
        per_cycle = float(np.median([at.flops_per_s / at.compute_mhz / 1e6 for at in self._at]))
        what = f"large fp16 products reach {per_cycle:.0f}, taken as {_PRODUCTS_SHARE} of the peak"
        return {
            "matmul_flops_per_cycle": self._constant(per_cycle / _PRODUCTS_SHARE, Label.DERIVED, what),
            "launch_s": self._constant(
                self._probed.launch_s, Label.MEASURED, "small kernels in a CUDA graph"
            ),
        }

    def power(self) -> dict[str, Any]:
        """Constants of `muplan.hardware.power`, from products, copies and rest.

        Products: (P − base) / f = (idle + core · a) · V², whose lowest clock has V = 1; copies leave what is
        memory's; rest, with a context, what is the idle clock's.
        """
        like, levels = self._like.power, self._levels
        base_w = self._like.parked_w if levels.parked_w is None else levels.parked_w
        compute_mhz = np.array([at.compute_mhz for at in self._at])
        per_mhz = (np.array([at.compute_w for at in self._at]) - base_w) / compute_mhz
        if per_mhz.min() <= 0:
            raise self._contradiction("products draw no more than a GPU at rest")
        voltage, lowest_w_per_mhz = self._voltage(compute_mhz, per_mhz)
        highest_mhz = self._at[-1].memory_mhz
        squared = float(voltage.at(highest_mhz)) ** 2
        idle = max(levels.loaded_w - base_w, 1e-3) / (highest_mhz * squared)
        core = (lowest_w_per_mhz - idle) / like.matmul_core_activity.value
        if core <= 0:
            raise self._contradiction("a context at rest draws more than products")
        clock = np.array([at.memory_mhz for at in self._at])
        clocked_w = (idle + core * like.memory_core_activity.value) * clock * voltage.at(clock) ** 2
        memory_w = np.array([at.memory_w for at in self._at]) - base_w - clocked_w
        if memory_w.min() <= 0:
            raise self._contradiction("copies draw no more than the clock does")
        parked, derived = "energy counter, no context", Label.DERIVED
        parts: dict[str, Any] = {
            "base_w": self._constant(base_w, Label.ASSUMED, "the parked power"),
            "cap_w": self._constant(self._meter.power_limit_w, Label.MEASURED, "NVML's enforced limit"),
            "idle_clocking_w_per_mhz": self._constant(idle, derived, "energy counter, a context at rest"),
            "core_w_per_mhz": self._constant(core, derived, "large fp16 products"),
            "memory_w": self._constant(float(memory_w[-1]), derived, "copies"),
            "voltage_ratio": voltage,
        }
        if levels.parked_w is not None:
            parts["parked_w"] = self._constant(levels.parked_w, Label.MEASURED, parked)
        if len(self._at) < 2:
            source = {"label": Label.ASSUMED, "source": f"as {self._like.name}"}
            parts["memory_share"] = _flat(like.memory_share).model_copy(update=source)
        else:
            shares = np.maximum.accumulate(np.minimum(memory_w / memory_w[-1], 1.0))
            parts["memory_share"] = self._curve(_ascending(clock.tolist(), shares), "copies")
        return parts

    def _voltage(self, compute_mhz: Floats, per_mhz: Floats) -> tuple[Curve, float]:
        """The voltage over its lowest, over the clock, and the power of each MHz at that."""
        like: Power = self._like.power
        if len(self._at) < 2:
            curve = _flat(like.voltage_ratio)
            ratio = float(curve.at(compute_mhz[-1]))
            source = {"label": Label.ASSUMED, "source": f"as {self._like.name}"}
            return curve.model_copy(update=source), float(per_mhz[-1]) / ratio**2
        ratios = np.maximum.accumulate(np.sqrt(per_mhz / per_mhz[0]))
        points = _ascending(compute_mhz.tolist(), ratios)
        highest_mhz = self._at[-1].memory_mhz
        if points[-1][0] < highest_mhz and len(points) > 1:  # products are under the cap there
            (low, below), (high, above) = points[-2:]
            slope = max(above - below, 0.0) / (high - low)
            points.append((highest_mhz, above + slope * (highest_mhz - high)))
        return self._curve(points, "large fp16 products; in a line above the power cap"), float(per_mhz[0])

    def _contradiction(self, what: str) -> DeviceError:
        return DeviceError(f"{self._meter.name}: {what}.", _REMEDY)


def _flat(curve: Curve) -> Curve:
    """The curve of a like device, on for clocks that it does not reach."""
    return curve.model_copy(update={"flat_below": True, "flat_above": True})


def _ascending(clocks_mhz: list[float], values: Floats) -> list[tuple[float, float]]:
    """Points of a curve: of equal or falling clocks (under a cap) the first alone."""
    points = [(clocks_mhz[0], float(values[0]))]
    for (_, clock), value in zip(pairwise(clocks_mhz), values[1:].tolist(), strict=True):
        if clock > points[-1][0]:
            points.append((clock, value))
    return points
