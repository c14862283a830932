"""The torch backend: starts the workers of a plan, hands passes from stage to stage, starts what has died."""

from __future__ import annotations

import math
import multiprocessing
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Self

from muplan.errors import DeviceError
from muplan.plan import Plan
from muplan.problem.problem import Problem
from muplan.serving.power_outcome import PowerOutcome
from muplan.serving.realtime.backend import (
    ClockCommand,
    Event,
    GroupLost,
    GroupReady,
    Iteration,
    Pass,
    StageDone,
    Work,
    WorkDone,
)
from muplan.serving.records import Records
from muplan.serving.workers.messages import Answer, Array, Iterate, Order, Ran, Ready, Refused, Run
from muplan.serving.workers.parts import WorkerParts
from muplan.serving.workers.replies import Replies

_START_S = 300.0
"""Seconds that a worker may take to make its stages."""
_MOST_RESTARTS = 3
"""Times that a worker is started again in one run."""


@dataclass(slots=True, kw_only=True)
class _Worker:
    """A process, the executor's end of the connection to it, and how often it was started again."""

    held: WorkerParts
    index: int
    process: BaseProcess | None = None
    connection: Connection | None = None
    num_restarts: int = 0
    is_ready: bool = False


@dataclass(slots=True, kw_only=True)
class _Lives:
    """What is under way, by number, and what has happened but was not told yet."""

    works: dict[int, Work] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)


