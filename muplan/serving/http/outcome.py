"""What a run on deployed servers has shown: records of its requests, and what only such a run has to tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from muplan.endpoints import Endpoints
from muplan.run import OverHttp, RequestFailures, TokenGaps
from muplan.serving.case import Case
from muplan.serving.http.client import Failure, Timing
from muplan.serving.http.driver import Exchange
from muplan.serving.http.target import Target
from muplan.serving.ledger import empty_columns, make_records
from muplan.serving.metrics import latency_of
from muplan.serving.outcome import told_latency
from muplan.serving.realtime.partial import cut_records
from muplan.serving.records import Records


def records_of(case: Case, targets: Sequence[Target], exchange: Exchange) -> Records:
    """Return the records of the requests; one that was not answered stands as rejected.

    A request starts when it was sent; its batch is what was in flight at its target then, itself included;
    its output tokens are those that came. There is no energy in them.

    Raises
    ------
    MachineError
        The run was broken off before anything was measured.
    """
    columns, output_tokens = empty_columns(len(case.trace)), case.trace.output_tokens.astype(np.int64)
    for number, outcome in enumerate(exchange.outcomes):
        if not isinstance(outcome, Timing):
            continue
        target = targets[exchange.targets[number]]
        columns.group[number] = target.group
        columns.start_s[number] = outcome.sent_s
        columns.first_token_s[number] = outcome.first_token_s
        columns.completion_s[number] = outcome.completion_s
        columns.batch[number] = exchange.in_flight[number]
        if target.generates:
            output_tokens[number] = outcome.num_tokens
    records = replace(make_records(case, columns, []), output_tokens=output_tokens)
    return cut_records(records, exchange.end_s) if exchange.is_partial else records


def over_http_of(
    case: Case, endpoints: Endpoints, targets: Sequence[Target], exchange: Exchange, records: Records
) -> OverHttp:
    """Tell what else was seen.

    Parameters
    ----------
    records
        Whose measured period is that of the gaps between tokens.
    """
    sent = [number for number, outcome in enumerate(exchange.outcomes) if outcome is not None]
    outcomes = [outcome for outcome in exchange.outcomes if outcome is not None]
    lags_s = np.array([one.sent_s for one in outcomes]) - case.trace.arrival_s[sent]
    return OverHttp(
        send_lag=told_latency(latency_of(lags_s)),
        send_lag_limit_s=endpoints.send_lag_limit_s,
        failures=_failures(targets, exchange),
        num_unfinished=int((exchange.targets >= 0).sum()) - len(sent),
        num_other_lengths=sum(
            targets[exchange.targets[number]].generates
            and isinstance(outcome, Timing)
            and outcome.num_tokens != int(case.trace.output_tokens[number])
            for number, outcome in zip(sent, outcomes, strict=True)
        ),
        prompt_tokens_ratio=_prompt_tokens_ratio(case, exchange),
        token_gaps=_token_gaps(case, exchange, records),
    )


def _failures(targets: Sequence[Target], exchange: Exchange) -> tuple[RequestFailures, ...]:
    """Failures by target and kind, in the order in which their first was sent."""
    found = defaultdict[tuple[int, str], list[Failure]](list)
    for place, outcome in zip(exchange.targets.tolist(), exchange.outcomes, strict=True):
        if isinstance(outcome, Failure):
            found[place, outcome.kind.value].append(outcome)
    return tuple(
        RequestFailures(
            group=targets[place].endpoint.group,
            service=targets[place].endpoint.service,
            kind=kind,
            count=len(failures),
            example=failures[0].message,
        )
        for (place, kind), failures in found.items()
    )


def _prompt_tokens_ratio(case: Case, exchange: Exchange) -> float | None:
    asked = counted = 0
    for number, outcome in enumerate(exchange.outcomes):
        if isinstance(outcome, Timing) and outcome.num_prompt_tokens is not None:
            asked += int(case.trace.input_tokens[number])
            counted += outcome.num_prompt_tokens
    return counted / asked if asked else None


def _token_gaps(case: Case, exchange: Exchange, records: Records) -> tuple[TokenGaps, ...]:
    """Gaps between chunks of the replies to requests that came in the measured period, by service."""
    told = []
    for number, service in enumerate(case.problem.services):
        mine = np.flatnonzero(records.counted & ~records.rejected & (records.service == number))
        timings = [one for one in (exchange.outcomes[place] for place in mine) if isinstance(one, Timing)]
        gaps_s = np.concatenate([np.empty(0), *(np.asarray(one.gaps_s, dtype=np.float64) for one in timings)])
        gaps = told_latency(latency_of(gaps_s))
        if gaps is not None:
            num_chunks = len(gaps_s) + len(timings)
            tokens = sum(one.num_tokens for one in timings)
            told.append(TokenGaps(service=service.name, gaps=gaps, tokens_per_chunk=tokens / num_chunks))
    return tuple(told)
