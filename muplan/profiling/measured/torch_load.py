"""Passes on a torch device, timed by events on a GPU, by the host's clock elsewhere; imports torch."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

Run = Callable[[], object]


class TorchLoad:
    """A run of passes on a torch device.

    Parameters
    ----------
    num_passes
        Passes that one call of ``run`` makes.
    use_graphs
        On a GPU, capture the run as a CUDA graph and replay it, as serving software does, so that launches
        do not count.
    """

    def __init__(
        self, run: Run, device: torch.device, *, num_passes: int = 1, use_graphs: bool = True
    ) -> None:
        self._device, self._num_passes = device, num_passes
        with torch.inference_mode():
            self._run = self._captured(run) if device.type == "cuda" and use_graphs else run
            self._run()  # memory that does not suffice is told here

    @property
    def num_passes(self) -> int:
        """Passes in a run."""
        return self._num_passes

    def _captured(self, run: Run) -> Run:
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        replay: Run = graph.replay
        return replay

    def time_s(self, count: int) -> float:
        """Mean time of ``count`` runs one after the other, seconds."""
        if self._device.type != "cuda":
            begin_s = time.perf_counter()
            self.start(count)
            return (time.perf_counter() - begin_s) / count
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        self.start(count)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / count

    def start(self, count: int) -> None:
        """Hand ``count`` runs to the device; a processor is done with them at once."""
        with torch.inference_mode():
            for _ in range(count):
                self._run()

    def wait(self) -> None:
        """Wait until a GPU has done what it was handed."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
