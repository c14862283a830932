"""The NVML meter: energy, power and clocks of an NVIDIA GPU through ``nvidia-ml-py``; read-only.

NVML counts in milliwatts and millijoules; nothing beyond this file sees them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from muplan.errors import DeviceError
from muplan.hardware.meter import Reading

_LIMITS = {
    "SwPowerCap": "power cap",
    "HwPowerBrakeSlowdown": "power brake",
    "SwThermalSlowdown": "thermal",
    "HwThermalSlowdown": "thermal",
    "HwSlowdown": "hardware slowdown",
    "ApplicationsClocksSetting": "application clocks",
    "SyncBoost": "sync boost",
}
"""Clock-event reasons of NVML that keep the clock down, in words."""

_ADVICE = {
    "NVML_ERROR_LIBRARY_NOT_FOUND": "Install the NVIDIA driver, or run where one is.",
    "NVML_ERROR_DRIVER_NOT_LOADED": "Load the NVIDIA driver: nvidia-smi must list the GPU.",
    "NVML_ERROR_NO_PERMISSION": "Run as root; in a container, add the capability SYS_ADMIN.",
    "NVML_ERROR_NOT_SUPPORTED": "This GPU does not tell it; energy needs Volta or newer.",
    "NVML_ERROR_FUNCTION_NOT_FOUND": "The driver is too old for this call; update it.",
    "NVML_ERROR_GPU_IS_LOST": "The GPU fell off the bus; reset it or restart the machine.",
    "NVML_ERROR_INVALID_ARGUMENT": "Name a GPU that nvidia-smi lists.",
}


class NvmlMeter:
    """One GPU by its index; use it in a ``with``.

    Parameters
    ----------
    index
        As nvidia-smi numbers them.

    Raises
    ------
    DeviceError
        NVML refuses, on entering or on any reading: what it said, and what to do.
    """

    def __init__(self, index: int = 0) -> None:
        self._index = index
        self._handle: Any = None

    def __enter__(self) -> Self:
        """Load NVML and find the GPU."""
        import pynvml

        self._nvml = pynvml
        self._ask("load NVML", pynvml.nvmlInit)
        self._handle = self._ask("find the GPU", pynvml.nvmlDeviceGetHandleByIndex, self._index)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unload NVML; a GPU that is lost is no second error."""
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _ask(self, doing: str, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except self._nvml.NVMLError as error:
            code = next(
                (name for name in _ADVICE if getattr(self._nvml, name) == getattr(error, "value", None)), None
            )
            raise DeviceError(
                f"GPU {self._index}: NVML could not {doing}: {error}.",
                _ADVICE.get(code or "", "See what nvidia-smi says of the GPU."),
            ) from error

    @property
    def name(self) -> str:
        """The GPU's name, as its driver gives it."""
        return str(self._ask("read the name", self._nvml.nvmlDeviceGetName, self._handle))

    @property
    def driver(self) -> str:
        """Version of the driver."""
        return str(self._ask("read the driver's version", self._nvml.nvmlSystemGetDriverVersion))

    @property
    def max_sm_clock_mhz(self) -> int:
        """The highest SM clock that the driver lists."""
        nvml = self._nvml
        return int(
            self._ask(
                "read the highest clock", nvml.nvmlDeviceGetMaxClockInfo, self._handle, nvml.NVML_CLOCK_SM
            )
        )

    def energy_j(self) -> float:
        """Energy drawn since the driver was loaded, joules; Volta and newer."""
        call = self._nvml.nvmlDeviceGetTotalEnergyConsumption
        return float(self._ask("read the energy counter", call, self._handle)) / 1e3

    def read(self) -> Reading:
        """Look at power (the driver's average), SM clock, temperature and clock-event reasons."""
        nvml, handle = self._nvml, self._handle
        reasons = int(self._ask("read the clock events", nvml.nvmlDeviceGetCurrentClocksEventReasons, handle))
        limits = {
            words
            for name, words in _LIMITS.items()
            if reasons & int(getattr(nvml, f"nvmlClocksEventReason{name}", 0) or _old_reason(nvml, name))
        }
        return Reading(
            power_w=float(self._ask("read the power", nvml.nvmlDeviceGetPowerUsage, handle)) / 1e3,
            sm_clock_mhz=int(
                self._ask("read the clock", nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM)
            ),
            temperature_c=int(
                self._ask(
                    "read the temperature", nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU
                )
            ),
            limits=tuple(sorted(limits)),
        )


def _old_reason(nvml: Any, name: str) -> int:
    """A clock-event reason under its older name: NVML called them throttle reasons."""
    return int(getattr(nvml, f"nvmlClocksThrottleReason{name}", 0))
