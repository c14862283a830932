"""Workloads: what a user may write, and every fault told at its line.

If these fail, a user with a mistake in a workload is not told what or where it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from muplan.errors import InputError
from muplan.hardware.fleet import Fleet, Pool
from muplan.serde import digest, parse_document, read_document, to_json
from muplan.traces.processes import MarkovModulated, Piecewise, Poisson, Weibull
from muplan.workload import (
    CONTROL_POLICIES,
    Controller,
    Demand,
    Goal,
    QueueOrder,
    Routing,
    Service,
    Serving,
    Simulation,
    Slo,
    Workload,
)

SHIPPED = ("chat", "light", "mixed", "overload", "pools", "power_capped", "quickstart")

BROKEN = """\
kind: workload
schema_version: 1
name: Broken Name
fleet:
  power_cap_w: -5
  pools:
    - {name: v100, device: v100-sxm2-32gb, num_gpus: 0}
    - {name: v100, device: v100-sxm2-32gb, num_gpus: 8, gpu_per_node: 4}
services:
  - name: search
    modle: bert-1.3b
    slo: {scale: 5, latency_s: 0.1}
    demand: {rate_rps: 4}
  - name: photos
    model: vit-large
    slo: {scale: 0.5, attainment: 1.0}
    demand: {rate_rps: .nan, cv: 0}
  - name: chat
    model: llama-2-7b
    slo: {ttft_s: 1}
    demand: {rate_rps: 1, trace: chat.csv}
objective: cheap
serving:
  queue_order: lifo
  controller: {policy: pid}
simulation: {duration_s: 10, warm_up_s: 10, replications: 1}
"""

VALID = """\
kind: workload
schema_version: 1
name: small
fleet:
  pools:
    - {name: v100, device: v100-sxm2-32gb, num_gpus: 2}
services:
  - {name: search, model: bert-base, slo: {scale: 5}, demand: {rate_rps: 4}}
