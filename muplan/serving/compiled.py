"""Compilation of functions to machine code, kept on disk between processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function, *, inline: bool = False) -> Function:
    """Compile a function to machine code at its first call; ``inline`` puts it into its callers' code.

    numba keeps the code on disk and compiles again when the function's own file changes, but not
    when a file changes that it calls into. The stamp of the kept code therefore covers all compiled
    sources of its package: an edited policy can never run as the old one.
    """
    options = {"nogil": True, "error_model": "numpy", "forceinline": inline}
    try:
        dispatcher = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to keep code in: compile in every process
        return cast(Function, numba.njit(**options)(function))
    if hasattr(dispatcher, "_cache"):  # absent with NUMBA_DISABLE_JIT
        folder = Path(function.__code__.co_filename).parent
        dispatcher._cache._cache_file._source_stamp = _sources_stamp(folder)
    return cast(Function, dispatcher)


def inlined(function: Function) -> Function:
    """As `compiled`, put into the code of its callers: for what is called for every request."""
    return compiled(function, inline=True)


@cache
def _sources_stamp(folder: Path) -> str:
    """SHA-256 of the sources of a package that hold compiled functions."""
    sha = hashlib.sha256()
    for source in sorted(folder.glob("*.py")):
        text = source.read_bytes()
        if b"@compiled" in text or b"@inlined" in text or source.name == "layout.py":
            sha.update(source.name.encode() + text)
    return sha.hexdigest()
