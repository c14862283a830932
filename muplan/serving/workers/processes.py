"""Workers as processes of this host, with a pipe to each."""

from __future__ import annotations

import math
import multiprocessing
import select
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from muplan.serving.workers.messages import Order
from muplan.serving.workers.parts import Place, WorkerParts
from muplan.serving.workers.transport import Heard


class Processes:
    """A process for each worker.

    Parameters
    ----------
    workers
        Those of a device are numbered in the order of their GPUs' names.
    """

    name = "torch"

    def __init__(self, workers: Sequence[WorkerParts]) -> None:
        self._order = sorted({held.gpu for held in workers})
        self._context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self._processes: dict[Place, BaseProcess] = {}
        self._connections: dict[Place, Connection] = {}

    def open(self) -> None:
        """Nothing is to be made ready."""

    def start(self, held: WorkerParts) -> str:
        """Start a process; its host is always this one."""
        from muplan.serving.workers.worker import work

        ours, theirs = self._context.Pipe()
        index = self._order.index(held.gpu)
        process = self._context.Process(target=work, args=(theirs, held, index), daemon=True)
        process.start()
        theirs.close()
        self._processes[held.place], self._connections[held.place] = process, ours
        return "this host"

    def send(self, held: WorkerParts, order: Order) -> None:
        """Send an order; of a worker that is dead the pipe's end is heard next."""
        if held.place in self._connections:
            with suppress(OSError):
                self._connections[held.place].send(order)

    def hear(self, most_s: float) -> list[Heard]:
        """What the processes say within a time."""
        by_file = {connection.fileno(): place for place, connection in self._connections.items()}
        files, _, _ = select.select(list(by_file), [], [], None if math.isinf(most_s) else most_s)
        heard: list[Heard] = []
        for place in (by_file[file] for file in files):
            try:
                heard.append((place, self._connections[place].recv()))
            except (EOFError, OSError):
                self._connections.pop(place).close()
                heard.append((place, None))
        return heard

    def close(self) -> None:
        """Close the pipes, at which the processes end; kill those that do not."""
        for connection in self._connections.values():
            connection.close()
        for process in self._processes.values():
            process.join(timeout=2.0)
            if process.is_alive():
                process.kill()
                process.join()

    @property
    def process_ids(self) -> dict[Place, int]:
        """The process of each worker."""
        return {place: process.pid for place, process in self._processes.items() if process.pid is not None}
