"""How long a pass takes, and what the device draws meanwhile. This file imports torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from muplan.hardware.meter import Meter, Reading
from muplan.profiling.measured.draw import STEADY_LOAD_S, Draw, drawn_since

Run = Callable[[], object]

_WARM_UP_S, _STEADY = 0.02, 0.05
"""Warm up for so long at least, and until two batches of runs differ by no more than this share."""
_MOST_WARM_UPS = 20
_NUM_SAMPLES, _SAMPLE_S = 11, 2e-3
"""Samples of each point; each of enough runs to last so long."""
_NUM_READINGS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The median time of a run with its 95 % confidence interval, seconds."""

    median_s: float
    low_s: float
    high_s: float


@dataclass(slots=True)
class Stopwatch:
    """Times runs on a torch device: by events on a GPU, by the host's clock elsewhere.

    Parameters
    ----------
    use_graphs
        Capture a run as a CUDA graph and replay it, as serving software does, so that launches do not count.
    """

    device: torch.device
    meter: Meter | None = None
    use_graphs: bool = True
    _graphs: list[torch.cuda.CUDAGraph] = field(default_factory=list)

    def prepared(self, run: Run) -> Run:
        """Return the run as it is to be repeated."""
        if self.device.type != "cuda" or not self.use_graphs:
            return run
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        self._graphs = [graph]  # the last one alone: each holds memory
        replay: Run = graph.replay
        return replay

    def time(self, run: Run) -> Timing:
        """Warm up until runs last equally long, then take samples."""
        several = self._several(run, 1)
        warmed_s, before = 0.0, several
        for _ in range(_MOST_WARM_UPS):
            count = max(1, round(_SAMPLE_S / max(before, 1e-7)))
            now = self._several(run, count)
            warmed_s += now * count
            steady = abs(now / before - 1.0) <= _STEADY
            before = now
            if steady and warmed_s >= _WARM_UP_S:
                break
        count = max(1, round(_SAMPLE_S / max(before, 1e-7)))
        return _timing([self._several(run, count) for _ in range(_NUM_SAMPLES)])

    def _several(self, run: Run, count: int) -> float:
        """Mean time of ``count`` runs one after the other, seconds."""
        if self.device.type != "cuda":
            begin_s = time.perf_counter()
            for _ in range(count):
                run()
            return (time.perf_counter() - begin_s) / count
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(count):
            run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / count

    def draw(self, run: Run, run_s: float) -> Draw | None:
        """Run for two seconds and more; None where nothing reads the device's energy.

        Raises
        ------
        DeviceError
            The counter stood still or ran backwards.
        """
        if self.meter is None:
            return None
        part = max(1, round(STEADY_LOAD_S / _NUM_READINGS / max(run_s, 1e-7)))
        self._load(run, part)  # the driver raises the clock, and power settles
        readings: list[Reading] = []
        begin_s, begin_j = time.perf_counter(), self.meter.energy_j()
        while time.perf_counter() - begin_s < STEADY_LOAD_S:
            for _ in range(part):
                run()
            readings.append(self.meter.read())  # while the queue is still full
            self._wait()
        return drawn_since(self.meter, begin_s, begin_j, readings)

    def _load(self, run: Run, count: int) -> None:
        for _ in range(count):
            run()
        self._wait()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _timing(samples_s: Sequence[float]) -> Timing:
    """The median, and the order statistics that hold it with 95 %: of 11 the second and the tenth."""
    ordered = np.sort(np.asarray(samples_s))
    return Timing(median_s=float(np.median(ordered)), low_s=float(ordered[1]), high_s=float(ordered[-2]))
