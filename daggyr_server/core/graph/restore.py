"""How a run is made again of what a tracker kept of it.

The driver calls `restored`, in a thread, for each run that a new coordinator takes over, and for ended runs that somebody asks
for; it gives the result to the machine. The run is what the last coordinator had, but for two things that no record tells:
whether an attempt has started, and how long a retry's delay has lasted. Nothing here reads a tracker.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from daggyr_server.core.graph.edit import take_edit
from daggyr_server.core.graph.graph import Addition, Edit, Replaced
from daggyr_server.core.graph.held import hold_back
from daggyr_server.core.graph.in_flight import InFlight, Sent
from daggyr_server.core.graph.ready import ReadyQueue
from daggyr_server.core.graph.run import Run, seconds_before_lost, seconds_before_retry
from daggyr_server.core.moment import Moment
from daggyr_server.core.states import ENDED, STATE_OF, Phase, State
from daggyr_server.core.stored import Adopted, RunRow, TaskRows

_BLOCKED, _ASSIGNED, _KILLED = int(Phase.BLOCKED), int(Phase.ASSIGNED), int(Phase.KILLED)
_PHASES = {int(state): int(phase) for phase, state in STATE_OF.items() if phase in ENDED}


class Restored(NamedTuple):
    """A run that was made again."""

    run: Run
    ending: list[InFlight]  # those of its attempts of which a person has asked the end, or whose end does not count any more


def restored(
    row: RunRow,
    tasks: TaskRows,
    adopted: Iterable[Adopted],
    *,
    stopped: Iterable[int] = (),
    parameters: Mapping[str, tuple[str, ...]],
    growths: Sequence[Addition | Edit | Replaced],
    revision: int,
    specified_in: int = 0,
    printed: Mapping[int, int],
    now: Moment,
) -> Restored:
    """The run that a tracker kept. It offers its queues to nobody yet, and its attempts have no weight yet.

    `growths` are the run's own tasks, then what generators and edits brought, in order. A `Replaced` stands for all that came
    before the edit that replaced it, and what that edit brought follows it. For `stopped`, `revision`, `specified_in` and
    `printed` see Run.
    """
    run = Run(
        row.run_id,
        tags=row.tags,
        pool=row.pool,
        parameters=parameters,
        made=Moment(now.steady_at(row.submit_time), row.submit_time),
        offer=_nobody,
    )
    for growth in growths:
        if isinstance(growth, Edit):
            take_edit(run, growth)
        elif isinstance(growth, Replaced):
            run.skip(growth)
        else:
            run.extend(growth)
    run.revision, run.specified_in = revision, specified_in
    run.printed = dict(printed)
    run.start_time, run.stop_time = row.start_time, row.stop_time
    run.state, run.killing = row.state, row.killing
    run.ran_seconds = row.ran_seconds
    if row.state is State.RUNNING:
        # What ran before goes on to run while no coordinator is there, so that this time counts.
        run.running_since = now.steady_at(row.running_time if row.running_time is not None else row.submit_time)
    phases = bytearray(run.graph.size)
    for number, state, attempt, failures, losses in zip(
        tasks.numbers, tasks.states, tasks.attempts, tasks.failures, tasks.losses, strict=True
    ):
        run.attempts[number] = attempt
        if failures:
            run.failures[number] = failures
        if losses:
            run.losses[number] = losses
        phases[number] = _PHASES.get(state, _BLOCKED)
    if run.graph.edits:
        _carry_rows(run, tasks, phases)
    for sent in adopted:
        _adopt(run, sent)
    live = run.graph.live
    for number, one in run.in_flight.items():
        one.killed = one.void and number >= live and phases[number] == _KILLED
    # The last end is what a task waits for, and nobody knows which of the two it was: it waits for the longer time.
    due = {number: now.steady + seconds_before_lost(lost) for number, lost in run.losses.items()}
    run.lost_on = dict.fromkeys(due, "")
    for number, used in run.failures.items():
        if (policy := run.graph.policy(number)).retry_delay > 0:
            due[number] = max(due.get(number, now.steady), now.steady + seconds_before_retry(policy, used))
    delayed = [(time, number) for number, time in due.items()]
    # An attempt goes back to the number that it was assigned with, if a later edit takes its task away.
    assigned = [one.number for one in run.in_flight.values() if one.number < live]
    run.put_back_retired(phases[:live], assigned)
    run.put_back(phases, {number: _ASSIGNED for number in run.in_flight if number >= live}, delayed)
    run.stop(stopped)
    run.told_stopped()  # the tracker has them
    hold_back(run)
    asked = {number for number, state in zip(tasks.numbers, tasks.states, strict=True) if state == State.KILLED}
    asked |= {one.number for number, one in run.in_flight.items() if not run.counts_for(number, one)}
    ending = [one for one in run.in_flight.values() if run.killing or one.number in asked]
    return Restored(run, ending)


def _carry_rows(run: Run, tasks: TaskRows, phases: bytearray) -> None:
    """Give tasks what was recorded under the numbers that they had before, unless something was recorded since."""
    own, requeued = bytearray(run.graph.size), set(tasks.requeued)
    for number in tasks.numbers:
        own[number] = 1
    counted = [(new, old, count) for new, old, count, _ in run.graph.counted_from]
    starts = [start for start, _ in run.graph.edits]
    for (start, carry), beyond in zip(run.graph.edits, [*starts[1:], run.graph.size], strict=True):
        for new, old, count, same in carry:
            if own.find(1, new, new + count) < 0:
                run.attempts[new : new + count] = run.attempts[old : old + count]
                if same:
                    phases[new : new + count] = phases[old : old + count]
                continue
            for after, before in zip(range(new, new + count), range(old, old + count), strict=True):
                run.attempts[after] = max(run.attempts[after], run.attempts[before])
                if same and not own[after]:
                    phases[after] = phases[before]
        run.count_on(stretch for stretch in counted if start <= stretch[0] < beyond)
        for spent in (run.failures, run.losses):
            for number in [number for number in spent if number < start]:
                used, over = spent.pop(number), carry.forward(number)
                if over is not None and over[1] and over[0] not in requeued:
                    spent[over[0]] = spent.get(over[0], 0) + used


def _adopt(run: Run, adopted: Adopted) -> None:
    """Take an attempt that an earlier coordinator sent, under the number that its task has by now."""
    number = adopted.number
    queue = run.queues[run.graph.policy_index(number)]
    # It was assigned before everything that this machine knows of; for how long it has waited, no clock tells that may be set.
    assigned = Moment(-math.inf, adopted.assign_time)
    sent = Sent(queue.policy.pool, adopted.host, adopted.host_name, queue, 0, assigned)
    attempt = InFlight(number, adopted.attempt, sent)
    attempt.void = adopted.void
    newest = run.graph.newest(number)
    if newest is not None:
        # How an attempt ends does not count for a task that an edit has changed meanwhile.
        attempt.void = attempt.void or not run.graph.does_the_same(number)
        number = newest
    run.attempts[number] = max(run.attempts[number], adopted.attempt)
    run.put_in_flight(number, attempt)
    queue.unstarted += 1


def _nobody(queue: ReadyQueue) -> None:
    """Offer a queue to nobody."""
