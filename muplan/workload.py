"""The workload: a fleet, the services it must serve, and an objective. The user writes it."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from muplan.hardware.fleet import Fleet
from muplan.serde import Document, Part
from muplan.traces.processes import MAX_CV, ArrivalProcess


class Slo(Part):
    """The latency objective of a service.

    ``scale`` is the multiple of the batch-1 latency on one device of the first pool at maximum clock
    (AlpaServe's convention); for generate services it applies to the time to first token (TTFT) and
    to the time per output token (TPOT) alike. Absolute limits: ``latency_s`` for forward services,
    ``ttft_s`` and ``tpot_s`` for generate services.
    """

    scale: float | None = Field(default=None, gt=1)
    latency_s: float | None = Field(default=None, gt=0)
    ttft_s: float | None = Field(default=None, gt=0)
    tpot_s: float | None = Field(default=None, gt=0)
    attainment: float = Field(default=0.99, gt=0, lt=1)
    """Share of requests that must be within the limits."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        forms = (self.scale is not None, self.latency_s is not None, self._has_token_limits())
        if sum(forms) != 1 or (self.ttft_s is None) != (self.tpot_s is None):
            raise ValueError("give exactly one of scale, latency_s, or the pair ttft_s and tpot_s")
        return self

    def _has_token_limits(self) -> bool:
        return self.ttft_s is not None or self.tpot_s is not None


class Demand(Part):
    """How requests of a service arrive: at a rate, by an arrival process, or as a recorded trace has them."""

    rate_rps: float | None = Field(default=None, gt=0)
    cv: float = Field(default=1.0, gt=0, le=MAX_CV)
    """Coefficient of variation of the (Gamma) inter-arrival times; 1 is a Poisson process."""
    process: ArrivalProcess | None = None
    """An arrival process, by its ``kind`` and parameters."""
    trace: str | None = None
    """A trace file (CSV), relative to the workload's folder."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if sum(form is not None for form in (self.rate_rps, self.process, self.trace)) != 1:
            raise ValueError("give exactly one of rate_rps, process or trace")
        if self.rate_rps is None and self.cv != 1.0:
            raise ValueError("cv goes with rate_rps; a process and a trace have a variation of their own")
        return self


class Service(Part):
    """A model with its latency objective and its demand."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    model: str
    """A shipped model's name, or the path of a model file relative to the workload's."""
    slo: Slo
    demand: Demand
    tokens: int | None = Field(default=None, ge=1)
    """Forward services: tokens of every request (padded); the model's own length where absent."""
    lengths: str | None = None
    """Generate services: a shipped length distribution's name, or the path of one.

    A prompt that would leave no room for its reply in the model's context is shortened.
    """
    pinned_to: tuple[str, ...] = ()
    """Pools and nodes (``pool/node``) that alone may host it; all where there are none."""
    anti_affinity: bool = False
    """Whether its replicas must stand on different nodes."""
    min_replicas: int = Field(default=1, ge=1)
    """Groups that must host it at least."""

    def may_use(self, node: str) -> bool:
        """Whether a node, named ``pool/node``, may host it."""
        return not self.pinned_to or node in self.pinned_to or node.rpartition("/")[0] in self.pinned_to

    def may_use_pool(self, pool: str) -> bool:
        """Whether some node of a pool may host it."""
        return not self.pinned_to or any(place.partition("/")[0] == pool for place in self.pinned_to)


class Goal(StrEnum):
    """What the planner optimises, every service within its latency objective."""

    POWER = "power"  # least expected fleet power
    GOODPUT = "goodput"  # most requests per second, where part of the demand may go unserved
    RATE = "rate"  # the highest multiple of the whole demand, common to all services
    ENERGY_PER_REQUEST = "energy-per-request"  # least joules a served request; part may go unserved


_LAST = (Goal.POWER, Goal.ENERGY_PER_REQUEST)
"""Goals that leave those after them nothing to choose."""


def parse_goals(value: object) -> tuple[Goal, ...]:
    """Read one goal or a list of them, in order; ValueError where they are unknown or do not go together."""
    names = value if isinstance(value, list | tuple) else [value]
    unknown = [name for name in names if not (isinstance(name, str) and name in tuple(Goal))]
    if unknown or not names:
        known = ", ".join(f"'{goal.value}'" for goal in Goal)
        found = f" (found {unknown[0]!r})" if unknown and names is value else ""
        raise ValueError(f"should be one or a list of {known}{found}")
    goals = tuple(Goal(str(name)) for name in names)
    for index, goal in enumerate(goals):
        if goal in goals[:index]:
            raise ValueError(f"{goal.value!r} stands twice; name each goal once")
        if goal in _LAST and index + 1 < len(goals):
            raise ValueError(f"{goal.value!r} leaves nothing to choose; put it last")
    if Goal.RATE in goals and Goal.GOODPUT in goals:
        raise ValueError("'rate' and 'goodput' both say how much is served; name one of them")
    return goals


def _unlisted(goals: tuple[Goal, ...]) -> str | list[str]:
    return goals[0].value if len(goals) == 1 else [goal.value for goal in goals]


_GOAL_SCHEMA = {"enum": [goal.value for goal in Goal], "type": "string"}

Objective = Annotated[
    tuple[Goal, ...],
    BeforeValidator(parse_goals),
    PlainSerializer(_unlisted),
    WithJsonSchema({"anyOf": [_GOAL_SCHEMA, {"items": _GOAL_SCHEMA, "minItems": 1, "type": "array"}]}),
]
"""Goals in order, each optimised at the best of those before; in a file, one or a list."""


class QueueOrder(StrEnum):
    """Which waiting request is served next."""

    FCFS = "fcfs"  # first come, first served
    SJF = "sjf"  # shortest job first, by the true length (an oracle)
    SSJF = "ssjf"  # speculative shortest job first, by the predicted length
    EDF = "edf"  # earliest deadline first: arrival + latency limit (generate services: + TTFT limit)
    SRPT = "srpt"  # shortest remaining predicted work; a running reply may be preempted for a shorter one


class Routing(StrEnum):
    """Which replica a request goes to."""

    SHORTEST_EXPECTED_COMPLETION = "shortest-expected-completion"
    ROUND_ROBIN = "round-robin"  # weighted by the plan's shares
    LEAST_LAST_STAGE = "least-last-stage"  # AlpaServe's: whose last stage is free first; forward services
    POWER_OF_TWO = "power-of-two"  # the shorter expected completion of two drawn at random


class Rejection(StrEnum):
    """Which requests are turned away because they would be late; they count as misses."""

    NONE = "none"
    AT_ARRIVAL = "at-arrival"  # would be late behind all that waits; forward services
    AT_DISPATCH = "at-dispatch"  # would be late even if dispatched now


class Batching(StrEnum):
    """How generate services batch; forward services always batch as ``dynamic``."""

    CONTINUOUS = "continuous"  # replies join and leave a running batch at every iteration
    DYNAMIC = "dynamic"  # a batch leaves when it is full or its oldest has waited, and ends with its longest


ControlPolicy = Literal["fixed", "miad", "slack", "forecast"]
"""How a group's clocks are chosen while it serves.

``fixed``: the plan's. ``miad``: by the attainment of the last window. ``slack``: the lowest at which what
waits meets its deadlines, by prediction. ``forecast``: the cheapest at which what waits and what is
expected does, with a caution that is learned.
"""
CONTROL_POLICIES: tuple[ControlPolicy, ...] = get_args(ControlPolicy)

TICK_S = 0.1
"""Time between decisions of ``slack`` and ``forecast`` where a workload states none."""
DWELL_S = 5.0
"""Least time of ``forecast`` between a change and a lower clock where a workload states none."""


class Controller(Part):
    """How clocks are corrected while a plan runs.

    ``miad`` multiplies a group's clock by ``increase`` after a window whose attainment missed the
    target and subtracts ``decrease_mhz`` after one that met it, snapped to the profile's clocks. The
    plan's clock is the floor, the highest profiled clock the ceiling.

    ``slack`` and ``forecast`` decide every ``tick_s`` seconds among all profiled clocks; ``forecast``
    lowers a clock at the earliest ``dwell_s`` seconds after its last change.
    """

    policy: ControlPolicy = "fixed"
    window_s: float = Field(default=10.0, gt=0)
    increase: float = Field(default=1.15, gt=1)
    decrease_mhz: float = Field(default=30.0, gt=0)
    hysteresis: float = Field(default=0.005, ge=0, lt=1)
    """Attainment above the target that a window must show before the clock is lowered."""
    tick_s: float | None = Field(default=None, gt=0)
    """Time between decisions of ``slack`` and ``forecast``; 0.1 s where absent."""
    dwell_s: float | None = Field(default=None, ge=0)
    """Least time of ``forecast`` between a change and a lower clock; 5 s where absent."""

    @property
    def period_s(self) -> float:
        """Time between two decisions."""
        if self.policy == "miad":
            return self.window_s
        return TICK_S if self.tick_s is None else self.tick_s


def parse_wait_cap(value: object) -> object:
    """Read a cap on waits; ValueError where it is neither a number above 1 nor ``none``."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value != "none" and not (is_number and 1.0 < float(value) < math.inf):  # type: ignore[arg-type]
        raise ValueError("should be a number above 1, or 'none'")
    return value


WaitCap = Annotated[
    float | Literal["none"],
    BeforeValidator(parse_wait_cap),
    WithJsonSchema({"anyOf": [{"exclusiveMinimum": 1, "type": "number"}, {"const": "none"}]}),
]


class Serving(Part):
    """How the fleet serves: queue order, routing, rejection, batching, overheads, clock control."""

    queue_order: QueueOrder = QueueOrder.FCFS
    wait_cap: WaitCap = 1.15
    """Under orders by length (sjf, ssjf, srpt): 99 % of the requests wait at most so many times what 99 %
    would wait first come, first served; none: long requests may starve."""
    max_preemptions: int = Field(default=1, ge=0)
    """Under srpt: how often a reply may be preempted for a shorter one."""
    preemption_gain: float = Field(default=2.0, ge=1)
    """Under srpt: a reply is preempted only where it needs so many times what the shorter one needs and what
    is lost by computing its tokens anew."""
    routing: Routing = Routing.SHORTEST_EXPECTED_COMPLETION
    rejection: Rejection = Rejection.NONE
    max_batch: int = Field(default=8, ge=1)
    """Largest batch the planner may choose for a forward service."""
    max_sequences: int = Field(default=256, ge=1)
    """Largest batch of sequences the planner may choose for a generate service; 1: no batching."""
    batching: Batching = Batching.CONTINUOUS
    prefill_chunk_tokens: int | None = Field(default=None, ge=1)
    """Generate services, continuous batching: prompts are prefilled so many tokens an iteration, beside the
    sequences that decode; absent: whole prompts, in iterations of their own before any decoding."""
    max_group_gpus: int = Field(default=16, ge=1)
    """Most GPUs of a group: tensor parallelism × stages; 1 keeps every model on one GPU."""
    batch_timeout_s: float = Field(default=0.0, ge=0)
    """How long a free stage (dynamic batches of generate services: a group) waits for a batch to fill; the
    same rule for every queue order."""
    overhead_s: float = Field(default=0.0, ge=0)
    """Time of every request that no GPU spends (AlpaServe: 0.011), part of its latency and its TTFT."""
    stage_overhead: float = Field(default=0.0, ge=0)
    """Each stage takes this part longer for every stage of its group (AlpaServe: 0.009)."""
    controller: Controller = Controller()

    @model_validator(mode="after")
    def _batches_that_stay_whole(self) -> Self:
        if self.batching is Batching.DYNAMIC:
            if self.prefill_chunk_tokens is not None:
                raise ValueError("prefill_chunk_tokens goes with batching: continuous; remove one of the two")
            if self.queue_order is QueueOrder.SRPT:
                raise ValueError(
                    "queue_order srpt preempts what runs, which a dynamic batch cannot; use ssjf"
                )
        return self


class Simulation(Part):
    """How plans are judged: independent replications, whose first and last seconds are not counted."""

    duration_s: float = Field(default=600.0, gt=0)
    warm_up_s: float = Field(default=30.0, ge=0)
    cool_down_s: float = Field(default=0.0, ge=0)
    """The measured period, of arrivals and of energy, ends so long before ``duration_s``."""
    replications: int = Field(default=5, ge=2)

    @model_validator(mode="after")
    def _something_is_measured(self) -> Self:
        if self.warm_up_s + self.cool_down_s >= self.duration_s:
            raise ValueError("cool_down_s + warm_up_s must be less than duration_s")
        return self


class Workload(Document):
    """What must be served, on what, and to which end."""

    KIND: ClassVar[str] = "workload"

    kind: Literal["workload"] = "workload"
    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    description: str = ""
    fleet: Fleet
    services: tuple[Service, ...] = Field(min_length=1)
    objective: Objective = (Goal.POWER,)
    serving: Serving = Serving()
    simulation: Simulation = Simulation()

    @property
    def sheds_load(self) -> bool:
        """Whether goodput is the goal and late requests are rejected while serving.

        Then nothing is turned away beforehand: goodput is requests in time of the whole demand.
        """
        return self.objective[0] is Goal.GOODPUT and self.serving.rejection is not Rejection.NONE

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        names = [service.name for service in self.services]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ValueError(f"services[{index}].name: {name!r} stands twice; names must differ")
        return self

    @property
    def goals(self) -> tuple[Goal, ...]:
        """The goals in order: after goodput or rate comes the least power at it, unless another follows."""
        return self.objective if self.objective[-1] in _LAST else (*self.objective, Goal.POWER)

    @property
    def admits_part(self) -> bool:
        """Whether part of the demand may go unserved."""
        return self.objective[0] in (Goal.GOODPUT, Goal.ENERGY_PER_REQUEST)
