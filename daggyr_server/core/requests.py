"""What people ask of runs that are there: to kill, retry, mark and edit.

Each request is looked at first and changes tasks only if nothing speaks against it; else it is answered with a Refusal. What a
person moved is recorded, because no attempt tells of it. The machine calls one method for each kind of request. Nothing here
places tasks.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from daggyr_server.core.events import EditAsked, KillAsked, MarkAsked, Rehearsed, RetryAsked
from daggyr_server.core.graph.edit import changed_completed, edited
from daggyr_server.core.graph.graph import Addition
from daggyr_server.core.graph.refusals import (
    can_be_asked_for,
    edit_refused,
    generators_refused,
    kill_refused,
    mark_refused,
    retry_refused,
)
from daggyr_server.core.graph.run import Run
from daggyr_server.core.moment import Moment
from daggyr_server.core.records import RunEdited, RunKillAsked, TasksMoved
from daggyr_server.core.states import Phase, State
from daggyr_server.core.step import Reason, Refusal, Stepper

_GONE: Sequence[int] = ()  # compared by identity


class RequestHandlers(Stepper):
    """The machine's part for what people ask: submit, kill, retry, mark, edit."""

    def _kill_asked(self, event: KillAsked, now: Moment) -> None:
        """A run or tasks are to end."""
        run = self._asked_run(event.ticket, event.run_id, now)
        if run is None:
            return
        named = self._named(run, event.ticket, event.numbers)
        if named is _GONE or self._refused(event.ticket, kill_refused(run, named)):
            return
        if named is None:
            started = run.kill()
            self._step.records.append(RunKillAsked(run.run_id, now.wall))
            for pool in self.pools.values():
                pool.drop(run.run_id)
            self._stop(started)
            self._recall(run.unstarted())
        else:
            moved, attempts = run.kill_tasks(named)
            if moved:
                self._step.records.append(_moved(run, moved, State.KILLED, "kill", now))
            self._stop(attempts)
        self._touched[run.run_id] = run
        # What was kept for the killed is free for others.
        self._dirty.update(dict.fromkeys(self.pools))

    def _retry_asked(self, event: RetryAsked, now: Moment) -> None:
        """Tasks are to be queued again."""
        run = self._asked_run(event.ticket, event.run_id, now)
        if run is None:
            return
        named = self._named(run, event.ticket, event.numbers)
        if named is _GONE:
            return
        numbers: Sequence[int]
        if named is None:
            live = run.graph.live
            numbers = [live + index for index, phase in enumerate(run.phases[live:]) if phase in (Phase.ERRORED, Phase.KILLED)]
        else:
            numbers = run.graph.descendants(named) if event.downstream else named
        if self._refused(event.ticket, retry_refused(run, named, numbers, everything=event.everything)):
            return
        grown = generators_refused(run, numbers, downstream=event.downstream)
        if grown is not None:
            self._step.answers[event.ticket] = Refusal(Reason.GROWN if event.downstream else Reason.NOT_NOW, grown)
            return
        everything = named is None or event.everything
        told = [number for number in numbers if can_be_asked_for(run, number)] or [*run.stopped, *run.ready_or_delayed()]
        fresh = run.go_on(now, None if everything else frozenset(numbers))
        let_go = run.let_go_on(run.stopped if everything else ())
        self._asked_moves(run, sorted({*told, *fresh, *run.reset([*numbers, *let_go], now.steady)}), State.QUEUED, "retry", now)

    def _mark_asked(self, event: MarkAsked, now: Moment) -> None:
        """Tasks are to be COMPLETED, or QUEUED, because a person knows better."""
        run = self._asked_run(event.ticket, event.run_id, now)
        if run is None:
            return
        named = self._named(run, event.ticket, event.numbers)
        if named is _GONE or named is None or self._refused(event.ticket, mark_refused(run, named, completed=event.completed)):
            return
        if event.completed:
            so_already = all(run.phases[number] == Phase.COMPLETED for number in named)
        else:
            so_already = not any(can_be_asked_for(run, number) for number in named)
        if so_already and not event.everything:
            return
        told = [number for number in named if can_be_asked_for(run, number)]
        fresh = run.go_on(now, None if event.everything else frozenset(named))
        let_go = run.let_go_on(run.stopped if event.everything else ())
        if event.completed:
            self._asked_moves(run, [*fresh, *run.forgive(let_go)], State.QUEUED, "mark", now)
            self._asked_moves(run, run.close(named), State.COMPLETED, "mark", now)
        else:
            self._asked_moves(run, sorted({*told, *fresh, *run.reset([*named, *let_go], now.steady)}), State.QUEUED, "mark", now)

    def _edit_asked(self, event: EditAsked, now: Moment) -> None:
        """A run is to have another specification."""
        run = self._asked_run(event.ticket, event.run_id, now)
        if run is None:
            return
        if len(run.graph.edits) != event.edits:
            message = f"run {run.run_id} was edited meanwhile: it has revision {run.revision} now, look at it again"
            self._step.answers[event.ticket] = Refusal(Reason.CONFLICT, message)
            return
        if run.revision != event.revision or event.completed not in (None, changed_completed(event.edit.carry, run.phases)):
            self._step.answers[event.ticket] = Refusal(Reason.STALE, f"run {run.run_id} goes on too fast: ask again")
            return
        if self._refused(event.ticket, edit_refused(run)):
            return
        unknown = next(filter(None, map(self._no_such_pool, event.edit.additions)), None)
        if unknown is not None:
            self._step.answers[event.ticket] = Refusal(Reason.NOT_FOUND, unknown)
            return
        for pool in self.pools.values():
            pool.drop(run.run_id)
        run.offers_to(lambda queue: None)
        queued, stopped = edited(run, event.edit, event.again, now, everything=event.everything)
        run.describe(tags=event.tags, pool=event.pool, parameters=event.parameters)
        run.offers_to(self._offer)
        self._step.records.append(
            RunEdited(
                run.run_id,
                run.revision,
                event.document,
                run.tags,
                run.pool,
                event.edit.kept,
                now.wall,
                reason=event.reason,
                replaced=event.replaced,
                deposit=event.deposit,
                replaced_deposit=event.replaced_deposit,
            )
        )
        attempts = [run.in_flight[number] for number in stopped]
        void = [attempt for attempt in attempts if attempt.void]
        if void:
            numbers, last = [attempt.number for attempt in void], [attempt.attempt for attempt in void]
            self._step.records.append(TasksMoved(run.run_id, numbers, last, State.QUEUED, event.reason, now.wall))
        self._asked_moves(run, queued, State.QUEUED, event.reason, now)
        self._stop(attempts)
        self._note_delay(run)
        self._step.answers[event.ticket] = len(run.graph.edits)

    def _rehearsed(self, event: Rehearsed, now: Moment) -> None:
        """What was asked was done to a copy of a run: the run becomes the copy, unless it is another by now."""
        asked, step, run = event.asked, event.step, event.run
        answer = step.answers[asked.ticket]
        if run is not self.runs.get(asked.run_id) or run.steps != event.steps or run.in_flight:
            answer = Refusal(Reason.STALE, f"run {asked.run_id} goes on too fast: ask again")
        elif step.records:  # Else it was refused, or everything is as it was asked for.
            # As where the machine does it itself, an edited run begins anew in its pools, and one that is killed has no turn. Any
            # other keeps its turn, even where nothing is left in a queue for now.
            anew = type(asked) is EditAsked or event.done.killing
            again = {} if anew else {queue.key: queue for queue in event.done.all_queues}
            for pool in self.pools.values():
                pool.replace(run.run_id, again)
            changed = run.changed + step.changed[run.run_id]
            run.become(event.done)
            run.offers_to(self._offer)
            run.changed = changed
            self._step.records += step.records
            self._offer_all(run)
            self._note_delay(run)
            self._touched[run.run_id] = run
            self._dirty.update(dict.fromkeys(self.pools))
        self._step.answers[asked.ticket] = answer

    def _asked_moves(self, run: Run, moved: Iterable[int], state: State, reason: str, now: Moment) -> None:
        """Record what a person moved, and offer what is ready because of it."""
        told = [number for number in moved if not run.graph.kind(number)]
        if told:
            self._step.records.append(_moved(run, told, state, reason, now))
        self._offer_all(run)
        self._touched[run.run_id] = run
        self._dirty.update(dict.fromkeys(self.pools))

    def _asked_run(self, ticket: Hashable, run_id: int, now: Moment) -> Run | None:
        """The run that a person asks about, ended if nothing is left that could go on. Refused if it is not there."""
        run = self.runs.get(run_id)
        if run is None:
            self._step.answers[ticket] = Refusal(Reason.NOT_FOUND, f"there is no run {run_id}")
            return None
        run.settle(now)
        return run

    def _named(self, run: Run, ticket: Hashable, numbers: Sequence[int] | None) -> Sequence[int] | None:
        """The tasks that a person named, with the numbers that they have by now, because an edit may have come in between.

        Returns _GONE, and answers with a refusal, if the run does not have one of them any more.
        """
        if numbers is None or all(number >= run.graph.live for number in numbers):
            return numbers
        found = [run.graph.newest(number) for number in numbers]
        if None in found:
            message = f"run {run.run_id} was edited meanwhile, and has not all of these tasks any more: look at it again"
            self._step.answers[ticket] = Refusal(Reason.CONFLICT, message)
            return _GONE
        return [number for number in found if number is not None]

    def _refused(self, ticket: Hashable, message: str | None) -> bool:
        """Answer: with a refusal if there is a message, else with None. Returns whether it is a refusal."""
        self._step.answers[ticket] = Refusal(Reason.NOT_NOW, message) if message is not None else None
        return message is not None

    def _no_such_pool(self, addition: Addition) -> str | None:
        """Why new tasks cannot be placed at all, or None."""
        unknown = {policy.pool: None for policy in addition.policies if policy.pool not in self.pools}
        return f"there is no pool {', '.join(unknown)}; there are {', '.join(self.pools)}" if unknown else None


def _moved(run: Run, numbers: Sequence[int], state: State, reason: str, now: Moment) -> TasksMoved:
    """The record of what a person moved.

    A task with an attempt in flight that counts is recorded under the number that the attempt has.
    """
    in_flight = {number: one for number in numbers if (one := run.in_flight.get(number)) and run.counts_for(number, one)}
    known = [in_flight[number].number if number in in_flight else number for number in numbers]
    ended = [in_flight[number].attempt - 1 if number in in_flight else run.attempts[number] for number in numbers]
    return TasksMoved(run.run_id, known, ended, state, reason, now.wall)
