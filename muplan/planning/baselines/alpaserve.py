"""AlpaServe's placement search: partitions of the fleet enumerated, each filled by selective replication.

Li et al., AlpaServe (OSDI'23), §4.2, Algorithm 2: services are put into buckets of like latency; GPUs are
split over the buckets, and cut into groups of one size and parallelism within each; the partition
whose requests are most often in time on a training trace is taken. One bucket for all is tried too. The
simulation is AlpaServe's own: batches of one, first come first served, the replica whose last stage is
free first, late requests rejected at their arrival. It knows neither clocks nor parking.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from muplan.planning.baselines.replication import estimated_need, replicate, simulated_need
from muplan.planning.search.placement import Host, Placement, Site
from muplan.planning.search.scoring import CountingScorer
from muplan.workload import Controller, QueueOrder, Rejection, Routing, Serving

TRAINING_REQUESTS = 30_000
_MAX_STAGES, _MAX_TENSOR_PARALLEL = 8, 4
_SAME_LATENCY = 0.38
"""Relative difference of latencies within a bucket; theirs, as the numbers above."""
_MAX_BUCKETS, _UNITS, _MAX_SPLITS = 5, 32, 100
"""Of the ways to split a fleet over buckets: in at most so many units of GPUs, the nearest to balance."""
_REPLICA_BONUS = 1e-6

Bucket = tuple[int, ...]
Gpus = tuple[int, ...]
"""Numbers of GPUs, by pool."""


def alpaserve_rules(serving: Serving) -> Serving:
    """The rules that AlpaServe simulates under, with the overheads of a workload."""
    return serving.model_copy(
        update={
            "queue_order": QueueOrder.FCFS,
            "routing": Routing.LEAST_LAST_STAGE,
            "rejection": Rejection.AT_ARRIVAL,
            "max_batch": 1,
            "batch_timeout_s": 0.0,
            "controller": Controller(),
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A placement and AlpaServe's score of it: share of requests in time, and a little for each replica."""

    placement: Placement
    score: float


def search_alpaserve(site: Site, scorer: CountingScorer | None) -> list[Ranked]:
    """Placements that host every service, best first: one for each way to cut or split the fleet.

    Parameters
    ----------
    scorer
        Of AlpaServe's rules; None where no service is forward.
    """
    search = _Search(site=site, scorer=scorer)
    buckets = _buckets(site)
    everything = tuple(supply.num_free for supply in site.supplies)
    found: list[Placement] = []
    if len(set(site.generates)) == 1:
        found += search.filled(tuple(range(site.num_services)), everything)
    if len(buckets) > 1:
        for split in _splits(site, buckets):
            parts = [search.best(bucket, gpus) for bucket, gpus in zip(buckets, split, strict=True)]
            found.append(tuple(host for part in parts for host in part))
    legal = [placement for placement in dict.fromkeys(found) if site.is_whole(placement)]
    ranked = [Ranked(placement=placement, score=search.score(placement)) for placement in legal]
    return sorted(ranked, key=lambda item: -item.score)


@dataclass(slots=True, kw_only=True)
class _Search:
    """What has been placed so far, by bucket and GPUs."""

    site: Site
    scorer: CountingScorer | None
    known: dict[tuple[Bucket, Gpus], Placement] = field(default_factory=dict)
    parts: dict[Bucket, _Search] = field(default_factory=dict)

    def only(self, bucket: Bucket) -> _Search:
        """The search of a bucket by itself, which looks at its requests alone."""
        if bucket not in self.parts:
            scorer = None if self.scorer is None else self.scorer.only(bucket)
            self.parts[bucket] = _Search(site=self.site, scorer=scorer)
        return self.parts[bucket]

    def score(self, placement: Placement) -> float:
        """AlpaServe's score; of services that generate, unknown to it, the load of the busiest group."""
        score = _REPLICA_BONUS * sum(len(host.services) for host in placement)
        generating = [host for host in placement if any(self.site.generates[item] for item in host.services)]
        if generating:
            score -= float(estimated_need(self.site)(tuple(generating)).groups.max())
        if self.scorer is not None and len(generating) < len(placement):
            score += self.scorer.score(placement, (0,)).share
        return score

    def best(self, bucket: Bucket, gpus: Gpus) -> Placement:
        """The best placement of a bucket on some GPUs; empty where it finds no room."""
        key = (bucket, gpus)
        if key not in self.known:
            alone = self.only(bucket)
            self.known[key] = max(alone.filled(bucket, gpus), key=alone.score, default=())
        return self.known[key]

    def filled(self, bucket: Bucket, gpus: Gpus) -> list[Placement]:
        """Every cut of the GPUs into groups, filled with replicas of a bucket."""
        scorer = None if self.site.generates[bucket[0]] else self.scorer
        assess = estimated_need(self.site) if scorer is None else simulated_need(self.site, scorer)
        return [replicate(self.site, cut, bucket, assess) for cut in cuts(self.site, bucket, gpus)]


