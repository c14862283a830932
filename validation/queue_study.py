"""Shortest job first for language models under published anchors: prints the tables of docs/validation.md.

Run ``python -m validation.queue_study`` in the repository; ``--plot FILE`` draws the map. The study held
against (Qiu et al., Efficient interactive LLM serving with proxy model-based sequence length prediction,
2024) models a reply as 0.1 s + 0.02 s for each output token, with the reply lengths of Vicuna-13B, and
reports mean completion times 30.5–39.6 % lower than first come, first served, at overload, from runs of 50
requests.

A finite trace is served to its end, from empty to empty, and all its requests count. Below capacity that is
the steady state. Beyond capacity the queue grows as long as requests come, so waits grow with the trace, and
ratios of waits do not.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from muplan.plan import Interval
from muplan.problem.problem import ResolvedService
from muplan.serving.prediction import interval
from muplan.serving.predictor import fitted_predictor
from muplan.serving.simulator import Simulator
from muplan.traces.trace import Trace
from muplan.workload import Batching, QueueOrder, Serving
from tests import serving_cases as cases

Floats = NDArray[np.float64]

PREFILL_S, TOKEN_S = 0.1, 0.02
PROBABILITIES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
LENGTHS = (1.0, 41.0, 140.0, 294.0, 397.0, 502.0, 511.0)
"""Published quantiles of 85,482 replies; the ends are the least possible and the cut."""
BOUNDS = (42.0, 141.0, 294.0, 503.0)
PUBLISHED_GAIN = (0.305, 0.396)
BATCH, TIMEOUT_S = 8, 0.5
FULL_BATCH_S = 20.0
LOADS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
CVS = (1.0, 2.0, 4.0)
LEAST_GAIN = 0.01
"""Below it there is nothing of which a part could be kept."""
HELD = 0.9
"""Loads from which the bounds on p99 and on the mean gain are to hold."""


def quantile(probability: ArrayLike) -> Floats:
    """The reply length at a probability, linear between the published quantiles."""
    return np.asarray(np.interp(np.asarray(probability, dtype=np.float64), PROBABILITIES, LENGTHS))


def lengths_of(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Draw reply lengths, tokens."""
    return np.maximum(np.round(quantile(rng.random(count))), 1).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Mode:
    """How replies are batched: the service, the largest batch and the rules, first come, first served.

    A batch takes the time of one request: 0.1 s + 0.02 s for each token of its longest (dynamic), or of each
    iteration (continuous).
    """

    name: str
    max_batch: int
    serving: Serving

    @property
    def service(self) -> ResolvedService:
        """The service, whose iterations take the same time at every batch."""
        return cases.generate_service(
            "chat",
            prefill=lambda *_: PREFILL_S + TOKEN_S,
            decode=lambda *_: TOKEN_S,
            max_batch=self.max_batch,
            max_context=520,
            mean_input=1.0,
            mean_output=170.0,
        )


FCFS = Serving(queue_order=QueueOrder.FCFS)
MODES = (
    Mode("no batching", 1, FCFS),
    Mode("dynamic", BATCH, Serving(batching=Batching.DYNAMIC, batch_timeout_s=TIMEOUT_S)),
    Mode("continuous", BATCH, FCFS),
)
PREDICTOR = fitted_predictor(lengths_of(np.random.default_rng(0), 200_000), BOUNDS)
POLICIES: dict[str, dict[str, object]] = {
    "FCFS": {"queue_order": QueueOrder.FCFS},
    "SJF": {"queue_order": QueueOrder.SJF, "wait_cap": "none"},
    "SJF, capped": {"queue_order": QueueOrder.SJF},
    "SSJF": {"queue_order": QueueOrder.SSJF, "wait_cap": "none"},
    "SSJF, capped": {"queue_order": QueueOrder.SSJF},
}
"""Oracle (SJF) and predicted (SSJF) lengths, without a cap on waits and with the default one."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run: mean and 99th percentile of the time from arrival to completion, and the longest wait."""

    mean_s: float
    p99_s: float
    worst_wait_s: float


