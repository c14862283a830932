"""What is shown of a run beside its services: time between tokens, classes, energy, clock changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from muplan.run import ClassOutcome, Run, ServiceOutcome


def format_token_intervals(run: Run) -> list[RenderableType]:
    """One row a generate service: mean and percentiles of the time between tokens; nothing without them."""
    from muplan.cli.console import format_seconds, make_table

    rows = []
    for service in run.services:
        if service.itl is not None:
            itl = service.itl
            times_s = (itl.mean_s, itl.p50_s, itl.p90_s, itl.p95_s, itl.p99_s, itl.p999_s)
            rows.append([service.service, *map(format_seconds, times_s)])
    columns = ["mean", "p50", "p90", "p95", "p99", "p99.9"]
    title = "Time between tokens (ITL), of all replies"
    return (
        [make_table(title, [("service", "left"), *((one, "right") for one in columns)], rows)] if rows else []
    )


def format_energy(run: Run) -> list[RenderableType]:
    """One row a service: how busy it keeps its GPUs, power, energy of a request and a token."""
    from muplan.cli.console import make_table

    served = [service for service in run.services if service.num_requests > service.num_rejected]
    if run.power_trace is None or not all(service.energy for service in served):
        return ["Energy by service: not known, as services share GPUs in real time."]
    generates = any(service.ttft for service in run.services)
    columns = ["GPUs busy", "power", "per request", "per token", "per output token"]
    shown = 1 + len(columns) - (not generates)
    parked_w = run.power_trace.parked_w
    return [
        make_table(
            "Energy by service (modelled)",
            [("service", "left"), *((column, "right") for column in columns[: shown - 1])],
            [_format_energy(service)[:shown] for service in run.services],
            caption=f"Energy of waiting GPUs is shared by busy time. Parked GPUs: {parked_w:.0f} W.",
        )
    ]


def _format_energy(service: ServiceOutcome) -> list[str]:
    from muplan.cli.console import format_share

    energy = service.energy
    if energy is None:
        return [service.service, *["–"] * 5]
    each_j = (energy.energy_per_request_j, energy.energy_per_total_token_j, energy.energy_per_token_j)
    return [
        service.service,
        format_share(energy.busy_share, 0),
        f"{energy.power_w:.0f} W",
        *(f"{joules:.3g} J" if joules is not None else "–" for joules in each_j),
    ]


def format_classes(run: Run) -> list[RenderableType]:
    """One row a class of each generate service: attainment and latencies of replies of such lengths."""
    from muplan.cli.console import make_table

    rows = [_format_class(service.service, one) for service in run.services for one in service.classes]
    if not rows:
        return ["No service has classes: they are lengths of replies, of services with known lengths."]
    columns = ["output tokens", "requests", "attainment", "E2E p50", "E2E p99", "TTFT p99", "TPOT p99"]
    return [
        make_table(
            "Requests by class", [("service", "left"), *((column, "right") for column in columns)], rows
        )
    ]


def _format_class(service: str, one: ClassOutcome) -> list[str]:
    from muplan.cli.console import format_seconds, format_share

    tokens = f"{one.from_tokens}–{one.below_tokens - 1}" if one.below_tokens else f"{one.from_tokens}–"
    latencies_s = (
        one.latency.p50_s if one.latency else None,
        one.latency.p99_s if one.latency else None,
        one.ttft.p99_s if one.ttft else None,
        one.tpot.p99_s if one.tpot else None,
    )
    return [
        service,
        tokens,
        f"{one.num_requests}",
        format_share(one.attainment, 2),
        *(format_seconds(latency_s) if latency_s is not None else "–" for latency_s in latencies_s),
    ]


def format_switching(run: Run) -> str:
    """What of time and energy fell within clock changes; nothing where there were none."""
    from muplan.cli.console import format_share

    time, energy = run.gpu_time, run.energy
    if time is None or energy is None or not run.clock_commands or energy.switching_j is None:
        return ""
    total_s = time.busy_s + time.loaded_s + time.parked_s
    total_j = energy.busy_j + energy.loaded_j + energy.parked_j
    return (
        f" Until changes took effect: {format_share(time.switching_s / total_s)} of the GPUs' time,"
        f" {format_share(energy.switching_j / total_j)} of the energy."
    )
