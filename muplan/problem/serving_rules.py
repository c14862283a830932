"""Which serving rules a workload's services allow."""

from __future__ import annotations

from collections.abc import Sequence

from muplan.problem.problem import ResolvedService
from muplan.workload import Rejection, Routing, Serving


def serving_faults(serving: Serving, services: Sequence[ResolvedService]) -> list[tuple[str, str]]:
    """Dotted key and message of every serving rule that the services do not allow.

    How long a reply will be is not known at a request's arrival, so rules that foretell a completion
    exclude generate services.
    """
    generates = [service.name for service in services if service.request_kind == "generate"]
    faults = []
    if generates and serving.rejection is Rejection.AT_ARRIVAL:
        faults.append((
            "serving.rejection",
            f"at-arrival foretells when a request will be complete, which is not known of {generates[0]!r},"
            " whose requests generate; choose at-dispatch or none",
        ))  # fmt: skip
    if generates and serving.routing is Routing.LEAST_LAST_STAGE:
        faults.append((
            "serving.routing",
            f"least-last-stage foretells when a group's last stage is free, which is not known of"
            f" {generates[0]!r}, whose requests generate; choose shortest-expected-completion or round-robin",
        ))  # fmt: skip
    return faults
