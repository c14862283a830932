"""Conflicts of generated infeasible workloads, checked afresh: prints the table of docs/validation.md.

Run ``python -m validation.conflicts`` in the repository. Every conflicting set is checked by problems
that are loaded anew from reduced workloads: the set alone must be infeasible, the set less any one of its
demands feasible; and the workload with the smallest changes made must be feasible. Feasible means: at
full utilisation (modelled).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from muplan.hardware.catalog import load_device
from muplan.hardware.fleet import Fleet, Pool
from muplan.planning.explain.changes import Repair, applied, combined, find_repairs
from muplan.planning.explain.demands import Demand, demands_of, without
from muplan.planning.explain.feasibility import Answer
from muplan.planning.explain.full_utilisation import FullUtilisation, services_by_work
from muplan.planning.explain.minimal_set import MinimalSet, find_sets
from muplan.problem.loading import load_problem
from muplan.problem.problem import Problem
from muplan.workload import Service, Slo, Workload
from validation.drawn import PROFILES, SHORT, Draw, peak_w

_PRECISION = 1.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The conflicting sets of a workload, and what fresh answers say of them."""

    sets: tuple[MinimalSet, ...]
    all_conflict: bool
    all_minimal: bool
    is_fixed: bool

    @property
    def holds(self) -> bool:
        """Whether there is a set, and all that is claimed is so."""
        return bool(self.sets) and self.all_conflict and self.all_minimal and self.is_fixed


def check_conflicts(workload: Workload) -> Checked:
    """Find the conflicting sets of a workload and check them by fresh answers."""
    problem = fresh(workload)
    full = FullUtilisation()
    sets = find_sets(problem, services_by_work(full.model(problem)), full.answer, is_monotone=True)
    repairs = [repair for item in sets for repair in _repairs(problem, sets, item, full)[:1]]
    demands = [demand for item in sets for demand in item.demands]
    fix = combined(problem, repairs, demands, full.answer, precision=_PRECISION)
    return Checked(
        sets=tuple(sets),
        all_conflict=all(_answer(problem, item.demands) is Answer.INFEASIBLE for item in sets),
        all_minimal=all(
            _answer(problem, [other for other in item.demands if other is not one]) is Answer.FEASIBLE
            for item in sets
            for one in item.demands
        ),
        is_fixed=bool(fix) and FullUtilisation().answer(applied(problem, fix)) is Answer.FEASIBLE,
    )


def fresh(workload: Workload) -> Problem:
    """The problem of a workload, loaded anew."""
    return load_problem(workload, directory=Path(), profiles=PROFILES)


def _answer(problem: Problem, kept: Sequence[Demand]) -> Answer:
    """Whether a workload with some of its demands alone is feasible: loaded and built anew."""
    dropped = [item for item in demands_of(problem) if not _among(item, kept)]
    reduced = without(problem, dropped)
    return FullUtilisation().answer(fresh(reduced.workload) if reduced.services else reduced)


def _among(demand: Demand, kept: Sequence[Demand]) -> bool:
    return any((demand.subject, demand.text) == (item.subject, item.text) for item in kept)


def _repairs(
    problem: Problem, sets: Sequence[MinimalSet], item: MinimalSet, full: FullUtilisation
) -> list[Repair]:
    others = [demand for other in sets if other is not item for demand in other.demands if demand.is_service]
    return find_repairs(without(problem, others), item.demands, full.answer, precision=_PRECISION)


def _workload(name: str, fleet: Fleet, services: Sequence[Service], draw: Draw) -> Workload:
    return Workload(
        name=name,
        fleet=fleet,
        services=tuple(services),
        serving=draw.serving(generates=False),
        simulation=SHORT,
    )


def _services(draw: Draw, fleet: Fleet, models: Sequence[str], load_gpus: float) -> list[Service]:
    parts = draw.rng.dirichlet(np.full(len(models), 3.0))
    return [
        draw.service(fleet, model=model, load_gpus=float(load_gpus * part), cv=1.0, scale=10.0)
        for model, part in zip(models, parts, strict=True)
    ]


def too_little_memory(draw: Draw) -> Workload:
    """More weights than the fleet's few small GPUs hold, and hardly any requests."""
    fleet = Fleet(pools=(Pool(name="pool", device="v100-sxm2-16gb", num_gpus=1, gpus_per_node=4),))
    number = int(draw.rng.integers(4, 7))
    models = draw.rng.choice(["bert-1.3b", "bert-2.6b"], size=number, p=[0.4, 0.6])
    return _workload("memory", fleet, _services(draw, fleet, [str(one) for one in models], 0.1), draw)


def too_tight_limits(draw: Draw) -> Workload:
    """One or two services that ask for less than a single request takes."""
    fleet = draw.fleet()
    services = _services(draw, fleet, draw.models(number=4, generates=0.0), 0.2 * fleet.num_gpus)
    for place in range(int(draw.rng.integers(1, 3))):
        tight = Slo(latency_s=0.0005 * float(draw.rng.uniform(0.2, 1.0)))
        services[place] = services[place].model_copy(update={"slo": tight})
    return _workload("limits", fleet, services, draw)