"""


def test_a_broken_workload_lists_every_fault_with_its_line() -> None:
    with pytest.raises(InputError) as caught:
        parse_document(BROKEN, Workload, file="broken.yaml")
    assert [f"{fault.line}: {fault.key}: {fault.message}" for fault in caught.value.faults] == [
        "3: name: should match pattern '^[a-z0-9][a-z0-9._-]*$' (found 'Broken Name')",
        "5: fleet.power_cap_w: should be greater than 0 (found -5)",
        "7: fleet.pools[0].num_gpus: should be greater than or equal to 1 (found 0)",
        "8: fleet.pools[1].gpu_per_node: no such key",
        "10: services[0].model: this key is required",
        "11: services[0].modle: no such key",
        "12: services[0].slo: give exactly one of scale, latency_s, or the pair ttft_s and tpot_s",
        "16: services[1].slo.scale: should be greater than 1 (found 0.5)",
        "16: services[1].slo.attainment: should be less than 1 (found 1.0)",
        "17: services[1].demand.rate_rps: should be a finite number (found nan)",
        "17: services[1].demand.cv: should be greater than 0 (found 0)",
        "20: services[2].slo: give exactly one of scale, latency_s, or the pair ttft_s and tpot_s",
        "21: services[2].demand: give exactly one of rate_rps, process or trace",
        "22: objective: should be one or a list of 'power', 'goodput', 'rate', 'energy-per-request'"
        " (found 'cheap')",
        "24: serving.queue_order: should be 'fcfs', 'sjf', 'ssjf', 'edf' or 'srpt' (found 'lifo')",
        "25: serving.controller.policy: should be 'fixed', 'miad', 'slack' or 'forecast' (found 'pid')",
        "26: simulation.replications: should be greater than or equal to 2 (found 1)",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("services:\n", "services:\n  - {name: search, model: m, slo: {scale: 5}, demand: {rate_rps: 1}}\n",
         "f:9: services[1].name: 'search' stands twice; names must differ"),
        ("num_gpus: 2}\n", "num_gpus: 2}\n    - {name: v100, device: d, num_gpus: 1}\n",
         "f:7: fleet.pools[1].name: 'v100' stands twice; names must differ"),
        ("name: small\n", "name: small\nsimulation: {duration_s: 30}\n",
         "cool_down_s + warm_up_s must be less than duration_s"),
        ("name: small\n", "name: small\nserving: {batching: dynamic, queue_order: srpt}\n",
         "f:4: serving: queue_order srpt preempts what runs, which a dynamic batch cannot; use ssjf"),
        ("name: small\n", "name: small\nserving: {batching: dynamic, prefill_chunk_tokens: 256}\n",
         "f:4: serving: prefill_chunk_tokens goes with batching: continuous; remove one of the two"),
        ("name: small\n", "name: small\nserving: {wait_cap: 1}\n",
         "f:4: serving.wait_cap: should be a number above 1, or 'none' (found 1)"),
        ("name: small\n", "name: small\nserving: {wait_cap: never}\n",
         "f:4: serving.wait_cap: should be a number above 1, or 'none' (found 'never')"),
        ("{scale: 5}", "{}", "give exactly one of scale"),
        ("{scale: 5}", "{tpot_s: 0.1}", "the pair ttft_s and tpot_s"),
        ("{rate_rps: 4}", "{cv: 2}", "give exactly one of rate_rps, process or trace"),
        ("{rate_rps: 4}", "{trace: t.csv, cv: 2}", "cv goes with rate_rps"),
        ("{rate_rps: 4}", "{rate_rps: 4, process: {kind: poisson, rate_rps: 4}}",
         "f:8: services[0].demand: give exactly one of rate_rps, process or trace"),
        ("{rate_rps: 4}", "{process: {kind: poissonian, rate_rps: 4}}",
         "f:8: services[0].demand.process"),
        ("{rate_rps: 4}", "{process: {kind: weibull, rate_rps: 4}}",
         "f:8: services[0].demand.process.cv: this key is required"),
        ("{rate_rps: 4}", "{process: {kind: poisson, rate_rps: 4, cv: 2}}",
         "f:8: services[0].demand.process.cv: no such key"),
        ("{rate_rps: 4}", "{process: {kind: markov-modulated, rates_rps: [1, 2], sojourns_s: [1, 0]}}",
         "f:8: services[0].demand.process.sojourns_s[1]: should be greater than or equal to 0.001"),
        ("{rate_rps: 4}", "{process: {kind: markov-modulated, rates_rps: [1, 2], sojourns_s: [1, 2, 3]}}",
         "f:8: services[0].demand.process: has 2 rates_rps and 3 sojourns_s"),
        ("schema_version: 1", "schema_version: 2", "schema_version: is 2, expected 1"),
    ],
)  # fmt: skip
def test_faults_between_keys(old: str, new: str, message: str) -> None:
    text = VALID.replace(old, new)
    assert text != VALID
    with pytest.raises(InputError) as caught:
        parse_document(text, Workload, file="f")
    assert message in caught.value.problem


def test_defaults_are_those_documented() -> None:
    workload = parse_document(VALID, Workload, file="f")
    assert workload.objective == (Goal.POWER,)
    assert workload.services[0].slo.attainment == 0.99
    assert workload.services[0].demand.cv == 1.0
    assert workload.serving == Serving()
    assert workload.serving.controller.policy == "fixed"
    assert workload.simulation == Simulation(duration_s=600.0, warm_up_s=30.0, replications=5)
    assert workload.fleet.pools[0].gpus_per_node == 8


def test_gpus_are_named_by_pool_node_and_place() -> None:
    pool = Pool(name="v100", device="d", num_gpus=5, gpus_per_node=2)
    assert pool.gpu_ids() == ("v100/0/0", "v100/0/1", "v100/1/0", "v100/1/1", "v100/2/0")
    fleet = Fleet(pools=(pool, pool.model_copy(update={"name": "other"})))
    assert fleet.num_gpus == 10


# --- round trips -------------------------------------------------------------------------------

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,6}", fullmatch=True)
positive = st.floats(1e-6, 1e6)
slos = st.one_of(
    st.builds(Slo, scale=st.floats(1.01, 100), attainment=st.floats(0.01, 0.999)),
    st.builds(Slo, latency_s=positive),
    st.builds(Slo, ttft_s=positive, tpot_s=positive),
)
demands = st.one_of(
    st.builds(Demand, rate_rps=positive, cv=st.floats(0.01, 20.0)),
    st.builds(Demand, trace=st.text(max_size=9)),
    st.builds(
        Demand,
        process=st.one_of(
            st.builds(Poisson, rate_rps=positive),
            st.builds(Weibull, rate_rps=positive, cv=st.floats(0.05, 20.0)),
            st.builds(
                MarkovModulated,
                rates_rps=st.tuples(positive, positive),
                sojourns_s=st.tuples(st.floats(0.1, 1e4), st.floats(0.1, 1e4)),
            ),
            st.builds(
                Piecewise, rates_rps=st.lists(positive, min_size=1).map(tuple), interval_s=st.floats(0.1, 1e4)
            ),
        ),
    ),
)
services = st.builds(
    Service,
    name=names,
    model=names,
    slo=slos,
    demand=demands,
    tokens=st.none() | st.integers(1, 4096),
    lengths=st.none() | names,
)
pools = st.builds(
    Pool, name=names, device=names, num_gpus=st.integers(1, 99), power_cap_w=st.none() | positive
)
servings = st.builds(
    Serving,
    queue_order=st.sampled_from(QueueOrder),
    routing=st.sampled_from(Routing),
    wait_cap=st.floats(1.01, 9) | st.just("none"),
    prefill_chunk_tokens=st.none() | st.integers(1, 4096),
    max_batch=st.integers(1, 64),
    batch_timeout_s=st.floats(0, 1),
    controller=st.builds(Controller, policy=st.sampled_from(CONTROL_POLICIES), window_s=positive),
)


def unique(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(parts, min_size=1, max_size=4, unique_by=lambda part: part.name).map(tuple)


workload_documents = st.builds(
    Workload,
    name=names,
    description=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    fleet=st.builds(Fleet, pools=unique(pools), power_cap_w=st.none() | positive),
    services=unique(services),
    objective=st.sampled_from([*Goal, (Goal.GOODPUT, Goal.POWER)]),
    serving=servings,
)


@given(workload=workload_documents)
@settings(max_examples=60, deadline=None)
def test_round_trip(workload: Workload) -> None:
    again = parse_document(to_json(workload), Workload, file="f")
    assert again == workload
    assert digest(again) == digest(workload)


def test_digest_tells_the_content_not_the_layout() -> None:
    """A plan is void when its workload changes, and only then."""
    workload = parse_document(VALID, Workload, file="f")
    commented = VALID.replace("services:", "# the services\nservices:  # all of them")
    reordered = "name: small\n" + VALID.replace("name: small\n", "")
    explicit = VALID + "objective: power\nserving: {max_batch: 8}\n"
    for text in (commented, reordered, explicit, to_json(workload)):
        assert digest(parse_document(text, Workload, file="f")) == digest(workload)
    changed = parse_document(VALID.replace("rate_rps: 4", "rate_rps: 4.5"), Workload, file="f")
    assert digest(changed) != digest(workload)


def test_workloads_cannot_be_changed_in_place() -> None:
    workload = parse_document(VALID, Workload, file="f")
    with pytest.raises(ValidationError, match="frozen"):
        workload.name = "other"  # type: ignore[misc]


# --- shipped workloads -------------------------------------------------------------------------


def test_exactly_the_documented_workloads_ship(workloads: Path) -> None:
    assert tuple(sorted(path.stem for path in workloads.glob("*.yaml"))) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_workload_reads_and_says_what_it_shows(workloads: Path, name: str) -> None:
    path = workloads / f"{name}.yaml"
    workload = read_document(path, Workload)
    assert workload.name == name
    assert workload.description
    comment = path.read_text(encoding="utf-8").split("\nkind:")[0]
    assert comment.startswith("#")
    assert "Shows" in comment


def test_mixed_is_as_its_comment_says(workloads: Path) -> None:
    mixed = read_document(workloads / "mixed.yaml", Workload)
    assert len(mixed.services) == 12
    assert mixed.fleet.num_gpus == 32
    assert {service.demand.cv for service in mixed.services} == {4.0}
    assert {service.slo.scale for service in mixed.services} == {5.0}
