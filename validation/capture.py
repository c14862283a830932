"""Captured graphs against the models: ``python -m validation.capture`` prints the table.

Every architecture at the size of its default configuration in transformers, on tensors without data.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from muplan.model.graph import TENSOR_CORE_KINDS, ModelGraph, with_attention

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": {"architectures": ["BertForSequenceClassification"]},
    "roberta": {"architectures": ["RobertaForMaskedLM"]},
    "distilbert": {},
    "albert": {},
    "electra": {},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 256},
    "t5": {"architectures": ["T5EncoderModel"]},
    "vit": {"architectures": ["ViTForImageClassification"]},
    "deit": {"architectures": ["DeiTForImageClassification"]},
    "swin": {},
    "convnext": {},
    "resnet": {"architectures": ["ResNetForImageClassification"]},
    "whisper": {"architectures": ["WhisperEncoder"]},
    "clip_vision_model": {},
    "gpt2": {},
    "opt": {},
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "gemma": {},
    "gpt_neox": {},
    "phi": {},
    "falcon": {},
    "bloom": {},
}
"""Models by type; where no class is named, the type's own for text generation, else without a head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureCheck:
    """A captured graph beside the module that it was captured from.

    ``flops`` and ``counted_flops`` are of matmuls, convolutions and attention in one pass.
    """

    graph: ModelGraph
    parameter_bytes: int
    module_bytes: int
    flops: float
    counted_flops: float
    num_cuts: int
    unread: tuple[str, ...]
    seconds: float

    @property
    def flops_error(self) -> float:
        """Share by which the graph's operations are off."""
        return self.flops / self.counted_flops - 1


def check_capture(content: Mapping[str, Any], name: str, *, dtype: str | None = None) -> CaptureCheck:
    """Capture a configuration, and count a pass of its module at sizes that were not traced."""
    from muplan.capture.capture import capture_subject
    from muplan.capture.sizes import Sizes
    from muplan.capture.transformers_subject import transformers_subject

    begin = time.perf_counter()
    subject = transformers_subject(content, name=name, dtype=dtype)
    captured = capture_subject(subject)
    seconds = time.perf_counter() - begin
    tokens = {"fixed": 1, "whole": 33, "cached": 13}[subject.lengths]
    context = 29 if subject.lengths == "cached" else tokens
    sizes = Sizes(batch=7, tokens=tokens, context=context)
    counted, module_bytes = _count(subject, sizes)
    return CaptureCheck(
        graph=captured.graph,
        parameter_bytes=captured.graph.num_parameters * captured.graph.element_bytes,
        module_bytes=module_bytes,
        flops=matrix_flops(captured.graph, 7, tokens, context),
        counted_flops=counted,
        num_cuts=len(captured.segments),
        unread=captured.unread,
        seconds=seconds,
    )


def matrix_flops(graph: ModelGraph, batch: int, tokens: int, context: int) -> float:
    """Operations of a pass in matmuls, convolutions and attention, masked scores among them."""
    unfused = with_attention(graph, "unfused")  # the fused kernel of a causal prefill skips what is masked
    return sum(
        float(operator.flops(batch, tokens, context))
        for operator in unfused.operators()
        if operator.kind in TENSOR_CORE_KINDS and graph.phases[0] in operator.phases
    )


def _count(subject: Any, sizes: Any) -> tuple[float, int]:
    """Count with torch's own counter, which has no entry for the attention kernel of processors."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    from muplan.capture.capture import make_module

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    module = make_module(subject, mode, is_real=False)
    with mode, torch.no_grad():
        entering = subject.enter(module, sizes)
        with FlopCounterMode(display=False, custom_mapping={kernel: attention}) as counter:
            module(**entering.arguments)
    held = sum(weight.numel() * weight.element_size() for weight in module.parameters())
    return float(counter.get_total_flops()), held


def rows(names: list[str]) -> Iterator[str]:
    """One line of the table for each architecture."""
    yield "| type | class | operators | cuts | parameters | bytes equal | FLOPs off | not read | s |"
    yield "|---|---|---:|---:|---:|---|---:|---|---:|"
    for name in names:
        check = check_capture({"model_type": name, **ARCHITECTURES[name]}, name)
        graph = check.graph
        equal = "yes" if check.parameter_bytes == check.module_bytes else "no"
        yield (
            f"| {name} | {graph.captured_from} | {len(graph.operators())} | {check.num_cuts} |"
            f" {graph.num_parameters:,} | {equal} | {100 * check.flops_error:.3f} % |"
            f" {', '.join(check.unread) or '–'} | {check.seconds:.1f} |"
        )


if __name__ == "__main__":
    for line in rows(sys.argv[1:] or list(ARCHITECTURES)):
        print(line, flush=True)
