"""The clairvoyant bound: against Yao, Demers and Shenker, exhaustive schedules, and runs of the simulator.

If these fail, a controller is held against energy that could not have been reached, or against less than
could.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from muplan.problem.problem import Limits, Problem
from muplan.serving.clairvoyant.bound import clairvoyant_bound
from muplan.serving.clairvoyant.forward_streams import largest_batches
from muplan.serving.clairvoyant.generate_streams import support_line
from muplan.serving.clairvoyant.programme import Part, Programme, Stream, least_energy_j
from muplan.serving.clairvoyant.residence import longest_stays
from muplan.serving.clairvoyant.slots import Slots, even_edges
from muplan.serving.clairvoyant.speed_scaling import Job, least_energy_speeds
from muplan.serving.generate_tables import generate_group
from muplan.serving.metrics import Metrics, measure
from muplan.serving.simulator import simulate
from muplan.workload import CONTROL_POLICIES, Controller, Serving
from tests import serving_cases as cases
from tests.test_serving_forward import random_deployment, random_services, random_trace
from tests.test_serving_generate import MAX_BATCH, decode_s, prefill_s
from tests.test_serving_generate import random_trace as random_sequences
from tests.test_serving_generate import service as sequence_service

RNG = np.random.default_rng


def programme_of(jobs: list[Job], part: Part, *, spare: int = 0, num_resources: int = 1) -> Programme:
    """Jobs in slots between all releases and due times, on one resource."""
    edges_s = np.unique([time_s for job in jobs for time_s in (job.release_s, job.due_s)])
    return Programme(
        edges_s=edges_s,
        streams=tuple(
            Stream(
                resource=0,
                release=np.searchsorted(edges_s, [job.release_s]),
                due=np.searchsorted(edges_s, [job.due_s]),
                work=np.array([job.work]),
                request=np.array([number]),
                parts=(part,),
            )
            for number, job in enumerate(jobs)
        ),
        service=np.zeros(len(jobs), dtype=np.int64),
        spare=np.array([spare]),
    )


def random_jobs(rng: np.random.Generator, count: int) -> list[Job]:
    releases = rng.uniform(0, 10, count)
    return [
        Job(
            release_s=float(release),
            due_s=float(release + rng.uniform(0.5, 5)),
            work=float(rng.uniform(0.2, 2)),
        )
        for release in releases
    ]


def cubic(speeds: np.ndarray) -> Part:
    """Clocks of a processor whose power is the cube of its speed."""
    return Part(unit_s=(1 / speeds)[None, :], unit_j=(speeds**2)[None, :])


def test_speeds_of_a_textbook_case() -> None:
    """One urgent job within a long one: it runs at its own speed, the other spreads over the rest."""
    jobs = [Job(release_s=0, due_s=10, work=4), Job(release_s=4, due_s=6, work=6)]
    assert [(one.duration_s, one.speed) for one in least_energy_speeds(jobs)] == [(2, 3.0), (8, 0.5)]


@pytest.mark.parametrize("seed", range(4))
def test_programme_meets_yao_demers_and_shenker(seed: int) -> None:
    """At ever finer clocks the programme of single jobs comes down to the optimum of continuous ones."""
    jobs = random_jobs(RNG(seed), 6)
    optimum_j = sum(one.duration_s * one.speed**3 for one in least_energy_speeds(jobs))
    coarse, fine = (
        np.geomspace(0.02, 20, 25),
        np.geomspace(0.02, 20, 97),
    )  # the coarse ones are among the fine
    coarse_j, fine_j = (least_energy_j(programme_of(jobs, cubic(speeds))) for speeds in (coarse, fine))
    assert optimum_j * (1 - 1e-6) <= fine_j <= coarse_j * (1 + 1e-6)
    assert fine_j == pytest.approx(optimum_j, rel=4e-3)


@pytest.mark.parametrize("seed", range(3))
def test_programme_agrees_with_every_schedule_of_a_tiny_trace(seed: int) -> None:
    """First come, first served, all completion times of a grid, at the best mix of three clocks each."""
    rng = RNG(seed)
    unit_s, unit_j = np.array([2.0, 1.4, 1.0]), np.array([1.0, 1.3, 2.2])
    arrival_s = np.sort(rng.integers(0, 12, 3) / 4.0)
    work, limit_s = rng.uniform(0.4, 1.0), float(rng.uniform(2.6, 4.0))
    jobs = [Job(release_s=float(at), due_s=float(at + limit_s), work=work) for at in arrival_s]
    grid_s = np.unique([*np.linspace(0, arrival_s[-1] + limit_s, 60), *arrival_s, *(arrival_s + limit_s)])

    def mixed_j(period_s: float) -> float:
        if period_s < work * unit_s.min() - 1e-12:
            return math.inf
        return float(np.interp(period_s / work, unit_s[::-1], unit_j[::-1]) * work)

    best_j = math.inf
    for ends in itertools.combinations_with_replacement(grid_s, 3):
        begins = np.maximum(arrival_s, [0.0, *ends[:-1]])
        if (np.array(ends) <= arrival_s + limit_s + 1e-12).all() and (np.array(ends) > begins).all():
            best_j = min(best_j, sum(mixed_j(end - begin) for begin, end in zip(begins, ends, strict=True)))
    found_j = least_energy_j(programme_of(jobs, Part(unit_s=unit_s[None, :], unit_j=unit_j[None, :])))
    assert found_j <= best_j * (1 + 1e-6)
    assert found_j == pytest.approx(best_j, rel=0.03)


def test_requests_may_be_left_out_up_to_a_number() -> None:
    """Parts of requests count together: (1 − z)³ + (2 z)³ is least at z = 1 / (1 + √8) for one of two."""
    jobs = [Job(release_s=0, due_s=1, work=1.0), Job(release_s=5, due_s=6, work=2.0)]
    part, z = cubic(np.geomspace(0.1, 4, 97)), 1 / (1 + math.sqrt(8))
    energies_j = [least_energy_j(programme_of(jobs, part, spare=spare)) for spare in (0, 1, 2)]
    assert energies_j == pytest.approx([9.0, (1 - z) ** 3 + (2 * z) ** 3, 0.0], rel=2e-3, abs=1e-6)


def with_reached_targets(problem: Problem, metrics: Metrics) -> Problem:
    """The problem with the targets that a run met: the bound says nothing of one that misses them."""
    services = []
    for service, found in zip(problem.services, metrics.services, strict=True):
        reached = min(max(found.attainment, 1e-6), 1.0 - 1e-9)
        slo = service.spec.slo.model_copy(update={"attainment": reached})
        services.append(replace(service, spec=service.spec.model_copy(update={"slo": slo})))
    return replace(problem, services=tuple(services))


@pytest.mark.parametrize("seed", range(16))
def test_no_run_of_forward_groups_beats_the_bound(seed: int) -> None:
    """Pipelines, batches, several services, every controller: a run that meets its targets costs as much."""
    rng = RNG(500 + seed)
    services = random_services(rng)
    problem = cases.problem(services, warm_up_s=1.0)
    deployment, trace = random_deployment(rng), random_trace(rng, services, 5.0)
    controller = Controller(policy=CONTROL_POLICIES[seed % 4], window_s=0.5)
    records = simulate(problem, deployment, trace, rng=RNG(0), controller=controller, cool_down_s=0.5)
    problem = with_reached_targets(problem, measure(records, problem))
    bounds_j = [
        clairvoyant_bound(problem, deployment, records, slot_s=width).energy_j for width in (0.4, 0.05)
    ]
    assert bounds_j[0] <= bounds_j[1] * (1 + 1e-6)
    assert bounds_j[1] <= records.energy_j * (1 + 1e-6)
    assert bounds_j[1] > records.parked_j


@pytest.mark.parametrize("seed", range(8))
def test_no_run_of_generate_groups_beats_the_bound(seed: int) -> None:
    """Continuous batching on one or two stages, with and without a memory limit, under every controller."""
    rng = RNG(700 + seed)
    num_stages = 1 + seed % 2
    limits = Limits(latency_s=math.inf, ttft_s=2.0, tpot_s=float(rng.uniform(0.03, 0.2)))
    one = sequence_service(num_clusters=num_stages, kv_tokens=None if seed % 3 else 900, limits=limits)
    problem = cases.problem([one], warm_up_s=5.0)
    clocks = [int(clock) for clock in rng.choice(cases.CLOCKS_MHZ, num_stages)]
    group = cases.group("g", list(range(num_stages)), ["chat"], clocks_mhz=clocks, max_batch=MAX_BATCH)
    deployment = cases.deployment([group], Serving(controller=Controller(policy=CONTROL_POLICIES[seed % 4])))
    trace = random_sequences(rng, one, rate_rps=float(rng.uniform(0.5, 3)), duration_s=60.0)
    records = simulate(problem, deployment, trace, rng=RNG(0))
    problem = with_reached_targets(problem, measure(records, problem))
    bounds_j = [
        clairvoyant_bound(problem, deployment, records, slot_s=width).energy_j for width in (5.0, 0.5)
    ]
    assert bounds_j[0] <= bounds_j[1] * (1 + 1e-6)
    assert bounds_j[1] <= records.energy_j * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_stays_bound_those_of_every_clock(seed: int) -> None:
    """No request's first token or end is later, at any of the clocks, than the least fixed point says."""
    rng = RNG(seed)
    one = sequence_service()
    problem = cases.problem([one])
    trace = random_sequences(rng, one, rate_rps=1.0, duration_s=60.0)
    slowest = cases.CLOCKS_MHZ[0]
    sizes = np.arange(1, MAX_BATCH + 1)
    flat_s = np.array([decode_s(slowest, int(size), 0) for size in sizes])
    per_token_s = max(
        (decode_s(slowest, int(size), 1) - decode_s(slowest, int(size), 0)) / int(size) for size in sizes
    )
    first_s, end_s, holds = longest_stays(
        trace.arrival_s,
        np.array([prefill_s(slowest, 1, tokens) for tokens in trace.input_tokens]),
        trace.input_tokens.astype(np.int64),
        trace.output_tokens.astype(np.int64),
        flat_s,
        per_token_s,
        MAX_BATCH,
        generate_group(problem, cases.group("g", [0], ["chat"], max_batch=MAX_BATCH)).prefill_budget,
        10**6,
        0.25,
        10_000,
    )
    assert holds
    for clock in cases.CLOCKS_MHZ:
        group = cases.group("g", [0], ["chat"], clocks_mhz=[clock], max_batch=MAX_BATCH)
        records = simulate(problem, cases.deployment([group]), trace, rng=RNG(0))
        assert (records.first_token_s <= first_s * (1 + 1e-6)).all()
        assert (records.completion_s <= end_s * (1 + 1e-6)).all()


