"""The roofline and its profile: laws that hold for every model, device and operating point.

If these fail, a plan may be told that a faster clock is slower, or that more work is free.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from muplan.errors import InputError
from muplan.hardware.catalog import device_names, load_device
from muplan.model.catalog import load_model, model_names
from muplan.model.graph import Monomial, Operator, OperatorKind, Phase, Polynomial
from muplan.profile import Profile
from muplan.profiling.analytical import make_profile
from muplan.profiling.roofline import PassGrid, load_of, operating_points, works_of
from muplan.serde import digest, to_json

Floats = NDArray[np.float64]

DEVICE = "v100-sxm2-16gb"
PAIRS = [
    *itertools.product(("bert-1.3b", "llama-2-7b", "resnet-50", "whisper-small"), device_names()),
    *((model, DEVICE) for model in model_names()),
]


def tables(profile: Profile) -> list[tuple[Phase, Floats, Floats]]:
    """Latency and power of every cluster type: [type][degree][clock][batch][tokens]."""
    return [
        (
            grid.phase,
            np.array([kind.tables[index].latency_s for kind in profile.cluster_types]),
            np.array([kind.tables[index].power_w for kind in profile.cluster_types]),
        )
        for index, grid in enumerate(profile.phases)
    ]


@pytest.mark.parametrize(("model", "device_name"), sorted(set(PAIRS)))
def test_laws_of_a_profile(model: str, device_name: str) -> None:
    device = load_device(device_name)
    profile = make_profile(load_model(model), device)
    rounding = 1 + 1e-6
    highest = device.effective_clock_mhz(profile.max_clock_mhz)
    ratios = np.array([highest / device.effective_clock_mhz(clock) for clock in profile.clocks_mhz])
    for phase, latency, power in tables(profile):
        assert (latency > 0).all()
        assert (np.diff(latency, axis=2) <= latency[:, :, :-1] * 1e-6).all(), "a higher clock is slower"
        assert (np.diff(latency, axis=3) >= -latency[:, :, :, :-1] * 1e-6).all(), "a larger batch is faster"
        assert (np.diff(latency, axis=4) >= -latency[..., :-1] * 1e-6).all(), "more tokens are faster"
        slowdown = latency / latency[:, :, -1:]
        assert (slowdown <= ratios[None, None, :, None, None] * rounding).all(), (
            f"sensitivity above 1: {phase}"
        )
        assert (power <= device.power_cap_w * rounding).all()
        per_request = latency / np.array(profile.grid(phase).batches)[:, None]
        assert (np.diff(per_request, axis=3) <= per_request[:, :, :, :-1] * 1e-6).all() or _is_capped(
            power, device.power_cap_w
        ), "batching costs time per request"


def _is_capped(power: Floats, cap_w: float) -> bool:
    return bool((power >= cap_w * (1 - 1e-3)).any())


@pytest.mark.parametrize("model", ["bert-2.6b", "llama-2-70b"])
def test_a_composition_slows_by_the_time_weighted_mean(model: str) -> None:
    """Serial composition: the whole model's sensitivity is the mean of its clusters', weighted by time."""
    profile = make_profile(load_model(model), load_device(DEVICE), batches=[1, 16], tokens=[512])
    for grid in profile.phases:
        latency = profile.latency_s(grid.phase, tensor_parallel=1, batch=1, tokens=512)
        of_clusters = latency[profile.cluster_type_index]
        whole = of_clusters.sum(axis=0)
        ratio = profile.max_clock_mhz / np.array(profile.clocks_mhz[:-1]) - 1
        sensitivity = (whole[:-1] / whole[-1] - 1) / ratio
        curves = profile.sensitivity(grid.phase, batch=1, tokens=512)[profile.cluster_type_index]
        shares = of_clusters[:, -1] / whole[-1]
        assert sensitivity == pytest.approx(shares @ curves, rel=1e-9)


@pytest.mark.parametrize(("model", "device_name"), [("llama-2-7b", DEVICE), ("opt-13b", "a100-sxm4-80gb")])
def test_decode_is_linear_in_batch_times_context(model: str, device_name: str) -> None:
    """a(batch) + b · batch · context: what the simulator's event skipping relies on."""
    profile = make_profile(load_model(model), load_device(device_name), tensor_parallel=[1])
    grid = profile.grid(Phase.DECODE)
    slopes = []
    for batch in (1, 8, 64):
        times = [
            profile.latency_s(Phase.DECODE, tensor_parallel=1, batch=batch, tokens=context)[
                profile.cluster_type_index, -1
            ].sum()
            for context in grid.tokens
        ]
        slope, intercept = np.polyfit(grid.tokens, times, 1)
        assert np.polyval([slope, intercept], grid.tokens) == pytest.approx(np.array(times), rel=1e-4)
        slopes.append(slope / batch)
    assert slopes == pytest.approx([slopes[0]] * 3, rel=1e-3)


def _operator(kind: OperatorKind, flops: float, moved: float) -> Operator:
    def per_sequence(value: float) -> Polynomial:
        return Polynomial(terms=(Monomial(coefficient=value, batch=1),))

    return Operator(
        name="o",
        kind=kind,
        phases=(Phase.FORWARD, Phase.DECODE),
        flops=per_sequence(flops),
        activation_bytes=per_sequence(moved),
        max_shards=8,
    )


