"""Energy of local GPUs over a run: their counters are read while it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from muplan.endpoints import Endpoints
from muplan.errors import DeviceError
from muplan.serving.gpu_energy import EVERY_S, EnergyReadings, Meters, read_counters


@contextmanager
def nvml_meters(endpoints: Endpoints) -> Iterator[Meters | None]:
    """Open a meter for every GPU that the endpoints name; None where they name none.

    Raises
    ------
    DeviceError
        NVML refuses one of them.
    """
    from muplan.hardware.nvml import NvmlMeter

    gpus = [*endpoints.parked_gpus, *(gpu for one in endpoints.endpoints for gpu in one.gpus)]
    if not gpus:
        yield None
        return
    with ExitStack() as opened:
        yield {gpu: opened.enter_context(NvmlMeter(gpu)) for gpu in dict.fromkeys(gpus)}


async def read_on(
    meters: Meters, readings: EnergyReadings, now_s: Callable[[], float], until_s: float
) -> None:
    """Read all counters now and then until a time is past; a GPU that refuses ends it, not the run."""
    while True:
        try:
            # In a thread of its own, for the driver may take milliseconds: no request waits for that.
            at_s, counters_j = await asyncio.to_thread(read_counters, meters, now_s)
        except DeviceError as error:
            readings.fault = error.problem
            return
        readings.note(at_s, counters_j)
        if at_s >= until_s:
            return
        await asyncio.sleep(EVERY_S)