def served(mode: Mode, update: dict[str, object], trace: Trace, seed: int) -> Outcome:
    """Serve a trace to its end."""
    records = simulator_of(mode, tuple(update.items())).run(
        trace, rng=np.random.default_rng(seed), predictor=PREDICTOR, num_samples=1
    )
    latency_s = records.completion_s - records.arrival_s
    wait_s = records.start_s - records.arrival_s
    return Outcome(float(latency_s.mean()), float(np.quantile(latency_s, 0.99)), float(wait_s.max()))


@cache
def simulator_of(mode: Mode, update: tuple[tuple[str, object], ...]) -> Simulator:
    """The mode's single group under changed rules."""
    group = cases.group("g", [0], ["chat"], max_batch=mode.max_batch)
    serving = mode.serving.model_copy(update=dict(update))
    return Simulator(cases.problem([mode.service]), cases.deployment([group], serving))


@cache
def capacity_rps(mode: Mode) -> float:
    """Requests per second that a mode completes in the order of arrival, when all wait from the beginning."""
    trace = trace_of(mode, np.zeros(20_000), lengths_of(np.random.default_rng(1), 20_000))
    records = simulator_of(mode, ()).run(trace, rng=np.random.default_rng(0), num_samples=1)
    return len(trace) / float(records.completion_s.max())


def trace_of(mode: Mode, arrival_s: Floats, lengths: NDArray[np.integer]) -> Trace:
    """Requests of one token, and the replies."""
    return cases.trace(
        [mode.service],
        arrival_s,
        np.zeros(len(arrival_s)),
        duration_s=float(arrival_s[-1]) + 1e-6,
        input_tokens=np.ones(len(arrival_s)),
        output_tokens=lengths,
    )


def drawn(mode: Mode, load: float, cv: float, count: int, rng: np.random.Generator) -> Trace:
    """Gamma renewal arrivals at a multiple of the capacity."""
    shape = cv**-2
    gaps_s = rng.gamma(shape, 1.0 / (shape * load * capacity_rps(mode)), count)
    return trace_of(mode, np.cumsum(gaps_s), lengths_of(rng, count))


@dataclass(frozen=True, slots=True)
class Point:
    """One policy at one load: against first come, first served on the same traces, over replications."""

    gain: Interval
    p99: Interval
    worst: Interval
    kept: Interval | None
    """Of a capped policy: the part of the uncapped one's gain that is left."""


def point_of(mode: Mode, load: float, cv: float, count: int, replications: int) -> dict[str, Point]:
    """All policies at one load."""
    runs: list[dict[str, Outcome]] = []
    for seed in range(replications):
        trace = drawn(mode, load, cv, count, np.random.default_rng([seed, round(100 * load), round(cv)]))
        runs.append({name: served(mode, update, trace, seed) for name, update in POLICIES.items()})
    points = {}
    for name in POLICIES:
        if name == "FCFS":
            continue
        free = name.removesuffix(", capped")
        points[name] = Point(
            gain=interval([gain_of(run, name) for run in runs]),
            p99=interval([run[name].p99_s / run["FCFS"].p99_s for run in runs]),
            worst=interval([run[name].worst_wait_s / run["FCFS"].worst_wait_s for run in runs]),
            kept=None
            if free == name
            else interval([gain_of(run, name) / gain_of(run, free) for run in runs]),
        )
    return points


def gain_of(run: dict[str, Outcome], name: str) -> float:
    """Reduction of the mean completion time against first come, first served."""
    return 1.0 - run[name].mean_s / run["FCFS"].mean_s


Map = dict[tuple[str, float, float], dict[str, Point]]
"""Points by mode, variation and load."""


def surveyed(count: int, replications: int) -> Map:
    """The whole map, its points side by side."""
    keys = [(mode, cv, load) for mode in MODES for cv in CVS for load in LOADS]
    for mode in MODES:
        capacity_rps(mode)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        points = pool.map(lambda key: point_of(key[0], key[2], key[1], count, replications), keys)
        return {(mode.name, cv, load): point for (mode, cv, load), point in zip(keys, points, strict=True)}


