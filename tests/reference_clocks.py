"""Clocks by prediction, written for reading: what `slack` and `forecast` decide, for the slow simulators.

It shares with muplan the semantics of docs/mathematics.md and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from muplan.workload import Controller

if TYPE_CHECKING:
    from tests.reference_generate import Engine
    from tests.reference_generate import Sequence as Request

MEMORY_S = 20.0
ETA = 0.5
FIRST_PRICE, LEAST_PRICE, MOST_PRICE = 10.0, 0.1, 1e4
BURST_DOUBT, QUEUE_DOUBT = 0.001, 0.01
FULL = 0.9


@dataclass
class Watched:
    """What is known of the requests of one service at one group."""

    rate_rps: float
    target: float
    price: float = FIRST_PRICE
    num_seen: int = 0

    def observe(self, arrived: int, within: Sequence[bool], period_s: float) -> None:
        self.rate_rps += (1.0 - math.exp(-period_s / MEMORY_S)) * (arrived / period_s - self.rate_rps)
        self.num_seen += len(within)
        aim = 1.0 - 2.0 / math.sqrt(max(self.num_seen * (1.0 - self.target), 1.0))
        share = min(max(aim, 0.5), 0.9) * (1.0 - self.target)
        step = sum(-share if one else 1.0 - share for one in within)
        self.price = min(max(self.price * math.exp(ETA * step), LEAST_PRICE), MOST_PRICE)


@dataclass
class Levels:
    """The clocks of a group as grid steps from the plan's."""

    floors: list[int]
    num_clocks: int
    level: int = 0
    changed_s: float = -math.inf

    def all(self) -> range:
        return range(min(-floor for floor in self.floors), self.num_clocks - min(self.floors))

    def clock(self, stage: int, level: int) -> int:
        return min(max(self.floors[stage] + level, 0), self.num_clocks - 1)

    def chosen(
        self,
        controller: Controller,
        now_s: float,
        late: Callable[[int], float],
        cost_j: Callable[[int], float],
    ) -> int:
        if controller.policy == "slack":
            return next((level for level in self.all() if late(level) == 0), self.all()[-1])
        wanted = min(self.all(), key=lambda level: (cost_j(level), level))
        dwell_s = 5.0 if controller.dwell_s is None else controller.dwell_s
        return wanted if wanted > self.level or now_s - self.changed_s >= dwell_s else self.level


def late_share(load: float, work_s: float, slack_s: float, wait_s: float) -> float:
    if load >= 1.0:
        return 1.0
    queue = load * math.exp(-2.0 * (1.0 - load) * max(wait_s, 0.0) / work_s)
    return BURST_DOUBT / (1.0 + max(slack_s, 0.0) / work_s) ** 2 + QUEUE_DOUBT * queue


