"""The compiled simulator of generate groups against a slow one that takes one iteration at a time.

If these fail, the latencies and energies of LLM services are wrong, and with them their plans.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from muplan.errors import InputError
from muplan.hardware.catalog import load_device
from muplan.model.catalog import load_model
from muplan.plan import Deployment, Group, Replica, Stage
from muplan.problem.problem import Limits, Problem, ResolvedService
from muplan.profile import Phase
from muplan.profiling.analytical import make_profile
from muplan.serving.generate_tables import PREFILL_TOKENS, generate_group, kv_capacity_tokens
from muplan.serving.metrics import measure
from muplan.serving.predictor import CONFUSION, PREDICTION_LATENCY_S, ClassPredictor
from muplan.serving.records import Records
from muplan.serving.simulator import simulate
from muplan.serving.token_intervals import ERROR, quantiles_s
from muplan.traces.trace import Trace
from muplan.workload import CONTROL_POLICIES, Batching, Controller, QueueOrder, Routing, Serving
from tests import serving_cases as cases
from tests.reference_clocks import Levels, PredictiveControl, Watched
from tests.reference_generate import Control, Engine, ReferenceGenerate, Sequence

RNG = np.random.default_rng
ROUTINGS = (Routing.SHORTEST_EXPECTED_COMPLETION, Routing.ROUND_ROBIN, Routing.POWER_OF_TWO)
MAX_BATCH, MAX_CONTEXT = 6, 400
PREFILL_A_S, PREFILL_B_S = 0.004, 0.0002
DECODE_A_S, DECODE_B_S, DECODE_C_S = 0.010, 0.0005, 0.000_003


def prefill_s(clock: int, batch: int, tokens: int) -> float:
    """Linear in the tokens of the batch, slower at a lower clock."""
    return (PREFILL_A_S + PREFILL_B_S * batch * tokens) * 1530 / clock


def decode_s(clock: int, batch: int, context: int) -> float:
    """Linear in batch and in the tokens attended to; half of it follows the clock."""
    return (DECODE_A_S + DECODE_B_S * batch + DECODE_C_S * batch * context) * (0.5 + 0.5 * 1530 / clock)


def service(
    *,
    num_clusters: int = 1,
    kv_tokens: int | None = None,
    limits: Limits | None = None,
    max_batch: int = MAX_BATCH,
) -> ResolvedService:
    return cases.generate_service(
        "chat",
        prefill=prefill_s,
        decode=decode_s,
        max_batch=max_batch,
        max_context=MAX_CONTEXT,
        mean_input=100.0,
        mean_output=60.0,
        num_clusters=num_clusters,
        kv_tokens=kv_tokens,
        limits=limits,
    )


def random_trace(
    rng: np.random.Generator, one: ResolvedService, *, rate_rps: float, duration_s: float
) -> Trace:
    arrivals = np.cumsum(rng.exponential(1 / rate_rps, 2000))
    arrivals = arrivals[arrivals < duration_s]
    arrivals[1::7] = arrivals[: len(arrivals[1::7]) * 7 : 7]  # some arrive together
    count = len(arrivals)
    return cases.trace(
        [one],
        np.sort(arrivals),
        np.zeros(count),
        duration_s=duration_s,
        input_tokens=rng.integers(1, 200, count),
        output_tokens=np.minimum(rng.geometric(1 / 60, count), 199),
    )


def run(problem: Problem, deployment: Deployment, trace: Trace) -> Records:
    return simulate(problem, deployment, trace, rng=RNG(0))


def reference_of(records: Records, engine: Engine, serving: Serving, num_engines: int) -> ReferenceGenerate:
    """The slow simulator on the same requests and the same routes."""
    sequences = [
        Sequence(
            number=number,
            arrival_s=float(records.arrival_s[number]),
            queued_s=float(records.arrival_s[number]),
            input_tokens=int(records.input_tokens[number]),
            output_tokens=int(records.output_tokens[number]),
            work=float(records.output_tokens[number]),
        )
        for number in range(len(records))
    ]
    return ReferenceGenerate(
        [deepcopy(engine) for _ in range(num_engines)],
        sequences,
        serving=serving,
        route=lambda number: int(records.group[number]),
    )


def linear_decode_s(clock: int, batch: int, context: float) -> float:
    """`decode_s` of a batch over its whole context."""
    alone_s = decode_s(clock, 1, 0)
    per_sequence_s, per_token_s = alone_s - decode_s(clock, 0, 0), decode_s(clock, 1, 1) - alone_s
    return alone_s + per_sequence_s * (batch - 1) + per_token_s * context


def chunk_s(clock: int, parts: list[tuple[int, int]], batch: int, context: int) -> float:
    """An iteration with chunks: all tokens as a prefill, no faster than decoding, and attention."""
    tokens = sum(end - begin for begin, end in parts) + batch
    base_s = prefill_s(clock, 1, tokens)
    if batch > 0:
        base_s = max(base_s, linear_decode_s(clock, batch, 0))
    return base_s + linear_decode_s(clock, 1, context) - linear_decode_s(clock, 1, 0)


def prompt_weight(clock: int, max_batch: int) -> float:
    """Work of a prompt token in output tokens of a full batch, of the mean prompt and reply."""
    token_s = linear_decode_s(clock, max_batch, max_batch * 130) / max_batch
    return prefill_s(clock, 1, 100) / 100 / token_s


def random_serving(rng: np.random.Generator, controller: Controller) -> Serving:
    """Orders, bounds on waits, batching and prefills of every kind."""
    order = QueueOrder(rng.choice(["fcfs", "sjf", "srpt"]))
    kind = str(rng.choice(["whole", "chunks", "dynamic"]))
    if kind == "dynamic" and order is QueueOrder.SRPT:
        kind = "whole"
    return Serving(
        queue_order=order,
        wait_cap="none" if rng.random() < 0.3 else float(rng.uniform(1.05, 2.0)),
        max_preemptions=int(rng.integers(0, 3)),
        preemption_gain=float(rng.uniform(1.0, 2.0)),
        batching=Batching.DYNAMIC if kind == "dynamic" else Batching.CONTINUOUS,
        prefill_chunk_tokens=int(rng.integers(16, 200)) if kind == "chunks" else None,
        batch_timeout_s=float(rng.choice([0.0, 0.3])) if kind == "dynamic" else 0.0,
        controller=controller,
    )


class Oracle:
    """Says the true length, and takes no time for it."""

    latency_s = 0.0

    def predict(self, output_tokens: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:  # noqa: ARG002
        return output_tokens.astype(np.float64)


@pytest.mark.parametrize("seed", range(28))
def test_equals_the_slow_simulator(seed: int) -> None:
    """Starts, first tokens, completions, preemptions, clock changes and busy time, iteration by iteration."""
    rng = RNG(seed)
    num_groups = int(rng.integers(1, 3))
    kv_tokens = None if rng.random() < 0.3 else int(rng.integers(450, 900))
    limits = Limits(
        latency_s=math.inf, ttft_s=float(rng.uniform(0.05, 1)), tpot_s=float(rng.uniform(0.012, 0.05))
    )
    one = service(kv_tokens=kv_tokens, limits=limits)
    problem = cases.problem([one])
    clock = int(rng.choice(cases.CLOCKS_MHZ))
    groups = [
        cases.group(f"g{index}", [index], ["chat"], clocks_mhz=[clock], max_batch=MAX_BATCH)
        for index in range(num_groups)
    ]
    trace = random_trace(rng, one, rate_rps=float(rng.uniform(1, 6)) * num_groups, duration_s=30.0)
    policy = CONTROL_POLICIES[seed % 4]
    controller = Controller(policy=policy, window_s=1.3, decrease_mhz=100.0, tick_s=0.3, dwell_s=1.0)
    serving = random_serving(rng, controller)
    if policy in ("slack", "forecast"):  # whose predictions are of continuous batches, prefilled at once
        serving = serving.model_copy(
            update={"batching": Batching.CONTINUOUS, "prefill_chunk_tokens": None, "batch_timeout_s": 0.0}
        )
    serving = serving.model_copy(update={"routing": ROUTINGS[seed % len(ROUTINGS)]})
    deployment = cases.deployment(groups, serving)
    records = simulate(problem, deployment, trace, rng=RNG(0), predictor=Oracle(), detailed=True)
    tables = generate_group(problem, groups[0], serving.batching)
    engine = Engine(
        max_batch=tables.max_batch,
        kv_tokens=tables.kv_tokens,
        prefill_budget=tables.prefill_budget,
        prefill_s=lambda clock, tokens: prefill_s(clock, 1, sum(tokens)),
        decode_s=linear_decode_s,
        chunk_s=chunk_s,
        prompt_weight=prompt_weight(clock, tables.max_batch),
        clock_mhz=clock,
        ttft_limit_s=limits.ttft_s,
        tpot_limit_s=limits.tpot_s,
    )
    if controller.policy == "miad":
        engine.control = Control(
            controller=controller,
            target=one.attainment,
            grid_mhz=cases.CLOCKS_MHZ,
            floor_mhz=clock,
            change_s=problem.devices[cases.POOL].clock_change_s,
            duration_s=30.0,
        )
    if policy in ("slack", "forecast"):
        device = problem.devices[cases.POOL]
        engine.control = PredictiveControl(
            controller=controller,
            watched=Watched(rate_rps=one.rate_rps * groups[0].replicas[0].share, target=one.attainment),
            levels=Levels(floors=[cases.CLOCKS_MHZ.index(clock)], num_clocks=len(cases.CLOCKS_MHZ)),
            grid_mhz=cases.CLOCKS_MHZ,
            change_s=device.clock_change_s,
            duration_s=30.0,
            mean_input=one.input_tokens,
            mean_output=one.output_tokens,
            ttft_limit_s=limits.ttft_s,
            tpot_limit_s=limits.tpot_s,
            watts=lambda clock, batch: 100.0 + clock / 10.0 + batch,
            loaded_w=lambda clock: float(device.loaded_power_w(device.effective_clock_mhz(clock))),
        )
    reference = reference_of(records, engine, serving, num_groups)
    reference.run()
    sequences = reference.sequences
    assert records.batch.tolist() == [sequence.batch for sequence in sequences]
    assert records.num_preemptions.tolist() == [sequence.num_preemptions for sequence in sequences]
    for name in ("start_s", "first_token_s", "completion_s"):
        expected = [getattr(sequence, name) for sequence in sequences]
        np.testing.assert_allclose(getattr(records, name), expected, rtol=0, atol=1e-7)
    check_token_intervals(records, [np.diff(sequence.tokens_s) for sequence in sequences])
    busy_s = sum(
        min(end_s, 30.0) - min(start_s, 30.0)
        for each in reference.engines
        for start_s, end_s in each.iterations
    )
    assert sum(stage.busy_s for stage in records.stages) == pytest.approx(busy_s, rel=1e-9)
    for index, each in enumerate(reference.engines):
        if each.control is not None:
            changes = [
                (change.time_s, change.from_mhz, change.to_mhz)
                for change in records.clock_changes
                if change.group == f"g{index}"
            ]
            # the kernel also decides after the last iteration, which changes no request
            assert changes[: len(each.control.changes)] == each.control.changes


def check_token_intervals(records: Records, by_request: list[NDArray[np.float64]]) -> None:
    """Number and sum of the counted intervals are exact, all quantiles within the stated error."""
    assert records.token_intervals is not None
    counts, intervals = records.token_intervals[0], np.concatenate(by_request)
    assert counts[:-1].sum() == len(intervals)
    assert counts[-1] == pytest.approx(intervals.sum(), rel=1e-9)
    probabilities = (0.0, 0.01, *np.arange(0.05, 1.0, 0.05), 0.99, 0.999, 1.0)
    expected = np.quantile(intervals, probabilities, method="inverted_cdf")
    np.testing.assert_allclose(quantiles_s(counts, probabilities), expected, rtol=ERROR * (1 + 1e-6))


def test_the_cases_reach_memory_limits_and_queues() -> None:
    """The comparison above would be hollow if nothing were ever preempted or kept waiting."""
    one = service(kv_tokens=450)
    trace = random_trace(RNG(1), one, rate_rps=6.0, duration_s=30.0)
    deployment = cases.deployment([cases.group("g", [0], ["chat"], max_batch=MAX_BATCH)])
    records = run(cases.problem([one]), deployment, trace)
    assert records.num_preemptions.sum() > 10
    assert (records.start_s - records.arrival_s).max() > 1.0


@pytest.mark.parametrize("policy", ["fixed", "miad"])
@pytest.mark.parametrize("routing", [Routing.SHORTEST_EXPECTED_COMPLETION, Routing.ROUND_ROBIN])
def test_every_request_once_and_time_adds_up(policy: str, routing: Routing) -> None:
    """Conservation under two-stage pipelines, routing, preemption and clock control."""
    limits = Limits(latency_s=math.inf, ttft_s=0.3, tpot_s=0.04)
    one = service(num_clusters=2, kv_tokens=500, limits=limits)
    problem = cases.problem([one], warm_up_s=5.0)
    controller = Controller(policy="miad" if policy == "miad" else "fixed", window_s=3.0)
    groups = [
        cases.group("a", [0, 1], ["chat"], clocks_mhz=[1200, 1380], max_batch=MAX_BATCH, shares=[0.5]),
        cases.group("b", [3, 4], ["chat"], clocks_mhz=[945, 945], max_batch=4, shares=[0.5]),
    ]
    trace = random_trace(RNG(5), one, rate_rps=5.0, duration_s=40.0)
    deployment = cases.deployment(groups, Serving(controller=controller, routing=routing))
    records = run(problem, deployment, trace)
    assert np.isfinite(records.completion_s).all()
    assert (records.first_token_s > records.start_s).all()
    assert (records.completion_s >= records.first_token_s).all()
    assert set(records.group.tolist()) == {0, 1}
    for stage in records.stages:
        assert stage.busy_s + stage.loaded_s == pytest.approx(35.0, abs=1e-7)
    samples_w = records.samples.busy_w + records.samples.loaded_w
    after = np.arange(len(samples_w)) * records.samples.width_s >= 5.0 - 1e-9
    measured_j = samples_w[after].sum() * records.samples.width_s
    # a run of iterations is spread evenly over the samples that it crosses, so the border may differ a little
    assert records.busy_j + records.loaded_j == pytest.approx(measured_j, rel=2e-3)
    assert bool(records.clock_changes) == (policy == "miad")


def test_energy_of_one_request_by_hand() -> None:
    """Prefill and five decode iterations at known power, the rest loaded and idle."""
    one = service()
    problem = cases.problem([one])
    trace = cases.trace([one], [1.0], [0], duration_s=10.0, input_tokens=[200], output_tokens=[6])
    deployment = cases.deployment([cases.group("g", [0], ["chat"], max_batch=MAX_BATCH)])
    records = run(problem, deployment, trace)
    decode = [decode_s(1530, 1, 201 + step) for step in range(5)]
    busy_s = prefill_s(1530, 1, 200) + sum(decode)
    assert records.first_token_s[0] == pytest.approx(1.0 + prefill_s(1530, 1, 200), rel=1e-9)
    assert records.completion_s[0] == pytest.approx(1.0 + busy_s, rel=1e-9)
    power_w = 100.0 + 1530 / 10.0 + 1
    assert records.busy_j == pytest.approx(power_w * busy_s, rel=1e-9)
    device = problem.devices[cases.POOL]
    loaded_w = float(device.loaded_power_w(device.effective_clock_mhz(1530)))
    assert records.loaded_j == pytest.approx(loaded_w * (10.0 - busy_s), rel=1e-9)


def test_only_one_stage_computes_at_a_time() -> None:
    """Iterations pass the stages one after the other: twice the stages, twice the time, half of it idle."""
    one = service(num_clusters=2)
    problem = cases.problem([one])
    trace = cases.trace([one], [0.0], [0], duration_s=10.0, input_tokens=[200], output_tokens=[50])
    deployment = cases.deployment([cases.group("g", [0, 1], ["chat"], max_batch=MAX_BATCH)])
    records = run(problem, deployment, trace)
    first, second = records.stages
    assert first.busy_s == pytest.approx(second.busy_s)
    device = problem.devices[cases.POOL]
    transfers_s = device.transfer_s(4096.0 * 200, True) + 49 * device.transfer_s(4096.0, True)
    assert records.completion_s[0] == pytest.approx(first.busy_s + second.busy_s + transfers_s, rel=1e-9)


def test_prompts_longer_than_the_mean_cost_what_the_profile_says() -> None:
    """A quadratic prefill: single prompts at the profile's points, and a batch of mean prompts, are exact."""

    def quadratic_s(_: int, batch: int, tokens: int) -> float:
        return 0.001 + batch * (1e-4 * tokens + 1e-6 * tokens**2)

    one = cases.generate_service(
        "chat",
        prefill=quadratic_s,
        decode=decode_s,
        max_batch=2,
        max_context=400,
        mean_input=200.0,
        mean_output=1.0,
    )
    problem = cases.problem([one])
    trace = cases.trace(
        [one],
        [0.0, 1.0, 2.0, 2.0],
        [0] * 4,
        duration_s=10.0,
        input_tokens=[399, 200, 200, 200],
        output_tokens=[1] * 4,
    )
    deployment = cases.deployment([cases.group("g", [0], ["chat"], max_batch=2)])
    took_s = run(problem, deployment, trace)
    took = took_s.completion_s - took_s.arrival_s
    assert took[1] == pytest.approx(quadratic_s(0, 1, 200), rel=1e-9)
    assert took[2] == took[3] == pytest.approx(quadratic_s(0, 2, 200), rel=1e-9)
    assert quadratic_s(0, 1, 399) <= took[0] <= quadratic_s(0, 1, 400)


