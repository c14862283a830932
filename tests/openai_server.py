"""A server with OpenAI's streaming protocol, whose every delay and fault is chosen by the test.

It speaks HTTP/1.1 over asyncio in a thread of its own, and answers as vLLM and SGLang do: server-sent events,
one for each token, then the usage, then ``[DONE]``.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

FAULTS = ("429", "500", "hang", "cut", "garbage", "error event", "nothing")
"""What a request may be answered with instead."""


class OpenAiServer:
    """Serves on a free port of this host while it is entered.

    Parameters
    ----------
    model
        The name that it serves under.
    prefill_s, token_s
        Time to the first token, and to every further one.
    is_serial
        Whether it serves one request at a time, first come first served.
    fault
        What a request is answered with instead, by its number from 0 on; trials, which have prompts of two
        tokens, do not count.
    ends_early
        Whether replies end after half their tokens unless told to ignore the end.
    """

    def __init__(
        self,
        *,
        model: str = "tiny",
        prefill_s: float = 0.0,
        token_s: float = 0.0,
        is_serial: bool = False,
        fault: Callable[[int], str | None] = lambda _: None,
        ends_early: bool = False,
    ) -> None:
        self.model, self.prefill_s, self.token_s = model, prefill_s, token_s
        self.fault, self.ends_early = fault, ends_early
        self.bodies: list[dict[str, Any]] = []
        """What was asked, trials left out, with the path as ``path`` and the headers as ``headers``."""
        self.came_s: list[float] = []
        """When, by the monotonic clock."""
        self._turn = asyncio.Semaphore(1 if is_serial else 10_000)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._connections = set[asyncio.Task[None]]()

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, "127.0.0.1", 0)

    async def _close(self) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; says whether the connection lives on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split()
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        if method == "GET":
            self._whole(writer, 200, {"object": "list", "data": [{"id": self.model}]})
            return True
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        if body["model"] != self.model:
            self._whole(writer, 404, {"error": {"message": f"The model {body['model']} does not exist."}})
            return True
        fault = None
        if not is_trial(body):
            fault = self.fault(len(self.bodies))
            self.came_s.append(time.monotonic())
            self.bodies.append({**body, "path": path, "headers": headers})
        if fault in ("429", "500"):
            self._whole(writer, int(fault), {"error": {"message": f"told to answer {fault}"}})
            return True
        if fault == "hang":
            await asyncio.sleep(3600.0)
        async with self._turn:
            if path == "/v1/embeddings":
                await asyncio.sleep(self.prefill_s)
                embedding = {"object": "embedding", "index": 0, "embedding": [0.0]}
                self._whole(
                    writer, 200, {"data": [embedding], "usage": {"prompt_tokens": len(body["input"][0])}}
                )
                return True
            return await self._stream(writer, body, path, fault)

    async def _stream(
        self, writer: asyncio.StreamWriter, body: dict[str, Any], path: str, fault: str | None
    ) -> bool:
        """Send a reply token by token."""
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        is_chat, count = "chat" in path, body["max_tokens"]
        if self.ends_early and not body.get("ignore_eos"):
            count = max(count // 2, 1)
        if is_chat:
            send(
                writer, {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
            )
        for token in range(0 if fault == "nothing" else count):
            await asyncio.sleep(self.token_s if token else self.prefill_s)
            if token == 1 and fault == "cut":
                return False
            if token == 1 and fault == "garbage":
                send_text(writer, '{"choices": [')
            if token == 1 and fault == "error event":
                send(writer, {"error": {"message": "out of memory"}})
            text = (
                "\u2028" if token == 0 else ""
            )  # what Python takes for a line end; and a token without text
            said = {"delta": {"content": "a"}} if is_chat else {"text": text}
            last = "length" if token + 1 == count else None
            send(writer, {"choices": [{**said, "finish_reason": last}]})
            await writer.drain()
        if fault == "nothing":
            count = 0
            send(writer, {"choices": [{"text": "", "finish_reason": "stop"}]})
        if body.get("stream_options", {}).get("include_usage"):
            prompt = len(body.get("prompt", ())) or len(body["messages"][0]["content"].split())
            send(writer, {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": count}})
        send_text(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    def _whole(self, writer: asyncio.StreamWriter, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        head = f"HTTP/1.1 {status} .\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)


def is_trial(body: dict[str, Any]) -> bool:
    """Whether a request only tries whether the server answers: it has two tokens."""
    prompt = body.get("input", [None])[0] or body.get("prompt") or body["messages"][0]["content"].split()
    return len(prompt) == 2


def send(writer: asyncio.StreamWriter, content: dict[str, Any]) -> None:
    """Send one event."""
    send_text(writer, json.dumps(content, ensure_ascii=False))


def send_text(writer: asyncio.StreamWriter, text: str) -> None:
    """Send the text of one event, after a comment as servers send to keep connections alive."""
    event = f": ping\r\n\r\ndata: {text}\r\n\r\n".encode()
    writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
