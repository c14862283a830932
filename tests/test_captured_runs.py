"""Captured models run: with their KV caches in workers, and on the bench that measures them.

If these fail, a captured model answers otherwise cut into stages than whole, or is planned on times that are
those of something else.
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from muplan.errors import DeviceError, InputError
from muplan.model.graph import ModelGraph
from muplan.profiling.clustering import segments_of
from muplan.serving.realtime.backend import Span
from muplan.serving.workers.backend import WorkerBackend
from muplan.serving.workers.parts import Part, WorkerParts
from muplan.serving.workers.processes import Processes
from tests.tiny_architectures import FORWARD, GENERATE

torch = pytest.importorskip("torch", reason="captured models are run by torch")
pytest.importorskip("transformers", reason="captured models are made by transformers")

from muplan.capture.source import capture  # noqa: E402
from muplan.profiling.measured.bench import TorchBench  # noqa: E402
from muplan.profiling.measured.points import Point  # noqa: E402
from muplan.profiling.measured.runnable import runnable_model  # noqa: E402
from muplan.serving.workers.generate_stage import GenerateStage  # noqa: E402
from muplan.serving.workers.stage import Stage  # noqa: E402
from muplan.serving.workers.worker import refusal  # noqa: E402

CPU = torch.device("cpu")
MORE = {
    "opt": {
        "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48,
        "max_position_embeddings": 64, "word_embed_proj_dim": 32,
    },
    "qwen2": GENERATE["llama"],
}  # fmt: skip
"""OPT counts positions by the mask; Qwen has biases of its own."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads gain nothing on tiny models, and wait for each other where the machine is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def parts_of(graph: ModelGraph, cuts: tuple[int, ...], *, max_batch: int, tokens: int) -> list[Part]:
    """The model's parts between the cuts, as workers get them."""
    segments = segments_of(graph)
    ends = (0, *cuts, len(segments))
    return [
        Part(
            service="tiny",
            graph=graph,
            segments=tuple(segment.operators for segment in segments[begin:end]),
            first_segment=begin,
            max_batch=max_batch,
            tokens=tokens,
        )
        for begin, end in itertools.pairwise(ends)
    ]


def whole(name: str, config: dict[str, Any], auto: str) -> Any:
    """The model of transformers with the weights that workers draw."""
    import transformers

    torch.manual_seed(zlib.crc32(b"tiny"))
    made = transformers.AutoConfig.for_model(name, **config)
    return getattr(transformers, auto).from_config(made, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "falcon", "bloom", *MORE])
def test_replies_of_a_cut_generator_are_those_of_the_whole(name: str) -> None:
    """A prompt, another in chunks while the first decodes, both decode, one goes and a third comes."""
    config = (GENERATE | MORE)[name]
    graph = capture({"model_type": name, **config}, name="tiny").graph
    stages = [GenerateStage(part, CPU) for part in parts_of(graph, (3,), max_batch=3, tokens=40)]
    model = whole(name, config, "AutoModelForCausalLM")
    generator = torch.Generator().manual_seed(0)
    texts = {number: torch.randint(3, 61, (40,), generator=generator) for number in range(3)}
    iterations = [
        [(0, 0, 9)],
        [(0, 9, 10), (1, 0, 4)],
        [(1, 4, 17), (0, 10, 11)],
        [(1, 17, 18), (0, 11, 12)],
        [(0, 12, 13), (1, 18, 19)],
        [(2, 0, 5), (1, 19, 20)],
        [(1, 20, 21), (2, 5, 6)],
    ]
    prompts = {0: 9, 1: 17, 2: 5}
    with torch.inference_mode():
        for number, iteration in enumerate(iterations):
            if number == 5:
                for stage in stages:
                    stage.cache.release(0)
            spans = tuple(
                Span(request=one, begin=begin, end=end, is_last=end >= prompts[one])
                for one, begin, end in iteration
            )
            flowing = torch.cat([texts[span.request][span.begin : span.end] for span in spans])[None]
            for stage in stages:
                flowing = stage.iterate(flowing, spans)
            last = [span for span in spans if span.is_last]
            assert len(flowing) == len(last)
            for scores, span in zip(flowing, last, strict=True):
                wanted = model(texts[span.request][None, : span.end]).logits[0, -1]
                torch.testing.assert_close(scores, wanted, rtol=1e-5, atol=1e-5)


