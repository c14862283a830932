"""Operators of a graph from groups of nodes: what they compute, move and hold. This file imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from muplan.capture.costs import Stored, kind_of, matrix_flops
from muplan.capture.cutting import CapturedSegment
from muplan.capture.flow import Flow
from muplan.capture.grouping import Group, keeps_cache, readers
from muplan.capture.sizes import NotPolynomialError
from muplan.capture.trace import Counts, Node, Trace
from muplan.errors import InputError
from muplan.model.architectures.layers import ACTIVATION_FLOPS, NORM_FLOPS, SOFTMAX_FLOPS, SOFTMAX_PASSES
from muplan.model.graph import Operator, OperatorKind, Phase, Polynomial

_PER_ELEMENT = {
    OperatorKind.NORM: NORM_FLOPS,
    OperatorKind.ACTIVATION: ACTIVATION_FLOPS,
    OperatorKind.SOFTMAX: SOFTMAX_FLOPS,
    OperatorKind.POOLING: 1,
}
_MATRIX = frozenset(
    {
        OperatorKind.MATMUL,
        OperatorKind.CONVOLUTION,
        OperatorKind.ATTENTION_SCORES,
        OperatorKind.ATTENTION_VALUES,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What a group reads from others and leaves to them: bytes by value, at each size."""

    reads: dict[int, Counts]
    leaves: dict[int, Counts]
    cached: tuple[int, ...]

    @property
    def written(self) -> Counts:
        """Bytes that others read."""
        return np.asarray(np.sum(list(self.leaves.values()), axis=0))

    @property
    def moved(self) -> Counts:
        """Bytes read and written."""
        return np.asarray(np.sum([*self.reads.values(), *self.leaves.values()], axis=0))


