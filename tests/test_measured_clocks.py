"""Profiles measured at clocks that are set: which clocks, what is drawn through them, what is refused.

On an emulated GPU, in emulated time. If these fail, a profile may hold curves over the clock that nobody
measured, or a GPU may stay at a clock that muplan set.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muplan.errors import DeviceError, GpuLostError, PermissionDeniedError
from muplan.hardware.catalog import load_device
from muplan.hardware.device import Device
from muplan.hardware.lease import Lease
from muplan.model.graph import Phase
from muplan.profile import MeasurementSummary, Profile
from muplan.profiling.analytical import make_profile
from muplan.profiling.measured.clock_choice import MOST_CLOCKS, MOST_RESIDUAL, first_clocks, next_clock
from muplan.profiling.measured.clock_curve import along_clocks
from muplan.profiling.measured.clock_plan import plan_clocks
from muplan.profiling.measured.measure import Measured, Place, measure_profile
from muplan.profiling.measured.points import Kept, Point
from muplan.profiling.measured.rules import Rules
from muplan.profiling.measured.trial import measure_load
from muplan.serde import to_json
from tests.emulated_bench import EmulatedLoad, emulated_place
from tests.emulated_gpu import EmulatedGpu, Faults
from tests.tiny_graphs import tiny_decoder, tiny_encoder

AXES: dict[str, Any] = {"batches": (1, 4), "tokens": (4, 64)}


@pytest.fixture(scope="module")
def h200() -> Device:
    return load_device("h200-sxm5-141gb")


@pytest.fixture(scope="module")
def modelled(h200: Device) -> Profile:
    return make_profile(tiny_encoder(), h200, batches=(1, 2, 4), tokens=(4, 16, 64), tensor_parallel=(1,))


def measured(place: Place, device: Device, **options: Any) -> Measured:
    return measure_profile(tiny_encoder(), device, place=place, **{**AXES, **options})


def told(made: Measured) -> MeasurementSummary:
    summary = made.profile.provenance.measurement
    assert summary is not None
    return summary


# --- curves --------------------------------------------------------------------------------------

CLOCKS = (600, 800, 1000, 1200, 1400, 1600)


def test_a_curve_goes_through_what_was_measured() -> None:
    """A power law of the clock is met everywhere, between points and at them; each column by itself."""
    powers = np.outer(CLOCKS, [1.0, 2.0]) ** np.array([-0.7, 1.9])
    drawn = along_clocks(CLOCKS, (0, 2, 5), powers[[0, 2, 5]], np.ones(powers.shape))
    np.testing.assert_allclose(drawn, powers, rtol=1e-12)


def test_beyond_what_was_measured_a_curve_keeps_the_models_proportions() -> None:
    """Nothing is extrapolated; of one measured clock all others are the model's, in proportion."""
    model = np.array(CLOCKS, dtype=float)
    drawn = along_clocks(CLOCKS, (1, 3), np.array([8.0, 24.0]), model)
    np.testing.assert_allclose(drawn[[0, 1, 3, 4, 5]], [6.0, 8.0, 24.0, 28.0, 32.0])
    np.testing.assert_allclose(along_clocks(CLOCKS, (2,), np.array([5.0]), model), model / 200)


def test_a_curve_overshoots_nowhere() -> None:
    """Under a power cap time stops falling: a cubic without that care would dip below it."""
    values = np.array([4.0, 2.0, 2.0, 2.0])
    drawn = along_clocks(CLOCKS, (0, 2, 4, 5), values, np.ones(len(CLOCKS)))
    assert drawn.min() == 2.0
    assert np.all(np.diff(drawn) <= 0)


# --- which clocks --------------------------------------------------------------------------------


def test_the_first_clocks_are_the_best_of_all_choices(modelled: Profile) -> None:
    """Both ends, and of all pairs between them the one whose curves leave least unsaid."""
    chosen = first_clocks(modelled, modelled.clocks_mhz)
    clocks = modelled.clocks_mhz
    assert (chosen[0], chosen[-1], len(chosen)) == (clocks[0], clocks[-1], 4)

    def left(choice: tuple[int, ...]) -> float:
        total = 0.0
        for kind in modelled.cluster_types:
            for values in (np.array(kind.tables[0].latency_s[0]), np.array(kind.tables[0].power_w[0])):
                places = [clocks.index(clock) for clock in choice]
                drawn = along_clocks(clocks, places, values[places], values)
                total += float(np.square(np.log(drawn / values)).sum())
        return total

    others = [
        (clocks[0], low, high, clocks[-1]) for low in clocks[1:-1] for high in clocks[1:-1] if low < high
    ]
    assert left(chosen) == min(map(left, others))


