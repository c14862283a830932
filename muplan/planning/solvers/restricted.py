"""The integer programme over given configurations, by HiGHS or CBC through PuLP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muplan.errors import SolverError
from muplan.plan import Status
from muplan.planning.stated.constraints import make_program
from muplan.planning.stated.model import Configuration, PlanningModel
from muplan.planning.stated.rates import Groups

if TYPE_CHECKING:
    from pulp import LpProblem, LpSolver, LpVariable


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What a run of a mixed-integer solver may spend.

    ``gap`` is relative to the objective less that of the parked fleet; ``max_nodes`` ends a run the same
    way on every machine, ``time_limit_s`` does not.
    """

    gap: float
    max_nodes: int
    time_limit_s: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Groups chosen among given configurations.

    ``objective`` and ``bound`` are the programme's own, minimised: goodput and factors are negative.
    """

    status: Status
    objective: float
    bound: float
    groups: tuple[Groups, ...]


def choose_groups(
    model: PlanningModel,
    configurations: Sequence[Configuration],
    effort: Effort,
    *,
    start: Sequence[Groups] = (),
    backend: str = "highs",
) -> Counted:
    """Choose how many groups of each of the given configurations.

    Parameters
    ----------
    start
        Groups to start from, all of them among ``configurations``.
    backend
        ``highs`` or ``cbc``; the latter knows only gap and time.

    Raises
    ------
    SolverError
        The solver failed.
    """
    program = make_program(model, configurations)
    place = {id(configuration): index for index, configuration in enumerate(configurations)}
    first = {place[id(configuration)]: count for configuration, count in start}
    if backend == "cbc":
        status, objective, bound = _run_cbc(program.problem, effort)
    else:
        known = [(program.counts[index], count) for index, count in first.items()]
        status, objective, bound = run_highs(program.problem, effort, known)
    groups: list[Groups] = []
    if status in (Status.OPTIMAL, Status.FEASIBLE):
        counts = [round(count.varValue or 0.0) for count in program.counts]
        groups = [(item, count) for item, count in zip(configurations, counts, strict=True) if count > 0]
    return Counted(status=status, objective=objective, bound=bound, groups=tuple(groups))


def program_text(model: PlanningModel, configurations: Sequence[Configuration]) -> str:
    """The programme as the text of an LP file; constraints carry their names in `muplan.planning.stated`."""
    import tempfile
    from pathlib import Path

    program = make_program(model, configurations)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.lp"
        program.problem.writeLP(str(path))
        return path.read_text(encoding="utf-8")


def run_highs(
    problem: LpProblem, effort: Effort, start: Sequence[tuple[LpVariable, int]]
) -> tuple[Status, float, float]:
    """Run HiGHS on a programme: its status, objective and bound."""
    from highspy import HighsModelStatus
    from pulp import HiGHS, LpMaximize

    solver = HiGHS(
        msg=False,
        gapRel=effort.gap,
        threads=1,
        timeLimit=effort.time_limit_s if math.isfinite(effort.time_limit_s) else None,
        random_seed=effort.seed,
        parallel="off",
    )
    solver.createAndConfigureSolver(problem)
    solver.buildSolverModel(problem)
    highs = problem.solverModel
    highs.setOptionValue("mip_max_nodes", effort.max_nodes)
    if start:
        indices = [variable.index for variable, _ in start]
        highs.setSolution(len(start), indices, [float(count) for _, count in start])
    solver.callSolver(problem)
    model_status = highs.getModelStatus()
    if model_status in (HighsModelStatus.kInfeasible, HighsModelStatus.kUnboundedOrInfeasible):
        return Status.INFEASIBLE, math.nan, math.nan
    ended = (HighsModelStatus.kOptimal, HighsModelStatus.kTimeLimit, HighsModelStatus.kSolutionLimit)
    if model_status not in ended:
        raise SolverError(
            f"HiGHS ended with the status {model_status.name}.",
            "Solve with --solver greedy, or report the workload.",
        )
    info = highs.getInfo()
    if info.primal_solution_status != 2:
        return Status.TIME_LIMIT, math.nan, math.nan
    values = highs.getSolution().col_value
    for variable in problem.variables():
        variable.varValue = values[variable.index]
    sign = -1.0 if problem.sense == LpMaximize else 1.0
    optimal = model_status == HighsModelStatus.kOptimal
    objective = sign * float(problem.objective.value() or 0.0)
    return (Status.OPTIMAL if optimal else Status.FEASIBLE), objective, float(info.mip_dual_bound)


def _run_cbc(problem: LpProblem, effort: Effort) -> tuple[Status, float, float]:
    """CBC tells PuLP no bound: within its gap the objective stands for it."""
    from pulp import LpMaximize, LpSolutionOptimal, LpStatusInfeasible

    problem.solve(_cbc(effort))
    if problem.status == LpStatusInfeasible:
        return Status.INFEASIBLE, math.nan, math.nan
    if problem.sol_status != LpSolutionOptimal:
        return Status.TIME_LIMIT, math.nan, math.nan
    objective = float(problem.objective.value() or 0.0)
    objective = -objective if problem.sense == LpMaximize else objective
    return Status.OPTIMAL, objective, objective - effort.gap * abs(objective)


def _cbc(effort: Effort) -> LpSolver:
    """The CBC that comes with PuLP 3; PuLP announces that its version 4 will not bring it along."""
    import warnings

    from pulp import PULP_CBC_CMD

    options = [f"randomSeed {effort.seed + 1}", f"randomCbcSeed {effort.seed + 1}"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return PULP_CBC_CMD(
            msg=False, gapRel=effort.gap, timeLimit=effort.time_limit_s, threads=1, options=options
        )
