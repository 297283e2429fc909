"""What people ask of a coordinator: runs to take, and what is to become of those that it has.

The API calls the one `Requests`; each call returns once what it asked for is durable. A request waits in the inbox under a ticket
until the loop answers it. What a plan of an edit is, and how runs are taken away, stand in files of their own, whose methods are
among those here. Nothing here changes a run: the machine does, or refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from daggyr_server.core.events import KillAsked, MarkAsked, RetryAsked, RunSubmitted
from daggyr_server.core.graph.graph import Addition
from daggyr_server.core.graph.segments import Keeping
from daggyr_server.core.records import AgentForgotten, AgentPinned
from daggyr_server.core.step import Reason
from daggyr_server.driver.agents import Agents
from daggyr_server.driver.asking import Asking
from daggyr_server.driver.deletions import Deletions
from daggyr_server.driver.deposits import Deposits
from daggyr_server.driver.editing import Editing
from daggyr_server.driver.ended import Reader
from daggyr_server.driver.errors import Refused
from daggyr_server.driver.inbox import Inbox, ToKeep


class Requests:
    """What people can ask of one coordinator. All methods belong to one event loop."""

    def __init__(
        self,
        inbox: Inbox,
        reader: Reader,
        asking: Asking,
        editing: Editing,
        deletions: Deletions,
        deposits: Deposits,
        agents: Agents,
        keep: Callable[[], Keeping],
        folder: Path | None,
    ) -> None:
        """`keep` makes the lists that hold what the tasks of a specification execute: whoever expands one needs it. `folder` is
        where large documents may lie until they are taken; see Tracker.folder."""
        self.keep = keep
        self.folder = folder
        self._inbox = inbox
        self._asking = asking
        self._deposits = deposits
        self._reader = reader
        self._repeat = editing.repeat
        self.plan, self.edit = editing.plan, editing.edit
        self.delete, self.prune = deletions.delete, deletions.prune
        self.drain, self.forget_agent = agents.drain, agents.forget

    async def submit(
        self,
        *,
        request_id: str,
        tags: Mapping[str, str],
        pool: str,
        parameters: Mapping[str, tuple[str, ...]],
        addition: Addition,
        document: bytes,
    ) -> int:
        """Take a run; returns its id. Raises Refused, Closing."""
        deposit = await self._deposits.make(document)
        run_id = await self._deposits.named(
            [deposit],
            self._inbox.ask(
                RunSubmitted(
                    ticket=object(),
                    request_id=request_id,
                    tags=tags,
                    pool=pool,
                    parameters=parameters,
                    addition=addition,
                    document=b"" if deposit else document,
                    deposit=deposit,
                )
            ),
        )
        assert run_id is not None
        return run_id

    async def kill(self, run_id: int, numbers: Sequence[int] | None) -> None:
        """End a run, or some of its tasks. Raises Refused, TrackerError, Closing."""
        await self._ask(KillAsked(ticket=object(), run_id=run_id, numbers=numbers))

    async def retry(self, run_id: int, numbers: Sequence[int] | None, *, downstream: bool, everything: bool = False) -> None:
        """Queue tasks again. `everything` also lets go on what a kill of the run left behind.

        Raises Refused, TrackerError, Closing.
        """
        request = RetryAsked(ticket=object(), run_id=run_id, numbers=numbers, downstream=downstream, everything=everything)
        try:
            await self._ask(request)
        except Refused as refused:
            if refused.refusal.reason is not Reason.GROWN or numbers is None:
                raise
            await self._repeat(run_id, numbers, everything=everything)

    async def mark(self, run_id: int, numbers: Sequence[int], *, completed: bool, everything: bool = False) -> None:
        """Say that tasks are COMPLETED, or QUEUED. Raises Refused, TrackerError, Closing."""
        await self._ask(MarkAsked(ticket=object(), run_id=run_id, numbers=numbers, completed=completed, everything=everything))

    async def keep_pin(self, agent_id: str, name: str, digest: bytes | None) -> None:
        """Record the digest of the key that an agent is known by, or, without one, that it is known by none. Raises Closing."""
        record = AgentForgotten(agent_id) if digest is None else AgentPinned(agent_id, name, digest)
        await self._inbox.ask(ToKeep(object(), record))

    async def _ask(self, request: KillAsked | RetryAsked | MarkAsked) -> None:
        """Ask something of a run that the caller has found. An ended run may have left memory since: then it is brought back."""
        with self._reader.held(request.run_id):
            try:
                await self._asking.ask(request)
            except Refused as refused:
                if refused.refusal.reason is not Reason.NOT_FOUND or await self._reader.find(request.run_id) is None:
                    raise
                await self._asking.ask(replace(request, ticket=object()))
