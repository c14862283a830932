"""Workers as actors of Ray."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from muplan import __version__
from muplan.serving.ray.actor import StageActor
from muplan.serving.ray.hosts import (
    NAMED,
    Host,
    PlanNode,
    node_of,
    place_nodes,
    plan_nodes,
    replace_node,
    resource_of,
)
from muplan.serving.ray.session import RaySession, live_hosts
from muplan.serving.workers.messages import Answer, Order, Ran
from muplan.serving.workers.parts import Place, WorkerParts
from muplan.serving.workers.transport import Heard

_SHARE = 0.001
"""Of a host's custom resource that an actor takes: all of a node's find room."""

Seat = tuple[str, str]
"""What is placed together: the stages of a group on one node of the plan, whose links they need."""


@dataclass(slots=True)
class _Asked:
    """What an actor was asked, and what leaves it then."""

    place: Place
    number: int = -1
    leaving: Any = None


@dataclass(slots=True)
class _State:
    """What actors were asked and have not answered, by Ray's reference to the answer; and where they are."""

    asked: dict[Any, _Asked] = field(default_factory=dict)
    hosts: dict[Seat, Host] = field(default_factory=dict)
    last_end_s: dict[Place, float] = field(default_factory=dict)


class RayActors:
    """An actor for each worker, on the host that is its node of the plan.

    What goes from stage to stage is a reference: the next actor fetches the array from the one that made it,
    not by way of this process.

    How long a stage computed is measured where it did. When it ended is when this process heard of it, by
    its own clock: hosts' clocks are not compared. So ends are late by the way of a message, as decisions are.
    """

    name = "ray"

    def __init__(self, workers: Sequence[WorkerParts], session: RaySession) -> None:
        self._workers = tuple(workers)
        self._session = session
        self._last_stage = {held.group: held.stage for held in sorted(workers, key=lambda one: one.stage)}
        self._state = _State()
        self.actors: dict[Place, Any] = {}
        """Ray's handle of each."""

    def open(self) -> None:
        """Connect to Ray, and find the host of each node of the plan.

        Raises
        ------
        DeviceError
            There is no Ray, or it has not what the plan needs.
        """
        self._session.open()
        placed = place_nodes(plan_nodes(self._workers), live_hosts())
        self._state.hosts = {_seat(held): placed[node_of(held)] for held in self._workers}

    def start(self, held: WorkerParts) -> str:
        """Make an actor, on another host where its own is lost; returns that host.

        Raises
        ------
        NoPlaceError
            No other host has room for what is placed together with it.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        seat, hosts = _seat(held), live_hosts()
        host = self._state.hosts[seat]
        if host.ray_id not in {one.ray_id for one in hosts}:
            host = self._state.hosts[seat] = replace_node(
                self._together(held), host, hosts, self._num_taken()
            )
        named = {NAMED + node_of(held): _SHARE} if NAMED + node_of(held) in host.resources else {}
        made = ray.remote(concurrency_groups={"watch": 1})(StageActor)
        on_gpu = resource_of(held.device) == "GPU"
        actor = made.options(
            num_cpus=0 if on_gpu else 1,
            num_gpus=1 if on_gpu else 0,
            resources=named,
            scheduling_strategy=NodeAffinitySchedulingStrategy(host.ray_id, soft=False),
        ).remote(held, 0 if on_gpu else self._core(held), __version__)
        self.actors[held.place] = actor
        self._state.asked[actor.watch.options(concurrency_group="watch").remote()] = _Asked(held.place)
        self._state.asked[actor.make.remote()] = _Asked(held.place)
        return host.name

    def send(self, held: WorkerParts, order: Order) -> None:
        """Send an order; what enters goes beside it."""
        if held.place not in self.actors:
            return
        run = self.actors[held.place].run.options(num_returns=2)
        bare: Any = replace(order, entering=None)  # type: ignore[arg-type]  # the actor puts it in again
        ran, leaving = run.remote(bare, order.entering)
        self._state.asked[ran] = _Asked(held.place, order.number, leaving)

    def hear(self, most_s: float) -> list[Heard]:
        """What the actors answer within a time."""
        import ray

        if not self._state.asked:
            time.sleep(0.0 if math.isinf(most_s) else most_s)
            return []
        references = list(self._state.asked)
        answered, _ = ray.wait(references, timeout=None if math.isinf(most_s) else most_s)
        if answered:  # and what else is there
            answered, _ = ray.wait(references, num_returns=len(references), timeout=0.0)
        heard: list[Heard] = []
        for reference in answered:
            asked = self._state.asked.pop(reference, None)
            if asked is not None:  # not of an actor that was found dead just now
                heard.append((asked.place, self._answer(reference, asked)))
        return heard

    def _answer(self, reference: Any, asked: _Asked) -> Answer | None:
        import ray

        group, stage = asked.place
        try:
            said = ray.get(reference)
            if not isinstance(said, float):
                made: Answer = said
                return made
            leaving = asked.leaving if stage < self._last_stage[group] else ray.get(asked.leaving)
        except ray.exceptions.RayError:
            self._forget(asked.place)
            return None
        end_s = time.monotonic()
        begin_s = max(end_s - said, self._state.last_end_s.get(asked.place, 0.0))
        self._state.last_end_s[asked.place] = end_s
        return Ran(number=asked.number, begin_s=begin_s, end_s=end_s, leaving=leaving)

    def _forget(self, place: Place) -> None:
        """An actor has died, or cannot go on: nothing more is expected of it."""
        import ray

        ray.kill(self.actors.pop(place))
        self._state.asked = {
            reference: asked for reference, asked in self._state.asked.items() if asked.place != place
        }

    def host_of(self, group: str, stage: int) -> Host:
        """Where a stage is, or was last."""
        held = next(one for one in self._workers if one.place == (group, stage))
        return self._state.hosts[_seat(held)]

    def close(self) -> None:
        """End all actors, and Ray as far as it was started for them."""
        import ray

        if ray.is_initialized():
            for actor in self.actors.values():
                ray.kill(actor)
        self.actors.clear()
        self._state = _State()
        self._session.close()

    def _together(self, held: WorkerParts) -> PlanNode:
        """What must find room on one host, to place a worker."""
        count = sum(_seat(one) == _seat(held) for one in self._workers)
        return PlanNode(name=node_of(held), device=held.device, num_used=count)

    def _num_taken(self) -> Counter[str]:
        """Devices of each host that the plan uses."""
        return Counter(self._state.hosts[_seat(held)].ray_id for held in self._workers)

    def _core(self, held: WorkerParts) -> int:
        """A core for a worker among those on its host."""
        host = self._state.hosts[_seat(held)]
        here = sorted(one.gpu for one in self._workers if self._state.hosts[_seat(one)] == host)
        return here.index(held.gpu)


def _seat(held: WorkerParts) -> Seat:
    return held.group, node_of(held)