def test_a_shipped_profile_is_met_at_its_own_points() -> None:
    """The linear form of decode iterations, and of single prefills, loses nothing of a modelled profile."""
    device = load_device("a100-sxm4-80gb")
    shipped = make_profile(load_model("llama-2-7b"), device)
    base = service(max_batch=64)
    one = replace(base, profiles={cases.POOL: shipped}, max_context=4096, input_tokens=1000.0)
    problem = replace(cases.problem([one]), devices={cases.POOL: device})
    group = Group(
        name="g",
        pool=cases.POOL,
        stages=(Stage(gpus=("v100/0/0",), clock_mhz=shipped.max_clock_mhz),),
        replicas=(
            Replica(service="chat", share=1.0, max_batch=64, stage_clusters=(((0, len(shipped.clusters)),),)),
        ),
    )
    tables = generate_group(problem, group)
    for batch, context in ((1, 64), (8, 512), (64, 4096)):
        latency_s = shipped.latency_s(Phase.DECODE, tensor_parallel=1, batch=batch, tokens=context)
        expected = latency_s[shipped.cluster_type_index, -1].sum()
        intercept_s, slope_s = tables.decode[0, -1, batch - 1, :2]
        assert intercept_s + slope_s * batch * context == pytest.approx(expected, rel=1e-6)
    for tokens in (64, 2048):
        latency_s = shipped.latency_s(Phase.PREFILL, tensor_parallel=1, batch=1, tokens=tokens)
        trace = cases.trace([one], [0.0], [0], duration_s=5.0, input_tokens=[tokens], output_tokens=[1])
        took_s = run(problem, cases.deployment([group]), trace).completion_s[0]
        assert took_s == pytest.approx(latency_s[shipped.cluster_type_index, -1].sum(), rel=1e-9)


