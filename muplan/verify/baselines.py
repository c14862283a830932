"""The baselines that a plan is held against: all there, and simulated again to what they claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from muplan.errors import InputError
from muplan.plan import Baseline, Deployment, Plan, Prediction
from muplan.problem.problem import Problem
from muplan.serving.prediction import predict
from muplan.verify.claims import differences, due_attainment
from muplan.verify.constraints import check_placement, demand_served
from muplan.verify.violation import Violation

PANEL = ("max-clock", "max-clock-replication", "uniform-clock", "per-operator-oracle", "plan")
"""The rows that every plan has, in this order."""

_ORACLE, _PLAN = PANEL[3:]
_CLAIMS = ("power_w", "attainment", "meets_targets", "energy_per_request_j")


def check_panel(plan: Plan) -> Iterator[Violation]:
    """All five rows are there, and only the oracle's is a bound."""
    names = tuple(row.name for row in plan.baselines)
    if names != PANEL:
        message = f"holds the rows {', '.join(names) or 'none'}; a plan has {', '.join(PANEL)}"
        yield Violation(constraint="baselines_complete", subject="baselines", message=message)
        return
    for row in plan.baselines:
        if row.is_bound != (row.name == _ORACLE):
            message = (
                "says of itself that it is a bound" if row.is_bound else "is a bound, and does not say so"
            )
            yield Violation(constraint="baselines_complete", subject=row.name, message=message)
        if (row.name in (_ORACLE, _PLAN)) and row.deployment is not None:
            message = "has a deployment, which this row never has"
            yield Violation(constraint="baselines_complete", subject=row.name, message=message)


def check_baselines(problem: Problem, plan: Plan) -> Iterator[Violation]:
    """Each row states what its deployment's simulation gives; the plan's row what the plan predicts."""
    for row in plan.baselines:
        if row.name == _PLAN:
            yield from _check_row(problem, row, plan.deployment, plan.prediction)
        elif row.deployment is not None:
            yield from _check_deployed(problem, row, row.deployment, plan.prediction.seed)
        elif not row.is_bound:
            yield from _check_absent(row)


def _check_deployed(
    problem: Problem, row: Baseline, deployment: Deployment, seed: int
) -> Iterator[Violation]:
    broken = [
        *check_placement(problem, deployment),
        *_gpus_shared(deployment),
        *demand_served(problem, deployment),
    ]
    for violation in broken:
        yield violation.model_copy(update={"subject": f"{row.name}: {violation.subject}"})
    if broken:
        return
    try:
        prediction = predict(problem, deployment, seed=seed)
    except InputError as error:
        yield Violation(constraint="baseline_reproduced", subject=row.name, message=error.problem)
        return
    yield from _check_row(problem, row, deployment, prediction)


def _gpus_shared(deployment: Deployment) -> Iterator[Violation]:
    for gpu, uses in Counter(deployment.placed_gpus).items():
        if uses > 1:
            yield Violation(constraint="gpu_used_once", subject=gpu, message="is used in more than one place")


def _check_row(
    problem: Problem, row: Baseline, deployment: Deployment, prediction: Prediction
) -> Iterator[Violation]:
    actual = {
        "power_w": prediction.power_w.mean,
        "attainment": min(item.attainment.mean for item in prediction.services),
        "meets_targets": all(
            item.attainment.mean >= due_attainment(problem, deployment, item.service)
            for item in prediction.services
        ),
        "energy_per_request_j": prediction.energy_per_request_j,
    }
    claimed = {name: getattr(row, name) for name in _CLAIMS}
    for key, recorded, found in differences(claimed, actual, ""):
        message = f"{key}: the plan records {recorded}, the simulation with its seed gives {found}"
        yield Violation(constraint="baseline_reproduced", subject=row.name, message=message)


def _check_absent(row: Baseline) -> Iterator[Violation]:
    """A row without a deployment states no figures."""
    stated = [
        name
        for name in ("power_w", "attainment", "energy_per_request_j", "saving")
        if getattr(row, name) is not None
    ]
    if stated or row.meets_targets:
        message = f"states {', '.join(stated) or 'that it meets the targets'} without a deployment"
        yield Violation(constraint="baseline_reproduced", subject=row.name, message=message)
