"""Clocks of an NVIDIA GPU changed through NVML; Volta and newer, and the rights of an administrator."""

from __future__ import annotations

from muplan.errors import NoSuchGpuError, NotSupportedError
from muplan.hardware.nvml import NvmlGpu


class NvmlActuator(NvmlGpu):
    """Locks the SM clock of one GPU; use it in a ``with``, which by itself restores nothing."""

    def lock_clock(self, clock_mhz: int) -> None:
        """Ask for one clock."""
        doing, call = f"lock the clock at {clock_mhz} MHz", "nvmlDeviceSetGpuLockedClocks"
        try:
            self._ask(doing, call, self._handle, clock_mhz, clock_mhz)
        except NoSuchGpuError as error:  # to NVML one invalid argument is like another; the GPU was found
            raise NotSupportedError(error.problem, "Ask for a clock that the driver lists.") from error

    def reset_clock(self) -> None:
        """Let the driver choose the clock again."""
        self._ask("reset the clock", "nvmlDeviceResetGpuLockedClocks", self._handle)

    @property
    def pci_address(self) -> str:
        """Where the GPU is on the bus, as ``lspci -D`` writes it: ``0000:41:00.0``."""
        info = self._ask("read the PCI address", "nvmlDeviceGetPciInfo", self._handle)
        return f"{info.domain:04x}:{info.bus:02x}:{info.device:02x}.0"
