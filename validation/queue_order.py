"""Shortest-job-first by predicted length against the published study: prints a table of docs/validation.md.

Run ``python -m validation.queue_order`` in the repository. The study (Qiu et al., Efficient interactive
LLM serving with proxy model-based sequence length prediction, 2024) models a request as 0.1 s + 0.02 s
for each output token, one at a time, with the reply lengths of Vicuna-13B, and reports mean completion
times 30.5–39.6 % lower than first come, first served, at overload, from runs of 50 requests.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from muplan.plan import Interval
from muplan.serving.prediction import interval
from muplan.serving.predictor import ClassPredictor
from muplan.serving.simulator import simulate
from muplan.traces.trace import Trace
from muplan.workload import QueueOrder, Serving
from tests import serving_cases as cases

PREFILL_S, TOKEN_S = 0.1, 0.02
PROBABILITIES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
LENGTHS = (1.0, 41.0, 140.0, 294.0, 397.0, 502.0, 511.0)
"""Published quantiles of 85,482 replies; the ends are the least possible and the cut."""
BOUNDS = (42.0, 141.0, 294.0, 503.0)
NUM_REQUESTS, NUM_REPLICATIONS = 50, 400


def quantile(probability: ArrayLike) -> NDArray[np.float64]:
    """The reply length at a probability, linear between the published quantiles."""
    return np.asarray(np.interp(np.asarray(probability, dtype=np.float64), PROBABILITIES, LENGTHS))


SERVICE = cases.generate_service(
    "chat",
    prefill=lambda *_: PREFILL_S + TOKEN_S,
    decode=lambda *_: TOKEN_S,
    max_batch=1,
    max_context=520,
    mean_input=1.0,
    mean_output=170.0,
)
PREDICTOR = ClassPredictor(
    bounds=BOUNDS, representatives=tuple(float(quantile(p)) for p in (0.125, 0.375, 0.625, 0.87, 0.995))
)


def run_of(load: float, rng: np.random.Generator) -> Trace:
    """A run of Poisson arrivals at a multiple of what can be served."""
    lengths = np.maximum(np.round(quantile(rng.random(NUM_REQUESTS))), 1)
    mean_s = PREFILL_S + TOKEN_S * float(quantile(np.linspace(0, 1, 10_001)).mean())
    arrivals = np.cumsum(rng.exponential(mean_s / load, NUM_REQUESTS))
    return cases.trace(
        [SERVICE],
        arrivals,
        np.zeros(NUM_REQUESTS),
        duration_s=float(arrivals[-1]) + 1e-6,
        input_tokens=np.ones(NUM_REQUESTS),
        output_tokens=lengths,
    )


def gain(order: QueueOrder, load: float) -> Interval:
    """Reduction of the mean completion time against first come, first served."""
    problem = cases.problem([SERVICE])
    group = cases.group("g", [0], ["chat"])
    gains = []
    for child in np.random.default_rng(0).spawn(NUM_REPLICATIONS):
        trace = run_of(load, child)
        means = []
        for each in (QueueOrder.FCFS, order):
            deployment = cases.deployment([group], Serving(queue_order=each))
            records = simulate(problem, deployment, trace, rng=child, predictor=PREDICTOR, num_samples=1)
            means.append(float((records.completion_s - records.arrival_s).mean()))
        gains.append(1.0 - means[1] / means[0])
    return interval(gains)


def main() -> None:
    """Print the table."""
    print("| offered load | oracle (SJF) | predicted (SSJF) |")
    print("|---:|---:|---:|")
    for load in (0.7, 0.9, 1.2, 1.5, 2.0, 5.0):
        cells = []
        for order in (QueueOrder.SJF, QueueOrder.SSJF):
            result = gain(order, load)
            cells.append(f"{result.mean:.1%} ({result.low:.1%} to {result.high:.1%})")
        print(f"| {load} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
