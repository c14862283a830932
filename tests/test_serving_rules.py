"""Rules of serving by what they bring: preemption for shorter replies, dynamic batches, chunks, two choices.

That the kernels follow the rules to the letter is held in test_serving_generate.py and
test_serving_forward.py; if these fail, the rules themselves do not do what they are for.
"""

from __future__ import annotations

import numpy as np
import pytest

from muplan.problem.problem import ResolvedService
from muplan.serving.records import Records
from muplan.serving.routing import drawn_pair
from muplan.serving.simulator import simulate
from muplan.traces.trace import Trace
from muplan.workload import Batching, QueueOrder, Routing, Serving
from tests import serving_cases as cases
from tests.test_serving_generate import Oracle

RNG = np.random.default_rng
PREFILL_S, TOKEN_S = 0.02, 0.01


def service(max_batch: int, *, kv_tokens: int | None = None) -> ResolvedService:
    """Iterations of equal time at every batch; a prompt token takes 0.2 ms."""
    return cases.generate_service(
        "chat",
        prefill=lambda _clock, batch, tokens: PREFILL_S + 0.0002 * batch * tokens,
        decode=lambda *_: TOKEN_S,
        max_batch=max_batch,
        max_context=1000,
        mean_input=100.0,
        mean_output=60.0,
        kv_tokens=kv_tokens,
    )


def trace(one: ResolvedService, requests: list[tuple[float, int, int]]) -> Trace:
    """Requests by arrival, prompt and reply."""
    arrival_s, inputs, outputs = zip(*requests, strict=True)
    return cases.trace(
        [one],
        arrival_s,
        np.zeros(len(requests)),
        duration_s=max(arrival_s) + 1.0,
        input_tokens=inputs,
        output_tokens=outputs,
    )


def served(one: ResolvedService, requests: Trace, *, max_batch: int, serving: Serving) -> Records:
    deployment = cases.deployment([cases.group("g", [0], ["chat"], max_batch=max_batch)], serving)
    return simulate(cases.problem([one]), deployment, requests, rng=RNG(0), predictor=Oracle())


def srpt(max_preemptions: int = 1) -> Serving:
    return Serving(queue_order=QueueOrder.SRPT, wait_cap="none", max_preemptions=max_preemptions)


@pytest.mark.parametrize("preempted", [1, 0])
def test_a_long_reply_gives_way_to_a_short_one(preempted: int) -> None:
    """With one place a short reply that comes meanwhile goes first, where the rules allow; both end."""
    one = service(1)
    records = served(one, trace(one, [(0.0, 10, 500), (1.0, 10, 5)]), max_batch=1, serving=srpt(preempted))
    assert records.num_preemptions.tolist() == [preempted, 0]
    assert (records.completion_s[1] < 1.2) == bool(preempted)
    lost_s = records.completion_s[0] - (0.022 + 499 * TOKEN_S)
    # the short one's time, and a prefill of its tokens so far instead of an iteration for the next
    assert lost_s == pytest.approx(
        0.022 + 4 * TOKEN_S + PREFILL_S + 0.0002 * 109 - TOKEN_S if preempted else 0.0
    )


def test_no_reply_gives_way_for_a_small_gain() -> None:
    """Twice the work of the other, and what is lost, is too little; so is any gain when it was preempted."""
    one = service(1)
    small = trace(one, [(0.0, 10, 100), (0.2, 10, 60)])
    assert served(one, small, max_batch=1, serving=srpt()).num_preemptions.sum() == 0
    again = trace(one, [(0.0, 10, 500), (1.0, 10, 5), (2.0, 10, 5), (3.0, 10, 5)])
    assert served(one, again, max_batch=1, serving=srpt()).num_preemptions.tolist() == [1, 0, 0, 0]
    often = served(one, again, max_batch=1, serving=srpt(max_preemptions=2))
    assert often.num_preemptions.tolist() == [2, 0, 0, 0]


def test_preemption_shortens_the_mean_at_high_load() -> None:
    """Shortest remaining work is best of all orders (Schrage, 1968); its preemptions stay limited."""
    one, rng = service(2), RNG(3)
    lengths = np.clip(rng.geometric(1 / 60, 1500), 1, 800)
    arrivals = np.cumsum(rng.exponential(0.4, 1500))
    requests = trace(one, [(float(at), 5, int(n)) for at, n in zip(arrivals, lengths, strict=True)])
    means = {}
    for order in (QueueOrder.FCFS, QueueOrder.SJF, QueueOrder.SRPT):
        serving = Serving(queue_order=order, wait_cap="none")
        records = served(one, requests, max_batch=2, serving=serving)
        means[order] = (records.completion_s - records.arrival_s).mean()
        assert records.num_preemptions.max() <= 1
    assert means[QueueOrder.SRPT] < means[QueueOrder.SJF] < means[QueueOrder.FCFS]


