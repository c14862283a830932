"""Controllers of clocks: laws of what they learn, when they move, and the command that compares them.

If these fail, clocks oscillate, a price of misses drifts, or a controller is praised for targets it missed.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muplan.cli.options import Controllable, parse_names
from muplan.control_comparison import ControlComparison
from muplan.errors import InputError
from muplan.serde import read_document
from muplan.serving.clock_policies import (
    LEARNING,
    LEAST_PRICE,
    MOST_PRICE,
    late_share,
    learned_price,
    moved_level,
    smoothed_rate,
)
from muplan.serving.controllers import changes_per_minute
from muplan.serving.metrics import Metrics, measure
from muplan.serving.records import Records
from muplan.serving.simulator import simulate
from muplan.traces.arrivals import draw_arrivals
from muplan.traces.processes import Piecewise
from muplan.workload import CONTROL_POLICIES, Controller, Serving
from tests import serving_cases as cases
from tests.test_cli import muplan
from tests.test_compare import WORKLOAD


def test_the_command_line_names_every_controller() -> None:
    assert get_args(Controllable) == CONTROL_POLICIES


@settings(deadline=None)
@given(misses=st.lists(st.booleans(), min_size=1, max_size=400), target=st.floats(0.5, 0.999))
def test_a_price_that_stays_within_its_range_allows_no_more_misses_than_aimed_for(
    misses: list[bool], target: float
) -> None:
    """Whatever happens: excess misses are at most the range of the price, in logarithms, over η."""
    price, allowed, clipped = 10.0, 0.0, False
    for number, is_miss in enumerate(misses):
        price = learned_price(price, 1, 0 if is_miss else 1, target, number)
        clipped = clipped or price in (LEAST_PRICE, MOST_PRICE)
        allowed += 0.9 * (1.0 - target)
    if not clipped:
        assert sum(misses) - allowed <= np.log(MOST_PRICE / 10.0) / LEARNING + 1e-9


def test_a_rate_is_forgotten_in_its_time() -> None:
    rate = 8.0
    for _ in range(200):
        rate = smoothed_rate(rate, 0, 0.1)
    assert rate == pytest.approx(8.0 / np.e)


def test_there_is_always_a_doubt_and_less_of_it_at_more_slack() -> None:
    """Without one, a price of misses could rise for ever and change nothing."""
    shares = [late_share(0.4, 0.1, slack, slack) for slack in (-1.0, 0.0, 0.1, 1.0, 100.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] > 0.0
    assert late_share(1.0, 0.1, 100.0, 100.0) == 1.0


def test_up_at_once_down_after_a_dwell() -> None:
    assert moved_level(2, 5, 0.0, 10.0) == 5
    assert moved_level(2, 0, 9.9, 10.0) == 2
    assert moved_level(2, 0, 10.0, 10.0) == 0


def diurnal(policy: str, dwell_s: float = 2.0) -> tuple[Records, Metrics]:
    """One GPU under a rate that rises to what only its highest clocks carry, and falls again."""
    one = cases.forward_service("s", lambda clock, _: 0.05 * 1530 / clock, limit_s=0.3, attainment=0.95)
    problem = cases.problem([one], num_gpus=1)
    process = Piecewise(rates_rps=(2.0, 6.0, 12.0, 6.0), interval_s=60.0)
    arrivals = draw_arrivals(process, duration_s=480.0, rng=np.random.default_rng(3), phase_s=0.0)
    trace = cases.trace([one], arrivals, np.zeros(len(arrivals)), duration_s=480.0)
    controller = Controller(policy=next(one for one in CONTROL_POLICIES if one == policy), dwell_s=dwell_s)
    deployment = cases.deployment([cases.group("g", [0], ["s"], clocks_mhz=[1530])], Serving())
    records = simulate(problem, deployment, trace, rng=np.random.default_rng(0), controller=controller)
    return records, measure(records, problem)


def test_forecast_saves_energy_and_keeps_the_target() -> None:
    """At a rate that changes fixed clocks must be those of its peak; predicted ones need not be."""
    fixed, _ = diurnal("fixed")
    forecast, metrics = diurnal("forecast")
    assert metrics.meets_targets
    assert forecast.energy_j < 0.98 * fixed.energy_j


@pytest.mark.parametrize("dwell_s", [2.0, 20.0])
def test_no_clock_is_lowered_before_its_dwell(dwell_s: float) -> None:
    """So a minute has at most 60 / dwell lowered clocks, and changes are bounded: no oscillation."""
    records, _ = diurnal("forecast", dwell_s)
    changes = records.clock_changes
    assert changes
    for before, change in itertools.pairwise(changes):
        if change.to_mhz < change.from_mhz:
            assert change.time_s - before.time_s >= dwell_s - 1e-9
        assert change.time_s - before.time_s >= 0.1 - 1e-9
    mean, most = changes_per_minute(records, 1)
    assert mean <= most <= (60.0 / dwell_s + 1) * len(cases.CLOCKS_MHZ)


def test_nothing_decides_by_the_future() -> None:
    """Two traces that are equal up to a time have equal commands up to it."""
    one = cases.forward_service("s", lambda clock, _: 0.05 * 1530 / clock, limit_s=0.3)
    problem = cases.problem([one], num_gpus=1)
    arrivals = np.sort(np.random.default_rng(1).uniform(0, 100, 900))
    logs = []
    for kept in (len(arrivals), int(np.searchsorted(arrivals, 50.0))):
        trace = cases.trace([one], arrivals[:kept], np.zeros(kept), duration_s=100.0)
        deployment = cases.deployment([cases.group("g", [0], ["s"])])
        for policy in ("slack", "forecast"):
            controller = Controller(policy="slack" if policy == "slack" else "forecast")
            records = simulate(
                problem, deployment, trace, rng=np.random.default_rng(0), controller=controller
            )
            logs.append([change for change in records.clock_changes if change.time_s <= 50.0])
    assert logs[0] == logs[2]
    assert logs[1] == logs[3]
    assert logs[0] != logs[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a plan."""
    folder = tmp_path_factory.mktemp("controllers")
    (folder / "small.yaml").write_text(WORKLOAD, encoding="utf-8")
    assert muplan("solve", "small.yaml", "--solver", "greedy", folder=folder).returncode == 0
    return folder


def test_compare_controllers_prints_and_writes(folder: Path) -> None:
    """One row a controller; the document says the same and reads back."""
    run = muplan(
        "compare", "plans/small.json", "--controllers", "fixed,slack,forecast", "-o", "c.json", folder=folder
    )
    assert run.returncode in (0, 1), run.stderr
    for name in ("fixed", "slack", "forecast", "over bound", "changes/min"):
        assert name in run.stdout
    document = read_document(folder / "c.json", ControlComparison)
    assert [one.controller for one in document.runs] == ["fixed", "slack", "forecast"]
    assert run.returncode == (0 if document.runs[0].meets_targets else 1)
    for one in document.runs:
        assert not one.meets_targets or one.over_bound >= 1.0


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("fixed,pid", "--controllers 'fixed,pid': 'pid' is no controller."),
        ("fixed,fixed", "--controllers 'fixed,fixed' names fixed more than once."),
    ],
)
def test_compare_refuses_what_is_no_controller(names: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_names(names, "--controllers", CONTROL_POLICIES, "controller")
    assert message in str(caught.value)


def test_execute_takes_every_controller(folder: Path) -> None:
    """A run's document names the controller that it was asked for."""
    run = muplan("execute", "plans/small.json", "--controller", "forecast", "--json", folder=folder)
    assert run.returncode in (0, 1), run.stderr
    assert json.loads(run.stdout)["controller"] == "forecast"
