"""A slow simulator of forward groups, written for reading: every event is taken from one calendar.

It shares with muplan the semantics of docs/mathematics.md and nothing else: no kernel, no policy,
no table; times come straight from the profile.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from dataclasses import dataclass, field

from muplan.hardware.device import Device
from muplan.plan import Deployment, Group, Replica
from muplan.problem.problem import Problem, ResolvedService
from muplan.profile import Phase
from muplan.traces.trace import Trace
from muplan.workload import Controller, QueueOrder, Rejection, Routing
from tests.reference_ageing import Ageing
from tests.reference_clocks import Levels, Watched, late_share

CONTROL, ARRIVAL, CHECK = 0, 1, 2
BY_LENGTH = (QueueOrder.SJF, QueueOrder.SSJF, QueueOrder.SRPT)
WORD = 2**64 - 1


@dataclass
class Pass:
    """One stage's work on one batch."""

    stage: int
    start_s: float
    finish_s: float
    watts: float


@dataclass
class GroupState:
    group: Group
    device: Device
    clocks: list[int]
    grid: list[int]
    free_s: list[float]
    promised_s: list[float]
    waiting: dict[str, list[int]]
    full_since_s: dict[str, float]
    pending: tuple[float, list[int]] | None = None
    clock_history: list[tuple[float, list[int]]] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    completed: list[tuple[float, str, bool]] = field(default_factory=list)
    rejected: list[tuple[float, str]] = field(default_factory=list)
    ageing: Ageing | None = None
    arrived: Counter[str] = field(default_factory=Counter)
    watched: dict[str, Watched] = field(default_factory=dict)
    levels: Levels = field(default_factory=lambda: Levels(floors=[], num_clocks=0))

    def clock_at(self, stage: int, time_s: float) -> int:
        if self.pending is not None and time_s >= self.pending[0]:
            return self.pending[1][stage]
        return self.clocks[stage]


