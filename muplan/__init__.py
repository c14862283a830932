"""muplan: plan the serving of many models on GPUs within their latency objectives, on the least power.

The main verbs, each a plain function with a typed result, are re-exported here and imported when
first used:

    make_profile(graph, device)          → Profile
    read_problem(path)                   → Problem
    load_problem(workload, directory=…)  → Problem
    solve(problem)                       → PlanningResult
    execute(problem, plan)               → Run
    check_plan(plan, …)                  → violations
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_VERBS = {
    "make_profile": "muplan.profiling.analytical",
    "load_problem": "muplan.problem.loading",
    "read_problem": "muplan.problem.loading",
    "solve": "muplan.planning.solve",
    "execute": "muplan.serving.executor",
    "check_plan": "muplan.verify.check",
}

__all__ = ["__version__", *_VERBS]


def __getattr__(name: str) -> Any:
    """Import a verb when it is first used, so that ``import muplan`` stays light."""
    if name in _VERBS:
        from importlib import import_module

        return getattr(import_module(_VERBS[name]), name)
    raise AttributeError(f"module 'muplan' has no attribute {name!r}")