def cuts(site: Site, bucket: Bucket, gpus: Gpus) -> Iterable[Placement]:
    """The ways to cut GPUs into empty groups of one form; what is left makes smaller pipelines."""
    able = [shape for number, shape in enumerate(site.shapes) if set(bucket) & set(site.estimates[number])]
    small = [shape for shape in able if shape.tensor_parallel <= _MAX_TENSOR_PARALLEL]
    forms = {
        (shape.tensor_parallel, shape.num_stages)
        for shape in small or able
        if shape.num_stages <= _MAX_STAGES and shape.num_stages.bit_count() == 1  # theirs are powers of two
    }
    for form in sorted(forms):
        hosts = tuple(
            host
            for supply, number in zip(site.supplies, gpus, strict=True)
            for host in cut_pool(site, supply.name, number, form)
        )
        if hosts:
            yield hosts


def cut_pool(site: Site, pool: str, num_gpus: int, form: tuple[int, int]) -> list[Host]:
    """Empty groups of a form on GPUs of a pool, and pipelines of powers of two on what is left."""
    hosts: list[Host] = []
    pipelines = [(1, 1 << power) for power in reversed(range(_MAX_STAGES.bit_length()))]
    for tensor_parallel, num_stages in (form, *pipelines):
        shape = site.shape_number(pool, tensor_parallel, num_stages)
        if shape is not None:
            count, num_gpus = divmod(num_gpus, tensor_parallel * num_stages)
            hosts += [Host(shape)] * count
    return hosts


def _buckets(site: Site) -> list[Bucket]:
    """Services of like latency on the smallest group that each can be on; generate services apart."""
    buckets: list[tuple[float, list[int]]] = []
    for service in range(site.num_services):
        latency_s = _latency_s(site, service)
        for first_s, bucket in buckets:
            alike = site.generates[bucket[0]] == site.generates[service]
            if alike and abs(latency_s - first_s) < _SAME_LATENCY * first_s:
                bucket.append(service)
                break
        else:
            buckets.append((latency_s, [service]))
    while len(buckets) > _MAX_BUCKETS and (pair := _nearest(site, buckets)) is not None:
        (first_s, first), (_, second) = pair
        buckets = [each for each in buckets if each[1] is not first and each[1] is not second]
        buckets.append((first_s, sorted((*first, *second))))
    return [tuple(bucket) for _, bucket in buckets]


def _nearest(
    site: Site, buckets: Sequence[tuple[float, list[int]]]
) -> tuple[tuple[float, list[int]], tuple[float, list[int]]] | None:
    """The two buckets of one kind whose latencies are nearest; None where every kind has one."""
    pairs = [
        (first, second)
        for first, second in itertools.combinations(sorted(buckets), 2)
        if site.generates[first[1][0]] == site.generates[second[1][0]]
    ]
    return min(pairs, key=lambda pair: pair[1][0] / pair[0][0], default=None)


def _latency_s(site: Site, service: int) -> float:
    shapes = [number for number, estimates in enumerate(site.estimates) if service in estimates]
    smallest = min(shapes, key=lambda number: site.shapes[number].num_gpus)
    return site.estimates[smallest][service].latency_s


def _splits(site: Site, buckets: Sequence[Bucket]) -> list[tuple[Gpus, ...]]:
    """Ways to split the GPUs of every pool over the buckets, the same parts of each.

    GPUs over latency is what a bucket could serve. Those splits are kept whose parts of it are nearest to the
    parts of the demand, by thresholds that fall until few enough are left.
    """
    total = sum(supply.num_free for supply in site.supplies)
    unit = 1 << max(0, (-(-total // _UNITS) - 1).bit_length())
    marks = np.array(list(itertools.combinations(range(1, -(-total // unit)), len(buckets) - 1)))
    if marks.size == 0:
        return []
    ends = np.concatenate([np.zeros((len(marks), 1)), marks * unit, np.full((len(marks), 1), total)], axis=1)
    latency_s = np.array([_latency_s(site, bucket[0]) for bucket in buckets])
    could_serve = np.diff(ends, axis=1) / latency_s
    demand = np.array(
        [sum(site.problem.services[service].rate_rps for service in bucket) for bucket in buckets]
    )
    parts = could_serve / could_serve.sum(axis=1, keepdims=True)
    distance = np.abs(parts - demand / demand.sum()).max(axis=1)
    for threshold in (1.0, 0.5, 0.3, 0.2, 0.1):
        kept = np.flatnonzero(distance < threshold)
        if len(kept) < _MAX_SPLITS:
            break
    kept = np.argsort(distance, kind="stable")[: min(max(len(kept), 1), _MAX_SPLITS)]
    return [
        tuple(zip(*(_of_pool(ends[row] / total, supply.num_free) for supply in site.supplies), strict=True))
        for row in kept
    ]


def _of_pool(ends: NDArray[np.float64], num_gpus: int) -> list[int]:
    """GPUs of a pool for every bucket, from the cumulative parts of the fleet."""
    return [int(number) for number in np.diff(np.rint(ends * num_gpus))]
