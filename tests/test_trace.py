"""Traces: Gamma renewal arrivals, replay, common random numbers, summaries.

If these fail, the simulator is fed other requests than the workload states.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muplan.errors import InputError
from muplan.traces.arrivals import gamma_arrivals
from muplan.traces.generate import Purpose, generate_trace, trace_rng
from muplan.traces.lengths import LengthDistribution, load_lengths
from muplan.traces.processes import ArrivalProcess
from muplan.traces.summary import describe_trace
from muplan.traces.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Source:
    """The least that a trace can be generated from."""

    name: str
    request_kind: str = "forward"
    rate_rps: float = 5.0
    cv: float = 1.0
    input_tokens: float = 128.0
    lengths: LengthDistribution | None = None
    trace: Trace | None = None
    process: ArrivalProcess | None = None


def recorded(arrival_s: list[float], duration_s: float = 10.0, outputs: int = 3) -> Trace:
    count = len(arrival_s)
    return Trace(
        services=("recorded",),
        arrival_s=np.array(arrival_s),
        service=np.zeros(count, dtype=np.int32),
        input_tokens=np.arange(1, count + 1, dtype=np.int32),
        output_tokens=np.full(count, outputs, dtype=np.int32),
        duration_s=duration_s,
    )


# --- arrivals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.0, 4.0])
def test_arrivals_are_stationary_from_the_first_instant(cv: float) -> None:
    """The mean count of every part of the period is rate × length, the first part included.

    A renewal process that began with a whole interval would count too few in the first part (cv < 1)
    or, begun with an arrival, too many. Four standard errors leave one false alarm in 16,000.
    """
    edges = np.array([0.0, 0.05, 0.2, 1.0, 5.0])
    counts = np.array(
        [
            np.histogram(
                gamma_arrivals(10.0, cv, duration_s=5.0, rng=np.random.default_rng([seed, 1])), edges
            )[0]
            for seed in range(3_000)
        ]
    )
    standard_error = counts.std(axis=0) / np.sqrt(len(counts))
    assert (np.abs(counts.mean(axis=0) - 10.0 * np.diff(edges)) < 4.0 * standard_error).all()


@pytest.mark.parametrize("cv", [0.3, 1.0, 4.0])
def test_intervals_have_the_stated_mean_and_variation(cv: float) -> None:
    arrivals = gamma_arrivals(50.0, cv, duration_s=8_000.0, rng=np.random.default_rng(0))
    intervals = np.diff(arrivals)
    # Relative standard error of a Gamma sample's mean is cv/√n, of its variance √(2 + 6·cv²)/√n.
    root_n = np.sqrt(len(intervals))
    assert intervals.mean() == pytest.approx(1 / 50.0, rel=4 * cv / root_n)
    tolerance = 4 * 0.5 * np.sqrt(2 + 6 * cv**2) / root_n
    assert intervals.std() / intervals.mean() == pytest.approx(cv, rel=tolerance + 4 * cv / root_n)


def test_first_arrival_of_a_poisson_process_is_exponential() -> None:
    """Without memory the remainder of an interval is distributed as the whole."""
    from scipy.stats import kstest

    firsts = [
        gamma_arrivals(2.0, 1.0, duration_s=60.0, rng=np.random.default_rng(s))[0] for s in range(2_000)
    ]
    assert kstest(firsts, "expon", args=(0, 0.5)).pvalue > 1e-4


def test_first_arrival_has_the_mean_of_renewal_theory() -> None:
    """Mean remainder of an interval: (1 + cv²) / (2 rate)."""
    firsts = np.array(
        [gamma_arrivals(1.0, 3.0, duration_s=400.0, rng=np.random.default_rng(s))[0] for s in range(4_000)]
    )
    assert firsts.mean() == pytest.approx((1 + 9) / 2, abs=4 * firsts.std() / np.sqrt(len(firsts)))


@given(
    rate_rps=st.floats(0.01, 200.0),
    cv=st.floats(0.05, 20.0),
    duration_s=st.floats(0.1, 50.0),
    seed=st.integers(0, 9999),
)
@settings(max_examples=100, deadline=None)
def test_arrivals_ascend_within_the_period(rate_rps: float, cv: float, duration_s: float, seed: int) -> None:
    arrivals = gamma_arrivals(rate_rps, cv, duration_s=duration_s, rng=np.random.default_rng(seed))
    assert (np.diff(arrivals) >= 0).all()
    assert len(arrivals) == 0 or (arrivals[0] >= 0 and arrivals[-1] < duration_s)


# --- traces ------------------------------------------------------------------------------------


def test_a_trace_merges_its_services_in_order() -> None:
    lengths = load_lengths("azure-conversation").limited_to(4096)
    services = [
        Source(name="a", rate_rps=20.0, cv=4.0, input_tokens=2048.0),
        Source(name="b", request_kind="generate", lengths=lengths),
    ]
    trace = generate_trace(services, duration_s=300.0, rng=trace_rng(0, 0))
    assert trace.services == ("a", "b")
    assert (np.diff(trace.arrival_s) >= 0).all()
    is_forward = trace.service == 0
    assert (trace.input_tokens[is_forward] == 2048).all()
    assert (trace.output_tokens[is_forward] == 0).all()
    assert (trace.output_tokens[~is_forward] >= 1).all()
    assert (trace.input_tokens + trace.output_tokens)[~is_forward].max() <= 4096
    assert trace.arrival_s.dtype == np.float64
    assert {trace.service.dtype, trace.input_tokens.dtype, trace.output_tokens.dtype} == {np.dtype(np.int32)}


def test_other_services_leave_a_service_as_it_was() -> None:
    """Common random numbers: plans for different sets of services are compared on equal requests."""
    lengths = load_lengths("azure-code")
    chat = Source(name="chat", request_kind="generate", lengths=lengths, cv=2.0)
    search, photos = Source(name="search"), Source(name="photos", rate_rps=9.0)
    alone = generate_trace([chat], duration_s=60.0, rng=trace_rng(5, 2))
    for others in ([search, chat, photos], [chat, photos], [photos, search, chat]):
        among = generate_trace(others, duration_s=60.0, rng=trace_rng(5, 2)).only("chat")
        assert (among.arrival_s == alone.arrival_s).all()
        assert (among.input_tokens == alone.input_tokens).all()
        assert (among.output_tokens == alone.output_tokens).all()


def test_another_rate_stretches_the_same_arrivals() -> None:
    slow = generate_trace([Source(name="a", rate_rps=5.0)], duration_s=100.0, rng=trace_rng(0, 0))
    fast = generate_trace([Source(name="a", rate_rps=10.0)], duration_s=50.0, rng=trace_rng(0, 0))
    np.testing.assert_allclose(slow.arrival_s, 2.0 * fast.arrival_s, rtol=1e-12)


def test_services_of_equal_demand_are_independent() -> None:
    trace = generate_trace([Source(name="a"), Source(name="b")], duration_s=60.0, rng=trace_rng(0, 0))
    first, second = trace.only("a").arrival_s, trace.only("b").arrival_s
    assert not np.isin(first, second).any()


def test_streams_differ_by_seed_purpose_and_replication() -> None:
    """A plan judged on the requests it was trained on would promise too much."""
    keys = [(seed, replication, purpose) for seed in (0, 1) for replication in (0, 1) for purpose in Purpose]
    draws = {trace_rng(*key).integers(2**63) for key in keys}
    assert len(draws) == len(keys)
    assert trace_rng(3, 4, Purpose.TRAINING).integers(2**63) == trace_rng(3, 4, "training").integers(2**63)


def test_equal_seeds_give_equal_traces() -> None:
    services = [Source(name="a", cv=3.0), Source(name="b")]
    first, second = (generate_trace(services, duration_s=60.0, rng=trace_rng(1, 1)) for _ in range(2))
    assert first.arrival_s.tobytes() == second.arrival_s.tobytes()
    assert first.service.tobytes() == second.service.tobytes()


def test_no_services_and_no_arrivals_give_an_empty_trace() -> None:
    assert len(generate_trace([], duration_s=1.0, rng=trace_rng(0, 0))) == 0
    rare = Source(name="rare", rate_rps=1e-9)
    assert len(generate_trace([rare], duration_s=1.0, rng=trace_rng(0, 0))) == 0


# --- replay ------------------------------------------------------------------------------------


def test_replay_keeps_the_bursts() -> None:
    """The recorded intervals come back in their order, turned by a random phase."""
    record = recorded([0.5, 0.6, 0.7, 4.0, 4.1, 9.0])
    source = Source(name="r", request_kind="generate", trace=record)
    trace = generate_trace([source], duration_s=10.0, rng=trace_rng(0, 0))
    assert len(trace) == len(record)
    around = np.append(np.diff(record.arrival_s), 10.0 - 9.0 + 0.5)
    again = np.append(np.diff(trace.arrival_s), 10.0 - trace.arrival_s[-1] + trace.arrival_s[0])
    shift = int(np.argmin(trace.input_tokens))  # the record numbers its requests from 1
    np.testing.assert_allclose(np.roll(again, -shift), around, atol=1e-12)
    assert list(np.roll(trace.input_tokens, -shift)) == [1, 2, 3, 4, 5, 6]


def test_replay_of_a_longer_period_goes_round() -> None:
    source = Source(name="r", request_kind="generate", trace=recorded([0.5, 0.6, 4.0]))
    trace = generate_trace([source], duration_s=50.0, rng=trace_rng(0, 1))
    assert len(trace) == 15
    np.testing.assert_allclose(trace.arrival_s[3:] - trace.arrival_s[:-3], 10.0, atol=1e-9)


def test_replications_of_a_replay_differ() -> None:
    source = Source(name="r", request_kind="generate", trace=recorded([0.5, 0.6, 4.0]))
    starts = {generate_trace([source], duration_s=10.0, rng=trace_rng(0, r)).arrival_s[0] for r in range(20)}
    assert len(starts) == 20


def test_replay_for_a_forward_service_pads_every_request() -> None:
    source = Source(name="r", trace=recorded([0.5, 0.6], outputs=0), input_tokens=512.0)
    trace = generate_trace([source], duration_s=10.0, rng=trace_rng(0, 0))
    assert list(trace.input_tokens) == [512, 512]
    assert list(trace.output_tokens) == [0, 0]


# --- traces as values --------------------------------------------------------------------------


def test_only_takes_one_service() -> None:
    trace = generate_trace([Source(name="a"), Source(name="b")], duration_s=60.0, rng=trace_rng(0, 0))
    parts = [trace.only(name) for name in trace.services]
    assert sum(map(len, parts)) == len(trace)
    assert all(part.duration_s == 60.0 for part in parts)
    with pytest.raises(InputError, match="no service 'c'; it has a, b"):
        trace.only("c")


def test_summary_of_known_requests() -> None:
    summary = describe_trace(recorded([0.0, 1.0, 2.0, 3.0, 4.0], duration_s=5.0))
    (service,) = summary.services
    assert (summary.num_requests, service.num_requests, service.rate_rps) == (5, 5, 1.0)
    assert service.cv == pytest.approx(0.0)
    assert service.input_tokens is not None
    assert (service.input_tokens.mean, service.input_tokens.p50, service.input_tokens.maximum) == (
        3.0,
        3.0,
        5,
    )
    assert describe_trace(recorded([1.0, 2.0])).services[0].cv is None
    assert describe_trace(recorded([])).services[0].input_tokens is None


def test_faulty_columns_are_refused() -> None:
    good = recorded([1.0, 2.0])
    with pytest.raises(InputError, match="do not ascend"):
        replace(good, arrival_s=good.arrival_s[::-1])
    with pytest.raises(InputError, match="differ in length"):
        replace(good, service=good.service[:1])
