"""A worker process: it holds stages, and runs what comes, first in, first out. Imports torch."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from muplan.errors import InputError, MuplanError
from muplan.serving.workers.generate_stage import make_stage
from muplan.serving.workers.messages import Order, Ran, Ready, Refused
from muplan.serving.workers.parts import WorkerParts
from muplan.serving.workers.stage import Stage, check_memory


def work(connection: Connection, held: WorkerParts, index: int) -> None:
    """Make the stages, say so, and run passes until the connection ends.

    Parameters
    ----------
    index
        Which GPU, or processor core, of the machine.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the executor's, which ends the workers
    try:
        with torch.inference_mode():
            stages = make_stages(held, index)
            connection.send(Ready())
            _serve(connection, stages)
    except REFUSALS as error:
        connection.send(refusal(held, error))


def make_stages(held: WorkerParts, index: int) -> dict[str, Stage]:
    """The stages of a worker by service, on a GPU or processor core of this host, warmed up."""
    device, free_bytes = _open(held.device, index)
    check_memory(held.name, held.parts, device, free_bytes)
    stages = {part.service: make_stage(part, device) for part in held.parts}
    for stage in stages.values():
        stage.warm_up()
    return stages


REFUSALS = (MuplanError, torch.OutOfMemoryError, MemoryError)
"""Errors of which a worker tells, rather than to die."""


def refusal(held: WorkerParts, error: Exception) -> Refused:
    """What is told of one of `REFUSALS`."""
    if isinstance(error, MuplanError):
        is_input = isinstance(error, InputError)
        return Refused(problem=error.problem, remedy=error.remedy, is_input=is_input)
    said = str(error).split(".")[0]
    return Refused(
        problem=f"{held.name}: a pass does not fit in the memory of {held.gpu} ({said}).",
        remedy="Plan with more 'reserved' memory on that device, or smaller batches.",
    )


def _open(name: str, index: int) -> tuple[torch.device, int]:
    """The device, to this process alone as far as that goes, and the bytes that are free on it."""
    if name == "cpu":
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[index % len(cores)]})
        torch.set_num_threads(1)
        return torch.device("cpu"), _available_bytes()
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device, int(torch.cuda.mem_get_info(device)[0])


def _available_bytes() -> int:
    """Memory that the host can give, without what it would have to swap."""
    with Path("/proc/meminfo").open(encoding="ascii") as lines:
        kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kib) * 1024


def _serve(connection: Connection, stages: dict[str, Stage]) -> None:
    """Run what comes, first in, first out.

    Passes are received beside the computing, so that whoever sends does not wait for it.
    """
    arrived: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, arrived), daemon=True).start()
    while (order := arrived.get()) is not None:
        stage = stages[order.service]
        begin_s = time.monotonic()
        values = stage.run(order).cpu().numpy()  # waits for a GPU
        connection.send(Ran(number=order.number, begin_s=begin_s, end_s=time.monotonic(), leaving=values))


def _receive(connection: Connection, arrived: queue.SimpleQueue[Order | None]) -> None:
    try:
        while True:
            arrived.put(connection.recv())
    except (EOFError, OSError):
        arrived.put(None)
