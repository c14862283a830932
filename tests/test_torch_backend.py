"""Worker processes that run the stages of a plan for real, on processor cores.

If these fail, `muplan execute --backend torch` answers other than the model does, loses requests when a
worker dies, or does not say what it cannot do.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from muplan.errors import DeviceError, InputError
from muplan.model.catalog import load_model
from muplan.model.graph import ModelGraph, Phase
from muplan.plan import Deployment, Group, Replica, Stage
from muplan.problem.loading import load_problem
from muplan.problem.problem import Problem
from muplan.serde import write_text
from muplan.serving.case import Case, make_case
from muplan.serving.realtime.backend import Event, GroupLost, Iteration, Pass, Work, WorkDone
from muplan.serving.realtime.executor import serve_in_real_time
from muplan.serving.realtime.scripted import ScriptedBackend
from muplan.serving.workers.backend import WorkerBackend
from muplan.serving.workers.messages import Array, Iterate
from muplan.serving.workers.parts import WorkerParts, worker_parts
from muplan.serving.workers.processes import Processes
from muplan.serving.workers.replies import Replies
from muplan.serving.workers.transport import Transport
from muplan.traces.trace import Trace
from muplan.workload import Batching, Serving, Workload
from tests import serving_cases as cases
from tests.test_cli import muplan

if TYPE_CHECKING:
    from muplan.serving.workers.generate_stage import GenerateStage

pytest.importorskip("torch", reason="the torch backend needs torch")

PLANS = Path(__file__).parent.parent / "plans"
BERT = """{"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
"intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 64, "type_vocab_size": 2,
"dtype": "float32"}"""
VIT = """{"model_type": "vit", "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
"intermediate_size": 96, "image_size": 32, "patch_size": 16, "num_channels": 3, "dtype": "float32"}"""


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """A text and an image model on processor cores, two a node."""
    folder = tmp_path_factory.mktemp("tiny")
    write_text(BERT, folder / "text.json")
    write_text(VIT, folder / "image.json")
    demand = {"demand": {"rate_rps": 40.0}, "slo": {"latency_s": 1.0}}
    workload = Workload.model_validate(
        {
            "kind": "workload",
            "schema_version": 1,
            "name": "tiny",
            "fleet": {"pools": ({"name": "cores", "device": "cpu", "num_gpus": 6, "gpus_per_node": 2},)},
            "services": (
                {"name": "text", "model": "text.json", "tokens": 16, **demand},
                {"name": "image", "model": "image.json", **demand},
            ),
        }
    )
    return load_problem(workload, directory=folder, profiles=None)


def graphs(problem: Problem, folder: Path) -> dict[str, ModelGraph]:
    write_text(BERT, folder / "text.json")
    write_text(VIT, folder / "image.json")
    return {service.name: load_model(folder / f"{service.name}.json") for service in problem.services}


def pipeline(problem: Problem, cuts: tuple[int, ...]) -> Deployment:
    """Both services on one pipeline, cut after some clusters."""
    replicas = []
    for service in problem.services:
        ends = (0, *cuts, len(service.profiles["cores"].clusters))
        ranges = tuple(((start, stop),) for start, stop in itertools.pairwise(ends))
        replicas.append(Replica(service=service.name, share=1.0, max_batch=3, stage_clusters=ranges))
    stages = tuple(Stage(gpus=(f"cores/0/{number}",), clock_mhz=3000) for number in range(len(cuts) + 1))
    return cases.deployment([Group(name="g", pool="cores", stages=stages, replicas=tuple(replicas))])


def random_trace(problem: Problem, count: int, duration_s: float) -> Trace:
    rng = np.random.default_rng(0)
    arrivals = np.sort(rng.uniform(0.0, duration_s, count))
    return cases.trace(problem.services, arrivals, rng.integers(0, 2, count), duration_s=duration_s)


class Watched(WorkerBackend):
    """Notes what was launched and answered; kills a worker when told to."""

    def __init__(
        self,
        workers: tuple[WorkerParts, ...],
        kill_at: tuple[float, ...] = (),
        transport: Transport | None = None,
    ) -> None:
        self.transport = transport or Processes(workers)
        super().__init__(workers, self.transport)
        self.launched: dict[int, Work] = {}
        self.answers: dict[int, Array] = {}
        self.answered: list[int] = []
        self.kills = list(kill_at)

    def launch(self, work: Work) -> None:
        self.launched[work.number] = work
        super().launch(work)
        if self.kills and self.now_s() > self.kills[0]:
            self.kills.pop(0)
            self.kill(len(self.kills) % 2)

    def kill(self, number: int) -> None:
        assert isinstance(self.transport, Processes)
        os.kill(list(self.transport.process_ids.values())[number], signal.SIGKILL)

    def next_event(self, until_s: float) -> Event | None:
        event = super().next_event(until_s)
        if isinstance(event, WorkDone) and isinstance(work := self.launched[event.number], Pass):
            self.answered += work.requests
        return event

    def answer(self, work: Pass, answer: Array) -> None:
        self.answers[work.number] = answer


def test_a_model_cut_over_two_workers_answers_as_the_whole_one(problem: Problem, tmp_path: Path) -> None:
    """Every request is answered once; the answers are those of the model run in one piece here, to 1e-5."""
    import torch

    from muplan.serving.workers.stage import Stage as Whole

    models = graphs(problem, tmp_path)
    trace = random_trace(problem, 60, 1.5)
    deployment = pipeline(problem, (2,))
    case = make_case(
        problem, deployment, trace, warm_up_s=0.0, cool_down_s=0.0, controller=None, num_samples=10
    )
    backend = Watched(worker_parts(problem, deployment, models))
    run = serve_in_real_time(case, backend, rng=np.random.default_rng(0))
    assert sorted(backend.answered) == list(range(60))
    assert not run.is_partial
    assert (run.records.completion_s > run.records.start_s).all()
    (whole_parts,) = worker_parts(problem, pipeline(problem, ()), models)
    with torch.inference_mode():
        wholes = {part.service: Whole(part, torch.device("cpu")) for part in whole_parts.parts}
        for number, answer in backend.answers.items():
            work = backend.launched[number]
            assert isinstance(work, Pass)
            whole = wholes[work.service]
            expected = whole(whole.entering(len(work.requests))).flatten(1).mean(dim=1).numpy()
            np.testing.assert_allclose(answer, expected, atol=1e-5, rtol=1e-5)
            assert np.abs(expected).max() > 1e-3


def test_workers_that_are_killed_lose_no_request(problem: Problem, tmp_path: Path) -> None:
    """kill -9 of either worker: it is started again, and every request is answered once, in a later pass."""
    trace = random_trace(problem, 200, 2.0)
    deployment = pipeline(problem, (2,))
    case = make_case(
        problem, deployment, trace, warm_up_s=0.0, cool_down_s=0.0, controller=None, num_samples=10
    )
    backend = Watched(worker_parts(problem, deployment, graphs(problem, tmp_path)), kill_at=(0.3, 1.0))
    run = serve_in_real_time(case, backend, rng=np.random.default_rng(0))
    assert not backend.kills
    assert run.num_lost > 0
    assert sorted(backend.answered) == list(range(200))
    assert np.isfinite(run.records.completion_s).all()


def test_a_stage_that_does_not_fit_is_refused_before_it_is_made(problem: Problem, tmp_path: Path) -> None:
    """The message names the stage, what it needs and what there is."""
    import torch

    from muplan.serving.workers.stage import check_memory, needed_bytes

    (held,) = worker_parts(problem, pipeline(problem, ()), graphs(problem, tmp_path))
    device = torch.device("cpu")
    need = sum(needed_bytes(part, device) for part in held.parts)
    weights = sum(part.graph.weight_bytes for part in held.parts)
    assert weights < need < 3 * weights
    check_memory(held.name, held.parts, device, 2 * need)
    with pytest.raises(DeviceError) as caught:
        check_memory(held.name, held.parts, device, need)
    assert caught.value.exit_code == 3
    assert "stage 0 of g (text, image) needs 0.00 GiB of memory; cpu has 0.00 GiB free" in str(caught.value)


def test_a_plan_for_gpus_that_are_not_here_is_refused(tmp_path: Path) -> None:
    """Exit 3 with what is missing; nothing is written."""
    import torch

    if torch.cuda.device_count() > 0:
        pytest.skip("there is a GPU here")
    run = muplan("execute", str(PLANS / "quickstart.json"), "--backend", "torch", folder=tmp_path)
    assert run.returncode == 3
    assert "GPUs; torch sees 0 on this machine." in run.stderr


def test_what_workers_cannot_run_is_named(problem: Problem, tmp_path: Path) -> None:
    """A pass that comes back to a stage."""
    deployment = pipeline(problem, (2,))
    (group,) = deployment.groups
    last = len(problem.services[0].profiles["cores"].clusters)
    turning = (((0, 1), (2, last)), ((1, 2),))
    replica = group.replicas[0].model_copy(update={"stage_clusters": turning})
    turned = group.model_copy(update={"replicas": (replica,)})
    with pytest.raises(InputError, match="A pass of 'text' comes back to stage 0 of 'g'"):
        worker_parts(problem, cases.deployment([turned]), graphs(problem, tmp_path))


GPT2 = """{"model_type": "gpt2", "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64,
"vocab_size": 120, "dtype": "float32"}"""
LLAMA = """{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
"num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 90, "max_position_embeddings": 64,
"dtype": "float32"}"""
LENGTHS = """kind: lengths
schema_version: 1
name: short
source: prompts of 4 to 20 tokens, replies of 2 to 12
num_requests: 1
rate_rps: 1.0
cv: 1.0
input_probabilities: [0.0, 1.0]
input_tokens: [4, 20]
output_probabilities: [0.0, 1.0]
output_tokens: [[2, 12]]
"""


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> tuple[Problem, dict[str, ModelGraph]]:
    """Two models that generate, with learned and with rotary positions, on three processor cores."""
    folder = tmp_path_factory.mktemp("chats")
    write_text(GPT2, folder / "gpt2.json")
    write_text(LLAMA, folder / "llama.json")
    write_text(LENGTHS, folder / "short.yaml")
    demand = {"lengths": "short.yaml", "demand": {"rate_rps": 9.0}, "slo": {"ttft_s": 1.0, "tpot_s": 0.2}}
    workload = Workload.model_validate(
        {
            "kind": "workload",
            "schema_version": 1,
            "name": "chats",
            "fleet": {"pools": ({"name": "cores", "device": "cpu", "num_gpus": 3, "gpus_per_node": 3},)},
            "services": (
                {"name": "gpt2", "model": "gpt2.json", **demand},
                {"name": "llama", "model": "llama.json", **demand},
            ),
        }
    )
    problem = load_problem(workload, directory=folder, profiles=None)
    return problem, {name: load_model(folder / f"{name}.json") for name in ("gpt2", "llama")}


def chat_case(
    chats: tuple[Problem, dict[str, ModelGraph]], serving: Serving, duration_s: float
) -> tuple[Case, tuple[WorkerParts, ...], Trace]:
    """One model on a core, the other cut over two; 60 requests."""
    problem, models = chats
    groups = list[Group]()
    for service, name, cuts in zip(problem.services, ("one", "two"), ((), (3,)), strict=True):
        ends = (0, *cuts, len(service.profiles["cores"].clusters))
        ranges = tuple(((start, stop),) for start, stop in itertools.pairwise(ends))
        replica = Replica(service=service.name, share=1.0, max_batch=4, stage_clusters=ranges)
        gpus = range(len(groups), len(groups) + len(ranges))
        stages = tuple(Stage(gpus=(f"cores/0/{gpu}",), clock_mhz=3000) for gpu in gpus)
        groups.append(Group(name=name, pool="cores", stages=stages, replicas=(replica,)))
    deployment = cases.deployment(groups, serving)
    rng = np.random.default_rng(0)
    trace = cases.trace(
        problem.services, np.sort(rng.uniform(0.0, duration_s, 60)), rng.integers(0, 2, 60),
        duration_s=duration_s,
        input_tokens=rng.integers(4, 20, 60), output_tokens=rng.integers(2, 12, 60),
    )  # fmt: skip
    case = make_case(
        problem, deployment, trace, warm_up_s=0.0, cool_down_s=0.0, controller=None, num_samples=10
    )
    return case, worker_parts(problem, deployment, models), trace


class Listening(Watched):
    """Keeps the texts of all requests."""

    def __init__(
        self,
        workers: tuple[WorkerParts, ...],
        kill_at: tuple[float, ...] = (),
        transport: Transport | None = None,
    ) -> None:
        super().__init__(workers, kill_at, transport)
        self.complete: dict[int, list[int]] = {}
        self.replies.complete = self.note  # type: ignore[method-assign]

    def note(self, request: int, text: Sequence[int]) -> None:
        assert request not in self.complete
        self.complete[request] = list(text)

    @property
    def texts(self) -> dict[int, list[int]]:
        return self.complete | {request: list(text) for request, text in self.replies.texts.items()}


def check_replies(
    texts: dict[int, list[int]], trace: Trace, chats: tuple[Problem, dict[str, ModelGraph]]
) -> None:
    """Each token has the highest score after the text before it, of the model run anew in one piece."""
    import torch

    from muplan.profiling.measured.modules import pass_shape
    from muplan.serving.workers.stage import Stage as Whole

    problem, models = chats
    wholes = {}
    for service in problem.services:
        last = len(service.profiles["cores"].clusters)
        replica = Replica(service=service.name, share=1.0, max_batch=1, stage_clusters=(((0, last),),))
        stage = Stage(gpus=("cores/0/0",), clock_mhz=3000)
        group = Group(name="g", pool="cores", stages=(stage,), replicas=(replica,))
        (held,) = worker_parts(problem, cases.deployment([group]), models)
        wholes[service.name] = Whole(held.parts[0], torch.device("cpu"))
    assert sorted(texts) == list(range(len(trace)))
    for number, text in texts.items():
        begin, count = int(trace.input_tokens[number]), int(trace.output_tokens[number])
        whole = wholes[trace.services[trace.service[number]]]
        assert len(text) >= begin + count
        with torch.inference_mode():
            for end in range(begin, begin + count):
                shape = pass_shape(Phase.PREFILL, 1, end)
                (scores,) = whole.flow(torch.tensor([text[:end]]), shape)
                assert scores[text[end]] >= scores.max() - 1e-5


class InProcess(ScriptedBackend):
    """Runs the stages of all workers here, in the times that are foretold; a lost worker's are made anew."""

    def __init__(self, workers: tuple[WorkerParts, ...], losses: dict[float, str]) -> None:
        super().__init__(losses=losses, restart_s=0.002)
        self.workers = workers
        self.stages = {(one.group, one.stage): self.made(one) for one in workers}
        sizes = {part.service: part.graph.vocabulary_size for one in workers for part in one.parts}
        self.replies = Replies(sizes)
        self.tokens: dict[int, tuple[Iteration, Array]] = {}
        self.texts: dict[int, list[int]] = {}
        self.replies.complete = lambda request, text: self.texts.update({request: text.tolist()})  # type: ignore[method-assign]

    def made(self, held: WorkerParts) -> GenerateStage:
        import torch

        from muplan.serving.workers.generate_stage import GenerateStage

        return GenerateStage(held.parts[0], torch.device("cpu"))

    def launch(self, work: Work) -> None:
        import torch

        assert isinstance(work, Iteration)
        flowing = self.replies.entering(work)
        with torch.inference_mode():
            for number in range(len(work.compute_s)):
                order = Iterate(
                    number=work.number, service=work.service, spans=work.spans, released=work.released,
                    entering=flowing,
                )  # fmt: skip
                flowing = self.stages[work.group, number].run(order).numpy()
        self.tokens[work.number] = work, flowing
        super().launch(work)

    def next_event(self, until_s: float) -> Event | None:
        event = super().next_event(until_s)
        if isinstance(event, WorkDone):
            self.replies.note(*self.tokens.pop(event.number))
        if isinstance(event, GroupLost):
            held = next(one for one in self.workers if one.group == event.group)
            self.stages[held.group, held.stage] = self.made(held)
        return event


