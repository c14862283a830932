"""The workers of a plan as actors of Ray, on several hosts that are all this machine.

If these fail, `muplan execute --backend ray` answers other than the model does, puts stages on other hosts
than the plan says, or loses requests with a host.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muplan.errors import DeviceError, InputError
from muplan.model.graph import ModelGraph
from muplan.plan import Deployment, Group, Stage
from muplan.problem.problem import Problem
from muplan.serving.case import Case, make_case
from muplan.serving.ray.actors import RayActors
from muplan.serving.ray.session import RaySession
from muplan.serving.realtime.backend import Event, GroupGone, GroupReady, Pass, Work
from muplan.serving.realtime.executor import serve_in_real_time
from muplan.serving.workers.parts import WorkerParts, worker_parts
from muplan.serving.workers.transport import NoPlaceError
from muplan.workload import Serving
from tests import serving_cases as cases
from tests.test_cli import muplan
from tests.test_torch_backend import (
    PLANS,
    Listening,
    Watched,
    chat_case,
    chats,
    check_replies,
    graphs,
    pipeline,
    problem,
    random_trace,
)

pytest.importorskip("torch", reason="the ray backend needs torch")
ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")

__all__ = ["chats", "problem"]  # fixtures

QUICK = {"health_check_period_ms": 300, "health_check_failure_threshold": 3}
"""Lost hosts are noticed after a second; a host that is slow to answer is not taken for lost."""
pytestmark = pytest.mark.slow
SMALL = {"object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of a head without cores, and a host that is the plan's node cores/0."""
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK, **SMALL},
    )
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
    """One model in a stage, one cut over two; an actor of each is killed: all replies are right."""
    case, workers, trace = chat_case(chats, Serving(), 2.0)
    backend = OnActors(workers, kill_at=(0.3, 1.0))
    run = serve_in_real_time(case, backend, rng=np.random.default_rng(0))
    assert not backend.kills
    assert run.num_lost > 0
    assert {outage.group for outage in run.outages} == {"one", "two"}
    assert all(outage.end_s is not None and outage.moved_to is None for outage in run.outages)
    assert (run.records.completion_s > run.records.first_token_s).all()
    check_replies(backend.texts, trace, chats)


def test_a_model_cut_over_two_actors_answers_as_the_whole_one(
    cluster: Any, problem: Problem, tmp_path: Path
) -> None:
    """Activations go from actor to actor; the answers are those of the model run in one piece, to 1e-5."""
    import torch

    from muplan.serving.workers.stage import Stage as Whole

    models, deployment = graphs(problem, tmp_path), pipeline(problem, (2,))
    case = case_of(problem, deployment, 60, 1.5)
    workers = worker_parts(problem, deployment, models)
    backend = Watched(workers, transport=RayActors(workers, RaySession(None)))
    serve_in_real_time(case, backend, rng=np.random.default_rng(0))
    assert sorted(backend.answered) == list(range(60))
    (whole_parts,) = worker_parts(problem, pipeline(problem, ()), models)
    wholes = {part.service: Whole(part, torch.device("cpu")) for part in whole_parts.parts}
    for number, answer in backend.answers.items():
        work = backend.launched[number]
        assert isinstance(work, Pass)
        whole = wholes[work.service]
        with torch.inference_mode():
            expected = whole(whole.entering(len(work.requests))).flatten(1).mean(dim=1).numpy()
        np.testing.assert_allclose(answer, expected, atol=1e-5, rtol=1e-5)


def case_of(problem: Problem, deployment: Deployment, count: int, duration_s: float) -> Case:
    trace = random_trace(problem, count, duration_s)
    return make_case(
        problem, deployment, trace, warm_up_s=0.0, cool_down_s=0.0, controller=None, num_samples=10
    )


class LosingHosts(Watched):
    """Takes hosts from the cluster, one after the other: those that then have the groups named."""

    def __init__(self, workers: tuple[WorkerParts, ...], cluster: Any, groups: list[str]) -> None:
        self.actors = RayActors(workers, RaySession(None))
        super().__init__(workers, transport=self.actors)
        self.cluster, self.groups, self.is_whole = cluster, groups, True

    def launch(self, work: Work) -> None:
        super().launch(work)
        if self.groups and self.is_whole and work.number >= 20:
            host, self.is_whole = self.actors.host_of(self.groups.pop(0), 0), False
            (lost,) = (one for one in self.cluster.worker_nodes if one.node_id == host.ray_id)
            self.cluster.remove_node(lost, allow_graceful=False)

    def next_event(self, until_s: float) -> Event | None:
        event = super().next_event(until_s)
        self.is_whole |= isinstance(event, GroupReady | GroupGone)
        return event


