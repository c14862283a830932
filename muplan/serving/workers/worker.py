"""A worker process: it holds stages, and runs passes in the order in which they come. Imports torch."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from muplan.errors import DeviceError
from muplan.serving.workers.messages import Ran, Ready, Refused, Run
from muplan.serving.workers.parts import WorkerParts
from muplan.serving.workers.stage import Stage, check_memory

_WARM_UPS = 3


def work(connection: Connection, held: WorkerParts, index: int) -> None:
    """Make the stages, say so, and run passes until the connection ends.

    Parameters
    ----------
    index
        Which GPU, or processor core, of the machine.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the executor's, which ends the workers
    try:
        device, free_bytes = _open(held.device, index)
        check_memory(held.name, held.parts, device, free_bytes)
        with torch.inference_mode():
            stages = {part.service: Stage(part, device) for part in held.parts}
            _warm_up(stages)
            connection.send(Ready())
            _serve(connection, stages)
    except DeviceError as error:
        connection.send(Refused(problem=error.problem, remedy=error.remedy))
    except (torch.OutOfMemoryError, MemoryError) as error:
        connection.send(
            Refused(
                problem=f"{held.name}: a pass does not fit in the memory of {held.gpu}"
                f" ({str(error).split('.')[0]}).",
                remedy="Plan with more 'reserved' memory on that device, or smaller batches.",
            )
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


def _warm_up(stages: dict[str, Stage]) -> None:
    """Run every part at its smallest and largest batch: libraries choose their kernels at the first pass."""
    for stage in stages.values():
        for batch in sorted({1, stage.part.max_batch}):
            for _ in range(_WARM_UPS):
                stage(_input(stage, batch))


def _input(stage: Stage, batch: int) -> torch.Tensor:
    if stage.is_first:
        return stage.entering(batch)
    hidden = stage.part.graph.hidden_size
    return torch.zeros((batch, stage.part.tokens, hidden), device=stage.device, dtype=stage.dtype)


def _serve(connection: Connection, stages: dict[str, Stage]) -> None:
    """Run what comes, first in, first out.

    Passes are received beside the computing, so that whoever sends does not wait for it.
    """
    arrived: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, arrived), daemon=True).start()
    while (order := arrived.get()) is not None:
        stage = stages[order.service]
        begin_s = time.monotonic()
        if order.entering is None:
            flowing = stage.entering(order.batch)
        else:
            flowing = torch.from_numpy(order.entering).to(stage.device, stage.dtype)
        leaving = stage(flowing)
        if order.is_last:
            leaving = leaving.flatten(1).mean(dim=1)
        values = leaving.float().cpu().numpy()  # waits for a GPU
        connection.send(Ran(number=order.number, begin_s=begin_s, end_s=time.monotonic(), leaving=values))


def _receive(connection: Connection, arrived: queue.SimpleQueue[Run | None]) -> None:
    try:
        while True:
            arrived.put(connection.recv())
    except (EOFError, OSError):
        arrived.put(None)
