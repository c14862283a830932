"""Peak power: what a GPU of a stage draws at most over everything that its replicas may run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from muplan.plan import Group, Replica
from muplan.planning.stated.model import Floats
from muplan.problem.problem import Problem
from muplan.profile import Phase


class PeakPower:
    """Peak power of the stages of groups; what profiles say is looked up once."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._tables: dict[tuple[str, str, int, int, int], Floats] = {}

    def of_group(self, group: Group) -> tuple[float, ...]:
        """Highest power of one GPU of every stage, watts."""
        clocks = tuple(stage.clock_mhz for stage in group.stages)
        return self.of_stages(group.pool, group.tensor_parallel, clocks, group.replicas)

    def of_stages(
        self, pool: str, tensor_parallel: int, clocks_mhz: Sequence[int], replicas: Sequence[Replica]
    ) -> tuple[float, ...]:
        """As `of_group`, for a group that has no GPUs yet."""
        peaks = np.zeros(len(clocks_mhz))
        for replica in replicas:
            profile = self._problem.service(replica.service).profiles[pool]
            table = self._table(pool, tensor_parallel, len(clocks_mhz), replica)
            for stage, clock in enumerate(clocks_mhz):
                types = {
                    profile.clusters[index].type
                    for start, stop in replica.stage_clusters[stage]
                    for index in range(start, stop)
                }
                if types:
                    draws = table[sorted(types), profile.clocks_mhz.index(clock)]
                    peaks[stage] = max(peaks[stage], float(draws.max()))
        return tuple(peaks.tolist())

    def _table(self, pool: str, tensor_parallel: int, num_stages: int, replica: Replica) -> Floats:
        """Highest power of every cluster type at every clock, over phases, batches and tokens."""
        key = replica.service, pool, tensor_parallel, num_stages, replica.max_batch
        if key not in self._tables:
            service = self._problem.service(replica.service)
            profile = service.profiles[pool]
            found = []
            for grid in profile.phases:
                most = grid.batches[-1] if grid.phase is Phase.PREFILL else replica.max_batch
                batches = {batch for batch in grid.batches if batch <= most} | {min(most, grid.batches[-1])}
                tokens = (service.input_tokens,) if grid.phase is Phase.FORWARD else grid.tokens
                found += [
                    profile.power_w(
                        grid.phase,
                        tensor_parallel=tensor_parallel,
                        num_stages=num_stages,
                        batch=batch,
                        tokens=length,
                    )
                    for batch in sorted(batches)
                    for length in tokens
                ]
            self._tables[key] = np.max(found, axis=0)
        return self._tables[key]
