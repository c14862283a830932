"""Plans against AlpaServe's own search, on its own ground.

Run ``python -m validation.alpaserve`` in the repository; ``--help`` tells how to run a part.

V100s of 16 GB, 13 GB of them usable; the stage latencies and weights that AlpaServe published
(``published/alpaserve_v100_latency.csv``); Gamma renewal arrivals of CV 4 for every service, rates in
proportion to (i + 1)^-0.5, limits of five times the latency on one GPU, batches of one, AlpaServe's serving
rules. *Theirs* are figures measured with AlpaServe's code on a machine of 2 cores; all others are made here,
on traces of 1,000 s that no search has seen. Placements are searched anew for every rate.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from muplan.hardware.catalog import load_device
from muplan.hardware.device import Device
from muplan.hardware.fleet import Fleet, Pool
from muplan.hardware.quantity import Label
from muplan.plan import Deployment, Interval
from muplan.planning.baselines.alpaserve import search_alpaserve
from muplan.planning.baselines.placement import alpaserve_scorer, max_clock_menu
from muplan.planning.methods.goodput import search_goodput
from muplan.planning.search.placement import Placement, Site
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.problem.loading import load_problem
from muplan.problem.problem import Problem
from muplan.profiling.imported import import_profiles
from muplan.serde.writing import write_document
from muplan.serving.prediction import interval, replicate
from muplan.traces.generate import Purpose
from muplan.workload import (
    Demand,
    Goal,
    QueueOrder,
    Rejection,
    Routing,
    Service,
    Serving,
    Simulation,
    Slo,
    Workload,
)

TABLE = Path("published") / "alpaserve_v100_latency.csv"
DEVICE, USABLE_BYTES = "v100-sxm2-16gb", 13 * (1 << 30)
ALPASERVE = Serving(
    routing=Routing.LEAST_LAST_STAGE,
    rejection=Rejection.AT_ARRIVAL,
    overhead_s=0.011,
    stage_overhead=0.009,
    max_batch=1,
)
OWN = ALPASERVE.model_copy(
    update={
        "queue_order": QueueOrder.EDF,
        "routing": Routing.SHORTEST_EXPECTED_COMPLETION,
        "rejection": Rejection.AT_DISPATCH,
    }
)
"""Queues of each group, the earliest deadline first, hopeless requests dropped at dispatch."""
SIMULATION = Simulation(duration_s=1000.0, warm_up_s=10.0, cool_down_s=10.0, replications=20)
MIXTURE = ("bert-6.7b", "moe-5.3b", "bert-2.6b", "moe-2.4b", "bert-1.3b", "moe-1.3b")
HELD, STEPS = 0.99, 9
LONG_S = 2.0
"""Processor time from which a search is timed once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """A fleet and its services; ``rate_rps`` is the total rate at which goodputs are compared."""

    name: str
    num_gpus: int
    models: tuple[str, ...]
    num_services: int
    rate_rps: float
    goodput: float | None = None
    """Theirs, as share of requests in time."""
    held_rps: float | None = None
    """Theirs: the highest total rate at which 99 % are in time."""
    search_s: float | None = None
    """Theirs."""


GROUNDS = (
    Ground(
        name="8x8", num_gpus=8, models=("bert-1.3b",), num_services=8,
        rate_rps=40.0, goodput=0.920, held_rps=22.5, search_s=0.05,
    ),
    Ground(
        name="8x12", num_gpus=8, models=("bert-2.6b",), num_services=12,
        rate_rps=20.0, goodput=0.928, search_s=0.03,
    ),
    Ground(
        name="16x24", num_gpus=16, models=("bert-2.6b",), num_services=24,
        rate_rps=40.0, goodput=0.979, held_rps=35.6, search_s=0.15,
    ),
    Ground(
        name="mixture", num_gpus=32, models=MIXTURE, num_services=30,
        rate_rps=67.5, held_rps=67.5,
    ),
    Ground(
        name="128x96", num_gpus=128, models=("bert-2.6b",), num_services=96,
        rate_rps=320.0, search_s=22.0,
    ),
)  # fmt: skip
"""What AlpaServe's figures are known of."""


