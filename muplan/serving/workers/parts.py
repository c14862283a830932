"""What each worker of a plan holds: the stages on its GPU, as operators of the models' graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from muplan.errors import InputError
from muplan.model.graph import ModelGraph, Operator
from muplan.plan import Deployment, Group, Replica
from muplan.problem.problem import Problem
from muplan.profiling.analytical import profile_members
from muplan.serving.generate_tables import PREFILL_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A service's part of a stage.

    Parameters
    ----------
    segments
        Operators between cut points, in the order of execution.
    first_segment
        Number of the first of them in the model: weights are drawn by segment, wherever it stands.
    tokens
        Of every sequence; of those that a model generates, the most.
    """

    service: str
    graph: ModelGraph
    segments: tuple[tuple[Operator, ...], ...]
    first_segment: int
    max_batch: int
    tokens: int

    @property
    def generates(self) -> bool:
        """Whether its requests are sequences that grow."""
        return self.graph.request_kind == "generate"

    @property
    def largest_pass(self) -> tuple[int, int]:
        """Batch and tokens of the pass that takes the most memory."""
        return (1, max(self.tokens, PREFILL_TOKENS)) if self.generates else (self.max_batch, self.tokens)


Place = tuple[str, int]
"""A worker's place in the plan: its group and stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerParts:
    """A worker's place in the plan, and what it holds."""

    group: str
    stage: int
    gpu: str
    device: str
    parts: tuple[Part, ...]

    @property
    def place(self) -> Place:
        """By which it is known."""
        return self.group, self.stage

    @property
    def name(self) -> str:
        """The stage, as messages name it."""
        return f"stage {self.stage} of {self.group}"


def worker_parts(
    problem: Problem, deployment: Deployment, graphs: Mapping[str, ModelGraph]
) -> tuple[WorkerParts, ...]:
    """The workers of a deployment, by group and stage.

    Parameters
    ----------
    graphs
        Of every service's model, by service.

    Raises
    ------
    InputError
        A plan that workers cannot run: tensor parallelism, a pass that returns to a stage, unfused
        attention in a model that generates.
    """
    found = []
    for group in deployment.groups:
        if group.tensor_parallel > 1:
            raise InputError(
                f"Group {group.name!r} divides its stages over {group.tensor_parallel} GPUs (tensor"
                " parallelism), which workers do not do yet.",
                "Execute it on the simulated backend, or plan smaller models.",
            )
        for stage, place in enumerate(group.stages):
            found.append(
                WorkerParts(
                    group=group.name,
                    stage=stage,
                    gpu=place.gpus[0],
                    device=problem.devices[group.pool].name,
                    parts=tuple(
                        _part(problem, group, replica, stage, graphs[replica.service])
                        for replica in group.replicas
                    ),
                )
            )
    return tuple(found)


def _part(problem: Problem, group: Group, replica: Replica, stage: int, graph: ModelGraph) -> Part:
    ranges = replica.stage_clusters[stage]
    if len(ranges) != 1:
        raise InputError(
            f"A pass of {replica.service!r} comes back to stage {stage} of {group.name!r} (clusters are"
            " grouped by sensitivity), which workers do not do yet.",
            "Execute it on the simulated backend.",
        )
    service, generates = problem.service(replica.service), graph.request_kind == "generate"
    if generates and graph.attention != "fused":
        raise InputError(
            f"The graph of {replica.service!r} has unfused attention, with which workers do not generate.",
            "Profile and plan the model with fused attention: muplan profile --attention fused",
        )
    members = profile_members(service.profiles[group.pool], graph, problem.devices[group.pool])
    (start, stop), before = ranges[0], sum(len(cluster) for cluster in members[: ranges[0][0]])
    return Part(
        service=replica.service,
        graph=graph,
        segments=tuple(segment.operators for cluster in members[start:stop] for segment in cluster),
        first_segment=before,
        max_batch=replica.max_batch,
        tokens=service.max_context if generates else int(service.input_tokens),
    )
