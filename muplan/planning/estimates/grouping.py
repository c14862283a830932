"""What grouping clusters by sensitivity is worth to a service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muplan.planning.estimates.choices import sensitivity_partitions, two_stage_cuts
from muplan.planning.estimates.estimate import Shape
from muplan.planning.estimates.forward_costs import ForwardCosts
from muplan.planning.estimates.pairs import all_pairs
from muplan.planning.stated.model import StageClusters
from muplan.problem.problem import ResolvedService

_TIE = 5e-4
"""Relative difference of energy that is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupingWorth:
    """What grouping by sensitivity is worth, in a sentence; a tie is worth nothing either way."""

    text: str
    is_tie: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Best:
    """The two-stage pipeline of least energy a request at full use, within a limit."""

    energy_j: float
    clocks_mhz: tuple[int, int]
    moved_s: float

    @property
    def at(self) -> str:
        """Its clocks in words."""
        first, second = self.clocks_mhz
        return f"at {first} MHz" if first == second else f"at {first} and {second} MHz"


def grouping_worth(service: ResolvedService, costs: ForwardCosts) -> GroupingWorth:
    """Energy of a request on two stages, grouped by sensitivity against the best contiguous cut.

    Either at the pair of clocks that takes the least energy within the service's limit, both stages'
    loaded power included, while the bottleneck stage never rests.
    """
    if costs.num_stages is not None:
        text = f"{service.name} was measured stage by stage: its clusters cannot be regrouped."
        return GroupingWorth(text=text)
    if costs.num_clusters < 2 or not costs.clocks_mhz:
        return GroupingWorth(text=f"{service.name} cannot be split into two stages.")
    partitions = sensitivity_partitions(costs)
    if not partitions:
        text = f"grouping by sensitivity: the clusters of {service.name} respond alike to the clock."
        return GroupingWorth(text=text)
    contiguous = _best(service, costs, two_stage_cuts(costs))
    grouped = _best(service, costs, partitions)
    if contiguous is None or grouped is None:
        return GroupingWorth(
            text=f"grouping by sensitivity: on two stages {service.name} is not within its limit"
            f" ({'in any partition' if contiguous is None else 'grouped'}; modelled)."
        )
    change = grouped.energy_j / contiguous.energy_j - 1.0
    verdict = f"saves {-change:.1%}" if change < -_TIE else "never pays"
    return GroupingWorth(
        is_tie=abs(change) < _TIE,
        text=f"grouping by sensitivity {verdict}: {grouped.energy_j:.2f} J a request on two fully used stages"
        f" {grouped.at}, {contiguous.energy_j:.2f} J cut contiguously {contiguous.at};"
        f" {grouped.moved_s * 1e3:.1f} ms of transfers against {contiguous.moved_s * 1e3:.1f} ms (modelled).",
    )


def _best(service: ResolvedService, costs: ForwardCosts, partitions: Sequence[StageClusters]) -> _Best | None:
    shape = Shape(pool=costs.supply.name, tensor_parallel=costs.tensor_parallel, num_stages=2)
    pairs = all_pairs(costs, shape, partitions)
    energy_j = np.where(pairs.figures[:, 2] <= service.limits.latency_s, pairs.full_use_j, np.inf)
    place = int(energy_j.argmin())
    if not np.isfinite(energy_j[place]):
        return None
    ((_, (first, second)),) = pairs.choices([place])
    return _Best(
        energy_j=float(energy_j[place]),
        clocks_mhz=(costs.clocks_mhz[first], costs.clocks_mhz[second]),
        moved_s=float(pairs.moved_s[place]),
    )