@pytest.mark.parametrize("is_lost", [False, True], ids=["whole", "lost workers"])
@pytest.mark.parametrize(
    "serving",
    [Serving(), Serving(prefill_chunk_tokens=5), Serving(batching=Batching.DYNAMIC)],
    ids=["whole prompts", "chunks", "dynamic batches"],
)
def test_replies_are_those_of_the_whole_model(
    chats: tuple[Problem, dict[str, ModelGraph]], serving: Serving, *, is_lost: bool
) -> None:
    """Sequences of all lengths in a batch, in one stage and in two: token by token as the model alone.

    Also where workers are lost, one stage of a pipeline and not the other.
    """
    case, workers, trace = chat_case(chats, serving, 0.02)
    losses = {0.004: "two", 0.008: "one", 0.015: "two"} if is_lost else {}
    backend = InProcess(workers, losses)
    run = serve_in_real_time(case, backend, rng=np.random.default_rng(0))
    assert (run.num_lost > 0) == is_lost
    assert run.records.batch.max() > 1
    texts = backend.texts | {request: text.tolist() for request, text in backend.replies.texts.items()}
    check_replies(texts, trace, chats)


def test_replies_go_on_where_they_were_when_workers_are_killed(
    chats: tuple[Problem, dict[str, ModelGraph]],
) -> None:
    """kill -9 of two worker processes: every reply is complete, and that of the whole model."""
    case, workers, trace = chat_case(chats, Serving(), 2.0)
    backend = Listening(workers, kill_at=(0.3, 1.0))
    run = serve_in_real_time(case, backend, rng=np.random.default_rng(0))
    assert not backend.kills
    assert run.num_lost > 0
    assert (run.records.first_token_s > run.records.start_s).all()
    assert (run.records.completion_s > run.records.first_token_s).all()
    check_replies(backend.texts, trace, chats)


def test_room_for_keys_and_values_is_asked_for(chats: tuple[Problem, dict[str, ModelGraph]]) -> None:
    """Beside the weights a stage needs memory for as many of the longest sequences as its batch may have."""
    import torch

    from muplan.serving.workers.stage import needed_bytes

    _, workers, _ = chat_case(chats, Serving(), 2.0)
    part = workers[0].parts[0]
    more = replace(part, max_batch=part.max_batch + 10)
    per_token = 2 * 48 * 3 * 4  # keys and values of three layers, float32
    device = torch.device("cpu")
    assert needed_bytes(more, device) - needed_bytes(part, device) == 10 * part.tokens * per_token
