"""Stages in the memory of a device, with random weights. This file imports torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from muplan.errors import DeviceError
from muplan.model.graph import Phase
from muplan.profiling.measured.modules import Batch, pass_shape
from muplan.profiling.measured.runnable import runnable_model
from muplan.serving.workers.messages import Order, Run
from muplan.serving.workers.parts import Part

WARM_UPS = 3
"""Passes of each size before the first that counts."""
_SPARE = 1.1
"""Memory that a stage must find, over what its weights and activations take."""


class Stage(nn.Module):  # type: ignore[misc]  # torch is not there for the type checker
    """A service's part of a stage, whose passes are batches of requests alike.

    Its weights are the same wherever the model is cut, and again after a worker has died.
    """

    def __init__(self, part: Part, device: torch.device) -> None:
        super().__init__()
        self.part, self.device = part, device
        last = part.first_segment + len(part.segments)
        model = runnable_model(part.graph, device, seed=part.service)
        self.segments = model.part(part.first_segment, last)
        self.dtype = self.segments[0].dtype
        self._inputs: dict[int, Tensor] = {}

    @property
    def is_first(self) -> bool:
        """Whether requests come in here."""
        return self.part.first_segment == 0

    def entering(self, batch: int) -> Tensor:
        """Random requests, or activations, drawn once for each number of them."""
        if batch not in self._inputs:
            generator = torch.Generator(self.device).manual_seed(batch)
            shape = pass_shape(Phase.FORWARD, batch, self.part.tokens)
            self._inputs[batch] = self.segments[0].reads(shape, self.device, generator)
        return self._inputs[batch]

    def forward(self, flowing: Tensor) -> Tensor:
        """Run the part on what enters it; shape (batch, tokens, hidden), of the first (batch, tokens)."""
        return self.flow(flowing, pass_shape(Phase.FORWARD, flowing.shape[0], self.part.tokens))

    def flow(self, flowing: Tensor, batch: Batch) -> Tensor:
        """Run the part on a batch."""
        for segment in self.segments:
            flowing = segment(flowing, batch)
        return flowing

    def run(self, order: Order) -> Tensor:
        """Run a pass; the last stage answers with a number a sequence."""
        assert isinstance(order, Run)  # noqa: S101 - so the executor sends it
        if order.entering is None:
            flowing = self.entering(order.batch)
        else:
            flowing = torch.from_numpy(order.entering).to(self.device, self.dtype)
        leaving = self(flowing)
        return leaving.flatten(1).mean(dim=1).float() if order.is_last else leaving.float()

    def warm_up(self) -> None:
        """Run the smallest and the largest batch: libraries choose their kernels at the first pass."""
        for batch in sorted({1, self.part.max_batch}):
            for _ in range(WARM_UPS):
                self(self.entering(batch))


def needed_bytes(part: Part, device: torch.device) -> int:
    """Memory that a part takes: its weights, what is live in its largest pass, and keys and values."""
    wider = 4 / part.graph.element_bytes if device.type == "cpu" else 1.0
    operators = [operator for segment in part.segments for operator in segment]
    weights = sum(operator.weight_bytes for operator in operators)
    batch, tokens = part.largest_pass
    live = max(float(one.output_bytes(batch, tokens, tokens)) for one in operators)
    kv_bytes = part.max_batch * part.tokens * sum(operator.kv_bytes_per_token for operator in operators)
    return round((weights + 2 * live + kv_bytes) * wider)


def check_memory(name: str, parts: tuple[Part, ...], device: torch.device, free_bytes: int) -> None:
    """Refuse what does not fit, before it is made.

    Raises
    ------
    DeviceError
        Names the stage, what it needs and what there is.
    """
    need = round(_SPARE * sum(needed_bytes(part, device) for part in parts))
    if need > free_bytes:
        services = ", ".join(part.service for part in parts)
        raise DeviceError(
            f"{name} ({services}) needs {need / 2**30:.2f} GiB of memory; {device} has"
            f" {free_bytes / 2**30:.2f} GiB free.",
            "Free memory there, or plan with more 'reserved' memory on that device.",
        )