def test_only_clocks_that_the_driver_lists_are_set(modelled: Profile) -> None:
    allowed = modelled.clocks_mhz[2:8]
    assert set(first_clocks(modelled, allowed)) <= set(allowed)
    assert first_clocks(modelled, allowed[:3]) == allowed[:3]


def test_every_gap_is_judged(modelled: Profile) -> None:
    """The widest gap first; one with a clock that is known of is closed, as is one with none to choose."""
    clocks = modelled.clocks_mhz  # 600, 750, 900, 1065, 1215, 1365, 1515, 1680, 1830, 1980
    assert next_clock(clocks, (600, 750, 1215, 1980), ()) == 1515
    assert next_clock(clocks, (600, 750, 1215, 1980), (1515,)) == 900
    assert next_clock(clocks, (600, 750, 1215, 1980), (1515, 1065)) is None
    assert next_clock((600, 1980), (600, 1980), ()) is None


def test_clocks_left_out_of_real_measurements_are_foretold() -> None:
    """Published bandwidth of an A100 over all clocks has a knee: four clocks miss it, more come nearer."""
    from validation.clock_curves import held_out
    from validation.hardware_data import SHARED_DATA, a100_stream_bytes_per_s

    if not (SHARED_DATA / "dvfs").is_dir():
        pytest.skip("needs the published measurements in ../shared/data")
    series, first = a100_stream_bytes_per_s(SHARED_DATA), (510, 810, 1110, 1410)
    fixed = held_out(series, first, is_adaptive=False)
    adaptive = held_out(series, first, is_adaptive=True)
    assert 4 == fixed.num_clocks < adaptive.num_clocks <= MOST_CLOCKS
    assert max(adaptive.errors) < max(fixed.errors)
    assert np.mean(adaptive.errors) < MOST_RESIDUAL


# --- a profile -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sensitivity", [0.1, 0.5, 0.95])
def test_every_clock_is_that_of_the_gpu_itself(h200: Device, sensitivity: float) -> None:
    """Also where it was not measured: whole passes are judged to 3 %, points come within twice that."""
    place, _gpu, bench = emulated_place(h200, sensitivity=sensitivity, sets_clocks=True)
    made = measured(place, h200)
    sane = EmulatedGpu(h200)
    for clock, place_of_clock in zip(made.profile.clocks_mhz, count()):
        sane.lock_clock(clock)
        sane.sleep(1.0)
        for point in {replace(point, clock_mhz=None) for point in made.points}:
            load = EmulatedLoad(sane, bench.base_s(point), sensitivity, lambda: 1.0)
            where = {"tensor_parallel": 1, "batch": point.batch, "tokens": point.tokens}
            latency_s = made.profile.latency_s(point.phase, **where)[point.cluster_type, place_of_clock]
            power_w = made.profile.power_w(point.phase, **where)[point.cluster_type, place_of_clock]
            sane.spend(0.01, core=load.core, memory=load.memory)
            assert latency_s == pytest.approx(load.run_s(), rel=2 * MOST_RESIDUAL)
            assert power_w == pytest.approx(sane.power_w, rel=2 * MOST_RESIDUAL)


def test_a_summary_tells_requested_and_effective_clocks() -> None:
    """On a V100 a lower clock comes than was set: the point is believed, and both are told."""
    v100 = load_device("v100-sxm2-32gb")
    place, _gpu, _ = emulated_place(v100, sensitivity=0.3, sets_clocks=True)
    made = measured(place, v100)
    summary = told(made)
    assert summary.set_clocks_mhz[0] == 810
    assert summary.effective_mhz[0] == round(v100.effective_clock_mhz(810)) < 810
    assert summary.running_clock_mhz is None
    assert {point.clock_mhz for point in made.points} == {*summary.set_clocks_mhz, *summary.judged_clocks_mhz}
    assert all(one.sm_clock_mhz and one.temperature_c for one in made.points.values())
    assert summary.limits == ()
    assert f"{', '.join(map(str, summary.set_clocks_mhz))} MHz, set for it" in (
        made.profile.provenance.description
    )


