"""Make a problem of a workload: load all that it names, and report everything that does not fit at once."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from muplan.errors import Fault, InputError
from muplan.hardware.catalog import device_names, load_device
from muplan.hardware.device import Device
from muplan.hardware.fleet import Pool
from muplan.problem.demand import ResolvedDemand, check_request_kind, forward_demand, generate_demand
from muplan.problem.placement_limits import limit_faults
from muplan.problem.problem import Limits, Problem, ResolvedService
from muplan.problem.serving_rules import serving_faults
from muplan.problem.source import ModelSource, find_model
from muplan.profile import Phase, Profile
from muplan.profiling.store import ProfileStore
from muplan.serde import locate_faults, read_document
from muplan.traces.files import read_trace
from muplan.traces.generate import MAX_REQUESTS
from muplan.traces.lengths import load_lengths
from muplan.traces.trace import Trace
from muplan.workload import Service, Simulation, Workload

LoadedT = TypeVar("LoadedT")


def read_problem(path: Path, *, profiles: Path | None = None, remakes: bool = True) -> Problem:
    """Read a workload file and resolve it: `load_problem`, with the file's lines in the faults."""
    workload = read_document(path, Workload)
    try:
        return load_problem(workload, directory=path.parent, profiles=profiles, remakes=remakes)
    except InputError as error:
        raise InputError.from_faults(locate_faults(error.faults, path), error.remedy) from None


def load_problem(
    workload: Workload, *, directory: Path, profiles: Path | None = None, remakes: bool = True
) -> Problem:
    """Resolve a workload: load its devices, models, lengths and traces, and make its limits absolute.

    A profile is read from ``profiles/<device>/<model>.json`` where that exists, and otherwise made
    by the analytical profiler.

    A limit given as a scale is that multiple of the batch-1 latency at maximum clock on the devices
    of the first pool that it may use, at the smallest configuration profiled: of a forward pass; of a
    prefill of the mean prompt (TTFT); of a decode iteration at the mean prompt and half the mean
    reply (TPOT).

    Parameters
    ----------
    directory
        Where relative paths of the workload start from: its folder.
    profiles
        Folder of saved profiles; without it every profile is made.
    remakes
        Whether saved modelled profiles are made again, to see that they are current.

    Raises
    ------
    InputError
        Something that the workload names cannot be loaded, or does not fit together. All faults are
        listed, each with its dotted key.
    """
    pools = workload.fleet.pools
    loader = _Loader(
        file=f"workload {workload.name}",
        directory=directory,
        store=ProfileStore(profiles, remakes=remakes),
        num_pools=len(pools),
        simulation=workload.simulation,
    )
    for index, pool in enumerate(pools):
        loader.load_pool(index, pool)
    services = [loader.resolve(index, service) for index, service in enumerate(workload.services)]
    resolved = [service for service in services if service is not None]
    for key, message in limit_faults(workload, loader.devices, resolved):
        loader.fault(key, message)
    for key, message in serving_faults(workload.serving, resolved):
        loader.fault(key, message)
    if loader.faults:
        raise InputError.from_faults(loader.faults, "Correct the workload, or the files that it names.")
    return Problem(
        workload=workload,
        devices=loader.devices,
        services=tuple(resolved),
    )


