"""The run: what an execution of a plan did, beside what the plan predicted.

`execute` writes it. The request records themselves are a CSV file of their own.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from muplan.plan import Interval
from muplan.serde import Document, Part


class RunProvenance(Part):
    """The inputs of a run, by digest."""

    muplan_version: str
    plan_digest: str
    workload_digest: str


class Comparison(Part):
    """An observed figure beside its prediction.

    ``low`` to ``high`` is where a run of this length falls with 95 % probability if the prediction is
    right: wider than the prediction's own interval, which is that of a mean over replications.
    """

    observed: float
    predicted: Interval
    low: float
    high: float

    @property
    def is_within(self) -> bool:
        """Whether the observed figure is where the prediction says."""
        return self.low <= self.observed <= self.high


class Latency(Part):
    """Mean and percentiles of a time over the requests served in the measured period."""

    mean_s: float
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float
    p999_s: float


class ServiceEnergy(Part):
    """What a service took of the GPUs that host it, in the measured period.

    Energy while they were loaded and idle is shared by the time that the services' passes took there.
    """

    busy_share: float
    """Part of the time of all GPUs that host it which its passes took."""
    power_w: float
    """Mean over the period, as busy and as idle as it was."""
    busy_j: float
    loaded_j: float
    energy_per_request_j: float | None = None
    """Over requests served, as the next over their tokens; absent where there are none."""
    energy_per_token_j: float | None = None
    """Over output tokens; of generate services."""
    energy_per_total_token_j: float | None = None
    """Over input and output tokens."""


class ClassOutcome(Part):
    """How the requests of a generate service with replies of some lengths fared in the measured period."""

    from_tokens: int
    below_tokens: int | None = None
    """Output tokens of the class, up to but not including; absent: all beyond."""
    num_requests: int
    num_rejected: int
    attainment: float
    latency: Latency | None = None
    """As the next absent where nothing was served."""
    ttft: Latency | None = None
    tpot: Latency | None = None


class ServiceOutcome(Part):
    """How one service fared in the measured period."""

    service: str
    num_requests: int
    num_rejected: int
    rate_rps: float
    target: float
    attainment: Comparison
    meets_target: bool
    latency_mean_s: Comparison | None = None
    """End to end, as all latencies without another name; absent where nothing was served."""
    latency: Latency | None = None
    ttft: Latency | None = None
    """Time to first token; generate services only, as the next."""
    tpot: Latency | None = None
    """Time per output token after the first."""
    itl: Latency | None = None
    """Time between successive tokens, of all replies; percentiles within 0.25 %. Of simulated runs."""
    mean_batch: float | None = None
    goodput_rps: float | None = None
    """Requests within the limits per second."""
    energy: ServiceEnergy | None = None
    """Absent where services share a group whose passes were not told apart."""
    classes: tuple[ClassOutcome, ...] = ()
    """By length of the reply, where lengths are known: quantiles 25, 50, 75 and 99 % of what is expected."""


class GroupOutcome(Part):
    """How busy a group was in the measured period, and what it drew."""

    group: str
    num_gpus: int
    busy_share: float | None = None
    """Part of the GPU time spent computing; not seen over HTTP, as the next two and ``saturation``."""
    busy_j: float | None = None
    loaded_j: float | None = None
    switching_j: float | None = None
    """Of both, while a commanded change of a clock was not in effect yet."""
    energy_j: float | None = None
    """By the GPUs' energy counters; absent where they were not read."""
    saturation: Literal["stable", "backlogged", "overloaded"] | None = None
    """Whether the group kept up: its queue emptied now and then, stood, or grew."""


class EnergySplit(Part):
    """Energy of the fleet in the measured period."""

    busy_j: float
    loaded_j: float
    parked_j: float
    switching_j: float | None = None
    """Of the first two, while a commanded change of a GPU's clock was not in effect yet."""


class TimeSplit(Part):
    """GPU-seconds of the fleet in the measured period: of computing, loaded and idle, parked."""

    busy_s: float
    loaded_s: float
    parked_s: float
    switching_s: float
    """Of the first two, while a commanded change of a GPU's clock was not in effect yet."""


class PowerTrace(Part):
    """Mean power of the fleet over equal parts of the run, from its beginning."""

    width_s: float = Field(gt=0)
    busy_w: tuple[float, ...]
    loaded_w: tuple[float, ...]
    parked_w: float


class ClockCommand(Part):
    """A change of a stage's clock that the controller commanded."""

    time_s: float
    group: str
    stage: int
    from_mhz: int
    to_mhz: int


class GroupOutage(Part):
    """A time in which a group lacked workers that had died."""

    group: str
    begin_s: float
    end_s: float | None = None
    """When it was whole again; absent where it was not before the run ended."""
    moved_to: str | None = None
    """The other host on which its workers were started again; absent where they were where they had been."""
    is_final: bool = False
    """Whether it was given up: requests went to other groups."""


