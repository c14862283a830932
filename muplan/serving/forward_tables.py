"""The forward groups of a deployment in the layout of the compiled kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muplan.plan import Group, Replica
from muplan.problem.problem import Problem
from muplan.profile import Phase
from muplan.serving.groups import Values, add_group, candidates, clock_grid, limits_of, stage_factor
from muplan.serving.kernel_tables import KernelTables
from muplan.serving.layout import GROUP, REPLICA, STAGE, Floats, Integers, Rows
from muplan.serving.passes import near_crossings, pass_table
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
    shared = _SharedTables(problem, serving, values)
    stage, replica = 0, 0
    for index, group in enumerate(groups):
        last_stage, last_replica = stage + len(group.stages), replica + len(group.replicas)
        rows[index]["first_stage"], rows[index]["last_stage"] = stage, last_stage
        rows[index]["first_replica"], rows[index]["last_replica"] = replica, last_replica
        rows[index]["ready_s"] = np.inf
        add_group(problem, group, serving, rows[index : index + 1], stages[stage:last_stage], values)
        chosen, clocks_mhz = stages[stage:last_stage]["clock"], clock_grid(problem, group)
        for place, hosted in enumerate(group.replicas, start=replica):
            row = replicas[place : place + 1]
            row["group"], row["max_batch"], row["share"] = index, hosted.max_batch, hosted.share
            row["head"], row["tail"], row["full_since_s"] = -1, -1, np.inf
            limits_of(problem, problem.service(hosted.service), row)
            shared.of(group, hosted, clocks_mhz).fill(row, chosen)
            row["first_work"] = values.add(np.zeros(hosted.max_batch))
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tables:
    """Passes and transfers of a replica, and where the tables of them begin in the flat array of values.

    ``pass_s`` has the shape (stages, clocks, batches), ``transfer_s`` (stages, batches).
    """

    pass_s: Floats
    transfer_s: Floats
    first_pass_s: int
    first_pass_w: int
    first_transfer: int

    def fill(self, row: Rows, chosen: Integers) -> None:
        """Fill what a replica's row knows of its passes where the stages have the ``chosen`` clocks."""
        row["first_pass_s"], row["first_pass_w"] = self.first_pass_s, self.first_pass_w
        row["first_transfer"] = self.first_transfer
        by_batch_s = self.pass_s[np.arange(len(chosen)), chosen]
        row["alone_s"] = by_batch_s[:, 0].sum() + self.transfer_s[:, 0].sum()
        row["least_s"] = by_batch_s.min(axis=1).sum() + self.transfer_s.min(axis=1).sum()


class _SharedTables:
    """The tables of replicas, those of replicas alike held once.

    A large fleet has thousands of replicas of few kinds; so its tables are made faster and stay in the
    processor's caches.
    """

    def __init__(self, problem: Problem, serving: Serving, values: Values) -> None:
        self._problem, self._serving, self._values = problem, serving, values
        self._known: dict[tuple[object, ...], _Tables] = {}

    def of(self, group: Group, replica: Replica, clocks_mhz: tuple[int, ...]) -> _Tables:
        """The tables of a replica of a group that has these clocks to choose from."""
        key = (
            group.pool,
            group.tensor_parallel,
            len(group.stages),
            replica.service,
            replica.max_batch,
            replica.stage_clusters,
            near_crossings(group, replica),
            clocks_mhz,
        )
        if key not in self._known:
            self._known[key] = self._made(group, replica, clocks_mhz)
        return self._known[key]

    def _made(self, group: Group, replica: Replica, clocks_mhz: tuple[int, ...]) -> _Tables:
        service = self._problem.service(replica.service)
        profile = service.profiles[group.pool]
        table = pass_table(
            self._problem.devices[group.pool],
            group,
            replica,
            profile,
            phase=Phase.FORWARD,
            tokens=service.input_tokens,
            batches=np.arange(1, replica.max_batch + 1),
        )
        on_grid = np.searchsorted(profile.clocks_mhz, clocks_mhz)
        pass_s = table.latency_s[:, on_grid] * stage_factor(self._serving, group)
        return _Tables(
            pass_s=pass_s,
            transfer_s=table.transfer_s,
            first_pass_s=self._values.add(pass_s),
            first_pass_w=self._values.add(table.power_w[:, on_grid] * group.tensor_parallel),
            first_transfer=self._values.add(table.transfer_s),
        )
