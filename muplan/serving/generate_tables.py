"""Dense arrays of the generate groups of a deployment, for the compiled kernel.

A decode iteration of a batch of n sequences that attend to Σc tokens in all takes a(n) + k(n) · Σc in
each stage, and its energy has the same form; both are fitted to the profile by relative least
squares. A prefill of prompts with T tokens in all takes base(T) + Σ extra(prompt): ``base`` follows
batches of prompts of the service's mean length, ``extra`` is what a longer prompt costs more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muplan.errors import InputError
from muplan.hardware.device import Device
from muplan.plan import Group, Replica
from muplan.problem.problem import Problem, ResolvedService
from muplan.profile import Phase, Profile
from muplan.serving.groups import Values, add_group, candidates, clock_grid, limits_of, stage_factor
from muplan.serving.kernel_tables import KernelTables
from muplan.serving.layout import GROUP, REPLICA, STAGE, Floats, Rows
from muplan.serving.passes import pass_table, transfer_s
from muplan.workload import Batching, Serving

PREFILL_TOKENS = 2048
"""Most prompt tokens that one prefill iteration takes, unless a single prompt is longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateGroup:
    """Tables of one group.

    Parameters
    ----------
    max_batch
        Most sequences of a batch: the replica's limit; of a dynamic batch no more than KV memory holds at the
        service's longest request, which is set aside for each as nothing is preempted.
    decode
        Coefficients a and k of time and of energy; shape (stages, clocks, batches, 4).
    decode_transfer_s
        Transfers of an iteration; shape (batches,).
    knot_tokens, prefill, knot_transfer_s
        Prefill: tokens; base and extra of time and of energy; transfers of an iteration; shapes
        (knots,), (stages, clocks, knots, 4), (knots,).
    """

    max_batch: int
    kv_tokens: int
    prefill_budget: int
    decode: Floats
    decode_transfer_s: Floats
    knot_tokens: Floats
    prefill: Floats
    knot_transfer_s: Floats


