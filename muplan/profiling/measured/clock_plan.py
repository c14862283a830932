"""What would be done to a GPU's clock, before it is done; looks at the GPU and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from muplan.errors import DeviceError
from muplan.hardware.device import Device
from muplan.hardware.meter import Meter
from muplan.hardware.way import Way, find_way, way_or_refusal
from muplan.model.graph import ModelGraph
from muplan.profiling.analytical import make_profile
from muplan.profiling.measured.clock_choice import MOST_CLOCKS, MOST_RESIDUAL, first_clocks
from muplan.profiling.measured.gpu import GPU_BATCHES, GPU_TOKENS, check_free
from muplan.profiling.measured.measure import axes_of, check_runnable
from muplan.serde import Part


class ClockPlan(Part):
    """The changes that a measurement would make to a GPU, and what stands against it."""

    gpu: str
    device: str
    way: Way | None
    clocks_mhz: tuple[int, ...]
    """Set one after the other, each for all passes of the model."""
    most_clocks: int
    most_residual: float
    """Further clocks are set, up to so many in all, while one left out is foretold worse than this."""
    restored_to: str = "what the driver chooses (locked clocks are reset)"
    objections: tuple[str, ...]
    """Why it would be refused; empty where it would not."""


def plan_clocks(
    graph: ModelGraph,
    device: Device,
    meter: Meter,
    *,
    batches: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    is_shared: bool = False,
) -> ClockPlan:
    """Say what measuring a model's profile on a GPU would do to its clock; options as `measure_profile` has.

    Raises
    ------
    InputError
        A model that cannot be run, or a grid that it does not allow.
    DeviceError
        The GPU does not tell its name or its clocks.
    """
    check_runnable(graph)
    batches, tokens = axes_of(graph, batches or GPU_BATCHES, tokens, GPU_TOKENS)
    modelled = make_profile(graph, device, batches=batches, tokens=tokens, tensor_parallel=(1,))
    listed = set(meter.supported_clocks_mhz)
    allowed = [clock for clock in modelled.clocks_mhz if clock in listed]
    return ClockPlan(
        gpu=meter.name,
        device=device.name,
        way=find_way(),
        clocks_mhz=first_clocks(modelled, allowed),
        most_clocks=MOST_CLOCKS,
        most_residual=MOST_RESIDUAL,
        objections=tuple(_objections(way_or_refusal, lambda: check_free(meter, is_shared=is_shared))),
    )


def _objections(*checks: Callable[[], object]) -> Iterator[str]:
    for check in checks:
        try:
            check()
        except DeviceError as error:
            yield f"{error.problem} {error.remedy}"
