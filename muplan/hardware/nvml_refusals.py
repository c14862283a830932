"""What NVML's error codes mean, and what to do about each."""

from __future__ import annotations

from dataclasses import dataclass

from muplan.errors import (
    DeviceError,
    DriverMissingError,
    DriverTooOldError,
    GpuBusyError,
    GpuLostError,
    NoSuchGpuError,
    NotSupportedError,
    PermissionDeniedError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A kind of error with its advice."""

    error: type[DeviceError]
    advice: str


_LOST = Refusal(
    error=GpuLostError,
    advice="Stop what uses the GPU, then reset it (nvidia-smi --gpu-reset) or restart the machine.",
)
_MISSING = (
    "Install or load the NVIDIA driver, so that nvidia-smi lists the GPU; in a container, pass the GPU in."
)

REFUSALS = {
    "NVML_ERROR_LIBRARY_NOT_FOUND": Refusal(error=DriverMissingError, advice=_MISSING),
    "NVML_ERROR_DRIVER_NOT_LOADED": Refusal(error=DriverMissingError, advice=_MISSING),
    "NVML_ERROR_UNINITIALIZED": Refusal(error=DriverMissingError, advice=_MISSING),
    "NVML_ERROR_FUNCTION_NOT_FOUND": Refusal(
        error=DriverTooOldError, advice="Update the NVIDIA driver: muplan needs one of branch 470 or newer."
    ),
    "NVML_ERROR_ARGUMENT_VERSION_MISMATCH": Refusal(
        error=DriverTooOldError, advice="Bring the driver and nvidia-ml-py to like versions."
    ),
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": Refusal(
        error=DriverTooOldError,
        advice="The driver was updated while loaded: restart the machine, or the container.",
    ),
    "NVML_ERROR_NO_PERMISSION": Refusal(
        error=PermissionDeniedError,
        advice="Run as root; in a container, add the capability SYS_ADMIN; or let zeusd run as root and name"
        " its socket in ZEUSD_SOCK_PATH. (nvidia-smi -acp UNRESTRICTED allows application clocks alone, which"
        " muplan does not use.)",
    ),
    "NVML_ERROR_NOT_SUPPORTED": Refusal(
        error=NotSupportedError,
        advice="Measure on another GPU: energy needs Volta or newer, and vGPUs and MIG instances tell less.",
    ),
    "NVML_ERROR_INVALID_ARGUMENT": Refusal(error=NoSuchGpuError, advice="Name a GPU that nvidia-smi lists."),
    "NVML_ERROR_NOT_FOUND": Refusal(error=NoSuchGpuError, advice="Name a GPU that nvidia-smi lists."),
    "NVML_ERROR_GPU_NOT_FOUND": Refusal(error=NoSuchGpuError, advice="Name a GPU that nvidia-smi lists."),
    "NVML_ERROR_GPU_IS_LOST": _LOST,
    "NVML_ERROR_RESET_REQUIRED": _LOST,
    "NVML_ERROR_IN_USE": Refusal(error=GpuBusyError, advice="Wait until others are done with the GPU."),
    "NVML_ERROR_TIMEOUT": Refusal(
        error=GpuBusyError, advice="Try again; if it stays, see dmesg for Xid errors."
    ),
    "NVML_ERROR_INSUFFICIENT_POWER": Refusal(
        error=DeviceError, advice="Connect the GPU's power cables, then restart the machine."
    ),
}
"""By NVML's name of the code."""

UNKNOWN = Refusal(error=DeviceError, advice="See what nvidia-smi and dmesg say of the GPU.")
"""Of every other code."""


def refused(place: str, doing: str, code: str, said: str) -> DeviceError:
    """Return the named error for a call of NVML that failed.

    Parameters
    ----------
    place
        What the message begins with: ``GPU 0: ``, or nothing.
    code
        NVML's name of the error, empty if unknown.
    """
    refusal = REFUSALS.get(code, UNKNOWN)
    return refusal.error(f"{place}NVML could not {doing}: {said}.", refusal.advice)
