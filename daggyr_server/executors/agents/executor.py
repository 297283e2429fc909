"""The agent executor: attempts run on agents that dial in and say which pool they join.

It keeps, for each agent, the assignments that have no result yet, so that a broken connection loses nothing: what the agent
never got is sent again, what it still has goes on, and what it should not have is ended. Without a session for longer than
the lease, an agent is gone and its attempts are LOST. Sessions themselves are `session.py`'s; this file never awaits.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, ClassVar

import grpc
import msgspec

from daggyr.attempts.keys import Ident, ident_of, key_of
from daggyr.attempts.outcome import without_process
from daggyr.attempts.times import duration
from daggyr.v1.agents_pb2 import (
    AgentMessage,
    Cancel,
    CoordinatorMessage,
    Drain,
    Follow,
    Hello,
    Recall,
    UpdateBatch,
    Welcome,
)
from daggyr.v1.task_pb2 import (
    HOST_AVAILABLE,
    HOST_DRAINING,
    HOST_GONE,
    HOST_PAUSED,
    KILLED,
    LOST,
    REJECTED,
    RETURNED,
    AssignmentBatch,
    AttemptKey,
    AttemptOutcome,
    AttemptUpdate,
    Host,
    HostState,
    OutputChunk,
    Placement,
)
from daggyr_server.executors.agents.followed import Followed
from daggyr_server.executors.agents.known_agent import PLACED_EARLIER, Agent, Ask
from daggyr_server.executors.agents.portions import MAX_BATCH_BYTES, MAX_KEYS, portions
from daggyr_server.executors.agents.session import PROBE, Session, SessionRefused
from daggyr_server.executors.base import Executor, ExecutorContext, Reports, forgotten

log = logging.getLogger(__name__)

MISSED_HEARTBEATS = 4  # then a session that says nothing is given up
LATE_BATCHES = 16  # durable batches of updates that a busy agent is not told of before its next heartbeat


class AgentSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An agent pool has no settings: agents bring their own."""


