"""Operations on traces: what each keeps, and the laws of thinning and superposition.

If these fail, a trace that was cut, thinned or laid over another is no longer what its user takes it for.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muplan.errors import InputError
from muplan.traces.generate import draw_trace
from muplan.traces.operations import convert_traces, multiply, rotate, slice_trace, superpose, thin
from muplan.traces.processes import ArrivalProcess, Gamma, Poisson
from muplan.traces.summary import count_dispersion
from muplan.traces.trace import Trace


def rng_of(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def drawn(process: ArrivalProcess, *key: int, name: str = "a", duration_s: float = 4_000.0) -> Trace:
    return draw_trace(process, service=name, lengths=7, duration_s=duration_s, rng=rng_of(*key))


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    count = draw(st.integers(0, 30))
    duration_s = draw(st.floats(1.0, 1e3))
    arrivals = np.array(sorted(draw(st.lists(st.floats(0.0, 0.999), min_size=count, max_size=count))))
    members = draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    return Trace(
        services=("chat", "search"),
        arrival_s=arrivals * duration_s,
        service=np.array(members, dtype=np.int32),
        input_tokens=np.arange(1, count + 1, dtype=np.int32),
        output_tokens=np.arange(count, dtype=np.int32),
        duration_s=duration_s,
    )


def requests(trace: Trace) -> list[tuple[str, int, int]]:
    """Requests without their times, in a fixed order."""
    names = [trace.services[index] for index in trace.service]
    return sorted(zip(names, trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True))


def dispersion(trace: Trace, window_s: float) -> float:
    index = count_dispersion(trace.arrival_s, window_s=window_s, duration_s=trace.duration_s)
    assert index is not None
    return index


# --- what is kept ------------------------------------------------------------------------------


@given(trace=traces(), share=st.floats(0.01, 0.99))
@settings(max_examples=80, deadline=None)
def test_slices_make_up_the_trace(trace: Trace, share: float) -> None:
    """Cut anywhere, the two parts have every request once, at its time."""
    cut_s = share * trace.duration_s
    early, late = slice_trace(trace, stop_s=cut_s), slice_trace(trace, start_s=cut_s)
    assert requests(trace) == sorted(requests(early) + requests(late))
    assert early.duration_s + late.duration_s == pytest.approx(trace.duration_s)
    joined = np.concatenate([early.arrival_s, late.arrival_s + cut_s])
    np.testing.assert_allclose(joined, trace.arrival_s, rtol=1e-12, atol=1e-9)


@given(trace=traces(), share=st.just(0.0) | st.floats(0.001, 0.999))
@settings(max_examples=80, deadline=None)
def test_a_turn_and_its_opposite_cancel(trace: Trace, share: float) -> None:
    phase_s = share * trace.duration_s
    turned = rotate(trace, phase_s)
    assert requests(turned) == requests(trace)
    assert len(trace) == 0 or turned.arrival_s.max() < trace.duration_s
    back = rotate(turned, trace.duration_s - phase_s) if phase_s > 0 else turned
    assert requests(back) == requests(trace)
    around = 2 * np.pi / trace.duration_s
    for function in (np.sin, np.cos):  # times on the circle: 0 and the end are one moment
        np.testing.assert_allclose(
            np.sort(function(around * back.arrival_s)),
            np.sort(function(around * trace.arrival_s)),
            atol=1e-6,
        )


@given(first=traces(), second=traces(), share=st.floats(0.01, 1.0))
@settings(max_examples=80, deadline=None)
def test_laying_over_keeps_all_requests_and_thinning_makes_none(
    first: Trace, second: Trace, share: float
) -> None:
    second = second.faster(second.duration_s / first.duration_s)
    second = slice_trace(second, stop_s=min(first.duration_s, second.duration_s))
    first = slice_trace(first, stop_s=second.duration_s)
    both = superpose([first, second])
    assert requests(both) == sorted(requests(first) + requests(second))
    kept = thin(both, share, rng_of(0))
    assert set(requests(kept)) <= set(requests(both))
    assert (kept.duration_s, kept.services) == (both.duration_s, both.services)


@given(trace=traces(), factor=st.floats(0.05, 20.0))
@settings(max_examples=80, deadline=None)
def test_faster_and_slower_cancel(trace: Trace, factor: float) -> None:
    faster = trace.faster(factor)
    assert len(trace) == 0 or faster.arrival_s.max() < faster.duration_s
    np.testing.assert_allclose(faster.faster(1 / factor).arrival_s, trace.arrival_s, rtol=1e-12, atol=1e-12)


@given(trace=traces(), factor=st.floats(0.1, 5.0))
@settings(max_examples=80, deadline=None)
def test_a_multiplied_rate_has_its_whole_copies(trace: Trace, factor: float) -> None:
    many = multiply(trace, factor, rng_of(1))
    whole = int(factor)
    assert whole * len(trace) <= len(many) <= (whole + 1) * len(trace)
    assert many.duration_s == trace.duration_s
    if factor == whole:
        assert requests(many) == sorted(requests(trace) * whole)


def test_services_of_one_name_become_one() -> None:
    chat, both = drawn(Poisson(rate_rps=1.0), 0, name="chat"), drawn(Poisson(rate_rps=1.0), 1, name="search")
    merged = superpose([chat, both, drawn(Poisson(rate_rps=1.0), 2, name="chat")])
    assert merged.services == ("chat", "search")
    assert (merged.service == 1).sum() == len(both)


def test_requests_at_once_keep_the_order_of_the_traces() -> None:
    trace = drawn(Poisson(rate_rps=1.0), 0, duration_s=50.0)
    other = Trace(
        services=("b",),
        arrival_s=trace.arrival_s,
        service=trace.service,
        input_tokens=trace.input_tokens,
        output_tokens=trace.output_tokens,
        duration_s=trace.duration_s,
    )
    assert superpose([trace, other]).service.tolist() == [0, 1] * len(trace)


def test_operations_are_done_in_the_stated_order() -> None:
    trace = drawn(Poisson(rate_rps=5.0), 0)
    found = convert_traces(
        [trace, drawn(Poisson(rate_rps=5.0), 1, name="a")],
        service="a",
        start_s=100.0,
        stop_s=300.0,
        keep=1.0,
        multiply_by=2.0,
        faster_by=4.0,
        rng=rng_of(0),
    )
    assert found.duration_s == 50.0
    assert len(found) / 50.0 == pytest.approx(80.0, rel=0.1)


# --- laws --------------------------------------------------------------------------------------


def interval_pvalue(trace: Trace, rate_rps: float) -> float:
    from scipy.stats import kstest

    return float(kstest(np.diff(trace.arrival_s), "expon", args=(0, 1 / rate_rps)).pvalue)


def test_a_thinned_poisson_process_is_poisson() -> None:
    """Rate × share, exponential intervals, counts with a variance as large as their mean."""
    thinned = thin(drawn(Poisson(rate_rps=20.0), 3), 0.3, rng_of(3, 1))
    assert interval_pvalue(thinned, 6.0) > 1e-4
    index = dispersion(thinned, 5.0)
    assert index == pytest.approx(1.0, abs=4 * np.sqrt(2 / 800))


def test_poisson_processes_laid_over_each_other_are_poisson() -> None:
    merged = superpose([drawn(Poisson(rate_rps=rate), 4, int(rate)) for rate in (1.0, 3.0, 6.0)])
    assert interval_pvalue(merged, 10.0) > 1e-4
    index = dispersion(merged, 5.0)
    assert index == pytest.approx(1.0, abs=4 * np.sqrt(2 / 800))


def test_thinning_brings_the_dispersion_towards_one() -> None:
    """Kept with probability p, I becomes 1 + p (I − 1), for every process."""
    index = []
    for seed in range(60):
        trace = drawn(Gamma(rate_rps=10.0, cv=3.0), 5, seed)
        kept = thin(trace, 0.25, rng_of(6, seed))
        index.append(dispersion(kept, 10.0) - (1 + 0.25 * (dispersion(trace, 10.0) - 1)))
    assert np.mean(index) == pytest.approx(0.0, abs=4 * np.std(index, ddof=1) / np.sqrt(len(index)))


def test_many_regular_streams_laid_over_each_other_look_poisson_nearby() -> None:
    """Palm and Khinchine: intervals become exponential, though counts over long windows stay as regular."""
    streams = [drawn(Gamma(rate_rps=0.1, cv=0.5), 7, seed) for seed in range(200)]
    merged = superpose(streams)
    intervals = np.diff(merged.arrival_s)
    assert intervals.std() / intervals.mean() == pytest.approx(1.0, abs=0.03)
    assert dispersion(merged, 100.0) < 0.8


def test_a_multiplied_poisson_process_has_the_rate() -> None:
    many = multiply(drawn(Poisson(rate_rps=4.0), 8), 2.5, rng_of(8, 1))
    assert len(many) / many.duration_s == pytest.approx(10.0, abs=4 * np.sqrt(4.0 * 6.25 / 4_000))


def test_multiplying_keeps_what_changes_over_minutes() -> None:
    """Copies are turned by less than a minute: a day's pattern stays in its place."""
    trace = drawn(Poisson(rate_rps=4.0), 9, duration_s=2_000.0)
    quiet = slice_trace(trace, stop_s=1_000.0)
    silent = Trace(
        services=quiet.services,
        arrival_s=quiet.arrival_s,
        service=quiet.service,
        input_tokens=quiet.input_tokens,
        output_tokens=quiet.output_tokens,
        duration_s=10_000.0,
    )
    many = multiply(silent, 3.0, rng_of(9, 1))
    assert not ((many.arrival_s > 1_000.0) & (many.arrival_s < 9_940.0)).any()


