"""What is known of one agent, connected or not: who it is, what it was given and has not answered, what it was asked.

The agent executor keeps one for each agent from its first hello until it is gone. Nothing here sends or reports: a method changes
what is known and returns what is to be said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from daggyr.attempts.keys import Ident, ident_of
from daggyr.v1.agents_pb2 import Heartbeat
from daggyr.v1.task_pb2 import Assignment, AssignmentBatch, AttemptKey, AttemptUpdate
from daggyr_server.executors.agents.session import Session

Ask = Literal["stop", "recall"]

# Stands for an assignment that an earlier coordinator sent: it cannot be sent again from here.
PLACED_EARLIER = (AssignmentBatch(), Assignment())


@dataclass(slots=True, eq=False)
class Agent:
    """One agent; its id is its host's name for the driver."""

    agent_id: str
    name: str
    incarnation: str
    resources: dict[str, int] = field(default_factory=dict)
    version: str = ""
    held: dict[Ident, tuple[AssignmentBatch, Assignment]] = field(default_factory=dict)  # without a result so far
    asked: dict[Ident, Ask] = field(default_factory=dict)  # of these, to be said again after a break
    session: Session | None = None
    expected: int = 1  # the number of the next batch of updates
    durable: int = 0  # batches up to this one are committed
    draining: bool = False
    leaving: bool = False  # it said goodbye
    awaited: bool = False  # it is known from an earlier coordinator only, and has not come back yet
    lease: asyncio.TimerHandle | None = None
    connect_time: float = 0.0  # seconds since the epoch
    last_seen: float = 0.0  # seconds since the epoch
    heard: float = 0.0  # seconds, monotonic
    heartbeat: Heartbeat | None = None
    address: str = ""

    def give(self, batch: AssignmentBatch) -> AssignmentBatch | None:
        """Note what it is given; returns what of it is new, or None."""
        held = self.held
        new = {}
        for assignment in batch.assignments:
            ident = ident_of(assignment.key)
            if ident not in held:
                new[ident] = (batch, assignment)
        held.update(new)
        if len(new) == len(batch.assignments):
            return batch
        if not new:
            return None
        return AssignmentBatch(templates=batch.templates, assignments=[assignment for _, assignment in new.values()])

    def ask(self, keys: Iterable[AttemptKey], ask: Ask) -> list[AttemptKey]:
        """Note what it is asked; returns the keys that it holds. Who is to stop is not handed back any more."""
        asked = [key for key in keys if ident_of(key) in self.held]
        for key in asked:
            if ask == "stop" or self.asked.get(ident_of(key)) != "stop":
                self.asked[ident_of(key)] = ask
        return asked

    def answered(self, updates: Iterable[AttemptUpdate]) -> list[AttemptUpdate]:
        """The updates that are its own to tell; with a result, an attempt is held no more."""
        held = self.held
        own = []
        for update in updates:
            key = update.key
            ident = (key.run_id, key.task_number, key.attempt)
            if ident in held:
                own.append(update)
                if update.HasField("finished"):
                    del held[ident]
                    self.asked.pop(ident, None)
        return own

    def again(self, idents: Iterable[Ident]) -> list[AssignmentBatch]:
        """Batches to send `idents` once more, each with the templates of the batch that it was sent in."""
        batches: dict[int, AssignmentBatch] = {}
        for ident in idents:
            sent, assignment = self.held[ident]
            batch = batches.get(id(sent))
            if batch is None:
                batch = batches[id(sent)] = AssignmentBatch(templates=sent.templates)
            batch.assignments.append(assignment)
        return list(batches.values())
