"""`solve` from end to end, on small synthetic problems."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from muplan.plan import Plan, Status
from muplan.planning.baselines.oracle import oracle_power_w
from muplan.planning.explain.changes import ChangeKind
from muplan.planning.explain.conflict import Criterion
from muplan.planning.search.tuning import first_guard, make_model
from muplan.planning.solve import Planned, Refused, solve, write_program
from muplan.planning.solvers.exact import solve_exact
from muplan.planning.stated.candidates import CandidateBuilder, memory_fits
from muplan.problem.problem import Problem
from muplan.workload import Goal, Serving, Simulation
from tests.synthetic import ClusterShape, forward_problem, forward_profile, forward_service

ATTENTION = ClusterShape(latency_s=0.004, sensitivity=0.3, power_w=200.0)
FEED_FORWARD = ClusterShape(latency_s=0.006, sensitivity=0.95, power_w=290.0)
QUICK = Simulation(duration_s=120.0, warm_up_s=5.0, replications=3)


def two_services(
    *, num_gpus: int = 4, scale: float = 1.0, limit_s: float = 0.4, cv: float = 1.0, **changes: object
) -> Problem:
    """Two services of 40 and 20 ms on V100s, one to two GPUs busy at maximum clock."""
    slow = forward_profile("slow", (ATTENTION, FEED_FORWARD), tensor_parallel=(1, 2))
    quick = forward_profile("quick", (replace(ATTENTION, latency_s=0.005),), tensor_parallel=(1, 2))
    services = [
        forward_service("slow", profile=slow, rate_rps=20.0 * scale, limit_s=limit_s, cv=cv),
        forward_service("quick", profile=quick, rate_rps=25.0 * scale, limit_s=limit_s, cv=cv),
    ]
    return forward_problem(
        services,
        num_gpus=num_gpus,
        serving=Serving(max_batch=4),
        simulation=QUICK,
        **changes,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def planned() -> Planned:
    """The plan of the two services."""
    result = solve(two_services())
    assert isinstance(result, Planned)
    return result


def test_plan_meets_every_target_on_traces_no_search_has_seen(planned: Planned) -> None:
    """If it fails, plans are claimed that do not hold."""
    assert all(item.attainment.mean >= item.target for item in planned.prediction.services)
    assert planned.prediction.label == "modelled"


def test_every_gpu_is_used_once_or_parked(planned: Planned) -> None:
    """If it fails, a GPU is named twice or forgotten."""
    uses = Counter(planned.deployment.placed_gpus) + Counter(planned.parked)
    assert set(uses) == set(two_services().pools[0].gpu_ids())
    assert set(uses.values()) == {1}


def test_shares_make_up_the_whole_demand(planned: Planned) -> None:
    """If it fails, routing by shares serves more or less than the demand."""
    shares = Counter[str]()
    for group in planned.deployment.groups:
        for replica in group.replicas:
            shares[replica.service] += replica.share  # type: ignore[assignment]
    assert shares["slow"] == pytest.approx(1.0, abs=1e-7)
    assert shares["quick"] == pytest.approx(1.0, abs=1e-7)


def test_panel_has_five_rows_and_the_plan_beats_maximum_clock(planned: Planned) -> None:
    """If it fails, a plan is not held against its baselines, or saves nothing here."""
    rows = {row.name: row for row in planned.baselines}
    assert list(rows) == [
        "max-clock",
        "max-clock-replication",
        "uniform-clock",
        "per-operator-oracle",
        "plan",
    ]
    power = planned.prediction.power_w.mean
    for name in ("max-clock", "max-clock-replication", "uniform-clock"):
        row = rows[name]
        assert row.power_w is not None
        assert row.saving is not None
        assert row.saving == pytest.approx(row.power_w / power)
    assert rows["max-clock"].saving is not None
    assert rows["max-clock"].saving > 1.1
    oracle = rows["per-operator-oracle"]
    assert oracle.is_bound
    assert oracle.power_w is not None
    assert oracle.power_w <= power


def test_reasons_cover_fleet_clocks_and_grouping(planned: Planned) -> None:
    """If it fails, a plan no longer explains itself."""
    text = " ".join(reason.text for reason in planned.reasons)
    assert "GPUs host services" in text
    assert "one more request per second costs about" in text
    assert " W of slow" in text
    assert "one step lower" in text or "the lowest clock" in text
    assert "grouping by sensitivity" in text
    named = {name for reason in planned.reasons for name in reason.subject.split(", ")}
    assert {group.name for group in planned.deployment.groups} <= named


def test_what_ifs_save_and_agree_with_the_marginal_values(planned: Planned) -> None:
    """If it fails, a change for the better is said to cost power, or prices and differences disagree."""
    found = {(item.change, item.subject): item for item in planned.what_ifs}
    assert ("one-more-gpu", "v100") in found
    for item in planned.what_ifs:
        assert item.saves_w >= -1e-3 * planned.prediction.power_w.mean
    for change in ("longer-limits", "less-demand"):
        everyone = found[change, "all"]
        for name in ("slow", "quick"):
            assert found[change, name].saves_w <= everyone.saves_w + 0.5
    prices = {item.subject: item.value for item in planned.marginal_values if item.unit == "W per request/s"}
    # power is convex in demand: a tenth of 20 requests/s less saves no more than their price
    assert found["less-demand", "slow"].saves_w <= 2.0 * prices["slow"] * 1.05
    assert found["less-demand", "slow"].saves_w > 0


def test_equal_seeds_give_equal_results(planned: Planned) -> None:
    """If it fails, a plan cannot be reproduced."""
    assert solve(two_services()) == planned


def test_greedy_plans_too() -> None:
    """If it fails, the greedy solver cannot stand in for the exact one."""
    result = solve(two_services(), solver="greedy", with_baselines=False)
    assert isinstance(result, Planned)
    assert result.status is Status.FEASIBLE
    assert result.solution.solver == "greedy"
    assert result.solution.achieved[0].bound <= result.solution.achieved[0].value


def test_oracle_is_below_every_modelled_optimum() -> None:
    """If it fails, the oracle is no bound of the stated model."""
    problem = two_services()
    builder = CandidateBuilder(problem)
    solution = solve_exact(
        make_model(problem, builder, first_guard(problem, builder)), time_limit_s=60, seed=0
    )
    assert oracle_power_w(problem) <= solution.bound


def test_every_candidate_is_within_memory_and_limit() -> None:
    """If it fails, memory_fits or slo_met is not a property of the candidates."""
    problem = two_services()
    builder = CandidateBuilder(problem)
    model = make_model(problem, builder, first_guard(problem, builder))
    usable = problem.devices["v100"].usable_memory_bytes
    for estimate in builder.forward_estimates:
        assert memory_fits(usable, [estimate])
        assert estimate.latency_s <= problem.service(estimate.service).limits.latency_s
    for group_type in model.group_types:
        assert all(hosting.latency_s <= 0.4 for hosting in group_type.form.hostings)
        assert set(group_type.form.clocks_mhz) <= set(problem.devices["v100"].usable_clocks_mhz)


def test_limit_tighter_than_physics_is_named() -> None:
    """If it fails, an impossible latency limit is not told from a lack of GPUs."""
    result = solve(two_services(limit_s=0.001))
    assert isinstance(result, Refused)
    assert result.status is Status.INFEASIBLE
    quick, slow = result.conflict.sets
    assert [reason.subject for reason in slow.demands] == ["slow"]
    assert [reason.subject for reason in quick.demands] == ["quick"]
    assert slow.text.startswith("slow asks for 0.001 s; a single request takes")
    assert slow.changes[0].text.startswith("Loosen the latency limit of slow to")
    assert {change.kind for change in result.conflict.fix} == {ChangeKind.LOOSEN_LIMIT}


def test_too_much_demand_is_named_with_the_changes_that_help() -> None:
    """If it fails, an overloaded fleet is not told from an impossible limit, or no way out is shown."""
    result = solve(two_services(num_gpus=2, scale=3.0))
    assert isinstance(result, Refused)
    (found,) = result.conflict.sets
    # "slow" alone is more than two GPUs can carry: "quick" is no part of the conflict
    assert {reason.subject for reason in found.demands} == {"slow"}
    assert found.criterion is Criterion.FULL_UTILISATION
    assert found.is_minimal
    kinds = {change.kind for change in found.changes}
    assert {ChangeKind.SCALE_DEMAND, ChangeKind.ADD_GPUS} <= kinds
    assert found.changes[-1].kind is ChangeKind.DROP
    sizes = [change.size for change in found.changes[:-1]]
    assert sizes == sorted(sizes)
    assert result.conflict.fix == found.changes[:1]


def test_services_that_conflict_only_together_are_both_named() -> None:
    """If it fails, the set of conflicting demands is not smallest, or misses a member."""
    result = solve(two_services(num_gpus=2, scale=1.9))
    assert isinstance(result, Refused)
    (found,) = result.conflict.sets
    assert {reason.subject for reason in found.demands} == {"slow", "quick"}
    assert found.text.startswith("2 × v100-sxm2-32gb cannot carry all of this")


def test_cap_that_is_too_low_is_named() -> None:
    """If it fails, a power cap that forbids the plan is no demand of the conflict, or no change raises it."""
    result = solve(two_services(power_cap_w=300.0))
    assert isinstance(result, Refused)
    (found,) = result.conflict.sets
    assert "fleet" in {reason.subject for reason in found.demands}
    kinds = {change.kind for change in found.changes}
    assert {ChangeKind.RAISE_CAP, ChangeKind.DROP} <= kinds


@pytest.mark.parametrize("power_cap_w", [1.0, 50.0, 150.0])
def test_a_cap_that_the_parked_fleet_breaks_is_refused(power_cap_w: float) -> None:
    """If it fails, a low cap ends in a fault of a solver instead of the demands that conflict."""
    problem = two_services(power_cap_w=power_cap_w)
    result = solve(problem)
    assert isinstance(result, Refused)
    named = [demand for item in result.conflict.sets for demand in item.demands]
    assert "fleet" in {demand.subject for demand in named}


def test_goodput_under_a_cap_admits_a_part_and_keeps_its_targets() -> None:
    """If it fails, an overloaded fleet serves nobody well instead of a part of the demand."""
    result = solve(two_services(num_gpus=2, scale=4.0, objective=Goal.GOODPUT), with_baselines=False)
    assert isinstance(result, Planned)
    admitted = result.deployment.admitted
    assert admitted
    for item in result.prediction.services:
        assert item.attainment.mean >= 0.99 * admitted.get(item.service, 1.0)


def test_lp_text_names_every_constraint() -> None:
    """If it fails, --write-lp shows a programme without the names of the mathematics page."""
    text = write_program(two_services(power_cap_w=900.0))
    for name in ("demand_served_0_slow", "capacity_0", "gpus_available_v100_1", "power_cap"):
        assert f"{name}:" in text


def test_result_is_a_plan_document(planned: Planned) -> None:
    """If it fails, what the planner returns cannot be written down."""
    fields = set(Plan.model_fields)
    assert {"deployment", "parked", "prediction", "baselines", "reasons", "solution"} <= fields
    assert planned.solution.achieved[0].gap >= 0
    assert planned.solution.achieved[0].value > 0
