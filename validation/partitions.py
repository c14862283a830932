"""What the choice of cuts, clocks and groupings brings: prints the tables of docs/validation.md.

Run ``python -m validation.partitions`` in the repository. Everything is modelled, on the shipped profiles of
V100-SXM2-32GB: of single models, and of the stated model of the workloads of ``benchmarks.scale``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from benchmarks.scale import random_problem
from muplan.planning.estimates.choices import (
    offered_pipelines,
    one_clock_fronts,
    sensitivity_partitions,
    two_stage_cuts,
)
from muplan.planning.estimates.clocking import thriftiest
from muplan.planning.estimates.dominance import cover
from muplan.planning.estimates.estimate import Shape
from muplan.planning.estimates.forward_costs import ForwardCosts
from muplan.planning.estimates.pairs import Pairs, all_pairs
from muplan.planning.estimates.partition import contiguous_partition
from muplan.planning.estimates.pipelines import make_pipelines
from muplan.planning.search.tuning import first_guard, make_model
from muplan.planning.solvers.master import relax
from muplan.planning.solvers.pricing import Pricer
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.planning.stated.model import GroupType, Hosting, PlanningModel

STAGES = (2, 3, 4, 6, 8)
LIMIT_SCALES = (1.2, 2.0, 5.0)
WORKLOADS = ((16, 24), (64, 40))
UTILISATION = 0.6
"""Of every group in the last column: what the guard allows depends on who may be hosted beside whom."""

Keeps = Callable[[Hosting, tuple[int, ...]], bool]
"""Whether something that a form at given clocks could host is offered."""


def shape_of(costs: ForwardCosts, num_stages: int) -> Shape:
    """A pipeline of that many stages."""
    return Shape(pool=costs.supply.name, tensor_parallel=costs.tensor_parallel, num_stages=num_stages)


def two_stages(costs: ForwardCosts) -> str:
    """How many two-stage pipelines there are, how many no other beats, and how many are offered."""
    shape = shape_of(costs, 2)
    pairs = all_pairs(costs, shape, [*two_stage_cuts(costs), *sensitivity_partitions(costs)])
    order = np.argsort(pairs.full_use_j, kind="stable")
    undominated = cover(pairs.figures[order], costs.usable_bytes, tolerance=1e-9)
    offered = sum(len(item.partitions) for item in offered_pipelines(costs, [shape]))
    return f"{len(pairs.figures):,} | {len(undominated):,} | {offered}"


def own_clocks_saving(costs: ForwardCosts, num_stages: int) -> str:
    """Power of full use that clocks of their own save at the pace of each pipeline under one clock."""
    latency_s = np.ascontiguousarray(costs.latency_s[:, 0, :])
    savings = []
    for clock, front in enumerate(one_clock_fronts(costs)):
        cut = front[num_stages - 1][0]
        found = thriftiest(
            latency_s, costs.energy_j, costs.loaded_w, limit_s=cut.bottleneck_s, num_stages=num_stages
        )
        choices = [
            (contiguous_partition(cut.stops), (clock,) * num_stages),
            (contiguous_partition(found.stops), found.clocks),
        ]
        pipelines = make_pipelines(costs, shape_of(costs, num_stages), choices)
        one, own = pipelines.loaded_w + pipelines.energy_j / pipelines.bottleneck_s[0]
        savings.append(1.0 - own / one)
    return f"{np.mean(savings):.1%} / {np.max(savings):.1%}"


def least_j(pairs: Pairs, limit_s: float, *, one_clock: bool = False) -> float:
    """Least energy of a request at full use within a limit."""
    within = pairs.figures[:, 2] <= limit_s
    if one_clock:
        within &= np.array([first == second for _, (first, second) in pairs.choices(range(len(within)))])
    return float(np.where(within, pairs.full_use_j, np.inf).min())


def grouping_saving(costs: ForwardCosts, scale: float) -> str:
    """Energy that grouping saves against the best cut under one clock, and with clocks of its own."""
    limit_s = scale * float(costs.latency_s[:, 0, -1].sum())
    cuts = all_pairs(costs, shape_of(costs, 2), two_stage_cuts(costs))
    grouped = all_pairs(costs, shape_of(costs, 2), sensitivity_partitions(costs))
    energy_j = least_j(grouped, limit_s)
    return " / ".join(
        f"{1.0 - energy_j / least_j(cuts, limit_s, one_clock=one_clock):+.1%}"
        if np.isfinite(energy_j)
        else "–"
        for one_clock in (True, False)
    )


def is_grouped(hosting: Hosting) -> bool:
    """Whether a stage's clusters are not side by side."""
    return any(len(ranges) > 1 for ranges in hosting.stage_clusters)


