"""numba's compiler for functions that only compiled functions call.

numba optimises every function by itself, with all that it calls, and makes machine code of it; of the
simulator's ninety, all but a few are only ever run as part of others. Here they end as what numba links into
their callers, which halves the time of the first run.
"""

from __future__ import annotations

from typing import Any

from numba import _dynfunc
from numba.core.codegen import CPUCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering


class _InnerLibrary(CPUCodeLibrary):  # type: ignore[misc]
    """The code of an inner function, for others to link in: optimised and made machine code there, once."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _InnerLowering(NativeLowering):  # type: ignore[misc]
    _name = "inner_lowering"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        state.library = _InnerLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        described, name = state.cr.fndesc, state.func_id.func_name
        key = _dynfunc.make_function(described.lookup_module(), name, "", 0, state.cr.env, (state.library,))
        state.cr = state.cr._replace(cfunc=key)  # by which callers' code finds it
        state.targetctx.insert_user_function(key, described, [state.library])
        return True


class InnerCompiler(CompilerBase):  # type: ignore[misc]
    """numba's compiler, but for the machine code: most of its time would go there, for each function anew."""

    def define_pipelines(self) -> list[Any]:
        """Its passes, with another one for the last."""
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.passes = [
            (_InnerLowering if one is NativeLowering else one, what) for one, what in passes.passes
        ]
        passes.finalize()
        return [passes]