@dataclass(slots=True, kw_only=True)
class _Loader:
    """Loads what a workload names and collects the faults."""

    file: str
    directory: Path
    store: ProfileStore
    num_pools: int
    simulation: Simulation
    faults: list[Fault] = field(default_factory=list)
    devices: dict[str, Device] = field(default_factory=dict)

    def fault(self, key: str, message: str) -> None:
        """Note a fault."""
        self.faults.append(Fault(file=self.file, key=key, message=message))

    def attempt(self, key: str, load: Callable[[], LoadedT]) -> LoadedT | None:
        """Load something; None, with the fault noted, where that is refused."""
        try:
            return load()
        except InputError as error:
            self.fault(key, f"{error.problem} {error.remedy}".rstrip())
            return None

    def locate(self, name: str, shipped: tuple[str, ...]) -> str:
        """Return a shipped name as it is, and a path as seen from the workload's folder."""
        path = self.directory / name
        is_path = path.suffix in (".json", ".yaml", ".yml") or path.is_dir()
        return str(path) if is_path and name not in shipped else name

    def load_pool(self, index: int, pool: Pool) -> None:
        """Load the device of a pool."""
        key = f"fleet.pools[{index}]"
        device = self.attempt(f"{key}.device", lambda: load_device(self.locate(pool.device, device_names())))
        if device is None:
            return
        self.devices[pool.name] = device
        if pool.power_cap_w is not None and pool.power_cap_w > device.power_cap_w:
            self.fault(
                f"{key}.power_cap_w",
                f"{pool.power_cap_w:g} W is above the {device.power_cap_w:g} W of {device.name}",
            )

    def resolve(self, index: int, spec: Service) -> ResolvedService | None:
        """Resolve one service; None, with the faults noted, where it has any."""
        key, num_faults = f"services[{index}]", len(self.faults)

        def note(below: str, message: str) -> None:
            self.fault(f"{key}.{below}", message)

        lengths_name, trace_name = spec.lengths, spec.demand.trace
        source = self.attempt(f"{key}.model", lambda: self.find_model(spec))
        lengths = trace = None
        if lengths_name is not None:
            lengths = self.attempt(f"{key}.lengths", lambda: load_lengths(lengths_name, self.directory))
        if trace_name is not None:
            trace = self.attempt(f"{key}.demand.trace", lambda: self.load_trace(trace_name, spec.name))
        if source is not None:
            check_request_kind(spec, source, note)
        if source is None or len(self.faults) > num_faults:
            return None
        if source.request_kind == "forward":
            demand = forward_demand(spec, source, trace, note)
        else:
            demand = generate_demand(spec, source, lengths, trace, note)
        if len(self.faults) > num_faults or len(self.devices) < self.num_pools:
            return None
        simulation = self.simulation
        requests = demand.rate_rps * simulation.duration_s * simulation.replications
        if requests > MAX_REQUESTS:
            note(
                "demand",
                f"{demand.rate_rps:g} requests/s over {simulation.replications} replications of"
                f" {simulation.duration_s:g} s are {requests:.3g} requests;"
                f" at most {MAX_REQUESTS:.0e} are simulated",
            )
            return None
        devices = self.devices_for(spec)
        profiles = self.load_profiles(f"{key}.model", source, demand, devices)
        if not profiles or len(profiles) < len(devices):
            return None
        # Where it may not stand a profile is no must; with one, a refusal can say whether its pins matter.
        for pool in [pool for pool in self.devices if pool not in devices]:
            with contextlib.suppress(InputError):
                profiles[pool] = self.load_profile(source, self.devices[pool], demand)
        return self.attempt(f"{key}.slo", lambda: _resolved(spec, source, demand, profiles))

    def devices_for(self, spec: Service) -> dict[str, Device]:
        """The devices of the pools that a service may use, by pool."""
        return {pool: device for pool, device in self.devices.items() if spec.may_use_pool(pool)}

    def find_model(self, spec: Service) -> ModelSource:
        """Find a service's model or the user's own profiles of it."""
        return find_model(
            spec.model, directory=self.directory, store=self.store, devices=self.devices_for(spec)
        )

    def load_trace(self, name: str, service: str) -> Trace:
        """Read a trace: the requests under the service's name, or all of a trace of one service."""
        trace = read_trace(self.directory / name)
        return trace.only(trace.services[0] if len(trace.services) == 1 else service)

    def load_profiles(
        self, key: str, source: ModelSource, demand: ResolvedDemand, devices: Mapping[str, Device]
    ) -> dict[str, Profile]:
        """Load or make the profile of a model for the device of every pool, by the pool's name."""
        profiles = {}
        for pool, device in devices.items():
            profile = self.attempt(key, partial(self.load_profile, source, device, demand))
            if profile is not None:
                profiles[pool] = profile
        return profiles

    def load_profile(self, source: ModelSource, device: Device, demand: ResolvedDemand) -> Profile:
        """Load or make the profile of a model on a device, and check that it covers the requests."""
        profile = source.profile(device)
        _check_covers(profile, demand)
        return profile


def _resolved(
    spec: Service, source: ModelSource, demand: ResolvedDemand, profiles: dict[str, Profile]
) -> ResolvedService:
    return ResolvedService(
        spec=spec,
        request_kind=source.request_kind,
        profiles=profiles,
        limits=_limits(spec, demand, next(iter(profiles.values()))),
        rate_rps=demand.rate_rps,
        cv=demand.cv,
        input_tokens=demand.input_tokens,
        output_tokens=demand.output_tokens,
        max_context=demand.max_context,
        lengths=demand.lengths,
        trace=demand.trace,
        process=demand.process,
    )


def _limits(spec: Service, demand: ResolvedDemand, profile: Profile) -> Limits:
    """Absolute limits; a scale counts in batch-1 latencies of ``profile`` at maximum clock."""
    slo = spec.slo
    if slo.latency_s is not None:
        return Limits(latency_s=slo.latency_s, ttft_s=math.inf, tpot_s=math.inf)
    if slo.ttft_s is not None and slo.tpot_s is not None:
        return Limits(latency_s=math.inf, ttft_s=slo.ttft_s, tpot_s=slo.tpot_s)
    if slo.scale is None:
        raise ValueError("an SLO has one of its three forms")
    if profile.request_kind == "forward":
        latency_s = _single_latency_s(profile, Phase.FORWARD, demand.input_tokens)
        return Limits(latency_s=slo.scale * latency_s, ttft_s=math.inf, tpot_s=math.inf)
    context = demand.input_tokens + demand.output_tokens / 2.0
    return Limits(
        latency_s=math.inf,
        ttft_s=slo.scale * _single_latency_s(profile, Phase.PREFILL, demand.input_tokens),
        tpot_s=slo.scale * _single_latency_s(profile, Phase.DECODE, context),
    )


def _single_latency_s(profile: Profile, phase: Phase, tokens: float) -> float:
    """Latency of one pass at batch 1 and maximum clock; below the shortest profiled, of the shortest."""
    tokens = max(tokens, profile.grid(phase).tokens[0])
    width, stages = profile.configurations[0]
    latency_s = profile.latency_s(phase, tensor_parallel=width, num_stages=stages, batch=1, tokens=tokens)
    return float(latency_s[profile.cluster_type_index, -1].sum())


def _check_covers(profile: Profile, demand: ResolvedDemand) -> None:
    """Refuse a profile that ends below the longest request."""
    if profile.request_kind == "forward":
        needs = [(Phase.FORWARD, demand.max_input_tokens)]
    else:
        needs = [(Phase.PREFILL, demand.max_input_tokens), (Phase.DECODE, demand.max_context)]
    for phase, tokens in needs:
        covered = profile.grid(phase).tokens
        is_below = phase is Phase.FORWARD and tokens < covered[0]
        if is_below or tokens > covered[-1]:
            raise InputError(
                f"The profile of {profile.model} on {profile.device} covers {covered[0]}–{covered[-1]} tokens"
                f" in {phase}, the requests reach {tokens}.",
                "Profile a wider range, or give shorter requests.",
            )