def too_much_demand(draw: Draw) -> Workload:
    """One and a half to four times what the fleet can carry at batch 1."""
    fleet = draw.fleet()
    models = draw.models(number=int(draw.rng.integers(2, 6)), generates=0.1)
    load_gpus = fleet.num_gpus * float(draw.rng.uniform(4.0, 9.0))
    return _workload("demand", fleet, _services(draw, fleet, models, load_gpus), draw)


def too_low_a_cap(draw: Draw) -> Workload:
    """A fleet that could carry the demand but for its cap."""
    fleet = draw.fleet()
    models = draw.models(number=int(draw.rng.integers(2, 5)), generates=0.0)
    services = _services(draw, fleet, models, 0.5 * fleet.num_gpus)
    cap_w = round(peak_w(fleet) * float(draw.rng.uniform(0.15, 0.3)))
    return _workload("cap", fleet.model_copy(update={"power_cap_w": cap_w}), services, draw)


def mixture(draw: Draw) -> Workload:
    """Too much demand, a limit that is too tight, and sometimes a cap as well."""
    base = too_much_demand(draw)
    first, *rest = base.services
    tight = Slo(latency_s=2e-4) if first.lengths is None else Slo(ttft_s=2e-4, tpot_s=2e-4)
    services = (first.model_copy(update={"slo": tight}), *rest)
    fleet = base.fleet
    if draw.rng.random() < 0.5:
        fleet = fleet.model_copy(update={"power_cap_w": round(peak_w(fleet) * 0.5)})
    return base.model_copy(update={"name": "mixture", "services": services, "fleet": fleet})


def limits_on_placement(draw: Draw) -> Workload:
    """Reserved GPUs, clocks, caps on nodes, pins or numbers of replicas that forbid a plan."""
    fleet = draw.fleet()
    first = fleet.pools[0]
    services = _services(
        draw, fleet, draw.models(number=int(draw.rng.integers(2, 4)), generates=0.0), 0.6 * fleet.num_gpus
    )
    device = load_device(first.device)
    match int(draw.rng.integers(5)):
        case 0:
            kept = int(draw.rng.integers(1, first.num_gpus))
            first = first.model_copy(update={"reserved_gpus": first.gpu_ids()[:kept]})
        case 1:
            first = first.model_copy(update={"max_clock_mhz": int(device.usable_clocks_mhz[0])})
        case 2:
            node_gpus = min(first.num_gpus, first.gpus_per_node)
            cap_w = round(node_gpus * device.power_cap_w * float(draw.rng.uniform(0.12, 0.3)))
            first = first.model_copy(update={"node_power_cap_w": cap_w})
        case 3:
            update = {"anti_affinity": True, "min_replicas": len(first.node_ids()) + 4}
            services[0] = services[0].model_copy(update=update)
        case _:
            services = [
                service.model_copy(update={"pinned_to": (first.node_ids()[0],)}) for service in services
            ]
    limited = fleet.model_copy(update={"pools": (first, *fleet.pools[1:])})
    return _workload("placement", limited, services, draw)


KINDS: tuple[Callable[[Draw], Workload], ...] = (
    too_little_memory,
    too_tight_limits,
    too_much_demand,
    too_low_a_cap,
    mixture,
    limits_on_placement,
)


def infeasible_workload(seed: int) -> Workload:
    """A workload of each kind in turn; of several draws, the first that is infeasible."""
    for attempt in range(100):
        draw = Draw(rng=np.random.default_rng([seed, attempt]))
        workload = KINDS[seed % len(KINDS)](draw)
        if FullUtilisation().answer(fresh(workload)) is Answer.INFEASIBLE:
            return workload
    raise ValueError(f"seed {seed} gives no infeasible workload in 100 draws")


def main() -> None:
    """Check the conflicts of as many workloads as asked for; print a row for each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", type=int, default=60, help="infeasible workloads to generate")
    options = parser.parse_args()
    found: dict[str, list[Checked]] = defaultdict(list)
    for seed in range(options.workloads):
        workload = infeasible_workload(seed)
        found[workload.name].append(check_conflicts(workload))
        if not found[workload.name][-1].holds:
            print(f"seed {seed} ({workload.name}): {found[workload.name][-1]}")
    print("| what conflicts | workloads | sets | demands, mean | infeasible | minimal | fixed |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    found["all"] = [row for rows in found.values() for row in rows]
    for name, rows in found.items():
        sizes = [len(item.demands) for row in rows for item in row.sets]
        print(
            f"| {name} | {len(rows)} | {len(sizes)} | {np.mean(sizes):.1f}"
            f" | {sum(row.all_conflict for row in rows)} | {sum(row.all_minimal for row in rows)}"
            f" | {sum(row.is_fixed for row in rows)} |"
        )


if __name__ == "__main__":
    main()
