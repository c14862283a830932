"""Choices of partition and clocks that are worth offering for a forward model on a shape of group.

Under one clock: every contiguous cut that is not dominated. With clocks of their own: stages cut where
that takes the least power at the pace of a pipeline under one clock, and on two stages every cut, and every
split by sensitivity, with every pair of clocks. Of all these, what none covers that is offered already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from muplan.planning.estimates.clocking import thriftiest
from muplan.planning.estimates.clusters import same_node
from muplan.planning.estimates.cuts import Cut, cut_fronts
from muplan.planning.estimates.dominance import cover, covered
from muplan.planning.estimates.estimate import MAX_STAGES, Shape
from muplan.planning.estimates.forward_costs import ForwardCosts
from muplan.planning.estimates.pairs import all_pairs
from muplan.planning.estimates.partition import contiguous_partition, grouped_partitions
from muplan.planning.estimates.pipelines import Choice, Pipelines, make_pipelines
from muplan.planning.stated.model import StageClusters

Fronts = Sequence[tuple[tuple[Cut, ...], ...]]
"""Undominated cuts under one clock: by clock, then by number of stages from 1 on."""


def offered_pipelines(costs: ForwardCosts, shapes: Iterable[Shape]) -> tuple[Pipelines, ...]:
    """The pipelines worth offering on every shape."""
    fronts = one_clock_fronts(costs)
    found: list[Pipelines] = []
    for shape in shapes:
        uniform = make_pipelines(costs, shape, one_clock_choices(costs, shape, fronts))
        found += [uniform, make_pipelines(costs, shape, own_clock_choices(costs, uniform, fronts))]
    return tuple(item for item in found if item.partitions)


def one_clock_fronts(costs: ForwardCosts) -> Fronts:
    """Undominated cuts at every clock, for 1 to `MAX_STAGES` stages."""
    near = [
        same_node(costs.supply, costs.tensor_parallel, stage, stage + 1) for stage in range(MAX_STAGES - 1)
    ]
    handover_s = np.array([costs.near_s[0] if together else costs.far_s[0] for together in near])
    clocks = range(len(costs.clocks_mhz))
    return [cut_fronts(costs.latency_s[:, 0, clock], handover_s, costs.weight_bytes) for clock in clocks]


def one_clock_choices(costs: ForwardCosts, shape: Shape, fronts: Fronts) -> list[Choice]:
    """Contiguous cuts under each clock for all stages; the least bottleneck of each stands first."""
    stages, clocks = shape.num_stages, range(len(costs.clocks_mhz))
    if costs.num_stages is not None:
        measured = costs.profile.measured_cuts(shape.tensor_parallel, stages) or ()
        return [(contiguous_partition(measured), (clock,) * stages) for clock in clocks]
    choices: list[Choice] = []
    for clock in clocks:
        cuts = fronts[clock][stages - 1]
        pass_s = float(costs.latency_s[:, 0, clock].sum())
        figures = [(pass_s + cut.transfer_s, cut.bottleneck_s, cut.weight_bytes) for cut in cuts]
        kept = cover(np.array(figures), costs.usable_bytes)
        choices += [(contiguous_partition(cuts[place].stops), (clock,) * stages) for place in kept]
    return choices


def own_clock_choices(costs: ForwardCosts, uniform: Pipelines, fronts: Fronts) -> list[Choice]:
    """Pipelines with a clock for each stage, which none under one clock covers, nor another one of these."""
    num_stages = uniform.shape.num_stages
    if costs.num_stages is not None or num_stages == 1 or not uniform.partitions:
        return []
    if num_stages == 2:
        return _pairs(costs, uniform)
    choices = _paced(costs, [front[num_stages - 1][0].bottleneck_s for front in fronts], num_stages)
    figures = make_pipelines(costs, uniform.shape, choices).figures
    new = np.flatnonzero(~covered(figures, uniform.figures, costs.usable_bytes))
    return [choices[new[place]] for place in cover(figures[new], costs.usable_bytes)]


def _pairs(costs: ForwardCosts, uniform: Pipelines) -> list[Choice]:
    """Two-stage partitions, contiguous or grouped, at all pairs of clocks; the thriftiest stand first."""
    pairs = all_pairs(costs, uniform.shape, [*two_stage_cuts(costs), *sensitivity_partitions(costs)])
    new = np.flatnonzero(~covered(pairs.figures, uniform.figures, costs.usable_bytes))
    new = new[np.argsort(pairs.full_use_j[new], kind="stable")]
    return pairs.choices(new[cover(pairs.figures[new], costs.usable_bytes)])


def _paced(costs: ForwardCosts, paces_s: Iterable[float], num_stages: int) -> list[Choice]:
    """The thriftiest pipeline at each pace."""
    latency_s = np.ascontiguousarray(costs.latency_s[:, 0, :])
    found = [
        thriftiest(latency_s, costs.energy_j, costs.loaded_w, limit_s=pace_s, num_stages=num_stages)
        for pace_s in paces_s
    ]
    return [(contiguous_partition(item.stops), item.clocks) for item in found]


def two_stage_cuts(costs: ForwardCosts) -> list[StageClusters]:
    """Every contiguous partition on two stages."""
    return [contiguous_partition((stop, costs.num_clusters)) for stop in range(1, costs.num_clusters)]


def sensitivity_partitions(costs: ForwardCosts) -> tuple[StageClusters, ...]:
    """Two-stage partitions by sensitivity; none where there is nothing to separate or no clock."""
    if costs.num_clusters < 2 or costs.num_stages is not None or not costs.clocks_mhz:
        return ()
    return grouped_partitions(costs.scores)
