"""The probes of a GPU type in torch. This file imports torch."""

from __future__ import annotations

import torch

from muplan.profiling.measured.device_probe import Probe
from muplan.profiling.measured.torch_load import TorchLoad

_SIZE, _COPIED_BYTES, _NUM_LAUNCHES = 8192, 1 << 30, 1000
"""Products large enough to fill any GPU, copies far larger than any cache."""


class TorchProbes:
    """Products, copies and launches on a torch device, each captured as a CUDA graph on a GPU."""

    def __init__(
        self,
        device: torch.device,
        *,
        size: int = _SIZE,
        copied_bytes: int = _COPIED_BYTES,
        num_launches: int = _NUM_LAUNCHES,
    ) -> None:
        with torch.inference_mode():
            left, right, product = (
                torch.randn(size, size, device=device, dtype=torch.float16) for _ in range(3)
            )
            source = torch.zeros(copied_bytes, device=device, dtype=torch.uint8)
            target = torch.zeros_like(source)
            little = torch.zeros(1, device=device)

        def launch() -> None:
            for _ in range(num_launches):
                little.add_(1.0)

        def multiply() -> None:
            torch.mm(left, right, out=product)

        def copy() -> None:
            target.copy_(source)

        self.compute = Probe(load=TorchLoad(multiply, device), work=2.0 * size**3)
        self.memory = Probe(load=TorchLoad(copy, device), work=2.0 * copied_bytes)
        self.launches = Probe(load=TorchLoad(launch, device), work=float(num_launches))
