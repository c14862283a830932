"""Whether the servers are there and take requests, before a run begins."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from muplan.errors import EndpointError
from muplan.serving.http.client import Failure, Request, ask
from muplan.serving.http.event_stream import read_json
from muplan.serving.http.failure import RequestFailedError
from muplan.serving.http.target import Target

if TYPE_CHECKING:
    import aiohttp

_REACH_S = 10.0
"""How long a server may take to list its models."""
_FIRST_S = 300.0
"""How long it may take for a first small request: some load the model then."""


async def check_targets(client: aiohttp.ClientSession, targets: Sequence[Target]) -> None:
    """Ask every server for its models, and for one small answer in the form of the run's requests.

    Raises
    ------
    EndpointError
        Some are not there, or do not answer as they should; all are named.
    """
    found = [
        problem for problem in await asyncio.gather(*(_reach(client, one) for one in targets)) if problem
    ]
    if not found:
        found = [
            problem for problem in await asyncio.gather(*(_try(client, one) for one in targets)) if problem
        ]
    if found:
        lines = "\n".join(f"  {problem}" for problem in found)
        raise EndpointError(
            f"{len(found)} of {len(targets)} endpoints cannot be used:\n{lines}",
            "Start these servers, or correct url, model, api, prompt and ignore_eos in the file.",
        )


async def _reach(client: aiohttp.ClientSession, target: Target) -> str:
    """What is wrong with a server's list of models, in words; empty where nothing is."""
    import aiohttp

    asked = f"{target.name}: GET /v1/models"
    try:
        async with (
            asyncio.timeout(_REACH_S),
            client.get(f"{target.endpoint.url}/v1/models", headers=target.headers) as response,
        ):
            said = await response.read()
            if response.status != 200:
                return f"{asked} gave {response.status}: {said.decode(errors='replace'):.200}"
            read_json(said)
    except TimeoutError:
        return f"{asked}: no answer within {_REACH_S:g} s"
    except (aiohttp.ClientError, RequestFailedError) as error:
        return f"{asked}: {error}"
    return ""


async def _try(client: aiohttp.ClientSession, target: Target) -> str:
    """What is wrong with the answer to a small request, in words; empty where nothing is."""
    request = Request(number=0, input_tokens=2, output_tokens=2, seed=_seed_of_trial())
    answer = await ask(client, target, request, timeout_s=_FIRST_S, now_s=time.monotonic)
    if not isinstance(answer, Failure):
        return ""
    return f"{target.name}: model {target.endpoint.model!r}: {answer.kind.value}: {answer.message}"


def _seed_of_trial() -> int:
    """A seed of which no request of a run is drawn."""
    return 2**63
