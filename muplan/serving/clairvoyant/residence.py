"""How long requests can be present in a generate group, and so how large its batch can be; compiled.

A group never waits while it has work. So a request's stay is bounded by the slowest clocks: the iteration
under way when it comes, the prompts before it, its own decode iterations, and the prompts that come
between them. The iterations are the longer the more requests are present, so stays and batch are a fixed
point; the least one is reached from below.
"""

from __future__ import annotations

import numpy as np

from muplan.serving.compiled import allocating, compiled
from muplan.serving.layout import Floats, Integers

MOST_ROUNDS = 200


@allocating
def longest_stays(
    arrival_s: Floats,
    prefill_s: Floats,
    input_tokens: Integers,
    output_tokens: Integers,
    iteration_s: Floats,
    per_token_s: float,
    max_batch: int,
    budget: int,
    kv_tokens: int,
    width_s: float,
    num_slots: int,
) -> tuple[Floats, Floats, bool]:
    """The latest first token and the latest end of every request that any clocks can bring.

    Parameters
    ----------
    arrival_s, prefill_s, input_tokens, output_tokens
        Of the requests of one group, first come, first served; the prefill at the slowest clocks.
    iteration_s
        Time of a decode iteration by batch at the slowest clocks, without contexts; ascending.
    per_token_s
        What each token attended to adds.
    max_batch, budget, kv_tokens
        Limits of the group: sequences, prompt tokens of an iteration, tokens held.
    width_s, num_slots
        Parts of time over which presence is counted.

    Returns
    -------
    first_s, end_s, holds
        Not ``holds`` where requests may have to wait for memory or a place in the batch: then nothing is
        known.
    """
    count = len(arrival_s)
    first_s, end_s = np.zeros(count), np.zeros(count)
    pace_s = np.full(num_slots, iteration_s[0])
    for _ in range(MOST_ROUNDS):
        before_s = -np.inf
        is_settled = True
        for number in range(count):
            here = min(int(arrival_s[number] / width_s), num_slots - 1)
            under_way_s = pace_s[here]
            if here > 0:
                under_way_s = max(under_way_s, pace_s[here - 1])
            start_s = max(arrival_s[number] + under_way_s, before_s)
            before_s = start_s + prefill_s[number]
            first_s[number] = max(
                first_s[number],
                _packed_end_s(number, start_s, arrival_s, prefill_s, input_tokens, budget),
            )
            slowest_s = 0.0
            last = min(int(max(end_s[number], first_s[number]) / width_s), num_slots - 1)
            for slot in range(max(here - 1, 0), last + 1):
                slowest_s = max(slowest_s, pace_s[slot])
            at_s = before_s + (output_tokens[number] - 1) * slowest_s
            later = number + 1
            while later < count and arrival_s[later] <= at_s:
                at_s += prefill_s[later]
                later += 1
            if at_s > end_s[number] * (1.0 + 1e-12):
                end_s[number] = at_s
                is_settled = False
        if is_settled:
            return first_s, end_s, True
        present, tokens = np.zeros(num_slots + 1), np.zeros(num_slots + 1)
        for number in range(count):
            begin = min(int(arrival_s[number] / width_s), num_slots - 1)
            until = min(int(end_s[number] / width_s), num_slots - 1) + 1
            own = input_tokens[number] + output_tokens[number]
            present[begin] += 1.0
            present[until] -= 1.0
            tokens[begin] += own
            tokens[until] -= own
        now, held = 0.0, 0.0
        for slot in range(num_slots):
            now += present[slot]
            held += tokens[slot]
            if now > max_batch or held > kv_tokens:
                return first_s, end_s, False
            if now > 0:
                pace_s[slot] = max(pace_s[slot], iteration_s[int(now) - 1] + per_token_s * held)
    return first_s, end_s, False


@compiled
def _packed_end_s(
    number: int, start_s: float, arrival_s: Floats, prefill_s: Floats, input_tokens: Integers, budget: int
) -> float:
    """The latest end of an iteration that prefills a request from ``start_s`` on: others may share it."""
    end_s, tokens, other = start_s + prefill_s[number], input_tokens[number], number + 1
    while other < len(arrival_s) and arrival_s[other] <= start_s:
        tokens += input_tokens[other]
        if tokens > budget:
            break
        end_s += prefill_s[other]
        other += 1
    return float(end_s)
