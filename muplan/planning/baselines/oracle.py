"""A bound that no placement can beat: every cluster at its own best clock, in its best batch.

Each request costs at least the energy of its clusters, each at the clock and batch where that is
least, on the pool and tensor parallelism where the sum is least; GPUs draw no more than parked power
otherwise, and nothing waits, transfers or idles under a context.
"""

from __future__ import annotations

import numpy as np

from muplan.hardware.device import Device
from muplan.planning.estimates.clusters import cluster_table
from muplan.problem.problem import Problem, ResolvedService
from muplan.profile import Phase, Profile


def oracle_power_w(problem: Problem) -> float:
    """Power of the fleet with a clock for every operator cluster, watts."""
    parked = sum(pool.num_gpus * problem.devices[pool.name].parked_w for pool in problem.pools)
    return parked + sum(service.rate_rps * oracle_energy_j(problem, service) for service in problem.services)


def oracle_energy_j(problem: Problem, service: ResolvedService) -> float:
    """Least energy of a request above that of parked GPUs, over pools and tensor parallelisms, joules.

    For generate services it is that of a request of mean lengths.
    """
    serving = problem.workload.serving
    found = []
    for pool in problem.pools:
        if not service.may_use_pool(pool.name):
            continue
        profile = service.profiles[pool.name]
        device = problem.devices[pool.name]
        for measured in profile.configurations:
            width, stages = measured.tensor_parallel, measured.num_stages
            if service.request_kind == "forward":
                energy = _least(
                    profile, device, Phase.FORWARD, width, service.input_tokens, serving.max_batch, stages
                )
            else:
                context = service.input_tokens + service.output_tokens / 2.0
                most = profile.grid(Phase.PREFILL).batches[-1]
                energy = _least(profile, device, Phase.PREFILL, width, service.input_tokens, most)
                energy += max(service.output_tokens - 1.0, 0.0) * _least(
                    profile, device, Phase.DECODE, width, context, serving.max_sequences
                )
            found.append(energy)
    return min(found)


def _least(
    profile: Profile,
    device: Device,
    phase: Phase,
    width: int,
    tokens: float,
    max_batch: int,
    num_stages: int | None = None,
) -> float:
    """Energy of a pass for each of its sequences, every cluster at its best clock and batch."""
    grid = profile.grid(phase)
    limit = min(max_batch, grid.batches[-1])
    batches = sorted({batch for batch in grid.batches if batch <= limit} | {limit})
    usable = [clock in device.usable_clocks_mhz for clock in profile.clocks_mhz]
    inside = min(max(tokens, grid.tokens[0]), grid.tokens[-1])
    energies = []
    for batch in batches:
        table = cluster_table(
            profile, phase, tensor_parallel=width, batch=batch, tokens=inside, num_stages=num_stages
        )
        above = table.latency_s * np.maximum(table.power_w - device.parked_w, 0.0) / batch
        energies.append(above[:, usable].min(axis=1))
    return width * float(np.min(energies, axis=0).sum())
