"""Small synthetic profiles and problems: every figure is chosen by the test, none is a claim about a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from muplan.hardware.catalog import load_device
from muplan.hardware.fleet import Fleet, Pool
from muplan.problem.problem import Limits, Problem, ResolvedService
from muplan.profile import (
    Cluster,
    ClusterType,
    Method,
    OperatingTable,
    Phase,
    PhaseGrid,
    Profile,
    ProfileProvenance,
)
from muplan.workload import Demand, Goal, Service, Serving, Simulation, Slo, Workload, parse_goals

DEVICE = "v100-sxm2-32gb"
CLOCKS_MHZ = (945, 1200, 1530)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterShape:
    """A cluster type: time at the highest clock and batch 1, sensitivity, power there, weights."""

    latency_s: float = 0.01
    sensitivity: float = 0.8
    power_w: float = 280.0
    idle_w: float = 60.0
    weight_bytes: int = 1_000_000_000
    batch_exponent: float = 1.0
    output_bytes_per_token: float = 4096.0


def forward_profile(
    model: str,
    shapes: Sequence[ClusterShape] = (ClusterShape(),),
    *,
    repeat: int = 4,
    clocks_mhz: tuple[int, ...] = CLOCKS_MHZ,
    batches: tuple[int, ...] = (1, 2, 4, 8),
    tokens: tuple[int, ...] = (1, 512),
    tensor_parallel: tuple[int, ...] = (1,),
) -> Profile:
    """A forward profile whose clusters repeat ``repeat`` times in the order of ``shapes``."""
    types = tuple(
        _cluster_type(f"type-{index}", shape, clocks_mhz, batches, tokens, tensor_parallel)
        for index, shape in enumerate(shapes)
    )
    clusters = tuple(
        Cluster(name=f"cluster-{place}", type=place % len(shapes)) for place in range(repeat * len(shapes))
    )
    return Profile(
        model=model,
        device=DEVICE,
        request_kind="forward",
        provenance=ProfileProvenance(
            method=Method.MODELLED,
            description="synthetic",
            muplan_version="0",
            model_digest="sha256:0",
            device_digest="sha256:0",
        ),
        reference_clock_mhz=clocks_mhz[0],
        clocks_mhz=clocks_mhz,
        tensor_parallel=tensor_parallel,
        phases=(PhaseGrid(phase=Phase.FORWARD, batches=batches, tokens=tokens),),
        cluster_types=types,
        clusters=clusters,
    )


def _cluster_type(
    name: str,
    shape: ClusterShape,
    clocks_mhz: tuple[int, ...],
    batches: tuple[int, ...],
    tokens: tuple[int, ...],
    tensor_parallel: tuple[int, ...],
) -> ClusterType:
    top = clocks_mhz[-1]

    def latency(width: int, clock: int, batch: int) -> float:
        slowdown = 1.0 + shape.sensitivity * (top / clock - 1.0)
        return float(shape.latency_s * slowdown * batch**shape.batch_exponent / width**0.9)

    def power(clock: int) -> float:
        return float(shape.idle_w + (shape.power_w - shape.idle_w) * (clock / top) ** 2.2)

    widths = range(len(tensor_parallel))
    return ClusterType(
        name=name,
        operators=(name,),
        weight_bytes_per_gpu=tuple(shape.weight_bytes // width for width in tensor_parallel),
        kv_bytes_per_token_per_gpu=tuple(0 for _ in widths),
        activation_bytes_per_token_per_gpu=tuple(1000 for _ in widths),
        output_bytes_per_token=shape.output_bytes_per_token,
        tables=(
            OperatingTable(
                phase=Phase.FORWARD,
                latency_s=tuple(
                    tuple(
                        tuple(tuple(latency(width, clock, batch) for _ in tokens) for batch in batches)
                        for clock in clocks_mhz
                    )
                    for width in tensor_parallel
                ),
                power_w=tuple(
                    tuple(tuple(tuple(power(clock) for _ in tokens) for _ in batches) for clock in clocks_mhz)
                    for _ in tensor_parallel
                ),
            ),
        ),
    )


def forward_service(
    name: str, *, profile: Profile, rate_rps: float, limit_s: float, cv: float = 1.0, attainment: float = 0.99
) -> ResolvedService:
    """A forward service on the pool ``v100``."""
    return ResolvedService(
        spec=Service(
            name=name,
            model=profile.model,
            slo=Slo(latency_s=limit_s, attainment=attainment),
            demand=Demand(rate_rps=rate_rps, cv=cv),
        ),
        request_kind="forward",
        profiles={"v100": profile},
        limits=Limits(latency_s=limit_s, ttft_s=math.inf, tpot_s=math.inf),
        rate_rps=rate_rps,
        cv=cv,
        input_tokens=512.0,
        output_tokens=0.0,
        max_context=512,
        lengths=None,
        trace=None,
    )


def forward_problem(
    services: Sequence[ResolvedService],
    *,
    num_gpus: int,
    power_cap_w: float | None = None,
    objective: Goal | Sequence[Goal] = Goal.POWER,
    serving: Serving | None = None,
    simulation: Simulation | None = None,
) -> Problem:
    """A problem on one pool of V100s."""
    return Problem(
        workload=Workload(
            name="synthetic",
            fleet=Fleet(
                pools=(Pool(name="v100", device=DEVICE, num_gpus=num_gpus),), power_cap_w=power_cap_w
            ),
            services=tuple(service.spec for service in services),
            objective=parse_goals(objective),
            serving=serving or Serving(max_batch=1),
            simulation=simulation or Simulation(duration_s=60.0, warm_up_s=5.0, replications=2),
        ),
        devices={"v100": load_device(DEVICE)},
        services=tuple(services),
    )
