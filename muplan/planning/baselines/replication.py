"""Selective replication: which service gets one more replica, on which group; again and again.

The fast heuristic of AlpaServe (Li et al., OSDI'23, §4.2, Algorithm 1): simulate; the group that served
least takes, of the services that memory has room for, the one with most requests not in time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.planning.search.placement import Placement, Site
from muplan.planning.search.scoring import Scorer

_GROUPS_PER_STEP = 128
"""Of more groups, so many more get a replica between two simulations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What services lack, and what groups do, under a placement: the most and the least come first."""

    services: NDArray[np.float64]
    groups: NDArray[np.float64]


Assess = Callable[[Placement], Need]


def replicate(site: Site, empty: Placement, services: Collection[int], assess: Assess) -> Placement:
    """Fill groups with replicas of some services until memory is full.

    Parameters
    ----------
    empty
        Groups to be filled.
    assess
        Finds what is lacking, as a rule by simulation.
    """
    hosts, able = list(empty), set(range(len(empty)))
    at_once = max(1, len(hosts) // _GROUPS_PER_STEP)
    while able:
        need = assess(tuple(hosts))
        wanted = sorted(services, key=lambda service: (-need.services[service], service))
        added = 0
        for place in sorted(able, key=lambda place: (need.groups[place], place)):
            grown = next(
                (
                    host
                    for service in wanted
                    if service not in hosts[place].services
                    and site.fits(host := hosts[place].with_service(service))
                ),
                None,
            )
            if grown is None:
                able.remove(place)
                continue
            hosts[place] = grown
            added += 1
            if added == at_once:
                break
    return tuple(hosts)


def simulated_need(site: Site, scorer: Scorer) -> Assess:
    """Requests not in time, and requests served, on the first training trace; between equals, load."""
    estimated = estimated_need(site)

    def assess(placement: Placement) -> Need:
        score, load = scorer.score(placement, (0,)), estimated(placement).services
        between_equals = 1.0 - 1.0 / (1.0 + load)  # at most 1
        return Need(services=score.missed + between_equals, groups=score.served.astype(float))

    return assess


def estimated_need(site: Site) -> Assess:
    """Load on each replica, and on each group: all there is for services whose requests generate."""
    services = site.problem.services
    rates_rps = np.array([service.rate_rps for service in services])
    least_s = np.array(
        [
            min((each[number].bottleneck_s for each in site.estimates if number in each), default=0.0)
            for number in range(len(services))
        ]
    )

    def assess(placement: Placement) -> Need:
        count = np.bincount([s for host in placement for s in host.services], minlength=len(services))
        each_rps = rates_rps / np.maximum(count, 1)
        load = [
            sum(
                each_rps[number] * site.estimates[host.shape][number].bottleneck_s for number in host.services
            )
            for host in placement
        ]
        return Need(services=np.where(count == 0, np.inf, each_rps * least_s), groups=np.array(load))

    return assess