@dataclass(slots=True, kw_only=True)
class OperatorMaker:
    """Makes operators of a trace's groups, in order: a weight is the first one's that reads it.

    Parameters
    ----------
    weights
        Every parameter and buffer of the module.
    phases
        Passes that the model runs.
    """

    trace: Trace
    flow: Flow
    weights: Mapping[str, Stored]
    phases: tuple[Phase, ...]
    _read_by: dict[int, set[int]] = field(default_factory=dict)
    _held: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._read_by = readers(self.trace, self.flow)

    @property
    def held(self) -> frozenset[str]:
        """Weights that some operator made so far holds."""
        return frozenset(self._held)

    def segment(self, segment: CapturedSegment) -> list[Operator]:
        """Make the operators of a segment; the last one is cut after."""
        operators = [operator for group in segment.groups for operator in self._operators(group)]
        output = self._polynomial(self._bytes(segment.leaving), "the cut")
        cut = {"cut_after": True, "output_bytes": output}
        last = operators[-1].attention
        ends = [operators[-1]] if last is None else _last_of_each(operators)
        return [one.model_copy(update=cut) if any(one is end for end in ends) else one for one in operators]

    def _operators(self, group: Group) -> list[Operator]:
        name = ".".join(filter(None, (group.path, group.name)))
        traffic = self._traffic(group)
        if group.kind is OperatorKind.ATTENTION:
            return self._attention(group, name.rpartition(".")[0], traffic)
        own, tied = self._claim(group)
        moved = traffic.moved
        if group.kind is OperatorKind.EMBEDDING:
            moved = 2 * traffic.written  # rows of the table are read, and written
        made = self._operator(name, group.kind, self._flops(group), moved, traffic.written).model_copy(
            update={
                "weight_bytes": tied or own,
                "kv_bytes_per_token": self._kv_bytes(traffic),
                "tied": bool(tied),
            }
        )
        if not (own and tied):
            return [made]
        # Its weights are partly another operator's: its own are held by an operator of their own.
        beside = {"flops": Polynomial(), "activation_bytes": Polynomial(), "kv_bytes_per_token": 0}
        extra = {"name": f"{name}.own", "kind": OperatorKind.ELEMENTWISE, "weight_bytes": own, "tied": False}
        return [made.model_copy(update=beside | extra), made]

    def _flops(self, group: Group) -> Counts:
        total = np.zeros(len(self.trace.grid.sizes), dtype=np.int64)
        for index in group.nodes:
            node = self.trace.nodes[index]
            made = sum(self.trace.values[value].numel for value in node.makes)
            if group.kind in _MATRIX and kind_of(node) in (OperatorKind.MATMUL, OperatorKind.CONVOLUTION):
                total += matrix_flops(self.trace, node, self.weights)
            elif group.kind is OperatorKind.ELEMENTWISE:
                total += made
        if group.kind in _PER_ELEMENT:
            read = self.trace.nodes[group.nodes[0]].reads
            total += _PER_ELEMENT[group.kind] * self.trace.values[read[0]].numel
        return total

    def _traffic(self, group: Group) -> Traffic:
        """Add up what is exchanged with other groups; positions, masks and weights do not count."""
        inside = {value for index in group.nodes for value in self.trace.nodes[index].makes}
        made = self.trace.made_by()
        read = dict.fromkeys(value for index in group.nodes for value in self.trace.nodes[index].reads)
        reads: dict[int, Counts] = {}
        for value in read:
            source = self.flow.origin.get(value, value)
            if isinstance(source, int) and source not in inside and not self._is_bookkeeping(source, made):
                parts = reads.get(source, 0) + self._bytes(value)
                reads[source] = np.minimum(parts, self._bytes(source))
        cached = tuple(
            value
            for value in reads
            if value in made and keeps_cache(self.trace, self.trace.nodes[made[value]])
        )
        answer = self.flow.origin.get(self.trace.answer, self.trace.answer)
        leaves = {
            value: self._bytes(value)
            for value in inside
            if value == answer or self._read_by.get(value, set()) - set(group.nodes)
        }
        return Traffic(reads=reads, leaves=leaves or self._last_made(group), cached=cached)

    def _last_made(self, group: Group) -> dict[int, Counts]:
        """What a group leaves that nobody reads."""
        value = self.trace.nodes[group.last].makes[0]
        return {value: self._bytes(value)}

    def _is_bookkeeping(self, value: int, made: dict[int, int]) -> bool:
        return made[value] in self.flow.bookkeeping if value in made else value not in self.flow.flowing

    def _bytes(self, value: int) -> Counts:
        return self.trace.values[value].numel * self.trace.values[value].element_bytes

    def _kv_bytes(self, traffic: Traffic) -> int:
        """Bytes that a token leaves in the caches which a group reads."""
        first = self.trace.grid.sizes[0]
        return sum(int(self._bytes(value)[0]) // (first.batch * first.context) for value in traffic.cached)

    def _claim(self, group: Group) -> tuple[int, int]:
        """Return the bytes of parameters that a group is the first to read, and of others' that it reads."""
        names: dict[str, None] = {}
        for index in group.nodes:
            node = self.trace.nodes[index]
            names.update(dict.fromkeys(node.weights))
            for value in node.reads:
                if isinstance(source := self.flow.origin.get(value), str) and source:
                    names[source] = None
        parameters = [name for name in names if self.weights[name].is_parameter]
        own = sum(self.weights[name].num_bytes for name in parameters if name not in self._held)
        tied = sum(self.weights[name].num_bytes for name in parameters if name in self._held)
        self._held.update(parameters)
        return own, tied

    def _attention(self, group: Group, path: str, traffic: Traffic) -> list[Operator]:
        """Make the fused operator of an attention, and the three that stand for it where it is unfused.

        The fused kernel keeps scores on chip and skips the masked half of a causal prefill (Dao, 2023,
        section 3.1).
        """
        node = self.trace.nodes[group.nodes[0]]
        flops, kv_bytes = matrix_flops(self.trace, node, self.weights), self._kv_bytes(traffic)
        written = self._bytes(node.makes[0])
        fused = self._operator(f"{path}.fused", OperatorKind.ATTENTION, flops, traffic.moved, written)
        kernels = [fused.model_copy(update={"kv_bytes_per_token": kv_bytes})]
        if kv_bytes:
            kernels = _causal(fused, kv_bytes, self._polynomial(flops // 2, path))
        scores, *others = self._unfused(node, path, traffic)
        unfused = [scores.model_copy(update={"kv_bytes_per_token": kv_bytes}), *others]
        return [
            *(one.model_copy(update={"attention": "fused"}) for one in kernels),
            *(one.model_copy(update={"attention": "unfused"}) for one in unfused),
        ]

    def _unfused(self, node: Node, path: str, traffic: Traffic) -> list[Operator]:
        """Make scores, softmax and values; the scores are written and read between them."""
        query, key = (self.trace.values[value] for value in node.reads[:2])
        scores = query.numel // query.shape[:, -1] * key.shape[:, -2]
        score_bytes, flops = scores * query.element_bytes, 2 * query.numel * key.shape[:, -2]
        before = np.sum([self._read_bytes(value) for value in node.reads[:2]], axis=0)
        values = matrix_flops(self.trace, node, self.weights) - flops
        written = self._bytes(node.makes[0])
        return [
            self._operator(
                f"{path}.scores",
                OperatorKind.ATTENTION_SCORES,
                flops,
                before + score_bytes,
                score_bytes,
            ),
            self._operator(
                f"{path}.softmax",
                OperatorKind.SOFTMAX,
                SOFTMAX_FLOPS * scores,
                SOFTMAX_PASSES * score_bytes,
                score_bytes,
            ),
            self._operator(
                f"{path}.values",
                OperatorKind.ATTENTION_VALUES,
                values,
                traffic.moved - before + score_bytes,
                written,
            ),
        ]

    def _operator(
        self, name: str, kind: OperatorKind, flops: Counts, moved: Counts, written: Counts
    ) -> Operator:
        return Operator(
            name=name,
            kind=kind,
            phases=self.phases,
            flops=self._polynomial(flops, name),
            activation_bytes=self._polynomial(moved, name),
            output_bytes=self._polynomial(written, name),
        )

    def _read_bytes(self, value: int) -> Counts:
        """Bytes of a value that are read, each once where it is repeated."""
        source = self.flow.origin.get(value, value)
        own = self._bytes(value)
        return np.minimum(own, self._bytes(source)) if isinstance(source, int) else own

    def _polynomial(self, counts: Counts, name: str) -> Polynomial:
        try:
            return self.trace.grid.fit(
                np.broadcast_to(counts, len(self.trace.grid.sizes)).tolist()
            ).to_polynomial()
        except NotPolynomialError:
            raise InputError(
                f"The work of {name} is no polynomial of batch and tokens.",
                "Fix the length of the model's inputs, or take that operator out.",
            ) from None


def _causal(fused: Operator, kv_bytes: int, half: Polynomial) -> list[Operator]:
    """Half the scores are masked in a prefill, none in decode."""
    prefill = {
        "phases": (Phase.PREFILL,),
        "flops": half,
        "kv_bytes_per_token": kv_bytes,
        "attention": "fused",
    }
    decode = {"name": f"{fused.name}_decode", "phases": (Phase.DECODE,), "attention": "fused"}
    return [fused.model_copy(update=prefill), fused.model_copy(update=decode)]


def _last_of_each(operators: list[Operator]) -> list[Operator]:
    """The last operator with each attention kernel."""
    return list({operator.attention: operator for operator in operators}.values())
