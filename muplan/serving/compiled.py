"""Compilation of functions to machine code, kept on disk between processes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import cache, cached_property, update_wrapper
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numba
from numba.core.caching import IndexDataCacheFile

from muplan.serving.inner_compiler import InnerCompiler

_LOG = logging.getLogger(__name__)
Function = TypeVar("Function", bound=Callable[..., Any])
_MARKS = (b"@compiled", b"@inlined", b"@allocating")


def compiled(function: Function) -> Function:
    """Compile a function to machine code at its first call; it makes no arrays.

    So numba need not count who holds its arrays, which takes longer than a kernel's own work.

    numba keeps the code on disk and compiles again when the function's own file changes, but not
    when a file changes that it calls into. The stamp of the kept code therefore covers all compiled
    sources of its package: an edited policy can never run as the old one.
    """
    return _compiled(function, _nrt=False)


def inlined(function: Function) -> Function:
    """As `compiled`, put into the code of its callers: for what is called for every request."""
    return _compiled(function, _nrt=False, forceinline=True)


def allocating(function: Function) -> Function:
    """As `compiled`, of a function that makes arrays."""
    return _compiled(function)


def _compiled(function: Function, **options: bool) -> Function:
    if numba.config.DISABLE_JIT:
        return function
    return cast(Function, _Compiled(function, options))


class _Compiled(Generic[Function]):
    """A function that compiled functions call as `InnerCompiler` leaves it.

    Where Python calls it, it is compiled a second time, with all that it calls, and kept on disk.
    """

    def __init__(self, function: Function, options: dict[str, bool]) -> None:
        self.py_func = function
        self._options = {"nogil": True, "error_model": "numpy", **options}
        self._inner = numba.njit(
            pipeline_class=InnerCompiler, no_cpython_wrapper=True, no_cfunc_wrapper=True, **self._options
        )(function)
        update_wrapper(self, function)

    @property
    def _numba_type_(self) -> object:
        """What compiled functions take it for."""
        return self._inner._numba_type_

    @cached_property
    def _outer(self) -> Callable[..., Any]:
        made = self._dispatcher()
        file = getattr(made._cache, "_cache_file", None)
        if file is None or not file._load_index():
            _tell_of_compilation()
        return cast(Callable[..., Any], made)

    def __call__(self, *arguments: object) -> object:
        """Call it from Python."""
        return self._outer(*arguments)

    def _dispatcher(self) -> Any:
        """Make numba's object; where there is no folder to keep code in, each process compiles anew."""
        try:
            made = numba.njit(cache=True, **self._options)(self.py_func)
        except RuntimeError:
            return numba.njit(**self._options)(self.py_func)
        file = made._cache._cache_file
        made._cache._cache_file = IndexDataCacheFile(
            cache_path=file._cache_path,
            filename_base=file._index_name.removesuffix(".nbi"),
            source_stamp=_sources_stamp(Path(self.py_func.__code__.co_filename).parent),
        )
        return made


@cache
def _tell_of_compilation() -> None:
    """Log, once in a process, that what follows takes longer than it will again."""
    _LOG.info("compiling the simulator: a quarter of a minute, once for this version")


@cache
def _sources_stamp(folder: Path) -> str:
    """SHA-256 of the sources of a package that hold compiled functions."""
    sha = hashlib.sha256()
    for source in sorted(folder.glob("*.py")):
        text = source.read_bytes()
        if any(mark in text for mark in _MARKS) or source.name == "layout.py":
            sha.update(source.name.encode() + text)
    return sha.hexdigest()