def print_map(found: Map) -> None:
    """Gains, p99 and worst waits."""
    print(
        "| batching | cv | load | SJF gain | SSJF gain | p99 × | worst × |"
        " capped SSJF gain | kept | p99 × | worst × |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for (mode, cv, load), points in found.items():
        oracle, free, capped = points["SJF"], points["SSJF"], points["SSJF, capped"]
        kept = "–"
        if capped.kept is not None and free.gain.mean > LEAST_GAIN:
            kept = f"{capped.kept.mean:.0%}"
        print(
            f"| {mode} | {cv:g} | {load:g} | {oracle.gain.mean:.1%} | {free.gain.mean:.1%}"
            f" | {free.p99.mean:.2f} | {free.worst.mean:.1f} | {capped.gain.mean:.1%} | {kept}"
            f" | {capped.p99.mean:.2f} | {capped.worst.mean:.1f} |"
        )


def print_bounds(found: Map) -> None:
    """Whether capped orders keep their bounds at high load."""
    print("| batching | order | kept, least | kept, mean | p99 ×, most | p99 ×, mean | worst wait ×, most |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for mode in MODES:
        for name in ("SSJF, capped", "SJF, capped"):
            points = [
                each[name] for (where, _, load), each in found.items() if where == mode.name and load >= HELD
            ]
            kept = [point.kept.mean for point in points if point.kept is not None]
            p99 = [point.p99.mean for point in points]
            print(
                f"| {mode.name} | {name} | {min(kept):.0%} | {np.mean(kept):.0%} | {max(p99):.2f}"
                f" | {np.mean(p99):.2f} | {max(point.worst.mean for point in points):.1f} |"
            )


def print_published(found: Map) -> None:
    """Where the reported range lies: the loads at which predicted lengths gain its ends."""
    print("| batching | cv | load at 30.5 % | load at 39.6 % | highest gain |")
    print("|---|---:|---:|---:|---:|")
    for mode in MODES:
        for cv in CVS:
            gains = [found[mode.name, cv, load]["SSJF"].gain.mean for load in LOADS]
            cells = [crossing(LOADS, gains, level) for level in PUBLISHED_GAIN]
            print(f"| {mode.name} | {cv:g} | {cells[0]} | {cells[1]} | {max(gains):.1%} |")


def crossing(loads: Sequence[float], gains: Sequence[float], level: float) -> str:
    """The load at which gains first reach a level, linear between the points."""
    for index, gain in enumerate(gains):
        if gain >= level:
            if index == 0:
                return f"below {loads[0]:g}"
            part = (level - gains[index - 1]) / (gain - gains[index - 1])
            return f"{loads[index - 1] + part * (loads[index] - loads[index - 1]):.2f}"
    return "not reached"


def print_short_runs(replications: int) -> None:
    """Runs of 50 requests, as the study's, at higher loads as well."""
    print("| offered load | oracle (SJF) | predicted (SSJF) |")
    print("|---:|---:|---:|")
    for load in (0.7, 0.9, 1.2, 1.5, 2.0, 5.0):
        cells = [short_gain(load, POLICIES["FCFS"], POLICIES[name], replications) for name in ("SJF", "SSJF")]
        print(f"| {load} | {percent(cells[0])} | {percent(cells[1])} |")


def short_gain(
    load: float,
    before: dict[str, object],
    after: dict[str, object],
    replications: int,
    *,
    mode: Mode = MODES[0],
    changed: Callable[[Trace], Trace] | None = None,
) -> Interval:
    """Reduction of the mean completion time in runs of 50 requests with Poisson arrivals."""
    gains = []
    for seed in range(replications):
        trace = drawn(mode, load, 1.0, 50, np.random.default_rng(seed))
        trace = changed(trace) if changed is not None else trace
        means = [served(mode, update, trace, seed).mean_s for update in (before, after)]
        gains.append(1.0 - means[1] / means[0])
    return interval(gains)


def print_artefacts(replications: int) -> None:
    """What some faults of the published simulator do to the gain, in its own runs of 50 requests."""
    fcfs, ssjf = POLICIES["FCFS"], POLICIES["SSJF"]
    patient: dict[str, object] = {"queue_order": QueueOrder.FCFS, "batch_timeout_s": FULL_BATCH_S}
    gain = partial(short_gain, replications=replications)
    print("| fault | load | gain with it | gain without |")
    print("|---|---:|---:|---:|")
    for load in (0.7, 0.9):
        faulty, plain = gain(load, fcfs, ssjf, changed=gaps_sorted), gain(load, fcfs, ssjf)
        print(f"| inter-arrival times sorted | {load} | {percent(faulty)} | {percent(plain)} |")
    for load in (0.5, 0.9):
        faulty = gain(load, patient, ssjf, mode=MODES[1])
        plain = gain(load, fcfs, ssjf, mode=MODES[1])
        name = f"FCFS alone waits up to {FULL_BATCH_S:g} s for a full batch"
        print(f"| {name} | {load} | {percent(faulty)} | {percent(plain)} |")


def gaps_sorted(trace: Trace) -> Trace:
    """The trace with its inter-arrival times in ascending order."""
    gaps_s = np.sort(np.diff(trace.arrival_s, prepend=0.0))
    return trace_of(MODES[0], np.cumsum(gaps_s), trace.output_tokens)


def percent(value: Interval) -> str:
    """A share with its 95 % interval."""
    return f"{value.mean:.1%} ({value.low:.1%} to {value.high:.1%})"


def draw(found: Map, path: Path) -> None:
    """Draw the map: mean gains above, 99th percentiles below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    styles = {"SJF": ":", "SSJF": "-", "SSJF, capped": "--"}
    figure, axes = plt.subplots(2, len(MODES), figsize=(12, 7), sharex=True, sharey="row")
    for column, mode in enumerate(MODES):
        top, bottom = axes[0, column], axes[1, column]
        top.axhspan(*PUBLISHED_GAIN, color="0.88", label="reported: 30.5–39.6 %")
        bottom.axhline(1.25, color="0.6", linewidth=1)
        for number, cv in enumerate(CVS):
            for name, style in styles.items():
                points = [found[mode.name, cv, load][name] for load in LOADS]
                label = f"{name}, cv {cv:g}"
                top.plot(LOADS, [one.gain.mean for one in points], style, color=f"C{number}", label=label)
                bottom.plot(LOADS, [one.p99.mean for one in points], style, color=f"C{number}")
        top.set_title(f"{mode.name}" + (f", {mode.max_batch} at a time" if mode.max_batch > 1 else ""))
        bottom.set_xlabel("load, of capacity")
        bottom.set_yscale("log")
        bottom.set_yticks([0.5, 1, 1.25, 2, 5, 10], ["0.5", "1", "1.25", "2", "5", "10"])
        bottom.minorticks_off()
        for axis in (top, bottom):
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("reduction of the mean completion time")
    axes[0, 0].yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    axes[1, 0].set_ylabel("p99 of completion time, × FCFS")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="requests of a run")
    parser.add_argument("--replications", type=int, default=4, help="runs of a point")
    parser.add_argument("--short-runs", type=int, default=400, help="runs of 50 requests")
    parser.add_argument("--wait-cap", type=float, default=FCFS.wait_cap, help="cap of the capped orders")
    parser.add_argument("--plot", type=Path, help="file to draw the map to")
    options = parser.parse_args()
    for name in ("SJF, capped", "SSJF, capped"):
        POLICIES[name]["wait_cap"] = options.wait_cap
    found = surveyed(options.requests, options.replications)
    for mode in MODES:
        print(f"Capacity, {mode.name}: {capacity_rps(mode):.3f} requests a second.")
    for part in (print_map, print_bounds, print_published):
        print()
        part(found)
    print()
    print_short_runs(options.short_runs)
    print()
    print_artefacts(options.short_runs)
    if options.plot is not None:
        draw(found, options.plot)


if __name__ == "__main__":
    main()
