"""A slow simulator of generate groups, written for reading: one iteration at a time.

It shares with muplan the semantics of docs/mathematics.md and nothing else. Times of iterations are
functions that the test gives.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from muplan.workload import Controller
from tests.reference_clocks import PredictiveControl

ARRIVAL, BOUNDARY = 0, 1
AGEING = 5.0


@dataclass
class Sequence:
    number: int
    arrival_s: float
    queued_s: float
    input_tokens: int
    output_tokens: int
    work: float
    generated: int = 0
    start_s: float = math.nan
    first_token_s: float = math.nan
    completion_s: float = math.nan
    batch: int = 0
    num_preemptions: int = 0
    group: int = -1

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.generated


@dataclass
class Control:
    """MIAD over a grid of clocks, decided at the end of every window, in force ``change_s`` later."""

    controller: Controller
    target: float
    grid_mhz: tuple[int, ...]
    floor_mhz: int
    change_s: float
    duration_s: float
    num_decisions: int = 0
    pending: tuple[float, int] | None = None
    completed: list[tuple[float, bool]] = field(default_factory=list)
    changes: list[tuple[float, int, int]] = field(default_factory=list)

    def clock_at(self, now_s: float, clock_mhz: int) -> int:
        """The clock in force at ``now_s``, once all decisions up to then are taken."""
        while True:
            decision_s = (self.num_decisions + 1) * self.controller.window_s
            if decision_s > now_s or decision_s >= self.duration_s:
                return self._switched(now_s, clock_mhz)
            clock_mhz = self._switched(decision_s, clock_mhz)
            self.num_decisions += 1
            wanted = self._wanted(decision_s, clock_mhz)
            if self.pending is None and wanted != clock_mhz:
                self.pending = (decision_s + self.change_s, wanted)
                self.changes.append((decision_s, clock_mhz, wanted))

    def _switched(self, now_s: float, clock_mhz: int) -> int:
        if self.pending is not None and self.pending[0] <= now_s:
            clock_mhz, self.pending = self.pending[1], None
        return clock_mhz

    def _wanted(self, now_s: float, clock_mhz: int) -> int:
        window = [
            within for at_s, within in self.completed if now_s - self.controller.window_s < at_s <= now_s
        ]
        if not window:
            return clock_mhz
        attainment = sum(window) / len(window)
        if attainment < self.target:
            higher = [
                one
                for one in self.grid_mhz
                if one > clock_mhz and one >= clock_mhz * self.controller.increase
            ]
            return higher[0] if higher else self.grid_mhz[-1]
        if attainment >= min(self.target + self.controller.hysteresis, 1.0):
            lower = [
                one
                for one in self.grid_mhz
                if self.floor_mhz <= one < clock_mhz and one <= clock_mhz - self.controller.decrease_mhz
            ]
            return lower[-1] if lower else self.floor_mhz
        return clock_mhz


@dataclass
class Engine:
    """One group: limits, times and what it holds."""

    max_batch: int
    kv_tokens: int
    prefill_budget: int
    prefill_s: Callable[[int, list[int]], float]
    decode_s: Callable[[int, int, float], float]
    """Both take the clock first."""
    clock_mhz: int
    ttft_limit_s: float = math.inf
    tpot_limit_s: float = math.inf
    control: Control | PredictiveControl | None = None
    by_length: bool = False
    waiting: list[Sequence] = field(default_factory=list)
    running: list[Sequence] = field(default_factory=list)
    busy_until_s: float = 0.0
    blocked: bool = False
    busy_s: float = 0.0
    iterations: list[tuple[float, float]] = field(default_factory=list)


class ReferenceGenerate:
    """Serves sequences with engines; ``route`` picks one of them for each (its index)."""

    def __init__(
        self,
        engines: list[Engine],
        sequences: list[Sequence],
        *,
        by_length: bool,
        route: Callable[[int], int],
    ) -> None:
        self.engines, self.sequences, self.by_length, self.route = engines, sequences, by_length, route

    def run(self) -> None:
        for engine in self.engines:
            engine.by_length = self.by_length
            if isinstance(engine.control, PredictiveControl):
                engine.control.engine = engine
        calendar = [(one.queued_s, ARRIVAL, number) for number, one in enumerate(self.sequences)]
        heapq.heapify(calendar)
        while calendar:
            now_s, kind, number = heapq.heappop(calendar)
            if kind == ARRIVAL:
                chosen = self.route(number)
                engine, one = self.engines[chosen], self.sequences[number]
                one.group = chosen
                engine.waiting.append(one)
                engine.blocked = False
                if isinstance(engine.control, PredictiveControl):
                    engine.control.arrivals.append(now_s)
                heapq.heappush(calendar, (max(now_s, engine.busy_until_s), BOUNDARY, chosen))
                continue
            engine = self.engines[number]
            if engine.busy_until_s > now_s or not (engine.running or engine.waiting):
                continue
            if engine.iterations and engine.iterations[-1][0] == now_s:
                continue  # two calls for one boundary
            self._iterate(engine, now_s)
            heapq.heappush(calendar, (engine.busy_until_s, BOUNDARY, number))

    def _order(self, engine: Engine, one: Sequence, now_s: float) -> tuple[int, float, int]:
        if self.by_length:
            if now_s - one.queued_s > AGEING * engine.ttft_limit_s:
                return (0, one.queued_s, one.number)
            return (1, one.work, one.number)
        return (1, one.queued_s, one.number)

    def _iterate(self, engine: Engine, now_s: float) -> None:
        if engine.control is not None:
            engine.clock_mhz = engine.control.clock_at(now_s, engine.clock_mhz)
        admitted = self._admit(engine, now_s)
        if admitted:
            seconds = engine.prefill_s(engine.clock_mhz, [one.tokens for one in admitted])
        else:
            self._preempt(engine)
            context = sum(one.tokens for one in engine.running)
            seconds = engine.decode_s(engine.clock_mhz, len(engine.running), context)
            admitted = engine.running
        end_s = now_s + seconds
        engine.iterations.append((now_s, end_s))
        engine.busy_until_s = end_s
        for one in list(admitted):
            one.generated += 1
            if one.generated == 1:
                one.first_token_s = end_s
            if one.generated == one.output_tokens:
                one.completion_s = end_s
                engine.running.remove(one)
                engine.blocked = False
                if engine.control is not None:
                    engine.control.completed.append((end_s, self._is_within(engine, one)))

    def _is_within(self, engine: Engine, one: Sequence) -> bool:
        decoding_s = one.completion_s - one.first_token_s
        return (
            one.first_token_s - one.arrival_s <= engine.ttft_limit_s
            and decoding_s <= engine.tpot_limit_s * max(one.output_tokens - 1, 1)
        )

    def _admit(self, engine: Engine, now_s: float) -> list[Sequence]:
        if engine.blocked:
            return []
        admitted: list[Sequence] = []
        while engine.waiting and len(engine.running) < engine.max_batch:
            one = min(engine.waiting, key=lambda one: self._order(engine, one, now_s))
            held = sum(other.tokens + (other in admitted) for other in engine.running)
            taken = sum(other.tokens for other in admitted)
            if held + one.tokens + 1 > engine.kv_tokens:
                break
            if admitted and taken + one.tokens > engine.prefill_budget:
                break
            engine.waiting.remove(one)
            engine.running.append(one)
            admitted.append(one)
            if one.batch == 0:
                one.start_s, one.batch = now_s, len(engine.running)
        engine.blocked = not admitted
        return admitted

    def _preempt(self, engine: Engine) -> None:
        while sum(one.tokens for one in engine.running) > engine.kv_tokens:
            one = engine.running.pop()
            one.num_preemptions += 1
            engine.waiting.append(one)
