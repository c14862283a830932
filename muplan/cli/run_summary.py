"""A run in tables and words: its services, its power beside the plan's baselines, and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from muplan.plan import Plan
    from muplan.run import Comparison, GroupOutage, RealTime, Run, ServiceOutcome

MATCH = {
    (True, True): "[green]power and attainment as predicted[/]",
    (False, True): "[yellow]power or attainment not as predicted[/]",
    (True, False): "[green]attainment as predicted[/], power not measured",
    (False, False): "[yellow]attainment not as predicted[/], power not measured",
}
"""By whether the run is as predicted, and whether its power is known."""


def format_run(
    plan: Plan, run: Run, *, is_plans_demand: bool = True, classes: bool = False
) -> list[RenderableType]:
    """Services, their energy, then power with the savings that the plan claims, then the verdict.

    Parameters
    ----------
    is_plans_demand
        Whether the run served the demand that the baselines were simulated with.
    classes
        Whether to show classes of requests.
    """
    from muplan.cli.http_summary import format_latencies, format_over_http
    from muplan.cli.run_tables import format_classes, format_energy, format_token_intervals

    asked = [service for service in run.services if service.num_requests]
    met = sum(service.meets_target for service in asked)
    verdict = "[green]targets met[/]" if run.meets_targets else "[red]targets missed[/]"
    if not asked:
        verdict = "[yellow]no requests[/]"
    if run.is_partial:
        verdict = "[yellow]partial[/]: broken off before all requests were answered, not judged"
    elif not run.is_judged:
        verdict = "[yellow]invalid[/]: requests were not sent when they came, not judged"
    match = MATCH[run.is_as_predicted, run.power_w is not None]
    lines = [
        f"Verdict: {verdict}."
        if not run.is_judged
        else f"Verdict: {verdict} ({met} of {len(asked)} services), {match}.",
        *_format_energy(run),
    ]
    savings = format_savings(plan, run, is_plans_demand=is_plans_demand)
    tables = [format_services(run), *format_token_intervals(run), *(format_classes(run) if classes else [])]
    if run.over_http is not None:
        return [*tables, format_latencies(plan, run), savings, *lines, *format_over_http(run.over_http)]
    if run.real_time is not None:
        lines += _format_real_time(run.real_time)
    return [*tables, *format_energy(run), savings, *lines]


def _format_energy(run: Run) -> list[str]:
    """Where the energy went and how power went over time; nothing where that was not seen."""
    from muplan.cli.console import format_share
    from muplan.cli.run_tables import format_switching

    energy, power = run.energy, run.power_trace
    if energy is None or power is None:
        return []
    total = energy.busy_j + energy.loaded_j + energy.parked_j
    return [
        f"Energy: {format_share(energy.busy_j / total, 0)} busy,"
        f" {format_share(energy.loaded_j / total, 0)} loaded and idle,"
        f" {format_share(energy.parked_j / total, 0)} parked;"
        f" {len(run.clock_commands)} clock changes ({run.controller} clocks).{format_switching(run)}",
        f"Power over {power.width_s:.1f} s: p99 {run.power_p99_w:.0f} W, peak"
        f" {run.power_peak_w:.0f} W. Queues: {_saturation(run)}.",
    ]


def _format_real_time(real_time: RealTime) -> list[str]:
    """What is to be known of a run in real time."""
    lines = [f"Decisions took {1e6 * real_time.decision_s:.0f} µs a request (measured)."]
    if not real_time.sets_clocks:
        lines.append("Clocks were not set: times are those of the machine's own clocks.")
    if real_time.metering_fault is not None:
        lines.append(f"Power was not measured: {real_time.metering_fault}.")
    if real_time.num_lost_passes:
        count = real_time.num_lost_passes
        lines.append(f"{count} passes or iterations were lost with their workers, and run again.")
    lines += [_format_outage(outage) for outage in real_time.outages]
    if real_time.fault is not None:
        lines.append(f"The run ended early: {real_time.fault}")
    return lines


def _format_outage(outage: GroupOutage) -> str:
    """What became of a group that lost a worker."""
    begun = f"{outage.group} lost workers at {outage.begin_s:.1f} s"
    if outage.is_final:
        return f"{begun} and could not be placed again: its requests went to other groups."
    if outage.end_s is None:
        return f"{begun}, and was not whole again before the run ended."
    place = f" on {outage.moved_to}" if outage.moved_to else " where it had been"
    return f"{begun}, and was whole again{place} {outage.end_s - outage.begin_s:.1f} s later."


def _saturation(run: Run) -> str:
    """The groups whose queues stand or grow."""
    states = {
        state: [group.group for group in run.groups if group.saturation == state]
        for state in ("overloaded", "backlogged")
    }
    told = [f"{', '.join(names)} {state}" for state, names in states.items() if names]
    return "; ".join(told) or "all stable"


def format_services(run: Run) -> RenderableType:
    """One row a service: attainment against target and prediction, latency percentiles."""
    from muplan.cli.console import make_table

    has_tokens = any(service.ttft is not None or service.tpot is not None for service in run.services)
    latencies = ["E2E p50", "E2E p99", "TTFT p99", "TPOT p99"] if has_tokens else ["p50", "p99"]
    rows = [_format_service(service)[: 6 + len(latencies)] for service in run.services]
    return make_table(
        f"{run.plan}: {run.backend} run of {run.duration_s:.0f} s, seed {run.seed} ({run.label})",
        [
            ("service", "left"),
            ("requests", "right"),
            ("attainment", "right"),
            ("target", "right"),
            ("predicted", "right"),
            ("as predicted", "right"),
            *((header, "right") for header in latencies),
        ],
        rows,
    )


def _format_service(service: ServiceOutcome) -> list[str]:
    """Figures of a service; of one without requests there is nothing to hold against target or prediction."""
    from muplan.cli.console import format_seconds, format_share

    attainment = service.attainment
    observed = f"[{'green' if service.meets_target else 'red'}]{format_share(attainment.observed, 2)}[/]"
    within = "yes" if attainment.is_within else "[yellow]no[/]"
    latencies_s = (
        service.latency.p50_s if service.latency else None,
        service.latency.p99_s if service.latency else None,
        service.ttft.p99_s if service.ttft else None,
        service.tpot.p99_s if service.tpot else None,
    )
    return [
        service.service,
        f"{service.num_requests}",
        observed if service.num_requests else "–",
        format_share(service.target, 1),
        format_share(attainment.predicted.mean, 2),
        within if service.num_requests else "–",
        *(format_seconds(latency_s) if latency_s is not None else "–" for latency_s in latencies_s),
    ]


def format_savings(plan: Plan, run: Run, *, is_plans_demand: bool = True) -> RenderableType:
    """Power of the run beside the plan's prediction and its baselines; ratios where demands are equal."""
    from muplan.cli.console import make_table

    observed_w = run.power_w.observed if run.power_w is not None else None
    rows = [["this run", "not measured", "", ""]]
    if run.power_w is not None:
        rows = [["this run", f"{run.power_w.observed:.0f} W", _band(run.power_w), ""]]
    rows += [
        [
            row.name,
            f"{row.power_w:.0f} W" if row.power_w is not None else "–",
            "bound"
            if row.is_bound
            else {True: "meets targets", False: "misses targets", None: "–"}[row.meets_targets],
            f"{row.power_w / observed_w:.2f}×" if row.power_w is not None and observed_w else "–",
        ]
        for row in plan.baselines
    ]
    columns = [("deployment", "left"), ("power", "right"), ("", "left"), ("over this run", "right")]
    shown = len(columns) if is_plans_demand else len(columns) - 1
    return make_table(
        f"Power ({_POWER[run.power_label, run.real_time is not None]})",
        columns[:shown],
        [row[:shown] for row in rows],
        caption="The baselines were simulated by the same simulator on the plan's judging traces.",
    )


_POWER = {
    ("modelled", False): "modelled",
    ("modelled", True): "modelled, while stages computed as measured",
    ("measured", True): "this run's measured, the others modelled",
    ("not measured", True): "this run's not measured, the others modelled",
}
"""By the label of a run's power, and whether it was in real time."""


def _band(comparison: Comparison) -> str:
    return f"predicted {comparison.low:.0f}–{comparison.high:.0f} W"