class ReferenceForward:
    """Serves a trace; afterwards the columns of the requests and the groups' passes stand."""

    def __init__(
        self,
        problem: Problem,
        deployment: Deployment,
        trace: Trace,
        controller: Controller,
        routing_seed: int = 0,
    ) -> None:
        self.routing_seed = routing_seed
        self.problem, self.deployment, self.trace, self.controller = problem, deployment, trace, controller
        self.serving = deployment.serving
        self.groups = []
        for group in deployment.groups:
            services = [problem.service(replica.service) for replica in group.replicas]
            grid = sorted(set.intersection(*(set(one.profiles[group.pool].clocks_mhz) for one in services)))
            clocks = [stage.clock_mhz for stage in group.stages]
            self.groups.append(
                GroupState(
                    group=group,
                    device=problem.devices[group.pool],
                    clocks=clocks,
                    grid=grid,
                    free_s=[0.0] * len(group.stages),
                    promised_s=[0.0] * len(group.stages),
                    waiting={replica.service: [] for replica in group.replicas},
                    full_since_s={replica.service: math.inf for replica in group.replicas},
                    clock_history=[(0.0, list(clocks))],
                    watched={
                        replica.service: Watched(
                            rate_rps=problem.service(replica.service).rate_rps * replica.share,
                            target=problem.service(replica.service).attainment,
                        )
                        for replica in group.replicas
                    },
                    levels=Levels(floors=[grid.index(clock) for clock in clocks], num_clocks=len(grid)),
                )
            )
        for state in self.groups:
            if self.serving.queue_order in BY_LENGTH and self.serving.wait_cap != "none":
                state.ageing = Ageing(self.serving.wait_cap)
        self.start_s = [math.nan] * len(trace)
        self.completion_s = [math.nan] * len(trace)
        self.served_by = [-1] * len(trace)
        self.batch = [0] * len(trace)
        self.credit: dict[tuple[str, int], float] = {}
        self.hopeless: set[int] = set()

    # --- times ----------------------------------------------------------------------------------

    def _replica(self, state: GroupState, service: str) -> Replica:
        return next(replica for replica in state.group.replicas if replica.service == service)

    def stage_s(self, state: GroupState, service: str, stage: int, clock: int, batch: int) -> float:
        return self._stage(state, service, stage, clock, batch)[0]

    def _stage(
        self, state: GroupState, service: str, stage: int, clock: int, batch: int
    ) -> tuple[float, float]:
        """Seconds and joules of a GPU."""
        one = self.problem.service(service)
        profile = one.profiles[state.group.pool]
        column = profile.clocks_mhz.index(clock)
        tokens = one.input_tokens
        latency = profile.latency_s(Phase.FORWARD, tensor_parallel=1, batch=batch, tokens=tokens)[:, column]
        power = profile.power_w(Phase.FORWARD, tensor_parallel=1, batch=batch, tokens=tokens)[:, column]
        seconds = joules = 0.0
        for start, stop in self._replica(state, service).stage_clusters[stage]:
            for cluster in profile.clusters[start:stop]:
                seconds += float(latency[cluster.type])
                joules += float(latency[cluster.type] * power[cluster.type])
        longer = 1.0 + self.serving.stage_overhead * len(state.group.stages)
        return seconds * longer, joules * longer

    def transfer_s(self, state: GroupState, service: str, stage: int, batch: int) -> float:
        one = self.problem.service(service)
        profile = one.profiles[state.group.pool]
        owner = {}
        for index, ranges in enumerate(self._replica(state, service).stage_clusters):
            for start, stop in ranges:
                owner.update(dict.fromkeys(range(start, stop), index))
        seconds = 0.0
        for cluster in range(len(profile.clusters) - 1):
            if owner[cluster] == stage and owner[cluster + 1] != stage:
                here, there = (
                    state.group.stages[stage].gpus[0],
                    state.group.stages[owner[cluster + 1]].gpus[0],
                )
                size = profile.cluster_types[profile.clusters[cluster].type].output_bytes_per_token
                near = here.split("/")[1] == there.split("/")[1]
                seconds += state.device.transfer_s(size * batch * one.input_tokens, near)
        return seconds

    # --- the calendar ---------------------------------------------------------------------------

    def run(self) -> None:
        calendar: list[tuple[float, int, int]] = [
            (float(arrival), ARRIVAL, request) for request, arrival in enumerate(self.trace.arrival_s)
        ]
        if self.controller.policy != "fixed":
            number = 1
            while number * self.controller.period_s < self.trace.duration_s:
                calendar.append((number * self.controller.period_s, CONTROL, number))
                number += 1
        heapq.heapify(calendar)
        while calendar:
            now_s, kind, number = heapq.heappop(calendar)
            for state in self.groups:
                self._switch(state, now_s)
            if kind == CONTROL:
                for state in self.groups:
                    if self.controller.policy == "miad":
                        self._decide(state, now_s)
                    else:
                        self._decide_level(state, now_s)
            elif kind == ARRIVAL:
                self._arrive(number, now_s, calendar)
            else:
                self._check(self.groups[number], now_s, calendar)
        for state in self.groups:
            self._switch(state, math.inf)

    def _switch(self, state: GroupState, now_s: float) -> None:
        if state.pending is not None and state.pending[0] <= now_s:
            state.clocks = state.pending[1]
            state.clock_history.append((state.pending[0], list(state.clocks)))
            state.pending = None

    def _arrive(self, request: int, now_s: float, calendar: list[tuple[float, int, int]]) -> None:
        service = self.trace.services[self.trace.service[request]]
        hosts = [
            number
            for number, state in enumerate(self.groups)
            if any(replica.service == service for replica in state.group.replicas)
        ]
        if not hosts:
            return
        chosen = self._route(service, hosts, now_s, request)
        state = self.groups[chosen]
        late = self._is_expected_late(state, service, now_s)
        if late and self.serving.rejection == Rejection.AT_ARRIVAL:
            state.rejected.append((now_s, service))
            return
        if late:
            self.hopeless.add(request)
        else:
            state.promised_s = self._promise(state, service, now_s)[0]
        self.served_by[request] = chosen
        state.waiting[service].append(request)
        state.arrived[service] += 1
        if state.ageing is not None:
            state.ageing.come(request, now_s, self._alone_s(state, service))
        if len(state.waiting[service]) == self._replica(state, service).max_batch:
            state.full_since_s[service] = now_s
        heapq.heappush(calendar, (now_s, CHECK, chosen))
        heapq.heappush(calendar, (now_s + self.serving.batch_timeout_s, CHECK, chosen))

    def _route(self, service: str, hosts: list[int], now_s: float, request: int) -> int:
        if len(hosts) == 1:
            return hosts[0]
        if self.serving.routing == Routing.POWER_OF_TWO:
            hosts = sorted(drawn(hosts, self.routing_seed, request))
        if self.serving.routing == Routing.ROUND_ROBIN:
            total = 0.0
            for host in hosts:
                share = self._replica(self.groups[host], service).share
                self.credit[service, host] = self.credit.get((service, host), 0.0) + share
                total += share
            best = hosts[0]
            for host in hosts:
                if self.credit[service, host] > self.credit[service, best] + 1e-12:
                    best = host
            self.credit[service, best] -= total
            return best
        if self.serving.routing == Routing.LEAST_LAST_STAGE:
            last_s = {
                host: (self.groups[host].promised_s[-1], self.groups[host].free_s[-1]) for host in hosts
            }
            return min(hosts, key=lambda host: (max(last_s[host]), host))
        if self._foretells():
            return min(hosts, key=lambda host: (self._promise(self.groups[host], service, now_s)[1], host))

        def preference(host: int) -> tuple[bool, float, int]:
            state = self.groups[host]
            late = self._is_expected_late(state, service, now_s)
            return late, self._expected_s(state, service, now_s, math.inf), host

        return min(hosts, key=preference)

    def _foretells(self) -> bool:
        """Whether promises tell completions: rejection at arrival needs it; else where they are exact."""
        replicas = [replica for state in self.groups for replica in state.group.replicas]
        limits_s = {self._limit_s(service.name) for service in self.problem.services}
        by_arrival = self.serving.queue_order == QueueOrder.FCFS or (
            self.serving.queue_order == QueueOrder.EDF and len(limits_s) == 1
        )
        exact = by_arrival and all(replica.max_batch == 1 for replica in replicas)
        exact = exact and self.serving.batch_timeout_s == 0
        return self.serving.rejection == Rejection.AT_ARRIVAL or exact

    def _is_expected_late(self, state: GroupState, service: str, now_s: float) -> bool:
        """Whether it is expected late behind what goes before it; never where nothing is rejected."""
        if self.serving.rejection == Rejection.NONE:
            return False
        if self._foretells():
            at_s = self._promise(state, service, now_s)[1]
        else:
            by_deadline = self.serving.queue_order == QueueOrder.EDF
            due_s = now_s + self._limit_s(service) if by_deadline else math.inf
            at_s = self._expected_s(state, service, now_s, due_s)
        return at_s + self.serving.overhead_s - now_s > self._limit_s(service)

    def _limit_s(self, service: str) -> float:
        return self.problem.service(service).limits.latency_s

    def _promise(self, state: GroupState, service: str, now_s: float) -> tuple[list[float], float]:
        """Promised ends of the stages with one more request of a service, and its completion."""
        batch = len(state.waiting[service]) % self._replica(state, service).max_batch + 1
        clocks, promised_s, delay_s, at_s = state.clocks, [], 0.0, now_s
        for stage in range(len(state.group.stages)):
            free_s = max(state.promised_s[stage], state.free_s[stage])
            seconds = self.stage_s(state, service, stage, clocks[stage], batch)
            move_s = self.transfer_s(state, service, stage, batch)
            if batch == 1:
                at_s = max(at_s, free_s) + seconds
            else:
                delay_s += seconds - self.stage_s(state, service, stage, clocks[stage], batch - 1)
                at_s = max(now_s, free_s) + delay_s
                delay_s += move_s - self.transfer_s(state, service, stage, batch - 1)
            promised_s.append(at_s)
            at_s += move_s
        return promised_s, at_s

    def _expected_s(self, state: GroupState, service: str, now_s: float, due_s: float) -> float:
        """Completion behind all that waits with hope and is due by ``due_s``."""

        def slowest_s(name: str, batch: int) -> float:
            return max(
                self.stage_s(state, name, stage, state.clocks[stage], batch)
                for stage in range(len(state.group.stages))
            )

        def before(name: str) -> int:
            limit_s = self._limit_s(name)
            return sum(
                one not in self.hopeless and float(self.trace.arrival_s[one]) + limit_s <= due_s
                for one in state.waiting[name]
            )

        backlog_s = 0.0
        for name in state.waiting:
            largest, count = self._replica(state, name).max_batch, before(name)
            backlog_s += (count // largest) * slowest_s(name, largest)
            if name != service and count % largest:
                backlog_s += slowest_s(name, count % largest)
        batch = before(service) % self._replica(state, service).max_batch + 1
        at_s = now_s
        for stage in range(len(state.group.stages)):
            at_s = max(at_s, state.free_s[stage])
            at_s += self.stage_s(state, service, stage, state.clocks[stage], batch)
            at_s += self.transfer_s(state, service, stage, batch)
        return at_s + backlog_s

    def _check(self, state: GroupState, now_s: float, calendar: list[tuple[float, int, int]]) -> None:
        while state.free_s[0] <= now_s:
            ready = [
                name
                for name, queue in state.waiting.items()
                if queue
                and (
                    len(queue) >= self._replica(state, name).max_batch
                    or self.trace.arrival_s[queue[0]] + self.serving.batch_timeout_s <= now_s
                )
            ]
            if not ready:
                return
            name = min(ready, key=lambda one: self._priority(state, one, now_s))
            if self.serving.rejection == Rejection.AT_DISPATCH and self._is_hopeless(state, name, now_s):
                dropped = state.waiting[name].pop(0)
                self.served_by[dropped] = -1
                if state.ageing is not None:
                    state.ageing.begin(dropped, now_s)
                state.rejected.append((now_s, name))
                continue
            self._dispatch(state, name, now_s)
            if not any(state.waiting.values()):
                state.promised_s = list(state.free_s)
            heapq.heappush(calendar, (state.free_s[0], CHECK, self.groups.index(state)))

    def _is_hopeless(self, state: GroupState, name: str, now_s: float) -> bool:
        queue = state.waiting[name]
        batch, at_s = min(len(queue), self._replica(state, name).max_batch), now_s
        for stage in range(len(state.group.stages)):
            start_s = max(at_s, state.free_s[stage])
            at_s = start_s + self.stage_s(state, name, stage, state.clock_at(stage, start_s), batch)
            at_s += self.transfer_s(state, name, stage, batch)
        arrival_s = float(self.trace.arrival_s[queue[0]])
        return at_s + self.serving.overhead_s - arrival_s > self._limit_s(name)

    def _priority(self, state: GroupState, name: str, now_s: float) -> tuple[int, float, int]:
        head = state.waiting[name][0]
        arrival_s = float(self.trace.arrival_s[head])
        limit_s = self._limit_s(name)
        if self.serving.queue_order == QueueOrder.EDF:
            return (1, arrival_s + limit_s, head)
        if self.serving.queue_order == QueueOrder.FCFS:
            return (1, arrival_s, head)
        if state.ageing is not None and now_s - arrival_s > state.ageing.limit_s():
            return (0, arrival_s, head)
        return (1, round(self._alone_s(state, name), 12), head)

    def _alone_s(self, state: GroupState, name: str) -> float:
        alone_s = 0.0
        for index, stage in enumerate(state.group.stages):
            alone_s += self.stage_s(state, name, index, stage.clock_mhz, 1)
            alone_s += self.transfer_s(state, name, index, 1)
        return alone_s

    def _dispatch(self, state: GroupState, name: str, now_s: float) -> None:
        largest = self._replica(state, name).max_batch
        members, state.waiting[name] = state.waiting[name][:largest], state.waiting[name][largest:]
        batch, at_s = len(members), now_s
        for stage in range(len(state.group.stages)):
            start_s = max(at_s, state.free_s[stage])
            seconds, joules = self._stage(state, name, stage, state.clock_at(stage, start_s), batch)
            state.free_s[stage] = start_s + seconds
            state.passes.append(Pass(stage, start_s, start_s + seconds, joules / seconds))
            at_s = start_s + seconds + self.transfer_s(state, name, stage, batch)
        at_s += self.serving.overhead_s
        limit_s = self._limit_s(name)
        for request in members:
            if state.ageing is not None:
                state.ageing.begin(request, now_s)
            self.start_s[request], self.completion_s[request], self.batch[request] = now_s, at_s, batch
            within = at_s - float(self.trace.arrival_s[request]) <= limit_s
            state.completed.append((at_s, name, within))

    # --- clock control --------------------------------------------------------------------------

    def _decide(self, state: GroupState, now_s: float) -> None:
        if state.pending is not None:
            return
        wishes = []
        for replica in state.group.replicas:
            service = self.problem.service(replica.service)
            window = [
                within
                for time_s, name, within in state.completed
                if name == replica.service and now_s - self.controller.window_s < time_s <= now_s
            ]
            window += [
                False
                for time_s, name in state.rejected
                if name == replica.service and now_s - self.controller.window_s <= time_s < now_s
            ]
            if window:
                wishes.append(self._wish(service, sum(window) / len(window)))
        move = max(wishes, default=0)
        floors = [stage.clock_mhz for stage in state.group.stages]
        moved = [
            self._moved(state.grid, clock, floor, move)
            for clock, floor in zip(state.clocks, floors, strict=True)
        ]
        if moved != state.clocks:
            state.pending = (now_s + state.device.clock_change_s, moved)

    def _wish(self, service: ResolvedService, attainment: float) -> int:
        if attainment < service.attainment:
            return 1
        return -1 if attainment >= min(service.attainment + self.controller.hysteresis, 1.0) else 0

    def _moved(self, grid: list[int], clock: int, floor: int, move: int) -> int:
        if move > 0:
            higher = [one for one in grid if one > clock and one >= clock * self.controller.increase]
            return higher[0] if higher else grid[-1]
        if move < 0:
            lower = [
                one for one in grid if floor <= one < clock and one <= clock - self.controller.decrease_mhz
            ]
            return lower[-1] if lower else floor
        return clock

    # --- clocks by prediction -------------------------------------------------------------------

    def _decide_level(self, state: GroupState, now_s: float) -> None:
        period_s = self.controller.period_s
        for name, watched in state.watched.items():
            within = [
                ok for at_s, one, ok in state.completed if one == name and now_s - period_s < at_s <= now_s
            ]
            within += [
                False for at_s, one in state.rejected if one == name and now_s - period_s <= at_s < now_s
            ]
            watched.observe(state.arrived[name], within, period_s)
        state.arrived.clear()
        if state.pending is not None:
            return
        chosen = state.levels.chosen(
            self.controller,
            now_s,
            lambda level: self._foresee(state, now_s, level)[0],
            lambda level: self._cost_j(state, now_s, level),
        )
        if chosen == state.levels.level:
            return
        state.levels.level = chosen
        clocks = [state.grid[state.levels.clock(stage, chosen)] for stage in range(len(state.clocks))]
        if clocks != state.clocks:
            state.levels.changed_s = now_s
            state.pending = (now_s + state.device.clock_change_s, clocks)

    def _foresee(self, state: GroupState, now_s: float, level: int) -> tuple[float, list[float]]:
        """The price of what waits and would be late at a level, and when each stage would be free."""
        change_s = 0.0 if level == state.levels.level else state.device.clock_change_s
        free_s, late_j = list(state.free_s), 0.0
        waiting = {name: list(queue) for name, queue in state.waiting.items()}
        while any(waiting.values()):
            name = min(
                (name for name, queue in waiting.items() if queue),
                key=lambda name: float(self.trace.arrival_s[waiting[name][0]]),
            )
            largest, at_s = self._replica(state, name).max_batch, now_s
            members, waiting[name] = waiting[name][:largest], waiting[name][largest:]
            for stage in range(len(free_s)):
                start_s = max(at_s, free_s[stage])
                clock = state.clocks[stage]
                if start_s >= now_s + change_s:
                    clock = state.grid[state.levels.clock(stage, level)]
                free_s[stage] = start_s + self.stage_s(state, name, stage, clock, len(members))
                at_s = free_s[stage] + self.transfer_s(state, name, stage, len(members))
            for request in members:
                over_s = at_s + self.serving.overhead_s - float(self.trace.arrival_s[request])
                if request not in self.hopeless and over_s > self._limit_s(name):
                    late_j += self._price_j(state, name)
        return late_j, free_s

    def _price_j(self, state: GroupState, name: str) -> float:
        plan = state.group.stages
        request_j = sum(
            self._stage(state, name, one, stage.clock_mhz, 1)[1] for one, stage in enumerate(plan)
        )
        return state.watched[name].price * request_j

    def _cost_j(self, state: GroupState, now_s: float, level: int) -> float:
        dwell_s = 5.0 if self.controller.dwell_s is None else self.controller.dwell_s
        stages = range(len(state.clocks))
        clocks = [state.grid[state.levels.clock(stage, level)] for stage in stages]
        cost_j, free_s = self._foresee(state, now_s, level)
        loads = []
        for stage in stages:
            loaded_w = float(state.device.loaded_power_w(state.device.effective_clock_mhz(clocks[stage])))
            cost_j += dwell_s * loaded_w
            busy = passes = 0.0
            for name, watched in state.watched.items():
                seconds, joules = self._stage(state, name, stage, clocks[stage], 1)
                cost_j += dwell_s * watched.rate_rps * (joules - loaded_w * seconds)
                largest = self._replica(state, name).max_batch
                busy += watched.rate_rps * self.stage_s(state, name, stage, clocks[stage], largest) / largest
                passes += watched.rate_rps / largest
            loads.append((busy, busy / passes))
        load, work_s = max(loads, key=lambda one: one[0])
        for name, watched in state.watched.items():
            at_s = now_s
            for stage in stages:
                at_s = max(at_s, free_s[stage]) + self.stage_s(state, name, stage, clocks[stage], 1)
                at_s += self.transfer_s(state, name, stage, 1)
            allowed_s = self._limit_s(name) - self.serving.overhead_s
            slack_s = allowed_s - (at_s - now_s)
            late_s = min(max(-slack_s, 0.0), self.controller.period_s + state.device.clock_change_s)
            expected = late_s + late_share(load, work_s, slack_s, allowed_s - work_s) * dwell_s
            cost_j += self._price_j(state, name) * watched.rate_rps * expected
        return cost_j

    # --- energy ---------------------------------------------------------------------------------

    def energy_j(self, begin_s: float, end_s: float) -> float:
        """Energy of the placed GPUs between two times, integrated pass by pass and gap by gap."""
        return sum(
            self._stage_energy_j(state, stage, begin_s, end_s)
            for state in self.groups
            for stage in range(len(state.group.stages))
        )

    def _stage_energy_j(self, state: GroupState, stage: int, begin_s: float, end_s: float) -> float:
        joules, at_s = 0.0, begin_s
        for one in sorted((one for one in state.passes if one.stage == stage), key=lambda one: one.start_s):
            if one.finish_s <= begin_s or one.start_s >= end_s:
                continue
            start_s, finish_s = max(one.start_s, begin_s), min(one.finish_s, end_s)
            joules += self._idle_j(state, stage, at_s, start_s) + one.watts * (finish_s - start_s)
            at_s = finish_s
        return joules + self._idle_j(state, stage, at_s, end_s)

    def _idle_j(self, state: GroupState, stage: int, begin_s: float, end_s: float) -> float:
        joules = 0.0
        history = [*state.clock_history, (math.inf, [])]
        for (since_s, clocks), (until_s, _) in itertools.pairwise(history):
            overlap_s = min(end_s, until_s) - max(begin_s, since_s)
            if overlap_s > 0:
                clock = state.device.effective_clock_mhz(clocks[stage])
                joules += float(state.device.loaded_power_w(clock)) * overlap_s
        return joules


def drawn(hosts: list[int], seed: int, request: int) -> set[int]:
    """Two different hosts, by two words of SplitMix64."""
    one = word_of(seed, 2 * request) % len(hosts)
    others = [host for host in hosts if host != hosts[one]]
    return {hosts[one], others[word_of(seed, 2 * request + 1) % len(others)]}


def word_of(seed: int, number: int) -> int:
    word = (seed + (number + 1) * 0x9E3779B97F4A7C15) & WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
    return word ^ (word >> 31)
