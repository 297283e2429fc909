"""The invariants of the core, as a function: `check(machine)` between calls of `Machine.handle` passes or says what is wrong.

Tests call it after every step. It walks every edge and every attempt, so it is for graphs and pools that a test makes; it changes
nothing, and no program calls it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Mapping

from daggyr_server.core.graph.ready import QueueKey, Wants
from daggyr_server.core.graph.run import Run
from daggyr_server.core.graph.segments import Kind
from daggyr_server.core.machine import Machine
from daggyr_server.core.placing.host import MAX_IN_FLIGHT, WHOLE, Host
from daggyr_server.core.placing.pool import Pool
from daggyr_server.core.states import ENDED, MAX_LOSSES, STATE_OF, Phase, State


class BrokenInvariant(AssertionError):
    """A fault of the core; the message says which rule does not hold, and where."""


def check(machine: Machine, shrunk: Container[str] = ()) -> None:
    """Raises BrokenInvariant if an invariant does not hold.

    `shrunk` are hosts that have lost resources while attempts used them, or whose attempts an earlier coordinator sent.
    """
    _check_runs(machine)
    for run in machine.runs.values():
        _check_tasks(run)
        _check_attempts(machine, run)
        _check_queues(machine, run)
        _check_delays(machine, run)
        _check_end(run)
    _check_tally(machine)
    for pool in machine.pools.values():
        _check_shares(machine, pool)
        _check_hosts(machine, pool, shrunk)
        _check_reservations(pool)


def _hold(rule: bool, message: str) -> None:
    if not rule:
        raise BrokenInvariant(message)


def _check_runs(machine: Machine) -> None:
    """Numbers of runs, and which requests lead to them."""
    for run_id, run in machine.runs.items():
        _hold(run.run_id == run_id, f"run {run.run_id} is kept as run {run_id}")
    leading = set(machine.requests.values())
    _hold(leading == machine.runs.keys(), f"requests lead to the runs {leading}, but there are {set(machine.runs)}")


def _check_tasks(run: Run) -> None:
    """Phases, their counts, and what each task waits for."""
    graph, size = run.graph, run.graph.size
    lengths = {len(run.phases), len(run.waiting), len(run.attempts), size}
    _hold(lengths == {size}, f"run {run.run_id}: its arrays differ in length: {lengths}")
    phases = [Phase(phase) for phase in run.phases]
    counts = Counter(phases[graph.live :])
    _hold(run.counts == [counts[phase] for phase in Phase], f"run {run.run_id}: {run.counts} counted, but there are {counts}")
    structural = [phases[number] for number in range(graph.live, size) if graph.kind(number) is not Kind.TASK]
    counted, completed = (run.structural, run.structural_completed), structural.count(Phase.COMPLETED)
    _hold(counted == (len(structural), completed), f"run {run.run_id}: of structural tasks it counts {counted}")
    for number, phase in enumerate(phases[graph.live :], graph.live):
        where = f"run {run.run_id} task {number} ({phase.name})"
        missing = sum(phases[parent] is not Phase.COMPLETED for parent in graph.parents(number))
        waiting = run.waiting[number]
        stopped = number in run.stopped
        _hold(waiting == missing + stopped, f"{where}: waits for {waiting}, but {missing} parents are not COMPLETED")
        _hold(phase is Phase.BLOCKED or not stopped or run.in_flight[number].held, f"{where}: it was stopped, and goes on")
        if phase in (Phase.READY, Phase.DELAYED):
            _hold(not missing, f"{where}: {missing} parents are not COMPLETED")
        if phase is Phase.BLOCKED:
            _hold(waiting > 0, f"{where}: waits for nobody")
        if graph.kind(number) is not Kind.TASK:
            expected = Phase.BLOCKED if missing else Phase.COMPLETED
            _hold(phase is expected, f"{where}: it is structural and should be {expected.name}")
            _hold(not run.attempts[number], f"{where}: it is structural and was attempted")


def _check_attempts(machine: Machine, run: Run) -> None:
    """What is in flight, against phases, attempt numbers and the counts of what can be recalled."""
    live = run.graph.live
    in_flight = {number: attempt.start_time is not None for number, attempt in run.in_flight.items() if number >= live}
    expected = {number: phase is Phase.RUNNING for number, phase in _live(run) if phase in (Phase.ASSIGNED, Phase.RUNNING)}
    _hold(in_flight == expected, f"run {run.run_id}: in flight (and started) {in_flight}, but ASSIGNED (and RUNNING) {expected}")
    unstarted: Counter[QueueKey] = Counter()
    for number, attempt in run.in_flight.items():
        where = f"run {run.run_id} task {number} attempt {attempt.attempt}"
        last = attempt.attempt == run.attempts[number]
        _hold(last or attempt.held, f"{where}: the task's last attempt is {run.attempts[number]}")
        _hold(run.task_of(attempt.number) == number, f"{where}: reports of {attempt.number} go elsewhere")
        _hold(run.counts_for(number, attempt) or attempt.stopping, f"{where}: an edit ended it, and it was not told")
        queue, index = attempt.sent.queue, run.graph.policy_index(attempt.number)
        own = queue is (run.elsewhere.get(queue.key) if queue.avoid else run.queues[index]) and queue.policy_index == index
        _hold(own, f"{where}: it belongs to another queue")
        _hold(attempt.pool == queue.policy.pool, f"{where}: it is in the pool {attempt.pool}")
        _hold(attempt.host in machine.pools[attempt.pool].hosts, f"{where}: its host {attempt.host} is gone")
        _hold(attempt.sent.weight > 0, f"{where}: its pool has not taken it up")
        _hold(attempt.void or not attempt.killed, f"{where}: how it ends counts, and it is noted as killed")
        _hold(number >= live or not attempt.held, f"{where}: no task waits for it, and it is noted as held")
        if number < live:
            gone = Phase(run.phases[number])
            _hold(gone in (Phase.ASSIGNED, Phase.RUNNING), f"{where}: its task, which was taken away, is {gone.name}")
        unstarted[queue.key] += attempt.start_time is None and not attempt.recalled
        if run.killing:
            _hold(attempt.stopping or attempt.recalled, f"{where}: its run is killed, and it was not told")
    _hold(run.orphans == {number for number in run.in_flight if number < live}, f"run {run.run_id}: orphans {run.orphans}")
    for number in run.orphans:
        task = run.graph.number_of(run.graph.task_id(run.in_flight[number].number))
        waits = task is None or task in run.in_flight or run.graph.kind(task) or Phase(run.phases[task]) in ENDED
        _hold(bool(waits), f"run {run.run_id} task {task}: it may begin while attempts of its name are being ended")
    for number, lost in run.losses.items():
        _hold(
            lost <= MAX_LOSSES or run.phases[number] in ENDED, f"run {run.run_id} task {number}: it goes on after {lost} losses"
        )
    _hold(set(run.renumbered.values()) <= run.in_flight.keys(), f"run {run.run_id}: {run.renumbered} are not all in flight")
    for queue in run.all_queues:
        found = unstarted[queue.key]
        where = f"run {run.run_id} queue {queue.key}"
        _hold(queue.unstarted == found, f"{where}: {queue.unstarted} counted as unstarted, but {found} are")


def _check_queues(machine: Machine, run: Run) -> None:
    """Every READY task stands in its queue once, what waits longest in front, and the queue is offered to its pool."""
    policies = run.graph.policies
    _hold([queue.policy for queue in run.queues] == policies, f"run {run.run_id}: its queues are not those of its policies")
    ranked = len({policy.priority for policy in policies}) > 1
    _hold(run.ranked is ranked, f"run {run.run_id}: that it has priorities is noted as {run.ranked}")
    for index, queue in enumerate(run.queues):
        _hold(queue.key == (index, ""), f"run {run.run_id} queue {index}: it says that it is queue {queue.key}")
    for key, queue in run.elsewhere.items():
        beside = queue.ordinary is run.queues[key[0]]
        _hold(
            queue.key == key and bool(queue.avoid) and beside,
            f"run {run.run_id} queue {key}: it says that it is queue {queue.key}",
        )
    for queue in run.queues:
        ready = [number for number in _in(run, Phase.READY) if run.graph.policy_index(number) == queue.policy_index]
        held = sorted(number for one in run.all_queues if one.policy_index == queue.policy_index for number in one)
        _hold(held == ready, f"run {run.run_id} queue {queue.key}: with those beside it, it holds {held}, but READY are {ready}")
    for queue in run.all_queues:
        where = f"run {run.run_id} queue {queue.key}"
        _hold(queue.run_id == run.run_id, f"{where}: it says that it is of run {queue.run_id}")
        orders = queue.orders()
        _hold(orders == sorted(orders), f"{where}: its tasks became ready in the order {orders}")
        _hold(len(queue) == len(list(queue)), f"{where}: it counts {len(queue)}, but holds {sorted(queue)}")
        shares = machine.pools[queue.policy.pool].shares
        share = shares.by_run.get(run.run_id)
        offered = share is not None and share.queues.get(queue.key) is queue
        _hold((queue.offered is not None) is offered, f"{where}: it is counted {'' if queue.offered else 'not '}to be offered")
        _hold(not offered or queue.offered is shares.count, f"{where}: another pool counts it")
        if run.killing:
            _hold(not offered, f"{where}: its run is killed, and it is offered")
        elif queue:
            _hold(offered, f"{where}: it has ready tasks, and is not offered")


def _check_delays(machine: Machine, run: Run) -> None:
    """Every DELAYED task has one time to wait for, and the machine wakes for the first."""
    delayed = sorted(number for _, number in run.delayed)
    expected = _in(run, Phase.DELAYED)
    _hold(delayed == expected, f"run {run.run_id}: {delayed} wait for a time, but DELAYED are {expected}")
    lost = {number for number, host in run.lost_on.items() if run.phases[number] != Phase.DELAYED}
    _hold(not lost, f"run {run.run_id}: {lost} wait after a loss, but are not DELAYED")
    if run.delayed:
        first, alarm = min(run.delayed)[0], machine.alarms.get(run.run_id, math.inf)
        rings = alarm <= first and (alarm, run.run_id) in machine.delays
        _hold(rings, f"run {run.run_id}: a task waits until {first}, and the machine wakes at {alarm}")


def _check_end(run: Run) -> None:
    """The state of the run, as the essay in states.py has it."""
    counts = {phase: run.counts[phase] for phase in Phase}
    where = f"run {run.run_id} ({run.state.name}, {counts})"
    going = bool(run.in_flight) or (not run.killing and bool(counts[Phase.READY] + counts[Phase.DELAYED]))
    _hold(going is not run.has_ended, f"{where}: {'something' if going else 'nothing'} can still go on")
    _hold((run.stop_time is not None) is run.has_ended, f"{where}: it stopped at {run.stop_time}")
    _hold(run.state is not State.RUNNING or run.start_time is not None, f"{where}: it never started")
    _hold(not run.changed and not run.moves, f"{where}: changes were not told")
    if counts[Phase.RUNNING]:
        _hold(run.state is State.RUNNING, f"{where}: a task of it runs")
    if run.has_ended:
        errored = State.ERRORED if counts[Phase.ERRORED] else State.COMPLETED
        state = State.KILLED if run.killing or counts[Phase.KILLED] or run.stopped else errored
        _hold(run.state is state, f"{where}: it should be {state.name}")
    told = Counter[State]()
    for phase, count in counts.items():
        told[STATE_OF[phase]] += count
    _hold(run.task_states() == +told, f"{where}: it tells {run.task_states()}")
    structural = Counter(
        STATE_OF[Phase(run.phases[number])] for number in range(run.graph.live, run.graph.size) if run.graph.kind(number)
    )
    _hold(run.command_states() == +(told - structural), f"{where}: of commands it tells {run.command_states()}")


def _check_tally(machine: Machine) -> None:
    """How many runs and tasks are in which state."""
    runs = Counter(run.state for run in machine.runs.values())
    tasks = Counter[State]()
    for run in machine.runs.values():
        if not run.has_ended:
            tasks.update(run.task_states())
    for name, counted, there in (("runs", machine.tally.runs, runs), ("tasks", machine.tally.tasks, tasks)):
        found = {state: counted[state] for state in State if counted[state]}
        _hold(found == +there, f"{found} {name} counted, but there are {there}")


def _check_shares(machine: Machine, pool: Pool) -> None:
    """What each run is charged with, and that all that wait stand in line."""
    wanted: Counter[Wants] = Counter()
    shares = pool.shares
    for run in machine.runs.values():
        attempts = [attempt for attempt in run.in_flight.values() if attempt.pool == pool.name]
        share = shares.by_run.get(run.run_id)
        where = f"pool {pool.name} run {run.run_id}"
        if share is None:
            _hold(not attempts, f"{where}: attempts in flight have no share")
            continue
        _hold(bool(share.queues or share.in_flight), f"{where}: its share holds nothing and is still there")
        usage = sum(attempt.sent.weight * attempt.sent.queue.cores for attempt in attempts)
        _hold(share.in_flight == len(attempts), f"{where}: {share.in_flight} counted in flight, but {len(attempts)} are")
        _hold(share.usage == usage, f"{where}: it is charged for {share.usage}, but uses {usage}")
        in_line = share.place in shares.line or run.run_id in shares.moved
        _hold(in_line or not share.queues, f"{where}: it waits, but not in line")
        _hold(not (run.ranked and share.queues) or run.run_id in shares.ranked, f"{where}: its priorities are not looked at")
        wanted.update(queue.wants for queue in share.queues.values())
    ready = sum(len(queue) for share in shares.by_run.values() for queue in share.queues.values())
    _hold(shares.count.ready == ready, f"pool {pool.name}: {shares.count.ready} counted as ready, but {ready} are")
    _hold(shares.by_run.keys() <= machine.runs.keys(), f"pool {pool.name}: shares of runs that are not there")
    _hold(all(share.run_id == run_id for run_id, share in shares.by_run.items()), f"pool {pool.name}: shares of other runs")
    _hold(shares.moved.keys() <= shares.by_run.keys(), f"pool {pool.name}: runs without a share are to line up")
    _hold(shares.ranked.keys() <= shares.by_run.keys(), f"pool {pool.name}: it ranks runs that have no share")
    avoiding = {queue for share in shares.by_run.values() for queue in share.queues.values() if queue.avoid}
    _hold(shares.avoiding.keys() == avoiding, f"pool {pool.name}: queues that avoid a host are not those that it knows")
    _hold(shares.wanted == wanted, f"pool {pool.name}: {shares.wanted} wanted, but {wanted} are")


def _check_hosts(machine: Machine, pool: Pool, shrunk: Container[str]) -> None:
    """What each host is charged with, and that it is not too much."""
    attempts = [attempt for run in machine.runs.values() for attempt in run.in_flight.values() if attempt.pool == pool.name]
    for host in pool.hosts.values():
        where = f"pool {pool.name} host {host.host}"
        units: Counter[str] = Counter()
        firm: Counter[str] = Counter()
        weighed: Counter[str] = Counter()
        here = [attempt.sent for attempt in attempts if attempt.host == host.host]
        for sent in here:
            for name, each in sent.queue.policy.needs:
                units[name] += each
                weighed[name] += each * sent.weight
                firm[name] += each * (sent.weight == WHOLE)
        _hold(
            not (host.open and (host.draining or host.expected or host.pause)), f"{where}: it takes attempts, though it is not to"
        )
        _hold(host.in_flight > 0 or not host.expected, f"{where}: it was never here, and nothing is expected of it")
        _hold(host.in_flight == len(here), f"{where}: {host.in_flight} counted in flight, but {len(here)} are")
        _hold(host.in_flight <= MAX_IN_FLIGHT, f"{where}: {host.in_flight} in flight")
        over = [kind for kind, limit in host.limits.items() if limit.room < 0]
        _hold(not over, f"{where}: it was given more than it takes of {over}")
        charged = {name: (use.units, use.firm, use.weighed) for name, use in host.uses.items() if use.units}
        real = {name: (units[name], firm[name], weighed[name]) for name in units}
        _hold(charged == real, f"{where}: charged with {charged}, but {real} are used")
        if host.host not in shrunk:
            largest = {name: max(dict(sent.queue.policy.needs).get(name, 0) * sent.weight for sent in here) for name in units}
            _check_load(host, largest, where)


def _check_load(host: Host, largest: Mapping[str, int], where: str) -> None:
    """Firm attempts always fit together; without sending ahead, all do; with it, only the last may reach over the limit."""
    for name, largest_one in largest.items():
        use, total = host.uses[name], host.resources.get(name, 0)
        _hold(use.firm <= total, f"{where}: firm attempts need {use.firm} {name} of {total}")
        if not host.ahead:
            _hold(use.units <= total, f"{where}: attempts need {use.units} {name} of {total}")
        _hold(use.weighed < total * WHOLE + largest_one, f"{where}: {use.weighed / WHOLE} {name} by weight, of {total}")


def _check_reservations(pool: Pool) -> None:
    kept = {host.reserved: host for host in pool.hosts.values() if host.reserved is not None}
    _hold(kept == pool.reservations.kept, f"pool {pool.name}: hosts and reservations do not agree")
    for queue, host in kept.items():
        where = f"pool {pool.name} host {host.host}"
        _hold(host.open and host.could_hold(queue.policy.needs), f"{where}: kept for a task that it cannot take")
        _hold(bool(queue), f"{where}: kept for nothing")


def _live(run: Run) -> list[tuple[int, Phase]]:
    """The tasks of the newest specification."""
    return [(number, Phase(run.phases[number])) for number in range(run.graph.live, run.graph.size)]


def _in(run: Run, phase: Phase) -> list[int]:
    return [number for number, found in _live(run) if found is phase]