@pytest.mark.parametrize("phase", [Phase.FORWARD, Phase.DECODE])
def test_one_operator_by_hand(phase: Phase) -> None:
    """Compute and memory time joined with the phase's exponent, and one launch."""
    device = load_device(DEVICE)
    operator = _operator(OperatorKind.MATMUL, 1e12, 5e9)
    grid = PassGrid(phase=phase, batches=(2,), tokens=(1,))
    works = works_of([(operator, 3)], device, grid, tensor_parallel=4)
    exponent = 1.0 if phase is Phase.DECODE else device.compute.overlap_exponent.value
    clock = np.array(1200.0)
    compute_s = 2e12 / 4 / float(device.matmul_flops_per_s(clock))
    memory_s = 1e10 / 4 / float(device.memory_bandwidth_bytes_per_s(clock))
    expected = 3 * ((compute_s**exponent + memory_s**exponent) ** (1 / exponent) + device.launch_s)
    load = load_of(works, device, clock, overlap_exponent=exponent)
    assert load.latency_s[0, 0] == pytest.approx(expected, rel=1e-12)


def test_activities_are_those_of_the_bottleneck() -> None:
    device = load_device(DEVICE)
    grid = PassGrid(phase=Phase.FORWARD, batches=(1,), tokens=(1,))
    clock = np.array(1200.0)

    def load(operator: Operator) -> tuple[float, float]:
        one = load_of(
            works_of([(operator, 1)], device, grid, tensor_parallel=1), device, clock, overlap_exponent=4.0
        )
        return float(one.core_activity[0, 0]), float(one.memory_activity[0, 0])

    assert load(_operator(OperatorKind.MATMUL, 1e15, 0)) == pytest.approx(
        (device.matmul_core_activity, 0.0), abs=1e-4
    )
    assert load(_operator(OperatorKind.NORM, 0, 1e13)) == pytest.approx(
        (device.memory_core_activity, 1.0), abs=1e-4
    )


def test_the_power_cap_holds_at_the_highest_possible_clock() -> None:
    """A long matmul at the highest clock is throttled to where its power is the cap, and no lower."""
    device = load_device(DEVICE)
    grid = PassGrid(phase=Phase.FORWARD, batches=(1,), tokens=(1,))
    works = works_of([(_operator(OperatorKind.MATMUL, 1e15, 1e12), 1)], device, grid, tensor_parallel=1)
    points = operating_points(works, device, [810, device.max_clock_mhz], Phase.FORWARD)
    assert points.effective_clock_mhz[0, 0, 0] == device.effective_clock_mhz(810)
    throttled = points.effective_clock_mhz[1, 0, 0]
    assert throttled < device.effective_clock_mhz(device.max_clock_mhz)
    assert points.power_w[1, 0, 0] == pytest.approx(device.power_cap_w, rel=1e-3)


def test_tensor_parallelism_pays_for_its_all_reduces() -> None:
    """Two GPUs are faster than one and slower than half of it."""
    profile = make_profile(load_model("bert-6.7b"), load_device(DEVICE), batches=[1], tokens=[2048])
    times = {
        degree: profile.latency_s(Phase.FORWARD, tensor_parallel=degree, batch=1, tokens=2048)[
            profile.cluster_type_index, -1
        ].sum()
        for degree in profile.tensor_parallel
    }
    assert times[1] > times[2] > times[4] > times[8]
    assert all(times[degree] > times[1] / degree for degree in (2, 4, 8))


def test_weights_and_cache_of_the_clusters_add_up() -> None:
    for name in ("llama-2-70b", "bert-1.3b", "t5-large"):
        graph = load_model(name)
        profile = make_profile(graph, load_device(DEVICE), batches=[1], tokens=[128])
        kinds = [profile.cluster_types[index] for index in profile.cluster_type_index]
        assert sum(kind.weight_bytes_per_gpu[0] for kind in kinds) == graph.weight_bytes
        assert sum(kind.kv_bytes_per_token_per_gpu[0] for kind in kinds) == graph.kv_bytes_per_token
        assert sum(kind.weight_bytes_per_gpu[1] for kind in kinds) >= graph.weight_bytes / 2


def test_same_inputs_same_bytes() -> None:
    first, second = (make_profile(load_model("opt-1.3b"), load_device(DEVICE)) for _ in range(2))
    assert to_json(first) == to_json(second)
    assert first.provenance.model_digest == digest(load_model("opt-1.3b"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clocks_mhz": [1530]}, "needs two clocks or more"),
        ({"clocks_mhz": [400, 1530]}, "lies outside the usable clocks"),
        ({"tensor_parallel": [3]}, "cannot be divided over 3 GPUs"),
        ({"tokens": [1024]}, "takes 1 to 512 tokens, not 1024"),
        ({"batches": [0]}, "batch sizes 0 are impossible"),
    ],
)
def test_impossible_grids_are_refused(options: dict[str, list[int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_profile(load_model("bert-base"), load_device(DEVICE), **options)


def test_chosen_clocks_are_snapped_to_the_list() -> None:
    profile = make_profile(load_model("bert-base"), load_device(DEVICE), clocks_mhz=[1000, 1200], batches=[1])
    assert profile.clocks_mhz == (997, 1200, 1530) or set(profile.clocks_mhz) <= set(
        load_device(DEVICE).usable_clocks_mhz
    )


def test_models_with_fixed_tokens_have_one_pass_length() -> None:
    assert make_profile(load_model("vit-large"), load_device(DEVICE)).phases[0].tokens == (197,)
    whisper = make_profile(load_model("whisper-small"), load_device(DEVICE))
    assert whisper.grid(Phase.PREFILL).tokens == (1500,)
    assert whisper.grid(Phase.DECODE).tokens == (1500, 1724, 1948)
    with pytest.raises(InputError, match="always has 197 tokens"):
        make_profile(load_model("vit-large"), load_device(DEVICE), tokens=[100])
