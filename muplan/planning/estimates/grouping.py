"""What grouping clusters by sensitivity is worth to a service."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muplan.planning.estimates.estimate import Shape
from muplan.planning.estimates.forward_costs import ForwardCosts
from muplan.planning.estimates.pipelines import (
    Choice,
    Pipelines,
    contiguous_choices,
    make_pipelines,
    sensitivity_partitions,
)
from muplan.problem.problem import ResolvedService


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupingWorth:
    """What grouping by sensitivity is worth, in a sentence; a tie is worth nothing either way."""

    text: str
    is_tie: bool = False


def grouping_worth(service: ResolvedService, costs: ForwardCosts) -> GroupingWorth:
    """Energy of a request on two stages, grouped by sensitivity against one clock."""
    limit_s = service.limits.latency_s
    if costs.num_stages is not None:
        text = f"{service.name} was measured stage by stage: its clusters cannot be regrouped."
        return GroupingWorth(text=text)
    if costs.num_clusters < 2 or not costs.clocks_mhz:
        return GroupingWorth(text=f"{service.name} cannot be split into two stages.")
    partitions = sensitivity_partitions(costs)
    if not partitions:
        text = f"grouping by sensitivity: the clusters of {service.name} respond alike to the clock."
        return GroupingWorth(text=text)
    shape = Shape(pool=costs.supply.name, tensor_parallel=costs.tensor_parallel, num_stages=2)
    clocks = range(len(costs.clocks_mhz))
    pairs: list[Choice] = [
        (item, (first, second)) for item in partitions for first in clocks for second in clocks
    ]
    contiguous, _ = _least(make_pipelines(costs, shape, contiguous_choices(costs, shape)), limit_s)
    grouped, moved_s = _least(make_pipelines(costs, shape, pairs), limit_s)
    if not np.isfinite(grouped) or not np.isfinite(contiguous):
        return GroupingWorth(
            text=f"grouping by sensitivity: on two stages {service.name} is not within its limit"
            f" ({'grouped' if np.isfinite(contiguous) else 'in any partition'}; modelled)."
        )
    change = grouped / contiguous - 1.0
    verdict = f"saves {-change:.1%}" if change < -5e-4 else "never pays"
    return GroupingWorth(
        is_tie=abs(change) < 5e-4,
        text=f"grouping by sensitivity {verdict}: {grouped:.2f} J a request on two GPUs with own clocks,"
        f" {contiguous:.2f} J under one; {moved_s * 1e3:.1f} ms of transfers (modelled).",
    )


def _least(pipelines: Pipelines, limit_s: float) -> tuple[float, float]:
    """Least energy of those within a limit, and the transfers there; infinite where none is."""
    within = np.where(pipelines.latency_s <= limit_s, pipelines.energy_j, np.inf)
    row = int(within.argmin())
    return float(within[row]), float(pipelines.moved_s[row])
