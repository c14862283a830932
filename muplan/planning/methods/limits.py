"""Limits that a deployment breaks, in words: a placement that knows none may break any.

Deployments of the stated model keep them all.
"""

from __future__ import annotations

from muplan.plan import Deployment, Reason
from muplan.planning.placing.rules import PlacementRules

_TEXTS = {
    "reserved_gpus": "it uses reserved GPUs.",
    "pinned": "it hosts a pinned service elsewhere.",
    "clocks_allowed": "it uses a clock that its pool does not allow.",
    "anti_affinity": "it puts two replicas on one node of a service whose replicas must stand apart.",
    "node_power_cap": "a node could draw more than its cap (modelled).",
    "min_replicas": "it hosts a service on fewer groups than it must have.",
}


def limit_faults(rules: PlacementRules, deployment: Deployment) -> tuple[Reason, ...]:
    """Every limit on placement that a deployment breaks."""
    return tuple(
        Reason(subject="fleet", text=_text(rules, deployment, name)) for name in rules.broken(deployment)
    )


def _text(rules: PlacementRules, deployment: Deployment, name: str) -> str:
    if name in _TEXTS:
        return f"breaks a limit in this placement: {_TEXTS[name]}"
    cap_w = rules.problem.workload.fleet.power_cap_w
    cap = "a GPU's cap" if cap_w is None else f"its cap is {cap_w:g} W"
    return f"could draw {rules.peak_w(deployment):.0f} W, {cap} (modelled)."