class AgentExecutor(Executor):
    """One pool of agents."""

    Settings: ClassVar[type[msgspec.Struct]] = AgentSettings
    on_listener: ClassVar[bool] = True  # its agents dial in where the coordinator listens
    fleeting: ClassVar[bool] = False  # its agents' state folders end with them: one that is gone never comes back

    @property
    def joined_as(self) -> str:
        """The name by which agents join this pool."""
        return self.pool

    def __init__(self, pool: str, settings: Any, reports: Reports, surroundings: ExecutorContext) -> None:
        super().__init__(pool, settings, reports, surroundings)
        self.agents: dict[str, Agent] = {}  # by agent id
        self._follow_ids = itertools.count(1)
        self._follows: dict[int, Followed] = {}
        self._watch: asyncio.Task[None] | None = None

    # -- the executor interface ---------------------------------------------------------------------------------------

    async def open(self) -> None:
        self._watch = asyncio.create_task(self._watch_heartbeats(), name=f"heartbeats of {self.pool}")

    async def close(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        for agent in self.agents.values():
            if agent.lease is not None:
                agent.lease.cancel()
            if agent.session is not None:
                agent.session.end(grpc.StatusCode.UNAVAILABLE, "the coordinator is going away")
        for followed in self._follows.values():
            followed.end()

    def start(self, host: str, batch: AssignmentBatch) -> None:
        agent = self.agents.get(host)
        if agent is None:
            self._report(host, [assignment.key for assignment in batch.assignments], LOST, "its agent went away")
            return
        for part, size in portions(batch):
            if size > MAX_BATCH_BYTES:
                self._report(host, [part.assignments[0].key], REJECTED, _too_large(size))
                continue
            new = agent.give(part)
            if new is not None and agent.session is not None:
                agent.session.send(CoordinatorMessage(assign=new))

    def stop(self, host: str, keys: Sequence[AttemptKey]) -> None:
        self._ask(host, keys, "stop")

    def recall(self, host: str, keys: Sequence[AttemptKey]) -> None:
        self._ask(host, keys, "recall")

    def recover(self, placed: Sequence[tuple[AttemptKey, Placement]]) -> None:
        for key, placement in placed:
            agent = self.agents.get(placement.host)
            if agent is None:
                agent = self.agents[placement.host] = Agent(placement.host, placement.host, "", awaited=True)
                agent.lease = asyncio.get_running_loop().call_later(self.lease, self._give_up, agent)
            agent.held.setdefault(ident_of(key), PLACED_EARLIER)

    async def follow(self, host: str, key: AttemptKey, stream: int, offset: int) -> AsyncIterator[OutputChunk]:
        agent = self.agents.get(host)
        while agent is not None and agent.session is not None and ident_of(key) in agent.held:
            session, follow_id = agent.session, next(self._follow_ids)
            followed = self._follows[follow_id] = Followed(session)
            request = Follow(follow_id=follow_id, key=key, stream=stream, offset=offset)  # type: ignore[arg-type]
            session.send(CoordinatorMessage(follow=request))
            try:
                async for chunk in followed.chunks():
                    offset = chunk.offset + len(chunk.data)
                    yield chunk
            finally:
                del self._follows[follow_id]
                session.send(CoordinatorMessage(follow=Follow(follow_id=follow_id, stop=True)))
            if not followed.overrun:
                return

    # -- what the API asks --------------------------------------------------------------------------------------------

    def drain(self, name: str) -> bool:
        """Let an agent finish and leave. Returns whether there is one of that name; a connected one goes first."""
        agent = self.connected(name) or next((agent for agent in self.agents.values() if agent.name == name), None)
        if agent is None:
            return False
        agent.draining = True
        if agent.session is not None:
            agent.session.send(CoordinatorMessage(drain=Drain()))
            self._offer(agent, HOST_DRAINING)
        return True

    def forget(self, agent_id: str) -> int:
        """Do not wait any longer for an agent that is not connected. Returns how many attempts it still had: they are LOST."""
        agent = self.agents.get(agent_id)
        if agent is None or agent.session is not None:
            return 0
        if agent.lease is not None:
            agent.lease.cancel()
        lost = len(agent.held)
        self._give_up(agent)
        return lost

    # -- what sessions tell -------------------------------------------------------------------------------------------

    def connected(self, name: str) -> Agent | None:
        """The connected agent of that name."""
        return next((agent for agent in self.agents.values() if agent.name == name and agent.session is not None), None)

    def moved(self, agent_id: str) -> None:
        """An agent has joined another pool: here it is gone."""
        agent = self.agents.get(agent_id)
        if agent is not None:
            if agent.session is not None:
                agent.session.end(grpc.StatusCode.ABORTED, f"agent {agent.name!r} joined another pool")
                agent.session = None
            if agent.lease is not None:
                agent.lease.cancel()
            self._give_up(agent)

    def welcome(self, hello: Hello, session: Session) -> Agent:
        """Take an agent in. Raises SessionRefused."""
        ours = self.surroundings
        if hello.tracker_id == ours.tracker_id and hello.epoch > ours.epoch:
            message = (
                f"agent {hello.name!r} has seen a newer start of this coordinator: this one is out of date and should be ended"
            )
            raise SessionRefused(grpc.StatusCode.FAILED_PRECONDITION, message)
        agent = self.agents.get(hello.agent_id)
        # Its numbers go on, and it may still be sent what it never got, unless one of the two has begun anew: the agent by a
        # start, or by a welcome of another tracker in between, this side by its own start.
        again = (
            agent is not None
            and not agent.awaited
            and agent.incarnation == hello.incarnation
            and hello.tracker_id in ("", ours.tracker_id)
        )
        if agent is None:
            agent = self.agents[hello.agent_id] = Agent(hello.agent_id, hello.name, hello.incarnation)
        if agent.session is not None:
            agent.session.end(grpc.StatusCode.ABORTED, f"agent {hello.name!r} opened a newer session, from {session.address}")
        if agent.lease is not None:
            agent.lease.cancel()
            agent.lease = None
        agent.awaited = agent.leaving = False
        if not again:
            agent.incarnation, agent.expected = hello.incarnation, max(1, hello.first_unacknowledged)
            agent.durable = agent.expected - 1
        agent.name, agent.resources, agent.version = hello.name, dict(hello.resources), hello.version
        agent.session, agent.address = session, session.address
        agent.draining = (agent.draining and again) or hello.draining
        agent.connect_time = agent.last_seen = time.time()
        agent.heard = time.monotonic()
        self._reconcile(agent, hello, session, again=again)
        self._offer(agent, HOST_DRAINING if agent.draining else HOST_AVAILABLE)
        if agent.draining and not hello.draining:
            session.send(CoordinatorMessage(drain=Drain()))
        log.info("agent %s %s pool %s", agent.name, "is back in" if again else "joined", self.pool)
        return agent

    def _reconcile(self, agent: Agent, hello: Hello, session: Session, *, again: bool) -> None:
        """Agree with an agent on what it has: end what is not its own, send again what it never got, lose what it lost."""
        same_tracker = hello.tracker_id == self.surroundings.tracker_id
        held = {ident_of(key) for key in hello.held} if same_tracker else set()
        theirs = held | {ident_of(key) for key in hello.ended} if same_tracker else set()
        ours = agent.held
        session.send(
            CoordinatorMessage(
                welcome=Welcome(
                    tracker_id=self.surroundings.tracker_id,
                    epoch=self.surroundings.epoch,
                    heartbeat_interval=duration(self.surroundings.heartbeat),
                    kill_grace=duration(self.surroundings.grace),
                    end=[key_of(ident) for ident in held - ours.keys()],
                    next_sequence=agent.durable + 1,
                )
            )
        )
        # Recalled first: what is stopped makes room for what waits.
        recalled, stopped = (
            [key_of(ident) for ident, asked in agent.asked.items() if asked == ask and ident in theirs]
            for ask in ("recall", "stop")
        )
        self._say(session, recalled, "recall")
        self._say(session, stopped, "stop")
        # What it never got is sent again; that is safe in any case, an agent knows what it has. Of the rest nobody knows more.
        never_got = []
        for ident in sorted(ours.keys() - theirs):
            ask = agent.asked.pop(ident, None)
            if ours[ident] is PLACED_EARLIER:
                self._end_here(agent, ident, LOST, "its agent came back without it")
            elif not again:
                self._end_here(agent, ident, LOST, "its agent was started again")
            elif ask is not None:
                self._end_here(agent, ident, KILLED if ask == "stop" else RETURNED)
            else:
                never_got.append(ident)
        for batch in agent.again(never_got):
            session.send(CoordinatorMessage(assign=batch))

    def said(self, agent: Agent, session: Session, message: AgentMessage) -> None:
        """Take a message of a session."""
        if agent.session is not session:
            return
        agent.heard = time.monotonic()
        agent.last_seen = time.time()
        kind = message.WhichOneof("message")
        if kind == "updates":
            self._updates(agent, session, message.updates)
        elif kind == "heartbeat":
            agent.heartbeat = message.heartbeat
            session.acknowledge(agent.durable)
            if message.heartbeat.draining and not agent.draining:
                agent.draining = True
                self._offer(agent, HOST_DRAINING)
        elif kind == "followed" and message.followed.follow_id == PROBE:
            session.answered(True)
        elif kind == "followed":
            followed = self._follows.get(message.followed.follow_id)
            if followed is not None and followed.session is session:
                followed.put(message.followed)
        elif kind == "goodbye":
            agent.leaving = True
        elif kind == "hello":
            session.end(grpc.StatusCode.INVALID_ARGUMENT, "a hello in the middle of a session")

    def _updates(self, agent: Agent, session: Session, batch: UpdateBatch) -> None:
        sequence = batch.sequence
        if sequence < agent.expected:
            session.acknowledge(agent.durable)
            return
        if sequence > agent.expected:
            session.end(grpc.StatusCode.INVALID_ARGUMENT, f"batch {sequence} came where {agent.expected} was due")
            return
        agent.expected = sequence + 1
        session.took()
        updates = agent.answered(batch.updates)
        incarnation = agent.incarnation

        def durable() -> None:
            session.durable()
            if agent.incarnation != incarnation:
                return  # its numbers began anew
            agent.durable = max(agent.durable, sequence)
            # An agent with work to do can wait for this word; a message for each of its own would cost more than it says.
            if agent.session is not None and (not agent.held or agent.session.unacknowledged(agent.durable) >= LATE_BATCHES):
                agent.session.acknowledge(agent.durable)

        self.reports.updates(agent.agent_id, updates, durable)

    def lost(self, agent: Agent, session: Session) -> None:
        """A session ended, for whatever reason."""
        for followed in self._follows.values():
            if followed.session is session:
                followed.end()
        if agent.session is not session:
            return  # the agent has a newer one
        agent.session = None
        agent.last_seen = time.time()
        # What it told may not be durable yet; then it must be known again when it comes back.
        if (agent.leaving or agent.draining) and not agent.held and agent.durable + 1 == agent.expected:
            self._give_up(agent)
            return
        if self._watch is None:
            return  # closing
        self._offer(agent, HOST_PAUSED)
        agent.lease = asyncio.get_running_loop().call_later(self.lease, self._give_up, agent)
        log.info("agent %s is out of reach; its %d attempts are kept for %g s", agent.name, len(agent.held), self.lease)

    @property
    def lease(self) -> float:
        """How long an agent may be out of reach, in seconds."""
        return self.surroundings.lease

    def _give_up(self, agent: Agent) -> None:
        agent.lease = None
        self.agents.pop(agent.agent_id, None)
        if self.fleeting:
            self.surroundings.pins.drop(agent.agent_id)
        if agent.awaited:  # it was never offered as a host
            self._report(agent.agent_id, map(key_of, agent.held), LOST, "its agent did not come back")
            return
        if agent.held:
            log.warning("agent %s is gone; its %d attempts are lost", agent.name, len(agent.held))
        else:
            log.info("agent %s is gone", agent.name)
        self._offer(agent, HOST_GONE)

    async def _watch_heartbeats(self) -> None:
        """End sessions whose agent says nothing any more, though the connection still stands.

        While this process itself stood still, it heard nobody: that time does not count.
        """
        interval = self.surroundings.heartbeat
        now = time.monotonic()
        while True:
            before = now
            await asyncio.sleep(interval)
            now = time.monotonic()
            stood_still = max(0.0, now - before - interval)
            for agent in self.agents.values():
                if agent.session is None:
                    continue
                agent.heard = now if agent.session.is_full else min(now, agent.heard + stood_still)
                if agent.heard < now - MISSED_HEARTBEATS * interval:
                    agent.session.end(grpc.StatusCode.UNAVAILABLE, "no heartbeat came")

    # -- telling ------------------------------------------------------------------------------------------------------

    def _ask(self, host: str, keys: Sequence[AttemptKey], ask: Ask) -> None:
        agent = self.agents.get(host)
        if agent is not None:
            asked = agent.ask(keys, ask)
            if agent.session is not None:
                self._say(agent.session, asked, ask)

    def _say(self, session: Session, keys: Sequence[AttemptKey], ask: Ask) -> None:
        for start in range(0, len(keys), MAX_KEYS):
            part = keys[start : start + MAX_KEYS]
            if ask == "stop":
                session.send(CoordinatorMessage(cancel=Cancel(keys=part, grace=duration(self.surroundings.grace))))
            else:
                session.send(CoordinatorMessage(recall=Recall(keys=part)))

    def _offer(self, agent: Agent, state: HostState) -> None:
        self.reports.host(Host(host=agent.agent_id, name=agent.name, state=state, resources=agent.resources, takes_ahead=True))

    def _end_here(self, agent: Agent, ident: Ident, outcome: AttemptOutcome, *notes: str) -> None:
        """Tell the end of an attempt that the agent will tell nothing of."""
        del agent.held[ident]
        self._report(agent.agent_id, [key_of(ident)], outcome, *notes)

    def _report(self, host: str, keys: Iterable[AttemptKey], outcome: AttemptOutcome, *notes: str) -> None:
        result = without_process(outcome, *notes)
        self.reports.updates(host, [AttemptUpdate(key=key, finished=result) for key in keys], forgotten)


def _too_large(size: int) -> str:
    return (
        f"it takes {size:,} bytes on its way to its agent, and a message holds {MAX_BATCH_BYTES:,}: "
        "let it read what is large from a file"
    )
