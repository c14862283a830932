"""Selective replication: which service gets one more replica, on which group; again and again.

The fast heuristic of AlpaServe (Li et al., OSDI'23, §4.2, Algorithm 1): simulate; the group that served
least takes, of the services that memory has room for, the one with most requests not in time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from muplan.planning.search.placement import Placement, Site
from muplan.planning.search.scoring import Scorer
from muplan.serving.layout import Floats, Integers

_GROUPS_PER_STEP = 128
"""Of more groups, so many more get a replica between two simulations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What services lack, and what groups do, under a placement: the most and the least come first."""

    services: Floats
    groups: Floats


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
    loads = _Loads(site)

    def assess(placement: Placement) -> Need:
        score, load = scorer.score(placement, (0,)), loads.on_replicas(placement)
        between_equals = 1.0 - 1.0 / (1.0 + load)  # at most 1
        return Need(services=score.missed + between_equals, groups=score.served.astype(float))

    return assess


def estimated_need(site: Site) -> Assess:
    """Load on each replica, and on each group: all there is for services whose requests generate."""
    loads = _Loads(site)

    def assess(placement: Placement) -> Need:
        return Need(services=loads.on_replicas(placement), groups=loads.on_groups(placement))

    return assess


class _Loads:
    """Offered loads under a placement, each service's demand divided evenly over its replicas."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._rates_rps = np.array([service.rate_rps for service in site.problem.services])
        self._least_s = np.array(
            [
                min((each[number].bottleneck_s for each in site.estimates if number in each), default=0.0)
                for number in range(site.num_services)
            ]
        )

    def on_replicas(self, placement: Placement) -> Floats:
        """Load on each replica of a service, on its fastest group; infinite where it has none."""
        count = self._count(placement)
        return np.where(count == 0, np.inf, self._rates_rps * self._least_s / np.maximum(count, 1))

    def on_groups(self, placement: Placement) -> Floats:
        """Load on the bottleneck of each group."""
        each_rps = self._rates_rps / np.maximum(self._count(placement), 1)
        return np.array(
            [
                sum(
                    each_rps[one] * self._site.estimates[host.shape][one].bottleneck_s
                    for one in host.services
                )
                for host in placement
            ]
        )

    def _count(self, placement: Placement) -> Integers:
        hosted = [service for host in placement for service in host.services]
        return np.bincount(hosted, minlength=self._site.num_services)
