"""Forward requests whose completions are known when they come: tables in, columns and energy out."""

from __future__ import annotations

import numpy as np

from muplan.serving.case import Case
from muplan.serving.energy import BUSY, LOADED
from muplan.serving.foretold_kernel import Pipelines, Rules, Served, serve_foretold
from muplan.serving.kernel_tables import KernelTables
from muplan.serving.layout import Floats, Integers, Rows
from muplan.serving.ledger import Columns, KernelResult
from muplan.serving.policies import REJECTION_CODE, ROUTING_CODE
from muplan.workload import Routing


def is_foretold(case: Case) -> bool:
    """Whether the kernel of this file serves the forward requests of a case."""
    serving = case.deployment.serving
    return (
        case.controller.policy == "fixed"
        and serving.routing not in (Routing.ROUND_ROBIN, Routing.POWER_OF_TWO)
        and case.completions_are_known()
    )


def serve(case: Case, tables: KernelTables, columns: Columns) -> KernelResult:
    """Serve the forward requests of a case."""
    serving, selection = case.deployment.serving, case.selection("forward")
    arrival_s = case.trace.arrival_s[selection]
    rules = Rules(
        routing=ROUTING_CODE[serving.routing],
        rejection=REJECTION_CODE[serving.rejection],
        overhead_s=serving.overhead_s,
        warm_up_s=case.warm_up_s,
        measured_until_s=case.measured_until_s,
        duration_s=case.trace.duration_s,
        num_samples=case.num_samples,
    )
    num_stages = len(tables.stages)
    served = Served(
        replica=np.full(len(arrival_s), -1),
        start_s=columns.start_s[selection],
        completion_s=columns.completion_s[selection],
        free_s=np.zeros(num_stages),
        busy_s=np.zeros(num_stages),
        busy_j=np.zeros(num_stages),
        sample_s=np.zeros(num_stages * case.num_samples),
        sample_j=np.zeros(num_stages * case.num_samples),
        edge_s=np.zeros(num_stages),
        open_s=np.zeros(num_stages),
        open_j=np.zeros(num_stages),
        open_row=np.zeros(num_stages, dtype=np.int64),
    )
    serve_foretold(rules, pipelines_of(case, tables), arrival_s, case.service[selection], served)
    _note(case, tables, selection, served, columns)
    groups = case.groups("forward")
    return KernelResult(
        groups=groups,
        stages=_stages(case, tables, served),
        samples_j=_samples_j(case, tables, served),
        log=np.empty(0),
    )


def pipelines_of(case: Case, tables: KernelTables) -> Pipelines:
    """Times and powers of every replica at the clocks of its group's stages."""
    groups, replicas, values = tables.groups, tables.replicas, tables.values
    group = replicas["group"]
    sizes = groups["last_stage"] - groups["first_stage"]
    num_stages = sizes[group]
    first_row = np.concatenate(([0], np.cumsum(num_stages)))[:-1]
    within = np.arange(num_stages.sum()) - np.repeat(first_row, num_stages)  # the stage within its group
    of_row = np.repeat(np.arange(len(replicas)), num_stages)
    clock = tables.stages["clock"][groups["first_stage"][group][of_row] + within]
    cell = within * groups["num_clocks"][group][of_row] + clock  # batches of one
    return Pipelines(
        first_stage=np.concatenate((groups["first_stage"], groups["last_stage"][-1:])),
        group=np.ascontiguousarray(group),
        first_row=first_row,
        pass_s=values[replicas["first_pass_s"][of_row] + cell],
        pass_w=values[replicas["first_pass_w"][of_row] + cell],
        transfer_s=values[replicas["first_transfer"][of_row] + within],
        least_s=np.ascontiguousarray(replicas["least_s"]),
        first_by_service=tables.service_candidate,
        by_service=tables.candidate_replica,
        limit_s=np.array([service.limits.latency_s for service in case.problem.services]),
    )


def _note(
    case: Case, tables: KernelTables, selection: Integers | slice, served: Served, columns: Columns
) -> None:
    """Put what the kernel filled into the columns of all requests."""
    group_of = case.group_numbers(case.groups("forward"))[tables.replicas["group"]]
    columns.group[selection] = np.append(group_of, -1)[served.replica]  # that of −1 is the last
    columns.start_s[selection] = served.start_s
    columns.first_token_s[selection] = columns.completion_s[selection] = served.completion_s
    columns.batch[selection] = served.replica >= 0


def _loaded_w(tables: KernelTables) -> Floats:
    """Power of every stage that waits; shape (stages,)."""
    return np.asarray(tables.values[tables.stages["first_loaded"] + tables.stages["clock"]])


def _stages(case: Case, tables: KernelTables, served: Served) -> Rows:
    """The stages with their energy: what is not busy is loaded and idle."""
    stages = tables.stages
    stages["busy_s"], stages["busy_j"] = served.busy_s, served.busy_j
    stages["loaded_s"] = case.measured_until_s - case.warm_up_s - served.busy_s
    stages["loaded_j"] = stages["loaded_s"] * _loaded_w(tables)
    return stages


def _samples_j(case: Case, tables: KernelTables, served: Served) -> Floats:
    """Energy of all stages by sample, busy and loaded."""
    shape = (len(tables.stages), case.num_samples)
    idle_s = case.trace.duration_s / case.num_samples - served.sample_s.reshape(shape)
    samples_j = np.zeros((2, case.num_samples))
    samples_j[BUSY] = served.sample_j.reshape(shape).sum(axis=0)
    samples_j[LOADED] = _loaded_w(tables) @ idle_s
    return samples_j.ravel()
