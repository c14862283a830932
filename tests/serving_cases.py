"""Small serving cases whose every time is chosen by the test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from muplan.hardware.catalog import load_device
from muplan.hardware.fleet import Fleet, Pool
from muplan.plan import Deployment, Group, Replica, Stage
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
from muplan.traces.lengths import LengthDistribution
from muplan.traces.trace import Trace
from muplan.workload import Demand, Service, Serving, Simulation, Slo, Workload

DEVICE = "v100-sxm2-32gb"
POOL = "v100"
CLOCKS_MHZ = (945, 1200, 1380, 1530)

PassTime = Callable[[int, int, int], float]
"""Clock (MHz), batch, tokens of a sequence → seconds."""


def profile(
    model: str,
    phases: dict[Phase, tuple[tuple[int, ...], tuple[int, ...], PassTime]],
    *,
    num_clusters: int = 1,
    kv_bytes_per_token: int = 0,
    power_w: Callable[[int, int], float] = lambda clock, batch: 100.0 + clock / 10.0 + batch,
    output_bytes_per_token: float = 4096.0,
) -> Profile:
    """A profile of equal clusters; ``phases`` gives batches, tokens and the time of each cluster."""

    def cube(
        batches: Sequence[int], tokens: Sequence[int], value: PassTime
    ) -> tuple[tuple[tuple[tuple[float, ...], ...], ...], ...]:
        return (
            tuple(
                tuple(tuple(value(clock, batch, length) for length in tokens) for batch in batches)
                for clock in CLOCKS_MHZ
            ),
        )

    tables = tuple(
        OperatingTable(
            phase=phase,
            latency_s=cube(batches, tokens, seconds),
            power_w=cube(batches, tokens, lambda clock, batch, _: power_w(clock, batch)),
        )
        for phase, (batches, tokens, seconds) in phases.items()
    )
    return Profile(
        model=model,
        device=DEVICE,
        request_kind="forward" if Phase.FORWARD in phases else "generate",
        provenance=ProfileProvenance(
            method=Method.MODELLED,
            description="synthetic",
            muplan_version="0",
            model_digest="",
            device_digest="",
        ),
        reference_clock_mhz=CLOCKS_MHZ[0],
        clocks_mhz=CLOCKS_MHZ,
        tensor_parallel=(1,),
        phases=tuple(
            PhaseGrid(phase=phase, batches=batches, tokens=tokens)
            for phase, (batches, tokens, _) in phases.items()
        ),
        cluster_types=(
            ClusterType(
                name="whole",
                operators=("all",),
                weight_bytes_per_gpu=(1_000_000,),
                kv_bytes_per_token_per_gpu=(kv_bytes_per_token,),
                activation_bytes_per_token_per_gpu=(0,),
                output_bytes_per_token=output_bytes_per_token,
                tables=tables,
            ),
        ),
        clusters=tuple(Cluster(name=f"cluster-{index}", type=0) for index in range(num_clusters)),
    )


def forward_service(
    name: str,
    seconds: Callable[[int, int], float],
    *,
    num_clusters: int = 1,
    max_batch: int = 1,
    limit_s: float = math.inf,
    rate_rps: float = 1.0,
    attainment: float = 0.9,
    output_bytes_per_token: float = 4096.0,
) -> ResolvedService:
    """A forward service; ``seconds(clock, batch)`` is the time of each cluster."""
    batches = tuple(range(1, max_batch + 1))

    def pass_s(clock: int, batch: int, _: int) -> float:
        return seconds(clock, batch)

    return ResolvedService(
        spec=Service(
            name=name,
            model=name,
            slo=Slo(latency_s=1.0, attainment=attainment),
            demand=Demand(rate_rps=rate_rps),
        ),
        request_kind="forward",
        profiles={
            POOL: profile(
                name,
                {Phase.FORWARD: (batches, (128,), pass_s)},
                num_clusters=num_clusters,
                output_bytes_per_token=output_bytes_per_token,
            )
        },
        limits=Limits(latency_s=limit_s, ttft_s=math.inf, tpot_s=math.inf),
        rate_rps=rate_rps,
        cv=1.0,
        input_tokens=128.0,
        output_tokens=0.0,
        max_context=128,
        lengths=None,
        trace=None,
    )


def generate_service(
    name: str,
    *,
    prefill: PassTime,
    decode: PassTime,
    max_batch: int,
    max_context: int,
    mean_input: float,
    mean_output: float,
    num_clusters: int = 1,
    kv_tokens: int | None = None,
    limits: Limits | None = None,
    rate_rps: float = 1.0,
    lengths: LengthDistribution | None = None,
) -> ResolvedService:
    """A generate service; ``kv_tokens`` is what a GPU's KV memory shall hold, each cluster an equal part."""
    batches = tuple(range(1, max_batch + 1))
    tokens = tuple(sorted({1, round(mean_input), max_context // 2, max_context}))
    kv_bytes = 0
    if kv_tokens is not None:
        free = load_device(DEVICE).usable_memory_bytes - num_clusters * 1_000_000
        kv_bytes = free // kv_tokens // num_clusters
    return ResolvedService(
        spec=Service(
            name=name,
            model=name,
            slo=Slo(ttft_s=1.0, tpot_s=0.1, attainment=0.9),
            demand=Demand(rate_rps=rate_rps),
            lengths="none",
        ),
        request_kind="generate",
        profiles={
            POOL: profile(
                name,
                {Phase.PREFILL: (batches, tokens, prefill), Phase.DECODE: (batches, tokens, decode)},
                num_clusters=num_clusters,
                kv_bytes_per_token=kv_bytes,
            )
        },
        limits=limits or Limits(latency_s=math.inf, ttft_s=math.inf, tpot_s=math.inf),
        rate_rps=rate_rps,
        cv=1.0,
        input_tokens=mean_input,
        output_tokens=mean_output,
        max_context=max_context,
        lengths=lengths,
        trace=None,
    )


def problem(services: Sequence[ResolvedService], *, num_gpus: int = 8, warm_up_s: float = 0.0) -> Problem:
    """A problem on one pool."""
    return Problem(
        workload=Workload(
            kind="workload",
            schema_version=1,
            name="case",
            fleet=Fleet(pools=(Pool(name=POOL, device=DEVICE, num_gpus=num_gpus, gpus_per_node=4),)),
            services=tuple(service.spec for service in services),
            simulation=Simulation(duration_s=max(100.0, 2 * warm_up_s), warm_up_s=warm_up_s, replications=2),
        ),
        devices={POOL: load_device(DEVICE)},
        services=tuple(services),
    )


def group(
    name: str,
    gpus: Sequence[int],
    services: Sequence[str],
    *,
    clocks_mhz: Sequence[int] | None = None,
    clusters: Sequence[Sequence[tuple[int, int]]] | None = None,
    max_batch: int = 1,
    shares: Sequence[float] | None = None,
) -> Group:
    """A pipeline over GPUs, one a stage; by default one cluster on each."""
    clocks = clocks_mhz or [CLOCKS_MHZ[-1]] * len(gpus)
    ranges = clusters or [[(stage, stage + 1)] for stage in range(len(gpus))]
    return Group(
        name=name,
        pool=POOL,
        stages=tuple(
            Stage(gpus=(f"{POOL}/{gpu // 4}/{gpu % 4}",), clock_mhz=clock)
            for gpu, clock in zip(gpus, clocks, strict=True)
        ),
        replicas=tuple(
            Replica(
                service=service,
                share=share,
                max_batch=max_batch,
                stage_clusters=tuple(tuple(stage) for stage in ranges),
            )
            for service, share in zip(services, shares or [1.0] * len(services), strict=True)
        ),
    )


def deployment(groups: Sequence[Group], serving: Serving | None = None, **admitted: float) -> Deployment:
    """A deployment of groups."""
    return Deployment(groups=tuple(groups), admitted=admitted, serving=serving or Serving())


def trace(
    services: Sequence[ResolvedService],
    arrival_s: Sequence[float] | np.ndarray,
    service: Sequence[int] | np.ndarray,
    *,
    duration_s: float,
    input_tokens: Sequence[int] | np.ndarray | None = None,
    output_tokens: Sequence[int] | np.ndarray | None = None,
) -> Trace:
    """A trace of given columns; forward requests by default."""
    num_requests = len(arrival_s)
    return Trace(
        services=tuple(one.name for one in services),
        arrival_s=np.asarray(arrival_s, dtype=np.float64),
        service=np.asarray(service, dtype=np.int32),
        input_tokens=np.asarray(
            [128] * num_requests if input_tokens is None else input_tokens, dtype=np.int32
        ),
        output_tokens=np.asarray(
            [0] * num_requests if output_tokens is None else output_tokens, dtype=np.int32
        ),
        duration_s=duration_s,
    )
