"""The agent executor: attempts run on agents that dial in and say which pool they join.

For each agent it keeps the assignments that have no result yet, so that a broken connection loses nothing: what the agent
never got is sent again, what it still has goes on, and what it should not have is ended (`agreement.py`). An agent without a
session for longer than the lease is gone, and its attempts are LOST.

The driver calls the executor interface, the servicer tells what agents say, and the API drains and forgets agents. Nothing here
reads from or writes to a connection, and nothing but `open`, `close` and `follow` waits.
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

from daggyr.attempts.keys import ident_of, key_of
from daggyr.attempts.outcome import without_process
from daggyr.attempts.times import duration, seconds_of
from daggyr.channel import HIGHEST_PROTOCOL_VERSION
from daggyr.v1.agents_pb2 import (
    AgentMessage,
    Cancel,
    CoordinatorMessage,
    Drain,
    Heartbeat,
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
    LOST,
    REJECTED,
    RETURNED,
    Assignment,
    AssignmentBatch,
    AttemptKey,
    AttemptOutcome,
    AttemptUpdate,
    Host,
    HostState,
    OutputChunk,
    Placement,
)
from daggyr_server.executors.agents.agreement import agree
from daggyr_server.executors.agents.following import FollowedOutputs
from daggyr_server.executors.agents.heartbeats import watch_heartbeats
from daggyr_server.executors.agents.known_agent import PLACED_EARLIER, KnownAgent, Request, highest_version
from daggyr_server.executors.agents.portions import MAX_BATCH_BYTES, MAX_KEYS, portions
from daggyr_server.executors.agents.refused import RefusedAgents, behind
from daggyr_server.executors.agents.session import PROBE, AgentIsAhead, AgentSession
from daggyr_server.executors.base import Executor, Reports, forgotten
from daggyr_server.executors.context import ExecutorContext

log = logging.getLogger(__name__)

LATE_BATCHES = 16  # durable batches of updates that a busy agent is not told of before its next heartbeat
_ANOTHER_PAUSE = 0.5  # seconds; heartbeats tell the rest of a pause, and a pause that ends later than said before is another


class AgentSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An agent pool has no settings: agents bring their own."""


