"""The backend of worker processes: hands passes from stage to stage, and has what died started again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from muplan.errors import DeviceError, InputError
from muplan.plan import Plan
from muplan.problem.problem import Problem
from muplan.serving.power_outcome import PowerOutcome
from muplan.serving.realtime.backend import (
    ClockCommand,
    Event,
    GroupGone,
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
from muplan.serving.workers.transport import NoPlaceError, Transport

_START_S = 300.0
"""Seconds that a worker may take to make its stages."""
_MOST_RESTARTS = 3
"""Times that a worker is started again on one host."""


@dataclass(slots=True, kw_only=True)
class _Worker:
    """What a worker holds, where it is, and how often it was started again."""

    held: WorkerParts
    host: str = ""
    num_restarts: int = 0
    is_ready: bool = False
    due_s: float = 0.0
    """When it has to be ready, by the monotonic clock."""


@dataclass(slots=True, kw_only=True)
class _Lives:
    """What is under way, by number; what happened and was not told yet; which groups are not there."""

    works: dict[int, Work] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)
    """The host to which a worker of a group went that is down."""
    gone: set[str] = field(default_factory=set)


class WorkerBackend:
    """Runs the passes of a plan on workers, one for each GPU or core that the plan uses.

    A worker that dies is started anew with the weights that it had, where its transport finds a place for
    it; where not, its group is given up, and with the last group of a service the run.

    Parameters
    ----------
    workers
        What each holds.
    transport
        How they are started and reached.
    """

    is_measured = True
    sets_clocks = False

    def __init__(self, workers: Sequence[WorkerParts], transport: Transport) -> None:
        self.name = transport.name
        self._transport = transport
        self._workers = {held.place: _Worker(held=held) for held in workers}
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
            self._transport.open()
            for worker in self._workers.values():
                self._start(worker)
            while not all(worker.is_ready for worker in self._workers.values()):
                self._listen(_START_S)
        except BaseException:
            self._transport.close()
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
        self._transport.close()

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

    def answer(self, work: Pass, answer: Array) -> None:
        """Is told the answer of a pass, a number a sequence; a plan's verdict does not ask for it."""

    def _start(self, worker: _Worker) -> None:
        worker.is_ready, worker.due_s = False, time.monotonic() + _START_S
        worker.host = self._transport.start(worker.held)

    def _listen(self, most_s: float) -> None:
        """Take in what workers say within a time, and look for those that are not ready when they are due."""
        starting = [one for one in self._up() if not one.is_ready]
        due_s = min((one.due_s - time.monotonic() for one in starting), default=most_s)
        for place, answer in self._transport.hear(max(0.0, min(most_s, due_s))):
            worker = self._workers[place]
            if worker.held.group in self._lives.gone:
                continue
            if answer is None:
                self._lost(worker)
            else:
                self._take(worker, answer)
        for worker in starting:
            if not worker.is_ready and time.monotonic() > worker.due_s:
                raise DeviceError(
                    f"The worker of {worker.held.name} on {worker.held.gpu} was not ready in time.",
                    "Look at the load of its machine, and at what else has its place there.",
                )

    def _take(self, worker: _Worker, answer: Answer) -> None:
        match answer:
            case Refused():
                kind = InputError if answer.is_input else DeviceError
                raise kind(answer.problem, answer.remedy)
            case Ready():
                worker.is_ready = True
                group = worker.held.group
                if all(one.is_ready for one in self._of_group(group)):
                    moved_to = self._lives.moved.pop(group, None)
                    self._lives.events.append(GroupReady(group=group, at_s=self.now_s(), moved_to=moved_to))
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

    def _hand_on(self, work: Work, stage: int, entering: Any) -> None:
        self._transport.send(self._workers[work.group, stage].held, _order(work, stage, entering))

    def _lost(self, worker: _Worker) -> None:
        """A worker has died: its group's passes are lost, and it is started again or the group given up."""
        group, host = worker.held.group, worker.host
        if not worker.is_ready and self._begin_s == 0.0:
            raise WorkerDiedError(
                f"The worker of {worker.held.name} on {worker.held.gpu} died at its start.",
                "Look at what it printed, and at the machine's log.",
            )
        numbers = tuple(number for number, work in self._lives.works.items() if work.group == group)
        for number in numbers:
            del self._lives.works[number]
        # What was heard of them before, and not told yet, no longer holds.
        self._lives.events = [event for event in self._lives.events if not _is_of(event, group, numbers)]
        self._lives.events.append(GroupLost(group=group, numbers=numbers, at_s=self.now_s()))
        try:
            if worker.num_restarts == _MOST_RESTARTS:
                raise WorkerDiedError(
                    f"The worker of {worker.held.name} on {worker.held.gpu} died {_MOST_RESTARTS + 1} times.",
                    "Look at the machine's log: the system may have killed it for lack of memory.",
                )
            worker.num_restarts += 1
            self._start(worker)
        except (WorkerDiedError, NoPlaceError) as error:
            self._give_up(group, error)
        else:
            if worker.host != host:  # it was the host that was at fault
                worker.num_restarts = 0
                self._lives.moved[group] = worker.host

    def _give_up(self, group: str, error: DeviceError) -> None:
        """Go on without a group.

        Raises
        ------
        DeviceError
            A service is left without any: ``error``.
        """
        self._lives.gone.add(group)
        left = {part.service for worker in self._up() for part in worker.held.parts}
        if any(part.service not in left for worker in self._of_group(group) for part in worker.held.parts):
            raise error
        self._lives.events.append(GroupGone(group=group, at_s=self.now_s()))

    def _up(self) -> list[_Worker]:
        return [one for one in self._workers.values() if one.held.group not in self._lives.gone]

    def _of_group(self, group: str) -> list[_Worker]:
        return [worker for worker in self._workers.values() if worker.held.group == group]


class WorkerDiedError(DeviceError):
    """A worker died, and is not started again."""


def _order(work: Work, stage: int, entering: Any) -> Order:
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


def _is_of(event: Event, group: str, numbers: tuple[int, ...]) -> bool:
    """Whether an event is one of these works, or that their group is there."""
    if isinstance(event, GroupReady):
        return event.group == group
    return isinstance(event, StageDone | WorkDone) and event.number in numbers
