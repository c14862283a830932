"""Arrival processes against theory: rates, variations, dispersion of counts, scaling.

If these fail, requests come otherwise than the workload states, or the planner takes the wrong burstiness
for them. Bounds are four standard errors: one false alarm in 16,000 for each.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from muplan.traces.arrivals import draw_arrivals, weibull_arrivals
from muplan.traces.processes import (
    ArrivalProcess,
    Gamma,
    MarkovModulated,
    Piecewise,
    Poisson,
    Weibull,
    weibull_shape,
)
from muplan.traces.summary import count_dispersion

BURSTY = MarkovModulated(rates_rps=(5.0, 50.0), sojourns_s=(6.0, 2.0))
THREE = MarkovModulated(rates_rps=(5.0, 50.0, 0.0), sojourns_s=(6.0, 1.0, 3.0))
DAY = Piecewise(rates_rps=(1.0, 5.0, 20.0, 8.0), interval_s=30.0, noise_cv=0.5)
EACH: list[ArrivalProcess] = [
    Poisson(rate_rps=10.0),
    Gamma(rate_rps=10.0, cv=2.0),
    Weibull(rate_rps=10.0, cv=2.0),
    Weibull(rate_rps=10.0, cv=0.5),
    BURSTY,
    THREE,
    DAY,
]


def draw(process: ArrivalProcess, duration_s: float, *key: int) -> NDArray[np.float64]:
    return draw_arrivals(process, duration_s=duration_s, rng=np.random.default_rng(key))


def name_of(process: object) -> str:
    return str(getattr(process, "kind", process))


# --- stationarity ------------------------------------------------------------------------------


@pytest.mark.parametrize("process", EACH, ids=name_of)
def test_every_process_is_stationary_from_the_first_instant(process: ArrivalProcess) -> None:
    """Every part of the period, the first included, expects rate × length arrivals."""
    edges = np.array([0.0, 0.05, 0.2, 1.0, 5.0])
    counts = np.array([np.histogram(draw(process, 5.0, seed, 1), edges)[0] for seed in range(3_000)])
    standard_error = counts.std(axis=0) / np.sqrt(len(counts))
    expected = process.rate_rps * np.diff(edges)
    assert (np.abs(counts.mean(axis=0) - expected) < 4.0 * standard_error).all()


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_first_weibull_arrival_has_the_mean_of_renewal_theory(cv: float) -> None:
    """Mean remainder of an interval: (1 + cv²) / (2 rate)."""
    firsts = np.array(
        [
            weibull_arrivals(1.0, cv, duration_s=2_000.0, rng=np.random.default_rng([seed, 2]))[0]
            for seed in range(3_000)
        ]
    )
    assert firsts.mean() == pytest.approx((1 + cv**2) / 2, abs=4 * firsts.std() / np.sqrt(len(firsts)))


# --- intervals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cv", [0.05, 0.3, 1.0, 2.0, 5.0, 20.0])
def test_weibull_shape_has_the_stated_variation(cv: float) -> None:
    """1 + cv² is the second moment over the squared first: Γ(1 + 2/k) / Γ(1 + 1/k)²."""
    inverse = 1.0 / weibull_shape(cv)
    second = math.exp(math.lgamma(1 + 2 * inverse) - 2 * math.lgamma(1 + inverse))
    assert math.sqrt(second - 1) == pytest.approx(cv, rel=1e-9)


def test_weibull_of_variation_one_is_poisson() -> None:
    assert weibull_shape(1.0) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0])
def test_weibull_intervals_are_weibull(cv: float) -> None:
    """Kolmogorov and Smirnov against the distribution of that shape and mean."""
    from scipy.stats import kstest

    shape = weibull_shape(cv)
    intervals = np.diff(draw(Weibull(rate_rps=4.0, cv=cv), 5_000.0, 3))
    scale = 0.25 / math.gamma(1 + 1 / shape)
    assert kstest(intervals, "weibull_min", args=(shape, 0, scale)).pvalue > 1e-4


@pytest.mark.parametrize(
    "process",
    [Poisson(rate_rps=50.0), Gamma(rate_rps=50.0, cv=2.0), Weibull(rate_rps=50.0, cv=2.0)],
    ids=name_of,
)
def test_renewal_intervals_have_the_stated_rate_and_variation(process: Poisson | Gamma | Weibull) -> None:
    intervals = np.diff(draw(process, 8_000.0, 4))
    parts = np.array_split(intervals, 50)
    for value, stated in (
        ([1.0 / part.mean() for part in parts], process.rate_rps),
        ([part.std() / part.mean() for part in parts], process.cv),
    ):
        # A part's estimate is biased by less than its own error over many requests: 0.5 % is granted.
        error = 4 * np.std(value, ddof=1) / np.sqrt(len(value))
        assert np.mean(value) == pytest.approx(stated, abs=error + 0.005 * stated)


# --- dispersion of counts ----------------------------------------------------------------------


def dispersions(process: ArrivalProcess, window_s: float, *, replications: int = 40) -> NDArray[np.float64]:
    """Estimates from independent periods of 400 windows each."""
    duration_s = 400 * window_s
    return np.array(
        [
            count_dispersion(draw(process, duration_s, seed, 5), window_s=window_s, duration_s=duration_s)
            for seed in range(replications)
        ],
        dtype=float,
    )


@pytest.mark.parametrize("process", [BURSTY, THREE], ids=["two states", "three states"])
@pytest.mark.parametrize("window_s", [0.3, 3.0, 30.0])
def test_markov_modulated_dispersion_is_the_closed_form(process: MarkovModulated, window_s: float) -> None:
    found = dispersions(process, window_s)
    error = 4 * found.std(ddof=1) / np.sqrt(len(found))
    # The variance about the period's own mean is short by the variance of that mean: I(400 windows) / 400.
    short = process.dispersion(400 * window_s) / 400
    assert found.mean() == pytest.approx(process.dispersion(window_s), abs=error + short)


def test_two_states_have_the_textbook_dispersion() -> None:
    """1 + 2 π₁π₂(λ₁ − λ₂)² / (λ r) · (1 − (1 − e^(−rt)) / (rt)), r the sum of the two rates of leaving."""
    (one, two), (first_s, second_s) = BURSTY.rates_rps, BURSTY.sojourns_s
    share, leaving = first_s / (first_s + second_s), 1 / first_s + 1 / second_s
    mean = share * one + (1 - share) * two
    limit = 2 * share * (1 - share) * (one - two) ** 2 / (mean * leaving)
    assert BURSTY.rate_rps == pytest.approx(mean)
    assert BURSTY.dispersion() == pytest.approx(1 + limit, rel=1e-12)
    for window_s in (0.01, 1.0, 100.0):
        turns = leaving * window_s
        expected = 1 + limit * (1 - (1 - math.exp(-turns)) / turns)
        assert BURSTY.dispersion(window_s) == pytest.approx(expected, rel=1e-9)


@given(
    rates=st.lists(st.floats(0.0, 100.0), min_size=2, max_size=6),
    sojourn_s=st.floats(0.1, 100.0),
    window_s=st.floats(0.01, 1e4),
)
@settings(max_examples=60, deadline=None)
def test_dispersion_grows_from_one_to_its_limit(
    rates: list[float], sojourn_s: float, window_s: float
) -> None:
    """A Poisson process looked at closely enough; never less than Poisson, never beyond the limit."""
    rates[0] += 1.0
    sojourns_s = tuple(sojourn_s * (1 + place) for place in range(len(rates)))
    process = MarkovModulated(rates_rps=tuple(rates), sojourns_s=sojourns_s)
    near, far, limit = process.dispersion(window_s), process.dispersion(2 * window_s), process.dispersion()
    assert 1.0 - 1e-9 <= near <= far * (1 + 1e-9) <= limit * (1 + 2e-9)
    equal = MarkovModulated(rates_rps=(7.0,) * len(rates), sojourns_s=sojourns_s)
    assert equal.dispersion() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("window_s", [1.0, 20.0, 75.0])
def test_piecewise_dispersion_is_the_closed_form(window_s: float) -> None:
    """Within an interval of the rate, and across several of them."""
    periods_s = 10 * DAY.lap_s
    found, expected = [], DAY.dispersion(window_s)
    for seed in range(400):
        arrivals = draw(DAY, periods_s, seed, 6)
        counts = np.histogram(arrivals, np.arange(0.0, periods_s, window_s))[0]
        found.append(((counts - DAY.rate_rps * window_s) ** 2).mean() / (DAY.rate_rps * window_s))
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found, ddof=1) / np.sqrt(len(found)))


def test_a_constant_piecewise_rate_is_poisson() -> None:
    steady = Piecewise(rates_rps=(3.0, 3.0, 3.0), interval_s=7.0)
    assert steady.dispersion(50.0) == pytest.approx(1.0, abs=1e-12)
    assert steady.cv == pytest.approx(1.0, abs=1e-12)


def test_whole_laps_without_noise_show_no_swing() -> None:
    """Windows of a lap hold the same rate wherever they begin."""
    quiet = DAY.model_copy(update={"noise_cv": 0.0})
    assert quiet.dispersion(quiet.lap_s) == pytest.approx(1.0, abs=1e-9)
    assert quiet.dispersion(quiet.lap_s / 2) > 10.0


# --- rates over time ---------------------------------------------------------------------------


def test_piecewise_rates_follow_the_list_from_a_phase_on() -> None:
    process = Piecewise(rates_rps=(0.0, 200.0, 50.0), interval_s=10.0, interval_cv=0.1)
    rng = np.random.default_rng(0)
    arrivals = draw_arrivals(process, duration_s=60.0, rng=rng, phase_s=5.0)
    counts = np.histogram(arrivals, [0, 5, 15, 25, 35, 45, 55, 60])[0]
    # Intervals of variation 0.1 make counts that miss their mean by a few at most.
    assert np.abs(counts - [0, 2000, 500, 0, 2000, 500, 0]).max() <= 20


def test_noise_is_drawn_anew_for_every_interval_of_every_lap() -> None:
    process = Piecewise(rates_rps=(1e3, 1e3), interval_s=1.0, noise_cv=0.5)
    arrivals = draw_arrivals(process, duration_s=400.0, rng=np.random.default_rng(0), phase_s=0.0)
    counts = np.histogram(arrivals, np.arange(401))[0].astype(float)
    assert counts.std() / counts.mean() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(400) * 1.2)
    lagged = np.corrcoef(counts[:-2], counts[2:])[0, 1]
    assert abs(lagged) < 4 / math.sqrt(400)


def test_silent_states_have_no_arrivals() -> None:
    """An interrupted Poisson process: gaps as long as the silent state."""
    process = MarkovModulated(rates_rps=(100.0, 0.0), sojourns_s=(1.0, 50.0))
    arrivals = draw(process, 5_000.0, 7)
    gaps = np.diff(arrivals)
    assert (gaps > 10.0).sum() > 20
    assert len(arrivals) / 5_000.0 < 10.0


@given(
    process=st.one_of(
        st.builds(Poisson, rate_rps=st.floats(0.01, 200.0)),
        st.builds(Gamma, rate_rps=st.floats(0.01, 200.0), cv=st.floats(0.05, 20.0)),
        st.builds(Weibull, rate_rps=st.floats(0.01, 200.0), cv=st.floats(0.05, 20.0)),
        st.builds(
            MarkovModulated,
            rates_rps=st.tuples(st.floats(0.0, 200.0), st.floats(0.1, 200.0)),
            sojourns_s=st.tuples(st.floats(0.1, 1e3), st.floats(0.1, 1e3)),
        ),
        st.builds(
            Piecewise,
            rates_rps=st.lists(st.floats(0.1, 200.0), min_size=1, max_size=5).map(tuple),
            interval_s=st.floats(0.1, 1e3),
            noise_cv=st.floats(0.0, 3.0),
            interval_cv=st.floats(0.1, 5.0),
        ),
    ),
    duration_s=st.floats(0.1, 50.0),
    factor=st.floats(0.1, 10.0),
    seed=st.integers(0, 9999),
)
@settings(max_examples=150, deadline=None)
def test_arrivals_ascend_and_a_faster_process_has_the_same_in_less_time(
    process: ArrivalProcess, duration_s: float, factor: float, seed: int
) -> None:
    """Common random numbers: with another demand plans are compared on the same, stretched, arrivals."""
    arrivals = draw(process, duration_s, seed)
    assert (np.diff(arrivals) >= 0).all()
    assert len(arrivals) == 0 or (arrivals[0] >= 0 and arrivals[-1] < duration_s)
    faster = process.faster(factor)
    assert faster.rate_rps == pytest.approx(process.rate_rps * factor)
    again = draw(faster, duration_s / factor, seed)
    # Rounding may move an arrival across the end of the period.
    common = min(len(arrivals), len(again))
    assert max(len(arrivals), len(again)) - common <= 1
    np.testing.assert_allclose(again[:common] * factor, arrivals[:common], rtol=1e-7, atol=1e-7)


def test_another_mean_rate_keeps_the_pattern() -> None:
    scaled = DAY.at_rate(2.0 * DAY.rate_rps)
    assert scaled.rates_rps == pytest.approx([2.0, 10.0, 40.0, 16.0])
    assert scaled.interval_s == DAY.interval_s


# --- what planning takes -----------------------------------------------------------------------


def test_planning_takes_the_dispersion_over_a_second() -> None:
    assert math.sqrt(BURSTY.dispersion(1.0)) == pytest.approx(BURSTY.cv)
    assert math.sqrt(DAY.dispersion(1.0)) == pytest.approx(DAY.cv)
    assert (Poisson(rate_rps=3.0).cv, Gamma(rate_rps=3.0, cv=2.5).cv) == (1.0, 2.5)


def test_planning_takes_at_most_a_variation_of_twenty() -> None:
    assert MarkovModulated(rates_rps=(0.0, 1e4), sojourns_s=(1e3, 1e3)).cv == 20.0
    assert Piecewise(rates_rps=(1e4, 1.0), interval_s=1e3).cv == 20.0


# --- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rates_rps": (1.0, 2.0), "sojourns_s": (1.0, 2.0, 3.0)}, "has 2 rates_rps and 3 sojourns_s"),
        ({"rates_rps": (0.0, 0.0), "sojourns_s": (1.0, 2.0)}, "all rates_rps are 0"),
        ({"rates_rps": (1.0,), "sojourns_s": (1.0,)}, "at least 2 items"),
        ({"rates_rps": (1.0, 2.0), "sojourns_s": (0.0, 2.0)}, "greater than or equal to 0.001"),
    ],
)
def test_impossible_chains_are_refused(content: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MarkovModulated.model_validate(content)


def test_a_silent_day_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least one interval needs arrivals"):
        Piecewise(rates_rps=(0.0, 0.0), interval_s=1.0)


def test_too_few_counts_have_no_dispersion() -> None:
    assert count_dispersion(np.array([0.5]), window_s=1.0, duration_s=1.5) is None
    assert count_dispersion(np.array([]), window_s=1.0, duration_s=5.0) is None
    assert count_dispersion(np.array([5.2]), window_s=1.0, duration_s=5.5) is None
    assert count_dispersion(np.array([0.1, 0.2, 2.5]), window_s=1.0, duration_s=3.5) == pytest.approx(1.0)
