"""The driver: sends every request when it comes, whether or not earlier ones are answered (open loop)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from muplan.serving.case import Case
from muplan.serving.gpu_energy import EnergyReadings, Meters
from muplan.serving.http.client import Failure, Request, Timing, ask, open_client
from muplan.serving.http.energy import read_on
from muplan.serving.http.reach import check_targets
from muplan.serving.http.router import Router
from muplan.serving.http.target import Target

if TYPE_CHECKING:
    import aiohttp

Report = Callable[[float, int, int], None]
"""Is told seconds since the run began, requests answered or given up so far, and requests in all."""


@dataclass(slots=True, kw_only=True)
class Exchange:
    """What became of the requests of a run, by their numbers; shapes (requests,).

    Parameters
    ----------
    outcomes
        The answer's times, or why there is none; None where the request was not let in, or the run was broken
        off before its end.
    targets
        The place of each request's target, −1 where it was not sent.
    in_flight
        Requests in flight at the target when each was sent, itself included.
    end_s
        When the run ended.
    deciding_s
        Time spent on routing.
    """

    outcomes: list[Timing | Failure | None]
    targets: np.ndarray[tuple[int], np.dtype[np.int64]]
    in_flight: np.ndarray[tuple[int], np.dtype[np.int64]]
    readings: EnergyReadings = field(default_factory=EnergyReadings)
    end_s: float = 0.0
    deciding_s: float = 0.0
    is_partial: bool = False


@dataclass(slots=True, kw_only=True)
class Driver:
    """Drives the servers of a plan with the requests of a case."""

    case: Case
    targets: Sequence[Target]
    router: Router
    timeout_s: float
    seed: int
    meters: Meters | None = None
    report: Report | None = None
    exchange: Exchange = field(init=False)
    _begin_s: float = field(init=False, default=0.0)
    _num_done: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        count = len(self.case.trace)
        self.exchange = Exchange(
            outcomes=[None] * count,
            targets=np.full(count, -1, dtype=np.int64),
            in_flight=np.zeros(count, dtype=np.int64),
        )

    def run(self) -> Exchange:
        """Send all requests and wait for their answers; Ctrl-C breaks the run off, and what was seen stays.

        Raises
        ------
        EndpointError
            A server is not there, or does not take requests.
        """
        try:
            asyncio.run(self._run())
        except KeyboardInterrupt:
            self.exchange.is_partial = True
        return self.exchange

    async def _run(self) -> None:
        async with open_client() as client:
            await check_targets(client, self.targets)
            self._begin_s = time.monotonic()
            try:
                async with asyncio.TaskGroup() as under_way:
                    if self.meters is not None:
                        until_s = self.case.measured_until_s
                        under_way.create_task(
                            read_on(self.meters, self.exchange.readings, self._now_s, until_s)
                        )
                    await self._send_all(client, under_way)
            finally:
                self.exchange.end_s = self._now_s()

    async def _send_all(self, client: aiohttp.ClientSession, under_way: asyncio.TaskGroup) -> None:
        for number in np.flatnonzero(self.case.admitted).tolist():
            await asyncio.sleep(max(self.case.trace.arrival_s[number] - self._now_s(), 0.0))
            before_s = self._now_s()
            place = self.router.choose(int(self.case.service[number]), number)
            self.router.in_flight[place] += 1
            self.exchange.targets[number] = place
            self.exchange.in_flight[number] = self.router.in_flight[place]
            self.exchange.deciding_s += self._now_s() - before_s
            under_way.create_task(self._serve(client, number, place))

    async def _serve(self, client: aiohttp.ClientSession, number: int, place: int) -> None:
        """See one request through."""
        trace = self.case.trace
        request = Request(
            number=number,
            input_tokens=int(trace.input_tokens[number]),
            output_tokens=int(trace.output_tokens[number]),
            seed=self.seed,
        )
        try:
            self.exchange.outcomes[number] = await ask(
                client, self.targets[place], request, timeout_s=self.timeout_s, now_s=self._now_s
            )
        finally:
            self.router.in_flight[place] -= 1
        self._num_done += 1
        if self.report is not None:
            self.report(self._now_s(), self._num_done, len(trace))

    def _now_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._begin_s  # as the event loop counts, and in any thread