@pytest.mark.parametrize("order", list(QueueOrder)[:4])
def test_a_dynamic_batch_waits_and_stays_whole_under_every_order(order: QueueOrder) -> None:
    """With two of three places taken it leaves when the first has waited, and all end with the longest."""
    one = service(3)
    serving = Serving(queue_order=order, batching=Batching.DYNAMIC, batch_timeout_s=0.5, wait_cap="none")
    requests = trace(one, [(0.0, 10, 20), (0.2, 10, 50), (0.6, 10, 1), (0.7, 10, 1), (0.8, 10, 1)])
    ready_s = 0.0078 if order is QueueOrder.SSJF else 0.0  # the prediction
    records = served(one, requests, max_batch=3, serving=serving)
    np.testing.assert_allclose(records.start_s[:2], ready_s + 0.5 if ready_s == 0.0 else 0.5)
    end_s = 0.5 + PREFILL_S + 0.0002 * 20 + 49 * TOKEN_S
    np.testing.assert_allclose(records.completion_s[:2], end_s)
    assert records.start_s[2:] == pytest.approx(end_s)  # full by then: three
    alone = served(one, trace(one, [(0.0, 10, 1)] * 3), max_batch=3, serving=serving)
    assert alone.start_s == pytest.approx([0.0] * 3)  # full at once


def test_a_dynamic_batch_sets_memory_aside() -> None:
    """Memory of 2,500 tokens holds two of the longest requests: batches of two, and none is preempted."""
    one = service(8, kv_tokens=2500)
    serving = Serving(batching=Batching.DYNAMIC, batch_timeout_s=9.0)
    requests = trace(one, [(0.0, 500, 500)] * 6)
    records = served(one, requests, max_batch=8, serving=serving)
    assert sorted(np.unique(records.start_s, return_counts=True)[1].tolist()) == [2, 2, 2]
    assert records.num_preemptions.sum() == 0


def test_chunks_spare_those_that_decode() -> None:
    """A prompt of 900 tokens holds up a running reply for a chunk at a time instead of as a whole.

    Its own first token comes later for it, by the decode steps beside its chunks.
    """
    one = service(4)
    requests = trace(one, [(0.0, 10, 200), (0.5, 900, 5)])
    whole = served(one, requests, max_batch=4, serving=Serving())
    chunks = served(one, requests, max_batch=4, serving=Serving(prefill_chunk_tokens=100))
    assert whole.first_token_s[1] < chunks.first_token_s[1]
    # an iteration of 100 tokens and one that decodes takes 40.2 ms, and there are nine of them
    assert chunks.first_token_s[1] - chunks.start_s[1] == pytest.approx(9 * (PREFILL_S + 0.0002 * 101))
    assert chunks.num_preemptions.sum() == 0


def test_one_chunk_for_a_whole_prompt_is_a_prefill() -> None:
    """With nothing else to decode, and chunks as long as prompts, nothing changes."""
    one = service(1)
    requests = trace(one, [(0.0, 300, 20), (0.1, 200, 1), (5.0, 100, 9)])
    whole = served(one, requests, max_batch=1, serving=Serving())
    chunks = served(one, requests, max_batch=1, serving=Serving(prefill_chunk_tokens=500))
    np.testing.assert_allclose(chunks.completion_s, whole.completion_s)
    assert chunks.busy_j == pytest.approx(whole.busy_j)


def test_pairs_are_drawn_evenly() -> None:
    """All pairs of five candidates are as likely, and another seed draws others."""
    count = 20_000
    pairs = [drawn_pair(7, number, 10, 15) for number in range(count)]
    kinds, times = np.unique(pairs, axis=0, return_counts=True)
    assert len(kinds) == 10
    assert (kinds[:, 0] < kinds[:, 1]).all()
    assert kinds.min() == 10
    assert kinds.max() == 14
    assert np.abs(times - count / 10).max() < 5 * np.sqrt(count / 10)
    assert pairs[:50] != [drawn_pair(8, number, 10, 15) for number in range(50)]


def test_two_choices_are_nearly_as_good_as_all() -> None:
    """At load 0.9 on eight groups: far shorter waits than by lot, longer than with a look at all.

    Mitzenmacher, 2001: the second choice brings most of what looking at all of them does.
    """
    one = cases.forward_service("s", lambda *_: 0.1)
    groups = [cases.group(f"g{gpu}", [gpu], ["s"]) for gpu in range(8)]
    arrivals = np.cumsum(RNG(5).exponential(0.1 / 8 / 0.9, 20_000))
    requests = cases.trace([one], arrivals, np.zeros(20_000), duration_s=float(arrivals[-1]) + 1)
    waits_s = {}
    for routing in (Routing.SHORTEST_EXPECTED_COMPLETION, Routing.POWER_OF_TWO):
        deployment = cases.deployment(groups, Serving(routing=routing))
        records = simulate(cases.problem([one]), deployment, requests, rng=RNG(1))
        waits_s[routing] = (records.start_s - records.arrival_s).mean()
        again = simulate(cases.problem([one]), deployment, requests, rng=RNG(1))
        assert (again.completion_s == records.completion_s).all()
    by_lot_s = 0.9 * 0.1 / (2 * 0.1)  # M/D/1 at 0.9, each request to a group drawn at random
    best_s, two_s = waits_s[Routing.SHORTEST_EXPECTED_COMPLETION], waits_s[Routing.POWER_OF_TWO]
    assert best_s < two_s < by_lot_s / 3
