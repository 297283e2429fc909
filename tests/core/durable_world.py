"""A world whose machine can be made again from what was committed, as a coordinator does that starts after another has died."""

from __future__ import annotations

from typing import Any

from committed import restored
from world import World

from daggyr_server.core.commands import StopAttempts
from daggyr_server.core.events import AttemptEnded, EditAsked, Event, Rehearsed, RunSubmitted
from daggyr_server.core.graph.graph import Addition, Edit
from daggyr_server.core.machine import Machine
from daggyr_server.core.records import RunAdded, RunEdited
from daggyr_server.core.step import Step


class DurableWorld(World):
    """Keeps what runs were extended by, because records do not hold graphs."""

    def __init__(self, *pools: str) -> None:
        super().__init__(*pools)
        self.grown: dict[tuple[int, int], Addition | Edit] = {}
        self._before: tuple[int, set[Any]] = (0, set())

    def tell(self, *events: Event) -> Step:
        self._before = (len(self.records), set(self.sent))
        step = super().tell(*events)
        for event in (event.asked if isinstance(event, Rehearsed) else event for event in events):
            if isinstance(event, RunSubmitted):
                self.grown.update({(record.run_id, 1): event.addition for record in step.records if isinstance(record, RunAdded)})
            elif isinstance(event, AttemptEnded) and event.addition is not None and event.run_id in self.machine.runs:
                self.grown[event.run_id, self.machine.runs[event.run_id].revision] = event.addition
            elif isinstance(event, EditAsked) and any(isinstance(record, RunEdited) for record in step.records):
                self.grown[event.run_id, self.machine.runs[event.run_id].revision] = event.edit
        return step

    @property
    def just_submitted(self) -> bool:
        """Whether the last step took a run."""
        return any(isinstance(record, RunAdded) for record in self.records[self._before[0] :])

    def start_again(self, *, committed: bool) -> Machine:
        """Put a new machine in the place of the old one, which is returned. `committed` says whether the last step was."""
        if not committed:
            count, sent = self._before
            self.sent = {key: host for key, host in self.sent.items() if key in sent}
            del self.records[count:]
        before = self.machine
        self.machine = Machine(before.pools)
        self.hosts.clear()
        self.commands.clear()
        events = restored(self.records, self.grown, self.moment)
        # What is adopted counts whole, however much of it was sent ahead.
        self.shrunk = {attempt.host for event in events for attempt in event.run.in_flight.values()}
        step = self.tell(*events)
        assert not step.records, "nothing is recorded of a restart"
        assert all(isinstance(command, StopAttempts) for command in step.commands)
        return before
