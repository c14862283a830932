"""Where a measurement runs: the GPU or the processor at hand. This file imports torch."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from muplan.errors import DeviceError, InputError
from muplan.hardware.actuator import Actuator
from muplan.hardware.catalog import DEVICE_OF_GPU
from muplan.hardware.lease import lease_clock
from muplan.hardware.nvml import NvmlMeter
from muplan.hardware.way import way_or_refusal
from muplan.profiling.measured.bench import TorchBench
from muplan.profiling.measured.gpu import (
    GPU_BATCHES,
    GPU_TOKENS,
    PROCESSOR,
    check_free,
    check_same,
    measure_levels,
    nvml_index,
)
from muplan.profiling.measured.load import Host, Machine
from muplan.profiling.measured.measure import Place
from muplan.profiling.measured.rules import PROCESSOR_RULES, Rules
from muplan.profiling.measured.summary import Levels

_PROCESSOR_BATCHES, _PROCESSOR_TOKENS = (1, 2, 4), (1, 32, 128, 384)
"""A processor is a thousand times slower: what a GPU measures in minutes would take it a day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU that is free to be measured; ``actuator`` sets its clock, None where no clock is to be set."""

    device: torch.device
    meter: NvmlMeter
    host: Host
    levels: Levels
    actuator: Actuator | None


@contextmanager
def open_place(
    on: str, *, use_graphs: bool = True, is_shared: bool = False, sets_clocks: bool = False
) -> Iterator[Place]:
    """Find the GPU or the processor to measure on, and read it meanwhile; options as `open_gpu` has.

    Raises
    ------
    InputError
        No such place, or one whose clock cannot be set.
    DeviceError
        torch sees no GPU, others use it, it is partitioned, or NVML refuses.
    """
    kind, index = _parsed(on)
    if kind == "cpu" and sets_clocks:
        raise InputError(
            "--apply-clocks does not go with the processor: muplan sets the clocks of GPUs alone.",
            "Leave it out, or measure on a GPU.",
        )
    if kind == "cpu":
        yield _processor()
        return
    with open_gpu(index, is_shared=is_shared, sets_clocks=sets_clocks) as gpu:
        meter, how = gpu.meter, "CUDA graphs" if use_graphs else "eager"
        yield Place(
            label=f"{meter.name}, driver {meter.driver}, torch {torch.__version__}, {how}",
            make_bench=partial(TorchBench, device=gpu.device, use_graphs=use_graphs),
            meter=meter,
            host=gpu.host,
            rules=Rules(),
            batches=GPU_BATCHES,
            tokens=GPU_TOKENS,
            device=DEVICE_OF_GPU.get(meter.name),
            levels=gpu.levels,
            actuator=gpu.actuator,
        )


@contextmanager
def open_gpu(index: int, *, is_shared: bool = False, sets_clocks: bool = False) -> Iterator[Gpu]:
    """Open a GPU, see that it is free, and read its power at rest, before there is a context and after.

    Nothing is changed on it, unless clocks are to be set: then they are restored on leaving.

    Parameters
    ----------
    index
        As torch numbers them.
    is_shared
        Whether others may use the GPU meanwhile; what they do disturbs every figure.
    sets_clocks
        Whether the GPU's clock is to be set, and restored.

    Raises
    ------
    DeviceError
        torch sees no GPU, others use it, it is partitioned, or NVML refuses.
    """
    if not torch.cuda.is_available():
        raise DeviceError(
            "torch sees no GPU.",
            "Install torch with CUDA and the NVIDIA driver, or measure on the processor: --device cpu",
        )
    named = nvml_index(index, os.environ.get("CUDA_VISIBLE_DEVICES"))
    with NvmlMeter(named) as meter, ExitStack() as held:
        check_free(meter, num_ours=int(torch.cuda.is_initialized()), is_shared=is_shared)
        way = way_or_refusal() if sets_clocks else None  # before minutes are spent
        device, host = torch.device("cuda", index), Machine()
        levels = measure_levels(meter, host, lambda: torch.zeros(1, device=device))
        check_same(meter.name, torch.cuda.get_device_name(device))
        actuator = held.enter_context(lease_clock(way, named)) if way else None
        yield Gpu(device=device, meter=meter, host=host, levels=levels, actuator=actuator)


def _parsed(on: str) -> tuple[str, int]:
    """``cuda`` or ``cuda:1``, ``cpu``, or ``auto``: a GPU if torch sees one."""
    kind, _, number = on.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in ("cuda", "cpu") or (number and not number.isdecimal()):
        raise InputError(f"{on}: there is no such place to measure on.", "Write auto, cpu, cuda, or cuda:1.")
    return kind, int(number or 0)


def _processor() -> Place:
    threads = torch.get_num_threads()
    return Place(
        label=f"{platform.machine()} processor, {threads} threads, float32, torch {torch.__version__}",
        make_bench=partial(TorchBench, device=torch.device("cpu")),
        meter=None,
        host=Machine(),
        rules=PROCESSOR_RULES,
        batches=_PROCESSOR_BATCHES,
        tokens=_PROCESSOR_TOKENS,
        device=PROCESSOR,
    )
