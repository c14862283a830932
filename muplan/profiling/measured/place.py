"""Where a measurement runs: the GPU or the processor at hand. This file imports torch."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from muplan.errors import DeviceError, InputError
from muplan.hardware.nvml import NvmlMeter
from muplan.profiling.measured.stopwatch import Stopwatch

DEVICE_OF_GPU = {
    "NVIDIA H200": "h200-sxm5-141gb",
    "NVIDIA H100 80GB HBM3": "h100-sxm5-80gb",
    "NVIDIA A100-SXM4-80GB": "a100-sxm4-80gb",
    "Tesla V100-SXM2-32GB": "v100-sxm2-32gb",
    "Tesla V100-SXM2-16GB": "v100-sxm2-16gb",
    "Tesla V100-PCIE-16GB": "v100-pcie-16gb",
}
"""The shipped device of each GPU, by the name that its driver gives it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A stopwatch with what a profile says of it; ``device`` is the shipped device that it is, if any."""

    stopwatch: Stopwatch
    label: str
    device: str | None


@contextmanager
def open_place(on: str, *, use_graphs: bool = True) -> Iterator[Place]:
    """Find the GPU or the processor to measure on, and read it meanwhile; nothing is changed on it.

    Parameters
    ----------
    on
        ``cuda`` or ``cuda:1``, ``cpu``, or ``auto``: a GPU if torch sees one.

    Raises
    ------
    InputError
        No such place.
    DeviceError
        torch sees no GPU, or NVML refuses.
    """
    kind, _, number = on.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in ("cuda", "cpu") or (number and not number.isdecimal()):
        raise InputError(f"--on {on}: there is no such place.", "Write auto, cpu, cuda, or cuda:1.")
    if kind == "cpu":
        threads = torch.get_num_threads()
        label = f"{platform.machine()} processor, {threads} threads, float32, torch {torch.__version__}"
        yield Place(stopwatch=Stopwatch(torch.device("cpu")), label=label, device="cpu")
        return
    if not torch.cuda.is_available():
        raise DeviceError(
            "torch sees no GPU.", "Install torch with CUDA and the NVIDIA driver, or measure on: --on cpu"
        )
    index = int(number or 0)
    with NvmlMeter(index) as meter:
        stopwatch = Stopwatch(torch.device("cuda", index), meter, use_graphs)
        how = "CUDA graphs" if use_graphs else "eager"
        label = f"{meter.name}, driver {meter.driver}, torch {torch.__version__}, {how}"
        yield Place(stopwatch=stopwatch, label=label, device=DEVICE_OF_GPU.get(meter.name))


def check_device(found: str | None, asked: str) -> None:
    """Refuse to measure a shipped GPU type on something else; a device of one's own may be anything.

    Raises
    ------
    InputError
        What was found is another shipped device, or what was asked for is a GPU that was not found.
    """
    shipped = {"cpu", *DEVICE_OF_GPU.values()}
    if asked == found or not (found in shipped and asked in shipped):
        return
    raise InputError(
        f"--device {asked} is not what is at hand, which is {found}.",
        f"Measure it as what it is, --device {found}, or with a device file of your own.",
    )
