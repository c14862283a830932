"""From a module to a graph of operators, with all that cutting it takes. This file imports torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from muplan.capture.costs import Stored, check_known
from muplan.capture.cutting import CapturedSegment, cut_groups
from muplan.capture.flow import Flow, analyse
from muplan.capture.folding import fold
from muplan.capture.grouping import group_nodes
from muplan.capture.operators import OperatorMaker
from muplan.capture.recording import named_weights, record
from muplan.capture.subject import Subject
from muplan.capture.trace import Trace, join_recordings
from muplan.errors import InputError, MuplanError
from muplan.model.graph import AttentionKernel, ModelGraph, OperatorKind, Phase

if TYPE_CHECKING:
    from muplan.capture.stage import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """A model as it was traced.

    Parameters
    ----------
    segments
        As those of the graph between its cuts, one for one.
    weights
        Parameters and buffers by name; without data unless the capture was real.
    unread
        Parameters that no pass reads; no operator holds them.
    """

    graph: ModelGraph
    trace: Trace
    flow: Flow
    segments: tuple[CapturedSegment, ...]
    weights: Mapping[str, Tensor]
    unread: tuple[str, ...]
    is_real: bool

    def stage(self, first: int, last: int, *, does_all_side: bool = False) -> Stage:
        """Return segments ``first`` to ``last`` (left out) as a module that runs.

        Parameters
        ----------
        does_all_side
            Whether it computes masks, positions and the like for the whole model.

        Raises
        ------
        InputError
            There are no such segments, or the capture holds no weights.
        """
        from muplan.capture.stage import Stage

        return Stage(self, first, last, does_all_side=does_all_side)


def capture_subject(
    subject: Subject, *, attention: AttentionKernel | None = None, is_real: bool = False
) -> Captured:
    """Trace a model and make its graph.

    Parameters
    ----------
    attention
        The attention kernel that the graph stands for; fused for generators, unfused for others where
        absent.
    is_real
        Make the model with its weights, so that stages can be cut from it; else without any data.

    Raises
    ------
    InputError
        The model cannot be traced, or does other things at other sizes.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    module = make_module(subject, mode, is_real=is_real)
    trace, counted = _trace(subject, module, mode)
    weights = dict(named_weights(module))
    parameters = frozenset(name for name, _ in module.named_parameters())
    flow = analyse(trace, subject.side, parameters)
    stored = {
        name: Stored(
            shape=tuple(tensor.shape),
            num_bytes=tensor.numel() * tensor.element_size(),
            is_parameter=name in parameters,
        )
        for name, tensor in weights.items()
    }
    check_known(trace, stored, counted)
    segments = cut_groups(trace, flow, group_nodes(trace, flow))
    phases = (Phase.PREFILL, Phase.DECODE) if subject.request_kind == "generate" else (Phase.FORWARD,)
    maker = OperatorMaker(trace=trace, flow=flow, weights=stored, phases=phases)
    blocks = fold([maker.segment(segment) for segment in segments])
    heads, kv_heads = subject.num_heads or _heads(trace, segments)
    graph = ModelGraph(
        name=subject.name,
        family=subject.family,
        source=subject.source,
        captured_from=subject.class_name,
        origin=subject.origin,
        request_kind=subject.request_kind,
        element_bytes=subject.element_bytes,
        attention=attention or ("fused" if subject.request_kind == "generate" else "unfused"),
        hidden_size=subject.hidden_size or _width(trace, segments),
        num_heads=heads,
        num_kv_heads=kv_heads,
        max_context=subject.max_context,
        fixed_tokens=1 if subject.lengths == "fixed" else None,
        vocabulary_size=subject.vocabulary_size,
        blocks=blocks,
    )
    return Captured(
        graph=graph,
        trace=trace,
        flow=flow,
        segments=segments,
        weights=weights,
        unread=tuple(sorted(parameters - maker.held)),
        is_real=is_real,
    )


def make_module(subject: Subject, mode: FakeTensorMode, *, is_real: bool) -> nn.Module:
    """Make a subject's module: with weights, or with fake ones of the mode."""
    try:
        with torch.device("cpu" if is_real else "meta"):
            module = subject.make()
    except MuplanError:
        raise
    except Exception as error:  # whatever the model's own code says of its configuration
        said = str(error).partition("\n")[0][:200]
        raise InputError(
            f"{subject.name}: {subject.class_name} cannot be made: {said}.", "Correct its configuration."
        ) from None
    if is_real:
        return module.requires_grad_(False)
    fakes: dict[int, Tensor] = {}
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is not None and tensor.device.type == "meta":
                    held[name] = fakes.setdefault(id(tensor), _fake(tensor, mode))
    return module


def _fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """Give a tensor without data a device: code asks on which one it is."""
    fake = FakeTensor(mode, tensor.detach(), torch.device("cpu"))
    return nn.Parameter(fake, requires_grad=False) if isinstance(tensor, nn.Parameter) else fake


def _trace(subject: Subject, module: nn.Module, mode: FakeTensorMode) -> tuple[Trace, int]:
    """Trace the module; also return the operations that torch's own counter finds at the first size."""
    recordings = []
    counter = FlopCounterMode(display=False)
    for number, sizes in enumerate(subject.grid.sizes):
        with torch.inference_mode(), mode:
            entering = subject.enter(module, sizes)
        recordings.append(
            record(
                module,
                entering.inputs,
                lambda arguments=entering.arguments: module(**arguments),  # type: ignore[misc]
                subject.answer,
                mode,
                nullcontext() if number else counter,
            )
        )
    return join_recordings(subject.grid, recordings), int(counter.get_total_flops())


def _heads(trace: Trace, segments: tuple[CapturedSegment, ...]) -> tuple[int, int]:
    """The most heads of queries, and the fewest of keys, among the attentions; 1 where there are none."""
    found = [(1, 1)]
    for segment in segments:
        for group in segment.groups:
            if group.kind is OperatorKind.ATTENTION:
                query, key = trace.nodes[group.nodes[0]].reads[:2]
                found.append((int(trace.values[query].shape[0, 1]), int(trace.values[key].shape[0, 1])))
    return max(found)


def _width(trace: Trace, segments: tuple[CapturedSegment, ...]) -> int:
    """The last dimension that most cuts have."""
    return Counter(int(trace.values[segment.leaving].shape[0, -1]) for segment in segments).most_common(1)[0][
        0
    ]