class TorchBackend:
    """Runs the passes of a plan on processes of this host, one for each GPU or core that the plan uses.

    Activations go from worker to worker by way of this process: so a worker that dies leaves no connection
    of others broken. Every worker is started anew with the weights that it had.

    Parameters
    ----------
    workers
        What each holds; workers of a device are numbered in the order of their GPUs' names.
    """

    name = "torch"
    is_measured = True
    sets_clocks = False

    def __init__(self, workers: Sequence[WorkerParts]) -> None:
        order = sorted({held.gpu for held in workers})
        self._workers = {
            (held.group, held.stage): _Worker(held=held, index=order.index(held.gpu)) for held in workers
        }
        self._context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self._lives = _Lives()
        self._begin_s = 0.0
        self.replies = Replies(
            {part.service: part.graph.vocabulary_size for held in workers for part in held.parts}
        )
        """The texts of sequences under way."""

    def __enter__(self) -> Self:
        """Start all workers, and wait until they are ready; the run begins then.

        Raises
        ------
        DeviceError
            A worker cannot do what it is there for, or dies at its start.
        """
        try:
            for worker in self._workers.values():
                self._start(worker)
            limit_s = time.monotonic() + _START_S
            while not all(worker.is_ready for worker in self._workers.values()):
                if time.monotonic() > limit_s:
                    raise DeviceError("The workers were not ready in time.", "Look at the machine's load.")
                self._listen(limit_s - time.monotonic())
        except BaseException:
            self._stop()
            raise
        self._lives.events.clear()
        self._begin_s = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End all workers."""
        self._stop()

    def now_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._begin_s

    def launch(self, work: Work) -> None:
        """Hand a work to the first stage of its group."""
        self._lives.works[work.number] = work
        self._hand_on(work, 0, self.replies.entering(work) if isinstance(work, Iteration) else None)

    def set_clock(self, command: ClockCommand) -> None:
        """No clocks are set here."""
        raise NotImplementedError(command)

    def power(self, problem: Problem, plan: Plan, records: Records) -> tuple[PowerOutcome | None, str | None]:  # noqa: ARG002
        """Nothing is measured of it."""
        return None, None

    def next_event(self, until_s: float) -> Event | None:
        """The next event up to a time; None where that comes first."""
        while not self._lives.events:
            left_s = until_s - self.now_s()
            if left_s <= 0.0:
                self._listen(0.0)
                break
            self._listen(left_s)
        return self._lives.events.pop(0) if self._lives.events else None

    @property
    def process_ids(self) -> dict[tuple[str, int], int]:
        """The process of each stage, by group and stage."""
        return {
            place: worker.process.pid
            for place, worker in self._workers.items()
            if worker.process is not None and worker.process.pid is not None
        }

    def _start(self, worker: _Worker) -> None:
        from muplan.serving.workers.worker import work

        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=work, args=(theirs, worker.held, worker.index), daemon=True)
        process.start()
        theirs.close()
        worker.process, worker.connection, worker.is_ready = process, ours, False

    def _stop(self) -> None:
        for worker in self._workers.values():
            if worker.connection is not None:
                worker.connection.close()
        for worker in self._workers.values():
            if worker.process is not None:
                worker.process.join(timeout=2.0)
                if worker.process.is_alive():
                    worker.process.kill()
                    worker.process.join()

    def _listen(self, most_s: float) -> None:
        """Take in what workers say within a time."""
        by_file = {
            worker.connection.fileno(): worker
            for worker in self._workers.values()
            if worker.connection is not None
        }
        heard, _, _ = select.select(list(by_file), [], [], None if math.isinf(most_s) else most_s)
        for file in heard:
            worker = by_file[file]
            if worker.connection is None:
                continue
            try:
                answer: Answer = worker.connection.recv()
            except (EOFError, OSError):
                self._lost(worker)
            else:
                self._take(worker, answer)

    def _take(self, worker: _Worker, answer: Answer) -> None:
        match answer:
            case Refused():
                raise DeviceError(answer.problem, answer.remedy)
            case Ready():
                worker.is_ready = True
                group = worker.held.group
                if all(one.is_ready for one in self._of_group(group)):
                    self._lives.events.append(GroupReady(group=group, at_s=self.now_s()))
            case Ran():
                self._ran(worker, answer)

    def _ran(self, worker: _Worker, answer: Ran) -> None:
        """A stage is done: its pass goes on, or is done too; nothing where it was lost meanwhile."""
        work = self._lives.works.get(answer.number)
        if work is None:
            return
        stage = worker.held.stage
        self._lives.events.append(
            StageDone(
                number=work.number,
                stage=stage,
                begin_s=answer.begin_s - self._begin_s,
                end_s=answer.end_s - self._begin_s,
            )
        )
        if stage + 1 < len(work.compute_s):
            self._hand_on(work, stage + 1, answer.leaving)
            return
        del self._lives.works[work.number]
        if isinstance(work, Iteration):
            self.replies.note(work, answer.leaving)
        elif isinstance(work, Pass):
            self.answer(work, answer.leaving)
        self._lives.events.append(WorkDone(number=work.number, at_s=self.now_s()))

    def answer(self, work: Pass, answer: Array) -> None:
        """Is told the answer of a pass, a number a sequence; a plan's verdict does not ask for it."""

    def _hand_on(self, work: Work, stage: int, entering: Array | None) -> None:
        worker = self._workers[work.group, stage]
        order = _order(work, stage, entering)
        try:
            if worker.connection is not None:
                worker.connection.send(order)
        except OSError:
            self._lost(worker)

    def _lost(self, worker: _Worker) -> None:
        """A worker has died: its group's passes are lost, and it is started again."""
        group = worker.held.group
        if worker.num_restarts == _MOST_RESTARTS:
            raise WorkerDiedError(
                f"The worker of {worker.held.name} on {worker.held.gpu} died {_MOST_RESTARTS + 1} times.",
                "Look at the machine's log: the system may have killed it for lack of memory.",
            )
        if not worker.is_ready and self._begin_s == 0.0:
            raise WorkerDiedError(
                f"The worker of {worker.held.name} on {worker.held.gpu} died at its start.",
                "Look at what it printed, and at the machine's log.",
            )
        numbers = tuple(number for number, work in self._lives.works.items() if work.group == group)
        for number in numbers:
            del self._lives.works[number]
        # What was heard of them before, and not told yet, no longer holds.
        self._lives.events = [event for event in self._lives.events if not _is_of(event, numbers)]
        self._lives.events.append(GroupLost(group=group, numbers=numbers, at_s=self.now_s()))
        if worker.connection is not None:
            worker.connection.close()
        worker.num_restarts += 1
        self._start(worker)

    def _of_group(self, group: str) -> list[_Worker]:
        return [worker for worker in self._workers.values() if worker.held.group == group]


class WorkerDiedError(DeviceError):
    """A worker died, and is not started again."""


def _order(work: Work, stage: int, entering: Array | None) -> Order:
    """What a stage is told to do of a work."""
    match work:
        case Pass():
            return Run(
                number=work.number,
                service=work.service,
                batch=len(work.requests),
                is_last=stage + 1 == len(work.compute_s),
                entering=entering,
            )
        case Iteration() if entering is not None:
            return Iterate(
                number=work.number,
                service=work.service,
                spans=work.spans,
                released=work.released,
                entering=entering,
            )
    raise TypeError(f"no worker runs {work}")


def _is_of(event: Event, numbers: tuple[int, ...]) -> bool:
    return isinstance(event, StageDone | WorkDone) and event.number in numbers
