"""Check a saved plan: its inputs, every constraint, its claims; then simulate it afresh."""

from __future__ import annotations

from pathlib import Path

from pydantic import computed_field

from muplan.errors import InputError
from muplan.plan import Plan, Prediction
from muplan.problem.loading import read_problem
from muplan.run import Run
from muplan.serde import Part, read_document, read_kind
from muplan.serving.prediction import predict
from muplan.traces.generate import Purpose
from muplan.verify.baselines import check_baselines, check_panel
from muplan.verify.claims import (
    check_arithmetic,
    check_attainment,
    check_inputs,
    check_names,
    check_reproduction,
    due_attainment,
)
from muplan.verify.constraints import check_deployment
from muplan.verify.runs import check_run
from muplan.verify.violation import Violation


class PlanVerdict(Part):
    """What checking a plan, or a run of it, found.

    ``fresh`` is the simulation on seeds that neither planner nor plan used; a run has none, and no margin.
    """

    plan: str
    file: str
    violations: tuple[Violation, ...]
    margin: float | None = None
    """Least attainment above target over the services in the fresh simulation; of what the plan admits."""
    fresh: Prediction | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def holds(self) -> bool:
        """Whether nothing was found."""
        return not self.violations


def check_plan(path: Path, *, profiles: Path | None = None, seed: int = 1) -> PlanVerdict:
    """Check a saved plan.

    Parameters
    ----------
    path
        The plan's file.
    profiles
        Folder of profiles, as for `solve`.
    seed
        Seed of the fresh simulation; it draws from streams that the planner never uses.

    Raises
    ------
    InputError
        The plan cannot be read, or its workload does not exist.
    """
    plan = read_document(path, Plan)
    workload_path = path.parent / plan.provenance.workload
    stated = read_problem(workload_path, profiles=profiles)
    problem = stated.scaled(plan.demand_factor)
    violations = [
        *check_inputs(plan, stated),
        *check_names(plan, problem),
        *check_panel(plan),
        *check_deployment(problem, plan),
    ]
    if plan.prediction.seed < 0:
        message = f"the seed {plan.prediction.seed} is negative, which no simulation has"
        violations.append(Violation(constraint="prediction_reproduced", subject="seed", message=message))
    if violations:
        # Other inputs, or a deployment that breaks a constraint, cannot be simulated as claimed.
        violations += check_arithmetic(plan)
        return PlanVerdict(plan=plan.name, file=path.name, violations=tuple(violations))
    violations += [
        *check_arithmetic(plan),
        *check_reproduction(problem, plan),
        *check_baselines(problem, plan),
        *check_attainment(problem, plan, plan.prediction, "recorded"),
    ]
    try:
        fresh = predict(problem, plan.deployment, seed=seed, purpose=Purpose.VERIFYING)
    except InputError as error:
        violations.append(Violation(constraint="slo_met", subject="fresh simulation", message=error.problem))
        return PlanVerdict(plan=plan.name, file=path.name, violations=tuple(violations))
    violations += check_attainment(problem, plan, fresh, "fresh")
    return PlanVerdict(
        plan=plan.name,
        file=path.name,
        violations=tuple(violations),
        margin=min(
            row.attainment.mean - due_attainment(problem, plan.deployment, row.service)
            for row in fresh.services
        ),
        fresh=fresh,
    )


def check_file(path: Path, *, profiles: Path | None = None, seed: int = 1) -> PlanVerdict:
    """Check a saved plan, as `check_plan`, or a saved run, as `check_run`.

    Raises
    ------
    InputError
        The file cannot be read as either.
    """
    if _kind(path) != Run.KIND:
        return check_plan(path, profiles=profiles, seed=seed)
    run, violations = check_run(path)
    return PlanVerdict(plan=run.plan, file=path.name, violations=violations)


def unreadable(path: Path, error: InputError) -> PlanVerdict:
    """The verdict on a file that cannot be read as a plan, or whose workload cannot."""
    violation = Violation(constraint="readable", subject=path.name, message=error.problem)
    return PlanVerdict(plan=path.stem, file=path.name, violations=(violation,))


def find_plans(paths: list[Path]) -> list[Path]:
    """The plan files that ``paths`` name: files as they are, folders by their ``*.json`` plans.

    A file of a folder that cannot be parsed counts as a plan: it may have been one.

    Raises
    ------
    InputError
        A path does not exist, or a folder holds no plan.
    """
    plans: list[Path] = []
    for path in paths:
        if not path.is_dir():
            plans.append(path)
            continue
        found = [file for file in sorted(path.glob("*.json")) if _may_be_plan(file)]
        if not found:
            raise InputError(f"{path} holds no plan.", "Name a folder with plans that 'muplan solve' wrote.")
        plans += found
    return plans


def _may_be_plan(file: Path) -> bool:
    return _kind(file) in (Plan.KIND, None)


def _kind(file: Path) -> str | None:
    """The kind of a document; None where it cannot be told."""
    try:
        return read_kind(file)
    except InputError:
        return None