def test_windows_are_rounded_outwards() -> None:
    """Inwards, a request would have less time than it has, and the bound would be none."""
    slots = Slots(edges_s=even_edges(10.0, 20.0, 1.0), resources=(("g", 0),))
    release, due, inside = slots.window(
        np.array([10.0, 10.5, 12.0, 9.9, 15.0]), np.array([11.0, 10.6, 14.2, 12.0, 20.1]), 0.2
    )
    assert release[:3].tolist() == [0, 0, 2]
    assert due[:3].tolist() == [1, 1, 5]
    assert inside.tolist() == [True, False, True, False, False]


def test_batches_hold_what_comes_within_the_slack() -> None:
    arrival_s = np.array([0.0, 0.1, 0.2, 5.0, 9.0, 9.1, 9.2, 9.3, 9.4])
    assert largest_batches(arrival_s, 0.25, 8).tolist() == [4, 4, 4, 1, 4, 4, 4, 4, 4]
    assert largest_batches(arrival_s, 1.0, 8).tolist() == [4, 4, 4, 1, 8, 8, 8, 8, 8]
    assert largest_batches(arrival_s, -1.0, 8).tolist() == [1] * 9


def test_a_line_that_supports_a_table_from_below() -> None:
    x, y = np.array([1.0, 2.0, 4.0, 8.0]), np.array([3.0, 3.0, 5.0, 9.0])
    intercept, slope = support_line(x, y, 4.0)
    assert (intercept + slope * x <= y + 1e-9).all()
    assert intercept + slope * 4.0 == pytest.approx(5.0)
