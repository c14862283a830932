"""The client: sends one request to a server, and times what comes back."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from muplan.serving.http.event_stream import DONE, Chunk, EventStream, read_chunk, read_json
from muplan.serving.http.failure import FailureKind, RequestFailedError
from muplan.serving.http.prompts import prompt_ids, prompt_text
from muplan.serving.http.target import Target

if TYPE_CHECKING:
    import aiohttp

_KEEP_ALIVE_S = 2.0
"""Connections are used again within so long; servers close idle ones after 5 s (uvicorn's default)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request of the trace: its number, and its tokens; ``seed`` draws the prompt."""

    number: int
    input_tokens: int
    output_tokens: int
    seed: int


@dataclass(slots=True, kw_only=True)
class Timing:
    """When a request's answer came; seconds since the run began.

    Parameters
    ----------
    sent_s
        When the request was handed to the connection.
    first_token_s, completion_s
        Of the first token and of the reply's end; of a forward request both are the whole answer's.
    gaps_s
        Times between chunks that bring tokens: the inter-token latencies, where each brings one.
    num_tokens, num_prompt_tokens
        By the server's count; tokens by chunks where it tells none, None for such a prompt.
    """

    sent_s: float
    first_token_s: float = float("nan")
    completion_s: float = float("nan")
    gaps_s: array[float] = field(default_factory=lambda: array("f"))
    num_tokens: int = 0
    num_prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request that was not answered, and why."""

    sent_s: float
    kind: FailureKind
    message: str


def open_client() -> aiohttp.ClientSession:
    """Open the connections that all requests share, as many as it takes; no proxy stands between.

    aiohttp takes a third of the time of pure-Python clients for a token that is streamed: what this process
    takes limits the load that it can offer.
    """
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None),  # a request as a whole has a limit
        headers={"Accept-Encoding": "identity"},
        trust_env=False,
    )


def body_of(target: Target, request: Request) -> tuple[str, dict[str, Any]]:
    """The path below the root, and what is asked there."""
    endpoint = target.endpoint
    has_ids = endpoint.prompt == "token-ids" and endpoint.api != "chat"
    prompt = (
        prompt_ids(request.input_tokens, endpoint.token_ids_below, request.seed, request.number)
        if has_ids
        else prompt_text(request.input_tokens, request.seed, request.number)
    )
    if not target.generates:
        return "/v1/embeddings", {"model": endpoint.model, "input": [prompt]}
    body: dict[str, Any] = {
        "model": endpoint.model,
        "max_tokens": request.output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if endpoint.ignore_eos:
        body["ignore_eos"] = True
    if endpoint.api == "chat":
        return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": prompt}]}
    return "/v1/completions", {**body, "prompt": prompt}


async def ask(
    client: aiohttp.ClientSession,
    target: Target,
    request: Request,
    *,
    timeout_s: float,
    now_s: Callable[[], float],
) -> Timing | Failure:
    """Send a request, and wait for its answer to the end."""
    path, body = body_of(target, request)
    timing = Timing(sent_s=now_s())
    try:
        async with asyncio.timeout(timeout_s), _sent(client, target, path, body) as response:
            if target.generates:
                await _take_stream(response, timing, now_s)
            else:
                _take_embedding(await response.read(), timing)
                timing.first_token_s = timing.completion_s = now_s()
    except RequestFailedError as error:
        return Failure(sent_s=timing.sent_s, kind=error.kind, message=str(error))
    except TimeoutError:
        message = f"no answer within {timeout_s:g} s"
        return Failure(sent_s=timing.sent_s, kind=FailureKind.TIMEOUT, message=message)
    return timing


@asynccontextmanager
async def _sent(
    client: aiohttp.ClientSession, target: Target, path: str, body: dict[str, Any]
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The response to a request, once its head is there; what goes wrong with it becomes a failure."""
    import aiohttp

    url = target.endpoint.url + path
    try:
        async with client.post(url, json=body, headers=target.headers, allow_redirects=False) as response:
            if response.status != 200:
                said = (await response.read()).decode(errors="replace")
                kind = FailureKind.REFUSED if response.status < 500 else FailureKind.SERVER_ERROR
                raise RequestFailedError(kind, f"{response.status}: {said:.300}")
            yield response
    except aiohttp.ClientConnectorError as error:
        raise RequestFailedError(
            FailureKind.NO_CONNECTION, f"{target.endpoint.url}: {error.os_error}"
        ) from None
    except aiohttp.ClientError as error:
        raise RequestFailedError(FailureKind.BROKEN_STREAM, str(error) or type(error).__name__) from None


async def _take_stream(response: aiohttp.ClientResponse, timing: Timing, now_s: Callable[[], float]) -> None:
    """Time the chunks of a reply up to its end."""
    stream, reply = EventStream(), Reply(timing=timing)
    async for received in response.content.iter_any():
        at_s = now_s()
        for event in stream.feed(received):
            if event == DONE:
                reply.is_whole = True
            else:
                reply.take(read_chunk(event), at_s)
    reply.end()


@dataclass(slots=True, kw_only=True)
class Reply:
    """A reply on its way, whose times are noted in ``timing``."""

    timing: Timing
    is_whole: bool = False
    num_chunks: int = 0
    """Of those with tokens."""
    latest_s: float = 0.0
    """When the last of them came."""
    num_tokens: int | None = None
    empty_end_s: float | None = None
    """When a last chunk came without text: it may be a token's, or the end alone."""

    def take(self, chunk: Chunk, at_s: float) -> None:
        """Note one chunk."""
        self.is_whole |= chunk.is_last
        if chunk.has_token:
            self._token(at_s)
        elif chunk.is_last:
            self.empty_end_s = at_s
        if chunk.has_choice:
            self.timing.completion_s = at_s
        if chunk.num_tokens is not None:
            self.num_tokens = chunk.num_tokens
        if chunk.num_prompt_tokens is not None:
            self.timing.num_prompt_tokens = chunk.num_prompt_tokens

    def _token(self, at_s: float) -> None:
        if self.num_chunks:
            self.timing.gaps_s.append(at_s - self.latest_s)
        else:
            self.timing.first_token_s = at_s
        self.num_chunks, self.latest_s = self.num_chunks + 1, at_s

    def end(self) -> None:
        """Check that the reply is whole; a token more by the server's count than came was the empty end."""
        if not self.is_whole:
            raise RequestFailedError(FailureKind.BROKEN_STREAM, f"it ended after {self.num_chunks} chunks")
        if self.empty_end_s is not None and self.num_tokens == self.num_chunks + 1:
            self._token(self.empty_end_s)
        if not self.num_chunks:
            raise RequestFailedError(FailureKind.NO_TOKENS, "the reply ended before its first token")
        self.timing.num_tokens = self.num_chunks if self.num_tokens is None else self.num_tokens


def _take_embedding(received: bytes, timing: Timing) -> None:
    """Check that an embedding came."""
    content = read_json(received)
    if not content.get("data"):
        raise RequestFailedError(FailureKind.MALFORMED, f"no data: {received[:200]!r}")
    usage = content.get("usage")
    if isinstance(usage, dict):
        timing.num_prompt_tokens = usage.get("prompt_tokens")
