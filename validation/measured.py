"""Measured profiles against whole passes of their models, and against the analytical profiler.

Run ``python -m validation.measured PROFILE…`` in the repository. With ``--whole``, on the GPU that the
profiles were measured on, every model is put together and whole passes are timed: what the profile's clusters
add up to should be that. ``--levels`` first measures what the GPU draws parked and with a context.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from muplan.hardware.catalog import load_device
from muplan.hardware.nvml import NvmlMeter
from muplan.model.catalog import load_model
from muplan.model.graph import ModelGraph
from muplan.profile import Phase, PhaseGrid, Profile
from muplan.profiling.analytical import make_profile
from muplan.serde import read_document


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Time and power of a whole pass at the highest clock, seconds and watts."""

    latency_s: float
    power_w: float


def composed(profile: Profile, phase: Phase, batch: int, tokens: int) -> Pass:
    """What the clusters of a profile add up to."""
    where = {"tensor_parallel": 1, "batch": batch, "tokens": tokens}
    count = np.bincount(profile.cluster_type_index, minlength=len(profile.cluster_types))
    latency_s = count * profile.latency_s(phase, **where)[:, -1]
    power_w = profile.power_w(phase, **where)[:, -1]
    total_s = float(latency_s.sum())
    return Pass(latency_s=total_s, power_w=float(latency_s @ power_w) / total_s)


def corners(grid: PhaseGrid) -> Iterator[tuple[int, int]]:
    """Points of a grid to look at: first, middle and last batch, at the middle and the last tokens."""
    batches = sorted({grid.batches[0], grid.batches[len(grid.batches) // 2], grid.batches[-1]})
    tokens = sorted({grid.tokens[len(grid.tokens) // 2], grid.tokens[-1]})
    return ((batch, count) for batch in batches for count in tokens)


def whole_pass(graph: ModelGraph, phase: Phase, batch: int, tokens: int) -> Pass:
    """Time a whole pass of a model with random weights on the GPU."""
    import torch

    from muplan.profiling.clustering import segments_of
    from muplan.profiling.measured.draw import draw_load
    from muplan.profiling.measured.load import Machine
    from muplan.profiling.measured.modules import SegmentModule, pass_shape
    from muplan.profiling.measured.timing import time_load
    from muplan.profiling.measured.torch_load import TorchLoad

    device, shape = torch.device("cuda", 0), pass_shape(phase, batch, tokens)
    with NvmlMeter() as meter, torch.inference_mode():
        with device:
            modules = [SegmentModule(graph, segment.operators).eval() for segment in segments_of(graph)]
        entering = modules[0].reads(shape, device, None)

        def run() -> None:
            flowing = entering
            for module in modules:
                flowing = module(flowing, shape)

        load = TorchLoad(run, device)
        latency_s = time_load(load).median_s
        drawn = draw_load(load, latency_s, meter, Machine())
    return Pass(latency_s=latency_s, power_w=drawn.power_w)


def print_against_whole(profile: Profile) -> None:
    """Clusters added up, against whole passes timed now."""
    graph = load_model(profile.model)
    for grid in profile.phases:
        for batch, tokens in corners(grid):
            added, whole = (
                composed(profile, grid.phase, batch, tokens),
                whole_pass(graph, grid.phase, batch, tokens),
            )
            print(
                f"| {profile.model} | {grid.phase} | {batch} | {tokens} | {1e3 * whole.latency_s:.3f} |"
                f" {added.latency_s / whole.latency_s - 1:+.1%} | {whole.power_w:.0f} |"
                f" {added.power_w / whole.power_w - 1:+.1%} |",
                flush=True,
            )


def print_against_model(profile: Profile) -> None:
    """The analytical profiler's whole passes against the measured profile's, over all its points."""
    modelled = _modelled(profile)
    for grid in profile.phases:
        latency, power = [], []
        for batch in grid.batches:
            for tokens in grid.tokens:
                measured = composed(profile, grid.phase, batch, tokens)
                model = composed(modelled, grid.phase, batch, tokens)
                latency.append(model.latency_s / measured.latency_s - 1)
                power.append(model.power_w / measured.power_w - 1)
        print(
            f"| {profile.model} | {grid.phase} | {len(latency)} | {np.median(latency):+.0%} |"
            f" {np.abs(latency).mean():.0%} | {np.median(power):+.0%} | {np.abs(power).mean():.0%} |",
            flush=True,
        )


def _modelled(profile: Profile) -> Profile:
    grid = profile.phases[0]
    tokens = None if load_model(profile.model).fixed_tokens else grid.tokens
    return make_profile(
        load_model(profile.model),
        load_device(profile.device),
        batches=grid.batches,
        tokens=tokens,
        tensor_parallel=(1,),
    )


def print_levels() -> None:
    """What the GPU draws without a context, and with one that waits."""
    from muplan.profiling.measured.draw import draw_idle
    from muplan.profiling.measured.load import Machine

    with NvmlMeter() as meter:
        parked = draw_idle(meter, Machine())
        import torch

        held = torch.zeros(1, device="cuda")
        loaded = draw_idle(meter, Machine())
        del held
    print(f"| parked | {parked.power_w:.1f} W | {parked.sm_clock_mhz:.0f} MHz |")
    print(f"| loaded and idle | {loaded.power_w:.1f} W | {loaded.sm_clock_mhz:.0f} MHz |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("profiles", type=Path, nargs="*")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--levels", action="store_true")
    options = parser.parse_args()
    if options.levels:
        print("| level | power | SM clock |\n|---|---:|---:|")
        print_levels()
    profiles = [read_document(path, Profile) for path in options.profiles]
    if options.whole:
        print("| model | phase | batch | tokens | whole pass, ms | clusters | whole pass, W | clusters |")
        print("|---|---|---:|---:|---:|---:|---:|---:|")
        for profile in profiles:
            print_against_whole(profile)
    elif profiles:
        print("| model | phase | points | latency, median | mean error | power, median | mean error |")
        print("|---|---|---:|---:|---:|---:|---:|")
        for profile in profiles:
            print_against_model(profile)


if __name__ == "__main__":
    main()
