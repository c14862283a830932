"""The endpoints: where the replicas of a plan are served already, and how to ask there.

The user writes it for ``muplan execute --backend http``. It holds no secrets: headers are named by the
environment variables that hold them.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from muplan.serde import Document, Part

LocalGpu = int | str
"""A GPU of the host that executes: its number, as nvidia-smi has it, or its UUID."""


class Endpoint(Part):
    """A server that speaks OpenAI's protocol and serves one replica of a plan."""

    group: str
    """Name of the replica's group in the plan."""
    service: str
    url: str = Field(pattern=r"^https?://[^/\s@]+(/[^\s?#]*)?$")
    """Where ``/v1/…`` is found."""
    model: str = Field(min_length=1)
    """The name that the server has for the model."""
    api: Literal["completions", "chat"] = "completions"
    """How a generate service is asked; a forward service always by ``/v1/embeddings``."""
    prompt: Literal["token-ids", "text"] = "token-ids"
    """Token ids have the number of tokens that the trace says; a text about as many. Chat takes texts."""
    token_ids_below: int = Field(default=1000, ge=2)
    """Token ids of prompts are drawn below this."""
    ignore_eos: bool = True
    """Ask for replies of the trace's length, whatever the model says; not all servers know of it."""
    headers_from: dict[str, str] = Field(default_factory=dict)
    """For each HTTP header the environment variable that holds its value."""
    gpus: tuple[LocalGpu, ...] = ()
    """The GPUs that serve the group, where they are on this host: their energy is measured."""

    @field_validator("url")
    @classmethod
    def _root(cls, url: str) -> str:
        url = url.rstrip("/")
        if url.endswith("/v1"):
            raise ValueError("ends in /v1, which is added; leave it out")
        return url


class Endpoints(Document):
    """Where every replica of a plan is served."""

    KIND: ClassVar[str] = "endpoints"

    kind: Literal["endpoints"] = "endpoints"
    schema_version: Literal[1] = 1
    endpoints: tuple[Endpoint, ...] = Field(min_length=1)
    timeout_s: float = Field(default=300.0, gt=0)
    """A request that is not answered so long after it was sent is given up."""
    send_lag_limit_s: float = Field(default=0.02, gt=0)
    """Requests may be sent so much later than they came, at the 99th percentile, for the run to be judged."""
    parked_gpus: tuple[LocalGpu, ...] = ()
    """GPUs of this host that the plan parks: they count in the fleet's power."""