def kv_capacity_tokens(device: Device, group: Group, service: ResolvedService) -> int:
    """Tokens whose keys and values fit on a group's GPUs beside weights and working memory.

    Working memory is that of the largest prefill. The fullest stage decides.

    Raises
    ------
    InputError
        They do not hold the service's longest request.
    """
    replica, profile = group.replicas[0], service.profiles[group.pool]
    width = profile.tensor_parallel_index(group.tensor_parallel, len(group.stages))
    capacity = 2**40
    for ranges in replica.stage_clusters:
        types = [
            profile.cluster_types[i] for i in profile.cluster_type_index[np.r_[*(slice(*r) for r in ranges)]]
        ]
        weights = sum(kind.weight_bytes_per_gpu[width] for kind in types)
        activation = max(kind.activation_bytes_per_token_per_gpu[width] for kind in types)
        kv_bytes = sum(kind.kv_bytes_per_token_per_gpu[width] for kind in types)
        free = device.usable_memory_bytes - weights - activation * max(PREFILL_TOKENS, service.max_context)
        if kv_bytes > 0:
            capacity = min(capacity, free // kv_bytes)
    if capacity < service.max_context:
        raise InputError(
            f"Group {group.name!r} has KV memory for {max(capacity, 0)} tokens; the longest request of"
            f" {service.name!r} has {service.max_context}.",
            "Give the group more GPUs, or shorten the service's longest request.",
        )
    return int(capacity)


def generate_group(problem: Problem, group: Group, batching: Batching = Batching.CONTINUOUS) -> GenerateGroup:
    """Tabulate one generate group.

    Raises
    ------
    InputError
        A clock is not on the profile's grid, the profile does not cover the replica, or the memory
        does not hold the longest request.
    """
    device, replica = problem.devices[group.pool], group.replicas[0]
    service = problem.service(replica.service)
    profile = service.profiles[group.pool]
    for phase in (Phase.PREFILL, Phase.DECODE):
        if service.max_context > profile.grid(phase).tokens[-1]:
            raise InputError(
                f"The longest request of {service.name!r} has {service.max_context} tokens; the profile of"
                f" {profile.model} on {profile.device} covers {profile.grid(phase).tokens[-1]} in {phase}.",
                "Profile longer contexts, or shorten the service's longest request.",
            )
    on_grid = np.searchsorted(profile.clocks_mhz, clock_grid(problem, group))
    kv_tokens, max_batch = kv_capacity_tokens(device, group, service), replica.max_batch
    if batching is Batching.DYNAMIC:
        max_batch = min(max_batch, kv_tokens // service.max_context)
    decode, decode_transfer = _decode_tables(device, group, max_batch, service, profile)
    knots, budget, prefill, transfer = _prefill_tables(device, group, replica, service, profile)
    return GenerateGroup(
        max_batch=max_batch,
        kv_tokens=kv_tokens,
        prefill_budget=budget,
        decode=decode[:, on_grid],
        decode_transfer_s=decode_transfer,
        knot_tokens=knots,
        prefill=prefill[:, on_grid],
        knot_transfer_s=transfer,
    )


def _decode_tables(
    device: Device, group: Group, max_batch: int, service: ResolvedService, profile: Profile
) -> tuple[Floats, Floats]:
    """Coefficients of decode iterations, shape (stages, clocks, batches, 4), and their transfers."""
    replica, batches = group.replicas[0], np.arange(1, max_batch + 1)
    grid = np.array(profile.grid(Phase.DECODE).tokens)
    contexts = grid[: int(np.searchsorted(grid, service.max_context)) + 1]
    tables = [
        pass_table(device, group, replica, profile, phase=Phase.DECODE, tokens=int(context), batches=batches)
        for context in contexts
    ]
    latency = np.stack([table.latency_s for table in tables], axis=-1)  # stages, clocks, batches, contexts
    energy = latency * np.stack([table.power_w for table in tables], axis=-1) * group.tensor_parallel
    attended = np.asarray(batches[:, None] * contexts[None, :], dtype=np.float64)
    columns = (*_fitted_line(attended, latency), *_fitted_line(attended, energy))
    return np.stack(columns, axis=-1), tables[0].transfer_s.sum(axis=0)


def _fitted_line(abscissa: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Intercept and slope ≥ 0 along the last axis, by least squares of the relative error."""
    weight = values**-2.0
    total = weight.sum(axis=-1)
    mean_x = (weight * abscissa).sum(axis=-1) / total
    mean_y = (weight * values).sum(axis=-1) / total
    centred = abscissa - mean_x[..., None]
    spread = (weight * centred**2).sum(axis=-1)
    product = (weight * centred * (values - mean_y[..., None])).sum(axis=-1)
    slope = np.divide(product, spread, out=np.zeros_like(product), where=spread > 0.0)
    slope = np.clip(slope, 0.0, mean_y / np.maximum(mean_x, 1.0))  # so the intercept is not negative
    return mean_y - slope * mean_x, slope


def _prefill_tables(
    device: Device, group: Group, replica: Replica, service: ResolvedService, profile: Profile
) -> tuple[Floats, int, Floats, Floats]:
    """Knots (tokens), token budget, base and extra of time and energy at the knots, and transfers."""
    grid = profile.grid(Phase.PREFILL)
    mean = float(np.clip(service.input_tokens, grid.tokens[0], grid.tokens[-1]))
    few = [batch for batch in grid.batches if batch * mean < PREFILL_TOKENS]
    batches = grid.batches[: len(few) + 1]  # to the first that reaches the most tokens of an iteration
    shorter = [tokens for tokens in grid.tokens if tokens < mean]
    longer = [tokens for tokens in grid.tokens if tokens > mean]

    def at(tokens: float, batch: int) -> Floats:
        """Time and energy of a prefill; shape (stages, clocks, 2)."""
        table = pass_table(
            device, group, replica, profile, phase=Phase.PREFILL, tokens=tokens, batches=[batch]
        )
        energy = table.latency_s * table.power_w * group.tensor_parallel
        return np.concatenate([table.latency_s, energy], axis=-1)

    packed_tokens = np.array([*shorter, *(batch * mean for batch in batches)])
    packed = [*(at(tokens, 1) for tokens in shorter), *(at(mean, batch) for batch in batches)]
    knots = np.unique([*packed_tokens, *longer])
    base = _linear(knots, packed_tokens, np.stack(packed, axis=-2))
    long_tokens = np.array([mean, *longer])
    alone = np.stack([at(tokens, 1) for tokens in long_tokens], axis=-2)
    excess = alone - base[..., np.searchsorted(knots, long_tokens), :]
    is_single = (knots > mean) & (knots <= grid.tokens[-1])
    extra = np.where(is_single[:, None], _linear(knots, long_tokens, excess), 0.0)
    table = np.stack([base[..., 0], extra[..., 0], base[..., 1], extra[..., 1]], axis=-1)
    transfer = np.array([_prefill_transfer_s(device, group, replica, profile, tokens) for tokens in knots])
    return knots, min(int(packed_tokens[-1]), PREFILL_TOKENS), table, transfer


def _prefill_transfer_s(
    device: Device, group: Group, replica: Replica, profile: Profile, num_tokens: float
) -> float:
    return float(transfer_s(device, group, replica, profile, num_tokens=num_tokens).sum())


def _linear(at: Floats, points: Floats, values: Floats) -> Floats:
    """Interpolate axis −2 linearly; beyond the last point with the last slope."""
    if len(points) == 1:
        return np.asarray(np.repeat(values, len(at), axis=-2) * (at / points[0])[:, None])
    upper = np.clip(np.searchsorted(points, at), 1, len(points) - 1)
    weight = ((at - points[upper - 1]) / (points[upper] - points[upper - 1]))[:, None]
    return np.asarray(values[..., upper - 1, :] * (1.0 - weight) + values[..., upper, :] * weight)


def generate_tables(problem: Problem, groups: Sequence[Group], serving: Serving) -> KernelTables:
    """Tabulate groups that host generate services.

    Raises
    ------
    InputError
        As `generate_group`.
    """
    rows = np.zeros(len(groups), dtype=GROUP)
    stages = np.zeros(sum(len(group.stages) for group in groups), dtype=STAGE)
    replicas = np.zeros(len(groups), dtype=REPLICA)
    values = Values()
    stage, running = 0, 0
    for index, group in enumerate(groups):
        last_stage = stage + len(group.stages)
        row, replica = rows[index : index + 1], group.replicas[0]
        row["first_stage"], row["last_stage"] = stage, last_stage
        row["first_replica"], row["last_replica"] = index, index + 1
        member = generate_group(problem, group, serving.batching)
        row["first_running"], row["max_batch"] = running, member.max_batch
        add_group(problem, group, serving, row, stages[stage:last_stage], values)
        _add_tables(member, stage_factor(serving, group), row, values)
        service = problem.service(replica.service)
        row["mean_input"], row["mean_output"] = service.input_tokens, service.output_tokens
        row["root_by_key"], row["root_by_age"] = -1, -1
        replicas[index]["group"], replicas[index]["share"] = index, replica.share
        limits_of(problem, service, replicas[index : index + 1])
        replicas[index]["full_since_s"] = np.inf
        stage, running = last_stage, running + member.max_batch
    first, order = candidates(replicas["service"], len(problem.services))
    return KernelTables(
        groups=rows,
        stages=stages,
        replicas=replicas,
        service_candidate=first,
        candidate_replica=order,
        values=values.joined(),
    )


def _add_tables(member: GenerateGroup, factor: float, row: Rows, values: Values) -> None:
    """Append a group's tables, stage times longer by ``factor``, to the values; point its row at them."""
    row["kv_tokens"], row["prefill_budget"] = member.kv_tokens, member.prefill_budget
    row["first_decode"], row["first_transfer"] = (
        values.share(member.decode * factor),
        values.share(member.decode_transfer_s),
    )
    row["first_knot"], row["num_knots"] = values.share(member.knot_tokens), len(member.knot_tokens)
    row["first_knot_transfer"] = values.share(member.knot_transfer_s)
    row["first_prefill"] = values.share(member.prefill * factor)
    row["first_iteration"] = values.add(np.zeros(2 * len(member.decode_transfer_s)))
    row["first_reply"] = values.add(np.zeros(len(member.decode_transfer_s)))
    row["first_alone"] = values.add(np.zeros(len(member.knot_tokens)))