# --- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start_s", "stop_s"), [(-1.0, 5.0), (5.0, 5.0), (3.0, 2.0), (0.0, 51.0)])
def test_parts_outside_the_trace_are_refused(start_s: float, stop_s: float) -> None:
    trace = drawn(Poisson(rate_rps=1.0), 0, duration_s=50.0)
    with pytest.raises(InputError, match="There is no part from"):
        slice_trace(trace, start_s=start_s, stop_s=stop_s)


def test_impossible_operations_are_refused() -> None:
    trace = drawn(Poisson(rate_rps=1.0), 0, duration_s=50.0)
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="cannot be kept"):
            thin(trace, share, rng_of(0))
    for factor in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="cannot be multiplied"):
            multiply(trace, factor, rng_of(0))
    with pytest.raises(InputError, match="has no moment"):
        rotate(trace, 50.0)
    with pytest.raises(InputError, match=r"Traces of 40 to 50 s differ.*\n\nCut them to one length"):
        superpose([trace, slice_trace(trace, stop_s=40.0)])
    with pytest.raises(InputError, match="No traces"):
        superpose([])


def test_more_requests_than_fit_the_memory_are_refused() -> None:
    with pytest.raises(InputError, match=r"are 2e\+08 requests; at most 1e\+08 are drawn"):
        draw_trace(Poisson(rate_rps=2e5), service="a", lengths=1, duration_s=1e3, rng=rng_of(0))
