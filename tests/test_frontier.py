"""`muplan solve --frontier`: the plans of which none is both stricter and cheaper than another."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from muplan.errors import InputError
from muplan.frontier import Axis, Frontier, FrontierPoint
from muplan.plan import Status
from muplan.planning.frontier import default_values, restricted, trace_frontier, without_dominated
from muplan.planning.methods.name import MethodName
from muplan.planning.solve import Planned, solve
from muplan.serde import read_document
from muplan.serving.prediction import predict
from muplan.verify.constraints import check_placement, demand_served
from muplan.workload import Goal
from tests.test_cli import muplan, written
from tests.test_compare import WORKLOAD
from tests.test_planning_solve import two_services

VALUES = {Axis.ATTAINMENT: (0.9, 0.99), Axis.SLO_SCALE: (0.2, 1.0, 2.0), Axis.GPUS: (1.0, 2.0, 4.0)}


@pytest.fixture(scope="module", params=list(Axis))
def traced(request: pytest.FixtureRequest) -> tuple[Axis, tuple[FrontierPoint, ...]]:
    """The greedy frontier of two services over one axis."""
    axis: Axis = request.param
    return axis, trace_frontier(two_services(), axis, values=VALUES[axis], solver=MethodName.GREEDY)


def test_values_come_strictest_first_and_none_is_lost(traced: tuple[Axis, tuple[FrontierPoint, ...]]) -> None:
    """If it fails, a value that was asked for is not answered."""
    axis, points = traced
    values = [point.value for point in points]
    assert sorted(values) == sorted(VALUES[axis])
    assert values == sorted(values, reverse=axis is Axis.ATTAINMENT)


def test_power_falls_along_the_frontier(traced: tuple[Axis, tuple[FrontierPoint, ...]]) -> None:
    """If it fails, a plan stands on the frontier that a stricter one undercuts."""
    _, points = traced
    powers = [
        point.prediction.power_w.mean for point in points if point.prediction and not point.is_dominated
    ]
    assert powers
    assert all(looser < stricter for stricter, looser in pairwise(powers))


def test_every_plan_is_one_of_its_problem(traced: tuple[Axis, tuple[FrontierPoint, ...]]) -> None:
    """If it fails, a point cannot be used: it breaks a constraint, a target, or states another's figures."""
    axis, points = traced
    for point in points:
        if point.deployment is None or point.prediction is None:
            assert point.status is Status.INFEASIBLE
            continue
        problem = restricted(two_services(), axis, point.value)
        assert [*check_placement(problem, point.deployment), *demand_served(problem, point.deployment)] == []
        assert all(item.attainment.mean >= item.target for item in point.prediction.services)
        assert point.prediction == predict(problem, point.deployment, seed=0)
        assert set(point.placed) | set(point.parked) == set(two_services().pools[0].gpu_ids())


def test_fewer_gpus_are_kept_to() -> None:
    """If it fails, a point on fewer GPUs uses more, or forgets what the others draw."""
    points = trace_frontier(two_services(), Axis.GPUS, values=(2.0, 3.0), solver=MethodName.GREEDY)
    for point in points:
        assert len(point.placed) <= point.value
        assert len(point.placed) + len(point.parked) == 4


def test_reserved_gpus_are_not_counted() -> None:
    """If it fails, a frontier over GPUs counts, or uses, GPUs that no plan may use."""
    problem = two_services()
    pool = problem.pools[0].model_copy(update={"reserved_gpus": ("v100/0/0",)})
    fleet = problem.workload.fleet.model_copy(update={"pools": (pool,)})
    reserved = replace(problem, workload=problem.workload.model_copy(update={"fleet": fleet}))
    assert default_values(reserved, Axis.GPUS)[-1] == 3.0
    smaller = restricted(reserved, Axis.GPUS, 2.0)
    assert smaller.pools[0].free_gpus() == (("v100/0/1", "v100/0/2"),)


def test_the_workloads_own_value_gives_its_own_plan() -> None:
    """If it fails, a frontier does not pass through the plan that `solve` makes."""
    (point,) = trace_frontier(two_services(), Axis.SLO_SCALE, values=(1.0,), solver=MethodName.GREEDY)
    plan = solve(two_services(), solver=MethodName.GREEDY, with_baselines=False)
    assert isinstance(plan, Planned)
    assert (point.deployment, point.prediction) == (plan.deployment, plan.prediction)