def test_answers_of_a_cut_classifier_are_those_of_the_whole() -> None:
    config = {key: value for key, value in FORWARD["bert"].items() if key != "architectures"}
    graph = capture({"model_type": "bert", **FORWARD["bert"]}, name="tiny").graph
    first, second = (Stage(part, CPU) for part in parts_of(graph, (2,), max_batch=4, tokens=11))
    model = whole("bert", config, "AutoModelForSequenceClassification")
    entering = torch.randint(61, (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first.warm_up()
        second.warm_up()
        torch.testing.assert_close(second(first(entering)), model(entering).logits, rtol=1e-5, atol=1e-5)


def test_a_graph_says_what_it_was_captured_from(tmp_path: Path) -> None:
    """A file is all that a worker needs of it; where the module is another now, it is refused."""
    config = {"model_type": "llama", **GENERATE["llama"]}
    graph = capture(config, name="tiny").graph
    read = ModelGraph.model_validate_json(graph.model_dump_json())
    assert read == graph
    assert read.origin is not None
    assert read.origin.configuration == config
    other = read.origin.model_copy(update={"configuration": {**config, "num_hidden_layers": 1}})
    with pytest.raises(InputError, match="is another now") as caught:
        runnable_model(read.model_copy(update={"origin": other}), CPU, seed="tiny")
    assert "muplan model capture" in caught.value.remedy
    gone = read.origin.model_copy(update={"weights": str(tmp_path / "gone")})
    with pytest.raises(InputError, match="where the weights of tiny were"):
        runnable_model(read.model_copy(update={"origin": gone}), CPU, seed="tiny")
    with pytest.raises(InputError, match="does not say what it was captured from"):
        runnable_model(read.model_copy(update={"origin": None}), CPU, seed="tiny")


def test_weights_of_a_folder_run(tmp_path: Path) -> None:
    model = whole("llama", GENERATE["llama"], "AutoModelForCausalLM")
    model.save_pretrained(tmp_path)
    graph = capture(tmp_path, name="tiny").graph
    assert json.loads(graph.model_dump_json())["origin"]["weights"] == str(tmp_path)
    (stage,) = (GenerateStage(part, CPU) for part in parts_of(graph, (), max_batch=1, tokens=40))
    text = torch.randint(61, (1, 12), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        scores = stage.iterate(text, (Span(request=0, begin=0, end=12, is_last=True),))
        torch.testing.assert_close(scores, model(text).logits[:, -1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "swin", "llama"])
def test_every_segment_of_a_captured_model_is_measured(name: str) -> None:
    """Passes of each phase run by themselves, each copy with weights of its own."""
    graph = capture({"model_type": name, **(FORWARD | GENERATE)[name]}, name="tiny").graph
    segments = segments_of(graph)
    bench = TorchBench(graph, [(segment,) for segment in segments], [2] * len(segments), CPU)
    tokens = graph.fixed_tokens or 12
    for number in range(len(segments)):
        for phase in graph.phases:
            point = Point(cluster_type=number, phase=phase, batch=2, tokens=tokens, clock_mhz=None)
            assert bench.load(point).time_s(1) > 0.0
    pairs = zip(*(copy[0].stage.tensors() for copy in bench._copies), strict=True)
    assert all(len({tensor.data_ptr() for tensor in copies}) == len(copies) for copies in pairs)


def test_a_worker_tells_whose_fault_it_is() -> None:
    """A model that has changed is the user's, and ends with exit code 2; a full memory is the machine's."""
    held = WorkerParts(group="g", stage=0, gpu="cores/0/0", device="cpu", parts=())
    told = refusal(held, InputError("The model is another now.", "Capture it again."))
    assert (told.problem, told.remedy) == ("The model is another now.", "Capture it again.")
    backend = WorkerBackend((held,), Processes((held,)))
    with pytest.raises(InputError, match="another now"):
        backend._take(MagicMock(), told)
    with pytest.raises(DeviceError, match="does not fit in the memory"):
        backend._take(MagicMock(), refusal(held, MemoryError()))
