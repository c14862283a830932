"""How far a form of group may be used by which of its services: the guard, level by level.

A service waits for the passes of those it shares a group with, so what it allows depends on the longest
pass there; and a group may be used only as far as the most delicate of its services allows. So for every
level of the longest pass and of the utilisation there is one group type, with all services that reach
both; the fewer it may host, the further it may be used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from muplan.planning.estimates.estimate import Estimate
from muplan.planning.guard.tail import MAX_UTILISATION, Floats, Integers, burstiness, highest_utilisations
from muplan.problem.problem import Problem, ResolvedService

_LEVEL_RATIO = 1.2
"""Longest passes closer than this are one level."""
_UTILISATION_RATIO = 0.97
"""Utilisations closer than this are one level: its lowest."""
_MAX_LEVELS = 40
"""Levels of utilisation for each longest pass; where there are more, they lie further apart."""


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Level:
    """Estimates that may be hosted together on a form, by their places, and the utilisation they allow."""

    members: Integers
    utilisation: float


class Guard:
    """The queueing guard of a problem under what simulation has taught."""

    def __init__(self, problem: Problem, state: GuardState) -> None:
        self._services = {service.name: service for service in problem.services}
        self._state = state

    def levels(self, estimates: Sequence[Estimate]) -> list[Level]:
        """The levels of one form of group, none of which another replaces.

        Parameters
        ----------
        estimates
            Everything the form could host: forward services on one shape at the same clocks.
        """
        table = _Table(estimates, self._services, self._state)
        found: list[Level] = []
        for longest_s in _pass_levels(table.bottleneck_s[:, 0]):
            able = np.flatnonzero(table.bottleneck_s[:, 0] <= longest_s)
            allowed = table.utilisations(able, longest_s)
            found += [
                Level(members=able[allowed >= utilisation], utilisation=utilisation)
                for utilisation in _utilisation_levels(allowed)
            ]
        return _undominated(found, len(estimates))


class _Table:
    """Estimates as arrays; batch levels along the second axis, the last one repeated to fill the rows."""

    def __init__(
        self, estimates: Sequence[Estimate], services: Mapping[str, ResolvedService], state: GuardState
    ) -> None:
        most = max(len(item.levels) for item in estimates)
        filled = [(*item.levels, *(item.levels[-1],) * (most - len(item.levels))) for item in estimates]
        hosted = [services[item.service] for item in estimates]
        gpus = estimates[0].shape.num_gpus
        self.batch = np.array([[level.batch for level in row] for row in filled], dtype=float)
        self.bottleneck_s = np.array([[level.bottleneck_s for level in row] for row in filled])
        latency_s = np.array([[level.latency_s for level in row] for row in filled])
        limit_s = np.array([service.limits.latency_s for service in hosted])
        waits_for_batch = np.where(self.batch > 1, self.bottleneck_s, 0.0)
        self._slack_s = limit_s[:, None] - latency_s - waits_for_batch
        self._gain = self.bottleneck_s[:, :1] * self.batch / self.bottleneck_s
        rate_rps = np.array([service.rate_rps for service in hosted])
        scv = np.array([service.cv**2 for service in hosted])
        self._bursts = burstiness(scv, rate_rps * self._slack_s[:, 0])
        self._variance = rate_rps * self.bottleneck_s[:, 0] ** 2
        self._miss = np.array([1.0 - service.attainment for service in hosted])
        self._servers = np.array([max(1.0, state.pooled_gpus[item.service] / gpus) for item in estimates])
        self._correction = np.array([state.corrections[item.service] for item in estimates])

    def utilisations(self, able: Integers, longest_s: float) -> Floats:
        """The utilisation that each of ``able`` allows beside passes of ``longest_s``; shape (able,).

        At its best batch, in units of batch 1: above 1 where batches serve requests faster. A batch of
        its own is a server for each of its requests; another's pass is one. A request meets the bursts of
        its own service, and of those it shares a group with, each weighted by what it adds to the
        variance of the work.
        """
        bottleneck_s = self.bottleneck_s[able]
        own = bottleneck_s >= longest_s
        mean_bursts = float(np.average(self._bursts[able], weights=self._variance[able]))
        reach = highest_utilisations(
            slack_s=self._slack_s[able],
            service_s=np.maximum(bottleneck_s, longest_s),
            service_scv=0.0,
            servers=self._servers[able, None] * np.where(own, self.batch[able], 1.0),
            bursts=np.maximum(self._bursts[able], mean_bursts)[:, None],
            miss=self._miss[able, None],
        )
        corrected = np.minimum(reach * self._correction[able, None], MAX_UTILISATION)
        return np.asarray((corrected * self._gain[able]).max(axis=1))


def _pass_levels(passes_s: Floats) -> list[float]:
    """The longest pass of each level: passes less than a fifth apart are one level."""
    ascending = np.unique(passes_s)
    last = np.append(ascending[1:] > _LEVEL_RATIO * ascending[:-1], True)
    return [float(longest) for longest in ascending[last]]


def _utilisation_levels(allowed: Floats) -> list[float]:
    """Utilisations to offer, descending: the lowest of every level."""
    descending = np.unique(allowed[allowed > 0])[::-1]
    if len(descending) == 0:
        return []
    spread = float(descending[0] / descending[-1])
    ratio = min(_UTILISATION_RATIO, spread ** (-1.0 / _MAX_LEVELS))
    levels, ceiling = [float(descending[0])], float(descending[0])
    for utilisation in descending[1:]:
        if utilisation >= ceiling * ratio:
            levels[-1] = float(utilisation)
        else:
            levels.append(float(utilisation))
            ceiling = float(utilisation)
    return levels


def _undominated(levels: Sequence[Level], num_estimates: int) -> list[Level]:
    """Levels that no other one replaces: all its members, used at least as far."""
    inside = np.zeros((len(levels), num_estimates), dtype=np.bool_)
    for row, level in enumerate(levels):
        inside[row, level.members] = True
    utilisation = np.array([level.utilisation for level in levels])
    kept = []
    for row in range(len(levels)):
        covers = ~(inside[row] & ~inside).any(axis=1) & (utilisation >= utilisation[row])
        equal = covers & (utilisation == utilisation[row]) & (inside == inside[row]).all(axis=1)
        covers[row] = False
        earlier = equal[:row].any()
        if not (covers & ~equal).any() and not earlier:
            kept.append(levels[row])
    return kept
