"""An emulated GPU: a meter of the same type as NVML's, for a device's physics and in emulated time.

It has what makes real GPUs hard to measure: an energy counter that is refreshed now and then, power averaged
over a window, requested clocks that are not the effective ones, a power cap that lowers the clock, heat,
clock changes that take time, and faults. Nothing sleeps: time passes when work is spent on it or its host
waits.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from functools import lru_cache

from muplan.errors import InputError
from muplan.hardware.device import Device
from muplan.hardware.meter import Reading
from muplan.hardware.nvml_refusals import refused

_AMBIENT_C, _C_PER_W, _HEATING_S = 30.0, 0.06, 20.0
"""Order of an air-cooled board: 700 W settle at 72 °C, with a time constant of 20 s."""
_DOING = {
    "read": "read the power",
    "energy_j": "read the energy counter",
    "lock_clock": "lock the clock",
    "reset_clock": "reset the clock",
}
_HOT_SHARE = 0.6
"""Of the clock, where heat holds it down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What is wrong with an emulated GPU; times are seconds since it was made.

    ``denied`` names members that need rights which are not there, ``unsupported`` those that it
    does not tell. ``hot`` holds spans of time in which heat holds the clock down; above ``ceiling_mhz`` it
    does not come, for no reason that it tells. ``others`` are processes that use it beside ours.
    """

    denied: frozenset[str] = frozenset()
    unsupported: frozenset[str] = frozenset()
    lost_after_s: float = math.inf
    hot: tuple[tuple[float, float], ...] = ()
    is_counter_frozen: bool = False
    ceiling_mhz: float = math.inf
    is_partitioned: bool = False
    others: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    """A while of constant power; ``energy_j`` was drawn until its end."""

    end_s: float
    power_w: float
    energy_j: float


class EmulatedGpu:
    """One GPU of a type, and the host's clock beside it.

    Parameters
    ----------
    device
        Its physics.
    counter_step_s
        The energy counter is refreshed so often; real ones every 20 to 100 ms.
    window_s
        The power that is read is the mean over so long; a second on Ampere and newer.
    """

    def __init__(
        self,
        device: Device,
        *,
        index: int = 0,
        faults: Faults | None = None,
        counter_step_s: float = 0.02,
        window_s: float = 1.0,
    ) -> None:
        self.device, self.faults = device, faults or Faults()
        self.has_context = False
        self._place, self._counter_step_s, self._window_s = f"GPU {index}: ", counter_step_s, window_s
        self._now_s, self._temperature_c = 0.0, _AMBIENT_C
        self._requested_mhz = device.max_clock_mhz
        self.locked_mhz: int | None = None
        self._coming: tuple[float, int] | None = None
        self._spans: deque[_Span] = deque([_Span(end_s=0.0, power_w=device.parked_w, energy_j=0.0)])
        self._limits: tuple[str, ...] = ()
        self._clock_mhz = float(device.supported_clocks_mhz[0])
        self._operating = lru_cache(maxsize=4096)(self._operating_uncached)

    # --- time and work --------------------------------------------------------------------------

    def now_s(self) -> float:
        """Emulated seconds since it was made."""
        return self._now_s

    @property
    def power_w(self) -> float:
        """What it drew last, over no window."""
        return self._spans[-1].power_w

    def sleep(self, seconds: float) -> None:
        """Let time pass with nothing to do."""
        self._pass(seconds, None)

    def spend(self, seconds: float, *, core: float, memory: float) -> None:
        """Let time pass at work of these activities (0 to 1); a context is made where there is none."""
        self.has_context = True
        self._pass(seconds, (core, memory))

    def effective_mhz(self, *, core: float, memory: float) -> float:
        """The clock that work of these activities runs at now."""
        return self._operating(self._requested_mhz, core, memory, self._is_hot(self._now_s))[0]

    def lock_clock(self, clock_mhz: int) -> None:
        """Ask for a clock; it comes after the device's time for a change.

        Raises
        ------
        InputError
            The driver does not list it.
        """
        self._check("lock_clock")
        if clock_mhz not in self.device.supported_clocks_mhz:
            raise InputError(
                f"{clock_mhz} MHz is no clock of {self.device.name}.", "Ask for one that the driver lists."
            )
        self.locked_mhz = clock_mhz
        self._coming = (self._now_s + self.device.clock_change_s, clock_mhz)

    def reset_clock(self) -> None:
        """Let it choose the clock again."""
        self._check("reset_clock")
        self.locked_mhz = None
        self._coming = (self._now_s + self.device.clock_change_s, self.device.max_clock_mhz)

    def _pass(self, seconds: float, work: tuple[float, float] | None) -> None:
        """Let time pass, cut wherever the clock changes."""
        end_s = self._now_s + seconds
        while self._now_s < end_s:
            if self._coming is not None and self._coming[0] <= self._now_s:
                self._requested_mhz, self._coming = self._coming[1], None
            edges = [edge for span in self.faults.hot for edge in span]
            edges += [self._coming[0]] if self._coming else []
            until_s = min([end_s, *(edge for edge in edges if self._now_s < edge < end_s)])
            power_w = self._power_w(work)
            span_s = until_s - self._now_s
            settled_c = _AMBIENT_C + _C_PER_W * power_w
            self._temperature_c += (settled_c - self._temperature_c) * -math.expm1(-span_s / _HEATING_S)
            drawn_j = self._spans[-1].energy_j + power_w * span_s
            self._spans.append(_Span(end_s=until_s, power_w=power_w, energy_j=drawn_j))
            self._now_s = until_s
            while len(self._spans) > 2 and self._spans[1].end_s < self._now_s - self._window_s - 1.0:
                self._spans.popleft()

    def _power_w(self, work: tuple[float, float] | None) -> float:
        """Power from now on; notes clock and limits, which readings tell."""
        if work is None and not self.has_context:
            self._clock_mhz, self._limits = float(self.device.supported_clocks_mhz[0]), ()
            return self.device.parked_w
        core, memory = work or (0.0, 0.0)
        is_hot = self._is_hot(self._now_s)
        self._clock_mhz, power_w, is_capped = self._operating(self._requested_mhz, core, memory, is_hot)
        self._limits = tuple(
            limit
            for limit, holds in (
                ("application clocks", self._requested_mhz < self.device.max_clock_mhz),
                ("power cap", is_capped),
                ("thermal", is_hot),
            )
            if holds
        )
        return power_w

    def _is_hot(self, at_s: float) -> bool:
        return any(start_s <= at_s < end_s for start_s, end_s in self.faults.hot)

    def _operating_uncached(
        self, requested_mhz: int, core: float, memory: float, is_hot: bool
    ) -> tuple[float, float, bool]:
        """Clock, power, and whether the power cap lowers the clock."""
        wanted_mhz = min(self.device.effective_clock_mhz(requested_mhz), self.faults.ceiling_mhz)
        clock_mhz = float(self.device.capped_clocks_mhz(wanted_mhz, core, memory))
        is_capped = clock_mhz < wanted_mhz
        if is_hot:
            lowest = self.device.effective_clock_mhz(self.device.usable_clocks_mhz[0])
            clock_mhz = max(lowest, _HOT_SHARE * clock_mhz)
        return clock_mhz, float(self.device.busy_power_w(clock_mhz, core, memory)), is_capped

    # --- the meter ------------------------------------------------------------------------------

    def _check(self, member: str) -> None:
        """Refuse what the faults say, as NVML would."""
        if self._now_s >= self.faults.lost_after_s:
            code, said = "NVML_ERROR_GPU_IS_LOST", "GPU is lost"
        elif member in self.faults.denied:
            code, said = "NVML_ERROR_NO_PERMISSION", "Insufficient Permissions"
        elif member in self.faults.unsupported:
            code, said = "NVML_ERROR_NOT_SUPPORTED", "Not Supported"
        else:
            return
        raise refused(self._place, _DOING.get(member, f"read {member}"), code, said)

    @property
    def name(self) -> str:
        """What it emulates."""
        self._check("name")
        return f"emulated {self.device.name}"

    @property
    def driver(self) -> str:
        """No driver's version."""
        self._check("driver")
        return "emulated"

    @property
    def supported_clocks_mhz(self) -> tuple[int, ...]:
        """The device's list."""
        self._check("supported_clocks_mhz")
        return self.device.supported_clocks_mhz

    @property
    def power_limit_w(self) -> float:
        """The device's cap."""
        self._check("power_limit_w")
        return self.device.power_cap_w

    @property
    def memory_bytes(self) -> int:
        """The device's memory."""
        self._check("memory_bytes")
        return self.device.memory_bytes

    @property
    def memory_used_bytes(self) -> int:
        """What the context reserves."""
        self._check("memory_used_bytes")
        reserved = self.device.memory_bytes - self.device.usable_memory_bytes
        return reserved if self.has_context else 0

    @property
    def num_processes(self) -> int:
        """Ours, where it has a context, and those of others."""
        self._check("num_processes")
        return self.faults.others + self.has_context

    @property
    def is_partitioned(self) -> bool:
        """As the faults say."""
        self._check("is_partitioned")
        return self.faults.is_partitioned

    def energy_j(self) -> float:
        """What the counter showed when it was last refreshed, in whole millijoules."""
        self._check("energy_j")
        if self.faults.is_counter_frozen:
            return 0.0
        refreshed_s = math.floor(self._now_s / self._counter_step_s + 1e-9) * self._counter_step_s
        return math.floor(self._energy_until_j(refreshed_s) * 1e3) / 1e3

    def read(self) -> Reading:
        """Mean power over the window, and the clock, heat and limits of now."""
        self._check("read")
        begin_s = max(0.0, self._now_s - self._window_s)
        seconds = self._now_s - begin_s
        drawn_j = self._spans[-1].energy_j - self._energy_until_j(begin_s)
        return Reading(
            power_w=drawn_j / seconds if seconds else self._spans[-1].power_w,
            sm_clock_mhz=round(self._clock_mhz),
            temperature_c=round(self._temperature_c),
            limits=self._limits,
        )

    def _energy_until_j(self, at_s: float) -> float:
        """Energy drawn until a time that is not forgotten yet."""
        place = bisect_right(self._spans, at_s, key=lambda span: span.end_s)
        before = self._spans[max(place - 1, 0)]
        if place in (0, len(self._spans)):
            return before.energy_j
        return before.energy_j + (at_s - before.end_s) * self._spans[place].power_w
