"""The methods that plans are held against, as methods of their own: placements, and one clock for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from muplan.plan import Deployment, Reason, Status
from muplan.planning.baselines.placement import model_parallel_placement, selective_replication
from muplan.planning.baselines.uniform import Uniform, best_uniform_clock
from muplan.planning.methods.limits import limit_faults
from muplan.planning.methods.name import MethodName
from muplan.planning.methods.outcome import Attempt, Found, Missed, Outcome, simulated_summary
from muplan.planning.methods.stated import tune_model
from muplan.planning.search.evaluation import Evaluation, Judge
from muplan.planning.search.search import Search
from muplan.planning.search.tuning import Tuning, first_guard, make_model
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.problem.problem import Problem

_ADMISSION_STEPS = 7
"""Bisections for the share of the demand that a placement can admit: to 1 %."""

Place = Callable[
    [Problem, CandidateBuilder, Judge, Mapping[str, float]], tuple[Deployment, Evaluation] | None
]


def choose_alpaserve(search: Search) -> Outcome:
    """AlpaServe's placement at maximum clock."""
    return _place(search, MethodName.ALPASERVE, model_parallel_placement)


def choose_replicas(search: Search) -> Outcome:
    """Selective replication at maximum clock."""
    return _place(search, MethodName.REPLICATE, selective_replication)


def choose_uniform_clock(search: Search) -> Outcome:
    """The best deployment under one clock, from a guard that the full model was tuned with."""
    uniform, tuning = find_uniform_clock(search)
    if uniform is None:
        return Missed(status=Status.INFEASIBLE, tuning=tuning)
    outcome = judge_deployment(
        search, MethodName.UNIFORM_CLOCK, uniform.deployment, uniform.evaluation, tuning
    )
    if isinstance(outcome, Missed):
        return outcome
    note = Reason(
        subject="fleet", text=f"of all clocks for the whole fleet, {uniform.clock_mhz} MHz costs least."
    )
    return replace(outcome, notes=(note,), uniform=uniform)


def find_uniform_clock(search: Search) -> tuple[Uniform | None, Tuning]:
    """The best deployment under one clock (None where none holds), and what the full model taught before."""
    tuning = tune_model(search)
    return best_uniform_clock(search, tuning.learnt(search.goals)), tuning


def _place(search: Search, name: MethodName, place: Place) -> Outcome:
    """A placement of the whole demand; where part of it may be turned away, as much as holds."""
    tuning = Tuning(last_guard=first_guard(search.problem, search.builder))
    everything = {service.name: 1.0 for service in search.problem.services}
    search.tell("placing")
    found = place(search.problem, search.builder, search.judge, everything)
    if found is None:
        fault = Reason(subject="fleet", text=f"{name} finds no place for every service at maximum clock.")
        return Missed(status=Status.INFEASIBLE, tuning=tuning, faults=(fault,))
    deployment, evaluation = found
    if search.problem.workload.admits_part and not evaluation.holds():
        deployment, evaluation = admit(search, deployment, evaluation)
    return judge_deployment(search, name, deployment, evaluation, tuning)


def admit(search: Search, deployment: Deployment, evaluation: Evaluation) -> tuple[Deployment, Evaluation]:
    """The same share of every service's demand let in: the largest that holds, else the smallest tried."""
    low, high, best = 0.0, 1.0, (deployment, evaluation)
    for step in range(_ADMISSION_STEPS):
        search.tell("admitting", number=step + 1, total=_ADMISSION_STEPS)
        share = (low + high) / 2
        trial = _admitting(deployment, share)
        found = search.judge.evaluate(trial, stop_early=True)
        if found.holds():
            low, best = share, (trial, found)
        else:
            high = share
            best = best if low > 0 else (trial, found)
    return best


def _admitting(deployment: Deployment, share: float) -> Deployment:
    """The deployment with ``share`` of every service's demand."""
    services = {replica.service for group in deployment.groups for replica in group.replicas}
    groups = tuple(
        group.model_copy(
            update={
                "replicas": tuple(
                    replica.model_copy(update={"share": replica.share * share}) for replica in group.replicas
                )
            }
        )
        for group in deployment.groups
    )
    admitted = dict.fromkeys(sorted(services), share)
    return deployment.model_copy(update={"groups": groups, "admitted": admitted})


def judge_deployment(
    search: Search, name: MethodName, deployment: Deployment, evaluation: Evaluation, tuning: Tuning
) -> Outcome:
    """Judge the one deployment of a method on the held-apart traces."""
    search.tell("judging")
    prediction = search.judge.predict(deployment)
    faults = limit_faults(search.builder.rules, deployment)
    if faults or not search.judge.meets_targets(deployment, prediction):
        faults += tuple(
            Reason(
                subject=item.service,
                text=f"attains {item.attainment.mean:.2%} in the deployment of {name}, its"
                f" target is {search.judge.admitted_target(deployment, item.service):.2%} (simulated).",
            )
            for item in prediction.services
            if item.attainment.mean < search.judge.admitted_target(deployment, item.service)
        )
        return Missed(
            status=Status.INFEASIBLE,
            tuning=tuning,
            nearest=Attempt(deployment=deployment, prediction=prediction),
            faults=faults,
        )
    return Found(
        deployment=deployment,
        evaluation=evaluation,
        prediction=prediction,
        model=make_model(search.problem, search.builder, tuning.learnt(search.goals)),
        summary=simulated_summary(search, name, evaluation, len(tuning.trials)),
    )
