"""The fleet: pools of GPUs of one type, on nodes."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from muplan.serde import Part


class Pool(Part):
    """GPUs of one device type."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    device: str
    """A shipped device's name, or the path of a device file relative to the workload's."""
    num_gpus: int = Field(ge=1)
    gpus_per_node: int = Field(default=8, ge=1)
    power_cap_w: float | None = Field(default=None, gt=0)
    """Cap on each GPU of the pool; the device's own where absent."""
    node_power_cap_w: float | None = Field(default=None, gt=0)
    """Cap on the power of each node while every placed GPU on it is busy and its others are parked."""
    min_clock_mhz: int | None = Field(default=None, ge=1)
    max_clock_mhz: int | None = Field(default=None, ge=1)
    """Lowest and highest clock that a plan may use; the device's usable band where absent."""
    reserved_gpus: tuple[str, ...] = ()
    """GPUs that a plan may not use, by name (``pool/node/gpu``); they count as parked."""

    def gpu_ids(self) -> tuple[str, ...]:
        """Names of the pool's GPUs, ``pool/node/gpu``, in order."""
        return tuple(
            f"{self.name}/{index // self.gpus_per_node}/{index % self.gpus_per_node}"
            for index in range(self.num_gpus)
        )

    def allows_clock(self, clock_mhz: int) -> bool:
        """Whether a clock lies between the lowest and the highest that a plan may use."""
        above = self.min_clock_mhz is None or clock_mhz >= self.min_clock_mhz
        return above and (self.max_clock_mhz is None or clock_mhz <= self.max_clock_mhz)

    def node_ids(self) -> tuple[str, ...]:
        """Names of the pool's nodes, ``pool/node``, in order."""
        return tuple(f"{self.name}/{node}" for node in range(-(-self.num_gpus // self.gpus_per_node)))

    def free_gpus(self) -> tuple[tuple[str, ...], ...]:
        """GPUs of every node that a plan may use."""
        ids, size = self.gpu_ids(), self.gpus_per_node
        return tuple(
            tuple(gpu for gpu in ids[start : start + size] if gpu not in self.reserved_gpus)
            for start in range(0, len(ids), size)
        )


class Fleet(Part):
    """All pools, and a power cap on the whole."""

    pools: tuple[Pool, ...] = Field(min_length=1)
    power_cap_w: float | None = Field(default=None, gt=0)
    """Cap on the power of all GPUs together while every placed GPU is busy and the rest are parked."""

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        names = [pool.name for pool in self.pools]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ValueError(f"pools[{index}].name: {name!r} stands twice; names must differ")
        return self

    @property
    def num_gpus(self) -> int:
        """Number of GPUs in all pools."""
        return sum(pool.num_gpus for pool in self.pools)