@dataclass
class PredictiveControl:
    """Control of a generate engine of one stage, with the interface of `reference_generate.Control`."""

    controller: Controller
    watched: Watched
    levels: Levels
    grid_mhz: tuple[int, ...]
    change_s: float
    duration_s: float
    mean_input: float
    mean_output: float
    ttft_limit_s: float
    tpot_limit_s: float
    watts: Callable[[int, int], float]
    loaded_w: Callable[[int], float]
    engine: Engine = field(init=False)
    order: Callable[[Request], tuple[float, int]] = field(init=False)
    num_decisions: int = 0
    pending: tuple[float, int] | None = None
    completed: list[tuple[float, bool]] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    changes: list[tuple[float, int, int]] = field(default_factory=list)

    def clock_at(self, now_s: float, clock_mhz: int) -> int:
        period_s = self.controller.period_s
        while True:
            at_s = (self.num_decisions + 1) * period_s
            if at_s > now_s or at_s >= self.duration_s:
                return self._switched(now_s, clock_mhz)
            clock_mhz = self._switched(at_s, clock_mhz)
            before_s = self.num_decisions * period_s
            self.num_decisions += 1
            arrived = sum(before_s <= one < at_s for one in self.arrivals)
            within = [ok for end_s, ok in self.completed if before_s < end_s <= at_s]
            self.watched.observe(arrived, within, period_s)
            if self.pending is not None:
                continue
            chosen = self.levels.chosen(
                self.controller,
                at_s,
                partial(self._late, at_s),
                partial(self._cost_j, at_s),
            )
            if chosen != self.levels.level:
                self.levels.level = chosen
                wanted = self.grid_mhz[self.levels.clock(0, chosen)]
                if wanted != clock_mhz:
                    self.levels.changed_s = at_s
                    self.pending = (at_s + self.change_s, wanted)
                    self.changes.append((at_s, clock_mhz, wanted))

    def _switched(self, now_s: float, clock_mhz: int) -> int:
        if self.pending is not None and self.pending[0] <= now_s:
            clock_mhz, self.pending = self.pending[1], None
        return clock_mhz

    def _mhz(self, level: int) -> int:
        return self.grid_mhz[self.levels.clock(0, level)]

    def _prefill_s(self, level: int) -> float:
        return self.engine.prefill_s(self._mhz(level), [round(self.mean_input)])

    def _context(self) -> float:
        return self.mean_input + self.mean_output / 2.0

    def _waiting(self, at_s: float) -> list[Request]:
        return [one for one in self.engine.waiting if one.queued_s < at_s]

    def _late(self, at_s: float, level: int) -> float:
        engine, waiting, late = self.engine, self._waiting(at_s), 0
        prefill_s = self._prefill_s(level)
        oldest_s = at_s
        if waiting:
            oldest_s = min(waiting, key=self.order).arrival_s
        for number in range(len(waiting)):
            came_s = oldest_s + (at_s - oldest_s) * number / len(waiting)
            first_s = max(engine.busy_until_s, at_s) + (number + 1) * prefill_s
            late += first_s - self.ttft_limit_s > came_s
        if not engine.running:
            return late
        present = min(len(engine.running) + len(waiting), engine.max_batch)
        context = (
            sum(one.tokens for one in engine.running) + (present - len(engine.running)) * self.mean_input
        )
        free = max(1.0 - self.watched.rate_rps * prefill_s, 0.01)
        reply_s = self.mean_output * engine.decode_s(self._mhz(level), present, context) / free
        for one in engine.running:
            decoding_s = max(engine.busy_until_s - one.first_token_s, 0.0) + reply_s
            late += decoding_s > self.tpot_limit_s * (one.generated - 1 + self.mean_output)
        return late

    def _batch(self, level: int) -> float:
        free = 1.0 - self.watched.rate_rps * self._prefill_s(level)
        if free <= 0.0:
            return math.inf
        batch = 0.0
        for _ in range(30):
            whole = min(max(math.ceil(batch), 1), self.engine.max_batch)
            context = max(batch, 1.0) * self._context()
            pace_s = self.engine.decode_s(self._mhz(level), whole, context)
            after = self.watched.rate_rps * self.mean_output / free * pace_s
            if after > self.engine.max_batch:
                return math.inf
            if after - batch < 1e-3 * batch:
                return after
            batch = after
        return batch

    def _late_next(self, level: int, at_s: float) -> float:
        engine, rate_rps = self.engine, self.watched.rate_rps
        dwell_s = 5.0 if self.controller.dwell_s is None else self.controller.dwell_s
        batch, prefill_s, pace_s = self._batch(level), self._prefill_s(level), 0.0
        held = batch > FULL * engine.max_batch or batch * self._context() > FULL * engine.kv_tokens
        if not held and batch > 0.0:
            whole = math.ceil(batch)
            pace_s = engine.decode_s(self._mhz(level), whole, whole * self._context())
            held = pace_s > self.tpot_limit_s * (1.0 - rate_rps * prefill_s)
        if held:
            return rate_rps * dwell_s
        queue_s = max(engine.busy_until_s - at_s, 0.0) + (len(self._waiting(at_s)) + 1) * prefill_s
        slack_s = self.ttft_limit_s - queue_s
        doubt = late_share(rate_rps * prefill_s, prefill_s, slack_s, self.ttft_limit_s - pace_s - prefill_s)
        late_s = min(max(-slack_s, 0.0), self.controller.period_s + self.change_s)
        return rate_rps * (late_s + doubt * dwell_s)

    def _power_w(self, level: int) -> float:
        mhz, rate_rps, mean = self._mhz(level), self.watched.rate_rps, self._batch(level)
        if mean == math.inf:
            mean = float(self.engine.max_batch)
        batch = min(max(math.ceil(mean), 1), self.engine.max_batch)
        decode_s = self.engine.decode_s(mhz, batch, max(mean, 1.0) * self._context())
        per_s = rate_rps * self.mean_output / max(mean, 1.0)
        busy = per_s * decode_s + rate_rps * self._prefill_s(level)
        total_w = per_s * decode_s * self.watts(mhz, batch)
        total_w += rate_rps * self._prefill_s(level) * self.watts(mhz, 1)
        return total_w + max(1.0 - busy, 0.0) * self.loaded_w(mhz)

    def _cost_j(self, at_s: float, level: int) -> float:
        dwell_s = 5.0 if self.controller.dwell_s is None else self.controller.dwell_s
        plan_mhz = self._mhz(0)
        request_j = (
            self.mean_output * self.engine.decode_s(plan_mhz, 1, self._context()) * self.watts(plan_mhz, 1)
        )
        request_j += self._prefill_s(0) * self.watts(plan_mhz, 1)
        late = self._late(at_s, level) + self._late_next(level, at_s)
        return dwell_s * self._power_w(level) + late * self.watched.price * request_j
