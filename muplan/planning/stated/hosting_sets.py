"""Sets of services that one group hosts together, with the utilisation that the guard allows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from muplan.planning.estimates.estimate import Estimate, Shape
from muplan.planning.guard.tail import MAX_UTILISATION, Floats, Mix, Queue, Stream, max_utilisations, merge
from muplan.problem.problem import Problem

_SETS_PER_LEVEL = 12
_LEVEL_RATIO = 1.2
"""Longest passes closer than this are one level."""
_LEVEL_STEP = 0.05
"""Utilisations closer than this are one level."""

Key = tuple[Shape, tuple[int, ...]]
Estimates = Mapping[Key, Mapping[str, Sequence[Estimate]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardState:
    """What simulation has taught the guard.

    Parameters
    ----------
    corrections
        Factor on the utilisation that the closed form allows, by service.
    pooled_gpus
        GPUs that a service's requests are pooled over, by service: those of the last solution.
    """

    corrections: Mapping[str, float]
    pooled_gpus: Mapping[str, float]


def enumerate_sets(
    problem: Problem, estimates: Estimates, guard: GuardState
) -> list[tuple[tuple[Estimate, ...], float]]:
    """All candidate sets on every shape and clock, each with its utilisation (above 0).

    For every level of the longest pass and every level of utilisation, the services that reach both
    are hosted together in the maximal sets that memory allows.
    """
    guarded = _Guard(problem, guard)
    levels = [level for by_name in estimates.values() for level in _pass_levels(by_name)]
    allowed = guarded.utilisations([(able, longest) for able, longest in levels])
    sets: dict[tuple[Key, tuple[str, ...]], tuple[Estimate, ...]] = {}
    for (able, _), utilisations in zip(levels, allowed, strict=True):
        usable = problem.devices[able[0].shape.pool].usable_memory_bytes
        steps = sorted({int(utilisation / _LEVEL_STEP) for utilisation in utilisations if utilisation > 0})
        for step in steps:
            members = [
                item
                for item, reach in zip(able, utilisations, strict=True)
                if reach > 0 and int(reach / _LEVEL_STEP) >= step
            ]
            for hosted in maximal_sets(members, usable, limit=_SETS_PER_LEVEL):
                key = (hosted[0].shape, hosted[0].clocks_mhz)
                sets.setdefault((key, tuple(item.service for item in hosted)), hosted)
    hosted_sets = list(sets.values())
    longest = [(hosted, max(item.bottleneck_s for item in hosted)) for hosted in hosted_sets]
    lowest = [min(utilisations) for utilisations in guarded.utilisations(longest)]
    return [(hosted, reach) for hosted, reach in zip(hosted_sets, lowest, strict=True) if reach > 0]


def memory_fits(usable_bytes: float, hosted: Sequence[Estimate]) -> bool:
    """Whether weights (which add up) and working sets (which take turns) fit every GPU of the group."""
    return all(
        sum(item.weight_bytes[stage] for item in hosted) + max(item.working_bytes[stage] for item in hosted)
        <= usable_bytes
        for stage in range(hosted[0].shape.num_stages)
    )


def _pass_levels(by_name: Mapping[str, Sequence[Estimate]]) -> Iterator[tuple[list[Estimate], float]]:
    """The services whose passes are no longer than each level, and that level, seconds."""
    chosen = [min(variants, key=lambda item: item.bottleneck_s) for variants in by_name.values()]
    chosen.sort(key=lambda item: (item.bottleneck_s, item.service))
    for index, item in enumerate(chosen):
        last = index + 1 == len(chosen)
        if last or chosen[index + 1].bottleneck_s > _LEVEL_RATIO * item.bottleneck_s:
            yield chosen[: index + 1], item.bottleneck_s


class _Guard:
    """The queueing guard applied to hosted sets, many at once."""

    def __init__(self, problem: Problem, state: GuardState) -> None:
        self._services = {service.name: service for service in problem.services}
        self._state = state
        self._mixes: dict[tuple[str, ...], Mix] = {}

    def utilisations(self, sets: Sequence[tuple[Sequence[Estimate], float]]) -> list[list[float]]:
        """For each set with its longest pass, the utilisation that each member allows.

        In units of batch 1: above 1 where batches serve requests faster.
        """
        queues: list[Queue] = []
        gains: list[float] = []
        owners: list[tuple[int, int]] = []
        for row, (hosted, longest_s) in enumerate(sets):
            mix = self._mix(hosted)
            for column, item in enumerate(hosted):
                for queue, gain in self._queues(item, longest_s, mix):
                    queues.append(queue)
                    gains.append(gain)
                    owners.append((row, column))
        best = [[0.0] * len(hosted) for hosted, _ in sets]
        found = max_utilisations(queues)
        for (row, column), reach, gain in zip(owners, found, gains, strict=True):
            correction = self._state.corrections[sets[row][0][column].service]
            corrected = min(float(reach) * correction, MAX_UTILISATION) * gain
            best[row][column] = max(best[row][column], corrected)
        return best

    def _queues(self, item: Estimate, longest_s: float, mix: Mix) -> Iterator[tuple[Queue, float]]:
        """The queue of a service for each batch size, and what that batch gains in rate over batch 1."""
        service = self._services[item.service]
        servers = max(1.0, self._state.pooled_gpus[item.service] / item.shape.num_gpus)
        for level in item.levels:
            wait_for_batch_s = level.bottleneck_s if level.batch > 1 else 0.0
            queue = Queue(
                slack_s=service.limits.latency_s - level.latency_s - wait_for_batch_s,
                service_s=max(level.bottleneck_s, longest_s),
                service_scv=0.0,
                # A batch of its own is a server for each of its requests; another's pass is one.
                servers=servers * (level.batch if level.bottleneck_s >= longest_s else 1),
                arrivals=mix,
                miss=1.0 - service.attainment,
            )
            yield queue, item.levels[0].bottleneck_s * level.batch / level.bottleneck_s

    def _mix(self, hosted: Sequence[Estimate]) -> Mix:
        names = tuple(item.service for item in hosted)
        if names not in self._mixes:
            services = [self._services[name] for name in names]
            self._mixes[names] = merge([Stream(rate_rps=item.rate_rps, scv=item.cv**2) for item in services])
        return self._mixes[names]


def maximal_sets(
    members: Sequence[Estimate], usable_bytes: float, *, limit: int
) -> list[tuple[Estimate, ...]]:
    """Sets to which no further member can be added without exceeding the memory.

    Parameters
    ----------
    members
        Services on the same shape, each of which fits alone.
    usable_bytes
        Memory of each GPU.
    limit
        At most so many sets. Where there are more, they come from filling up around every member in
        turn: with the rest in the order given, and from the smallest to the largest.

    Returns
    -------
    list of tuple
        Sets without repetition, members in the order given.
    """
    weights = np.array([item.weight_bytes for item in members])
    working = np.array([item.working_bytes for item in members])
    if (weights.sum(axis=0) + working.max(axis=0) <= usable_bytes).all():
        return [tuple(members)]
    fits = _Fits(weights, working, usable_bytes)
    found = _all_maximal(len(members), fits, limit)
    if found is None:
        found = _filled_up(np.argsort(weights.max(axis=1), kind="stable").tolist(), fits, limit)
    return [tuple(members[index] for index in chosen) for chosen in found]


class _Fits:
    """Whether chosen members fit the memory."""

    def __init__(self, weights: Floats, working: Floats, usable_bytes: float) -> None:
        self._weights = weights.tolist()
        self._working = working.tolist()
        self._usable = usable_bytes

    def __call__(self, chosen: Sequence[int]) -> bool:
        return all(
            sum(self._weights[index][stage] for index in chosen)
            + max(self._working[index][stage] for index in chosen)
            <= self._usable
            for stage in range(len(self._weights[0]))
        )


def _all_maximal(num_members: int, fits: _Fits, limit: int) -> list[list[int]] | None:
    """Every maximal set, or None where there are more than ``limit``."""
    found: list[list[int]] = []
    steps = 0

    def grow(chosen: list[int], position: int) -> bool:
        nonlocal steps
        steps += 1
        if steps > 40 * limit:
            return False
        for index in range(position, num_members):
            if fits([*chosen, index]) and not grow([*chosen, index], index + 1):
                return False
        rest = [index for index in range(num_members) if index not in chosen]
        if chosen and not any(fits([*chosen, index]) for index in rest):
            found.append(chosen)
        return len(found) <= limit

    return found if grow([], 0) else None


def _filled_up(by_size: list[int], fits: _Fits, limit: int) -> list[list[int]]:
    found: list[list[int]] = []
    for order in (sorted(by_size), by_size):
        for anchor in sorted(by_size):
            chosen = [anchor]
            for index in order:
                if index != anchor and fits([*chosen, index]):
                    chosen.append(index)
            if sorted(chosen) not in found and len(found) < limit:
                found.append(sorted(chosen))
    return found