@dataclass(slots=True)
class Study:
    """The published table as profiles in a folder, from which workloads are loaded."""

    data: Path
    folder: Path
    device: Device = field(init=False)

    def __post_init__(self) -> None:
        """Write the device and the profiles."""
        shipped = load_device(DEVICE)
        reserved = shipped.memory.reserved_bytes.model_copy(
            update={"value": shipped.memory.capacity_bytes.value - USABLE_BYTES, "label": Label.ASSUMED}
        )
        memory = shipped.memory.model_copy(update={"reserved_bytes": reserved})
        self.device = shipped.model_copy(update={"name": "v100-13gb", "memory": memory})
        write_document(self.device, self.folder / "v100-13gb.json")
        for profile in import_profiles(self.data / TABLE, self.device):
            write_document(profile, self.folder / "profiles" / self.device.name / f"{profile.model}.json")

    def problem(self, ground: Ground, rate_rps: float, serving: Serving) -> Problem:
        """A ground at a total rate under some rules."""
        weights = (1.0 + np.arange(ground.num_services)) ** -0.5
        rates_rps = rate_rps * weights / weights.sum()
        workload = Workload(
            name="alpaserve",
            fleet=Fleet(pools=(Pool(name="v100", device="v100-13gb.json", num_gpus=ground.num_gpus),)),
            services=tuple(
                Service(
                    name=f"s{index}",
                    model=ground.models[index % len(ground.models)],
                    slo=Slo(scale=5.0),
                    demand=Demand(rate_rps=float(rate), cv=4.0),
                )
                for index, rate in enumerate(rates_rps)
            ),
            objective=(Goal.GOODPUT,),
            serving=serving,
            simulation=SIMULATION,
        )
        return load_problem(workload, directory=self.folder, profiles=self.folder / "profiles")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search found for a problem, and the processor time it took, after candidates were there."""

    site: Site
    placement: Placement
    search_s: float

    def deployment(self, serving: Serving) -> Deployment:
        """The placement under some rules."""
        deployment = self.site.deployment(self.placement, {}, serving)
        if deployment is None:
            raise RuntimeError("the placement finds no room")
        return deployment

    @property
    def forms(self) -> str:
        """Groups by tensor parallelism × stages."""
        shapes = [self.site.shapes[host.shape] for host in self.placement]
        counts = Counter(f"{shape.tensor_parallel} × {shape.num_stages}" for shape in shapes)
        return ", ".join(f"{count} of {form}" for form, count in sorted(counts.items()))


Find = Callable[[Problem], Found]


def site_of(problem: Problem) -> Site:
    """The candidates at maximum clock."""
    builder = CandidateBuilder(problem)
    return Site(problem, builder.supplies, max_clock_menu(problem, builder))


def find_alpaserve(problem: Problem) -> Found:
    """AlpaServe's search, as ``--solver alpaserve`` makes it."""
    site = site_of(problem)
    begin_s = time.process_time()
    ranked = search_alpaserve(site, alpaserve_scorer(site, 0, {}))
    return Found(site=site, placement=ranked[0].placement, search_s=time.process_time() - begin_s)


def find_own(problem: Problem) -> Found:
    """The search for goodput under the problem's rules, as ``--objective goodput`` makes it."""
    site = site_of(problem)
    begin_s = time.process_time()
    found = search_goodput(site, seed=0)
    if found is None:
        raise RuntimeError("no placement hosts every service")
    return Found(site=site, placement=found, search_s=time.process_time() - begin_s)


def shares(problem: Problem, deployment: Deployment) -> list[float]:
    """Share of requests in time on every fresh trace, by the full simulator."""
    runs = replicate(problem, deployment, seed=1, purpose=Purpose.VERIFYING)
    return [
        sum(one.num_within for one in run.services) / sum(one.num_requests for one in run.services)
        for run in runs
    ]


def held_rps(study: Study, ground: Ground, serving: Serving, find: Find, guess_rps: float) -> float:
    """The highest total rate at which the mean share in time is 99 %: bisection around a guess, to 0.1 %."""
    low, high = 0.8 * guess_rps, 1.25 * guess_rps
    for _ in range(STEPS):
        middle = (low + high) / 2
        problem = study.problem(ground, middle, serving)
        holds = float(np.mean(shares(problem, find(problem).deployment(serving)))) >= HELD
        low, high = (middle, high) if holds else (low, middle)
    return low