def test_more_clocks_are_measured_where_the_first_foretell_badly(h200: Device) -> None:
    """A kink that no model knows, at 900 MHz: clocks are added until one that is left out fits."""
    place, _, _ = emulated_place(h200, sensitivity=0.2, sets_clocks=True)
    smooth = told(measured(place, h200))

    class Kinked(EmulatedLoad):
        def run_s(self) -> float:
            slow = max(0.0, 1000 / self._gpu.effective_mhz(core=self.core, memory=self.memory) - 1.0)
            return super().run_s() * (1.0 + 3.0 * slow)

    def load(point: Point) -> EmulatedLoad:
        return Kinked(bench._gpu, bench.base_s(point), 0.2, lambda: 1.0)

    place, _gpu, bench = emulated_place(h200, sensitivity=0.2, sets_clocks=True)
    bench.load = load  # type: ignore[method-assign]
    kinked = told(measured(place, h200))
    assert len(kinked.set_clocks_mhz) > len(smooth.set_clocks_mhz)
    assert smooth.clock_residual is not None
    assert smooth.clock_residual <= MOST_RESIDUAL
    assert kinked.clock_residual is not None
    assert kinked.clock_residual <= MOST_RESIDUAL or len(kinked.set_clocks_mhz) == MOST_CLOCKS


