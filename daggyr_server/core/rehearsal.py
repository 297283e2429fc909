"""What a person asks of a large run, done to a copy of the run beside the machine.

To queue a million tasks again takes seconds, in which the machine would do nothing else. So the driver copies the run between two
steps, has the request carried out on the copy in a thread, and gives the machine what came of it: an event that costs the same
for a run of any size. If the run has changed meanwhile, the machine refuses that, and the driver tries again. The rules are the
machine's own, because it is a machine that carries the request out: one that has this run only, and no hosts. A run with
attempts in flight cannot be copied, because its hosts and its pools know them.
"""

from __future__ import annotations

from collections.abc import Iterable

from daggyr_server.core.events import EditAsked, KillAsked, MarkAsked, Rehearsed, RetryAsked, RunRestored
from daggyr_server.core.graph.run import Run
from daggyr_server.core.machine import Machine, nobody
from daggyr_server.core.moment import Moment

Asked = KillAsked | RetryAsked | MarkAsked | EditAsked


class Rehearsal:
    """Made between two steps of the machine; `carried_out` may be called in a thread, once."""

    def __init__(self, run: Run, pools: Iterable[str]) -> None:
        """`run` has nothing in flight; `pools` are the names of those of the machine."""
        self._run = run
        self._steps = run.steps
        self._copy = run.copied()
        self._pools = list(pools)

    def carried_out(self, asked: Asked, now: Moment) -> Rehearsed:
        """The event that tells the machine what `asked` does to the run."""
        machine, copy = Machine(self._pools), self._copy
        step = machine.handle(now, [RunRestored(request_id="", run=copy, ending=()), asked])
        for pool in machine.pools.values():
            pool.drop(copy.run_id)
        # The machine forgets the run and the step, because it is a circle of references that nobody collects for long.
        copy.offers_to(nobody)
        machine.runs.clear()
        machine.handle(now, ())
        return Rehearsed(asked=asked, run=self._run, steps=self._steps, done=copy, step=step)