def print_row(*cells: str) -> None:
    """Print a row of a table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def _pm(values: Interval) -> str:
    return f"{values.mean:.3f} ± {(values.high - values.low) / 2:.3f}"


def print_goodputs(study: Study, grounds: list[Ground]) -> None:
    """Shares of requests in time at a stated rate, and the difference on the same traces."""
    print_row("case", "req/s", "theirs", "`alpaserve`", "search", "difference", "own rules", "difference")
    print_row("---", *["---:"] * 7)
    for ground in grounds:
        problem = study.problem(ground, ground.rate_rps, ALPASERVE)
        own = study.problem(ground, ground.rate_rps, OWN)
        theirs = shares(problem, find_alpaserve(problem).deployment(ALPASERVE))
        searched = shares(problem, find_own(problem).deployment(ALPASERVE))
        freed = shares(own, find_own(own).deployment(OWN))
        cells = [
            ground.name,
            f"{ground.rate_rps:g}",
            f"{ground.goodput:.3f}" if ground.goodput is not None else "–",
            _pm(interval(theirs)),
            _pm(interval(searched)),
            _pm(interval(np.subtract(searched, theirs).tolist())),
            _pm(interval(freed)),
            _pm(interval(np.subtract(freed, theirs).tolist())),
        ]
        print_row(*cells)


def print_rates(study: Study, grounds: list[Ground]) -> None:
    """Highest total rates held at 99 %, requests per second.

    Columns of a search place anew for every rate; *same placement* keeps that of ``alpaserve`` at the rate
    that theirs holds.
    """
    header = (
        "case",
        "theirs",
        "`alpaserve`",
        "goodput search",
        "same placement",
        "same placement, own rules",
        "own rules, own search",
    )
    print(f"| {' | '.join(header)} |\n|---|---:|---:|---:|---:|---:|---:|")
    for ground in grounds:
        if ground.held_rps is None:
            continue
        same = _keeping(find_alpaserve(study.problem(ground, ground.held_rps, ALPASERVE)).placement)
        ways = (
            (ALPASERVE, find_alpaserve),
            (ALPASERVE, find_own),
            (ALPASERVE, same),
            (OWN, same),
            (OWN, find_own),
        )
        rates = [held_rps(study, ground, serving, find, ground.held_rps) for serving, find in ways]
        cells = [f"{rate:.1f} ({rate / ground.held_rps - 1:+.1%})" for rate in rates]
        print(f"| {ground.name} | {ground.held_rps:g} | {' | '.join(cells)} |", flush=True)


def _keeping(placement: Placement) -> Find:
    """A search that looks no further than a given placement."""
    return lambda problem: Found(site=site_of(problem), placement=placement, search_s=0.0)


def print_times(study: Study, grounds: list[Ground]) -> None:
    """Processor time of each search (one thread); workload, candidates and compilation are not counted."""
    print_row("case", "theirs, s", "`alpaserve`, s", "search, s", "under own rules, s", "its groups")
    print_row("---", *["---:"] * 4, "---")
    for ground in grounds:
        problem = study.problem(ground, ground.rate_rps, ALPASERVE)
        own = study.problem(ground, ground.rate_rps, OWN)
        ways = ((find_alpaserve, problem), (find_own, problem), (find_own, own))
        found = [quickest(find, each) for find, each in ways]
        theirs = f"{ground.search_s:g}" if ground.search_s is not None else "–"
        print_row(ground.name, theirs, *(f"{one.search_s:.2f}" for one in found), found[-1].forms)


def quickest(find: Find, problem: Problem) -> Found:
    """The quickest of five equal searches after one that may compile; a long one is made once."""
    find(problem)
    runs = [find(problem)]
    while len(runs) < 5 and runs[0].search_s < LONG_S:
        runs.append(find(problem))
    return min(runs, key=lambda run: run.search_s)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--case", choices=[ground.name for ground in GROUNDS], action="append")
    parser.add_argument("--what", choices=("goodput", "rates", "time"), action="append")
    options = parser.parse_args()
    if not (options.data / TABLE).exists():
        raise SystemExit(
            f"{options.data / TABLE} is not there: the published latencies are no part of this repository."
        )
    grounds = [ground for ground in GROUNDS if options.case is None or ground.name in options.case]
    tables = {"goodput": print_goodputs, "rates": print_rates, "time": print_times}
    with tempfile.TemporaryDirectory() as folder:
        study = Study(options.data, Path(folder))
        for name in options.what or tables:
            tables[name](study, grounds)
            print()


if __name__ == "__main__":
    main()