def has_one_clock(hosting: Hosting, clocks_mhz: tuple[int, ...]) -> bool:
    """Whether all stages have one clock and their clusters are side by side."""
    return len(set(clocks_mhz)) == 1 and not is_grouped(hosting)


OFFERS: tuple[tuple[str, Keeps], ...] = (
    ("one stage", lambda hosting, clocks: has_one_clock(hosting, clocks) and len(clocks) == 1),
    (
        "or 2, 4, 8 under one clock",
        lambda item, clocks: has_one_clock(item, clocks) and len(clocks) in (1, 2, 4, 8),
    ),
    ("or any up to 8 under one clock", has_one_clock),
    ("or under clocks of their own", lambda hosting, _: not is_grouped(hosting)),
    ("or grouped by sensitivity", lambda hosting, clocks: bool(hosting and clocks)),
)
"""Ever more that is offered, and what of a form's hostings belongs to it."""


def restricted(model: PlanningModel, keeps: Keeps) -> PlanningModel:
    """The model with some of what its groups may host."""
    group_types = []
    for item in model.group_types:
        form = item.form
        kept = [place for place in item.members.tolist() if keeps(form.hostings[place], form.clocks_mhz)]
        if kept:
            group_types.append(replace(item, members=np.array(kept)))
    return replace(model, group_types=tuple(group_types))


def used_alike(model: PlanningModel) -> PlanningModel:
    """The model with every form used up to the same utilisation, by all that it could host."""
    members: dict[int, set[int]] = {}
    for item in model.group_types:
        members.setdefault(id(item.form), set()).update(item.members.tolist())
    forms = {id(item.form): item.form for item in model.group_types}
    return replace(
        model,
        group_types=tuple(
            GroupType(form=form, members=np.array(sorted(members[key])), utilisation=UTILISATION)
            for key, form in forms.items()
        ),
    )


def relaxations(num_gpus: int, num_services: int) -> Iterable[str]:
    """Rows of the optimum of the linear relaxation with ever more offered."""
    problem = random_problem(num_gpus, num_services)
    builder = CandidateBuilder(problem)
    model = make_model(problem, builder, first_guard(problem, builder))
    for name, keeps in OFFERS:
        guarded = restricted(model, keeps)
        alike = used_alike(guarded)
        bounds_w = (relax(part, Pricer(part)).bound + part.parked_w for part in (guarded, alike))
        figures = " | ".join(f"{bound_w:,.1f}" for bound_w in bounds_w)
        size = f"{len(alike.group_types):,} | {len(guarded.group_types):,}"
        yield f"| {num_gpus} × {num_services} | {name} | {size} | {figures} |"


def main() -> None:
    """Print the tables."""
    estimators = CandidateBuilder(random_problem(64, 40)).forward_estimators
    models = {item.costs.profile.model: item.costs for item in estimators if item.costs.tensor_parallel == 1}
    print("| model | two-stage pipelines | undominated | offered | own clocks: ", end="")
    print(" | ".join(f"{stages} stages" for stages in STAGES) + " |")
    print("|---|---:|---:|---:|" + "---:|" * len(STAGES))
    for name, costs in sorted(models.items()):
        savings = " | ".join(own_clocks_saving(costs, stages) for stages in STAGES)
        print(f"| {name} | {two_stages(costs)} | {savings} |")
    print("\n| model | " + " | ".join(f"limit {scale:g} ×" for scale in LIMIT_SCALES) + " |")
    print("|---|" + "---:|" * len(LIMIT_SCALES))
    for name, costs in sorted(models.items()):
        print(f"| {name} | " + " | ".join(grouping_saving(costs, scale) for scale in LIMIT_SCALES) + " |")
    print("\n| GPUs × services | offered | forms | group types | as guarded, W | all used to 60 %, W |")
    print("|---|---|---:|---:|---:|---:|")
    for size in WORKLOADS:
        for row in relaxations(*size):
            print(row, flush=True)


if __name__ == "__main__":
    main()
