"""The exact solver: column generation for the bound, integer programmes over columns for the plan.

The linear relaxation over all groups there could be is solved by column generation. Its columns, rounded
and searched by HiGHS, give a first plan; freeing a few related groups at a time improves it; branching
on the number of groups of a form raises the bound. Where so few sets of services could be part of
a better plan that all can be listed (those of reduced cost below the gap), one integer programme over
them settles the matter.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from muplan.plan import Status
from muplan.planning.solvers.branching import BoundTree
from muplan.planning.solvers.goals import Outcome, optimise
from muplan.planning.solvers.incumbent import NOTHING, ColumnPool, Incumbent, evaluate
from muplan.planning.solvers.master import Relaxation, relax
from muplan.planning.solvers.polish import dive, polish
from muplan.planning.solvers.pricing import Pricer
from muplan.planning.solvers.restricted import Effort, choose_groups, program_text
from muplan.planning.solvers.solver import Progress, Report, no_solution
from muplan.planning.stated.model import PlanningModel, Solution, power_of
from muplan.workload import Goal

RELATIVE_GAP = 1e-4
"""The exact solver stops at this gap between its solution and its bound."""

MAX_NODES, MAX_STEPS = 100_000, 1_000_000
"""Nodes and steps where nothing else is said: no limit but gap and time."""

_LISTED_SETS = 4000
_WRITTEN_SETS = 500
_ROUNDED_SETS = 250
_ROUNDING_NODES = 2_000
_POLISHED_PER_BRANCH = 4
_FAILURES = 60
_RELAXED = 0.1
"""Part of the gap that the relaxation may leave: its last columns take the longest and bring the least."""


def solve_exact(
    model: PlanningModel,
    *,
    time_limit_s: float,
    seed: int,
    gap: float = RELATIVE_GAP,
    max_nodes: int = MAX_NODES,
    max_steps: int = MAX_STEPS,
    backend: str = "highs",
    report: Report | None = None,
) -> Solution:
    """Solve the stated model to a relative gap.

    Its goals are optimised in order (`muplan.planning.solvers.goals`), each to the gap.

    Parameters
    ----------
    time_limit_s
        After which it ends with what it has; solvers of the shipped workloads end before.
    gap
        At which it ends: difference of objective and bound over the objective.
    max_nodes, max_steps
        Nodes of the integer programme that settles a model, and steps of polishing and branching where
        none can: limits that, other than time, leave equal runs equal.
    backend
        Of the integer programmes: ``highs`` or ``cbc``.
    report
        Is told of every better incumbent and bound.

    Raises
    ------
    SolverError
        A solver failed.
    """
    name = f"exact-{backend}" if backend != "highs" else "exact"
    deadline_s = time.monotonic() + time_limit_s
    limits = _Limits(
        deadline_s=deadline_s, gap=gap, max_nodes=max_nodes, max_steps=max_steps, seed=seed, backend=backend
    )
    found = optimise(model, lambda one, start: _Run(one, limits, report).solve(start))
    if not found.incumbent.uses:
        status = Status.INFEASIBLE if found.is_infeasible else Status.TIME_LIMIT
        return no_solution(name, status, seed)
    closed = all(item.gap <= RELATIVE_GAP for item in found.achieved)
    return Solution(
        solver=name,
        status=Status.OPTIMAL if closed else Status.FEASIBLE,
        achieved=found.achieved,
        power_w=power_of(model, found.incumbent.uses),
        uses=found.incumbent.uses,
        seed=seed,
    )


def model_text(model: PlanningModel) -> str:
    """The integer programme over the sets that the linear relaxation finds worthwhile, as an LP file."""
    pricer = Pricer(model)
    offered = ColumnPool(model, pricer).nearest(relax(model, pricer), _WRITTEN_SETS, math.inf)
    return program_text(model, offered)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    """When a run ends, and with which means; as the parameters of `solve_exact`."""

    deadline_s: float
    gap: float
    max_nodes: int
    max_steps: int
    seed: int
    backend: str


class _Run:
    """One minimisation of a model's present goal."""

    def __init__(self, model: PlanningModel, limits: _Limits, report: Report | None) -> None:
        self._model, self._limits, self._report = model, limits, report
        self._pricer = Pricer(model)
        self._pool = ColumnPool(model, self._pricer)
        self._best = NOTHING
        self._bound = -math.inf

    def solve(self, start: Incumbent = NOTHING) -> Outcome:
        """Bound, first plan, then whatever closes the gap between them."""
        if not self._model.group_types:
            return Outcome(incumbent=NOTHING, bound=math.inf)
        root = relax(self._model, self._pricer, tolerance=self._limits.gap * _RELAXED)
        if not root.feasible:
            return Outcome(incumbent=NOTHING, bound=math.inf)
        self._bound = root.bound
        self._improve(start, "start")
        self._improve(self._rounded(root), "diving")
        if not self._is_closed() and not self._settle(root):
            self._close(root)
        return Outcome(incumbent=self._best, bound=self._bound)

    def _rounded(self, root: Relaxation) -> Incumbent:
        """Whole groups near the relaxation; a factor common to all is no sum over groups to be settled."""
        if self._model.goal is not Goal.RATE:
            return dive(self._model, self._pricer, self._pool, root, self._effort(20.0))
        offered = self._pool.nearest(root, _ROUNDED_SETS, math.inf)
        return evaluate(self._model, choose_groups(self._model, offered, self._effort(20.0)).groups)

    def _settle(self, root: Relaxation) -> bool:
        """One integer programme over every set that could be part of a better plan, where these are few."""
        reach = self._best.objective - root.bound + 1e-9 * abs(self._best.objective)
        if not math.isfinite(reach):
            reach = math.inf
        listed = self._pricer.maximal_groups(root.prices, below=reach, limit=_LISTED_SETS)
        if listed is None:
            return False
        offered = {
            id(item): item
            for number, members in listed
            if (item := self._pool.configuration(number, members.tolist()))
        }
        offered |= {id(item): item for item, _ in self._best.groups}
        found = choose_groups(
            self._model,
            list(offered.values()),
            self._effort(self._left_s(), self._limits.max_nodes),
            start=self._best.groups,
            backend=self._limits.backend,
        )
        if found.status is Status.INFEASIBLE and not self._best.uses:
            self._bound = math.inf
            return True
        if found.groups:
            self._improve(evaluate(self._model, found.groups), "integer programme")
        if math.isfinite(found.bound):
            self._bound = max(self._bound, min(found.bound, self._best.objective))
        return self._is_closed() or found.status is Status.OPTIMAL

    def _close(self, root: Relaxation) -> None:
        """Polish the plan and branch for the bound in turn, until the gap is closed or time is up."""
        tree = BoundTree(self._model, self._pricer, root)
        rng = np.random.default_rng(self._limits.seed)
        failures, tried = 0, set[tuple[int, ...]]()
        for _ in range(self._limits.max_steps):
            if self._is_closed() or self._left_s() <= 0:
                break
            for _ in range(_POLISHED_PER_BRANCH):
                if self._left_s() <= 0 or not self._best.uses or self._model.goal is Goal.RATE:
                    break
                better = polish(
                    self._model, self._pricer, self._pool, root, self._best, self._effort(2.0), rng, tried
                )
                if better is not self._best:
                    failures, tried = 0, set()
                else:
                    failures += 1
                self._improve(better, "polishing")
            if not tree.is_done:
                tree.branch(self._best.objective)
                self._raise(tree.bound)
            elif failures >= _FAILURES:
                break

    def _improve(self, found: Incumbent, phase: str) -> None:
        if found.objective < self._best.objective:
            self._best = found
            self._tell(phase)

    def _raise(self, bound: float) -> None:
        if bound > self._bound:
            self._bound = min(bound, self._best.objective)
            self._tell("branching")

    def _tell(self, phase: str) -> None:
        if self._report is not None:
            sign, parked_w = (1.0, self._model.parked_w) if self._model.watt_cost > 0 else (-1.0, 0.0)
            self._report(
                Progress(
                    incumbent=sign * self._best.objective + parked_w,
                    bound=sign * self._bound + parked_w,
                    gap=self._relative_gap(),
                    phase=phase,
                )
            )

    def _relative_gap(self) -> float:
        if not self._best.uses:
            return math.inf
        by_power = self._model.watt_cost > 0
        size = power_of(self._model, self._best.uses) if by_power else abs(self._best.objective)
        return (self._best.objective - self._bound) / max(size, 1e-12)

    def _is_closed(self) -> bool:
        return self._relative_gap() <= self._limits.gap

    def _left_s(self) -> float:
        return max(0.0, self._limits.deadline_s - time.monotonic())

    def _effort(self, most_s: float, max_nodes: int = _ROUNDING_NODES) -> Effort:
        return Effort(
            gap=self._limits.gap / 2,
            max_nodes=max_nodes,
            time_limit_s=min(most_s, max(self._left_s(), 0.1)),
            seed=self._limits.seed,
        )
