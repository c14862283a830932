"""Check a saved plan: its inputs, every constraint, its claims; then simulate it afresh."""

from __future__ import annotations

from pathlib import Path

from muplan.errors import InputError
from muplan.plan import Plan, Prediction
from muplan.problem.loading import read_problem
from muplan.serde import Part, read_document, read_kind
from muplan.serving.prediction import predict
from muplan.traces.generate import Purpose
from muplan.verify.claims import check_arithmetic, check_attainment, check_inputs, check_reproduction
from muplan.verify.constraints import check_deployment
from muplan.verify.violation import Violation


class PlanVerdict(Part):
    """What checking a plan found; ``fresh`` is the simulation on seeds that neither planner nor plan used."""

    plan: str
    file: str
    violations: tuple[Violation, ...]
    margin: float | None = None
    """Least attainment above target over the services in the fresh simulation; of what the plan admits."""
    fresh: Prediction | None = None

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
    problem = read_problem(workload_path, profiles=profiles)
    violations = [*check_inputs(plan, problem), *check_deployment(problem, plan)]
    if violations:
        # Other inputs, or a deployment that breaks a constraint, cannot be simulated as claimed.
        violations += check_arithmetic(plan)
        return PlanVerdict(plan=plan.name, file=path.name, violations=tuple(violations))
    violations += [*check_arithmetic(plan), *check_reproduction(problem, plan)]
    fresh = predict(problem, plan.deployment, seed=seed, purpose=Purpose.VERIFYING)
    violations += check_attainment(problem, plan, plan.prediction, "recorded")
    violations += check_attainment(problem, plan, fresh, "fresh")
    return PlanVerdict(
        plan=plan.name,
        file=path.name,
        violations=tuple(violations),
        margin=min(
            row.attainment.mean - row.target * plan.deployment.admitted.get(row.service, 1.0)
            for row in fresh.services
        ),
        fresh=fresh,
    )


def find_plans(paths: list[Path]) -> list[Path]:
    """The plan files that ``paths`` name: files as they are, folders by their ``*.json`` plans.

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
        found = [file for file in sorted(path.glob("*.json")) if read_kind(file) == Plan.KIND]
        if not found:
            raise InputError(f"{path} holds no plan.", "Name a folder with plans that 'muplan solve' wrote.")
        plans += found
    return plans
