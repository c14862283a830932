"""The forward groups of a deployment in the layout of the compiled kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from muplan.plan import Group, Replica
from muplan.problem.problem import Problem
from muplan.profile import Phase
from muplan.serving.groups import Values, add_group, candidates, clock_grid, limits_of, stage_factor
from muplan.serving.kernel_tables import KernelTables
from muplan.serving.layout import GROUP, REPLICA, STAGE, Integers, Rows
from muplan.serving.passes import pass_table
from muplan.workload import Routing, Serving


def forward_tables(problem: Problem, groups: Sequence[Group], serving: Serving) -> KernelTables:
    """Tabulate groups that host forward services.

    Raises
    ------
    InputError
        A clock is not on the profiles' grid, or a profile does not cover a replica.
    """
    rows = np.zeros(len(groups), dtype=GROUP)
    stages = np.zeros(sum(len(group.stages) for group in groups), dtype=STAGE)
    replicas = np.zeros(sum(len(group.replicas) for group in groups), dtype=REPLICA)
    values = Values()
    stage, replica = 0, 0
    for index, group in enumerate(groups):
        last_stage, last_replica = stage + len(group.stages), replica + len(group.replicas)
        rows[index]["first_stage"], rows[index]["last_stage"] = stage, last_stage
        rows[index]["first_replica"], rows[index]["last_replica"] = replica, last_replica
        rows[index]["ready_s"] = np.inf
        add_group(problem, group, serving, rows[index : index + 1], stages[stage:last_stage], values)
        factor, chosen = stage_factor(serving, group), stages[stage:last_stage]["clock"]
        clocks_mhz = clock_grid(problem, group)
        for place, hosted in enumerate(group.replicas, start=replica):
            row = replicas[place : place + 1]
            row["group"] = index
            _add_replica(problem, group, hosted, clocks_mhz, factor, chosen, row, values)
        stage, replica = last_stage, last_replica
    first, order = candidates(replicas["service"], len(problem.services))
    if serving.routing is Routing.SHORTEST_EXPECTED_COMPLETION:
        order = order[np.lexsort((order, replicas["least_s"][order], replicas["service"][order]))]
    return KernelTables(
        groups=rows,
        stages=stages,
        replicas=replicas,
        service_candidate=first,
        candidate_replica=order,
        values=values.joined(),
    )


def _add_replica(
    problem: Problem,
    group: Group,
    replica: Replica,
    clocks_mhz: tuple[int, ...],
    factor: float,
    chosen: Integers,
    row: Rows,
    values: Values,
) -> None:
    """Fill the row of a replica: limits, tables, an empty queue.

    ``clocks_mhz`` are those of the group; ``factor`` makes stage times longer;
    ``chosen`` are the stages' clocks.
    """
    service = problem.service(replica.service)
    profile = service.profiles[group.pool]
    table = pass_table(
        problem.devices[group.pool],
        group,
        replica,
        profile,
        phase=Phase.FORWARD,
        tokens=service.input_tokens,
        batches=np.arange(1, replica.max_batch + 1),
    )
    on_grid = np.searchsorted(profile.clocks_mhz, clocks_mhz)
    pass_s = table.latency_s[:, on_grid] * factor
    row["max_batch"], row["share"] = replica.max_batch, replica.share
    limits_of(problem, service, row)
    row["first_pass_s"] = values.add(pass_s)
    row["first_pass_w"] = values.add(table.power_w[:, on_grid] * group.tensor_parallel)
    row["first_transfer"] = values.add(table.transfer_s)
    row["first_work"] = values.add(np.zeros(replica.max_batch))
    by_batch_s = pass_s[np.arange(len(chosen)), chosen]
    row["alone_s"] = by_batch_s[:, 0].sum() + table.transfer_s[:, 0].sum()
    row["least_s"] = by_batch_s.min(axis=1).sum() + table.transfer_s.min(axis=1).sum()
    row["head"], row["tail"], row["full_since_s"] = -1, -1, np.inf