class AgentExecutor(Executor):
    """One pool of agents."""

    Settings: ClassVar[type[msgspec.Struct]] = AgentSettings
    on_listener: ClassVar[bool] = True  # its agents dial in where the coordinator listens
    fleeting: ClassVar[bool] = False  # its agents' state folders end with them, so that one that is gone never comes back

    @property
    def joined_as(self) -> str:
        """The name by which agents join this pool."""
        return self.pool

    @property
    def lease(self) -> float:
        """How long an agent may be out of reach, in seconds."""
        return self.context.lease

    def __init__(self, pool: str, settings: Any, reports: Reports, context: ExecutorContext) -> None:
        super().__init__(pool, settings, reports, context)
        self.agents: dict[str, KnownAgent] = {}  # by agent id
        self.refused = RefusedAgents()
        self._follows = FollowedOutputs()
        self._heartbeats: asyncio.Task[None] | None = None  # while the pool is open

    # -- the executor interface ---------------------------------------------------------------------------------------

    async def open(self) -> None:
        watching = watch_heartbeats(self.agents, self.context.heartbeat)
        self._heartbeats = asyncio.create_task(watching, name=f"heartbeats of {self.pool}")

    async def close(self) -> None:
        heartbeats, self._heartbeats = self._heartbeats, None
        if heartbeats is not None:
            heartbeats.cancel()
            await asyncio.gather(heartbeats, return_exceptions=True)
        for agent in self.agents.values():
            agent.end_lease()
            if agent.session is not None:
                agent.session.end(grpc.StatusCode.UNAVAILABLE, "the coordinator is going away")
        self._follows.end_all()

    def start(self, host: str, batch: AssignmentBatch) -> None:
        agent = self.agents.get(host)
        if agent is None:
            self._tell_end(host, [assignment.key for assignment in batch.assignments], LOST, "its agent went away")
            return
        if agent.foreign:
            batch = self._distinguishable(agent, batch)
        for part, size in portions(batch):
            if size > MAX_BATCH_BYTES:
                self._tell_end(host, [part.assignments[0].key], REJECTED, _too_large(size))
                continue
            new = agent.give(part)
            if new is not None and agent.session is not None:
                agent.session.send(CoordinatorMessage(assign=new))

    def _distinguishable(self, agent: KnownAgent, batch: AssignmentBatch) -> AssignmentBatch:
        """What of a batch a lifeless agent can tell from what it came with. The others are handed back, and get other numbers."""
        given: list[Assignment] = []
        clashing: list[Assignment] = []
        for assignment in batch.assignments:
            key = assignment.key
            clashes = (key.run_id, key.task_number, key.attempt) in agent.foreign
            (clashing if clashes else given).append(assignment)
        if not clashing:
            return batch
        note = "its agent, of an older version, has an attempt with the same numbers from another copy of the tracker"
        self._tell_end(agent.agent_id, [assignment.key for assignment in clashing], RETURNED, note)
        return AssignmentBatch(templates=batch.templates, assignments=given)

    def stop(self, host: str, keys: Sequence[AttemptKey]) -> None:
        self._request(host, keys, "stop")

    def recall(self, host: str, keys: Sequence[AttemptKey]) -> None:
        self._request(host, keys, "recall")

    def recover(self, placed: Sequence[tuple[AttemptKey, Placement]]) -> None:
        for key, placement in placed:
            agent = self.agents.get(placement.host)
            if agent is None:
                agent = self.agents[placement.host] = KnownAgent(placement.host, placement.host, "", awaited=True)
                agent.lease = asyncio.get_running_loop().call_later(self.lease, self._give_up, agent)
            agent.held.setdefault(ident_of(key), PLACED_EARLIER)

    async def follow(self, host: str, key: AttemptKey, stream: int, offset: int) -> AsyncIterator[OutputChunk]:
        agent = self.agents.get(host)
        while agent is not None and agent.session is not None and ident_of(key) in agent.held:
            with self._follows.opened(agent.session, key, stream, offset) as followed:  # type: ignore[arg-type]
                async for chunk in followed.chunks():
                    offset = chunk.offset + len(chunk.data)
                    yield chunk
            if not followed.overrun:
                return

    def expected(self) -> Iterable[KnownAgent]:
        """Return agents that the pool itself has started and that have not joined yet, to be shown and nothing else."""
        return ()

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
        """Stop waiting for an agent that is not connected. Returns how many attempts it still had: they are LOST."""
        agent = self.agents.get(agent_id)
        if agent is None or agent.session is not None:
            return 0
        lost = len(agent.held)
        self._give_up(agent)
        return lost

    # -- what the servicer tells: see servicer.AgentPool -------------------------------------------------------------

    def connected(self, name: str) -> KnownAgent | None:
        return next((agent for agent in self.agents.values() if agent.name == name and agent.session is not None), None)

    def moved(self, agent_id: str) -> None:
        agent = self.agents.get(agent_id)
        if agent is not None:
            if agent.session is not None:
                agent.session.end(grpc.StatusCode.ABORTED, f"agent {agent.name!r} joined another pool")
                agent.session = None
            self._give_up(agent)

    def welcome(self, hello: Hello, session: AgentSession) -> KnownAgent:
        tracker_id = self.context.tracker_id
        reason = behind(hello, self.context)
        if reason is not None:
            self.refused.note(hello, session.address, reason)
            raise AgentIsAhead(reason)
        self.refused.forget(hello.agent_id)
        known = self.agents.get(hello.agent_id)
        continues = known is not None and known.continues(hello, tracker_id, self.context.life)
        agent = known or KnownAgent(hello.agent_id, hello.name, hello.incarnation)
        self.agents[hello.agent_id] = agent
        if agent.session is not None:
            agent.session.end(grpc.StatusCode.ABORTED, f"agent {hello.name!r} opened a newer session, from {session.address}")
        agent.end_lease()
        agent.connect(hello, session, continues=continues)
        if agent.lifeless:
            agent.complete(itertools.chain(hello.held, hello.ended))
        self._reconcile(agent, hello, session, continues=continues)
        self._offer_as_it_is(agent)
        if agent.draining and not hello.draining:
            session.send(CoordinatorMessage(drain=Drain()))
        log.info("agent %s %s pool %s", agent.name, "is back in" if continues else "joined", self.pool)
        return agent

    def _reconcile(self, agent: KnownAgent, hello: Hello, session: AgentSession, *, continues: bool) -> None:
        """Say what an agent is to have, and tell the ends of the attempts that nobody has any more."""
        context = self.context
        agreement = agree(agent, hello, same_tracker=hello.tracker_id == context.tracker_id, continues=continues)
        welcome = Welcome(
            tracker_id=context.tracker_id,
            epoch=context.epoch,
            heartbeat_interval=duration(context.heartbeat),
            kill_grace=duration(context.grace),
            end=agreement.end,
            next_sequence=agent.durable + 1,
            protocol_version=min(HIGHEST_PROTOCOL_VERSION, highest_version(hello)),
            life=context.life,
        )
        session.send(CoordinatorMessage(welcome=welcome))
        # Recalls go first, because what is stopped makes room for what waits.
        self._say(session, agreement.recall, "recall")
        self._say(session, agreement.stop, "stop")
        for key, outcome, note in agreement.ended:
            self._tell_end(agent.agent_id, [key], outcome, *([note] if note else []))
        for batch in agreement.send_again:
            session.send(CoordinatorMessage(assign=batch))

    def said(self, agent: KnownAgent, session: AgentSession, message: AgentMessage) -> None:
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
            self._beat(agent, message.heartbeat)
        elif kind == "followed" and message.followed.follow_id == PROBE:
            session.answered(True)
        elif kind == "followed":
            self._follows.put(session, message.followed)
        elif kind == "goodbye":
            agent.leaving = True
        elif kind == "hello":
            session.end(grpc.StatusCode.INVALID_ARGUMENT, "a hello in the middle of a session")

    def _beat(self, agent: KnownAgent, heartbeat: Heartbeat) -> None:
        """Pass on what a heartbeat says of whether the agent takes attempts, if that may be news."""
        before, fault = agent.fault, heartbeat.fault if heartbeat.HasField("fault") else None
        drains_now = heartbeat.draining and not agent.draining
        if not drains_now and before is None and fault is None:
            return
        agent.draining = agent.draining or drains_now
        agent.fault = fault
        if fault is not None:
            until = agent.heard + seconds_of(fault.pause)
            if before is None or before.reason != fault.reason or until > agent.paused_until + _ANOTHER_PAUSE:
                log.warning("agent %s takes nothing for %.3g s: %s", agent.name, seconds_of(fault.pause), fault.reason)
            agent.paused_until = until
        elif before is not None:
            log.info("agent %s takes attempts again", agent.name)
        self._offer_as_it_is(agent)

    def _updates(self, agent: KnownAgent, session: AgentSession, batch: UpdateBatch) -> None:
        sequence = batch.sequence
        if sequence < agent.expected:
            session.acknowledge(agent.durable)
            return
        if sequence > agent.expected:
            session.end(grpc.StatusCode.INVALID_ARGUMENT, f"batch {sequence} came where {agent.expected} was due")
            return
        agent.expected = sequence + 1
        session.took()
        if agent.lifeless:
            agent.complete(update.key for update in batch.updates)
        updates = agent.answered(batch.updates)
        incarnation = agent.incarnation

        def durable() -> None:
            session.durable()
            if agent.incarnation != incarnation:
                return  # its numbers began anew
            agent.became_durable(sequence)
            # An agent with work to do can wait for this word: a message of its own would cost more than it says.
            if agent.session is not None and (not agent.held or agent.session.unacknowledged(agent.durable) >= LATE_BATCHES):
                agent.session.acknowledge(agent.durable)

        self.reports.updates(agent.agent_id, updates, durable)

    def lost(self, agent: KnownAgent, session: AgentSession) -> None:
        self._follows.end(session)
        if agent.session is not session:
            return  # the agent has a newer one
        agent.session = None
        agent.last_seen = time.time()
        # An agent whose words are not durable yet must still be known when it comes back to say them again.
        if (agent.leaving or agent.draining) and not agent.held and agent.durable + 1 == agent.expected:
            self._give_up(agent)
            return
        if self._heartbeats is None:
            return  # the pool is closed
        self._offer(agent, HOST_PAUSED)
        agent.lease = asyncio.get_running_loop().call_later(self.lease, self._give_up, agent)
        log.info("agent %s is out of reach; its %d attempts are kept for %g s", agent.name, len(agent.held), self.lease)

    def _give_up(self, agent: KnownAgent) -> None:
        agent.end_lease()
        self.agents.pop(agent.agent_id, None)
        if self.fleeting:
            self.context.pins.drop(agent.agent_id)
        if agent.awaited:  # it was never offered as a host
            self._tell_end(agent.agent_id, map(key_of, agent.held), LOST, "its agent did not come back")
            return
        if agent.held:
            log.warning("agent %s is gone; its %d attempts are lost", agent.name, len(agent.held))
        else:
            log.info("agent %s is gone", agent.name)
        self._offer(agent, HOST_GONE)

    # -- telling the agent, and the driver ----------------------------------------------------------------------------

    def _request(self, host: str, keys: Sequence[AttemptKey], request: Request) -> None:
        agent = self.agents.get(host)
        if agent is not None:
            found = agent.request(keys, request)
            if agent.session is not None:
                self._say(agent.session, found, request)

    def _say(self, session: AgentSession, keys: Sequence[AttemptKey], request: Request) -> None:
        for start in range(0, len(keys), MAX_KEYS):
            part = keys[start : start + MAX_KEYS]
            if request == "stop":
                session.send(CoordinatorMessage(cancel=Cancel(keys=part, grace=duration(self.context.grace))))
            else:
                session.send(CoordinatorMessage(recall=Recall(keys=part)))

    def _offer_as_it_is(self, agent: KnownAgent) -> None:
        """Offer a connected agent."""
        self._offer(agent, HOST_DRAINING if agent.draining else HOST_PAUSED if agent.fault is not None else HOST_AVAILABLE)

    def _offer(self, agent: KnownAgent, state: HostState) -> None:
        host = Host(host=agent.agent_id, name=agent.name, state=state, resources=agent.resources, takes_ahead=True)
        host.shortage = agent.shortage
        if agent.ends is not None:
            host.ends_in.CopyFrom(duration(max(0.0, agent.ends - time.monotonic())))
        if state == HOST_PAUSED and agent.session is not None and agent.fault is not None:
            host.fault.CopyFrom(agent.fault)
        self.reports.host(host)

    def _tell_end(self, host: str, keys: Iterable[AttemptKey], outcome: AttemptOutcome, *notes: str) -> None:
        """Tell the end of attempts of which no agent will tell anything."""
        result = without_process(outcome, *notes)
        self.reports.updates(host, [AttemptUpdate(key=key, finished=result) for key in keys], forgotten)


def _too_large(size: int) -> str:
    return (
        f"it takes {size:,} bytes on its way to its agent, and a message holds {MAX_BATCH_BYTES:,}: "
        "let it read what is large from a file"
    )
