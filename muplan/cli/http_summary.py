"""What a run on deployed servers shows beside what every run does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from muplan.plan import Plan, ServicePrediction
    from muplan.run import OverHttp, Run, ServiceOutcome, TokenGaps


def format_latencies(plan: Plan, run: Run) -> RenderableType:
    """Every latency that was measured, beside its prediction where the plan has one."""
    from muplan.cli.console import format_seconds, make_table

    predicted = {service.service: service for service in plan.prediction.services}
    gaps = {one.service: one for one in run.over_http.token_gaps} if run.over_http is not None else {}
    rows = []
    for service in run.services:
        figures = _figures(service, predicted[service.service], gaps.get(service.service))
        rows += [
            [
                service.service,
                name,
                format_seconds(seen_s) if seen_s is not None else "–",
                format_seconds(told_s) if told_s is not None else "–",
                f"{seen_s / told_s - 1:+.0%}" if seen_s is not None and told_s else "–",
            ]
            for name, seen_s, told_s in figures
        ]
    columns = [("service", "left"), ("latency", "left"), ("measured", "right"), ("predicted", "right")]
    return make_table("Latencies (measured, beside the plan's)", [*columns, ("difference", "right")], rows)


def _figures(
    service: ServiceOutcome, predicted: ServicePrediction, gaps: TokenGaps | None
) -> list[tuple[str, float | None, float | None]]:
    """Name, measured and predicted seconds."""
    latency, ttft, tpot = service.latency, service.ttft, service.tpot
    figures: list[tuple[str, float | None, float | None]] = [
        ("E2E mean", latency.mean_s if latency else None, predicted.latency_mean_s.mean),
        ("E2E p50", latency.p50_s if latency else None, predicted.latency_p50_s),
        ("E2E p99", latency.p99_s if latency else None, predicted.latency_p99_s),
    ]
    if predicted.ttft_p99_s is not None or ttft is not None:
        figures.append(("TTFT p99", ttft.p99_s if ttft else None, predicted.ttft_p99_s))
        figures.append(("TPOT p99", tpot.p99_s if tpot else None, predicted.tpot_p99_s))
    if gaps is not None:
        figures.append(("ITL p50", gaps.gaps.p50_s, None))
        figures.append(("ITL p99", gaps.gaps.p99_s, None))
    return figures


def format_over_http(told: OverHttp) -> list[str]:
    """What is to be known of a run on deployed servers."""
    from muplan.cli.console import format_seconds

    lines = ["Queue order, batches, clocks and rejection were the servers' own."]
    if told.send_lag is not None:
        lag = f"p99 {format_seconds(told.send_lag.p99_s)} after they came (limit {told.send_lag_limit_s:g} s)"
        lines.append(
            f"Requests were sent {lag}."
            if told.is_in_time
            else f"[red]Requests were sent too late[/]: {lag}. This host is too slow for the trace."
        )
    lines += [
        f"[red]Not answered[/]: {one.count} × {one.service} on {one.group}, {one.kind}: {_shown(one.example)}"
        for one in told.failures
    ]
    if told.num_other_lengths:
        lines.append(
            f"[yellow]{told.num_other_lengths} replies had another number of tokens than asked.[/] Does the"
            " server know ignore_eos?"
        )
    if told.prompt_tokens_ratio is not None and abs(told.prompt_tokens_ratio - 1.0) > 0.005:
        lines.append(f"Prompts had {told.prompt_tokens_ratio:.2f} × the trace's tokens, as servers count.")
    lines += [
        f"{one.service}: {one.tokens_per_chunk:.2f} tokens a chunk; ITL is the time between chunks."
        for one in told.token_gaps
        if one.tokens_per_chunk > 1.05
    ]
    if told.metering_fault is not None:
        lines.append(f"[yellow]Power was not measured[/]: {told.metering_fault}")
    return lines


def _shown(text: str) -> str:
    """The words of others, without markup."""
    from rich.markup import escape

    return escape(" ".join(text.split()))
