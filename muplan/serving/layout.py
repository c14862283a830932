"""Memory layout of the compiled simulator: one structured array for each kind of thing.

The kernels work on rows of these arrays. ``first_…`` and ``last_…`` (exclusive) are positions in
another array: of members, or of a table in the flat array of values. The units are in the names.
A row can be handed to a compiled function as one pointer, which keeps calls cheap.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from muplan.serving.policies import FORETELLING
from muplan.workload import CONTROL_POLICIES, DWELL_S, Batching, Controller, Routing, Serving

Row: TypeAlias = Any
"""One row of a structured array, inside compiled functions."""
Rows: TypeAlias = Any
"""A structured array, inside compiled functions."""
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def _layout(integers: str, floats: str) -> np.dtype[np.void]:
    return np.dtype(
        [*((name, "i8") for name in integers.split()), *((name, "f8") for name in floats.split())]
    )


SETTINGS = _layout(
    # num_windows is 0 where clocks are fixed; num_changes counts the rows of the log of changes;
    # promises: what the stages promise, of muplan.serving.policies; least_is_known: 1 where least_s of the
    # replicas holds, as clocks are fixed, and candidates are in its order; ages: 1 where waits are bounded;
    # routing_seed: of the draws of power of two; is_dynamic: 1 where generate groups batch dynamically;
    # prefill_chunk_tokens: most prompt tokens of an iteration that decodes as well, 0 where prefills go first
    # policy: of clock control; is_detailed: 1 where the account has more than samples of power, of which
    # first_interval and first_token are where intervals and times of tokens begin: muplan.serving.energy
    "queue_order routing rejection promises least_is_known policy num_windows num_changes num_samples ages"
    " routing_seed is_dynamic prefill_chunk_tokens max_preemptions is_detailed first_interval"
    " first_token",
    # the measured period is from warm_up_s to measured_until_s, the trace ends at duration_s
    # window_s: time between decisions of clock control
    "batch_timeout_s overhead_s wait_cap preemption_gain window_s increase decrease_mhz hysteresis dwell_s"
    " warm_up_s measured_until_s duration_s",
)
"""What holds for all groups; one row."""

GROUP = _layout(
    # next_window: the window whose end brings the next control decision
    # level: grid steps of its stages' clocks from the plan's, as last commanded by level
    # num_waiting: requests in the queues of all its replicas
    "first_stage last_stage first_replica last_replica first_clock num_clocks next_window level num_waiting"
    # muplan.serving.ageing: first_predicted, first_waits: counts of waits by bin, foretold at arrival in the
    # order of arrival and had; reference_bin, limit_bin: of the wait that few exceed, and of the limit;
    # oldest, newest: ends of the virtual queue in the order of arrival, −1 where empty;
    # num_spared, spared, last_spared: requests that wait beyond the limit by leave, first and last of them
    " first_predicted first_waits reference_bin limit_bin oldest newest num_spared spared last_spared"
    # generate groups only, the rest; kv_tokens: what the KV memory holds; prefill_budget: most prompt
    # tokens of an iteration; first_decode: [stage][clock][batch − 1][a, k of time; a, k of energy];
    # first_transfer: of decode, [batch − 1]; first_knot, first_knot_transfer: [knot];
    # first_prefill: [stage][clock][knot][base, extra of time; base, extra of energy];
    # at the present clocks first_iteration: [batch − 1][a, k of time], first_reply: of a mean reply,
    # [batch − 1], first_alone: of a prefill by itself, [knot]
    " max_batch kv_tokens prefill_budget first_decode first_transfer first_knot num_knots"
    " first_knot_transfer first_prefill first_iteration first_reply first_alone"
    # iteration: decode iterations so far; next_finish: the one at which the next sequence is complete, which
    # is in next_slot of the running ones;
    # context: tokens of the running sequences, the next one included; num_decoding: running sequences that
    # decode, before those that are prefilled; prefill_context: tokens of the latter, as in context;
    # pending_tokens: those of them that are still to be prefilled; blocked: 1 when nothing can be admitted
    # until a request comes or goes; root_by_key, root_by_age: heaps of waiting requests
    " iteration next_finish next_slot first_running num_running num_decoding context prefill_context"
    " pending_tokens blocked root_by_key root_by_age",
    # change_at_s: when a commanded clock change takes effect, infinite where none is under way
    # changed_s: when the last change was commanded
    # wake_s: nothing happens before then unless a request comes
    # forward groups only; ready_s: when the first of its waiting batches may leave; backlog_s: time that all
    # that waits hopefully keeps its slowest stage, NaN until it is asked for
    # muplan.serving.ageing: wait_limit_s: beyond which a request goes first; waiting_work: of all that waits;
    # ahead_work: to be begun before the virtual queue's first; paced_s, paced_work: sums of work × seconds
    # that it took and of work², whose ratio is the least-squares pace;
    # num_predicted, num_above: counts of foretold waits, and of those above the reference bin; num_waits,
    # num_beyond: of waits had, and of those above the limit's bin
    # generate groups only, the rest; boundary_s: the present iteration boundary; prompt_weight: work of a
    # prompt token, in output tokens; work_s: time of a mean request at the pace of a full batch
    "clock_change_s change_at_s changed_s wake_s ready_s backlog_s wait_limit_s waiting_work ahead_work"
    " paced_s paced_work num_predicted num_above num_waits num_beyond boundary_s mean_input mean_output"
    " prompt_weight work_s",
)
"""A group with the control of its clocks and (generate) its tables and its continuous batch."""

STAGE = _layout(
    # clock, next_clock, floor: index among the group's clocks; first_loaded: loaded-idle power by clock
    # first_change: of its joules while changes may be under way, muplan.serving.energy
    "clock next_clock floor first_loaded first_change",
    # free_s: end of the last pass; promised_s: forward groups only, end of what waits as well;
    # foreseen_s: end of what waits, in a prediction under way
    # settled_s: energy is accounted for up to here
    # clock_change_s: as the group's
    # generate groups only; pass_s, pass_j: of the prefill under way
    "free_s promised_s foreseen_s settled_s clock_change_s pass_s pass_j busy_s busy_j loaded_s loaded_j",
)
"""A stage, with the seconds and joules of its GPUs within the measured period."""

REPLICA = _layout(
    # first_pass_s, first_pass_w: [stage][clock][batch − 1]; first_transfer: [stage][batch − 1];
    # first_work: slowest stage's time at the present clocks, [batch − 1]
    # head, tail: first and last waiting request, −1 where none; num_hopeful: those that wait and are
    # expected to be served; num_arrived: requests since the last decision of clock control;
    # num_seen: those completed before it
    # next_waiting, num_left: where a prediction under way stands in the queue
    "group service max_batch first_pass_s first_pass_w first_transfer first_work head tail"
    " num_waiting num_hopeful num_arrived num_seen next_waiting num_left",
    # alone_s: a batch of one from end to end at the planned clocks; least_s: of any batch
    # rate_rps: estimate of its arrivals; price: of a miss, in energies of a request
    # busy_s, busy_j: forward groups only, of its passes on all stages within the measured period
    "alone_s least_s full_since_s share credit latency_limit_s ttft_limit_s tpot_limit_s target rate_rps"
    " price busy_s busy_j",
)
"""A service hosted on a group, with its queue."""

FORWARD_REQUEST = _layout("service replica batch behind is_hopeless", "arrival_s start_s completion_s")
"""A forward request; ``behind`` is the next in its replica's queue. Replica −1: rejected.