def two_replicas(problem: Problem) -> Deployment:
    """Both services on each of two nodes, a core each."""
    replicas = pipeline(problem, ()).groups[0].replicas
    halves = tuple(replica.model_copy(update={"share": 0.5}) for replica in replicas)
    return cases.deployment(
        [
            Group(
                name=f"g{node}",
                pool="cores",
                stages=(Stage(gpus=(f"cores/{node}/0",), clock_mhz=3000),),
                replicas=halves,
            )
            for node in (1, 2)
        ]
    )


def test_groups_of_lost_hosts_are_placed_again_or_given_up(
    cluster: Any, problem: Problem, tmp_path: Path
) -> None:
    """A first loss is taken by a spare host; that lost too, the group is given up; the third ends the run.

    No request is answered twice; until the end each is answered.
    """
    for number in (1, 2):
        cluster.add_node(num_cpus=1, resources={f"muplan:cores/{number}": 1}, **SMALL)
    deployment = two_replicas(problem)
    workers = worker_parts(problem, deployment, graphs(problem, tmp_path))
    case = case_of(problem, deployment, 1200, 60.0)
    backend = LosingHosts(workers, cluster, ["g1", "g1", "g2"])
    run = serve_in_real_time(case, backend, rng=np.random.default_rng(0))
    assert not backend.groups
    moved, given_up = run.outages
    assert moved.group == given_up.group == "g1"
    assert moved.moved_to is not None
    assert given_up.is_final
    assert given_up.end_s is None
    assert run.is_partial
    assert isinstance(run.fault, NoPlaceError)
    assert "no other host of the Ray cluster has 1 CPU free for node cores/2 of the plan" in str(run.fault)
    assert len(set(backend.answered)) == len(backend.answered)
    before = run.records.arrival_s < moved.begin_s  # what came later may have been with the last host
    assert before.sum() > 20
    assert np.isfinite(run.records.completion_s[before]).all()


def test_ray_is_started_where_no_address_is_given_and_ended_with_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A session of its own, in a process without one; what was there before is left as it was."""
    begun, ended = list[dict[str, Any]](), list[bool]()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: begun.append(options))
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    session = RaySession(None)
    session.open()
    assert begun[0]["address"] == "local"
    assert begun[0]["include_dashboard"] is False
    session.close()
    session.close()
    assert ended == [True]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    RaySession(None).open()
    RaySession(None).close()
    assert (len(begun), ended) == (1, [True])


def test_an_address_without_a_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once where nothing listens; and what Ray says where something else does."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def refuse(**options: Any) -> None:
            raise ConnectionError(f"no cluster at {options['address']}\nmore")

        monkeypatch.setattr(ray, "init", refuse)
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(DeviceError, match=f"No connection to Ray at '{address}': no cluster at") as none:
            RaySession(None).open()
        assert none.value.exit_code == 3
        assert "more" not in str(none.value)
    with pytest.raises(DeviceError, match=f"No connection to Ray at '{address}': .* refused"):
        RaySession(address).open()
    for wrong in ("ray://head:10001", "head"):
        with pytest.raises(InputError, match=f"'{wrong}' is no address of a Ray head node."):
            RaySession(wrong).open()


def test_a_plan_for_gpus_that_no_host_has_is_refused(tmp_path: Path) -> None:
    """The whole command with a Ray of its own: exit 3 with what is missing, nothing on stdout or written."""
    run = muplan("execute", str(PLANS / "quickstart.json"), "--backend", "ray", folder=tmp_path)
    assert run.returncode == 3, run.stderr
    assert run.stdout == ""
    assert "No host of the Ray cluster has" in run.stderr
    assert "GPUs free for node" in run.stderr
    assert not list(tmp_path.iterdir())


def test_an_address_goes_with_ray_alone(tmp_path: Path) -> None:
    run = muplan("execute", str(PLANS / "quickstart.json"), "--ray-address", "head:6379", folder=tmp_path)
    assert run.returncode == 2
    assert "--ray-address is not for --backend simulated." in run.stderr
