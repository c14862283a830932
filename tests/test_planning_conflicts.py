"""Conflicts of infeasible workloads: infeasible as they stand, feasible without any one demand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from muplan.planning.explain.demands import Demand, demands_of
from muplan.planning.explain.feasibility import Answer, can_serve
from muplan.planning.explain.full_utilisation import FullUtilisation, full_model
from muplan.planning.explain.minimal_set import find_sets
from muplan.planning.guard.levels import GuardState
from muplan.planning.search.tuning import make_model
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.problem.problem import Problem
from tests.synthetic import forward_problem, forward_profile, forward_service
from validation.conflicts import check_conflicts, infeasible_workload

NAMES = ("a", "b", "c", "d", "e", "f")


def problem_of(names: Sequence[str] = NAMES) -> Problem:
    """Services that only stand for themselves."""
    profile = forward_profile("model")
    services = [forward_service(name, profile=profile, rate_rps=1.0, limit_s=1.0) for name in names]
    return forward_problem(services, num_gpus=2)


@pytest.mark.parametrize("seed", [0, 1, 12, 3, 19])
def test_generated_conflicts_are_minimal(seed: int) -> None:
    """If it fails, a conflict names a demand too many or too few, or its fix fixes nothing.

    One workload of every kind, of those that are quick; `python -m validation.conflicts` checks 60.
    """
    assert check_conflicts(infeasible_workload(seed)).holds


@pytest.mark.parametrize(
    ("conflicts", "expected"),
    [
        ([{"a"}], [{"a"}]),
        ([{"a", "f"}], [{"a", "f"}]),
        ([{"b", "c", "e"}, {"d"}], [{"d"}, {"b", "c", "e"}]),
        ([set(NAMES)], [set(NAMES)]),
        ([], []),
    ],
)
def test_sets_are_those_that_were_hidden(conflicts: list[set[str]], expected: list[set[str]]) -> None:
    """If it fails, the search for sets loses a conflict, or leaves one that is not minimal."""
    asked = 0

    def answer(problem: Problem) -> Answer:
        nonlocal asked
        asked += 1
        there = {service.name for service in problem.services}
        return Answer.INFEASIBLE if any(one <= there for one in conflicts) else Answer.FEASIBLE

    found = find_sets(problem_of(), NAMES, answer, is_monotone=True)
    assert sorted(sorted(subjects(item.demands)) for item in found) == sorted(map(sorted, expected))
    assert all(item.is_minimal for item in found)
    assert asked <= 30


def test_a_set_is_not_called_minimal_where_an_answer_is_unknown() -> None:
    """If it fails, a conflict claims more than was proven."""

    def answer(problem: Problem) -> Answer:
        there = {service.name for service in problem.services}
        if {"a", "b"} <= there:
            return Answer.INFEASIBLE
        return Answer.UNKNOWN if "b" in there else Answer.FEASIBLE

    (found,) = find_sets(problem_of(), NAMES, answer, is_monotone=True)
    assert subjects(found.demands) == {"a", "b"}
    assert not found.is_minimal


@pytest.mark.parametrize("correction", [0.5, 1.0, 40.0])
def test_full_utilisation_allows_whatever_the_guard_does(correction: float) -> None:
    """If it fails, a conflict is called proven that a trusting guard would not see."""
    profile = forward_profile("model", batches=(1, 2, 4))
    fleet_gpus = 2
    for rate in (10.0, 20.0, 30.0, 40.0, 60.0):
        services = [
            forward_service(name, profile=profile, rate_rps=rate, limit_s=limit_s)
            for name, limit_s in (("slow", 2.0), ("quick", 0.2))
        ]
        problem = forward_problem(services, num_gpus=fleet_gpus)
        builder = CandidateBuilder(problem)
        guard = GuardState(
            corrections={service.name: correction for service in services},
            pooled_gpus={service.name: float(fleet_gpus) for service in services},
        )
        if can_serve(make_model(problem, builder, guard)) is Answer.FEASIBLE:
            assert can_serve(full_model(problem, builder)) is Answer.FEASIBLE


def test_candidates_are_shared_and_change_no_answer() -> None:
    """If it fails, answers about parts of a workload are not those about the parts by themselves."""
    problem = problem_of()
    shared = FullUtilisation()
    for factor in (1.0, 10.0, 40.0):
        for kept in (NAMES, NAMES[:2], NAMES[4:]):
            services = tuple(
                replace(service, rate_rps=factor * service.rate_rps)
                for service in problem.services
                if service.name in kept
            )
            workload = problem.workload.model_copy(
                update={"services": tuple(service.spec for service in services)}
            )
            part = replace(problem, workload=workload, services=services)
            assert shared.answer(part) is FullUtilisation().answer(part)


def test_a_cap_below_parked_power_conflicts_by_itself() -> None:
    """If it fails, a cap that even an idle fleet breaks is blamed on the services."""
    problem = problem_of()
    fleet = problem.workload.fleet.model_copy(update={"power_cap_w": 1.0})
    capped = replace(problem, workload=problem.workload.model_copy(update={"fleet": fleet}))
    found = find_sets(capped, NAMES, FullUtilisation().answer, is_monotone=True)
    assert [subjects(item.demands) for item in found] == [{"fleet"}]
    assert math.isfinite(capped.workload.fleet.power_cap_w or math.inf)


def test_demands_are_limits_and_services() -> None:
    """If it fails, something that a workload asks for can never be named in a conflict."""
    problem = problem_of()
    pool = problem.pools[0].model_copy(update={"power_cap_w": 200.0})
    fleet = problem.workload.fleet.model_copy(update={"power_cap_w": 900.0, "pools": (pool,)})
    limited = replace(problem, workload=problem.workload.model_copy(update={"fleet": fleet}))
    assert [item.subject for item in demands_of(limited)] == ["fleet", "v100", *NAMES]


def subjects(demands: Sequence[Demand]) -> set[str]:
    return {item.subject for item in demands}
