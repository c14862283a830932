"""The ``muplan`` command whose torch backend only waits, on a GPU that is the C double; run as a program.

What torch would do is replaced; the meter, the lease and its guardian are the real ones.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Self

from muplan.cli.main import main
from muplan.hardware.way import Way
from muplan.plan import Plan
from muplan.problem.problem import Problem
from muplan.serving.realtime.backend import Event
from muplan.serving.realtime.clock_intent import plan_gpus
from muplan.serving.realtime.on_gpus import OnGpus
from muplan.serving.realtime.scripted import ScriptedBackend


class WaitingBackend(ScriptedBackend):
    """Takes the times that are foretold, in real time."""

    name, is_measured = "torch", True

    def __enter__(self) -> Self:
        self.begin_s = time.monotonic()
        return self

    def now_s(self) -> float:
        return time.monotonic() - self.begin_s

    def next_event(self, until_s: float) -> Event | None:
        event = super().next_event(until_s)
        time.sleep(max(super().now_s() - self.now_s(), 0.0))
        return event


def open_backend(
    problem: Problem, plan: Plan, *, directory: Path, sets_clocks: bool = False, is_shared: bool = False
) -> OnGpus:
    """Open the double as the GPU of the plan."""
    way = Way.NVML if sets_clocks else None
    return OnGpus(WaitingBackend(), plan_gpus(plan), way=way, is_shared=is_shared)


if __name__ == "__main__":
    stand_in = ModuleType("muplan.serving.workers.machine")
    stand_in.open_backend = open_backend  # type: ignore[attr-defined]
    sys.modules[stand_in.__name__] = stand_in
    main()
