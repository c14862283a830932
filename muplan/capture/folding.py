"""Blocks of a graph from its segments: what repeats is written once."""

from __future__ import annotations

import re
from collections.abc import Sequence

from muplan.model.graph import Block, Operator

_LONGEST = 24
"""Segments of a pattern that repeats."""

Segment = list[Operator]


def fold(segments: Sequence[Segment]) -> tuple[Block, ...]:
    """Fold repeated runs of segments into blocks; the rest stands between them."""
    keys = [_key(segment) for segment in segments]
    blocks: list[Block] = []
    names: set[str] = set()
    single: Segment = []
    start = 0
    while start < len(keys):
        period, count = _longest_run(keys, start)
        if count == 1:
            single += segments[start]
            start += 1
            continue
        if single:
            blocks.append(_block(single, 1, names, "embedding" if not blocks else "between"))
            single = []
        pattern = [operator for segment in segments[start : start + period] for operator in segment]
        blocks.append(_block(pattern, count, names, _container(pattern)))
        start += period * count
    if single:
        blocks.append(_block(single, 1, names, "head" if blocks else "model"))
    return tuple(blocks)


def _key(segment: Segment) -> tuple[Operator, ...]:
    """What makes two segments the same: their operators, but for the numbers in their names."""
    return tuple(
        operator.model_copy(update={"name": re.sub(r"\d+", "#", operator.name)}) for operator in segment
    )


def _longest_run(keys: Sequence[tuple[Operator, ...]], start: int) -> tuple[int, int]:
    """Return the period and the number of repetitions that cover most from ``start`` on."""
    best = (1, 1)
    for period in range(1, min(_LONGEST, (len(keys) - start) // 2) + 1):
        pattern, count = keys[start : start + period], 1
        while keys[start + count * period : start + (count + 1) * period] == pattern:
            count += 1
        if count > 1 and period * count > best[0] * best[1]:
            best = (period, count)
    return best


def _container(pattern: Segment) -> str:
    """Name a block after the list that its modules stand in: ``encoder.layer.0.output`` → ``layer``."""
    parts = pattern[0].name.split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdigit()]
    return parts[numbered[0] - 1] if numbered and numbered[0] else "layer"


def _block(operators: Segment, repeat: int, names: set[str], name: str) -> Block:
    free = name
    while free in names:
        free = f"{name}_{sum(known.startswith(name) for known in names) + 1}"
    names.add(free)
    shared = _shared_prefix([operator.name for operator in operators])
    known: dict[str, int] = {}
    renamed = []
    for operator in operators:
        short = operator.name[len(shared) :] or operator.name.rpartition(".")[2]
        known[short] = known.get(short, 0) + 1
        unique = short if known[short] == 1 else f"{short}_{known[short]}"
        renamed.append(operator.model_copy(update={"name": unique}))
    return Block(name=free, repeat=repeat, operators=tuple(renamed))


def _shared_prefix(names: Sequence[str]) -> str:
    """Return the modules that all names begin with, each with its dot."""
    shared = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(f"{part}." for part in shared)
