"""The operating points of a profile: which clocks, batches, tokens and degrees are evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muplan.errors import InputError
from muplan.hardware.device import Device
from muplan.model.graph import ModelGraph, Phase
from muplan.profiling.roofline import PassGrid

_NUM_CLOCKS = 10
_REFERENCE_SHARE = 0.7  # of the highest clock
_LARGEST_BATCH = {Phase.FORWARD: 64, Phase.PREFILL: 64, Phase.DECODE: 256}
_LONGEST = 16384
_SHORT_TOKENS = (1, 64)
_TYPICAL_BATCH = {Phase.FORWARD: 1, Phase.PREFILL: 1, Phase.DECODE: 16}
_TYPICAL_TOKENS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilePasses(PassGrid):
    """The passes of one phase of a profile, in whole batches."""

    batches: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileGrid:
    """Requested clocks (ascending, MHz), degrees of tensor parallelism, and the passes of each phase."""

    clocks_mhz: tuple[int, ...]
    reference_clock_mhz: int
    tensor_parallel: tuple[int, ...]
    passes: tuple[ProfilePasses, ...]

    def typical_passes(self) -> tuple[PassGrid, ...]:
        """Return one pass of each phase, of the grid's points the nearest to common serving.

        Batch 1 in a forward or prefill pass, 16 in decode; 1,024 tokens.
        """
        return tuple(
            PassGrid(
                phase=passes.phase,
                batches=(_nearest(passes.batches, _TYPICAL_BATCH[passes.phase]),),
                tokens=(_nearest(passes.tokens, _TYPICAL_TOKENS),),
            )
            for passes in self.passes
        )


def make_grid(
    graph: ModelGraph,
    device: Device,
    *,
    clocks_mhz: Sequence[int] | None,
    batches: Sequence[int] | None,
    tokens: Sequence[int] | None,
    tensor_parallel: Sequence[int] | None,
) -> ProfileGrid:
    """Check what the caller chose and fill in the rest; see `muplan.profiling.analytical.make_profile`."""
    clocks = clock_grid(device, clocks_mhz)
    degrees = _degrees(graph, tensor_parallel)
    passes = tuple(
        ProfilePasses(phase=phase, batches=_batches(phase, batches), tokens=_tokens(graph, phase, tokens))
        for phase in graph.phases
    )
    return ProfileGrid(
        clocks_mhz=clocks,
        reference_clock_mhz=reference_clock_mhz(device, clocks),
        tensor_parallel=degrees,
        passes=passes,
    )


def _nearest(values: Sequence[int], wanted: float) -> int:
    return min(values, key=lambda value: (abs(value - wanted), value))


def reference_clock_mhz(device: Device, clocks_mhz: Sequence[int]) -> int:
    """Return the clock at which sensitivity is scored: of those given the nearest to 70 % of the highest."""
    return _nearest(clocks_mhz, _REFERENCE_SHARE * device.max_clock_mhz)


def clock_grid(device: Device, chosen: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the clocks of a profile: those chosen, snapped, and the highest; ten if none are chosen."""
    usable = device.usable_clocks_mhz
    wanted = np.linspace(usable[0], usable[-1], _NUM_CLOCKS) if chosen is None else np.array(chosen, float)
    snapped = {device.clocks.nearest_usable_mhz(float(clock)) for clock in wanted}
    if len(snapped) < 2:
        raise InputError(
            f"A profile needs two clocks or more; {', '.join(map(str, chosen or ()))} gives {len(snapped)}.",
            f"Choose clocks of {device.name} between {usable[0]} and {usable[-1]} MHz.",
        )
    return tuple(sorted(snapped | {device.max_clock_mhz}))


def _degrees(graph: ModelGraph, chosen: Sequence[int] | None) -> tuple[int, ...]:
    possible = graph.tensor_parallel_degrees()
    if chosen is None:
        return possible
    wrong = sorted(set(chosen) - set(possible))
    if wrong or not chosen:
        raise InputError(
            f"{graph.name} cannot be divided over {', '.join(map(str, wrong)) or 'no'} GPUs:"
            f" it has {graph.num_heads} attention heads and {graph.num_kv_heads} KV heads.",
            f"Choose tensor parallelism among {', '.join(map(str, possible))}.",
        )
    return tuple(sorted(set(chosen)))


def _tokens(graph: ModelGraph, phase: Phase, chosen: Sequence[int] | None) -> tuple[int, ...]:
    if graph.fixed_tokens is not None:
        return _fixed_tokens(graph, graph.fixed_tokens, phase, chosen)
    if chosen is not None:
        if not chosen or min(chosen) < 1 or max(chosen) > graph.max_context:
            raise InputError(
                f"{graph.name} takes 1 to {graph.max_context} tokens, not {', '.join(map(str, chosen))}.",
                "Choose token counts within that range.",
            )
        return tuple(sorted(set(chosen)))
    longest = min(graph.max_context, _LONGEST)
    doubled = [2**power for power in range(7, 14) if 2**power < longest]
    return tuple(sorted({*(count for count in _SHORT_TOKENS if count < longest), *doubled, longest}))


def _fixed_tokens(
    graph: ModelGraph, fixed: int, phase: Phase, chosen: Sequence[int] | None
) -> tuple[int, ...]:
    """Return the one count of a pass over the source; in decode, contexts from there to the maximum."""
    if chosen is not None and set(chosen) != {fixed}:
        raise InputError(f"A pass of {graph.name} always has {fixed} tokens.", "Leave the tokens out.")
    if phase is not Phase.DECODE:
        return (fixed,)
    return tuple(sorted({fixed, (fixed + graph.max_context) // 2, graph.max_context}))


def _batches(phase: Phase, chosen: Sequence[int] | None) -> tuple[int, ...]:
    if chosen is None:
        largest = _LARGEST_BATCH[phase]
        return tuple(2**power for power in range(largest.bit_length()) if 2**power <= largest)
    if not chosen or min(chosen) < 1:
        raise InputError(
            f"The batch sizes {', '.join(map(str, chosen))} are impossible.", "Use positive whole numbers."
        )
    return tuple(sorted(set(chosen)))