def test_ttft_and_tpot_both_count() -> None:
    """A request misses when either its first token or its later tokens are late."""
    limits = Limits(latency_s=math.inf, ttft_s=0.05, tpot_s=0.0112)
    one = service(limits=limits)
    trace = cases.trace(
        [one],
        [0.0, 5.0, 10.0],
        [0] * 3,
        duration_s=20.0,
        input_tokens=[50, 190, 180],
        output_tokens=[10, 10, 199],
    )
    deployment = cases.deployment([cases.group("g", [0], ["chat"], max_batch=1)])
    metrics = measure(run(cases.problem([one]), deployment, trace), cases.problem([one])).service("chat")
    assert metrics.num_within == 2
    assert metrics.ttft is not None
    assert metrics.tpot is not None
    assert metrics.tpot.p50_s > DECODE_A_S


def test_speculation_pays_for_its_prediction_and_sees_only_classes() -> None:
    """Under SSJF a request is queued after the prediction; the order follows predicted, not true, lengths."""

    class Liar:
        latency_s = 0.25

        def predict(self, output_tokens: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:  # noqa: ARG002
            return 200.0 - output_tokens.astype(np.float64)  # says that the longest is the shortest

    one = service()
    trace = cases.trace(
        [one], [0.0, 0.01, 0.02], [0] * 3, duration_s=20.0, input_tokens=[10] * 3, output_tokens=[50, 5, 100]
    )
    deployment = cases.deployment(
        [cases.group("g", [0], ["chat"], max_batch=1)],
        Serving(queue_order=QueueOrder.SSJF, wait_cap="none"),
    )
    records = simulate(cases.problem([one]), deployment, trace, rng=RNG(0), predictor=Liar())
    assert records.start_s[0] == pytest.approx(0.25)
    assert records.start_s[2] < records.start_s[1]


def test_the_class_predictor_errs_as_published() -> None:
    """60 % of 85,000 draws are right; every row of the confusion matrix comes back."""
    bounds, stand_ins = (42.0, 141.0, 294.0, 503.0), (20.0, 90.0, 210.0, 390.0, 507.0)
    predictor = ClassPredictor(bounds=bounds, representatives=stand_ins)
    matrix = np.array(CONFUSION)
    truth = np.repeat([10, 100, 200, 400, 510], matrix.sum(axis=1))
    predicted = np.searchsorted(stand_ins, predictor.predict(truth, RNG(0)))
    true_class = np.searchsorted(bounds, truth, side="right")
    assert (predicted == true_class).mean() == pytest.approx(0.60, abs=0.01)
    for row in range(5):
        shares = np.bincount(predicted[true_class == row], minlength=5) / (true_class == row).sum()
        np.testing.assert_allclose(shares, matrix[row] / matrix[row].sum(), atol=0.05 if row == 4 else 0.012)
    assert predictor.latency_s == PREDICTION_LATENCY_S == 0.0078


def test_shortest_job_first_shortens_the_mean_wait() -> None:
    """At overload: oracle ≤ predicted < first come first served, as the theory of priorities demands."""
    one = service(max_batch=MAX_BATCH)
    rng = RNG(2)
    count = 600
    trace = cases.trace(
        [one],
        np.sort(rng.uniform(0, 60, count)),
        np.zeros(count),
        duration_s=60.0,
        input_tokens=rng.integers(1, 100, count),
        output_tokens=np.clip(rng.geometric(1 / 80, count), 1, 299),
    )
    means = {}
    for order in QueueOrder:
        deployment = cases.deployment(
            [cases.group("g", [0], ["chat"], max_batch=MAX_BATCH)], Serving(queue_order=order)
        )
        predictor = ClassPredictor(bounds=(23.0, 55.0, 111.0, 280.0), representatives=(11, 38, 79, 160, 290))
        records = simulate(cases.problem([one]), deployment, trace, rng=RNG(0), predictor=predictor)
        means[order] = (records.completion_s - records.arrival_s).mean()
    assert means[QueueOrder.SJF] < means[QueueOrder.SSJF] < means[QueueOrder.FCFS]


def test_memory_that_cannot_hold_the_longest_request_is_refused() -> None:
    one = service(kv_tokens=300)
    problem = cases.problem([one])
    group = cases.group("g", [0], ["chat"], max_batch=2)
    with pytest.raises(
        InputError, match="has KV memory for 300 tokens; the longest request of 'chat' has 400"
    ):
        kv_capacity_tokens(problem.devices[cases.POOL], group, one)


def test_requests_longer_than_stated_are_refused() -> None:
    one = service()
    trace = cases.trace([one], [0.0], [0], duration_s=1.0, input_tokens=[390], output_tokens=[11])
    deployment = cases.deployment([cases.group("g", [0], ["chat"], max_batch=2)])
    with pytest.raises(InputError, match="up to 401 tokens"):
        run(cases.problem([one]), deployment, trace)


def test_a_generate_service_has_its_group_to_itself() -> None:
    one = service()
    other = cases.forward_service("other", lambda *_: 0.1)
    trace = cases.trace([one], [0.0], [0], duration_s=1.0, input_tokens=[3], output_tokens=[1])
    deployment = cases.deployment([cases.group("g", [0], ["chat", "other"])])
    with pytest.raises(InputError, match="beside another service"):
        run(cases.problem([one, other]), deployment, trace)


def test_the_prefill_budget_holds_back_long_prompts() -> None:
    """Prompts beyond the budget of an iteration wait for the next; one alone may exceed it."""
    one = cases.generate_service(
        "chat",
        prefill=prefill_s,
        decode=decode_s,
        max_batch=4,
        max_context=6000,
        mean_input=500.0,
        mean_output=1.0,
    )
    trace = cases.trace(
        [one],
        [0.0] * 4,
        [0] * 4,
        duration_s=10.0,
        input_tokens=[1500, 500, 1200, 5000],
        output_tokens=[1] * 4,
    )
    deployment = cases.deployment([cases.group("g", [0], ["chat"], max_batch=4)])
    records = run(cases.problem([one]), deployment, trace)
    assert PREFILL_TOKENS == 2048
    starts = records.start_s
    assert starts[0] == starts[1] == 0.0
    assert 0.0 < starts[2] < starts[3]
