"""The ``muplan`` command with a GPU that is the C double and passes that only wait; run as a program.

What torch would do is replaced; the meter, the lease and its guardian are the real ones.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from muplan.cli.main import main
from muplan.hardware.lease import lease_clock
from muplan.hardware.nvml import NvmlMeter
from muplan.hardware.way import Way
from muplan.profiling.measured.load import Machine
from muplan.profiling.measured.measure import Place
from muplan.profiling.measured.points import Point
from muplan.profiling.measured.rules import Rules


class Waiting:
    """A pass that takes a millisecond and does nothing."""

    num_passes = 1

    def time_s(self, count: int) -> float:
        time.sleep(count * 1e-6)
        return 1e-3

    def start(self, count: int) -> None:
        """Hand over runs that take next to no time."""
        time.sleep(count * 1e-6)

    def wait(self) -> None:
        time.sleep(1e-3)


class WaitingBench:
    """Makes waiting passes."""

    def load(self, point: Point) -> Waiting:
        assert point.clock_mhz in (None, 600)
        return Waiting()


@contextmanager
def open_place(
    on: str, *, use_graphs: bool = True, is_shared: bool = False, sets_clocks: bool = False
) -> Iterator[Place]:
    """Open the double as a place to measure on."""
    assert sets_clocks
    with NvmlMeter(0) as meter, lease_clock(Way.NVML, 0) as lease:
        yield Place(
            label="double",
            make_bench=lambda *_: WaitingBench(),
            meter=meter,
            host=Machine(),
            rules=Rules(),
            batches=(1, 2),
            tokens=(4, 16),
            device="h200-sxm5-141gb",
            actuator=lease,
        )


if __name__ == "__main__":
    stand_in = ModuleType("muplan.profiling.measured.place")
    stand_in.open_place = open_place  # type: ignore[attr-defined]
    sys.modules[stand_in.__name__] = stand_in
    main()