class RealTime(Part):
    """What only a run in real time has to tell."""

    num_lost_passes: int
    """Passes that were lost with a worker, and run again."""
    decision_s: float
    """Mean time that the executor itself took for a request, by the host's clock (measured)."""
    is_partial: bool
    """Whether the run was broken off before all requests were answered; ``duration_s`` is how far it went."""
    outages: tuple[GroupOutage, ...] = ()
    """In the order in which they began."""
    fault: str | None = None
    """Why the backend could not go on, where that broke the run off."""
    sets_clocks: bool = False
    """Whether the plan's clocks were set; else times are those of the clocks that the machine ran at."""
    metering_fault: str | None = None
    """Why the GPUs' counters do not tell the power of the run, where they were read."""


class RequestFailures(Part):
    """Requests of one replica that were not answered for one reason; each counts as a miss."""

    group: str
    service: str
    kind: str
    """``no connection``, ``refused`` (4xx), ``server error``, ``timeout`` …"""
    count: int
    example: str
    """What was said of the first of them."""


class TokenGaps(Part):
    """Times between the chunks of a service's replies, in the measured period."""

    service: str
    gaps: Latency
    """Inter-token latencies (ITL), where a chunk is a token."""
    tokens_per_chunk: float


class OverHttp(Part):
    """What only a run on deployed servers has to tell."""

    send_lag: Latency | None = None
    """How much later than it came each request was sent; absent where none was."""
    send_lag_limit_s: float
    """Above this at the 99th percentile the arrivals were not those of the trace."""
    failures: tuple[RequestFailures, ...] = ()
    """Of all requests, the warm-up's too."""
    num_unfinished: int = 0
    """Requests that were under way when the run was broken off."""
    num_other_lengths: int = 0
    """Replies with another number of tokens than the trace says."""
    prompt_tokens_ratio: float | None = None
    """Tokens of all prompts, as the servers count them, over those of the trace; absent where none tells."""
    token_gaps: tuple[TokenGaps, ...] = ()
    metering_fault: str | None = None
    """Why energy is not measured although GPUs were named."""

    @property
    def is_in_time(self) -> bool:
        """Whether requests were sent when they came."""
        return self.send_lag is None or self.send_lag.p99_s <= self.send_lag_limit_s


class Run(Document):
    """What an execution of a plan did."""

    KIND: ClassVar[str] = "run"

    kind: Literal["run"] = "run"
    schema_version: Literal[1] = 1
    plan: str
    """Name of the plan."""
    provenance: RunProvenance
    backend: str
    label: Literal["modelled", "measured"]
    """Of times and what follows from them."""
    power_label: Literal["modelled", "measured", "not measured"] = "modelled"
    """Of power and energy: the profiles' power while stages compute, or the GPUs' energy counters; where it
    is not measured, all that needs it is absent."""
    seed: int
    duration_s: float
    warm_up_s: float
    """The measured period begins here."""
    cool_down_s: float = 0.0
    """The measured period ends so long before ``duration_s``."""
    controller: str
    power_w: Comparison | None = None
    energy: EnergySplit | None = None
    """Absent where power is not modelled: counters do not tell it apart."""
    gpu_time: TimeSplit | None = None
    """Absent where it was not seen what the GPUs did."""
    energy_per_request_j: float | None = None
    """Absent where nothing was served."""
    energy_per_token_j: float | None = None
    """Over output tokens; absent where no generate service was served."""
    power_p99_w: float | None = None
    """99th percentile of the parts of the power trace within the measured period; absent without a trace."""
    power_peak_w: float | None = None
    """The highest of them."""
    goodput_rps: Comparison
    services: tuple[ServiceOutcome, ...]
    groups: tuple[GroupOutcome, ...]
    power_trace: PowerTrace | None = None
    """Absent where power is not modelled."""
    clock_commands: tuple[ClockCommand, ...]
    real_time: RealTime | None = None
    """Absent where the run was simulated."""
    over_http: OverHttp | None = None
    """Absent where the run was not on deployed servers."""

    @property
    def is_partial(self) -> bool:
        """Whether the run was broken off; what had come by then and was not answered counts as missed."""
        return self.real_time is not None and self.real_time.is_partial

    @property
    def is_judged(self) -> bool:
        """Whether it says something of the plan: it went to its end, and its requests were sent in time."""
        return not self.is_partial and (self.over_http is None or self.over_http.is_in_time)

    @property
    def meets_targets(self) -> bool:
        """Whether every service reached its target."""
        return all(service.meets_target for service in self.services)

    @property
    def is_as_predicted(self) -> bool:
        """Whether power, where it is known, and every attainment are where the plan's prediction says."""
        power_is = self.power_w is None or self.power_w.is_within
        return power_is and all(service.attainment.is_within for service in self.services)
