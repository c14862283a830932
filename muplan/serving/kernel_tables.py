"""What a kernel works on: groups, stages and replicas as rows, and the tables they point into."""

from __future__ import annotations

from dataclasses import dataclass, replace

from muplan.serving.layout import Floats, Integers, Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTables:
    """Groups, stages and replicas of one kind with all idle and empty, and the tables they point into.

    ``candidate_replica`` from ``service_candidate[s]`` to ``service_candidate[s + 1]`` are the replicas of
    service s. A generate group g has one replica, g.
    """

    groups: Rows
    stages: Rows
    replicas: Rows
    service_candidate: Integers
    candidate_replica: Integers
    values: Floats

    def copy(self) -> KernelTables:
        """Copy what a kernel writes to: it keeps its state in the rows, and work it derives in the values."""
        return replace(
            self,
            groups=self.groups.copy(),
            stages=self.stages.copy(),
            replicas=self.replicas.copy(),
            values=self.values.copy(),
        )
