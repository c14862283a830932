"""The NVML meter: energy, power and clocks of an NVIDIA GPU through ``nvidia-ml-py``; read-only.

NVML counts in milliwatts and millijoules; nothing beyond this file sees them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from muplan.errors import DeviceError, DriverTooOldError, NotSupportedError
from muplan.hardware.meter import Reading
from muplan.hardware.nvml_refusals import REFUSALS, refused

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


class Nvml:
    """The NVML library; use it in a ``with``.

    Raises
    ------
    DeviceError
        NVML refuses, on entering or on any reading: one of its kinds in `muplan.errors`, with what NVML
        said and what to do.
    """

    _place = ""

    def __enter__(self) -> Self:
        """Load NVML."""
        import pynvml

        self._nvml = pynvml
        self._ask("be loaded", "nvmlInit")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unload NVML; a GPU that is lost is no second error."""
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _ask(self, doing: str, call: str, *arguments: Any) -> Any:
        """Call NVML; its refusal becomes a named error. A binding without the call is too old as well."""
        try:
            function: Callable[..., Any] = getattr(self._nvml, call)
        except AttributeError:
            raise DriverTooOldError(
                f"{self._place}nvidia-ml-py has no {call}, so NVML could not {doing}.",
                "Update it: pip install -U nvidia-ml-py",
            ) from None
        try:
            return function(*arguments)
        except self._nvml.NVMLLibraryMismatchError as error:  # how the binding tells a missing newer version
            raise refused(self._place, doing, "NVML_ERROR_FUNCTION_NOT_FOUND", f"no {call}") from error
        except self._nvml.NVMLError as error:
            value = getattr(error, "value", None)
            code = next((name for name in REFUSALS if getattr(self._nvml, name, None) == value), "")
            raise refused(self._place, doing, code, str(error)) from error

    @property
    def driver(self) -> str:
        """Version of the driver."""
        return str(self._ask("read the driver's version", "nvmlSystemGetDriverVersion"))

    @property
    def nvml_version(self) -> str:
        """Version of the NVML library."""
        return str(self._ask("read its own version", "nvmlSystemGetNVMLVersion"))

    @property
    def num_gpus(self) -> int:
        """How many GPUs there are."""
        return int(self._ask("count the GPUs", "nvmlDeviceGetCount"))


class NvmlGpu(Nvml):
    """One GPU; use it in a ``with``.

    Parameters
    ----------
    index
        As nvidia-smi numbers them, or its UUID (``GPU-…``).
    """

    def __init__(self, index: int | str = 0) -> None:
        self._index = index
        self._place = f"GPU {index}: "
        self._handle: Any = None

    def __enter__(self) -> Self:
        """Load NVML and find the GPU."""
        super().__enter__()
        by = "Index" if isinstance(self._index, int) else "UUID"
        try:
            self._handle = self._ask("find the GPU", f"nvmlDeviceGetHandleBy{by}", self._index)
        except DeviceError:
            self.__exit__(None, None, None)
            raise
        return self


class NvmlMeter(NvmlGpu):
    """Reads one GPU; use it in a ``with``."""

    # --- what it is -----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The GPU's name, as its driver gives it."""
        return str(self._ask("read the name", "nvmlDeviceGetName", self._handle))

    @property
    def supported_clocks_mhz(self) -> tuple[int, ...]:
        """The SM clocks that the driver lists at the highest memory clock, ascending."""
        memory = self._ask("list memory clocks", "nvmlDeviceGetSupportedMemoryClocks", self._handle)
        call = "nvmlDeviceGetSupportedGraphicsClocks"
        clocks = self._ask("list the clocks", call, self._handle, max(memory))
        return tuple(sorted(int(clock) for clock in clocks))

    @property
    def power_limit_w(self) -> float:
        """The power limit in force."""
        return float(self._ask("read the limit", "nvmlDeviceGetEnforcedPowerLimit", self._handle)) / 1e3

    @property
    def memory_bytes(self) -> int:
        """All of the GPU's memory."""
        return int(self._ask("read the memory", "nvmlDeviceGetMemoryInfo", self._handle).total)

    # --- who uses it ----------------------------------------------------------------------------

    @property
    def memory_used_bytes(self) -> int:
        """What of the memory is taken, by anyone."""
        return int(self._ask("read the memory", "nvmlDeviceGetMemoryInfo", self._handle).used)

    @property
    def num_processes(self) -> int:
        """Processes with a context on the GPU, our own among them."""
        call = "nvmlDeviceGetComputeRunningProcesses"
        return len(self._ask("list the processes", call, self._handle))

    @property
    def is_partitioned(self) -> bool:
        """Whether the GPU is divided into MIG instances; a GPU that knows no MIG is not."""
        try:
            current, _ = self._ask("read the MIG mode", "nvmlDeviceGetMigMode", self._handle)
        except (NotSupportedError, DriverTooOldError):
            return False
        return bool(current)

    # --- what it does ---------------------------------------------------------------------------

    def energy_j(self) -> float:
        """Energy drawn since the driver was loaded, joules; Volta and newer."""
        call = "nvmlDeviceGetTotalEnergyConsumption"
        return float(self._ask("read the energy counter", call, self._handle)) / 1e3

    def read(self) -> Reading:
        """Look at power (the driver's average), SM clock, temperature and clock-event reasons."""
        nvml, handle = self._nvml, self._handle
        return Reading(
            power_w=float(self._ask("read the power", "nvmlDeviceGetPowerUsage", handle)) / 1e3,
            sm_clock_mhz=int(
                self._ask("read the clock", "nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM)
            ),
            temperature_c=int(
                self._ask(
                    "read the temperature", "nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU
                )
            ),
            limits=self._limits(),
        )

    def _limits(self) -> tuple[str, ...]:
        """What keeps the clock down. Before driver 535, NVML called clock events throttle reasons."""
        doing = "read the clock events"
        try:
            reasons = int(self._ask(doing, "nvmlDeviceGetCurrentClocksEventReasons", self._handle))
        except DriverTooOldError:
            reasons = int(self._ask(doing, "nvmlDeviceGetCurrentClocksThrottleReasons", self._handle))
        found = {
            words
            for name, words in _LIMITS.items()
            if reasons
            & int(
                getattr(self._nvml, f"nvmlClocksEventReason{name}", 0)
                or getattr(self._nvml, f"nvmlClocksThrottleReason{name}", 0)
            )
        }
        return tuple(sorted(found))
