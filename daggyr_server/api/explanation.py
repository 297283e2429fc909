"""Why a task is in the state it is in, in sentences for people: what `daggyr why` prints.

The call ExplainTask (reading.py) asks for it. Pure: a run, the pools and the task's last attempt go in, sentences come out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from shlex import quote

from daggyr.bounds import bounded_notes, cut
from daggyr.v1.task_pb2 import AttemptOutcome, Placement
from daggyr_server.api.awaited import missing_host, pauses, until, utc
from daggyr_server.api.views import expansions, state_of
from daggyr_server.core.graph.ready import kind_of
from daggyr_server.core.graph.refusals import blockers
from daggyr_server.core.graph.run import Run
from daggyr_server.core.graph.segments import Kind
from daggyr_server.core.moment import Moment
from daggyr_server.core.placing.host import Host
from daggyr_server.core.placing.pool import Pool
from daggyr_server.core.states import MAX_LOSSES, STATE_OF, Phase, State
from daggyr_server.trackers.base import StoredAttempt

MAX_NAMED = 5  # parents named in a sentence
MAX_SENTENCE_BYTES = 16 * 1024
_QUEUED = frozenset(int(phase) for phase in Phase if STATE_OF[phase] is State.QUEUED)


def explanation(
    run: Run,
    number: int,
    pools: Mapping[str, Pool],
    now: Moment,
    last: StoredAttempt | None,
    where: Placement | None = None,
    notes: Callable[[str], Sequence[str]] = lambda pool: (),
) -> list[str]:
    """At least one sentence. `last` is the task's last attempt that has ended, `where` says where one is that has not.

    `notes` gives what the executor of a pool tells of it. Names are cut where they are very long.
    """
    return [cut(sentence, MAX_SENTENCE_BYTES) for sentence in _sentences(run, number, pools, now, last, where, notes)]


def _sentences(
    run: Run,
    number: int,
    pools: Mapping[str, Pool],
    now: Moment,
    last: StoredAttempt | None,
    where: Placement | None,
    notes: Callable[[str], Sequence[str]],
) -> list[str]:
    if number < run.graph.live:
        return ["An edit took it away: the run does not have it any more."]
    if together := expansions(run, number):
        return list(_expanded(run, number, pools, now, together))
    phase = Phase(run.phases[number])
    sentences = {
        Phase.BLOCKED: _blocked,
        Phase.READY: _ready,
        Phase.DELAYED: _delayed,
        Phase.ASSIGNED: _assigned,
        Phase.RUNNING: _running,
    }.get(phase)
    if run.killing and phase in (Phase.BLOCKED, Phase.READY, Phase.DELAYED):
        found = [f"Run {run.run_id} was killed: nothing more of it is started. To go on with it: daggyr retry {run.run_id}"]
    else:
        found = list(sentences(run, number, pools, now)) if sentences else list(_ended(run, number, phase))
        if phase is Phase.READY:
            found += [f"{note[:1].upper()}{note[1:]}." for note in notes(run.graph.policy(number).pool)]
    if where is not None:
        found += _where(where, "Its job is")
    return [*found, *_last_attempt(last, run.losses.get(number, 0))]


def _expanded(run: Run, number: int, pools: Mapping[str, Pool], now: Moment, together: Mapping[State, int]) -> Iterator[str]:
    """The head of an expanded task runs nothing: whoever asks wants to know what the expansions do."""
    count = sum(together.values())
    states = ", ".join(f"{together[state]:,} {state.name}" for state in State if state in together)
    yield f"It is expanded into {count:,} tasks: {states}."
    if run.phases[number] == Phase.BLOCKED:
        yield from _blocked(run, number, pools, now)
    for state in (State.ERRORED, State.KILLED, State.RUNNING, State.QUEUED):
        if state in together:
            found = islice((each for each in range(number + 1, number + 1 + count) if state_of(run, each) is state), 1)
            yield f"To see why one is {state.name}: daggyr why {run.run_id} {_quoted(run, next(found))}"
            return


def _blocked(run: Run, number: int, pools: Mapping[str, Pool], now: Moment) -> Iterator[str]:
    if number in run.stopped:
        command = f"daggyr retry {run.run_id} --task {_quoted(run, number)}"
        yield f"Run {run.run_id} was killed, and nobody has asked for this task since. To run it: {command}"
        if run.waiting[number] == 1:
            return
    parents, phases = run.graph.parents(number), run.phases
    completed = int(Phase.COMPLETED)  # A task may have a million parents, and plain numbers are compared faster.
    missing = [parent for parent in parents if phases[parent] != completed]
    yield f"It waits for {len(missing):,} of its {len(parents):,} parent{'s' * (len(parents) != 1)}: {_names(run, missing)}."
    stuck = blockers(run, number)
    if stuck:
        yield f"It will not run unless {_names(run, stuck)} is retried: daggyr retry {run.run_id} --task {_quoted(run, stuck[0])}"
    elif run.state not in (State.QUEUED, State.RUNNING):
        yield f"Run {run.run_id} has ended ({run.state.name}): a task further up did not complete."


def _ready(run: Run, number: int, pools: Mapping[str, Pool], now: Moment) -> Iterator[str]:
    policy = run.graph.policy(number)
    needs = ", ".join(f"{name}={units}" for name, units in policy.needs) or "nothing"
    missing = missing_host(policy.pool, kind_of(policy), pools, now)
    it = "All its parents are COMPLETED; it" if run.graph.parents(number) else "It"
    if missing:
        yield f"{it} waits for {missing}."
    else:
        pool = pools[policy.pool]
        yield f"{it} waits for its turn in the pool {policy.pool!r} and needs {needs}."
        used = ", ".join(
            f"{name} {min(sum(host.load.get(name, 0) for host in pool.hosts.values()), total)} of {total}"
            for name, total in sorted(_totals(pool.hosts.values()).items())
            if name in dict(policy.needs)
        )
        yield f"In use there: {used}."
        yield from (f"{words[:1].upper()}{words[1:]}." for words in islice(pauses(pool.hosts.values(), now), MAX_NAMED))
        if any(number in queue for queue in run.elsewhere.values() if queue.policy is policy and queue.avoid in pool.hosts):
            yield "Its last attempt was LOST, so that it goes to another host, if there is room on one within half a minute."


def _totals(hosts: Iterable[Host]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for host in hosts:
        for name, units in host.resources.items():
            totals[name] = totals.get(name, 0) + units
    return totals


def _delayed(run: Run, number: int, pools: Mapping[str, Pool], now: Moment) -> Iterator[str]:
    due = next(due for due, waiting in run.delayed if waiting == number)
    if number in run.lost_on:
        yield f"It waits until {utc(now.wall_at(due))}, because {_ends_in_vain(run, number)}; {MAX_LOSSES} are the most."
        host = pools[run.graph.policy(number).pool].hosts.get(run.lost_on[number])
        if host is not None:
            yield f"Then it goes to another host than {host.name}, if one has room for it."
        return
    retries = run.graph.policy(number).max_retries
    yield f"It waits until {utc(now.wall_at(due))} before retry {run.failures.get(number, 0)} of {retries}."


def _ends_in_vain(run: Run, number: int) -> str:
    """How often attempts of a task came to nothing that was not its own doing."""
    lost, back = run.losses.get(number, 0), run.comebacks.get(number, 0)
    told = [f"{lost} of its attempts {'was' if lost == 1 else 'were'} LOST"] if lost else []
    if back:
        told.append(f"{back} of its attempts came back after {'it' if back == 1 else 'they'} had begun")
    return " and ".join(told)


def _assigned(run: Run, number: int, pools: Mapping[str, Pool], now: Moment) -> Iterator[str]:
    flight = run.in_flight[number]
    yield f"Attempt {flight.attempt} was sent to {flight.host_name} at {utc(flight.assign_time)} and waits there for its turn."
    yield from _out_of_reach(run, number, pools, now)


def _running(run: Run, number: int, pools: Mapping[str, Pool], now: Moment) -> Iterator[str]:
    flight = run.in_flight[number]
    since = utc(flight.start_time if flight.start_time is not None else flight.assign_time)
    yield f"Attempt {flight.attempt} runs on {flight.host_name} since {since}."
    if flight.stopping:
        yield "It was asked to end."
    yield from _out_of_reach(run, number, pools, now)


def _out_of_reach(run: Run, number: int, pools: Mapping[str, Pool], now: Moment) -> Iterator[str]:
    flight = run.in_flight[number]
    host = pools[flight.pool].hosts.get(flight.host)
    if host is not None and host.pause is not None:
        yield f"{host.name} is given nothing more{until(host.pause, now)}, because {host.pause.reason}."
    elif host is not None and not host.open and not host.draining:
        yield f"{flight.host_name} is out of reach; if it does not come back within its lease, the attempt runs elsewhere."


def _ended(run: Run, number: int, phase: Phase) -> Iterator[str]:
    if run.graph.kind(number) is not Kind.TASK:
        yield f"It runs nothing: it is {'head' if run.graph.kind(number) is Kind.HEAD else 'tail'} of an expanded task."
    yield {
        Phase.COMPLETED: "It is COMPLETED.",
        Phase.ERRORED: "It is ERRORED: no further attempt is made by itself.",
        Phase.KILLED: "It is KILLED: a person asked for that.",
    }[phase]
    if phase is not Phase.COMPLETED and run.graph.kind(number) is Kind.TASK:
        yield f"To run it again: daggyr retry {run.run_id} --task {_quoted(run, number)}"
    if phase is Phase.COMPLETED:
        return
    phases = run.phases
    waiting = [child for child in run.graph.children(number) if phases[child] in _QUEUED]
    if waiting:
        yield f"Waiting for it: {_names(run, waiting)}."


def _last_attempt(last: StoredAttempt | None, losses: int) -> Iterator[str]:
    if last is None:
        return
    result = last.result
    how = AttemptOutcome.Name(result.outcome)
    if result.HasField("signal"):
        how += f" by signal {result.signal}"
    elif result.HasField("exit_code"):
        how += f" with exit code {result.exit_code}"
    when = f" at {utc(result.stop_time.ToNanoseconds() / 1e9)}" if result.HasField("stop_time") else ""
    yield f"Attempt {last.attempt} ended as {how} on {last.host_name}{when}."
    yield from _where(result.placement, "Its job was")
    yield from (f"{note[:1].upper()}{note[1:]}." for note in bounded_notes(result.notes))
    if losses > MAX_LOSSES:
        yield f"It was lost {losses} times, which is more than the {MAX_LOSSES} that are allowed."


def _where(where: Placement, beginning: str) -> Iterator[str]:
    """What the scheduler that an attempt was handed on to says of it."""
    on = f", on {where.node}" if where.node else ""
    if where.job:
        state = f": {where.state}" if where.state else ""
        because = f" ({where.reason})" if where.reason else ""
        yield f"{beginning} {where.job}{on}{state}{because}."
    elif where.state or where.reason:
        yield f"It is {where.state or 'waiting'} yet: {where.reason}."


def _names(run: Run, numbers: Sequence[int]) -> str:
    shown = ", ".join(f"{run.graph.task_id(number)} ({state_of(run, number).name})" for number in numbers[:MAX_NAMED])
    return f"{shown} and {len(numbers) - MAX_NAMED:,} more" if len(numbers) > MAX_NAMED else shown


def _quoted(run: Run, number: int) -> str:
    return quote(run.graph.task_id(number))
