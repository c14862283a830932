"""The exact solver: the mixed-integer programme by HiGHS (or CBC), written with PuLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from muplan.errors import SolverError
from muplan.plan import Status
from muplan.planning.solvers.greedy import solve_greedy
from muplan.planning.solvers.solver import no_solution
from muplan.planning.stated.constraints import Variables, carried_rate, fleet_power, make_program
from muplan.planning.stated.model import PlanningModel, Solution, power_of
from muplan.planning.stated.rates import best_rates
from muplan.workload import Goal

if TYPE_CHECKING:
    from pulp import LpProblem, LpSolver

RELATIVE_GAP = 1e-4
"""The exact solver stops at this gap between its solution and its bound."""

MAX_NODES = 100_000
"""Nodes of the search tree; a limit that, other than time, leaves equal runs equal."""

_START_EVALUATIONS = 40
_KEPT_GOODPUT = 1 - 1e-6


def solve_exact(
    model: PlanningModel,
    *,
    time_limit_s: float,
    seed: int,
    backend: Literal["highs", "cbc"] = "highs",
    max_nodes: int = MAX_NODES,
) -> Solution:
    """Solve the stated model to a relative gap of 1e-4.

    The greedy solution is the first incumbent. For goodput two programmes are solved in turn: the most
    requests per second, then the least power that carries as many.

    Parameters
    ----------
    max_nodes
        Nodes after which HiGHS ends with what it has; CBC knows only the gap and the time.

    Raises
    ------
    SolverError
        The solver failed.
    """
    name = f"exact-{backend}"
    if not model.configurations:
        return no_solution(name, Status.INFEASIBLE, seed)
    problem, variables = make_program(model)
    start = _greedy_counts(model, seed)
    status, bound = _run(problem, variables, start, backend, time_limit_s, seed, max_nodes)
    if status not in (Status.OPTIMAL, Status.FEASIBLE):
        return no_solution(name, status, seed)
    counts = _counts(variables)
    if model.goal is Goal.POWER:
        uses = best_rates(model, counts).uses
        power_w = power_of(model, uses)
        return Solution(
            solver=name,
            status=status,
            objective=power_w,
            bound=min(bound + model.parked_w, power_w),
            power_w=power_w,
            uses=uses,
            seed=seed,
        )
    return _least_power_at_goodput(
        model, problem, variables, bound, status, backend, time_limit_s, seed, max_nodes
    )


def program_text(model: PlanningModel) -> str:
    """The model as the text of an LP file; constraints carry their names in `muplan.planning.stated`."""
    import tempfile
    from pathlib import Path

    problem, _ = make_program(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.lp"
        problem.writeLP(str(path))
        return path.read_text(encoding="utf-8")


def _least_power_at_goodput(
    model: PlanningModel,
    problem: LpProblem,
    variables: Variables,
    bound: float,
    status: Status,
    backend: str,
    time_limit_s: float,
    seed: int,
    max_nodes: int,
) -> Solution:
    from pulp import LpMinimize

    best = float(carried_rate(variables).value())
    counts = _counts(variables)
    problem.addConstraint(carried_rate(variables) >= best * _KEPT_GOODPUT, "goodput_kept")
    problem.sense = LpMinimize
    problem.setObjective(fleet_power(model, variables))
    second, _ = _run(problem, variables, counts, backend, time_limit_s, seed, max_nodes)
    if second in (Status.OPTIMAL, Status.FEASIBLE):
        counts = _counts(variables)
    uses = best_rates(model, counts).uses
    goodput = sum(sum(use.rates_rps) for use in uses)
    return Solution(
        solver=f"exact-{backend}",
        status=status,
        objective=goodput,
        bound=max(bound, goodput),
        power_w=power_of(model, uses),
        uses=uses,
        seed=seed,
    )


def _greedy_counts(model: PlanningModel, seed: int) -> Mapping[int, int]:
    greedy = solve_greedy(model, time_limit_s=float("inf"), seed=seed, max_evaluations=_START_EVALUATIONS)
    position = {id(configuration): index for index, configuration in enumerate(model.configurations)}
    return {position[id(use.configuration)]: use.count for use in greedy.uses}


def _counts(variables: Variables) -> dict[int, int]:
    return {index: round(count.varValue or 0.0) for index, count in enumerate(variables.counts)}


def _run(
    problem: LpProblem,
    variables: Variables,
    start: Mapping[int, int],
    backend: str,
    time_limit_s: float,
    seed: int,
    max_nodes: int,
) -> tuple[Status, float]:
    """Run a solver on a programme; its status, and its bound on the objective."""
    if backend == "cbc":
        return _run_cbc(problem, time_limit_s, seed)
    from highspy import HighsModelStatus
    from pulp import HiGHS, LpMaximize

    solver = HiGHS(
        msg=False, gapRel=RELATIVE_GAP, threads=1, timeLimit=time_limit_s, random_seed=seed, parallel="off"
    )
    solver.createAndConfigureSolver(problem)
    solver.buildSolverModel(problem)
    highs = problem.solverModel
    highs.setOptionValue("mip_max_nodes", max_nodes)
    if start:
        indices = [variables.counts[index].index for index in start]
        highs.setSolution(len(indices), indices, [float(start[index]) for index in start])
    solver.callSolver(problem)
    model_status = highs.getModelStatus()
    info = highs.getInfo()
    if model_status in (HighsModelStatus.kInfeasible, HighsModelStatus.kUnboundedOrInfeasible):
        return Status.INFEASIBLE, float("nan")
    ended = (HighsModelStatus.kOptimal, HighsModelStatus.kTimeLimit, HighsModelStatus.kSolutionLimit)
    if model_status not in ended:
        raise SolverError(
            f"HiGHS ended with the status {model_status.name}.",
            "Solve with --solver greedy, or report the workload.",
        )
    if info.primal_solution_status != 2:
        return Status.TIME_LIMIT, float("nan")
    values = highs.getSolution().col_value
    for variable in problem.variables():
        variable.varValue = values[variable.index]
    sign = -1.0 if problem.sense == LpMaximize else 1.0
    optimal = model_status == HighsModelStatus.kOptimal
    return (Status.OPTIMAL if optimal else Status.FEASIBLE), sign * float(info.mip_dual_bound)


def _run_cbc(problem: LpProblem, time_limit_s: float, seed: int) -> tuple[Status, float]:
    """CBC tells PuLP no bound: within its gap the objective stands for it."""
    from pulp import LpMaximize, LpSolutionOptimal, LpStatusInfeasible

    problem.solve(_cbc(time_limit_s, seed))
    if problem.status == LpStatusInfeasible:
        return Status.INFEASIBLE, float("nan")
    if problem.sol_status != LpSolutionOptimal:
        return Status.TIME_LIMIT, float("nan")
    objective = float(problem.objective.value())
    slack = RELATIVE_GAP * abs(objective)
    return Status.OPTIMAL, objective + slack if problem.sense == LpMaximize else objective - slack


def _cbc(time_limit_s: float, seed: int) -> LpSolver:
    """The CBC that comes with PuLP 3; PuLP announces that its version 4 will not bring it along."""
    import warnings

    from pulp import PULP_CBC_CMD

    options = [f"randomSeed {seed + 1}", f"randomCbcSeed {seed + 1}"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return PULP_CBC_CMD(
            msg=False, gapRel=RELATIVE_GAP, timeLimit=time_limit_s, threads=1, options=options
        )
