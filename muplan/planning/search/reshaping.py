"""Moves of a search over placements: other services on a group, other forms of groups on the same GPUs.

Each takes a placement and returns another, or None where the move is impossible. Every service stays hosted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from muplan.planning.search.placement import Host, Placement, Site
from muplan.serving.layout import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What moves are drawn from: a source of randomness, and what each service lacks."""

    site: Site
    rng: np.random.Generator
    need: Floats

    def service(self, among: Sequence[int]) -> int:
        """One of some services, the needy more often."""
        weights = self.need[list(among)] + 1e-9
        return int(among[int(np.searchsorted(np.cumsum(weights), self.rng.random() * weights.sum()))])

    def index(self, size: int) -> int:
        """A number below ``size``."""
        return int(self.rng.random() * size)

    def order(self, services: Iterable[int]) -> list[int]:
        """Services in random order, the needy sooner (Efraimidis and Spirakis, 2006)."""
        chosen = list(services)
        keys = self.rng.random(len(chosen)) ** (1.0 / (self.need[chosen] + 1e-3 * (1 + self.need.max())))
        return [chosen[place] for place in np.argsort(-keys)]


Move = Callable[[Placement, Draw], Placement | None]


def add(placement: Placement, draw: Draw) -> Placement | None:
    """One more replica of a service in need, on a group that makes room for it if it must."""
    place = draw.index(len(placement))
    host = placement[place]
    absent = [s for s in draw.site.estimates[host.shape] if s not in host.services]
    if not absent:
        return None
    service = draw.service(absent)
    kept = Host(host.shape, (service,))
    for other in draw.order(host.services):
        kept = grown if draw.site.fits(grown := kept.with_service(other)) else kept
    return _legal(placement, draw.site, (place,), (kept,))


def drop(placement: Placement, draw: Draw) -> Placement | None:
    """One replica less: a service that others wait for."""
    place = draw.index(len(placement))
    host = placement[place]
    if len(host.services) < 2:
        return None
    gone = host.services[draw.index(len(host.services))]
    return _legal(placement, draw.site, (place,), (host.without_service(gone),))


def exchange(placement: Placement, draw: Draw) -> Placement | None:
    """Two groups exchange a service each."""
    first, second = draw.index(len(placement)), draw.index(len(placement))
    one, two = placement[first], placement[second]
    there, here = set(two.services) - set(one.services), set(one.services) - set(two.services)
    if first == second or not there or not here:
        return None
    to_one = sorted(there)[draw.index(len(there))]
    to_two = sorted(here)[draw.index(len(here))]
    hosts = one.without_service(to_two).with_service(to_one), two.without_service(to_one).with_service(to_two)
    return _legal(placement, draw.site, (first, second), hosts)


def change_form(placement: Placement, draw: Draw) -> Placement | None:
    """A group of as many GPUs in another form."""
    place = draw.index(len(placement))
    host = placement[place]
    shapes = _forms(draw.site, host.shape, draw.site.shapes[host.shape].num_gpus)
    others = [shape for shape in shapes if shape != host.shape]
    if not others:
        return None
    hosts = _filled(draw, [others[draw.index(len(others))]], host.services)
    return _legal(placement, draw.site, (place,), hosts)


def split(placement: Placement, draw: Draw) -> Placement | None:
    """A group becomes two of half its GPUs."""
    place = draw.index(len(placement))
    host = placement[place]
    num_gpus = draw.site.shapes[host.shape].num_gpus
    shapes = _forms(draw.site, host.shape, num_gpus // 2)
    if num_gpus % 2 or not shapes:
        return None
    form = shapes[draw.index(len(shapes))]
    return _legal(placement, draw.site, (place,), _filled(draw, [form, form], host.services))


def merge(placement: Placement, draw: Draw) -> Placement | None:
    """Two groups of equally many GPUs of a pool become one."""
    first = draw.index(len(placement))
    shape = draw.site.shapes[placement[first].shape]
    alike = [
        place
        for place, host in enumerate(placement)
        if place != first
        and draw.site.shapes[host.shape].num_gpus == shape.num_gpus
        and draw.site.shapes[host.shape].pool == shape.pool
    ]
    shapes = _forms(draw.site, placement[first].shape, 2 * shape.num_gpus)
    if not alike or not shapes:
        return None
    second = alike[draw.index(len(alike))]
    services = {*placement[first].services, *placement[second].services}
    hosts = _filled(draw, [shapes[draw.index(len(shapes))]], sorted(services))
    return _legal(placement, draw.site, (first, second), hosts)


def refill(placement: Placement, draw: Draw) -> Placement | None:
    """Two groups divide what they host anew: each service to one of them, then to both as there is room."""
    first, second = draw.index(len(placement)), draw.index(len(placement))
    if first == second:
        return None
    services = {*placement[first].services, *placement[second].services}
    hosts = _filled(draw, [placement[first].shape, placement[second].shape], sorted(services))
    return _legal(placement, draw.site, (first, second), hosts)


MOVES: tuple[Move, ...] = (add, drop, exchange, change_form, split, merge, refill)


def _forms(site: Site, shape: int, num_gpus: int) -> list[int]:
    """Shapes of so many GPUs in the pool of a shape."""
    pool = site.shapes[shape].pool
    return [n for n, other in enumerate(site.shapes) if other.pool == pool and other.num_gpus == num_gpus]


def _filled(draw: Draw, shapes: Sequence[int], services: Sequence[int]) -> tuple[Host, ...]:
    """Groups of some shapes with some services: each once, in turn, then again wherever there is room."""
    hosts = [Host(shape) for shape in shapes]
    for round_ in range(len(hosts)):
        for turn, service in enumerate(draw.order(services)):
            if round_ == 0 and any(service in host.services for host in hosts):
                continue
            for step in range(len(hosts)):
                place = (turn + step) % len(hosts)
                host = hosts[place]
                if service not in host.services and draw.site.fits(grown := host.with_service(service)):
                    hosts[place] = grown
                    break
    return tuple(hosts)


def _legal(
    placement: Placement, site: Site, gone: tuple[int, ...], come: tuple[Host, ...]
) -> Placement | None:
    """The placement with some groups in place of others; None where a service is left out or does not fit."""
    rest = [host for place, host in enumerate(placement) if place not in gone]
    before = {service for place in gone for service in placement[place].services}
    lost = before - {service for host in come for service in host.services}
    if any(not any(service in host.services for host in rest) for service in lost):
        return None
    if not all(site.fits(host) for host in come):
        return None
    return tuple(sorted((*rest, *come)))
