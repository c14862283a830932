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

    def gpu_ids(self) -> tuple[str, ...]:
        """Names of the pool's GPUs, ``pool/node/gpu``, in order."""
        return tuple(
            f"{self.name}/{index // self.gpus_per_node}/{index % self.gpus_per_node}"
            for index in range(self.num_gpus)
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
