"""A desk: the queues and decisions of a kernel of the simulator, for works that really run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from muplan.plan import Group
from muplan.serving.case import Case
from muplan.serving.control import windows
from muplan.serving.kernel_tables import KernelTables
from muplan.serving.layout import Integers, Rows
from muplan.serving.ledger import Columns, KernelResult
from muplan.serving.realtime.account import Account
from muplan.serving.realtime.backend import ClockCommand, StageDone, Work
from muplan.serving.realtime.clocks import Clocks

Numbers = Callable[[], int]
"""Gives the next work its number."""


class Desk(ABC):
    """Takes requests, and says what leaves next.

    It works on the rows of a kernel and calls the kernel's own functions, so that equal times lead to equal
    decisions; what a simulation knows of the ends of works is noted here from what is told of them.

    Parameters
    ----------
    groups
        Of the desk, as the tables number them.
    tables
        The groups, all idle and empty; the desk keeps its state in them.
    settings
        Of the kernel, one row.
    numbers
        Of the works.
    """

    def __init__(
        self,
        case: Case,
        groups: Sequence[Group],
        tables: KernelTables,
        settings: Rows,
        numbers: Numbers,
    ) -> None:
        self._case, self._groups, self._tables, self._settings = case, tuple(groups), tables, settings
        self._next_number = numbers
        self._numbers = {group.name: number for number, group in enumerate(groups)}
        self._counts = windows(len(tables.replicas), settings)
        self._account = Account(tables, settings, np.zeros(2 * case.num_samples))
        self._clocks = Clocks(case.problem, groups, tables, settings, self._account)
        self._down: set[int] = set()
        self._gone: set[int] = set()
        self._candidates = tables.service_candidate, tables.candidate_replica

    @property
    def group_names(self) -> tuple[str, ...]:
        """Its groups, in their order."""
        return tuple(self._numbers)

    @property
    @abstractmethod
    def num_requests(self) -> int:
        """Requests that come, in their order."""

    @property
    @abstractmethod
    def num_open(self) -> int:
        """Requests that wait or are under way."""

    @abstractmethod
    def arrival_s(self, request: int) -> float:
        """When a request comes, seconds."""

    @abstractmethod
    def arrive(self, request: int) -> None:
        """Let a request come: it is queued, or rejected."""

    @abstractmethod
    def next_dispatch(self) -> tuple[float, int]:
        """When the next work may leave of a group that is free, and which group; infinite: none."""

    @abstractmethod
    def dispatch(self, number: int, now_s: float) -> Work | None:
        """Let the next work of a group leave; None where none is left after all."""

    @abstractmethod
    def stage_done(self, event: StageDone) -> None:
        """Note the end of a stage."""

    @abstractmethod
    def work_done(self, number: int, at_s: float) -> None:
        """Note that a work is done."""

    def lost(self, group: str) -> None:
        """Let what is under way on a group wait again.

        Until it is ready, no request goes there that has elsewhere to go.
        """
        number = self._numbers[group]
        self._down.add(number)
        self._find_candidates()
        self._lose(number)

    def ready(self, group: str, at_s: float) -> None:
        """Take a group up again, all stages free."""
        number = self._numbers[group]
        self._down.discard(number)
        self._find_candidates()
        self._free(number, at_s)

    def gone(self, group: str) -> None:
        """Give up a group that was lost: what waits there comes again, to others."""
        number = self._numbers[group]
        self._gone.add(number)
        self._find_candidates()
        self._move(number)

    def next_control_s(self) -> float:
        """When the next decision on clocks falls, or the next command takes effect; infinite: never."""
        return self._clocks.next_s()

    def control(self, until_s: float) -> list[ClockCommand]:
        """Take the decisions on clocks up to a time."""
        return self._clocks.control(until_s, self._control_group)

    def finish(self, columns: Columns, until_s: float) -> KernelResult:
        """Close the books at a time; what is still open then is not answered."""
        self.control(until_s)
        self._account.close(until_s)
        self._note(columns)
        return KernelResult(
            groups=self._groups,
            stages=self._tables.stages,
            samples_j=self._account.samples_j,
            log=self._clocks.used_log,
        )

    @abstractmethod
    def _lose(self, number: int) -> None:
        """Put what is under way on a group back to its queues."""

    @abstractmethod
    def _free(self, number: int, at_s: float) -> None:
        """All stages of a group are free from a time on."""

    @abstractmethod
    def _move(self, number: int) -> None:
        """Let what waits at a group come again."""

    @abstractmethod
    def _control_group(self, number: int, until_s: float) -> None:
        """Take a group's decisions on clocks up to a time, by the kernel's function."""

    @abstractmethod
    def _note(self, columns: Columns) -> None:
        """Put what became of the requests into the columns of all."""

    def _find_candidates(self) -> None:
        """Set which replicas requests may go to, by service: those on groups that are up.

        Where none is, those on groups that are down and may come back; where all are gone, all.
        """
        tables, offsets, kept = self._tables, [0], list[int]()
        for first, last in pairwise(tables.service_candidate.tolist()):
            replicas = tables.candidate_replica[first:last].tolist()
            group_of = {place: int(tables.replicas["group"][place]) for place in replicas}
            up = [place for place in replicas if group_of[place] not in self._down | self._gone]
            kept += up or [place for place in replicas if group_of[place] not in self._gone] or replicas
            offsets.append(len(kept))
        self._candidates = _integers(offsets), _integers(kept)


def _integers(values: Sequence[int]) -> Integers:
    return np.array(values, dtype=np.int64)
