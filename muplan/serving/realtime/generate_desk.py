"""The desk of generate groups: one iteration of each is under way at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muplan.serving.case import Case
from muplan.serving.generate_steps import (
    arrive,
    begin_iteration,
    boundary_s,
    control_clocks,
    end_iteration,
    leave_queue,
    lose_batch,
    tabulate_all,
)
from muplan.serving.kernel_tables import KernelTables
from muplan.serving.layout import HEAP_NODE, PLACE, Integers
from muplan.serving.ledger import Columns
from muplan.serving.predictor import LengthPredictor
from muplan.serving.realtime.backend import Iteration, Span, StageDone
from muplan.serving.realtime.desk import Desk, Numbers
from muplan.serving.simulator import generate_requests, note_generate, routing_seed, virtual_queues


@dataclass(slots=True, kw_only=True)
class _Flight:
    """An iteration under way.

    What was noted of its group before, how long its stages have computed, and their idle power when it began.
    """

    group: int
    work: Iteration
    before: Integers
    busy_s: list[float]
    loaded_w: list[float]


class GenerateDesk(Desk):
    """Queues and continuous batches of the generate groups of a case.

    Parameters
    ----------
    tables
        The groups, all idle and empty; the desk keeps its state in them.
    rng
        Draws predictions of lengths, and the seed of power-of-two routing.
    numbers
        Of the iterations.
    overhead_s
        What is told of ends lacks of the time to an answer: the serving overhead, where ends are foretold.
    """

    def __init__(
        self,
        case: Case,
        tables: KernelTables,
        rng: np.random.Generator,
        numbers: Numbers,
        *,
        predictor: LengthPredictor | None = None,
        overhead_s: float = 0.0,
    ) -> None:
        self._requests = generate_requests(case, predictor, rng)
        settings = case.settings("generate", routing_seed(case, rng))
        settings["overhead_s"] = overhead_s
        super().__init__(case, case.groups("generate"), tables, settings, numbers)
        self._requests["completion_s"] = self._requests["first_token_s"] = np.nan
        self._order = np.argsort(self._requests["queued_s"], kind="stable")
        self._global = case.requests("generate")
        self._nodes = np.zeros(2 * len(self._requests), dtype=HEAP_NODE)
        self._virtual = virtual_queues(settings, self._requests)
        self._running = np.zeros((2, int(tables.groups["max_batch"].sum())), dtype=np.int64)
        self._flights: dict[int, _Flight] = {}
        self._held: list[set[int]] = [set() for _ in self._groups]
        self._spans = np.zeros((int(tables.groups["max_batch"].max()), 4), dtype=np.int64)
        tabulate_all(tables.groups, tables.stages, tables.values)

    @property
    def num_requests(self) -> int:
        """Requests that come."""
        return len(self._requests)

    @property
    def num_open(self) -> int:
        """Requests that wait or are under way."""
        groups = self._tables.groups
        return int(groups["num_waiting"].sum() + groups["num_running"].sum())

    def arrival_s(self, request: int) -> float:
        """When a request comes, its length predicted, seconds."""
        return float(self._requests["queued_s"][self._order[request]])

    def arrive(self, request: int) -> None:
        """Let a request come: it is routed and queued."""
        self._come(int(self._order[request]))

    def next_dispatch(self) -> tuple[float, int]:
        """When the next iteration may begin of a group that computes none, and which; infinite: none."""
        best_s, best, tables = np.inf, -1, self._tables
        busy = {flight.group for flight in self._flights.values()}
        for number in range(len(self._groups)):
            if number in busy or number in self._down:
                continue
            at_s = boundary_s(
                self._settings, tables.groups, tables.replicas, self._requests, self._nodes, number
            )
            if at_s < best_s:
                best_s, best = at_s, number
        return best_s, best

    def dispatch(self, number: int, now_s: float) -> Iteration | None:
        """Let the next iteration of a group begin; None where its batch has come to an end."""
        tables, group = self._tables, self._groups[number]
        before = np.zeros(2, dtype=np.int64)
        count = begin_iteration(
            self._settings, tables.groups, tables.stages, tables.replicas, self._requests, self._nodes,
            self._virtual, self._running, tables.values, self._counts, number, now_s, before, self._spans,
        )  # fmt: skip
        if count == 0:
            return None
        row = tables.groups[number]
        stages = tables.stages[row["first_stage"] : row["last_stage"]]
        compute_s = stages["pass_s"].tolist()
        spans = tuple(
            Span(request=int(self._global[place]), begin=begin, end=end, is_last=is_last == 1)
            for place, begin, end, is_last in self._spans[:count].tolist()
        )
        released = self._released(number, spans)
        work = Iteration(
            number=self._next_number(),
            group=group.name,
            service=group.replicas[0].service,
            compute_s=tuple(compute_s),
            transfer_s=(0.0,) * (len(stages) - 1) + (float(row["boundary_s"]) - now_s - sum(compute_s),),
            power_w=tuple(
                joules / seconds if seconds > 0.0 else 0.0
                for joules, seconds in zip(stages["pass_j"].tolist(), compute_s, strict=True)
            ),
            spans=spans,
            released=released,
            answered=tuple(one for one in released if self._is_complete(one)),
        )
        places = range(row["first_stage"], row["last_stage"])
        for place in places:
            self._account.idle(place, now_s)
        self._flights[work.number] = _Flight(
            group=number,
            work=work,
            before=before,
            busy_s=[0.0] * len(stages),
            loaded_w=[self._account.loaded_w(place) for place in places],
        )
        return work

    def stage_done(self, event: StageDone) -> None:
        """Note how long a stage has computed."""
        self._flights[event.number].busy_s[event.stage] = event.end_s - event.begin_s

    def work_done(self, number: int, at_s: float) -> None:
        """Note the end of an iteration, and account for its energy."""
        flight, groups = self._flights.pop(number), self._tables.groups
        end_iteration(
            self._settings, groups, self._requests, self._running, flight.group, flight.before, at_s
        )
        first = int(groups["first_stage"][flight.group])
        for stage, (busy_s, watts, loaded_w) in enumerate(
            zip(flight.busy_s, flight.work.power_w, flight.loaded_w, strict=True)
        ):
            self._account.iteration(first + stage, busy_s, busy_s * watts, loaded_w, at_s)

    def _lose(self, number: int) -> None:
        """Let the running sequences of a group wait again, keys and values gone."""
        under_way = [key for key, flight in self._flights.items() if flight.group == number]
        before = np.zeros(2, dtype=np.int64)
        for key in under_way:
            before = self._flights.pop(key).before
        lose_batch(
            self._settings, self._tables.groups, self._tables.replicas, self._requests, self._nodes,
            self._running, self._counts, number, bool(under_way), before,
        )  # fmt: skip

    def _free(self, number: int, at_s: float) -> None:
        self._tables.groups[number]["boundary_s"] = at_s

    def _move(self, number: int) -> None:
        """Let what waits at a group come again, with the tokens that it has."""
        waits = (self._requests["is_waiting"] > 0) & (self._requests["replica"] == number)
        for row in np.flatnonzero(waits).tolist():
            leave_queue(self._settings, self._tables.groups, self._requests, self._nodes, number, row)
            self._come(row)

    def _control_group(self, number: int, until_s: float) -> None:
        tables = self._tables
        control_clocks(
            self._settings, tables.groups, tables.stages, tables.replicas, self._requests, self._running,
            tables.values, self._counts, self._clocks.log, number, until_s,
        )  # fmt: skip

    def _note(self, columns: Columns) -> None:
        self._requests["replica"][np.isnan(self._requests["completion_s"])] = -1
        note_generate(self._case, self._requests, columns)

    def _come(self, row: int) -> None:
        tables = self._tables
        arrive(
            self._settings, tables.groups, tables.replicas, self._requests, self._nodes, self._virtual,
            *self._candidates, tables.values, row,
        )  # fmt: skip

    def _is_complete(self, request: int) -> bool:
        """Whether a request of the run has all its tokens."""
        row = int(np.searchsorted(self._global, request))
        return not np.isnan(self._requests["completion_s"][row])

    def _released(self, number: int, spans: tuple[Span, ...]) -> tuple[int, ...]:
        """Requests with keys and values on a group that run no longer."""
        row = self._tables.groups[number]
        first = int(row["first_running"])
        running = self._running[PLACE, first : first + int(row["num_running"])]
        kept = set(self._global[running].tolist())
        released = tuple(sorted(self._held[number] - kept))
        self._held[number] = (self._held[number] & kept) | {span.request for span in spans}
        return released
