"""What load one process of ``muplan execute --backend http`` offers in time.

Run ``python -m benchmarks.http_client`` in the repository. The tests' server answers from a process of its
own: 50 ms to the first token, 10 ms to each of 19 more. Requests come at equal intervals.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np

from muplan.endpoints import Endpoint
from muplan.serving.case import make_case
from muplan.serving.http.client import Timing
from muplan.serving.http.driver import Driver
from muplan.serving.http.router import Router
from muplan.serving.http.target import Target
from muplan.workload import Routing
from tests import serving_cases as cases
from tests.openai_server import OpenAiServer

NUM_TOKENS, PREFILL_S, TOKEN_S = 20, 0.05, 0.01
RATES_RPS = (25, 50, 100, 200, 400)
DURATION_S = 8.0


class Load(NamedTuple):
    """What was seen at a rate: processor time of the client a request, lag, and what was answered when."""

    cpu_s: float
    lag_p99_s: float
    answered: float
    ttft_p50_s: float
    gap_p50_s: float


def main() -> None:
    """Print the table, or serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help="be the server")
    if parser.parse_args().serve:
        serve()
        return
    print("| requests/s | tokens/s | CPU a request | send lag p99 | answered | TTFT p50 | ITL p50 |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for rate_rps in RATES_RPS:
        seen = measured(float(rate_rps))
        print(
            f"| {rate_rps} | {rate_rps * NUM_TOKENS:,} | {1e3 * seen.cpu_s:.2f} ms"
            f" | {1e3 * seen.lag_p99_s:.1f} ms | {seen.answered:.0%} | {1e3 * seen.ttft_p50_s:.1f} ms"
            f" | {1e3 * seen.gap_p50_s:.1f} ms |",
            flush=True,
        )


def serve() -> None:
    """Serve until the other end of stdin is closed; says where on stdout."""
    with OpenAiServer(prefill_s=PREFILL_S, token_s=TOKEN_S) as server:
        print(server.url, flush=True)
        sys.stdin.read()


def measured(rate_rps: float) -> Load:
    """Drive a new server at a rate."""
    command = [sys.executable, "-m", "benchmarks.http_client", "--serve"]
    with subprocess.Popen(  # noqa: S603 - this module
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        if server.stdin is None or server.stdout is None:
            raise RuntimeError("no pipes to the server")
        driver = driver_for(server.stdout.readline().strip(), rate_rps)
        begin_s = time.process_time()
        outcomes = driver.run().outcomes
        cpu_s = time.process_time() - begin_s
        server.stdin.close()
    arrival_s = driver.case.trace.arrival_s
    lags_s = [one.sent_s - at_s for one, at_s in zip(outcomes, arrival_s, strict=True) if one is not None]
    answers = [one for one in outcomes if isinstance(one, Timing)]
    return Load(
        cpu_s=cpu_s / len(outcomes),
        lag_p99_s=float(np.quantile(lags_s, 0.99)),
        answered=len(answers) / len(outcomes),
        ttft_p50_s=float(np.median([one.first_token_s - one.sent_s for one in answers])),
        gap_p50_s=float(np.median(np.concatenate([np.asarray(one.gaps_s) for one in answers]))),
    )


def driver_for(url: str, rate_rps: float) -> Driver:
    """A driver of one server."""
    service = cases.generate_service(
        "chat", prefill=lambda *_: PREFILL_S, decode=lambda *_: TOKEN_S, max_batch=8, max_context=64,
        mean_input=8.0, mean_output=float(NUM_TOKENS),
    )  # fmt: skip
    deployment = cases.deployment([cases.group("g", [0], ["chat"], max_batch=8)])
    count = math.ceil(rate_rps * DURATION_S)
    trace = cases.trace(
        [service], np.arange(count) / rate_rps, [0] * count, duration_s=DURATION_S,
        input_tokens=[8] * count, output_tokens=[NUM_TOKENS] * count,
    )  # fmt: skip
    case = make_case(
        cases.problem([service]), deployment, trace, warm_up_s=0.0, cool_down_s=0.0, controller=None,
        num_samples=1,
    )  # fmt: skip
    endpoint = Endpoint(group="g", service="chat", url=url, model="tiny")
    targets = (Target(group=0, service=0, share=1.0, generates=True, endpoint=endpoint, headers={}),)
    router = Router(targets, Routing.ROUND_ROBIN, seed=0)
    return Driver(case=case, targets=targets, router=router, timeout_s=30.0, seed=0)


if __name__ == "__main__":
    main()