def test_a_clock_is_restored_whatever_ends_a_measurement(h200: Device) -> None:
    """Its end, Ctrl-C, a GPU that refuses: the lease is left in any case."""
    place, gpu, _ = emulated_place(h200)
    with Lease(gpu, None) as lease:
        measured(replace(place, actuator=lease), h200)
        assert gpu.locked_mhz is not None
    assert gpu.locked_mhz is None

    def stop(done: int, _: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    place, gpu, _ = emulated_place(h200)
    with pytest.raises(KeyboardInterrupt), Lease(gpu, None) as lease:
        measured(replace(place, actuator=lease), h200, report=stop)
    assert gpu.locked_mhz is None


def test_a_measurement_at_set_clocks_goes_on_where_it_was(h200: Device, tmp_path: Path) -> None:
    """Broken off at the second clock: nothing is measured twice; the profile is that of an unbroken run."""
    side = tmp_path / "p.points.jsonl"
    unbroken = measured(emulated_place(h200, sets_clocks=True)[0], h200)
    place, _, _ = emulated_place(h200, Faults(lost_after_s=70.0), sets_clocks=True)
    with pytest.raises(GpuLostError):
        measured(place, h200, side_file=side)
    kept = Kept(side, side.read_text(encoding="utf-8").splitlines()[0]).measured
    assert len({point.clock_mhz for point in kept}) == 2
    place, _gpu, _bench = emulated_place(h200, sets_clocks=True)
    resumed = measured(place, h200, side_file=side)
    assert {point: resumed.points[point] for point in kept} == kept
    assert told(resumed).set_clocks_mhz == told(unbroken).set_clocks_mhz
    for one, other in zip(resumed.profile.cluster_types, unbroken.profile.cluster_types, strict=True):
        for left, right in zip(one.tables, other.tables, strict=True):
            np.testing.assert_allclose(left.latency_s, right.latency_s, rtol=1e-6)
            np.testing.assert_allclose(left.power_w, right.power_w, rtol=0.02)  # steps of the counter


def test_interrupted_and_resumed_is_the_same_file(h200: Device, tmp_path: Path) -> None:
    """Where every pass takes equally long each time, the profile of a resumed run has equal bytes."""
    side = tmp_path / "p.points.jsonl"

    def stop(done: int, _: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    unread = [replace(emulated_place(h200)[0], meter=None) for _ in range(3)]
    whole = measured(unread[0], h200).profile
    with pytest.raises(KeyboardInterrupt):
        measured(unread[1], h200, side_file=side, report=stop)
    assert to_json(measured(unread[2], h200, side_file=side).profile) == to_json(whole)


# --- what is refused ------------------------------------------------------------------------------


def test_a_clock_that_is_not_reached_is_told_and_left_out(h200: Device) -> None:
    """The GPU comes to 1,400 MHz at most, and does not say why: what ran there is not sold as 1,980."""
    place, gpu, _ = emulated_place(h200, Faults(ceiling_mhz=1400.0), sets_clocks=True)
    with pytest.raises(
        DeviceError, match=r"runs at 1400 MHz, not at 1980: somebody seems to have set its clock"
    ):
        measured(place, h200)

    class Ceiling(EmulatedGpu):
        """Comes down with the first lock."""

        def lock_clock(self, clock_mhz: int) -> None:
            super().lock_clock(clock_mhz)
            self.faults = Faults(ceiling_mhz=1400.0)
            self._operating.cache_clear()

    gpu = Ceiling(h200)
    place, _, bench = emulated_place(h200)
    bench._gpu = gpu
    made = measured(replace(place, meter=gpu, host=gpu, actuator=gpu), h200)
    summary = told(made)
    assert max(summary.set_clocks_mhz) <= 1400
    assert "1980 MHz: 1400 MHz under load where 1980 MHz were expected" in summary.clocks_refused
    assert 1980 not in {point.clock_mhz for point in made.points}


def test_one_clock_alone_is_no_curve(h200: Device) -> None:
    class Stuck(EmulatedGpu):
        """Takes every clock and changes none after the first."""

        def lock_clock(self, clock_mhz: int) -> None:
            if self.locked_mhz is None:
                super().lock_clock(clock_mhz)

    gpu = Stuck(h200)
    place, _, bench = emulated_place(h200)
    bench._gpu = gpu
    with pytest.raises(
        DeviceError, match=r"came to 1 of the clocks that were set \(.*\n\n.*--apply-clocks out"
    ):
        measured(replace(place, meter=gpu, host=gpu, actuator=gpu), h200)


def test_a_clock_that_somebody_set_is_left_alone(h200: Device) -> None:
    """Restoring would lose it; so nothing is locked."""
    place, gpu, _ = emulated_place(h200, sensitivity=0.2, sets_clocks=True)
    gpu.lock_clock(1215)
    gpu.sleep(1.0)
    with pytest.raises(DeviceError, match=r"1215 MHz, not at 1980.*\n\n.*nvidia-smi --reset-gpu-clocks"):
        measured(place, h200)
    assert gpu.locked_mhz == 1215


def test_without_permission_nothing_is_measured_and_the_remedy_is_told(h200: Device) -> None:
    place, gpu, _bench = emulated_place(h200, Faults(denied=frozenset({"lock_clock"})), sets_clocks=True)
    with pytest.raises(PermissionDeniedError, match=r"lock the clock.*\n\nRun as root.*ZEUSD_SOCK_PATH"):
        measured(place, h200)
    assert gpu.locked_mhz is None


def test_a_point_at_another_clock_than_was_set_is_tried_again_then_refused(h200: Device) -> None:
    """Both its time and its energy; under the power cap it is believed, as the cap is the device's."""
    gpu = EmulatedGpu(h200)
    load = EmulatedLoad(gpu, 1e-3, 0.2, lambda: 1.0)
    made = measure_load(load, meter=gpu, host=gpu, rules=Rules(), with_power=True, expected_mhz=1215.0)
    reason = "1980 MHz under load where 1215 MHz were expected"
    assert (made.tries, made.refused, made.power_refused) == (3, (reason,), (reason,))
    capped = EmulatedLoad(gpu, 1e-3, 1.0, lambda: 1.0)
    made = measure_load(capped, meter=gpu, host=gpu, rules=Rules(), with_power=True, expected_mhz=1980.0)
    assert (made.tries, made.refused, made.power_refused) == (1, (), ())
    assert made.sm_clock_mhz is not None
    assert made.sm_clock_mhz < 1980
    assert made.limits == ("power cap",)


def test_a_dry_run_says_what_would_be_set_and_what_stands_against_it(
    h200: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clocks are those that the measurement sets first; nothing is set."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.delenv("ZEUSD_SOCK_PATH", raising=False)
    gpu = EmulatedGpu(h200, faults=Faults(others=2))
    plan = plan_clocks(tiny_decoder(), h200, gpu, **AXES)
    assert (plan.way, gpu.locked_mhz) == (None, None)
    assert [text.split(":")[0] for text in plan.objections] == [
        "This process may not change a GPU's clock",
        "emulated h200-sxm5-141gb is in use by 2 other processes. Wait until they end (nvidia-smi lists"
        " them), or measure beside them",
    ]
    place, _, _ = emulated_place(h200, sets_clocks=True)
    made = measure_profile(tiny_decoder(), h200, place=place, **AXES)
    assert set(plan.clocks_mhz) <= set(told(made).set_clocks_mhz)
    assert made.profile.grid(Phase.DECODE).batches == (1, 4)
