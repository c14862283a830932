"""A slow simulator of generate groups, written for reading: one iteration at a time.

It shares with muplan the semantics of docs/mathematics.md and nothing else. Times of iterations are
functions that the test gives.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from muplan.workload import Batching, Controller, QueueOrder, Serving
from tests.reference_ageing import Ageing
from tests.reference_clocks import PredictiveControl

ARRIVAL, BOUNDARY = 0, 1


@dataclass
class Sequence:
    number: int
    arrival_s: float
    queued_s: float
    input_tokens: int
    output_tokens: int
    work: float
    generated: int = 0
    prefilled: int = 0
    start_s: float = math.nan
    first_token_s: float = math.nan
    completion_s: float = math.nan
    batch: int = 0
    num_preemptions: int = 0
    group: int = -1
    tokens_s: list[float] = field(default_factory=list)
    """When it had each token; a dynamic batch's padding is none."""

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
    chunk_s: Callable[[int, list[tuple[int, int]], int, int], float] | None = None
    """Clock, begin and end of each chunk, batch and context of what decodes."""
    prompt_weight: float = 0.0
    ageing: Ageing | None = None
    full_since_s: float = math.inf
    ends_at: int = 0
    decoded: int = 0
    waiting: list[Sequence] = field(default_factory=list)
    prefilling: list[Sequence] = field(default_factory=list)
    """Under chunked prefill: those of the running ones that do not decode yet."""
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
        serving: Serving,
        route: Callable[[int], int],
    ) -> None:
        self.engines, self.sequences, self.serving, self.route = engines, sequences, serving, route
        self.is_dynamic = serving.batching is Batching.DYNAMIC
        if serving.queue_order not in (QueueOrder.FCFS, QueueOrder.EDF) and serving.wait_cap != "none":
            for engine in engines:
                engine.ageing = Ageing(serving.wait_cap)

    def run(self) -> None:
        for engine in self.engines:
            if isinstance(engine.control, PredictiveControl):
                engine.control.engine, engine.control.order = engine, self._order
        calendar = [(one.queued_s, ARRIVAL, number) for number, one in enumerate(self.sequences)]
        heapq.heapify(calendar)
        while calendar:
            now_s, kind, number = heapq.heappop(calendar)
            if kind == ARRIVAL:
                chosen = self.route(number)
                engine = self.engines[chosen]
                self._arrive(engine, self.sequences[number], chosen)
                if isinstance(engine.control, PredictiveControl):
                    engine.control.arrivals.append(now_s)
                heapq.heappush(calendar, (max(now_s, engine.busy_until_s), BOUNDARY, chosen))
                waited_s = now_s + self.serving.batch_timeout_s
                heapq.heappush(calendar, (max(waited_s, engine.busy_until_s), BOUNDARY, chosen))
                continue
            engine = self.engines[number]
            if engine.busy_until_s > now_s or not (engine.running or engine.waiting):
                continue
            if engine.iterations and engine.iterations[-1][0] == now_s:
                continue  # two calls for one boundary
            if engine.control is not None:
                engine.clock_mhz = engine.control.clock_at(now_s, engine.clock_mhz)
            self._complete(engine, now_s)
            if not (engine.running or engine.waiting):
                continue
            if self.is_dynamic and not engine.running and not self._is_ready(engine, now_s):
                continue
            self._iterate(engine, now_s)
            heapq.heappush(calendar, (engine.busy_until_s, BOUNDARY, number))
            for one in engine.waiting:
                waited_s = one.queued_s + self.serving.batch_timeout_s
                heapq.heappush(calendar, (max(waited_s, engine.busy_until_s), BOUNDARY, number))

    def _arrive(self, engine: Engine, one: Sequence, group: int) -> None:
        one.group = group
        if engine.ageing is not None:
            engine.ageing.come(one.number, one.queued_s, one.work + engine.prompt_weight * one.input_tokens)
        engine.waiting.append(one)
        engine.blocked = False

    def _is_ready(self, engine: Engine, now_s: float) -> bool:
        oldest_s = min(one.queued_s for one in engine.waiting)
        return len(engine.waiting) >= engine.max_batch or oldest_s + self.serving.batch_timeout_s <= now_s

    def _remaining(self, one: Sequence) -> float:
        return max(one.work - one.generated, 0.0) if self.serving.queue_order is QueueOrder.SRPT else one.work

    def _order(self, one: Sequence) -> tuple[float, int]:
        if self.serving.queue_order is QueueOrder.FCFS:
            return (one.queued_s, one.number)
        return (self._remaining(one), one.number)

    def _first(self, engine: Engine, now_s: float) -> Sequence:
        due = engine.ageing.first_due(now_s) if engine.ageing is not None else None
        if due is not None:
            return self.sequences[due]
        return min(engine.waiting, key=self._order)

    def _iterate(self, engine: Engine, now_s: float) -> None:
        admitted = self._admit(engine, now_s)
        chunk = self.serving.prefill_chunk_tokens
        if admitted and chunk is None:
            seconds = engine.prefill_s(engine.clock_mhz, [one.tokens for one in admitted])
            served = admitted
        else:
            if not self.is_dynamic:
                self._preempt(engine)
            if engine.prefilling:
                seconds, served = self._chunk(engine, chunk or 0)
            else:
                context = sum(one.tokens for one in engine.running)
                if self.is_dynamic:  # all go on until the longest is complete
                    context = sum(one.input_tokens + 1 + engine.decoded for one in engine.running)
                seconds = engine.decode_s(engine.clock_mhz, len(engine.running), context)
                served = list(engine.running)
                engine.decoded += 1
        end_s = now_s + seconds
        engine.iterations.append((now_s, end_s))
        engine.busy_until_s = end_s
        for one in served:
            one.generated += 1
            if one.generated <= one.output_tokens:
                one.tokens_s.append(end_s)
            if one.generated == 1:
                one.first_token_s = end_s

    def _chunk(self, engine: Engine, chunk: int) -> tuple[float, list[Sequence]]:
        """An iteration with a chunk: its time, and who has a token of it."""
        decoding = [one for one in engine.running if one not in engine.prefilling]
        parts, left = [], chunk
        for one in engine.prefilling:
            end = min(one.prefilled + left, one.tokens)
            parts.append((one.prefilled, end))
            left -= end - one.prefilled
            one.prefilled = end
        assert engine.chunk_s is not None
        context = sum(one.tokens for one in decoding)
        seconds = engine.chunk_s(engine.clock_mhz, parts, len(decoding), context)
        ready = [one for one in engine.prefilling if one.prefilled == one.tokens]
        for one in ready:
            engine.prefilling.remove(one)
            one.prefilled = 0
        return seconds, decoding + ready

    def _complete(self, engine: Engine, end_s: float) -> None:
        """Let those go that have their last token at this boundary."""
        done = [one for one in engine.running if one.generated >= one.output_tokens]
        if self.is_dynamic and len(done) < len(engine.running):
            return
        for one in done:
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
        if engine.blocked or (self.is_dynamic and engine.running):
            return []
        admitted: list[Sequence] = []
        srpt = self.serving.queue_order is QueueOrder.SRPT
        while engine.waiting and (len(engine.running) < engine.max_batch or srpt):
            one = self._first(engine, now_s)
            if self._is_over_budget(engine, admitted, one):
                break
            if not self._fits(engine, admitted, one) and not (
                srpt and self._make_room(engine, admitted, one, now_s)
            ):
                break
            engine.waiting.remove(one)
            if engine.ageing is not None:
                engine.ageing.begin(one.number, now_s)
            engine.running.append(one)
            admitted.append(one)
            if self.serving.prefill_chunk_tokens is not None:
                engine.prefilling.append(one)
            if one.batch == 0:
                one.start_s, one.batch = now_s, len(engine.running)
        engine.decoded = 0
        engine.blocked = not admitted and not engine.prefilling
        return admitted

    def _is_over_budget(self, engine: Engine, admitted: list[Sequence], one: Sequence) -> bool:
        if self.is_dynamic:
            return False
        chunk = self.serving.prefill_chunk_tokens
        if chunk is not None:
            return sum(other.tokens - other.prefilled for other in engine.prefilling) >= chunk
        return bool(admitted) and sum(other.tokens for other in (*admitted, one)) > engine.prefill_budget

    def _held(self, engine: Engine, admitted: list[Sequence]) -> int:
        new = engine.prefilling or admitted
        return sum(other.tokens + (other in new) for other in engine.running)

    def _fits(self, engine: Engine, admitted: list[Sequence], one: Sequence) -> bool:
        if len(engine.running) >= engine.max_batch:
            return False
        return self.is_dynamic or self._held(engine, admitted) + one.tokens + 1 <= engine.kv_tokens

    def _make_room(self, engine: Engine, admitted: list[Sequence], one: Sequence, now_s: float) -> bool:
        """Preempt the sequence with the most left, if it needs clearly more than the other."""
        limit_s = engine.ageing.limit_s() if engine.ageing is not None else math.inf
        others = [
            other
            for other in engine.running
            if other not in admitted
            and other not in engine.prefilling
            and other.num_preemptions < self.serving.max_preemptions
            and now_s - other.queued_s <= limit_s
            and self._remaining(other) > 0
        ]
        if not others:
            return False
        longest = max(others, key=self._remaining)
        needed = self._remaining(one) + engine.prompt_weight * (one.tokens + longest.tokens)
        held = self._held(engine, admitted) - longest.tokens
        if (
            held + one.tokens + 1 > engine.kv_tokens
            or self._remaining(longest) <= self.serving.preemption_gain * needed
        ):
            return False
        self._stop(engine, longest)
        return True

    def _stop(self, engine: Engine, one: Sequence) -> None:
        engine.running.remove(one)
        if one in engine.prefilling:
            engine.prefilling.remove(one)
            one.prefilled = 0
        one.num_preemptions += 1
        engine.waiting.append(one)
        if engine.ageing is not None:
            engine.ageing.come_again(one.number, one.queued_s)

    def _preempt(self, engine: Engine) -> None:
        while self._held(engine, []) > engine.kv_tokens:
            self._stop(engine, engine.running[-1])
            engine.blocked = True
