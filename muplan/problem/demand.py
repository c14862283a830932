"""The demand of one service, resolved: rates, burstiness and lengths of its requests.

A workload states demand in one of several forms (a rate, an arrival process, a recorded trace, a length
distribution, fixed tokens); here they become one, and what does not go with the service's model is noted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from muplan.problem.source import ModelSource
from muplan.traces.lengths import LengthDistribution
from muplan.traces.processes import MAX_CV, PLANNING_WINDOW_S, ArrivalProcess
from muplan.traces.summary import describe_trace
from muplan.traces.trace import Trace
from muplan.workload import Service

NoteFault = Callable[[str, str], None]
"""Takes a fault's key below the service (``demand.trace``) and its message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedDemand:
    """Requests of a service.

    ``input_tokens`` is the length of every forward request, or the mean prompt of a generate
    service; ``output_tokens`` the mean reply (0 for forward services); ``max_context`` the longest
    prompt and reply together. ``lengths`` and ``trace`` hold nothing longer than the model's context.
    """

    rate_rps: float
    cv: float
    input_tokens: float
    output_tokens: float
    max_input_tokens: int
    max_context: int
    lengths: LengthDistribution | None
    trace: Trace | None
    process: ArrivalProcess | None


def check_request_kind(spec: Service, source: ModelSource, note: NoteFault) -> None:
    """Note what a service states that its model's request kind does not allow, or lacks."""
    name = source.name
    if source.request_kind == "forward":
        if spec.lengths is not None:
            note("lengths", f"{name} answers in one pass; remove lengths, or set tokens")
        if spec.slo.ttft_s is not None:
            note("slo.ttft_s", f"{name} answers in one pass; give scale or latency_s")
        return
    if spec.tokens is not None:
        note("tokens", f"{name} generates; give lengths instead of tokens")
    if spec.slo.latency_s is not None:
        note("slo.latency_s", f"{name} generates; give scale, or ttft_s and tpot_s")
    if spec.lengths is None and spec.demand.trace is None:
        note("lengths", f"is required, for {name} generates; 'azure-conversation' is one")
    if spec.lengths is not None and spec.demand.trace is not None:
        note("lengths", "the recorded trace holds the lengths; remove one of the two")


def forward_demand(
    spec: Service, source: ModelSource, trace: Trace | None, note: NoteFault
) -> ResolvedDemand:
    """Resolve the demand of a forward service, whose requests are all padded to one length."""
    tokens = spec.tokens or source.fixed_tokens or source.max_context
    if source.fixed_tokens is not None and tokens != source.fixed_tokens:
        note("tokens", f"a request of {source.name} always has {source.fixed_tokens} (found {tokens})")
    elif tokens > source.max_context:
        note("tokens", f"{source.name} takes at most {source.max_context} (found {tokens})")
    if trace is not None and trace.output_tokens.max() > 0:
        note("demand.trace", f"its requests have output tokens, but {source.name} answers in one pass")
    if trace is not None and trace.input_tokens.max() > tokens:
        longest = int(trace.input_tokens.max())
        note("demand.trace", f"holds a request of {longest} tokens, where the service takes {tokens}")
    rate_rps, cv = _arrivals(spec, trace, note)
    return ResolvedDemand(
        rate_rps=rate_rps,
        cv=cv,
        input_tokens=float(tokens),
        output_tokens=0.0,
        max_input_tokens=tokens,
        max_context=tokens,
        lengths=None,
        trace=trace,
        process=spec.demand.process,
    )


def generate_demand(
    spec: Service,
    source: ModelSource,
    lengths: LengthDistribution | None,
    trace: Trace | None,
    note: NoteFault,
) -> ResolvedDemand:
    """Resolve the demand of a generate service, its prompts shortened to the model's context.

    A prompt that would leave no room for its reply loses its oldest tokens, as chat servers do. A
    model with a fixed input (an audio window) takes no other.
    """
    rate_rps, cv = _arrivals(spec, trace, note)
    if trace is not None:
        if trace.output_tokens.min() < 1:
            note("demand.trace", "holds a request without output tokens")
        _check_fixed_input(source, trace.input_tokens.min(), trace.input_tokens.max(), "demand.trace", note)
        trace = _limited(trace, source.max_context)
        return ResolvedDemand(
            rate_rps=rate_rps,
            cv=cv,
            input_tokens=float(trace.input_tokens.mean()),
            output_tokens=float(trace.output_tokens.mean()),
            max_input_tokens=int(trace.input_tokens.max()),
            max_context=int((trace.input_tokens + trace.output_tokens).max()),
            lengths=None,
            trace=trace,
            process=None,
        )
    if lengths is None:
        raise ValueError("a generate service has lengths or a trace; check_request_kind says so")
    _check_fixed_input(source, lengths.input_tokens[0], lengths.input_tokens[-1], "lengths", note)
    if source.fixed_tokens is not None and lengths.max_context > source.max_context:
        note(
            "lengths",
            f"its longest request has {lengths.max_context} tokens, {source.name} holds {source.max_context}",
        )
    lengths = lengths.limited_to(source.max_context)
    return ResolvedDemand(
        rate_rps=rate_rps,
        cv=cv,
        input_tokens=lengths.mean_input_tokens,
        output_tokens=lengths.mean_output_tokens,
        max_input_tokens=lengths.max_input_tokens,
        max_context=lengths.max_context,
        lengths=lengths,
        trace=None,
        process=spec.demand.process,
    )


def _check_fixed_input(source: ModelSource, shortest: int, longest: int, key: str, note: NoteFault) -> None:
    if source.fixed_tokens is not None and not shortest == longest == source.fixed_tokens:
        note(
            key,
            f"every input of {source.name} has {source.fixed_tokens} tokens (found {shortest} to {longest})",
        )


def _arrivals(spec: Service, trace: Trace | None, note: NoteFault) -> tuple[float, float]:
    """Mean rate and coefficient of variation, as stated or as recorded.

    Of processes whose intervals depend on each other the variation is the root of the counts' dispersion
    over a second: for renewal processes that is the variation of the intervals, in the limit of long
    windows. Of traces it is the greater of this and the variation of the intervals; a trace with no
    dispersion above 1 shows no bursts beyond its intervals.
    """
    if spec.demand.process is not None:
        return spec.demand.process.rate_rps, spec.demand.process.cv
    if trace is None:
        return spec.demand.rate_rps or 0.0, spec.demand.cv
    summary = describe_trace(trace).services[0]
    if summary.cv is None:
        note("demand.trace", f"holds {summary.num_requests} requests, too few to tell how bursty they are")
        return summary.rate_rps, 0.0
    cv = summary.cv
    for item in summary.dispersion:
        if item.window_s == PLANNING_WINDOW_S and item.index > 1.0:
            cv = max(cv, math.sqrt(item.index))
    return summary.rate_rps, min(cv, MAX_CV)


def _limited(trace: Trace, context_limit: int) -> Trace:
    outputs = np.minimum(trace.output_tokens, context_limit - 1).astype(np.int32)
    inputs = np.minimum(trace.input_tokens, context_limit - outputs).astype(np.int32)
    return replace(trace, input_tokens=inputs, output_tokens=outputs)