``is_hopeless``: 1 where it was expected, when it came, to be dropped later as too late.
"""

VIRTUAL_REQUEST = _layout("after", "queued_s weight met_work")
"""A request in its group's virtual queue, of `muplan.serving.ageing`; a row each where waits are bounded.

``after``: the next in the order of arrival; ``weight``: its work; ``met_work``: what waited when it came.
"""

GENERATE_REQUEST = _layout(
    # generated: tokens so far when it was last preempted; prefilled: tokens whose keys and values are there,
    # while it is prefilled in chunks; is_waiting: 0 no, 1 yes, 2 beyond the limit by leave
    "service replica input_tokens output_tokens generated prefilled batch num_preemptions is_waiting",
    # queued_s: arrival, or the end of its length's prediction; work: what the scheduler knows of its length
    "arrival_s queued_s start_s first_token_s completion_s work",
)
"""A generate request. Replica −1: rejected."""

PLACE, FINISH = 0, 1
"""Rows of the running sequences: the request, and the group's iteration at which its last token is there."""

HEAP_NODE = _layout("left right above", "key")
"""A request's node in a heap of waiting requests: node r by priority, node r + requests by age.

The latter also link those that wait beyond the limit by leave: ``left`` to the one before, ``right`` to the
one behind.
"""


def settings_row(
    serving: Serving,
    controller: Controller,
    *,
    codes: tuple[int, int, int],
    promises: int,
    ages: bool,
    routing_seed: int,
    warm_up_s: float,
    measured_until_s: float,
    duration_s: float,
    num_samples: int,
) -> Rows:
    """Return the settings as one row; ``codes`` are those of queue order, routing and rejection.

    ``ages``: whether waits are bounded; ``routing_seed``: of the draws of power-of-two routing.
    """
    row = np.zeros(1, dtype=SETTINGS)
    row["queue_order"], row["routing"], row["rejection"] = codes
    row["promises"], row["ages"], row["routing_seed"] = promises, ages, routing_seed
    row["least_is_known"] = (
        serving.routing is Routing.SHORTEST_EXPECTED_COMPLETION
        and controller.policy == "fixed"
        and promises != FORETELLING  # which asks a batch that is promised already how much longer it gets
    )
    row["is_dynamic"] = serving.batching is Batching.DYNAMIC
    row["prefill_chunk_tokens"] = serving.prefill_chunk_tokens or 0
    row["max_preemptions"], row["preemption_gain"] = serving.max_preemptions, serving.preemption_gain
    row["wait_cap"] = np.inf if serving.wait_cap == "none" else serving.wait_cap
    row["policy"] = CONTROL_POLICIES.index(controller.policy)
    if controller.policy != "fixed":
        row["num_windows"] = int(np.ceil(duration_s / controller.period_s)) - 1
    row["batch_timeout_s"], row["overhead_s"] = serving.batch_timeout_s, serving.overhead_s
    row["window_s"], row["increase"] = controller.period_s, controller.increase
    row["decrease_mhz"], row["hysteresis"] = controller.decrease_mhz, controller.hysteresis
    row["dwell_s"] = DWELL_S if controller.dwell_s is None else controller.dwell_s
    row["warm_up_s"], row["measured_until_s"] = warm_up_s, measured_until_s
    row["duration_s"], row["num_samples"] = duration_s, num_samples
    return row
