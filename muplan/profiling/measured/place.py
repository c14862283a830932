"""Where a measurement runs: the GPU or the processor at hand. This file imports torch."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from muplan.errors import DeviceError, InputError
from muplan.hardware.catalog import DEVICE_OF_GPU
from muplan.hardware.nvml import NvmlMeter
from muplan.profiling.measured.bench import TorchBench
from muplan.profiling.measured.gpu import PROCESSOR, check_free, check_same, measure_levels, nvml_index
from muplan.profiling.measured.load import Machine
from muplan.profiling.measured.measure import Place
from muplan.profiling.measured.rules import PROCESSOR_RULES, Rules

_GPU_BATCHES, _GPU_TOKENS = (1, 2, 4, 8, 16, 32, 64), (1, 64, 128, 256, 512, 1024)
_PROCESSOR_BATCHES, _PROCESSOR_TOKENS = (1, 2, 4), (1, 32, 128, 384)
"""A processor is a thousand times slower: what a GPU measures in minutes would take it a day."""


@contextmanager
def open_place(on: str, *, use_graphs: bool = True, is_shared: bool = False) -> Iterator[Place]:
    """Find the GPU or the processor to measure on, and read it meanwhile; nothing is changed on it.

    Of a GPU, power with nothing to do is measured first, before there is a context and after.

    Parameters
    ----------
    on
        ``cuda`` or ``cuda:1``, ``cpu``, or ``auto``: a GPU if torch sees one.
    is_shared
        Whether others may use the GPU meanwhile; what they do disturbs every figure.

    Raises
    ------
    InputError
        No such place.
    DeviceError
        torch sees no GPU, others use it, it is partitioned, or NVML refuses.
    """
    kind, _, number = on.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in ("cuda", "cpu") or (number and not number.isdecimal()):
        raise InputError(f"{on}: there is no such place to measure on.", "Write auto, cpu, cuda, or cuda:1.")
    if kind == "cpu":
        yield _processor()
        return
    if not torch.cuda.is_available():
        raise DeviceError(
            "torch sees no GPU.",
            "Install torch with CUDA and the NVIDIA driver, or measure on the processor: --device cpu",
        )
    index = int(number or 0)
    with NvmlMeter(nvml_index(index, os.environ.get("CUDA_VISIBLE_DEVICES"))) as meter:
        check_free(meter, num_ours=int(torch.cuda.is_initialized()), is_shared=is_shared)
        device, host = torch.device("cuda", index), Machine()
        levels = measure_levels(meter, host, lambda: torch.zeros(1, device=device))
        check_same(meter.name, torch.cuda.get_device_name(device))
        how = "CUDA graphs" if use_graphs else "eager"
        yield Place(
            label=f"{meter.name}, driver {meter.driver}, torch {torch.__version__}, {how}",
            make_bench=partial(TorchBench, device=device, use_graphs=use_graphs),
            meter=meter,
            host=host,
            rules=Rules(),
            batches=_GPU_BATCHES,
            tokens=_GPU_TOKENS,
            device=DEVICE_OF_GPU.get(meter.name),
            levels=levels,
        )


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
