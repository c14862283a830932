"""A GPU before anything is measured on it: which one it is, whether it is free, what it draws at rest."""

from __future__ import annotations

from collections.abc import Callable

from muplan.errors import DeviceError, GpuBusyError, InputError, NotSupportedError
from muplan.hardware.catalog import DEVICE_OF_GPU
from muplan.hardware.meter import Meter
from muplan.profiling.measured.draw import draw_idle
from muplan.profiling.measured.load import Host
from muplan.profiling.measured.summary import Levels

PROCESSOR = "cpu"
"""The shipped device that a processor is."""
GPU_BATCHES, GPU_TOKENS = (1, 2, 4, 8, 16, 32, 64), (1, 64, 128, 256, 512, 1024)
"""What is measured on a GPU where nothing else is asked for."""


def nvml_index(index: int, visible: str | None) -> int | str:
    """Return what NVML calls the GPU that torch numbers ``index``: a number, or a UUID.

    Parameters
    ----------
    visible
        CUDA_VISIBLE_DEVICES: it renumbers GPUs for CUDA, not for NVML.

    Raises
    ------
    DeviceError
        The variable hides the GPU.
    """
    if visible is None:
        return index
    names = [name.strip() for name in visible.split(",")]
    if index >= len(names) or not names[index]:
        raise DeviceError(
            f"CUDA_VISIBLE_DEVICES is {visible!r}: there is no GPU {index} in it.",
            "Name another GPU, or change the variable.",
        )
    return int(names[index]) if names[index].isdecimal() else names[index]


def check_free(meter: Meter, *, num_ours: int = 0, is_shared: bool = False) -> None:
    """Refuse a GPU that is partitioned, or that others use unless that is wanted; its counter must answer.

    Parameters
    ----------
    num_ours
        Contexts on it that are our own.

    Raises
    ------
    DeviceError
        As said: NotSupportedError, GpuBusyError, or what NVML refuses.
    """
    if meter.is_partitioned:
        raise NotSupportedError(
            f"{meter.name} is divided into instances (MIG), whose power and clock nothing tells apart.",
            "Measure on a whole GPU: another one, or ask the administrator to end MIG mode.",
        )
    count = meter.num_processes - num_ours
    if count > 0 and not is_shared:
        raise GpuBusyError(
            f"{meter.name} is in use by {count} other process{'es' if count > 1 else ''}.",
            "Wait until they end (nvidia-smi lists them), or measure beside them: --shared",
        )
    meter.energy_j()


def check_same(driver_name: str, torch_name: str) -> None:
    """Refuse where NVML and torch do not speak of the same GPU."""
    if driver_name != torch_name:
        raise DeviceError(
            f"NVML's GPU is {driver_name}, torch's of the same number {torch_name}.",
            "Let CUDA number GPUs as NVML does: CUDA_DEVICE_ORDER=PCI_BUS_ID",
        )


def measure_levels(meter: Meter, host: Host, make_context: Callable[[], object]) -> Levels:
    """Measure power at rest: parked, unless somebody has a context; then with a context of our own."""
    parked = draw_idle(meter, host).power_w if meter.num_processes == 0 else None
    held = make_context()
    loaded = draw_idle(meter, host).power_w
    del held
    return Levels(parked_w=parked, loaded_w=loaded)


def check_device(found: str | None, asked: str) -> None:
    """Refuse to measure a shipped GPU type on something else; a device of one's own may be anything.

    Raises
    ------
    InputError
        What was found is another shipped device, or what was asked for is a GPU that was not found.
    """
    shipped = {PROCESSOR, *DEVICE_OF_GPU.values()}
    if asked == found or not (found in shipped and asked in shipped):
        return
    raise InputError(
        f"--device {asked} is not what is at hand, which is {found}.",
        f"Measure it as what it is, --device {found}, or with a device file of your own.",
    )
