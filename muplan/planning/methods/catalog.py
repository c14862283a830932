"""The planning methods by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from muplan.planning.methods.goodput import unless_shedding
from muplan.planning.methods.mu_serve import choose_mu_serve
from muplan.planning.methods.name import MethodName
from muplan.planning.methods.outcome import Method
from muplan.planning.methods.placed import choose_alpaserve, choose_replicas, choose_uniform_clock
from muplan.planning.methods.stated import choose_stated
from muplan.planning.solvers.exact import solve_exact
from muplan.planning.solvers.greedy import solve_greedy
from muplan.planning.solvers.solver import Solver

_GAP_PER_ROUND, _NODES_PER_ROUND, _STEPS_PER_ROUND = 2e-3, 200, 6
"""Of one run of the exact solver: simulation corrects the model by more than the gap this leaves."""

_EXACT: Solver = partial(
    solve_exact, gap=_GAP_PER_ROUND, max_nodes=_NODES_PER_ROUND, max_steps=_STEPS_PER_ROUND
)

METHODS: Mapping[MethodName, Method] = {
    MethodName.EXACT: Method(solver=_EXACT, choose=unless_shedding(choose_stated)),
    MethodName.GREEDY: Method(solver=solve_greedy, choose=unless_shedding(choose_stated)),
    MethodName.UNIFORM_CLOCK: Method(solver=_EXACT, choose=unless_shedding(choose_uniform_clock)),
    MethodName.MU_SERVE: Method(solver=_EXACT, choose=unless_shedding(choose_mu_serve)),
    MethodName.ALPASERVE: Method(solver=_EXACT, choose=choose_alpaserve),
    MethodName.REPLICATE: Method(solver=_EXACT, choose=choose_replicas),
    MethodName.EXACT_CBC: Method(
        solver=partial(solve_exact, backend="cbc"), choose=unless_shedding(choose_stated)
    ),
}
