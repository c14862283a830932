"""Where groups of nodes may be parted into stages. This file imports torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from muplan.capture.flow import Flow, last_reads
from muplan.capture.grouping import Group
from muplan.capture.trace import Trace
from muplan.model.graph import TENSOR_CORE_KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedSegment:
    """Groups between two cuts.

    Parameters
    ----------
    first, last
        The nodes between the cuts, both among them; the last leaves ``leaving``.
    leaving
        The one value that goes on from here.
    """

    groups: tuple[Group, ...]
    first: int
    last: int
    leaving: int


def cut_groups(trace: Trace, flow: Flow, groups: tuple[Group, ...]) -> tuple[CapturedSegment, ...]:
    """Cut wherever one flowing value alone is read later; the last segment leaves the answer."""
    ends = _cuts(trace, flow)
    waiting, segments, first = sorted(groups, key=lambda group: group.last), [], 0
    for end in sorted({group.last for group in groups} & set(ends)):
        if any(group.nodes[0] <= end < group.last for group in waiting):
            continue  # a group stands on both sides
        inside = tuple(group for group in waiting if group.last <= end)
        waiting = waiting[len(inside) :]
        segments.append(CapturedSegment(groups=inside, first=first, last=end, leaving=ends[end]))
        first = end + 1
    return tuple(_end(trace, _join_light(segments), tuple(waiting)))


def _end(trace: Trace, segments: list[CapturedSegment], waiting: tuple[Group, ...]) -> list[CapturedSegment]:
    """Let the last segment leave the answer; groups that the answer does not need stand in it, too."""
    last = len(trace.nodes) - 1
    if waiting and (not segments or segments[-1].leaving != trace.answer):
        first = segments[-1].last + 1 if segments else 0
        return [*segments, CapturedSegment(groups=waiting, first=first, last=last, leaving=trace.answer)]
    end = segments[-1]
    return [
        *segments[:-1],
        replace(end, groups=(*end.groups, *waiting), last=last, leaving=trace.answer),
    ]


def _join_light(segments: list[CapturedSegment]) -> list[CapturedSegment]:
    """Put a segment without matrices to the one before it where the same module runs both.

    A normalisation after a residual addition, or the activation of a pooler, is no place to part a model at.
    """
    joined = segments[:1]
    for segment in segments[1:]:
        owner = _owner(joined[-1].groups[-1])
        is_light = not any(group.kind in TENSOR_CORE_KINDS for group in segment.groups)
        if is_light and _owner(segment.groups[0]) in (owner, _parent(owner)):
            last = joined.pop()
            segment = replace(segment, groups=(*last.groups, *segment.groups), first=last.first)
        joined.append(segment)
    return joined


def _owner(group: Group) -> str:
    """The module whose code calls for the group: itself, or what the group's module stands in."""
    return group.path if group.name else _parent(group.path)


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _cuts(trace: Trace, flow: Flow) -> dict[int, int]:
    """Return the nodes behind which one flowing value is read later, and that value."""
    made, last_read = trace.made_by(), last_reads(trace, flow)
    born: dict[int, list[int]] = {}
    dying: dict[int, list[int]] = {}
    live: set[int] = set()
    for value, read in last_read.items():
        if value in flow.flowing:
            if value in made:
                born.setdefault(made[value], []).append(value)
            else:
                live.add(value)
            dying.setdefault(read, []).append(value)
    cuts = {}
    for index in range(len(trace.nodes)):
        live.difference_update(dying.get(index, ()))
        live.update(born.get(index, ()))
        if len(live) == 1:
            cuts[index] = next(iter(live))
    return cuts
