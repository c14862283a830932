"""Targets: the replicas of a plan with the servers that stand for them, checked against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations

from muplan.endpoints import Endpoint, Endpoints, LocalGpu
from muplan.errors import Fault, InputError
from muplan.plan import Deployment
from muplan.problem.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A replica and its server.

    Parameters
    ----------
    group, service
        Their numbers in the deployment and in the problem.
    share
        Part of the service's demand that the plan sends here.
    generates
        Whether requests generate tokens; else they are embedded.
    headers
        HTTP headers with their values, which are secret.
    """

    group: int
    service: int
    share: float
    generates: bool
    endpoint: Endpoint
    headers: Mapping[str, str] = field(repr=False)

    @property
    def name(self) -> str:
        """The target in messages."""
        return f"{self.endpoint.service} on {self.endpoint.group} ({self.endpoint.url})"


def make_targets(
    problem: Problem, deployment: Deployment, endpoints: Endpoints, environment: Mapping[str, str]
) -> tuple[Target, ...]:
    """Find the server of every replica, in the order of services and, for each, of groups.

    Parameters
    ----------
    environment
        Where the values of headers are found.

    Raises
    ------
    InputError
        A replica has no endpoint or several, an endpoint serves what the plan does not have, a variable is
        not set, or the GPUs are not those of the group; all faults at once, by their keys.
    """
    faults = [
        Fault(file="endpoints", key=key, message=message)
        for check in (_unknown, _unmatched, _unset, _gpus)
        for key, message in check(deployment, endpoints, environment)
    ]
    if faults:
        raise InputError.from_faults(
            faults, "Give each replica of the plan one endpoint; docs/executing.md describes the keys."
        )
    by_place = {(one.group, one.service): one for one in endpoints.endpoints}
    targets = []
    for number, service in enumerate(problem.services):
        for place, group in enumerate(deployment.groups):
            endpoint = by_place.get((group.name, service.name))
            if endpoint is None:
                continue
            targets.append(
                Target(
                    group=place,
                    service=number,
                    share=next(one.share for one in group.replicas if one.service == service.name),
                    generates=service.request_kind == "generate",
                    endpoint=endpoint,
                    headers={name: environment[held] for name, held in endpoint.headers_from.items()},
                )
            )
    return tuple(targets)


Found = Iterator[tuple[str, str]]
"""Dotted key and message of faults."""


def _unknown(deployment: Deployment, endpoints: Endpoints, _: Mapping[str, str]) -> Found:
    """Endpoints of groups that the plan has not, or of services that the group does not host."""
    hosted = {group.name: [one.service for one in group.replicas] for group in deployment.groups}
    for index, endpoint in enumerate(endpoints.endpoints):
        if endpoint.group not in hosted:
            known = ", ".join(hosted)
            yield f"endpoints[{index}].group", f"the plan has no group {endpoint.group!r}; it has {known}"
        elif endpoint.service not in hosted[endpoint.group]:
            known = ", ".join(hosted[endpoint.group])
            yield (
                f"endpoints[{index}].service",
                f"{endpoint.group!r} does not host {endpoint.service!r}; it hosts {known}",
            )


def _unmatched(deployment: Deployment, endpoints: Endpoints, _: Mapping[str, str]) -> Found:
    """Replicas without an endpoint, and replicas with several."""
    counts = Counter((one.group, one.service) for one in endpoints.endpoints)
    seen = set[tuple[str, str]]()
    for index, endpoint in enumerate(endpoints.endpoints):
        place = endpoint.group, endpoint.service
        if place in seen:
            yield f"endpoints[{index}]", f"{endpoint.service!r} on {endpoint.group!r} has an endpoint already"
        seen.add(place)
    for group in deployment.groups:
        for replica in group.replicas:
            if not counts[group.name, replica.service]:
                yield "endpoints", f"{replica.service!r} on {group.name!r} has no endpoint"


def _unset(_: Deployment, endpoints: Endpoints, environment: Mapping[str, str]) -> Found:
    """Headers whose variable is not set."""
    for index, endpoint in enumerate(endpoints.endpoints):
        for header, variable in endpoint.headers_from.items():
            if not environment.get(variable):
                yield (
                    f"endpoints[{index}].headers_from",
                    f"{header} comes from the environment variable {variable}, which is not set",
                )


def _gpus(deployment: Deployment, endpoints: Endpoints, _: Mapping[str, str]) -> Found:
    """GPUs that are too few or too many for their group, or that two groups claim."""
    widths = {group.name: len(group.gpus) for group in deployment.groups}
    claimed = dict[str, tuple[LocalGpu, ...]]()
    for index, endpoint in enumerate(endpoints.endpoints):
        if not endpoint.gpus or endpoint.group not in widths:
            continue
        key, wanted = f"endpoints[{index}].gpus", widths[endpoint.group]
        if len(set(endpoint.gpus)) != wanted or len(endpoint.gpus) != wanted:
            yield key, f"{endpoint.group!r} has {wanted} GPUs in the plan; name each of them once"
        elif set(claimed.setdefault(endpoint.group, endpoint.gpus)) != set(endpoint.gpus):
            yield key, f"an endpoint before has other GPUs for {endpoint.group!r}"
    places = [*claimed.items(), ("parked_gpus", endpoints.parked_gpus)]
    for (one, mine), (other, others) in combinations(places, 2):
        if both := sorted(map(str, set(mine) & set(others))):
            yield "endpoints", f"GPU {both[0]} is named for {one!r} and for {other!r}"
