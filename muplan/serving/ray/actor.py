"""An actor: the stages of one worker. Ray makes it on the host of its GPU, which must have muplan too."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from muplan import __version__
from muplan.serving.workers.machine import PROCESSOR, check_gpu
from muplan.serving.workers.messages import Array, Order, Ready, Refused
from muplan.serving.workers.parts import WorkerParts

if TYPE_CHECKING:
    from muplan.serving.workers.stage import Stage


class StageActor:
    """Holds stages, and runs what comes, first in, first out.

    Parameters
    ----------
    index
        Which processor core of the host; of a GPU Ray shows it that of its own alone.
    version
        Of the muplan that sends orders.
    """

    def __init__(self, held: WorkerParts, index: int, version: str) -> None:
        self._held, self._index, self._version = held, index, version
        self._stages: dict[str, Stage] = {}

    def make(self) -> Ready | Refused:
        """Make the stages."""
        held = self._held
        if self._version != __version__:
            return Refused(
                problem=f"The host of {held.gpu} has muplan {__version__}; this one has {self._version}.",
                remedy="Install the same version on all hosts.",
            )
        try:
            import torch

            from muplan.serving.workers.worker import REFUSALS, make_stages, refusal
        except ImportError as error:
            return Refused(
                problem=f"The host of {held.gpu} lacks torch ({error}).",
                remedy="Install it there: pip install 'muplan[torch,ray]'",
            )
        try:
            if held.device != PROCESSOR:
                check_gpu(0, held.device)
            with torch.inference_mode():
                self._stages = make_stages(held, self._index)
        except REFUSALS as error:
            return refusal(held, error)
        return Ready()

    def run(self, order: Order, entering: Array | None) -> tuple[float | Refused, Array | None]:
        """Run an order; returns for how long that was, seconds, and what leaves.

        ``entering`` is the order's own: Ray puts what a reference stands for into arguments alone.
        """
        import torch

        from muplan.serving.workers.worker import REFUSALS, refusal

        if entering is not None:
            order = replace(order, entering=np.require(entering, requirements="W"))  # torch wants to write
        begin_s = time.monotonic()
        try:
            with torch.inference_mode():
                leaving = self._stages[order.service].run(order).cpu().numpy()  # waits for a GPU
        except REFUSALS as error:
            return refusal(self._held, error), None
        return time.monotonic() - begin_s, leaving

    def watch(self) -> Any:
        """Never return: who waits for it learns that the actor has died."""
        threading.Event().wait()
