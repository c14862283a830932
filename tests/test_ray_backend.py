"""The workers of a plan as actors of Ray, on several hosts that are all this machine.

If these fail, `muplan execute --backend ray` answers other than the model does, puts stages on other hosts
than the plan says, or loses requests with a host.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from muplan.model.graph import ModelGraph
from muplan.problem.problem import Problem
from muplan.serving.ray.actors import RayActors
from muplan.serving.ray.session import RaySession
from muplan.serving.realtime.executor import serve_in_real_time
from muplan.serving.workers.parts import WorkerParts
from muplan.workload import Serving
from tests.test_torch_backend import (
    Listening,
    chat_case,
    chats,
    check_replies,
    problem,
)

pytest.importorskip("torch", reason="the ray backend needs torch")
ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")

__all__ = ["chats", "problem"]  # fixtures

SMALL = {"object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of a head without cores, and a host that is the plan's node cores/0."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL})
    made.add_node(num_cpus=3, resources={"muplan:cores/0": 1}, **SMALL)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


class OnActors(Listening):
    """Its workers are actors; losses are of actors."""

    def __init__(self, workers: tuple[WorkerParts, ...], kill_at: tuple[float, ...] = ()) -> None:
        super().__init__(workers, kill_at, RayActors(workers, RaySession(None)))

    def kill(self, number: int) -> None:
        assert isinstance(self.transport, RayActors)
        ray.kill(list(self.transport.actors.values())[number])


def test_replies_over_actors_are_those_of_the_whole_model(
    cluster: Any, chats: tuple[Problem, dict[str, ModelGraph]]
) -> None:
    """One model in a stage, one cut over two; an actor of each is killed: every reply is complete and right."""
    case, workers, trace = chat_case(chats, Serving(), 2.0)
    backend = OnActors(workers, kill_at=(0.3, 1.0))
    run = serve_in_real_time(case, backend, rng=np.random.default_rng(0))
    assert not backend.kills
    assert run.num_lost > 0
    assert {outage.group for outage in run.outages} == {"one", "two"}
    assert all(outage.end_s is not None and outage.moved_to is None for outage in run.outages)
    assert (run.records.completion_s > run.records.first_token_s).all()
    check_replies(backend.texts, trace, chats)
