"""Tiny random planning models of many kinds, and their optimum by brute force."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np

from muplan.planning.guard.levels import GuardState
from muplan.planning.search.tuning import make_model
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.planning.stated.model import (
    Configuration,
    Form,
    GroupType,
    Hosting,
    PlanningModel,
    PoolSupply,
)
from muplan.planning.stated.rates import Groups
from muplan.workload import Goal, Serving
from tests.synthetic import ClusterShape, forward_problem, forward_profile, forward_service

CLOCKS_MHZ = (900, 1200, 1500)


def random_model(seed: int, *, goal: Goal = Goal.POWER, capped: bool = False) -> PlanningModel:
    """Two services, three GPUs, three clocks: every set of services on one GPU, and pairs as pipelines."""
    rng = np.random.default_rng(seed)
    names = ("alpha", "beta")
    time_s = {name: float(rng.uniform(0.02, 0.2)) for name in names}
    weight = {name: float(rng.uniform(0.3, 0.6)) for name in names}
    sensitivity = {name: float(rng.uniform(0.3, 1.0)) for name in names}
    group_types = []
    for clock, stages in itertools.product(CLOCKS_MHZ, (1, 2)):
        ratio = CLOCKS_MHZ[-1] / clock
        hostings = {
            name: Hosting(
                service=name,
                max_batch=1,
                stage_clusters=(((0, 1),),) * stages,
                occupancy_s=time_s[name]
                * (1 + sensitivity[name] * (ratio - 1))
                / stages
                * (1.05 if stages > 1 else 1),
                energy_j=time_s[name] * (1 + sensitivity[name] * (ratio - 1)) * (60 + 180 * ratio**-2.5),
                latency_s=time_s[name],
                weight_bytes=(weight[name],) * stages,
                working_bytes=(0.0,) * stages,
                peak_w=(80 + 200 * ratio**-2.5,) * stages,
            )
            for name in names
        }
        form = Form(
            pool="pool",
            tensor_parallel=1,
            clocks_mhz=(clock,) * stages,
            standing_w=stages * 12.0,
            usable_bytes=1.0,
            hostings=tuple(hostings.values()),
        )
        group_types += [
            GroupType(form=form, members=np.array(members), utilisation=float(rng.uniform(0.3, 0.9)))
            for members in ((0,), (1,), (0, 1))
        ]
    pool = pool_of("pool", 3)
    return PlanningModel(
        rates_rps={name: float(rng.uniform(0.2, 1.2)) / time_s[name] for name in names},
        pools=(pool,),
        group_types=tuple(group_types),
        power_cap_w=float(rng.uniform(250, 800)) if capped else math.inf,
        goals=(goal, Goal.POWER) if goal is Goal.GOODPUT else (goal,),
    )


def pool_of(name: str, num_gpus: int, *, parked_w: float = 25.0, node_cap_w: float = math.inf) -> PoolSupply:
    """GPUs of one node."""
    return PoolSupply(
        name=name,
        num_gpus=num_gpus,
        gpus_per_node=8,
        free_per_node=(num_gpus,),
        parked_w=parked_w,
        node_power_cap_w=node_cap_w,
    )


KINDS = ("memory", "fleet-cap", "pools", "node-cap", "batching", "replicas", "built")


def model_of_kind(seed: int) -> tuple[str, PlanningModel]:
    """A model of every kind in turn: what a workload may ask of the planner, on three or four GPUs."""
    kind = KINDS[seed % len(KINDS)]
    rng = np.random.default_rng([seed, 1])
    if kind == "built":
        return kind, built_model(seed)
    model = random_model(seed, capped=kind == "fleet-cap")
    if kind == "pools":
        return kind, _on_two_pools(model, rng)
    if kind == "node-cap":
        return kind, replace(model, pools=(pool_of("pool", 3, node_cap_w=float(rng.uniform(250, 800))),))
    if kind == "batching":
        # Utilisations count in time at batch 1: above 1 where batches serve requests faster.
        types = tuple(
            replace(item, utilisation=item.utilisation * float(rng.uniform(1.0, 3.5)))
            for item in model.group_types
        )
        factor = float(rng.uniform(1.5, 5.0))
        rates = {name: rate * factor for name, rate in model.rates_rps.items()}
        return kind, replace(model, group_types=types, rates_rps=rates)
    if kind == "replicas":
        return kind, replace(
            model,
            min_replicas={"alpha": int(rng.integers(1, 4))},
            max_replicas={"beta": int(rng.integers(1, 3))},
        )
    return kind, model


def _on_two_pools(model: PlanningModel, rng: np.random.Generator) -> PlanningModel:
    """Two GPUs of the pool that there was, and one that is faster or slower and draws more or less."""
    types = []
    for item in model.group_types:
        if 1200 in item.form.clocks_mhz:
            continue
        types.append(item)
        if item.form.num_gpus == 1:
            speed, thirst = rng.uniform(0.7, 1.5), rng.uniform(0.7, 1.5)
            hostings = tuple(
                replace(hosting, occupancy_s=hosting.occupancy_s / speed, energy_j=hosting.energy_j * thirst)
                for hosting in item.form.hostings
            )
            form = replace(
                item.form, pool="other", hostings=hostings, standing_w=item.form.standing_w * thirst
            )
            types.append(replace(item, form=form))
    return replace(
        model,
        pools=(pool_of("pool", 2), pool_of("other", 1, parked_w=40.0)),
        group_types=tuple(types),
        rates_rps={name: rate * float(rng.uniform(0.8, 1.8)) for name, rate in model.rates_rps.items()},
    )


def built_model(seed: int, *, slack: float = 1.0, most_types: int = 12) -> PlanningModel:
    """What `CandidateBuilder` makes of two synthetic services with batches up to 4, at two clocks.

    Latency limits are ``slack`` times as long; of the group types, at most ``most_types`` are kept.
    """
    rng = np.random.default_rng([seed, 2])
    services = []
    for name in ("alpha", "beta"):
        shape = ClusterShape(
            latency_s=float(rng.uniform(0.005, 0.02)),
            sensitivity=float(rng.uniform(0.2, 1.0)),
            weight_bytes=int(rng.uniform(2e9, 5e9)),
            batch_exponent=float(rng.uniform(0.4, 0.9)),
        )
        profile = forward_profile(name, (shape,), repeat=2, clocks_mhz=(945, 1530), batches=(1, 2, 4))
        single_s = 2 * shape.latency_s
        services.append(
            forward_service(
                name,
                profile=profile,
                rate_rps=float(rng.uniform(0.3, 3.5)) / single_s,
                limit_s=single_s * float(rng.uniform(4, 12)) * slack,
            )
        )
    problem = forward_problem(services, num_gpus=3, serving=Serving(max_batch=4))
    guard = GuardState(
        corrections=dict.fromkeys(("alpha", "beta"), 1.0), pooled_gpus=dict.fromkeys(("alpha", "beta"), 3.0)
    )
    model = make_model(problem, CandidateBuilder(problem), guard)
    # Two stages or one, and no more types than brute force can take.
    types = [item for item in model.group_types if item.form.num_gpus <= 2]
    order = rng.permutation(len(types))[:most_types]
    return replace(model, group_types=tuple(types[index] for index in sorted(order)))


def every_configuration(model: PlanningModel) -> list[Configuration]:
    """Every set of members that fits the memory, of every group type."""
    return [
        group_type.configuration(chosen)
        for group_type in model.group_types
        for size in range(1, len(group_type.members) + 1)
        for chosen in itertools.combinations(group_type.members.tolist(), size)
        if (group_type.form.weight_bytes[list(chosen)].sum(axis=0) <= group_type.form.usable_bytes).all()
    ]


def brute_force_power(model: PlanningModel) -> float:
    """Least power over every choice of groups, infinite where none serves the demand.

    Rates of two services on given groups are a transport problem whose optimum is at a vertex: it is
    found by enumerating the share of the first service on every group's configuration at its corners.
    """
    best = math.inf
    configurations = every_configuration(model)
    for chosen in choices(model, configurations):
        standing = sum(count * item.standing_w for item, count in chosen)
        if model.parked_w + standing + _least_conceivable(model, chosen) < best:
            best = min(best, model.parked_w + standing + _least_energy(model, chosen))
    return best


def _least_conceivable(model: PlanningModel, chosen: list[Groups]) -> float:
    """Energy if every request went where it costs least, whatever the capacity: spares hopeless choices."""
    total = 0.0
    for name, rate in model.rates_rps.items():
        energies = [
            hosting.energy_j
            for configuration, _ in chosen
            for hosting in configuration.hostings
            if hosting.service == name
        ]
        total += rate * min(energies, default=math.inf)
    return total


def choices(model: PlanningModel, configurations: list[Configuration]) -> list[list[Groups]]:
    """Every multiset of configurations that fits the GPUs, the caps and the numbers of replicas."""
    found: list[list[Groups]] = []
    pools = {pool.name: pool for pool in model.pools}

    def fits(chosen: list[Groups]) -> bool:
        peak_w = model.parked_w
        for name, pool in pools.items():
            mine = [(item, count) for item, count in chosen if item.pool == name]
            above_w = sum(count * (item.peak_w - item.num_gpus * pool.parked_w) for item, count in mine)
            if sum(count * item.num_gpus for item, count in mine) > pool.num_gpus:
                return False
            if pool.num_gpus * pool.parked_w + above_w > pool.node_power_cap_w:
                return False
            peak_w += above_w
        return peak_w <= model.power_cap_w and all(
            _hosts(chosen, service) <= most for service, most in model.max_replicas.items()
        )

    def grow(index: int, chosen: list[Groups]) -> None:
        found.append(chosen)
        for place in range(index, len(configurations)):
            for count in itertools.count(1):
                more = [*chosen, (configurations[place], count)]
                if not fits(more):
                    break
                grow(place + 1, more)

    grow(0, [])
    return [
        chosen
        for chosen in found
        if all(_hosts(chosen, service) >= least for service, least in model.min_replicas.items())
    ]


def _hosts(chosen: list[Groups], service: str) -> int:
    return sum(count for item, count in chosen if service in item.services)


def _least_energy(model: PlanningModel, chosen: list[Groups]) -> float:
    """Least energy of serving the demand on chosen groups, by enumerating the vertices of the programme.

    Unknowns are the rates; a vertex makes as many of ``rate = 0`` and ``capacity used up`` tight as
    there are unknowns beside the two demand equations.
    """
    unknowns = [
        (place, hosting)
        for place, (configuration, _) in enumerate(chosen)
        for hosting in configuration.hostings
    ]
    names = list(model.rates_rps)
    if {hosting.service for _, hosting in unknowns} != set(names):
        return math.inf
    num = len(unknowns)
    equalities = np.array([[float(hosting.service == name) for _, hosting in unknowns] for name in names])
    demand = np.array(list(model.rates_rps.values()))
    capacity = np.zeros((len(chosen), num))
    for column, (place, hosting) in enumerate(unknowns):
        capacity[place, column] = hosting.occupancy_s / chosen[place][0].utilisation
    limits = np.array([float(count) for _, count in chosen])
    energy = np.array([hosting.energy_j for _, hosting in unknowns])
    rows = np.vstack([np.eye(num), capacity])
    right = np.concatenate([np.zeros(num), limits])
    tight = np.array(list(itertools.combinations(range(len(rows)), num - len(names))), dtype=int)
    matrices = np.concatenate(
        [np.broadcast_to(equalities, (len(tight), *equalities.shape)), rows[tight]], axis=1
    )
    rights = np.concatenate([np.broadcast_to(demand, (len(tight), len(demand))), right[tight]], axis=1)
    regular = np.abs(np.linalg.det(matrices)) > 1e-12
    if not regular.any():
        return math.inf
    rates = np.linalg.solve(matrices[regular], rights[regular][..., None])[..., 0]
    feasible = (rates >= -1e-9).all(axis=1) & (rates @ capacity.T <= limits + 1e-9).all(axis=1)
    return float((rates[feasible] @ energy).min()) if feasible.any() else math.inf
