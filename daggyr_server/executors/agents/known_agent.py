"""What is known of one agent, connected or not: who it is, what it was given and has not answered, what was requested of it.

The agent executor keeps one for each agent from its first hello until it is gone. Nothing here sends or reports: a method changes
what is known and returns what is to be said.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from daggyr.attempts.keys import Ident, ident_of
from daggyr.attempts.times import seconds_of
from daggyr.v1.agents_pb2 import Heartbeat, Hello
from daggyr.v1.task_pb2 import Assignment, AssignmentBatch, AttemptKey, AttemptUpdate, HostFault
from daggyr_server.executors.agents.session import AgentSession

Request = Literal["stop", "recall"]

# Stands for an assignment that an earlier coordinator sent: it cannot be sent again from here.
PLACED_EARLIER = (AssignmentBatch(), Assignment())
FIRST_VERSION_WITH_LIVES = 2  # of the protocol


def highest_version(hello: Hello) -> int:
    """The highest version of the protocol that an agent speaks."""
    return max(hello.protocol_version, hello.highest_protocol_version)


@dataclass(slots=True, eq=False)
class KnownAgent:
    """One agent; its id is its host's name for the driver."""

    agent_id: str
    name: str
    incarnation: str
    resources: dict[str, int] = field(default_factory=dict)
    version: str = ""
    held: dict[Ident, tuple[AssignmentBatch, Assignment]] = field(default_factory=dict)  # given, and without a result so far
    requested: dict[Ident, Request] = field(default_factory=dict)  # of those held, what is to be said again after a break
    session: AgentSession | None = None
    expected: int = 1  # the number of the next batch of updates
    durable: int = 0  # batches up to this one are committed
    durable_beyond: set[int] = field(default_factory=set)  # and these, before an earlier one that takes longer
    draining: bool = False
    leaving: bool = False  # it said goodbye
    awaited: bool = False  # it is known from an earlier coordinator only, and has not come back yet
    coming: str = ""  # what it is doing, if the pool has started it and it has not joined yet; for people
    lease: asyncio.TimerHandle | None = None
    connect_time: float = 0.0  # seconds since the epoch
    last_seen: float = 0.0  # seconds since the epoch
    heard: float = 0.0  # seconds, monotonic
    heartbeat: Heartbeat | None = None
    fault: HostFault | None = None  # why it takes nothing, as it said last; None if it is not at fault
    paused_until: float = 0.0  # seconds, monotonic; of the fault
    ends: float | None = None  # when its host goes away by itself, monotonic; None if it has no time limit
    shortage: str = ""  # why it offers less than it was meant to
    address: str = ""
    came_with: int = 0  # the life of its last welcome, when it came here first
    lifeless: bool = False  # it speaks version 1 of the protocol, whose keys have no lives
    # Of a lifeless agent: the numbers of attempts that it came with and that are not its own. It cannot tell them from others.
    foreign: frozenset[tuple[int, int, int]] = frozenset()

    def continues(self, hello: Hello, tracker_id: str, life: int) -> bool:
        """Whether the agent of this hello goes on where it was: its numbers too, and it may be sent what it never got.

        It does not if one of the two has begun anew: the agent by a start, or by a welcome of another tracker or of another copy
        of this one in between; this side, whose `life` it is, by its own start.
        """
        same = hello.tracker_id in ("", tracker_id) and hello.life in (life, self.came_with)
        return same and not self.awaited and self.incarnation == hello.incarnation

    def connect(self, hello: Hello, session: AgentSession, *, continues: bool) -> None:
        """Record that the agent is connected by `session`, with what its hello says of it."""
        self.awaited = self.leaving = False
        if not continues:
            self.incarnation, self.expected = hello.incarnation, max(1, hello.first_unacknowledged)
            self.durable = self.expected - 1
            self.durable_beyond.clear()
            self.came_with = hello.life
        self.lifeless = highest_version(hello) < FIRST_VERSION_WITH_LIVES
        self.name, self.resources, self.version = hello.name, dict(hello.resources), hello.version
        self.session, self.address = session, session.address
        self.draining = (self.draining and continues) or hello.draining
        self.fault, self.shortage = hello.fault if hello.HasField("fault") else None, hello.shortage
        self.ends = time.monotonic() + seconds_of(hello.ends_in) if hello.HasField("ends_in") else None
        self.connect_time = self.last_seen = time.time()
        self.heard = time.monotonic()

    def became_durable(self, sequence: int) -> None:
        """Record that a batch is committed. Batches may be committed in another order than they came in."""
        if sequence != self.durable + 1:
            self.durable_beyond.add(sequence)
            return
        self.durable = sequence
        while self.durable + 1 in self.durable_beyond:
            self.durable += 1
            self.durable_beyond.remove(self.durable)

    def end_lease(self) -> None:
        """Stop waiting for the agent to come back."""
        if self.lease is not None:
            self.lease.cancel()
            self.lease = None

    def give(self, batch: AssignmentBatch) -> AssignmentBatch | None:
        """Record what the agent is given. Return what of it is new, or None."""
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

    def complete(self, keys: Iterable[AttemptKey]) -> None:
        """Give the keys that a lifeless agent names the lives of those attempts of the same numbers that it was given."""
        lives = {(run_id, number, attempt): life for run_id, number, attempt, life in self.held}
        for key in keys:
            key.life = lives.get((key.run_id, key.task_number, key.attempt), 0)

    def request(self, keys: Iterable[AttemptKey], request: Request) -> list[AttemptKey]:
        """Record the request and return the keys that this agent holds.

        An attempt that was told to stop is no longer told to hand itself back.
        """
        found = [key for key in keys if ident_of(key) in self.held]
        for key in found:
            if request == "stop" or self.requested.get(ident_of(key)) != "stop":
                self.requested[ident_of(key)] = request
        return found

    def answered(self, updates: Iterable[AttemptUpdate]) -> list[AttemptUpdate]:
        """Return the updates of attempts that the agent holds. An attempt whose result is among them is held no more."""
        held = self.held
        own = []
        for update in updates:
            key = update.key
            ident = (key.run_id, key.task_number, key.attempt, key.life)
            if ident in held:
                own.append(update)
                if update.HasField("finished"):
                    del held[ident]
                    self.requested.pop(ident, None)
        return own

    def again(self, idents: Iterable[Ident]) -> list[AssignmentBatch]:
        """Return batches that send `idents` once more, each with the templates of the batch in which it was sent."""
        batches: dict[int, AssignmentBatch] = {}
        for ident in idents:
            sent, assignment = self.held[ident]
            batch = batches.get(id(sent))
            if batch is None:
                batch = batches[id(sent)] = AssignmentBatch(templates=sent.templates)
            batch.assignments.append(assignment)
        return list(batches.values())
