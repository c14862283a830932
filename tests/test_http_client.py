"""What execution on deployed servers is made of: endpoints, routing, event streams, single requests.

If these fail, requests go where the plan does not send them, or a server's answer is misread.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest

from muplan.endpoints import Endpoint, Endpoints
from muplan.errors import InputError
from muplan.serving.http.client import Failure, Reply, Request, Timing, ask, open_client
from muplan.serving.http.event_stream import EventStream, read_chunk
from muplan.serving.http.failure import FailureKind, RequestFailedError
from muplan.serving.http.router import Router
from muplan.serving.http.target import Target, make_targets
from muplan.workload import Routing
from tests import serving_cases as cases
from tests.openai_server import OpenAiServer

pytest.importorskip("aiohttp", reason="the http backend needs aiohttp")

PROBLEM = cases.problem([cases.forward_service("chat", lambda *_: 0.01)], num_gpus=2)
TWO = cases.deployment([cases.group(f"g{gpu}", [gpu], ["chat"], shares=[0.5]) for gpu in (0, 1)])


# --- endpoints ------------------------------------------------------------------------------------


def test_endpoints_that_do_not_fit_the_plan_are_refused_all_at_once() -> None:
    """Unknown and missing replicas, doubles, variables that are not set, GPUs too many or claimed twice."""
    url, model = "http://127.0.0.1:1", "tiny"
    wrong = Endpoints(
        endpoints=(
            Endpoint(group="g9", service="chat", url=url, model=model),
            Endpoint(group="g0", service="talk", url=url, model=model),
            Endpoint(group="g1", service="chat", url=url, model=model, gpus=(0, 1)),
            Endpoint(
                group="g1", service="chat", url=url, model=model, headers_from={"X-Key": "NOT_SET"}, gpus=(3,)
            ),
        ),
        parked_gpus=(3,),
    )  # fmt: skip
    with pytest.raises(InputError) as caught:
        make_targets(PROBLEM, TWO, wrong, {})
    assert [(fault.key, fault.message) for fault in caught.value.faults] == [
        ("endpoints[0].group", "the plan has no group 'g9'; it has g0, g1"),
        ("endpoints[1].service", "'g0' does not host 'talk'; it hosts chat"),
        ("endpoints[3]", "'chat' on 'g1' has an endpoint already"),
        ("endpoints", "'chat' on 'g0' has no endpoint"),
        (
            "endpoints[3].headers_from",
            "X-Key comes from the environment variable NOT_SET, which is not set",
        ),
        ("endpoints[2].gpus", "'g1' has 1 GPUs in the plan; name each of them once"),
        ("endpoints", "GPU 3 is named for 'g1' and for 'parked_gpus'"),
    ]


@pytest.mark.parametrize("url", ["localhost:8000", "http://a/v1", "http://user:pass@a:1", "ftp://a"])
def test_urls_that_are_not_the_root_of_a_server_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        Endpoint(group="g0", service="chat", url=url, model="tiny")


# --- routing --------------------------------------------------------------------------------------


def targets_with(shares: Sequence[float]) -> list[Target]:
    endpoint = Endpoint(group="g", service="chat", url="http://a", model="tiny")
    return [
        Target(group=number, service=0, share=share, generates=True, endpoint=endpoint, headers={})
        for number, share in enumerate(shares)
    ]


def test_round_robin_keeps_the_plans_shares() -> None:
    router = Router(targets_with([0.5, 0.3, 0.2]), Routing.ROUND_ROBIN, seed=0)
    chosen = [router.choose(0, request) for request in range(100)]
    assert [chosen.count(place) for place in range(3)] == [50, 30, 20]
    assert set(chosen[:4]) == {0, 1, 2}


def test_the_shortest_completion_is_where_the_fewest_are_in_flight_for_the_share() -> None:
    router = Router(targets_with([0.6, 0.2, 0.2]), Routing.SHORTEST_EXPECTED_COMPLETION, seed=0)
    chosen = []
    for request in range(10):
        place = router.choose(0, request)
        router.in_flight[place] += 1
        chosen.append(place)
    assert [chosen.count(place) for place in range(3)] == [6, 2, 2]
    router.in_flight[:] = [9, 1, 0]
    assert router.choose(0, 10) == 2


def test_power_of_two_never_chooses_the_fullest_of_three() -> None:
    router = Router(targets_with([1.0, 1.0, 1.0]), Routing.POWER_OF_TWO, seed=7)
    router.in_flight[:] = [5, 3, 4]
    chosen = [router.choose(0, request) for request in range(300)]
    assert chosen.count(0) == 0
    assert chosen.count(1) == pytest.approx(200, abs=30)  # of three pairs, two hold it


def test_a_stream_is_cut_into_the_same_events_wherever_its_bytes_are() -> None:
    """Line ends of both kinds, comments, several data lines, what Python takes for line ends."""
    text = ': hi\r\n\r\ndata: {"a":\ndata: "\u2028\x85"}\n\nevent: x\ndata:[DONE]\r\n\r\ndata: unfinished\n'
    data = text.encode()
    for cut in range(len(data) + 1):
        stream = EventStream()
        assert stream.feed(data[:cut]) + stream.feed(data[cut:]) == ['{"a":\n"\u2028\x85"}', "[DONE]"]


@pytest.mark.parametrize("event", ["[1]", "{", '{"choices": 3}', '{"choices": ["x"]}', '{"id": 1}'])
def test_events_that_are_no_chunks_are_malformed(event: str) -> None:
    with pytest.raises(RequestFailedError) as caught:
        read_chunk(event)
    assert caught.value.kind is FailureKind.MALFORMED


# --- one request ----------------------------------------------------------------------------------


def test_a_server_that_goes_away_is_no_connection() -> None:
    """Nobody listens any more at its port."""
    with OpenAiServer() as server:
        endpoint = Endpoint(group="g0", service="chat", url=server.url, model="tiny")
    target = Target(group=0, service=0, share=1.0, generates=True, endpoint=endpoint, headers={})

    async def once() -> object:
        async with open_client() as client:
            request = Request(number=0, input_tokens=3, output_tokens=3, seed=0)
            return await ask(client, target, request, timeout_s=5.0, now_s=time.monotonic)

    failure = asyncio.run(once())
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.NO_CONNECTION
    assert server.url in failure.message


def replied(*events: tuple[float, dict[str, Any]]) -> Timing:
    """What is noted of a reply whose events come at these times."""
    reply = Reply(timing=Timing(sent_s=0.0))
    for at_s, event in events:
        reply.take(read_chunk(json.dumps(event)), at_s)
    reply.end()
    return reply.timing


USAGE = {"completion_tokens": 2, "prompt_tokens": 3}


def test_replies_of_transformers_serve_are_read() -> None:
    """Recorded from 5.24: an empty last chunk with the usage is no token, nor is a chat's role; no [DONE]."""
    ends = {"choices": [{"finish_reason": "length", "index": 0, "text": ""}], "usage": USAGE}
    words = [(at_s, {"choices": [{"index": 0, "text": "t"}]}) for at_s in (1.0, 2.0)]
    completion = replied(*words, (2.5, ends))
    role = {"choices": [{"delta": {"role": "assistant"}, "index": 0}]}
    words = [(at_s, {"choices": [{"delta": {"content": "t"}, "index": 0}]}) for at_s in (1.0, 2.0)]
    ends = {"choices": [{"delta": {}, "index": 0, "finish_reason": "length"}], "usage": USAGE}
    chat = replied((0.5, role), *words, (2.5, ends))
    for timing in (completion, chat):
        assert (timing.first_token_s, timing.completion_s, timing.gaps_s.tolist()) == (1.0, 2.5, [1.0])
        assert (timing.num_tokens, timing.num_prompt_tokens) == (2, 3)


def test_a_last_token_without_text_is_one_where_the_server_counts_it() -> None:
    """As of vLLM, whose tokens may be parts of a character; without a count it is taken for the end alone."""
    word, end = {"choices": [{"text": "t"}]}, {"choices": [{"text": "", "finish_reason": "length"}]}
    usage = {"choices": [], "usage": USAGE}
    assert replied((1.0, word), (2.0, end), (2.0, usage)).gaps_s.tolist() == [1.0]
    uncounted = replied((1.0, word), (2.0, end))
    assert (uncounted.gaps_s.tolist(), uncounted.num_tokens) == ([], 1)


def test_a_reply_that_does_not_end_is_broken() -> None:
    with pytest.raises(RequestFailedError, match="it ended after 1 chunks") as caught:
        replied((1.0, {"choices": [{"text": "t"}]}))
    assert caught.value.kind is FailureKind.BROKEN_STREAM
