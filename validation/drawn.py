"""Random workloads of real models on small fleets: what validations of the planner draw on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from muplan.hardware.catalog import load_device
from muplan.hardware.fleet import Fleet, Pool
from muplan.model.catalog import load_model
from muplan.profile import Phase, Profile
from muplan.profiling.store import ProfileStore
from muplan.traces.lengths import load_lengths
from muplan.workload import Demand, QueueOrder, Routing, Service, Serving, Simulation, Slo, Workload

PROFILES = Path("profiles")
DEVICES = ("v100-sxm2-32gb", "v100-sxm2-16gb", "a100-sxm4-80gb")
FORWARD = ("bert-base", "bert-large", "bert-1.3b", "bert-2.6b", "vit-large", "resnet-50")
GENERATE = ("opt-1.3b", "gpt2-xl")
LENGTHS = "azure-conversation"
SHORT = Simulation(duration_s=60.0, warm_up_s=5.0, replications=2)

_STORE = ProfileStore(PROFILES)
_REPLY_BATCH = 8
_LIMITED = 0.3
"""Part of the workloads that limit where and how services may be placed."""
_LEAST_RPS = 0.5
"""Fewer requests a second, or a tenth of the squared cv, are too few to be judged in a short simulation."""


@dataclass(slots=True, kw_only=True)
class Draw:
    """Draws parts of a workload from one generator; two of equal seed draw the same."""

    rng: np.random.Generator
    _names: int = field(default=0)

    def fleet(self, *, most_gpus: int = 8) -> Fleet:
        """One or two pools of few GPUs."""
        number = int(self.rng.choice([1, 2], p=[0.6, 0.4]))
        devices = self.rng.choice(DEVICES, size=number, replace=False)
        per_node = int(self.rng.choice([4, 8]))
        return Fleet(
            pools=tuple(
                Pool(
                    name=f"pool-{index}",
                    device=str(device),
                    num_gpus=int(self.rng.integers(most_gpus // 2, most_gpus + 1)) // number,
                    gpus_per_node=per_node,
                )
                for index, device in enumerate(devices)
            )
        )

    def service(self, fleet: Fleet, *, model: str, load_gpus: float, cv: float, scale: float) -> Service:
        """A service that keeps ``load_gpus`` GPUs of the first pool busy at its highest clock, batch 1."""
        self._names += 1
        generates = model in GENERATE
        seconds = request_s(model, fleet.pools[0].device)
        return Service(
            name=f"service-{self._names}",
            model=model,
            slo=Slo(scale=scale, attainment=float(self.rng.choice([0.95, 0.98, 0.99]))),
            demand=Demand(rate_rps=float(f"{max(load_gpus / seconds, _LEAST_RPS, cv**2 / 10):.3g}"), cv=cv),
            lengths=LENGTHS if generates else None,
        )

    def serving(self, *, generates: bool) -> Serving:
        """Queue order, routing and batch limit."""
        orders = [QueueOrder.FCFS, QueueOrder.SJF, QueueOrder.EDF]
        return Serving(
            queue_order=orders[int(self.rng.integers(len(orders)))],
            routing=Routing.ROUND_ROBIN if self.rng.random() < 0.15 else Routing.SHORTEST_EXPECTED_COMPLETION,
            max_batch=int(self.rng.choice([1, 4, 8])),
            max_sequences=32 if generates else 256,
        )

    def models(self, *, number: int, generates: float) -> list[str]:
        """Models of services; each generates with probability ``generates``."""
        return [
            str(self.rng.choice(GENERATE if self.rng.random() < generates else FORWARD))
            for _ in range(number)
        ]

    def limited(self, fleet: Fleet, services: tuple[Service, ...]) -> tuple[Fleet, tuple[Service, ...]]:
        """A limit on placement: GPUs in reserve, a cap on nodes or clocks, replicas, or a pin."""
        first, service = fleet.pools[0], services[0]
        match int(self.rng.integers(5)):
            case 0:
                first = first.model_copy(update={"reserved_gpus": first.gpu_ids()[-1:]})
            case 1:
                node_gpus = min(first.num_gpus, first.gpus_per_node)
                share = float(self.rng.uniform(0.6, 0.9))
                cap_w = round(node_gpus * load_device(first.device).power_cap_w * share)
                first = first.model_copy(update={"node_power_cap_w": cap_w})
            case 2:
                clocks = load_device(first.device).usable_clocks_mhz
                first = first.model_copy(update={"max_clock_mhz": clocks[3 * len(clocks) // 4]})
            case 3:
                several = len(first.node_ids()) > 1
                update = {"anti_affinity": several, "min_replicas": 2}
                service = service.model_copy(update=update)
            case _:
                service = service.model_copy(update={"pinned_to": (first.name,)})
        pools = (first, *fleet.pools[1:])
        return fleet.model_copy(update={"pools": pools}), (service, *services[1:])


@cache
def request_s(model: str, device: str) -> float:
    """Time of one request on the narrowest configuration at the highest clock; replies eight at a time."""
    profile = _profile(model, device)
    if profile.request_kind == "forward":
        tokens = profile.grid(Phase.FORWARD).tokens[-1]
        return _pass_s(profile, Phase.FORWARD, 1, tokens)
    lengths = load_lengths(LENGTHS, Path()).limited_to(profile.phases[-1].tokens[-1])
    prefill_s = _pass_s(profile, Phase.PREFILL, 1, lengths.mean_input_tokens)
    context = lengths.mean_input_tokens + lengths.mean_output_tokens / 2
    decode_s = _pass_s(profile, Phase.DECODE, _REPLY_BATCH, context)
    return prefill_s + lengths.mean_output_tokens * decode_s / _REPLY_BATCH


def _profile(model: str, device: str) -> Profile:
    return _STORE.profile(load_model(model), load_device(device))


def _pass_s(profile: Profile, phase: Phase, batch: int, tokens: float) -> float:
    width, stages = profile.configurations[0]
    latency_s = profile.latency_s(phase, tensor_parallel=width, num_stages=stages, batch=batch, tokens=tokens)
    return float(latency_s[profile.cluster_type_index, -1].sum())


def draw_workload(seed: int, *, simulation: Simulation = SHORT) -> Workload:
    """A workload that a small fleet can probably carry: pools, bursts, batches, generate services, caps."""
    draw = Draw(rng=np.random.default_rng(seed))
    rng = draw.rng
    fleet = draw.fleet()
    models = draw.models(number=int(rng.integers(2, 6)), generates=0.12)
    load_gpus = fleet.num_gpus * rng.uniform(0.08, 0.25)
    parts = rng.dirichlet(np.full(len(models), 2.0))
    services = tuple(
        draw.service(
            fleet,
            model=model,
            load_gpus=float(load_gpus * part),
            cv=float(rng.choice([1.0, 2.0, 4.0, 6.0])),
            scale=float(rng.choice([8.0, 10.0, 15.0, 20.0])),
        )
        for model, part in zip(models, parts, strict=True)
    )
    if rng.random() < 0.3:
        fleet = fleet.model_copy(update={"power_cap_w": round(peak_w(fleet) * rng.uniform(0.5, 0.9))})
    if rng.random() < _LIMITED:
        fleet, services = draw.limited(fleet, services)
    return Workload(
        name=f"drawn-{seed}",
        fleet=fleet,
        services=services,
        serving=draw.serving(generates=any(model in GENERATE for model in models)),
        simulation=simulation,
    )


def peak_w(fleet: Fleet) -> float:
    """Power of a fleet with every GPU at its board's cap."""
    return sum(pool.num_gpus * load_device(pool.device).power_cap_w for pool in fleet.pools)
