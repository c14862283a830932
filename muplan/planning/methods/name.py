"""The names of the planning methods, and what each is, in a line."""

from __future__ import annotations

from enum import StrEnum


class MethodName(StrEnum):
    """What ``--solver`` names."""

    EXACT = "exact"
    GREEDY = "greedy"
    UNIFORM_CLOCK = "uniform-clock"
    MU_SERVE = "mu-serve"
    ALPASERVE = "alpaserve"
    REPLICATE = "replicate"
    EXACT_CBC = "exact-cbc"


DESCRIPTIONS: dict[MethodName, str] = {
    MethodName.EXACT: "partition, placement and clocks together, with a proven bound",
    MethodName.GREEDY: "the same, group by group: quicker, with a weaker bound",
    MethodName.UNIFORM_CLOCK: "the exact planner with one clock for the whole fleet: the best one",
    MethodName.MU_SERVE: "μ-Serve-style: placed by sensitivity, clocks lowered greedily; every GPU loaded",
    MethodName.ALPASERVE: "AlpaServe's placement search for attainment at maximum clock; every GPU loaded",
    MethodName.REPLICATE: "replicas on the fewest GPUs that hold a model, at maximum clock; every GPU loaded",
    MethodName.EXACT_CBC: "exact with CBC for the integer programmes; to compare solvers",
}

GOODPUT_SEARCH = "goodput-search"
"""What a plan names as its solver where placements were searched under simulation for goodput."""

STATED_MODEL = frozenset({MethodName.EXACT, MethodName.GREEDY, MethodName.EXACT_CBC})
"""Methods whose value and bound are those of the stated model; the others' are simulated."""
