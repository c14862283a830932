"""The trace: timed requests, as columns. A trace of a million requests is four arrays."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from muplan.errors import InputError

Floats = NDArray[np.float64]
Tokens = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in the order of their arrival.

    Parameters
    ----------
    services
        Names that ``service`` indexes.
    arrival_s
        Arrival times, ascending from 0 on; shape (requests,), float64.
    service
        Index of each request's service; shape (requests,), int32.
    input_tokens
        Tokens of a forward request, or of a generate request's prompt; shape (requests,), int32.
    output_tokens
        Tokens a generate request will produce, unknown to the scheduler; 0 for forward requests;
        shape (requests,), int32.
    duration_s
        Length of the period the trace covers, seconds.
    """

    services: tuple[str, ...]
    arrival_s: NDArray[np.float64]
    service: NDArray[np.int32]
    input_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    duration_s: float

    def __post_init__(self) -> None:
        lengths = {len(self.arrival_s), len(self.service), len(self.input_tokens), len(self.output_tokens)}
        if len(lengths) != 1:
            raise InputError("The columns of the trace differ in length.", "Give every request all columns.")
        if len(self.arrival_s) and (np.diff(self.arrival_s) < 0).any():
            raise InputError("The trace's arrival times do not ascend.", "Sort its requests by arrival time.")

    @property
    def digest(self) -> str:
        """SHA-256 of names, columns and duration, as ``sha256:…``."""
        content = hashlib.sha256(repr((self.services, self.duration_s)).encode())
        for column in (self.arrival_s, self.service, self.input_tokens, self.output_tokens):
            content.update(np.ascontiguousarray(column).astype(column.dtype.newbyteorder("<")).tobytes())
        return f"sha256:{content.hexdigest()}"

    def __len__(self) -> int:
        return len(self.arrival_s)

    def faster(self, factor: float) -> Trace:
        """Return the same requests ``factor`` times as fast, over a period so much shorter."""
        duration_s = self.duration_s / factor
        arrival_s = np.minimum(self.arrival_s / factor, np.nextafter(duration_s, 0.0))
        return replace(self, arrival_s=arrival_s, duration_s=duration_s)

    def only(self, service: str) -> Trace:
        """Return the requests of one service, over the same period.

        Raises
        ------
        InputError
            The trace has no such service.
        """
        if service not in self.services:
            raise InputError(
                f"The trace has no service {service!r}; it has {', '.join(self.services)}.",
                "Name one of these.",
            )
        chosen = self.service == self.services.index(service)
        return Trace(
            services=(service,),
            arrival_s=self.arrival_s[chosen],
            service=np.zeros(int(chosen.sum()), dtype=np.int32),
            input_tokens=self.input_tokens[chosen],
            output_tokens=self.output_tokens[chosen],
            duration_s=self.duration_s,
        )