def test_a_plan_that_a_stricter_one_undercuts_is_dominated() -> None:
    """If it fails, the frontier offers less for more."""
    points = trace_frontier(two_services(), Axis.ATTAINMENT, values=(0.99,), solver=MethodName.REPLICATE)
    same = points[0].model_copy(update={"value": 0.9})
    none = FrontierPoint(value=0.999, status=Status.INFEASIBLE)
    marked = without_dominated([none, points[0], same])
    assert [point.is_dominated for point in marked] == [False, False, True]


def test_ladders_stay_within_what_is_allowed() -> None:
    """If it fails, a frontier without --steps is refused."""
    for axis in Axis:
        values = default_values(two_services(num_gpus=5), axis)
        assert list(values) == sorted(values)
    assert default_values(two_services(num_gpus=5), Axis.GPUS)[-1] == 5.0


@pytest.mark.parametrize(
    ("axis", "values", "text"),
    [
        (
            Axis.ATTAINMENT,
            (0.9, 1.0),
            "--steps: 1 is no value of attainment.\nA value of attainment is between",
        ),
        (Axis.SLO_SCALE, (0.0,), "A value of slo-scale is above 0."),
        (
            Axis.GPUS,
            (2.5, 9.0),
            "--steps: 2.5, 9 is no value of gpus.\nA value of gpus is a whole number from 1",
        ),
    ],
    ids=str,
)
def test_values_that_are_none_are_named(axis: Axis, values: tuple[float, ...], text: str) -> None:
    """If it fails, a typing error costs a search, or is planned for."""
    with pytest.raises(InputError) as caught:
        trace_frontier(two_services(), axis, values=values)
    assert text in f"{caught.value.problem}\n{caught.value.remedy}"


def test_another_objective_is_refused() -> None:
    """If it fails, a frontier of power is traced by plans that maximise goodput."""
    with pytest.raises(InputError, match="needs power as the one objective"):
        trace_frontier(two_services(objective=Goal.GOODPUT), Axis.GPUS)


def test_command_prints_and_writes_the_same(tmp_path: Path) -> None:
    """If it fails, table, file and plot do not tell the same story."""
    (tmp_path / "small.yaml").write_text(WORKLOAD, encoding="utf-8")
    arguments = (
        "solve",
        "small.yaml",
        "--solver",
        "replicate",
        "--frontier",
        "power:gpus",
        "--steps",
        "1,2,4",
    )
    run = muplan(*arguments, "-o", "f.json", "--plot", "f.png", folder=tmp_path)
    assert run.returncode == 0, run.stderr
    frontier = read_document(tmp_path / "f.json", Frontier)
    assert [point.value for point in frontier.points] == [1.0, 2.0, 4.0]
    for point in frontier.undominated:
        assert point.prediction is not None
        assert f"{point.prediction.power_w.mean:.0f} W" in run.stdout
    assert "A stricter plan costs no more than that for" in run.stdout
    assert (tmp_path / "f.png").stat().st_size > 1000
    again = muplan(*arguments, "--json", folder=tmp_path)
    assert json.loads(again.stdout) == json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert written(tmp_path) == {"small.yaml", "f.json", "f.png"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--frontier", "power:speed"), "Choose one of power:attainment, power:slo-scale, power:gpus."),
        (("--frontier", "power:gpus", "--steps", "1,x"), "--steps '1,x' is not a list of numbers."),
        (("--frontier", "power:gpus", "--steps", "9"), "9 is no value of gpus"),
        (("--frontier", "power:gpus", "--plot", "f.gif"), "f.gif ends in none of"),
        (("--frontier", "power:gpus", "--objective", "goodput"), "Add --objective power."),
        (("--steps", "1,2"), "--steps and --plot belong to --frontier."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_options_are_named(arguments: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    """If it fails, a misspelt option costs a search before it is refused, or is taken for another."""
    (tmp_path / "small.yaml").write_text(WORKLOAD, encoding="utf-8")
    run = muplan("solve", "small.yaml", *arguments, folder=tmp_path)
    assert run.returncode == 2
    assert expected in run.stderr
    assert written(tmp_path) == {"small.yaml"}
