"""Routing by what a client can see: which requests it has sent where, and which of them are answered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from muplan.serving.http.target import Target
from muplan.serving.layout import REPLICA, Floats
from muplan.serving.routing import drawn_pair, smooth_round_robin
from muplan.workload import Routing


class Router:
    """Chooses the target of each request, and counts what is in flight.

    Round robin is the plan's own, in proportion to shares. The rules that look at the queues see here only
    the requests in flight: the shortest expected completion is taken to be where the fewest are in flight
    for each unit of the plan's share, with the new one; power of two compares two targets so, drawn by
    the simulator's function.

    Parameters
    ----------
    targets
        In the order of services.
    seed
        Of the draws of power of two.
    """

    def __init__(self, targets: Sequence[Target], rule: Routing, *, seed: int) -> None:
        self._rule, self._seed = rule, seed
        self._replicas = np.zeros(len(targets), dtype=REPLICA)
        self._replicas["share"] = [target.share for target in targets]
        self._candidates = np.arange(len(targets), dtype=np.int64)
        services = np.array([target.service for target in targets], dtype=np.int64)
        self._ends = np.searchsorted(services, np.arange(services.max() + 2))
        self.in_flight = np.zeros(len(targets), dtype=np.int64)
        """Requests that were sent to each target and are neither answered nor given up."""

    def choose(self, service: int, request: int) -> int:
        """The target's place for a request of a service."""
        first, last = self._ends[service : service + 2].tolist()
        if last - first == 1:
            return int(first)
        if self._rule is Routing.ROUND_ROBIN:
            return int(smooth_round_robin(self._replicas, self._candidates, first, last))
        places = [*range(first, last)]
        if self._rule is Routing.POWER_OF_TWO:
            places = [*drawn_pair(self._seed, request, first, last)]
        loads: Floats = (self.in_flight[places] + 1) / self._replicas["share"][places]
        return int(places[int(loads.argmin())])
