"""One pass of a module, recorded call by call. This file imports torch.

The pass runs on fake tensors, which have shapes and no data, so the largest model is recorded in about a
second in no memory. Under inference mode torch hands composite functions (linear, layer_norm,
scaled_dot_product_attention) to a dispatch mode whole: what is recorded is what serving software has a
kernel for, and it holds on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten

from muplan.errors import InputError, MuplanError


@dataclass(frozen=True, slots=True)
class Ref:
    """An argument that is a value of the pass: an input, or what a call has made."""

    value: int


@dataclass(frozen=True, slots=True)
class Weight:
    """An argument that is a parameter or buffer of the module."""

    name: str


@dataclass(frozen=True, slots=True)
class Constant:
    """An argument that is a tensor which the module's code holds."""

    tensor: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """A module while it runs: its path, its class, whether it has no modules in it, and which of its runs."""

    path: str
    class_name: str
    is_leaf: bool
    run: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of an ATen operator; ``writes`` are the storages that it changes."""

    op: Any
    spec: TreeSpec
    leaves: tuple[Any, ...]
    outputs: tuple[int | None, ...]
    scope: Scope
    writes: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """Shape, element size and storage of a tensor of the pass."""

    shape: tuple[int, ...]
    element_bytes: int
    storage: int


@dataclass(slots=True, kw_only=True)
class Recording:
    """The calls of a pass; values are numbered, the inputs first."""

    inputs: tuple[str, ...]
    calls: list[Call] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    answer: int = -1


class _Recorder(TorchDispatchMode):  # type: ignore[misc]  # torch is not there for the type checker
    """Writes down every call that makes or changes a tensor."""

    def __init__(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.recording = Recording(inputs=tuple(inputs))
        self.weights = {id(tensor): name for name, tensor in named_weights(module)}
        self.scopes = [Scope(path="", class_name=type(module).__name__, is_leaf=False, run=0)]
        self.runs = 0
        self._numbers: dict[int, int] = {}
        self._alive: list[Tensor] = []  # an identity may not be used again while the pass is recorded
        for tensor in inputs.values():
            self._number(tensor)

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        leaves, spec = tree_flatten((args, kwargs or {}))
        described = tuple(map(self._describe, leaves))
        writes = frozenset(_storage(tensor) for tensor in _written(op, args, kwargs or {}))
        made = op(*args, **(kwargs or {}))
        flat, _ = tree_flatten(made)
        if any(isinstance(item, Tensor) for item in flat):
            outputs = tuple(self._number(item) if isinstance(item, Tensor) else None for item in flat)
            self.recording.calls.append(
                Call(
                    op=op,
                    spec=spec,
                    leaves=described,
                    outputs=outputs,
                    scope=self.scopes[-1],
                    writes=writes,
                )
            )
        return made

    def number_of(self, tensor: Tensor) -> int | None:
        """Return the number of a value, absent if the pass did not make it."""
        return self._numbers.get(id(tensor))

    def _describe(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) in self._numbers:
            return Ref(self._numbers[id(leaf)])
        if id(leaf) in self.weights:
            return Weight(self.weights[id(leaf)])
        self._alive.append(leaf)
        return Constant(leaf)

    def _number(self, tensor: Tensor) -> int:
        number = len(self.recording.values)
        self.recording.values.append(
            Value(shape=tuple(tensor.shape), element_bytes=tensor.element_size(), storage=_storage(tensor))
        )
        self._alive.append(tensor)
        self._numbers[id(tensor)] = number
        return number


def named_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, each once, under its first name."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def record(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    run: Callable[[], Any],
    answer: Callable[[Any], Tensor],
    mode: FakeTensorMode,
    counter: AbstractContextManager[Any],
) -> Recording:
    """Record a pass.

    Parameters
    ----------
    inputs
        The tensors that enter the pass, by name; fake ones of the mode.
    run
        Runs the module on them.
    answer
        Takes from what the module returns the tensor that answers the requests.
    counter
        A mode of torch's that watches the same calls.

    Raises
    ------
    InputError
        The module's code looks at data (its control flow depends on them), or the answer is no value of
        the pass.
    """
    recorder = _Recorder(module, inputs)
    try:
        with torch.inference_mode(), mode, _scoped(module, recorder), _apart(), counter, recorder:
            made = answer(run())
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise InputError(
            f"{recorder.scopes[-1].path or type(module).__name__} looks at the data of a pass ({error}):"
            " what it computes depends on them.",
            "Capture models whose control flow depends on sizes alone, or take that part out.",
        ) from None
    except MuplanError:
        raise
    except Exception as error:
        raise InputError(
            f"A pass of {type(module).__name__} fails in {recorder.scopes[-1].path or 'its forward'}:"
            f" {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
            "A model is captured from passes over tensors that have a shape and no data, of several batches"
            " and lengths: see that such a pass is possible.",
        ) from None
    number = recorder.number_of(made)
    if number is None:
        raise InputError(
            f"What {type(module).__name__} answers is not computed from its inputs.",
            "Let the module return a tensor that it computes.",
        )
    recorder.recording.answer = number
    return recorder.recording


@contextmanager
def _apart() -> Iterator[None]:
    """Keep torch's transformer layers from running whole, as one call in which nothing can be told apart."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


@contextmanager
def _scoped(module: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Tell the recorder which module runs."""
    with ExitStack() as stack:
        for path, part in module.named_modules():
            is_leaf = next(part.children(), None) is None

            def enter(part: nn.Module, _args: Any, path: str = path, is_leaf: bool = is_leaf) -> None:
                recorder.runs += 1
                recorder.scopes.append(
                    Scope(path=path, class_name=type(part).__name__, is_leaf=is_leaf, run=recorder.runs)
                )

            def leave(_part: nn.Module, _args: Any, _made: Any) -> None:
                recorder.scopes.pop()

            for handle in (part.register_forward_pre_hook(enter), part.register_forward_hook(leave)):
                stack.callback(handle.remove)
        yield


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _written(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Tensors that a call changes, as the operator's schema says."""
    if not op._schema.is_mutable:
        return []
    given = dict(zip((argument.name for argument in op._schema.arguments), args, strict=False)) | kwargs
    return [
        given[argument.name]
        for argument in op._schema.arguments
        if argument.alias_info is not None
        and argument.alias_info.is_write
        and isinstance(given.get(argument.name), Tensor)
    ]
