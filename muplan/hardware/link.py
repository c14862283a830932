"""Time to move bytes between GPUs."""

from __future__ import annotations

from pydantic import model_validator

from muplan.errors import InputError
from muplan.hardware.quantity import Constant
from muplan.serde import Part


class Link(Part):
    """Links of one GPU, per direction.

    Parameters
    ----------
    intra_node_bytes_per_s
        Achieved rate of a collective over the GPUs of a node, per GPU and direction.
    two_gpu_factor
        Share of that rate that two GPUs reach between them (part of the links only).
    all_reduce_start_s
        Start-up time of one all-reduce.
    transfer_start_s
        Start-up time of one point-to-point transfer within a node.
    inter_node_bytes_per_s, inter_node_start_s
        Rate and start-up time of a transfer between nodes, per GPU.
    """

    intra_node_bytes_per_s: Constant
    two_gpu_factor: Constant
    all_reduce_start_s: Constant
    transfer_start_s: Constant
    inter_node_bytes_per_s: Constant
    inter_node_start_s: Constant

    @model_validator(mode="after")
    def _check_signs(self) -> Link:
        if not 0 < self.two_gpu_factor.value <= 1:
            raise ValueError("two_gpu_factor must lie in (0, 1]")
        if min(self.intra_node_bytes_per_s.value, self.inter_node_bytes_per_s.value) <= 0:
            raise ValueError("the rates must be positive")
        starts = (self.all_reduce_start_s, self.transfer_start_s, self.inter_node_start_s)
        if min(start.value for start in starts) < 0:
            raise ValueError("the start-up times must not be negative")
        return self

    def all_reduce_s(self, message_bytes: float, num_gpus: int) -> float:
        """Seconds of a ring all-reduce of ``message_bytes`` over ``num_gpus`` GPUs of one node.

        Each GPU sends 2 (n − 1) / n of the message (Patarasuk and Yuan, 2009, theorem 1).
        """
        if num_gpus < 1:
            raise InputError(f"An all-reduce over {num_gpus} GPUs is impossible.", "Use one GPU or more.")
        if num_gpus == 1:
            return 0.0
        rate = self.intra_node_bytes_per_s.value * (self.two_gpu_factor.value if num_gpus == 2 else 1.0)
        return self.all_reduce_start_s.value + 2 * (num_gpus - 1) / num_gpus * message_bytes / rate

    def transfer_s(self, message_bytes: float, *, same_node: bool) -> float:
        """Seconds to send ``message_bytes`` from one GPU to another; no bytes take no time."""
        if message_bytes == 0:
            return 0.0
        if same_node:
            rate = self.intra_node_bytes_per_s.value * self.two_gpu_factor.value
            return self.transfer_start_s.value + message_bytes / rate
        return self.inter_node_start_s.value + message_bytes / self.inter_node_bytes_per_s.value
