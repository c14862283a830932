"""Modules of the user's own, from a function that makes them: ``module:function``."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muplan.capture.sizes import Sizes
from muplan.capture.subject import Pass, Subject, first_tensor
from muplan.errors import InputError
from muplan.model.graph import Origin

if TYPE_CHECKING:
    from torch import Tensor, nn

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_MAX_CONTEXT = 4096
"""Tokens that a sequence may have: a module says nothing about it."""
_CONTRACT = (
    "It must return a torch module and a function of (batch, tokens) that returns what the module is called"
    " with: a dictionary of tensors by the names of forward's arguments."
)


def is_factory(name: str) -> bool:
    """Whether a name is one of a function: ``module:function``."""
    return _NAME.fullmatch(name) is not None and not Path(name).exists()


def factory_subject(name: str, *, dtype: str | None = None) -> Subject:
    """Make the subject of what a function makes.

    The function returns a module, and a function of batch and tokens that makes example inputs. Inputs that
    have one size at any number of tokens (images) make it a model of fixed length.

    Raises
    ------
    InputError
        There is no such function, or it fails, or returns something else.
    """
    import torch

    factory = _find(name)
    with torch.device("meta"):
        module, example = _made(factory, name)
        shapes = [
            [tuple(tensor.shape) for tensor in _inputs(example, name, 2, tokens).values()]
            for tokens in (5, 8)
        ]
    element = next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), None)
    element = getattr(torch, dtype) if dtype else element or torch.float32

    def make() -> nn.Module:
        return _made(factory, name)[0].to(element).eval()

    def enter(_module: nn.Module, sizes: Sizes) -> Pass:
        inputs = _inputs(example, name, sizes.batch, sizes.tokens)
        typed = {key: one.to(element) if one.is_floating_point() else one for key, one in inputs.items()}
        return Pass(inputs=typed, arguments=typed)

    return Subject(
        name=name.partition(":")[2].replace("_", "-"),
        family=type(module).__name__.lower(),
        source=f"captured from {name}",
        origin=Origin(factory=name, dtype=str(element).removeprefix("torch.")),
        class_name=type(module).__name__,
        element_bytes=element.itemsize,
        lengths="fixed" if shapes[0] == shapes[1] else "whole",
        make=make,
        enter=enter,
        answer=first_tensor,
        max_context=1 if shapes[0] == shapes[1] else _MAX_CONTEXT,
    )


def _find(name: str) -> Callable[[], Any]:
    """Import a function; modules in the current folder count."""
    module_name, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's code says
        raise InputError(
            f"The module {module_name!r} of {name} cannot be imported: {type(error).__name__}: {error}.",
            "Correct its name, install it, or work in the folder where it lies.",
        ) from None
    finally:
        sys.path.pop(0)
    found = getattr(module, function, None)
    if not callable(found):
        raise InputError(f"The module {module_name!r} has no function {function!r}.", "Correct the name.")
    return found  # type: ignore[no-any-return]


def _made(factory: Callable[[], Any], name: str) -> tuple[nn.Module, Callable[[int, int], Any]]:
    from torch import nn

    try:
        made = factory()
    except Exception as error:
        raise InputError(f"{name} fails: {type(error).__name__}: {error}", "Correct the function.") from None
    is_pair = isinstance(made, tuple) and len(made) == 2
    if not is_pair or not isinstance(made[0], nn.Module) or not callable(made[1]):
        raise InputError(f"{name} returns a {type(made).__name__}, which is no model.", _CONTRACT)
    return made[0], made[1]


def _inputs(example: Callable[[int, int], Any], name: str, batch: int, tokens: int) -> Mapping[str, Tensor]:
    from torch import Tensor

    try:
        made = example(batch, tokens)
    except Exception as error:
        raise InputError(
            f"The example inputs of {name} fail: {type(error).__name__}: {error}.", "Correct the function."
        ) from None
    is_right = isinstance(made, Mapping) and made and all(isinstance(one, Tensor) for one in made.values())
    if not is_right:
        raise InputError(f"The example inputs of {name} are a {type(made).__name__}.", _CONTRACT)
    return made  # type: ignore[no-any-return]
